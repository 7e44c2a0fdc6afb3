"""Fuzzing: its duration, and the stores that the machine compares with the model of the lease protocol.

``short`` is for every run of the tests. It tries the same inputs each time, so a new failure comes from a change of the
code. ``long`` is for ``make fuzz`` and tries new inputs each time. A failure prints the smallest failing input, or the
shortest failing program of calls, and a line ``@reproduce_failure(…)``. Put it above the test or machine to replay it.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from tokencache.backends.file import FileBackend
from tokencache.backends.memcached import MemcachedBackend
from tokencache.backends.memcached._form import names_of
from tokencache.backends.memory import MemoryBackend
from tokencache.backends.redis import from_url
from tokencache.backends.redis._protocol import keys_of
from tokencache.testing.fakes import FakeClock
from tokencache.testing.probes import AsyncProbe
from tokencache.testing.servers import MemcachedServer, require
from tokencache.url import BackendURL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tokencache.testing.probes import Probe

PROFILES = {"short": (45, 22, 35), "long": (1_500, 300, 60)}
"""Inputs of a fuzzer, programs of a machine, and calls in each program."""

for _name, (_inputs, _, _calls) in PROFILES.items():
    settings.register_profile(
        _name,
        max_examples=_inputs,
        stateful_step_count=_calls,
        deadline=None,
        derandomize=_name == "short",
        print_blob=True,
        report_multiple_bugs=False,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register `fuzz` and `programs` for `--hypothesis-profile`; without it the short profiles are used."""
    asked = config.getoption("--hypothesis-profile", None)
    name = asked if asked in PROFILES else "short"
    settings.register_profile("fuzz", settings.get_profile(name))
    settings.register_profile("programs", settings.get_profile(name), max_examples=PROFILES[name][1])


def pytest_itemcollected(item: pytest.Item) -> None:
    """Give each test enough time to shrink a failing input."""
    item.add_marker(pytest.mark.timeout(900))


@dataclass
class Ground:
    """The machine's backends: two processes on one store, and functions that change the store from outside.

    ``clock`` is set if the store counts by it. Otherwise the store counts by itself, lives are long, and ``end_lease``
    and ``end_record`` end an entry at once. ``plant`` writes a record as another program would, without an end.
    ``remembers`` is true if the store keeps the fences of leases and records that are gone. Elsewhere only the clock
    makes fences grow, which fails for a record from a clock far ahead.
    """

    probes: tuple[Probe, Probe]
    clock: FakeClock | None = None
    rounding: float = 0.01
    remembers: bool = False
    plant: Callable[[str, bytes], object] | None = None
    end_lease: Callable[[str], object] | None = None
    end_record: Callable[[str], object] | None = None


@pytest.fixture
def memory_ground() -> Ground:
    """One process and its memory."""
    clock = FakeClock()
    backend = MemoryBackend(clock=clock)
    return Ground((backend, backend), clock, remembers=True)


@pytest.fixture
def file_ground(tmp_path: Path) -> Iterator[Ground]:
    """Two processes and one folder."""
    clock = FakeClock()
    one, other = (FileBackend(tmp_path / "tokens", clock=clock, wall=clock.wall) for _ in range(2))
    yield Ground(
        (one, other),
        clock,
        remembers=True,
        plant=lambda key, data: one.record_path(key).write_bytes(data),
        end_record=lambda key: one.record_path(key).unlink(missing_ok=True),
    )
    one.close()
    other.close()


@contextmanager
def _redis_ground(url: str, *, aio: bool) -> Iterator[Ground]:
    one, other = (from_url(BackendURL.parse(f"{url}?timeout=30s&connect_timeout=30s")) for _ in range(2))
    half = AsyncProbe(one) if aio else None

    def command(*parts: str | bytes) -> object:
        return other._execute("any", list(parts))

    yield Ground(
        (half or one, other),
        rounding=0.0,
        plant=lambda key, data: command("SET", keys_of(key, cluster=False)[0], data),
        end_lease=lambda key: command("DEL", *(keys_of(key, cluster=False)[place] for place in (1, 3))),
        end_record=lambda key: command("DEL", keys_of(key, cluster=False)[0]),
    )
    if half is not None:
        half.stop()
    one.close()
    other.close()


@pytest.fixture
def redis_ground(redis_url: str) -> Iterator[Ground]:
    """Two processes with threads, and one Redis."""
    with _redis_ground(redis_url, aio=False) as ground:
        yield ground


@pytest.fixture
def async_redis_ground(redis_url: str) -> Iterator[Ground]:
    """A process with an event loop and one with threads, and one Redis."""
    with _redis_ground(redis_url, aio=True) as ground:
        yield ground


@pytest.fixture
def memcached_ground() -> Iterator[Ground]:
    """Two processes and one memcached, which keeps a lease up to two seconds longer than requested."""
    require("memcached")
    from pymemcache.client.base import Client

    with MemcachedServer() as server:
        one, other = (MemcachedBackend(f"127.0.0.1:{server.port}", timeout=30.0) for _ in range(2))
        client = Client(("127.0.0.1", server.port), default_noreply=False)
        yield Ground(
            (one, other),
            rounding=2.0,
            plant=lambda key, data: client.set(names_of(key)[0], data),
            end_lease=lambda key: client.delete_many(names_of(key)[1:]),
            end_record=lambda key: client.delete(names_of(key)[0]),
        )
        client.close()
        one.close()
        other.close()
