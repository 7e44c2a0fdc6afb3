"""Flights: single flight per source and process; other callers join the open one, threads and loops alike."""

from __future__ import annotations

import math
import threading
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from tokencache.errors import TokenCacheError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from tokencache._engine.flow import Outcome

_LOOK: Final = 0.25
"""How often, in seconds, a waiter looks whether a flight has anybody who runs it."""


class LoopWaiters:
    """Those who wait for a flight on one event loop: one call wakes them all, one timer minds all their ends."""

    __slots__ = ("_loop", "_timer", "_waiters")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None
        self._waiters: list[tuple[float, asyncio.Future[None]]] = []

    def wait(self, timeout: float) -> asyncio.Future[None]:
        """Return what is done when the flight is over or the time is up."""
        waiter: asyncio.Future[None] = self._loop.create_future()
        end = self._loop.time() + timeout
        self._waiters.append((end, waiter))
        if self._timer is None or end < self._timer.when():
            self._call_at(end)
        return waiter

    def wake(self, until: float = math.inf) -> None:
        """Wake those whose time is up, and mind the others."""
        for end, waiter in self._waiters:
            if end <= until and not waiter.done():
                waiter.set_result(None)
        self._waiters = [(end, waiter) for end, waiter in self._waiters if not waiter.done()]
        self._call_at(min((end for end, _ in self._waiters), default=None))

    def _call_at(self, end: float | None) -> None:
        """Set the timer."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if end is None else self._loop.call_at(end, self.wake, end)


class Flight:
    """One run of the flow. It lands with an outcome or an error, or is abandoned when its runner died (INV-8)."""

    __slots__ = ("_crowds", "_future", "_outcome", "loop", "lost_at", "started")

    def __init__(self, lost_at: float) -> None:
        self.lost_at = lost_at
        self.started = False
        self.loop: asyncio.AbstractEventLoop | None = None
        self._crowds: dict[asyncio.AbstractEventLoop, LoopWaiters] = {}
        self._outcome: Outcome | None = None
        self._future: Future[Outcome | None] = Future()
        self._future.set_running_or_notify_cancel()  # so that a cancelled waiter cannot cancel it for the others

    def join(self, timeout: float) -> Outcome | None:
        """Wait on this thread; ``None`` when it was abandoned, stalled, or ``timeout`` passed."""
        try:
            return self._future.result(self.patience(timeout))
        except FutureTimeout:
            return None
        except TokenCacheError as error:
            raise error.replica() from error.__cause__

    async def ajoin(self, timeout: float) -> Outcome | None:  # noqa: ASYNC109  (the waiter's own, not the flight's)
        """Wait on this event loop; ``None`` when it was abandoned, stalled, or ``timeout`` passed."""
        import asyncio

        loop = asyncio.get_running_loop()
        if not self.over:
            crowd = self._crowds.get(loop) or self._crowd_on(loop)
            await crowd.wait(self.patience(timeout, loop))
        outcome = self._outcome
        return self.join(0.0) if outcome is None else outcome

    def _crowd_on(self, loop: asyncio.AbstractEventLoop) -> LoopWaiters:
        """Return the crowd of ``loop``, which is woken when the flight is over."""
        crowd = self._crowds[loop] = LoopWaiters(loop)

        def tell(_: object) -> None:
            with suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(crowd.wake)

        self._future.add_done_callback(tell)
        return crowd

    def patience(self, timeout: float, mine: asyncio.AbstractEventLoop | None = None) -> float:
        """Return how long to wait at once: to the end only for a flight of ``mine``, or that runs on a thread."""
        trusted = self.started if self.loop is None else self.loop is mine
        return timeout if trusted else min(timeout, _LOOK)

    def when_over(self, call: Callable[[], None]) -> None:
        """Call back, once, when it has landed or was abandoned."""
        self._future.add_done_callback(lambda _: call())

    @property
    def stalled(self) -> bool:
        """Whether it is a task of an event loop that does not run: nobody knows when it will, if ever."""
        return self.loop is not None and not self.loop.is_running()

    def land(self, outcome: Outcome) -> None:
        """Give everybody the outcome."""
        if not self._future.done():
            self._outcome = outcome
            self._future.set_result(outcome)

    def fail(self, error: Exception) -> None:
        """Give everybody the error."""
        if not self._future.done():
            self._future.set_exception(error)

    def abandon(self) -> None:
        """Send everybody back to look again, and to lead in turn."""
        if not self._future.done():
            self._future.set_result(None)

    @property
    def over(self) -> bool:
        """Whether it has landed or was abandoned."""
        return self._future.done()


class Flights:
    """The flight of one source, if there is one."""

    __slots__ = ("_lock", "_open")

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards _open
        self._open: Flight | None = None

    def lead_or_join(self, now: float, lost_at: float) -> tuple[Flight, bool]:
        """Return the open flight, or a new one and ``True``: then the caller must see that it lands.

        A flight that is still open at its ``lost_at``, or whose event loop has stopped, is given up.
        """
        with self._lock:
            lost = self._open
            if lost is not None and now < lost.lost_at and not lost.stalled:
                return lost, False
            self._open = Flight(lost_at)
            if lost is not None:
                lost.abandon()
            return self._open, True

    def leave(self, flight: Flight) -> None:
        """Close a flight before it lands, so that the next caller leads a new one."""
        with self._lock:
            if self._open is flight:
                self._open = None

    @property
    def flying(self) -> bool:
        """Whether a flight is open."""
        return self._open is not None
