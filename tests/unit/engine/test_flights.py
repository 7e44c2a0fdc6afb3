"""Flights: which callers wait for one, for how long, and what wakes them, on threads and on event loops."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any, cast

import pytest

from tokencache._engine.flights import Flight, Flights
from tokencache.errors import ProviderUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokencache._engine.flow import Outcome

LANDED = cast("Outcome", object())
PATIENCE = 30.0


async def waiting(flight: Flight, count: int) -> list[asyncio.Task[Any]]:
    """Return ``count`` tasks of this loop, all of which wait for the flight."""
    tasks = [asyncio.create_task(flight.ajoin(PATIENCE)) for _ in range(count)]
    await asyncio.sleep(0)
    assert not any(task.done() for task in tasks)
    return tasks


def test_one_call_wakes_all_waiters_of_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand waiters cost one call into their loop, not a thousand."""

    async def many() -> None:
        loop = asyncio.get_running_loop()
        flight = Flight(PATIENCE)
        flight.loop = loop
        tasks = await waiting(flight, 1_000)
        calls: list[object] = []
        into = loop.call_soon_threadsafe

        def counted(*arguments: Any) -> asyncio.Handle:  # noqa: ANN401  (the loop's own)
            calls.append(arguments)
            return into(*arguments)

        monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
        flight.land(LANDED)
        assert [outcome is LANDED for outcome in await asyncio.gather(*tasks)] == [True] * 1_000
        assert len(calls) == 1

    asyncio.run(many())


def test_the_waiters_of_every_loop_are_woken(caplog: pytest.LogCaptureFixture) -> None:
    """Two loops and a thread wait for one flight; a third loop is already closed, and does not block them."""
    flight = Flight(PATIENCE)
    flight.started = True
    gone = asyncio.new_event_loop()
    lost = gone.create_task(flight.ajoin(PATIENCE))
    gone.run_until_complete(asyncio.sleep(0))
    gone.run_until_complete(_cancelled(lost))
    gone.close()
    outcomes: list[object] = []
    there = threading.Barrier(4)

    async def on_a_loop() -> None:
        tasks = await waiting(flight, 3)
        there.wait(PATIENCE)
        outcomes.extend(await asyncio.gather(*tasks))

    def on_a_thread() -> None:
        there.wait(PATIENCE)
        outcomes.append(flight.join(PATIENCE))

    targets: list[Callable[[], None]] = [
        on_a_thread,
        lambda: asyncio.run(on_a_loop()),
        lambda: asyncio.run(on_a_loop()),
    ]
    threads = [threading.Thread(target=target) for target in targets]
    for thread in threads:
        thread.start()
    there.wait(PATIENCE)
    flight.land(LANDED)
    for thread in threads:
        thread.join()
    assert outcomes == [LANDED] * 7
    assert not caplog.records


async def _cancelled(task: asyncio.Task[Any]) -> None:
    """Cancel a task and see it end."""
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_cancelling_a_waiter_leaves_the_other_waiters() -> None:
    """INV-8: a cancelled waiter does not end the flight; the others get its outcome."""

    async def three() -> None:
        flight = Flight(PATIENCE)
        flight.loop = asyncio.get_running_loop()
        wrong: list[object] = []
        flight.loop.set_exception_handler(lambda _, context: wrong.append(context))
        first, second, third = await waiting(flight, 3)
        await _cancelled(second)
        assert not flight.over
        flight.land(LANDED)
        assert await first is LANDED
        assert await third is LANDED
        assert not wrong

    asyncio.run(three())


def test_each_waiter_of_a_loop_leaves_at_its_own_deadline() -> None:
    """INV-8: one timer serves all waiters of a loop, whatever the order of their deadlines."""

    async def leave() -> None:
        flight = Flight(PATIENCE)
        flight.loop = asyncio.get_running_loop()
        left: list[float] = []

        async def wait(timeout: float) -> object:  # noqa: ASYNC109  (the flight's waiter has one)
            outcome = await flight.ajoin(timeout)
            left.append(timeout)
            return outcome

        tasks = {timeout: asyncio.create_task(wait(timeout)) for timeout in (PATIENCE, 0.2, 0.001, 0.1)}
        await asyncio.wait([tasks[0.001], tasks[0.1]])
        late = asyncio.create_task(wait(0.002))
        await asyncio.wait([late, tasks[0.2]])
        assert sorted(left) == [0.001, 0.002, 0.1, 0.2]
        assert left.index(0.001) < left.index(0.1) < left.index(0.2)
        assert not tasks[PATIENCE].done()
        flight.land(LANDED)
        assert await tasks[PATIENCE] is LANDED

    asyncio.run(leave())


