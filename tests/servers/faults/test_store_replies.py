"""Rows 4 and 8: replies that are lost, cut, late, slow, or never come because the connection is half-open."""

from __future__ import annotations

import time
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from tokencache import BackendUnavailable, RefreshPolicy
from tokencache.events import TokenUnchanged
from tokencache.ports import Found, Granted, Held
from tokencache.testing.fakes import FakeClock, FakeProvider
from tokencache.testing.servers import Proxy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import Outcome, Remote
    from tokencache._engine.context import World

pytestmark = [pytest.mark.live, pytest.mark.usefixtures("tidy")]

PATIENCE = 30.0
REMOTES = pytest.mark.parametrize("remote", ["redis", "redis, event loop", "memcached"], indirect=True)
QUICK = RefreshPolicy(probe=0.2)
FORGETFUL = RefreshPolicy(probe=1e-9)
"""With it the store is asked again by the next caller, whatever it did to the last."""


@pytest.fixture
def lender(remote: Remote) -> Iterator[FakeProvider]:
    """A second provider, whose token is stored; a caller of the first provider must never get it."""
    provider = FakeProvider("other", secret="other")
    assert remote.ask(remote.process(provider=provider)).value == "other-token-1"
    yield provider
    assert provider.calls == 1


@pytest.mark.fault(4, case="lease")
@REMOTES
def test_a_lease_with_a_lost_grant_ends_by_itself(remote: Remote, outcome: Outcome) -> None:
    """INV-2, INV-5: the lease is taken, its reply lost. The caller fetches; another process does at the lease's end."""
    provider = remote.provider
    remote.ask(remote.process(provider=FakeProvider("warm")))  # the server knows the scripts
    mine, theirs = remote.process(policy=QUICK), [remote.process(policy=QUICK) for _ in range(3)]
    lost = remote.proxy.drop_next_reply(b"EVALSHA" if remote.kind == "redis" else b"add ")
    first = remote.ask(mine)
    assert lost.wait(PATIENCE)
    with closing(remote.store) as store:
        slot = store.open().inspect(mine.key)
    assert (slot.stored, bool(slot.owner)) == (None, True)
    with outcome.healing():
        second = remote.ask(*theirs)
    assert second != first
    fence = remote.fence()
    remote.until(lambda: remote.ask(mine) == second)
    assert remote.fence() >= fence > 0
    assert (provider.calls, provider.together) == (2, 1)
    outcome.record("the token, fetched without the lease; the others another one when that lease has ended", calls=2)


@pytest.mark.fault(4, case="commit")
@REMOTES
def test_a_commit_with_a_lost_reply_is_shared(remote: Remote, outcome: Outcome) -> None:
    """INV-2, INV-3: the record is stored, its reply lost: the others read it at once; no second store or fetch."""
    remote.ask(remote.process(provider=FakeProvider("warm")))  # the server knows the scripts
    mine = remote.process(policy=QUICK)
    lost = remote.proxy.drop_next_reply(b"fake-token-1")
    token = remote.ask(mine)
    assert lost.wait(PATIENCE)
    fence = remote.fence()
    assert fence > 0
    with outcome.healing():
        assert remote.ask(*[remote.process() for _ in range(3)]) == token
    with closing(remote.store) as store:
        assert store.open().inspect(mine.key).owner is None
    remote.until(lambda: remote.ask(mine) == token and mine._copy.fence == fence)
    assert remote.fence() == fence
    assert not remote.seen.of(TokenUnchanged)
    assert remote.provider.calls == 1
    outcome.record("the token", calls=1)


@pytest.mark.fault(4, case="asked again")
@REMOTES
def test_a_repeated_lease_request_is_granted_again(remote: Remote, outcome: Outcome) -> None:
    """INV-2: the owner of a lease whose grant was lost gets it at the next try, and may repeat a commit."""
    remote.ask(remote.process(provider=FakeProvider("warm")))  # the server knows the scripts
    world = remote.process()._world

    def call(method: str, *arguments: object) -> object:
        if remote.callers.looped:
            return remote.callers.do(on_loop(world, method, *arguments)).result(PATIENCE)
        return getattr(world.backend, method)(*arguments)

    def twice(method: str, *arguments: object) -> object:
        lost = remote.proxy.drop_next_reply(b"EVALSHA" if remote.kind == "redis" else b"add ")
        with pytest.raises(BackendUnavailable):
            call(method, *arguments)
        assert lost.wait(PATIENCE)
        return call(method, *arguments)

    granted = twice("lease", "k", "me", "me", None, 30.0)
    assert isinstance(granted, Granted)
    assert isinstance(call("lease", "k", "you", "you", None, 30.0), Held)
    assert twice("commit", granted.lease, b'{"fence": %d}' % granted.lease.fence, 30.0) is True
    assert isinstance(call("lease", "k", "you", "you", None, 30.0), Found)
    outcome.record("the lease that it has; the record, stored", calls=0)


