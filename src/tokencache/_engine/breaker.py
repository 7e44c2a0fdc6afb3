"""The breaker: callers do not wait for the time-outs of a backend that does not answer (INV-5)."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from tokencache._engine.effects import Unreachable
from tokencache._fork import Stage, enrol
from tokencache.errors import BackendUnavailable, TokenCacheError
from tokencache.events import BackendFailed, BackendRecovered

if TYPE_CHECKING:
    from tokencache._engine.context import SourceContext
    from tokencache._engine.effects import BackendEffect
    from tokencache.ports import Clock


class Breaker:
    """Remembers that one kind of call fails, and lets one caller per ``probe`` seconds try again."""

    def __init__(self, clock: Clock, probe: float) -> None:
        self._clock = clock
        self._probe = probe
        self._lock = threading.Lock()  # guards _error and _probe_at
        self._error: BackendUnavailable | None = None
        self._probe_at = 0.0
        enrol(Stage.LOCKS, self.after_fork)

    @property
    def error(self) -> BackendUnavailable | None:
        """The failure that opened the breaker, or ``None`` while calls go through."""
        return self._error

    def refuse(self) -> BackendUnavailable | None:
        """Return the failure that answers the call, or ``None`` if the caller should try."""
        if self._error is None:
            return None
        with self._lock:
            now = self._clock()
            if now < self._probe_at:
                return self._error
            self._probe_at = now + self._probe
            return None

    def failed(self, error: BackendUnavailable) -> bool:
        """Record a failure; return whether it is the first."""
        with self._lock:
            first = self._error is None
            self._error = error
            self._probe_at = self._clock() + self._probe
            return first

    def answered(self) -> bool:
        """Record an answer; return whether it ends an outage."""
        if self._error is None:
            return False
        with self._lock:
            error, self._error = self._error, None
            return bool(error)

    def after_fork(self) -> None:
        """Start with a fresh lock in the child of a fork."""
        self._lock = threading.Lock()


def refusal(effect: BackendEffect, world: SourceContext) -> Unreachable | None:
    """Return the open breaker's answer to a call, or ``None`` if the call should be made."""
    error = _breaker(effect, world).refuse()
    return None if error is None else Unreachable(error)


def failed(effect: BackendEffect, error: Exception, world: SourceContext) -> Unreachable:
    """Record a backend's error and return it as an outage; raise any other error of tokencache unchanged.

    An exception of another library comes from a garbled reply or a backend with a defect. The message names only its
    type (INV-9).
    """
    if not isinstance(error, BackendUnavailable):
        if isinstance(error, TokenCacheError):
            raise error
        name = getattr(world.backend, "name", "the backend")
        what = f"{name} failed with {type(error).__name__}"
        error = BackendUnavailable(f"{what}; check that the address is that of its server")
    if _breaker(effect, world).failed(error):
        operation = type(effect).__name__.lower()
        world.tell(BackendFailed(provider=world.provider.name, key=effect.key, operation=operation, error=str(error)))
    return Unreachable(error)


def answered(effect: BackendEffect, world: SourceContext) -> None:
    """Record that the backend answered. A write that works closes the breaker of reads too."""
    ended = world.reads.answered()
    if effect.writes:
        ended = world.writes.answered() or ended
    if ended:
        world.tell(BackendRecovered(provider=world.provider.name, key=effect.key))


def _breaker(effect: BackendEffect, world: SourceContext) -> Breaker:
    """Return the breaker of this kind of call: reads may work while writes do not."""
    return world.writes if effect.writes else world.reads
