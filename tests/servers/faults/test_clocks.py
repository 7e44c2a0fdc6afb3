"""Rows 18, 19 and 20: wall clocks that step, differ and drift, hosts that sleep, and a store whose clock jumps."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, cast

import pytest

from tokencache import RefreshPolicy, Token, TokenCache, TokenSource
from tokencache._engine import local as _local
from tokencache.backends.file import FileBackend
from tokencache.backends.memcached import MemcachedBackend
from tokencache.backends.memory import MemoryBackend
from tokencache.testing.fakes import FakeClock, FakeProvider
from tokencache.url import BackendURL

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import Outcome, Store
    from tokencache.ports import Backend
    from tokencache.testing.servers import MemcachedServer, RedisServer

pytestmark = [pytest.mark.live, pytest.mark.usefixtures("tidy")]

PATIENCE = 30.0
HOUR = 3600.0
USABLE = 3540.0
"""How long callers get a token of an hour."""
STUBBORN = RefreshPolicy(lease=60.0, timeout=20.0)
EVERY = pytest.mark.parametrize("store", ["memory", "file", "redis", "memcached"], indirect=True)
REMOTE = pytest.mark.parametrize("store", ["redis", "memcached"], indirect=True)
REDIS = pytest.mark.parametrize("store", ["redis"], indirect=True)


class Host:
    """A host with its own clocks and a backend on the shared store. Its wall clock is ``ahead`` of the true time."""

    def __init__(self, store: Store, *, ahead: float = 0.0) -> None:
        self.clock = FakeClock()
        self.clock.step(ahead)
        self.backend: Backend = store.open()
        where = BackendURL.parse(store.url)
        match store.kind:
            case "memory":
                self.backend = MemoryBackend(clock=self.clock)
            case "file":
                self.backend = FileBackend(where.path, clock=self.clock, wall=self.clock.wall)
            case "memcached":
                self.backend = MemcachedBackend(
                    cast("tuple[str, int]", where.hosts[0]), timeout=PATIENCE, wall=self.clock.wall
                )

    def source(self, provider: FakeProvider) -> TokenSource:
        """Return the source of another process of this host."""
        return TokenCache(self.backend, clock=self.clock, wall=self.clock.wall).source(provider, key="k")


class Time:
    """The true time, for the hosts and the store together."""

    def __init__(self, store: Store, server: RedisServer | MemcachedServer | None) -> None:
        self._store = store
        self._server = server
        self.hosts: list[Host] = []

    def host(self, ahead: float = 0.0) -> Host:
        """Return another host."""
        self.hosts.append(Host(self._store, ahead=ahead))
        return self.hosts[-1]

    def advance(self, duration: float) -> None:
        """Let time pass on every host and in the store."""
        for host in self.hosts:
            host.clock.advance(duration)
        self.jump(-duration)

    def jump(self, duration: float) -> None:
        """Let the store's countdown of the record last ``duration`` longer."""
        if self._server is not None and self._store.kind == "redis":
            server = cast("RedisServer", self._server)
            left = cast("int", server.command("PTTL", "k"))
            if left > 0:
                server.command("PEXPIRE", "k", str(left + int(duration * 1000)))
        elif self._server is not None:
            cached = cast("MemcachedServer", self._server)
            (answer,) = cached.command("mg k t")
            if answer.startswith("HD t"):
                left = int(answer.removeprefix("HD t")) + int(duration)
                cached.command(f"touch k {left if left > 0 else -1}")


@pytest.fixture
def time(request: pytest.FixtureRequest, store: Store) -> Iterator[Time]:
    """The time of the hosts and the store."""
    known = {"redis": "redis_server", "memcached": "memcached_server"}
    time = Time(store, request.getfixturevalue(known[store.kind]) if store.kind in known else None)
    yield time
    for host in time.hosts:
        host.backend.close()


# --- row 18


@EVERY
@pytest.mark.parametrize("step", [HOUR, -HOUR], ids=["forward", "back"])
@pytest.mark.fault(18)
def test_a_step_of_the_wall_clock_gives_no_late_token(store: Store, outcome: Outcome, time: Time, step: float) -> None:
    """INV-1, INV-2: running processes keep the token to its usable end; of the new processes, at most one fetches."""
    outcome.case = f"the wall clock steps {'forward' if step > 0 else 'back'} by an hour"
    host = time.host()
    provider = FakeProvider(wall=host.clock.wall)
    source = host.source(provider)
    first = source.token()
    host.clock.step(step)
    assert {source.token() for _ in range(100)} == {first}
    others = [host.source(provider) for _ in range(10)]
    (common,) = {other.token().value for other in others}
    assert (common == first.value) == (step < 0)
    calls = provider.calls
    assert calls == (2 if step > 0 else 1)
    time.advance(USABLE + 1)
    (after,) = {each.token().value for each in (*others, source)}
    assert after not in {first.value, common}
    assert provider.calls == calls + 1
    who = "processes that start later share another one" if step > 0 else "processes that start later too"
    outcome.record(f"the current token to its usable end; {who}", calls=calls)


