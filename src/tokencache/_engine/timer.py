"""The timer thread of a process: it runs the heartbeats of all slow fetches on threads."""

from __future__ import annotations

import _thread
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
    """The heartbeat of one lease: ``action`` runs every ``every`` seconds, until it returns ``False`` or ``stop``."""

    __slots__ = ("action", "every", "stopped")

    def __init__(self, every: float, action: Action) -> None:
        self.every = every
        self.action = action
        self.stopped = False

    def stop(self) -> None:
        """Stop the beat. An action that runs at this moment ends by itself."""
        self.stopped = True


class Heartbeat:
    """A timer thread that starts with the first beat, and ends after ten seconds without one."""

    def __init__(self) -> None:
        self.after_fork()
        enrol(Stage.TIMERS, self.after_fork)

    def after_fork(self) -> None:
        """Start without beats, also in the child of a fork, which has neither the parent's thread nor its leases."""
        self.kind = _thread.start_new_thread
        self._changed = threading.Condition()  # guards _due and _running
        self._due: list[tuple[float, int, Beat]] = []
        self._running = False
        self._stopped = False
        self._order = itertools.count()

    def start(self, every: float, action: Action) -> Beat:
        """Run ``action`` every ``every`` seconds, for the first time ``every`` seconds from now."""
        beat = Beat(every, action)
        with self._changed:
            heapq.heappush(self._due, (time.monotonic() + every, next(self._order), beat))
            starts = not (self._running or self._stopped)
            self._running |= starts
            if self._due[0][2] is beat:
                self._changed.notify()
        if starts:  # not under the lock: where threads are greenlets, others run until the thread has started
            try:
                threading.Thread(target=self._run, name="tokencache-heartbeat", daemon=True).start()
            except BaseException as error:
                self._running = False
                if not isinstance(error, RuntimeError):  # no thread can be started: the fetch goes on without
                    raise
        return beat

    def stop(self) -> None:
        """End the thread, and start no other."""
        with self._changed:
            self._stopped = True
            self._changed.notify()

    def _run(self) -> None:
        """Run the beats that are due, until the timer is idle."""
        while (beat := self._next()) is not None:
            again = False
            with suppress(Exception):  # a defect in one beat must not stop the others
                again = beat.action(beat)
            if again and not beat.stopped:
                with self._changed:
                    heapq.heappush(self._due, (time.monotonic() + beat.every, next(self._order), beat))

    def _next(self) -> Beat | None:
        """Wait until a beat is due, and return it; ``None`` ends the thread."""
        with self._changed:
            while True:
                if self._stopped:
                    self._running = False
                    return None
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
    """Start a beat on the timer thread of this process; on another one once a library has patched :mod:`threading`."""
    global _heartbeat  # noqa: PLW0603  (one per process is the point)
    if _heartbeat.kind is not _thread.start_new_thread:
        _heartbeat = Heartbeat()
    return _heartbeat.start(every, action)


def stop() -> None:
    """Stop all beats of this process, as the interpreter ends."""
    _heartbeat.stop()
