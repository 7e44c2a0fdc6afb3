"""Rows 9 and 10: a store that loses data: everything, or one key."""

from __future__ import annotations

import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from tokencache import BackendUnavailable, TokenCache
from tokencache.backends.memcached import _backend
from tokencache.backends.memory import MemoryBackend
from tokencache.events import CommitRefused
from tokencache.ports import Granted
from tokencache.testing.fakes import FakeClock, FakeProvider, Recorder
from tokencache.testing.servers import MemcachedServer, RedisServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Outcome, Remote

pytestmark = [pytest.mark.live, pytest.mark.usefixtures("tidy")]

PATIENCE = 30.0
FILL = "for number = 1, 1000 do redis.call('SET', ARGV[1] .. ':' .. number, ARGV[2]) end"


def restart(remote: Remote, name: str) -> None:
    """Restart the server empty; a process that waits for a memcached lease notices the gap."""
    accepted = remote.proxy.accepted
    remote.server.kill()
    remote.proxy.cut()  # by itself it may notice the end a little later
    if remote.kind == "memcached" and name.endswith(":lock"):
        remote.until(lambda: remote.proxy.accepted > accepted)
    remote.server.restart()


def flush(remote: Remote, _name: str) -> None:
    """Delete everything."""
    remote.server.command("FLUSHALL" if remote.kind == "redis" else "flush_all")


def evict(remote: Remote, name: str) -> None:
    """Fill the server until it has no room for this key."""
    server = remote.server
    for batch in range(200):
        if isinstance(server, RedisServer):
            server.command("EVAL", FILL, "0", f"filler:{batch}", "x" * 1000)
            if server.command("EXISTS", name) == 0:
                server.command("CONFIG", "SET", "maxmemory", "0")
                return
            continue
        size = sum(map(len, server.command(f"get {name}")[1:-1]))
        if not size:
            return
        items = (
            b"set %0*d 0 0 %d noreply\r\n%0*d\r\n" % (len(name), batch * 1000 + n, size, size, 0) for n in range(1000)
        )
        with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as filler:
            filler.sendall(b"".join(items) + b"version\r\n")
            assert filler.recv(100)
    pytest.fail("nothing was evicted")


def losses() -> Iterator[object]:
    """Yield each store with each way to lose data."""
    for lose, row in ((restart, 9), (flush, 9), (evict, 10)):
        mark = pytest.mark.fault(row, case={restart: "restart", flush: "flush", evict: "{}"}[lose])
        for store in ("redis", "redis, event loop", "memcached"):
            yield pytest.param(store, lose, marks=mark, id=f"{store}, {lose.__name__}")


@pytest.mark.parametrize(("remote", "lose"), list(losses()), indirect=["remote"])
def test_a_lost_record_costs_one_fetch(remote: Remote, lose: Callable[[Remote, str], None], outcome: Outcome) -> None:
    """INV-2, INV-3, INV-4: a process with the token keeps it until its renewal; all others share one new token."""
    outcome.case = outcome.case.format("record")
    clock = FakeClock(wall=time.time())
    warm, fleet = remote.process(clock=clock), [remote.process() for _ in range(2)]
    first, fence = remote.ask(warm), remote.fence()
    lose(remote, warm.key)
    assert remote.fence() == 0
    assert remote.ask(warm) == first
    with outcome.healing():
        second = remote.ask(*fleet * 4)
    assert second != first
    assert remote.fence() > fence
    clock.at += 3000  # its renewal is due, and the records of the others have not aged
    remote.until(lambda: remote.ask(warm) == second)
    assert (remote.provider.calls, remote.provider.together) == (2, 1)
    outcome.record("the token that they have; without one a new one", calls=1)


