"""`tokencache bench` on a real Redis and a real memcached: all its figures are there, and nothing stays behind."""

from __future__ import annotations

import json
import time
from contextlib import closing
from typing import TYPE_CHECKING, NamedTuple

import pytest
from redis import Redis
from typer.testing import CliRunner

from tokencache.cli import bench
from tokencache.cli._exit import Exit
from tokencache.cli.app import app
from tokencache.plugins import open_backend
from tokencache.ports import Slot
from tokencache.testing.servers import MemcachedServer, RedisServer, require
from tokencache_qpay.testing import FakeQPay

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.live

PATIENCE = 30.0
SECRET = "planted-client-secret-7f3a"
PASSWORD = "planted-acl-password-9d"
RIGHTS = "+get +pttl +set +del +pexpire +time +eval +evalsha +xadd +xread"
KEY = "qpay:access_token"
OWN = (f"{KEY}:bench", f"{KEY}:bench:cold")
run = CliRunner()


class Store(NamedTuple):
    """A server for one test."""

    url: str

    def slots(self) -> list[Slot]:
        """Return the records and leases at the keys of the bench."""
        with closing(open_backend(self.url)) as backend:
            return [slot for slot in map(backend.inspect, OWN) if slot != Slot(None)]

    def names(self) -> set[str]:
        """Return all keys of a Redis; of a memcached, those that the backend can name."""
        if self.url.startswith("redis"):
            with Redis.from_url(self.url) as client:
                return {name.decode() for name in client.scan_iter()}
        with closing(open_backend(self.url)) as backend:
            return {key for key in (KEY, *OWN) if backend.inspect(key) != Slot(None)}


@pytest.fixture(params=["redis", "memcached"])
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    """An empty server."""
    require(f"{request.param}-server" if request.param == "redis" else request.param)
    with RedisServer() if request.param == "redis" else MemcachedServer() as server:
        yield Store(server.url)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeQPay]:
    """A fake QPay that the environment names; few rounds, since the speed does not matter."""
    monkeypatch.setattr(bench, "ROUNDS", 200)
    monkeypatch.setattr(bench, "SHARED_CALLS", 10)
    with FakeQPay(credentials={"merchant": SECRET}) as server:
        for name, value in server.environ.items():
            monkeypatch.setenv(name, value)
        for name in ("QPAY_CACHE_KEY", "TOKENCACHE_BACKEND", "REDIS_DATABASE_URI"):
            monkeypatch.delenv(name, raising=False)
        yield server


def test_every_figure_is_there_and_only_the_fleets_record_stays(fake: FakeQPay, store: Store) -> None:
    """One login, one call in the stampede (INV-2), the fleet's record unchanged byte for byte, no key of the bench."""
    assert run.invoke(app, ["token", "qpay", "-b", store.url]).exit_code == Exit.OK
    with closing(open_backend(store.url)) as backend:
        before = backend.load(KEY)
    ran = run.invoke(app, ["bench", "qpay", "-b", store.url, "--json", "-p", "3", "-t", "4"])
    assert ran.exit_code == Exit.OK
    assert SECRET not in ran.output
    found = json.loads(ran.stdout)
    (figures,) = found["backends"]
    assert (found["logins"], fake.logins) == (1, 2)
    assert figures["speedup"] == figures["first"] / figures["cached"]
    assert figures["percentiles"]["shared"]["calls"] == 10
    stampede = figures["stampede"]
    assert (stampede["served"], stampede["provider_calls"], stampede["beyond"]["calls"]) == (12, 1, 12)
    with closing(open_backend(store.url)) as backend:
        after = backend.load(KEY)
    assert before is not None
    assert after is not None
    assert after.data == before.data
    only_the_fleets(store)


def test_a_bench_with_its_fake_leaves_an_empty_store(fake: FakeQPay, store: Store) -> None:
    """Without a provider the store stays as it was, and only the fake gets requests."""
    ran = run.invoke(app, ["bench", "-b", store.url, "-p", "2", "-t", "2"])
    assert ran.exit_code == Exit.OK
    assert [line.split()[0] for line in ran.stdout.splitlines()[1:4]] == ["first", "cached", "speed-up"]
    assert fake.requests == 0
    only_the_fleets(store)


def test_an_acl_for_the_fleets_keys_is_enough_for_the_bench(fake: FakeQPay, tmp_path: Path) -> None:
    """Its keys begin as the fleet's do; the password of the URL is in no output and no picture (INV-9)."""
    require("redis-server")
    file = tmp_path / "bench.svg"
    with RedisServer() as server:
        server.command("ACL", "SETUSER", "app", "reset", "on", f">{PASSWORD}", f"~{KEY}*", *RIGHTS.split())
        url = f"redis://app:{PASSWORD}@127.0.0.1:{server.port}/0"
        ran = run.invoke(app, ["bench", "qpay", "-b", url, "-p", "2", "-t", "2", "-v", "--picture", str(file)])
        assert ran.exit_code == Exit.OK, ran.output
    assert f"redis://app:***@127.0.0.1:{server.port}/0" in ran.stdout
    assert PASSWORD not in ran.output + file.read_text(encoding="utf-8")


@pytest.mark.parametrize("when", ["login", "stampede"])
def test_ctrl_c_leaves_no_process_and_no_key(
    fake: FakeQPay, store: Store, interrupt: Callable[..., None], when: str
) -> None:
    """INV-8: an interrupt exits with 130; processes, leases and records are gone, on a real server too."""
    fake.latency = 1.0
    with closing(open_backend(store.url)) as backend:
        interrupt(
            ["bench", "qpay", "-b", store.url, "-p", "2", "-t", "2"],
            lambda: fake.logins if when == "login" else backend.inspect(OWN[1]).owner,
        )
    assert store.slots() == []
    assert fake.logins == 1


def only_the_fleets(store: Store) -> None:
    """Wait until only the fleet's key is there: a wake-up ends by itself two seconds later."""
    assert store.slots() == []
    ends = time.monotonic() + PATIENCE
    while any("bench" in name for name in store.names()):
        assert time.monotonic() < ends, store.names()
        time.sleep(0.1)
