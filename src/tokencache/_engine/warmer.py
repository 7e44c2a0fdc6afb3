"""The warmer: one thread of a cache renews the tokens of its sources, also while no caller asks for them."""

from __future__ import annotations

import atexit
import logging
import sys
import threading
import time
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from tokencache._engine import timer
from tokencache._engine.launcher import is_main_interpreter
from tokencache._fork import Stage, call_before_forks, enrol, notice_fork

if TYPE_CHECKING:
    from tokencache.source import TokenSource

_PATIENCE: Final = 0.05  # in seconds; a slower fetch goes on in its flight, and the next source has its turn
_LONGEST_PAUSE: Final = 60.0
_GOODBYE: Final = 1.0
_LONGEST_WAIT: Final = 5.0
_LOOK: Final = 0.005
_LOGGER: Final = logging.getLogger("tokencache")
_PATCHERS: Final = frozenset({"gevent", "eventlet"})
"""Libraries that may patch :mod:`threading` soon after a fork: a thread that is started before then harms."""

_warmers: weakref.WeakSet[Warmer] = weakref.WeakSet()
_patient_at = 0.0  # when a fork waits for a fetch again


class Warmer:
    """Renews tokens when their renewal is due, until ``stop``. The sources report errors as events."""

    def __init__(self) -> None:
        self._sources: dict[TokenSource, None] = {}
        self._changed = threading.Condition()  # guards _sources, _thread and _stopped
        self._thread: threading.Thread | None = None
        self._stopped = False
        _warmers.add(self)
        enrol(Stage.WARMERS, self.after_fork)

    def add(self, source: TokenSource) -> None:
        """Keep one more source warm."""
        with self._changed:
            if source in self._sources or self._stopped:
                return
            self._sources[source] = None
            self._changed.notify()
        self.start()

    def stop(self) -> None:
        """Stop renewing. A fetch in progress ends by itself."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
            thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            with suppress(RuntimeError):  # it has not started yet, and will end at once
                thread.join(_GOODBYE)

    def after_fork(self) -> None:
        """Start a thread in the child of a fork, which does not have the parent's: now, or with its first flight."""
        self._changed = threading.Condition()
        self._thread = None
        if not _PATCHERS & sys.modules.keys():
            self.start()

    def start(self) -> None:
        """Start the thread if there is work for it and it does not run."""
        with self._changed:
            if self._thread is not None or self._stopped or not self._sources:
                return
            thread = self._thread = threading.Thread(target=self._run, name="tokencache-warm", daemon=True)
        try:  # not under the lock: where threads are greenlets, others run until the thread has started
            thread.start()
        except RuntimeError as error:
            self._thread = None
            _LOGGER.warning("keep_warm: %s; callers renew their tokens until a thread can be started", error)

    def is_fetching(self) -> bool:
        """Return whether one of the sources has an open flight."""
        return any(source._flights.flying for source in list(self._sources))  # noqa: SLF001  (this module and the source are one)

    def _run(self) -> None:
        """Renew the tokens that are due, then sleep until the next one is."""
        while not self._stopped:
            pause = min(map(_renew_if_due, list(self._sources)), default=_LONGEST_PAUSE)
            with self._changed:
                if not self._stopped:
                    self._changed.wait(pause)


def _renew_if_due(source: TokenSource) -> float:
    """Renew a token if it is due; return the seconds until the next check."""
    with suppress(Exception):  # reported as an event already; the source keeps its own cooldown
        source.token(_PATIENCE)
    return min(source._rest(), _LONGEST_PAUSE)  # noqa: SLF001  (this module and the source are one algorithm)


def resume() -> None:
    """Start the threads that a fork ended, or that could not be started."""
    for warmer in list(_warmers):
        warmer.start()


def _is_fetching() -> bool:
    """Return whether a source that is kept warm has an open flight."""
    return any(warmer.is_fetching() for warmer in list(_warmers))


def _let_fetches_end() -> None:
    """Wait until no fetch of a warmer is in progress, for some seconds at most; after a wait in vain, not for a minute.

    The lock of a module that a thread is importing stays taken in the child of a fork for ever. A program does not
    choose when its warmers fetch, so it cannot fork at another moment.
    """
    global _patient_at  # noqa: PLW0603  (one per process is the point)
    now = time.monotonic()
    if now < _patient_at:
        return
    ends_at = now + _LONGEST_WAIT
    while _is_fetching():
        if time.monotonic() >= ends_at:
            _patient_at = ends_at + _LONGEST_PAUSE
            return
        time.sleep(_LOOK)


call_before_forks(_let_fetches_end)


def _stop_all() -> None:
    """End the threads before the interpreter ends: none may run code of an interpreter that is gone.

    A subinterpreter, such as mod_wsgi has for each application, waits until its fetches have ended, because a thread
    that is left would end the whole process. The main interpreter does not wait for fetches.
    """
    notice_fork()
    for warmer in list(_warmers):
        warmer.stop()
    timer.stop()
    if not is_main_interpreter():
        for thread in threading.enumerate():
            if thread.name.startswith("tokencache-") and thread is not threading.current_thread():
                thread.join()


atexit.register(_stop_all)