@REMOTE
@pytest.mark.fault(18, case="hosts ten minutes ahead and behind")
def test_hosts_that_disagree_share_one_token(store: Store, outcome: Outcome, time: Time) -> None:
    """INV-1, INV-2: the token of one host is good for the others, and no host gives it after its usable end."""
    hosts = [time.host(ahead) for ahead in (0.0, 600.0, -600.0)]
    provider = FakeProvider(wall=hosts[0].clock.wall)
    sources = [host.source(provider) for host in hosts]
    (first,) = {source.token().value for source in sources}
    calls = provider.calls
    assert calls == 1
    time.advance(USABLE + 1)
    (after,) = {source.token().value for source in (*sources, *(host.source(provider) for host in hosts))}
    assert after != first
    assert provider.calls == 2
    outcome.record("the same token, and at its usable end the same other one", calls=calls)


@REMOTE
@pytest.mark.fault(18, case="a host ten minutes behind comes late")
def test_a_host_with_a_slow_wall_clock_gives_no_late_token(store: Store, outcome: Outcome, time: Time) -> None:
    """INV-1: a record read in mid-life ends by the store's countdown, whatever the reader's wall clock says.

    memcached's client gives no countdown, so there a host that is behind uses its own clock: the one known gap.
    """
    host, behind = time.host(), time.host(-600.0)
    provider = FakeProvider(wall=host.clock.wall)
    first = host.source(provider).token()
    time.advance(HOUR / 2)
    source = behind.source(provider)
    assert source.token().value == first.value
    time.advance(HOUR / 2)
    last = source.token().value
    if store.kind == "memcached":
        assert last == first.value
        outcome.record("a late token for as long as its clock is behind: memcached counts nothing down", calls=1)
    else:
        assert last != first.value
        outcome.record("the token to its usable end, then another one", calls=provider.calls)


@EVERY
@pytest.mark.parametrize("rate", [5e-4, -5e-4], ids=["fast", "slow"])
@pytest.mark.fault(18)
def test_a_slewed_wall_clock_changes_nothing(store: Store, outcome: Outcome, time: Time, rate: float) -> None:
    """INV-1, INV-2: NTP slews the wall clock at its highest rate; no fetch is added and no token is late."""
    outcome.case = f"NTP slews the wall clock, {'fast' if rate > 0 else 'slow'}"
    host = time.host()
    provider = FakeProvider(wall=host.clock.wall)
    source = host.source(provider)
    first = source.token()
    for _ in range(45):
        time.advance(60.0)
        host.clock.step(60.0 * rate)
        assert source.token() == first
    assert host.source(provider).token().value == first.value
    outcome.record("the current token to its usable end", calls=provider.calls)
    assert provider.calls == 1
    time.advance(USABLE - 45 * 60.0 + 1)
    assert source.token().value != first.value


# --- row 19


@EVERY
@pytest.mark.fault(19, case="the steady clock counts sleep")
def test_a_host_reads_the_store_after_a_long_sleep(store: Store, outcome: Outcome, time: Time) -> None:
    """INV-1, INV-4: after a short sleep the copy is good; after a long one the host takes the fleet's newer token."""
    host, awake = time.host(), time.host()
    provider = FakeProvider(wall=host.clock.wall)
    source = host.source(provider)
    first = source.token()
    time.advance(600.0)
    assert source.token() == first
    time.advance(2 * HOUR)
    second = (awake if store.kind in {"redis", "memcached"} else host).source(provider).token()
    assert second.value != first.value
    assert source.token().value == second.value
    outcome.record("the token while it is good, then the fleet's newer one, at once", calls=provider.calls)
    assert provider.calls == 2


