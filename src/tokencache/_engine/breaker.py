"""The breaker: spares callers the time-outs of a backend that does not answer (INV-5)."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokencache.errors import BackendUnavailable
    from tokencache.ports import Clock


class Breaker:
    """Remembers that one kind of call fails, and lets one caller per ``probe`` seconds find out anew."""

    def __init__(self, clock: Clock, probe: float) -> None:
        self._clock = clock
        self._probe = probe
        self._lock = threading.Lock()  # guards _error and _probe_at
        self._error: BackendUnavailable | None = None
        self._probe_at = 0.0

    @property
    def error(self) -> BackendUnavailable | None:
        """The failure that opened the breaker, or ``None`` while calls go through."""
        return self._error

    def refuse(self) -> BackendUnavailable | None:
        """Return the failure to answer with, or ``None`` when the caller is to try."""
        if self._error is None:
            return None
        with self._lock:
            now = self._clock()
            if now < self._probe_at:
                return self._error
            self._probe_at = now + self._probe
            return None

    def failed(self, error: BackendUnavailable) -> bool:
        """Take note of a failure; return whether it is the first."""
        with self._lock:
            first = self._error is None
            self._error = error
            self._probe_at = self._clock() + self._probe
            return first

    def answered(self) -> bool:
        """Take note of an answer; return whether it ends an outage."""
        if self._error is None:
            return False
        with self._lock:
            error, self._error = self._error, None
            return bool(error)

    def after_fork(self) -> None:
        """Start with a fresh lock in the child of a fork."""
        self._lock = threading.Lock()