@pytest.mark.parametrize(("remote", "lose"), list(losses()), indirect=["remote"])
def test_a_lost_lease_costs_one_fetch(
    remote: Remote, lose: Callable[[Remote, str], None], outcome: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    """INV-2, INV-3: a second process fetches. The late holder's token is not stored; its callers get the newer one.

    A process that waits in Redis during the restart may find no server; another row covers that.
    """
    outcome.case = outcome.case.format("lease") if "{" in outcome.case else f"{outcome.case} in mid-fetch"
    monkeypatch.setattr(_backend, "_GONE", PATIENCE)  # a slow restart does not count as an outage
    late = FakeProvider(secret=remote.provider._secret)
    late.value = "late-token-1"
    late.gate.clear()
    holder, fleet = remote.process(provider=late), [remote.process() for _ in range(2)]
    calls = [remote.callers.start(holder) for _ in range(4)]
    assert late.started.wait(PATIENCE)
    waiting = [] if (remote.kind, lose) == ("redis", restart) else [remote.callers.start(fleet[0]) for _ in range(4)]
    if waiting:
        remote.until(remote.is_waited_for)
    lose(remote, f"{holder.key}:lock")
    with outcome.healing():
        newer = remote.ask(*fleet * 4)
        assert {newer, *(call.result(PATIENCE) for call in waiting)} == {newer}
    fence = remote.fence()
    late.gate.set()
    assert {call.result(PATIENCE) for call in calls} == {newer}
    assert remote.ask(holder, remote.process()) == newer
    assert (newer.value, remote.fence()) == ("fake-token-1", fence)
    assert len(remote.seen.of(CommitRefused)) == 1
    assert (late.calls, remote.provider.calls) == (1, 1)
    outcome.record("the newer of two tokens", calls=2)


@pytest.mark.fault(9, backend="memcached", case="cas counter starting anew")
def test_an_old_cas_does_not_reach_a_new_server(outcome: Outcome) -> None:
    """INV-3: an old cas may match a new item, so a call that holds one ends with its connection."""
    with MemcachedServer() as server, TokenCache(server.url) as cache:
        provider = FakeProvider()
        source = cache.source(provider)
        source.token()
        place = source._world.backend._servers.of(source.key)
        name = source.key

        def meet() -> None:
            with place.session() as session:
                before = session.read(name)[name]
                server.restart()
                with place.session() as fresh:
                    assert fresh.add(name, b"newer", 60)
                    while (after := fresh.read(name)[name]).cas != before.cas:
                        assert fresh.replace(name, b"newer", after, 60)
                session.replace(name, b"older", before, 60)

        with pytest.raises(BackendUnavailable):
            meet()
        assert source._world.backend.load(name).data == b"newer"
        assert provider.calls == 1
    outcome.record("the token that they have; the newer record stays", calls=0)


@pytest.mark.fault(10, backend="memory", case="record")
def test_a_record_evicted_by_another_costs_one_fetch(outcome: Outcome) -> None:
    """INV-2: two keys have room for one record; each key asked again costs one more call."""
    backend, one, two = MemoryBackend(1), FakeProvider("one"), FakeProvider("two")
    warm = TokenCache(backend).source(one)
    first = warm.token()
    assert TokenCache(backend).source(two).token().value == "two-token-1"
    assert warm.token() == first
    assert [TokenCache(backend).source(one).token().value for _ in range(2)] == ["one-token-2"] * 2
    assert (one.calls, two.calls) == (2, 1)
    outcome.record("the token that they have; without one a new one", calls=1)


@pytest.mark.fault(10, backend="memory", case="lease")
def test_an_evicted_lease_costs_one_fetch(outcome: Outcome) -> None:
    """INV-2, INV-3: a second holder fetches, and the first one's late token is not stored."""
    backend, late, provider, seen = MemoryBackend(1), FakeProvider(), FakeProvider(), Recorder()
    late.value = "late-token-1"
    late.gate.clear()
    holder = TokenCache(backend, observers=[seen]).source(late)
    with ThreadPoolExecutor() as pool:
        call = pool.submit(holder.token)
        assert late.started.wait(PATIENCE)
        assert isinstance(backend.lease("other", "me", "me", None, PATIENCE), Granted)
        newer = TokenCache(backend).source(provider).token()
        late.gate.set()
        assert call.result(PATIENCE) == holder.token() == newer
    assert newer.value == "fake-token-1"
    assert (late.calls, provider.calls, len(seen.of(CommitRefused))) == (1, 1, 1)
    outcome.record("the newer of two tokens", calls=2)
