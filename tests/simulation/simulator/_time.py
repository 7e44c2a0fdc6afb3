"""Virtual time: one queue of coming events, and the clocks of each process, all of them wrong."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

EPOCH: Final = 1_800_000_000.0
"""What a right wall clock shows when a schedule starts, in epoch seconds."""
_SHORTEST: Final = 1e-6
_STEPS: Final = 20_000


class Livelock(Exception):
    """A schedule goes on without end."""


class Timeline:
    """True time, in seconds from a schedule's start; events of one instant happen in the order of their requests."""

    __slots__ = ("_order", "_queue", "now")

    def __init__(self) -> None:
        self.now = 0.0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = 0

    def at(self, instant: float, action: Callable[[], None]) -> None:
        """Let ``action`` happen at ``instant``, or now if that is past."""
        self._order += 1
        heapq.heappush(self._queue, (max(instant, self.now), self._order, action))

    def run(self, end: float, *, steps: int = _STEPS) -> None:
        """Run all events that are due before ``end``."""
        queue = self._queue
        for _ in range(steps):
            if not queue or queue[0][0] > end:
                self.now = max(self.now, end)
                return
            self.now, _, action = heapq.heappop(queue)
            action()
        message = f"{steps} steps without an end"
        raise Livelock(message)


class Clocks:
    """The steady clock and the wall clock of one process: the steady one drifts, the wall clock also steps."""

    __slots__ = ("_base", "_since", "_timeline", "offset", "rate")

    def __init__(self, timeline: Timeline, *, base: float, rate: float, offset: float) -> None:
        self._timeline = timeline
        self._base = base
        self._since = 0.0
        self.rate = rate
        self.offset = offset

    def steady(self) -> float:
        """Return the steady clock's reading."""
        return self._base + (self._timeline.now - self._since) * self.rate

    def wall(self) -> float:
        """Return the wall clock's reading, in epoch seconds."""
        return EPOCH + self._timeline.now + self.offset

    def slew(self, rate: float) -> None:
        """Let the steady clock run at another rate from now on."""
        self._base = self.steady()
        self._since = self._timeline.now
        self.rate = rate

    def after(self, duration: float) -> float:
        """Return the true instant at which ``duration`` seconds have passed by the steady clock."""
        return self._timeline.now + max(duration, _SHORTEST) / self.rate