async def on_loop(world: World, method: str, *arguments: object) -> object:
    """Call the backend's async half on this event loop."""
    return await getattr(world.async_backend(), method)(*arguments)


@pytest.mark.fault(8)
@pytest.mark.parametrize("length", [1, 7, 150])
@REMOTES
def test_a_reply_cut_in_the_middle(remote: Remote, lender: FakeProvider, length: int, outcome: Outcome) -> None:
    """INV-5, INV-10: half a reply is discarded: the token is fetched, and the next command gets its own answer."""
    outcome.case = f"cut after {length} bytes of a reply"
    first, fence = remote.ask(remote.process()), remote.fence()
    mine = remote.process(policy=FORGETFUL)
    other = remote.caches[-1].source(lender)
    cut = remote.proxy.cut_next_reply(length, b"fake:")
    token = remote.ask(mine)
    assert cut.wait(PATIENCE)
    assert token != first
    assert remote.ask(other).value == "other-token-1"
    with outcome.healing():
        remote.until(lambda: remote.ask(mine) == token and remote.fence() > fence)
        assert remote.ask(remote.process()) == token
    assert (remote.provider.calls, remote.provider.together) == (2, 1)
    outcome.record("a new token", calls=1)


@pytest.mark.fault(8, case="after its time-out")
@REMOTES
def test_a_late_reply_answers_no_later_command(remote: Remote, lender: FakeProvider, outcome: Outcome) -> None:
    """INV-10: a reply that comes after its time-out is not taken for the answer to the next command.

    It is still under way when the next command is sent.
    """
    remote.ask(remote.process())
    mine = remote.process("timeout=500ms", policy=FORGETFUL)
    warm, other = (remote.caches[-1].source(provider) for provider in (FakeProvider("warm"), lender))
    remote.ask(warm)  # opens the connection
    remote.proxy.delay(2.0)
    token = remote.ask(mine)
    remote.proxy.heal()
    with outcome.healing():
        assert remote.ask(other).value == "other-token-1"
        remote.until(lambda: remote.ask(mine) == token)
    assert remote.provider.calls == 2
    outcome.record("a new token, after one time-out", calls=1)


@pytest.mark.fault(8, case="half-open")
@REMOTES
def test_a_half_open_connection_costs_one_time_out(remote: Remote, outcome: Outcome) -> None:
    """INV-2, INV-5: a connection whose other end vanished silently costs one time-out; the next one is new."""
    remote.ask(remote.process())
    fence, clock = remote.fence(), FakeClock(wall=time.time())  # the test decides when the store is asked again
    with Proxy(remote.server.port) as gateway:
        remote.proxy.target_port = gateway.port
        mine = remote.process("timeout=200ms", clock=clock)
        remote.ask(remote.caches[-1].source(FakeProvider("warm")))
        gateway.black_hole()
        remote.proxy.target_port = remote.server.port
        accepted = remote.proxy.accepted
        token = remote.ask(*[mine] * 10)
        assert remote.proxy.accepted == accepted
        with outcome.healing():
            remote.until_later(clock, lambda: remote.ask(mine) == token and remote.fence() > fence)
            assert remote.ask(remote.process()) == token
    assert (remote.provider.calls, remote.provider.together) == (2, 1)
    outcome.record("a new token, after one time-out", calls=1)


@pytest.mark.fault(8, case="one byte at a time")
@REMOTES
def test_a_reply_that_comes_byte_by_byte(remote: Remote, lender: FakeProvider, outcome: Outcome) -> None:
    """INV-2: however small its pieces, a reply is read whole."""
    remote.proxy.trickle(0.0)
    fleet = [remote.process() for _ in range(2)]
    other = remote.caches[-1].source(lender)
    token = remote.ask(*fleet * 4)
    assert (token.value, remote.ask(other).value) == ("fake-token-1", "other-token-1")
    assert remote.provider.calls == 1
    outcome.record("the token", calls=1)
