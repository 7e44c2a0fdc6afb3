"""The warmer: one thread of a cache renews the tokens of its sources, also while no caller asks for them."""

from __future__ import annotations

import atexit
import threading
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from tokencache._fork import Stage, enrol

if TYPE_CHECKING:
    from tokencache.source import TokenSource

_PATIENCE: Final = 0.05  # in seconds; a slower fetch goes on in its flight, and the next source has its turn
_LONGEST_PAUSE: Final = 60.0
_GOODBYE: Final = 1.0

_warmers: weakref.WeakSet[Warmer] = weakref.WeakSet()


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
            self._start()

    def stop(self) -> None:
        """Stop renewing. A fetch in progress ends by itself."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
            thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            thread.join(_GOODBYE)

    def after_fork(self) -> None:
        """Start a thread in the child of a fork, which does not have the parent's."""
        self._changed = threading.Condition()
        self._thread = None
        if self._sources and not self._stopped:
            self._start()

    def _start(self) -> None:
        """Start the thread, unless it runs already."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="tokencache-warm", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        """Renew the tokens that are due, then sleep until the next one is."""
        while True:
            pause = min(map(_renew_if_due, list(self._sources)), default=_LONGEST_PAUSE)
            with self._changed:
                if self._stopped:
                    return
                self._changed.wait(pause)


def _renew_if_due(source: TokenSource) -> float:
    """Renew a token if it is due; return the seconds until the next check."""
    with suppress(Exception):  # reported as an event already; the source keeps its own cooldown
        source.token(_PATIENCE)
    return min(source._rest(), _LONGEST_PAUSE)  # noqa: SLF001  (this module and the source are one algorithm)


def _stop_all() -> None:
    """Stop all warmers before the interpreter ends."""
    for warmer in list(_warmers):
        warmer.stop()


atexit.register(_stop_all)
