"""The heartbeat: keeps the leases of slow fetches alive, for all fetches of the process on one thread."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final, TypeAlias

from tokencache._fork import Stage, enrol

if TYPE_CHECKING:
    from collections.abc import Callable

Action: TypeAlias = "Callable[[Beat], bool]"
_IDLE: Final = 10.0


class Beat:
    """One lease kept alive: ``action`` runs every ``every`` seconds until it returns ``False`` or after ``stop``."""

    __slots__ = ("action", "every", "stopped")

    def __init__(self, every: float, action: Action) -> None:
        self.every = every
        self.action = action
        self.stopped = False

    def stop(self) -> None:
        """Let the lease be. An action that runs at this moment ends by itself."""
        self.stopped = True


class Heartbeat:
    """A timer thread that starts with the first beat and ends when there has been none for a while."""

    def __init__(self) -> None:
        self.after_fork()
        enrol(Stage.TIMERS, self.after_fork)

    def after_fork(self) -> None:
        """Begin empty, also in the child of a fork: it has neither the parent's thread nor its leases."""
        self._changed = threading.Condition()  # guards _due and _running
        self._due: list[tuple[float, int, Beat]] = []
        self._running = False
        self._order = itertools.count()

    def start(self, every: float, action: Action) -> Beat:
        """Run ``action`` every ``every`` seconds, for the first time ``every`` seconds from now."""
        beat = Beat(every, action)
        with self._changed:
            heapq.heappush(self._due, (time.monotonic() + every, next(self._order), beat))
            if not self._running:
                with suppress(RuntimeError):  # no thread to be had: a fetch without a heartbeat is better than none
                    threading.Thread(target=self._run, name="tokencache-heartbeat", daemon=True).start()
                    self._running = True
            elif self._due[0][2] is beat:
                self._changed.notify()
        return beat

    def _run(self) -> None:
        """Run what is due, for ever or until idle."""
        while (beat := self._next()) is not None:
            again = False
            with suppress(Exception):  # one beat's defect must not end everybody's heartbeat
                again = beat.action(beat)
            if again and not beat.stopped:
                with self._changed:
                    heapq.heappush(self._due, (time.monotonic() + beat.every, next(self._order), beat))

    def _next(self) -> Beat | None:
        """Wait for the next beat that is due; ``None`` ends the thread."""
        with self._changed:
            while True:
                while self._due and self._due[0][2].stopped:
                    heapq.heappop(self._due)
                if not self._due:
                    if not self._changed.wait(_IDLE) and not self._due:
                        self._running = False
                        return None
                    continue
                pause = self._due[0][0] - time.monotonic()
                if pause <= 0:
                    return heapq.heappop(self._due)[2]
                self._changed.wait(pause)


_heartbeat = Heartbeat()


def beat(every: float, action: Action) -> Beat:
    """Start a beat on the heartbeat of this process."""
    return _heartbeat.start(every, action)