@EVERY
@pytest.mark.fault(19, case="the steady clock stops in sleep")
def test_a_host_whose_clock_stops_in_sleep_uses_the_wall_clock(
    store: Store, outcome: Outcome, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    """INV-1: where no clock counts sleep, the wall clock reveals it, at most 30 s after the host resumes."""
    monkeypatch.setattr(_local, "COUNTS_SLEEP", False)
    host = time.host()
    provider = FakeProvider(wall=host.clock.wall)
    source = host.source(provider)
    first = source.token()
    host.clock.step(2 * HOUR)
    time.jump(-2 * HOUR)
    time.advance(_local.LATE_LOOK)
    assert source.token().value != first.value
    outcome.record("another token, within 30 s of waking", calls=provider.calls)
    assert provider.calls == 2


SLEEPER = """
import ctypes, os, sys, time
from tokencache import TokenCache
from tokencache.testing.fakes import FakeProvider

provider = FakeProvider()
source = TokenCache(sys.argv[1]).source(provider)
first = source.token()
before = time.clock_gettime(time.CLOCK_BOOTTIME)
if ctypes.CDLL(None, use_errno=True).unshare(0x80):  # CLONE_NEWTIME
    sys.exit(77)
try:
    with open("/proc/self/timens_offsets", "w") as offsets:
        offsets.write("boottime 7200 0")
except OSError:
    sys.exit(77)
child = os.fork()  # whose clock has gone on by two hours
if child == 0:
    slept = time.clock_gettime(time.CLOCK_BOOTTIME) - before
    if slept < 7200:
        os._exit(77)
    token = source.token()
    os._exit(0 if token.value != first.value and provider.calls == 2 else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.parametrize("store", ["file"], indirect=True)
@pytest.mark.fault(19, case="the kernel's own clock jumps")
def test_a_jump_of_the_real_clock_is_seen(store: Store, outcome: Outcome) -> None:
    """INV-1: the same with the clock of the system, in a time namespace whose boot clock is two hours ahead."""
    if not sys.platform.startswith("linux"):
        pytest.skip("needs time namespaces")
    command = [sys.executable, "-W", "ignore", "-c", SLEEPER, store.url]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False, env=dict(os.environ))
    if ran.returncode == 77:
        pytest.skip("cannot create a time namespace here")
    assert ran.returncode == 0, ran.stderr[-2000:]
    outcome.record("another token, at once", calls=2)


# --- row 20


@REDIS
@pytest.mark.fault(20, case="back by an hour: countdowns last an hour longer")
def test_a_countdown_that_lasts_too_long_gives_no_late_token(store: Store, outcome: Outcome, time: Time) -> None:
    """INV-1: the record's own instants end it, for its holder, for a reader then, and for a reader after its end."""
    host = time.host()
    provider = FakeProvider(wall=host.clock.wall)
    source = host.source(provider)
    first = source.token()
    time.jump(HOUR)
    reader = host.source(provider)
    assert reader.token().value == first.value
    host.clock.advance(USABLE + 1)
    late = host.backend.load("k")
    assert late is not None
    assert late.remaining is not None
    assert late.remaining > HOUR
    (after,) = {each.token().value for each in (host.source(provider), reader, source)}
    assert after != first.value
    assert provider.calls == 2
    outcome.record("the token to its usable end, then another one", calls=provider.calls)


@REDIS
@pytest.mark.fault(20, case="forward by an hour: the record is gone")
def test_a_record_that_ends_too_soon_costs_one_fetch(store: Store, outcome: Outcome, time: Time) -> None:
    """INV-2, INV-4: a process with the token keeps it; the processes that start anew make one fetch."""
    host = time.host()
    provider = FakeProvider(wall=host.clock.wall)
    source = host.source(provider)
    first = source.token()
    fence = store.fence("k")
    time.jump(-HOUR)
    assert host.backend.load("k") is None
    (common,) = {host.source(provider).token().value for _ in range(10)}
    assert common != first.value
    assert source.token() == first
    assert store.fence("k") > fence
    assert provider.calls == 2
    outcome.record("the current token; processes that start later share another one", calls=provider.calls)


@REDIS
@pytest.mark.parametrize("jump", [HOUR, -HOUR], ids=["back", "forward"])
@pytest.mark.fault(20)
def test_a_lease_that_jumps_costs_one_more_fetch_at_most(
    store: Store, outcome: Outcome, redis_server: RedisServer, jump: float
) -> None:
    """INV-2, INV-3: the holder frees a lease that lasts too long; after a lost lease, the newer token is kept."""
    outcome.case = "back by an hour, in the fetch" if jump > 0 else "forward by an hour, in the fetch"
    first, second = providers = FakeProvider(), FakeProvider()
    sources = [TokenCache(store.open(), policy=STUBBORN).source(provider, key="k") for provider in providers]
    got: list[Token] = []
    threads = [threading.Thread(target=lambda source=source: got.append(source.token())) for source in sources]
    for provider, value in zip(providers, ("first", "second"), strict=True):
        provider.value = value
        provider.gate.clear()
    threads[0].start()
    assert first.started.wait(PATIENCE)
    left = cast("int", redis_server.command("PTTL", "k:lock"))
    redis_server.command("PEXPIRE", "k:lock", str(left + int(jump * 1000)))
    threads[1].start()
    if jump < 0:
        assert second.started.wait(PATIENCE)
        second.gate.set()
        threads[1].join(PATIENCE)
    first.gate.set()
    for thread in threads:
        thread.join(PATIENCE)
    newest = "first" if jump > 0 else "second"
    assert [token.value for token in got] == [newest] * 2
    assert redis_server.command("EXISTS", "k:lock") == 0
    assert TokenCache(store.open()).source(first, key="k").token().value == newest
    assert (first.calls, second.calls) == (1, 0 if jump > 0 else 1)
    outcome.record("the token" if jump > 0 else "the token; the newer one is kept", calls=first.calls + second.calls)
