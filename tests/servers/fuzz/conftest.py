"""Fuzzing: how long it goes on, and the stores that the model of the lease protocol is held against.

``short`` is for every run of the tests and tries the same inputs each time, so that a change is judged by the change;
``long`` is for ``make fuzz`` and never repeats itself. A failure prints the smallest input, or the shortest program of
calls, that fails, and a line ``@reproduce_failure(…)``, which, put above the test or the machine, replays it.
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
    """Make `fuzz` and `programs` the profiles that `--hypothesis-profile` asks for, else the short ones."""
    asked = config.getoption("--hypothesis-profile", None)
    name = asked if asked in PROFILES else "short"
    settings.register_profile("fuzz", settings.get_profile(name))
    settings.register_profile("programs", settings.get_profile(name), max_examples=PROFILES[name][1])


def pytest_itemcollected(item: pytest.Item) -> None:
    """Allow each test the time that it takes to make a failing input as short as it gets."""
    item.add_marker(pytest.mark.timeout(900))


@dataclass
class Ground:
    """Where the machine plays: the backends of two processes on one store, and what can be done to it from outside.

    ``clock`` is there where the store counts by it. Otherwise the store counts for itself, lives are long, and
    ``end_lease`` and ``end_record`` make what is at a key end at once. ``plant`` writes a record as another program
    would, without an end. ``remembers`` is set where the store knows the fences of leases and records that are gone:
    elsewhere the clock alone keeps them growing, and cannot where a record came from a clock far ahead.
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
        end_lease=lambda key: command("DEL", keys_of(key, cluster=False)[1]),
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
    """Two processes and one memcached, which keeps a lease up to two seconds longer than asked."""
    require("memcached")
    from pymemcache.client.base import Client

    with MemcachedServer() as server:
        one, other = (MemcachedBackend(f"127.0.0.1:{server.port}", timeout=30.0) for _ in range(2))
        client = Client(("127.0.0.1", server.port), default_noreply=False)
        yield Ground(
            (one, other),
            rounding=2.0,
            plant=lambda key, data: client.set(names_of(key)[0], data),
            end_lease=lambda key: client.delete(names_of(key)[1]),
            end_record=lambda key: client.delete(names_of(key)[0]),
        )
        client.close()
        one.close()
        other.close()