def test_waiters_with_one_deadline_share_one_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand waiters with one deadline cost one timer, which ends with the flight."""

    async def many() -> None:
        loop = asyncio.get_running_loop()
        flight = Flight(PATIENCE)
        flight.loop = loop
        timers: list[asyncio.TimerHandle] = []
        call_at = loop.call_at

        def counted(*arguments: Any) -> asyncio.TimerHandle:  # noqa: ANN401  (the loop's own)
            timers.append(call_at(*arguments))
            return timers[-1]

        monkeypatch.setattr(loop, "call_at", counted)
        tasks = await waiting(flight, 1_000)
        flight.land(LANDED)
        await asyncio.gather(*tasks)
        assert [timer.cancelled() for timer in timers] == [True]

    asyncio.run(many())


@pytest.mark.parametrize("end", ["abandon", "fail", "time"])
def test_a_wait_may_end_without_an_outcome(end: str) -> None:
    """An abandoned flight or a time-out gives None; a failed flight raises a separate error for each waiter."""

    async def wait() -> None:
        flight = Flight(PATIENCE)
        flight.loop = asyncio.get_running_loop()
        if end == "time":
            assert await flight.ajoin(0.0) is None
            return
        tasks = await waiting(flight, 2)
        if end == "abandon":
            flight.abandon()
            assert await asyncio.gather(*tasks) == [None, None]
            assert await flight.ajoin(PATIENCE) is None
            return
        flight.fail(ProviderUnavailable("down"))
        first, second = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(first, ProviderUnavailable)
        assert isinstance(second, ProviderUnavailable)
        assert first is not second

    asyncio.run(wait())


def test_a_waiter_looks_again_soon_unless_the_flight_surely_runs() -> None:
    """INV-8: a flight surely runs on the waiter's own loop or on a started thread; otherwise it may lack a runner."""

    async def look() -> None:
        mine = asyncio.get_running_loop()
        flight = Flight(PATIENCE)
        assert flight.patience(PATIENCE, mine) < PATIENCE  # a thread that has not started
        flight.started = True
        assert flight.patience(PATIENCE, mine) == PATIENCE
        flight.loop = mine
        assert flight.patience(PATIENCE, mine) == PATIENCE
        flight.started = False
        assert flight.patience(PATIENCE, mine) == PATIENCE
        assert flight.patience(PATIENCE) < PATIENCE  # a thread that waits for a task
        other = asyncio.new_event_loop()
        assert flight.patience(PATIENCE, other) < PATIENCE
        other.close()

    asyncio.run(look())


def test_an_abandoned_flight_makes_room_after_its_time() -> None:
    """INV-8: past its time a flight gives way to another, and its waiters are sent back to look again."""
    flights = Flights()
    lost, leads = flights.lead_or_join(0.0, 10.0)
    assert leads
    assert flights.lead_or_join(9.9, 20.0) == (lost, False)
    fresh, leads = flights.lead_or_join(10.0, 20.0)
    assert leads
    assert fresh is not lost
    assert lost.join(PATIENCE) is None
    flights.leave(lost)
    assert flights.flying
    lost.abandon()
    lost.fail(ValueError())
    assert lost.join(0) is None


def test_cancelling_a_waiter_does_not_cancel_the_flight() -> None:
    """INV-8: if a waiter on a loop is cancelled, the flight goes on for the others."""

    async def main() -> None:
        flight, _ = Flights().lead_or_join(0.0, 10.0)
        waiter = asyncio.create_task(flight.ajoin(PATIENCE))
        await asyncio.sleep(0)
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
        assert not flight.over
        assert await flight.ajoin(0) is None
        flight.abandon()
        assert await flight.ajoin(PATIENCE) is None

    asyncio.run(main())
