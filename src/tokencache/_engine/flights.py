"""Flights: single flight per source and process. Callers on threads and event loops join the open flight."""

from __future__ import annotations

import math
import threading
from collections import deque
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

from tokencache.errors import TokenCacheError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Generator

    from tokencache._engine.flow import Outcome

_LOOK: Final = 0.25
"""The interval, in seconds, at which a waiter checks whether a flight still has a runner."""


class LoopWaiters:
    """The waiters of a flight on one event loop. One call wakes them all, and one timer serves all their timeouts."""

    __slots__ = ("_loop", "_timer", "_waiters")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None
        self._waiters: list[tuple[float, asyncio.Future[None]]] = []

    def wait(self, timeout: float) -> asyncio.Future[None]:
        """Return a future that is done when the flight is over or ``timeout`` has passed."""
        waiter: asyncio.Future[None] = self._loop.create_future()
        end = self._loop.time() + timeout
        self._waiters.append((end, waiter))
        if self._timer is None or end < self._timer.when():
            self._call_at(end)
        return waiter

    def wake(self, until: float = math.inf) -> None:
        """Wake the waiters whose timeouts end by ``until``, and set the timer for the others."""
        for end, waiter in self._waiters:
            if end <= until and not waiter.done():
                waiter.set_result(None)
        self._waiters = [(end, waiter) for end, waiter in self._waiters if not waiter.done()]
        self._call_at(min((end for end, _ in self._waiters), default=None))

    def _call_at(self, end: float | None) -> None:
        """Set the timer to ``end``; ``None`` stops it."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if end is None else self._loop.call_at(end, self.wake, end)


class Flight:
    """One run of the flow. It lands with an outcome or an error, or is abandoned when its runner died (INV-8)."""

    __slots__ = ("_future", "_later", "_outcome", "_outer", "_settled", "_waiters", "loop", "lost_at", "started")

    def __init__(self, lost_at: float) -> None:
        self.lost_at = lost_at
        self.started = False
        self.loop: asyncio.AbstractEventLoop | None = None
        self._waiters: dict[asyncio.AbstractEventLoop, LoopWaiters] = {}
        self._later: deque[Callable[[], None]] = deque()
        self._outer: Flight | None = None
        self._settled = False
        self._outcome: Outcome | None = None
        self._future: Future[Outcome | None] = Future()
        self._future.set_running_or_notify_cancel()  # so that a waiter cannot cancel it for the others

    @contextmanager
    def aboard(self) -> Generator[None]:
        """Count the code of the block as part of this flight, with what it calls on threads and tasks of its own."""
        outer = flight_of_context()
        self._outer = None if outer is None or outer.over else outer
        mark = _aboard.set(self)
        try:
            yield
        finally:
            with suppress(ValueError):  # a task that is collected with its closed loop, by code of another context
                _aboard.reset(mark)

    def waits_for_caller(self) -> bool:
        """Return whether the calling code is part of this flight, or of one that this flight waits for."""
        flight = flight_of_context()
        while flight is not None and flight is not self:
            flight = flight._outer  # noqa: SLF001  (of the same class)
        return flight is self

    def later(self, call: Callable[[], None]) -> None:
        """Make a call once the flight is settled: the call may ask for the token."""
        self._later.append(call)
        if self._settled:
            self.settle()

    def settle(self) -> None:
        """Make the calls that were put off: the outcome is known to the source, and new callers do not join."""
        self._settled = True
        with suppress(IndexError):  # no call is left; another thread may have made the last
            while True:
                self._later.popleft()()

    def join(self, timeout: float) -> Outcome | None:
        """Wait on this thread; ``None`` if the flight was abandoned or stalled, or ``timeout`` passed."""
        try:
            return self._future.result(self.patience(timeout))
        except FutureTimeout:
            return None
        except TokenCacheError as error:
            raise error.replica() from error.__cause__

    async def ajoin(self, timeout: float) -> Outcome | None:  # noqa: ASYNC109  (the waiter's own, not the flight's)
        """Wait on this event loop; otherwise as :meth:`join`."""
        import asyncio

        loop = asyncio.get_running_loop()
        if not self.over:
            waiters = self._waiters.get(loop) or self._waiters_on(loop)
            await waiters.wait(self.patience(timeout, loop))
        outcome = self._outcome
        return self.join(0.0) if outcome is None else outcome

    def _waiters_on(self, loop: asyncio.AbstractEventLoop) -> LoopWaiters:
        """Return the waiters on ``loop``, which wake when the flight is over."""
        waiters = self._waiters[loop] = LoopWaiters(loop)

        def tell(_: object) -> None:
            with suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(waiters.wake)

        self._future.add_done_callback(tell)
        return waiters

    def patience(self, timeout: float, mine: asyncio.AbstractEventLoop | None = None) -> float:
        """Return how long to wait before the next check for a runner: the whole ``timeout`` if the runner is sure.

        It is sure if the flight has started on a thread, or is a task of ``mine``, the event loop of the waiter.
        """
        trusted = self.started if self.loop is None else self.loop is mine
        return timeout if trusted else min(timeout, _LOOK)

    def when_over(self, call: Callable[[], None]) -> None:
        """Call ``call``, once, when the flight has landed or was abandoned."""
        self._future.add_done_callback(lambda _: call())

    @property
    def stalled(self) -> bool:
        """Whether the flight is a task of an event loop that does not run now, and perhaps never will again."""
        return self.loop is not None and not self.loop.is_running()

    def land(self, outcome: Outcome) -> None:
        """Give the outcome to all waiters."""
        if not self._future.done():
            self._outcome = outcome
            self._future.set_result(outcome)

    def fail(self, error: Exception) -> None:
        """Give the error to all waiters."""
        if not self._future.done():
            self._future.set_exception(error)

    def abandon(self) -> None:
        """End without an outcome: the waiters look at the local copy again, and one of them leads the next flight."""
        if not self._future.done():
            self._future.set_result(None)

    @property
    def over(self) -> bool:
        """Whether the flight has landed or was abandoned."""
        return self._future.done()


_aboard: ContextVar[Flight | None] = ContextVar("tokencache_flight", default=None)


def flight_of_context() -> Flight | None:
    """Return the flight that the calling code is part of, over or not."""
    return _aboard.get()


class Flights:
    """The flight of one source, if there is one."""

    __slots__ = ("_lock", "_open")

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards _open
        self._open: Flight | None = None

    def lead_or_join(self, now: float, lost_at: float) -> tuple[Flight, bool]:
        """Return the open flight, or a new one and ``True``: then the caller leads, and must make it land.

        A flight that is still open at its ``lost_at``, or whose event loop has stopped, is abandoned.
        """
        with self._lock:
            lost = self._open
            if lost is not None and now < lost.lost_at and not lost.stalled:
                return lost, False
            mine = self._open = Flight(lost_at)
        if lost is not None:
            lost.abandon()  # not under the lock: it calls back
        return mine, True

    def leave(self, flight: Flight) -> None:
        """Close a flight before it lands, so that the next caller leads a new one."""
        with self._lock:
            if self._open is flight:
                self._open = None

    @property
    def flying(self) -> bool:
        """Whether a flight is open."""
        return self._open is not None
