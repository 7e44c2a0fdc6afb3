"""Rows 5, 6 and 7: a store that is gone, is frozen, or is slow."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tokencache import BackendUnavailable, DeadlineExceeded
from tokencache.events import BackendFailed
from tokencache.testing.fakes import FakeClock, FakeProvider

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Outcome, Remote

pytestmark = [pytest.mark.live, pytest.mark.usefixtures("tidy")]

STORES = ["redis", "redis, event loop", "memcached"]
REMOTES = pytest.mark.parametrize("remote", STORES, indirect=True)
IN_VAIN = 30.0
"""How long, in seconds, a call of these tests may wait in vain: much longer than they allow their callers."""


def refuse(remote: Remote) -> None:
    """End the server and lose its data."""
    remote.proxy.refuse()
    remote.server.kill()


def come_back(remote: Remote) -> None:
    """Start the server again, empty."""
    remote.server.restart()
    remote.proxy.heal()


def freeze(remote: Remote) -> None:
    """Stop the server's process."""
    remote.server.pause()


def thaw(remote: Remote) -> None:
    """Resume the server's process."""
    remote.server.resume()


def swallow(remote: Remote) -> None:
    """Drop all traffic, on existing connections and on new ones."""
    remote.proxy.black_hole()


def pass_on(remote: Remote) -> None:
    """Drop nothing from now on."""
    remote.proxy.heal()


@pytest.mark.parametrize(
    ("harm", "heal", "timeout"),
    [
        pytest.param(refuse, come_back, "30s", marks=pytest.mark.fault(5), id="killed"),
        pytest.param(freeze, thaw, "100ms", marks=pytest.mark.fault(6, case="stopped"), id="stopped"),
        pytest.param(swallow, pass_on, "100ms", marks=pytest.mark.fault(6, case="black hole"), id="black hole"),
    ],
)
@REMOTES
def test_a_store_that_does_not_answer(
    remote: Remote,
    harm: Callable[[Remote], None],
    heal: Callable[[Remote], None],
    timeout: str,
    outcome: Outcome,
) -> None:
    """INV-4, INV-5: the local copy is served; a process without one fetches once; the newest is shared afterwards.

    A store that refuses costs no time-out; a silent one costs one. Then the breaker answers for a while.
    """
    provider = remote.provider
    warm = remote.process()
    first = remote.ask(warm)
    clock = FakeClock(wall=time.time())  # the breaker allows no new attempt until the test advances the clock
    cold = remote.process(f"timeout={timeout}&connect_timeout={timeout}", clock=clock)
    fence = remote.fence()
    harm(remote)
    accepted = remote.proxy.accepted
    for _ in range(20):
        assert remote.ask(warm) == first
    assert remote.proxy.accepted == accepted
    second = remote.ask(*[cold] * 20, timeout=IN_VAIN / 3)
    assert second != first
    for number in range(20):
        assert remote.ask(cold) == second
        assert remote.ask(remote.caches[-1].source(FakeProvider(f"other-{number}"))).value == f"other-{number}-token-1"
    assert remote.proxy.accepted - accepted <= 2  # reads and writes have a breaker each
    assert len(remote.seen.of(BackendFailed)) <= 2
    with pytest.raises(BackendUnavailable):  # this differs from "the lease is held"
        cold._world.backend.lease(cold.key, "me", "me", None, 3.0)
    assert provider.calls == 2
    with outcome.healing():
        heal(remote)
        remote.until_later(clock, lambda: remote.ask(cold) == second and remote.fence() > fence)
        assert remote.ask(remote.process()) == second
    assert remote.ask(warm) == first
    assert (provider.calls, provider.together) == (2, 1)
    saw = "the token that they have; without one a new one" + ("" if harm is refuse else ", after one time-out")
    outcome.record(saw, calls="1, and 1 a process without a token")


@pytest.mark.fault(5, case="in mid-fetch")
@REMOTES
def test_a_store_lost_in_mid_fetch_costs_one_fetch_per_process(remote: Remote, outcome: Outcome) -> None:
    """INV-4, INV-5, INV-8: the holder serves its token; each waiting process fetches: one flight a process."""
    provider = remote.provider
    holder, waiter = remote.process(), remote.process()
    provider.gate.clear()
    calls = [remote.callers.start(holder) for _ in range(10)]
    assert provider.started.wait(IN_VAIN)
    calls += [remote.callers.start(waiter) for _ in range(10)]
    remote.until(remote.is_waited_for)
    refuse(remote)
    remote.until(lambda: provider.calls == 2)
    provider.gate.set()
    tokens = [call.result(IN_VAIN) for call in calls]
    assert set(tokens[:10]) == {remote.ask(holder)}
    assert set(tokens[10:]) == {remote.ask(waiter)}
    with outcome.healing():
        come_back(remote)
        remote.until(lambda: {remote.ask(holder), remote.ask(waiter)} <= set(tokens) and remote.fence() > 0)
        assert remote.ask(remote.process()) in tokens
    assert provider.calls == 2
    outcome.record("the token", calls="1 a process")


def slow() -> Iterator[object]:
    """Yield the stores that are a little slow, and the stores that are very slow."""
    for store in STORES:
        yield pytest.param(store, 0.05, 4, marks=pytest.mark.fault(7, case="by 50 ms"), id=f"{store}, 50 ms")
    for store in STORES[::2]:
        yield pytest.param(store, 0.5, 2, marks=pytest.mark.fault(7, case="by 500 ms"), id=f"{store}, 500 ms")


@pytest.mark.parametrize(("remote", "delay", "processes"), list(slow()), indirect=["remote"])
def test_a_slow_store_still_shares_one_fetch(remote: Remote, delay: float, processes: int, outcome: Outcome) -> None:
    """INV-2, INV-8: one call for all, at any round-trip time; a caller with a short deadline gets its error in time."""
    remote.proxy.delay(delay)
    fleet = [remote.process() for _ in range(processes)]
    hurried = remote.callers.start(fleet[0], timeout=delay / 2)
    token = remote.ask(*fleet * 4)
    with pytest.raises(DeadlineExceeded):
        hurried.result(IN_VAIN)
    assert (remote.provider.calls, token.value) == (1, "fake-token-1")
    outcome.record("the token, some round trips later; DeadlineExceeded where the caller gives less time", calls=1)
