"""Events: frozen values that tell observers what happened. No event holds a secret (INV-9).

An observer is a callable that takes one event. It runs in the thread or task that causes the event, so it must be
quick. Events of a fetch are told when the source has the outcome, and before the callers get it: an observer may ask
for the token. An exception that it raises is logged and not propagated.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokencache.ports import Reason

_LOGGER: Final = logging.getLogger("tokencache")  # an interrupt in ``getLogger`` would leave its lock held


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something happened to the token of ``provider`` at ``key``."""

    provider: str
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenFetched(Event):
    """The provider gave a token: callers get it for ``usable`` seconds, and the fetch took ``took`` seconds.

    ``shared`` tells whether the backend stored the record for the fleet.
    """

    reason: Reason
    usable: float
    took: float
    shared: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLoaded(Event):
    """A token that another process fetched was loaded from the backend."""

    usable: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenUnchanged(Event):
    """The provider gave no newer token than the current one; the next attempt comes after ``pause`` seconds."""

    pause: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenInvalidated(Event):
    """A token was reported as refused, and dropped; ``stored`` tells whether the backend still held it."""

    stored: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchFailed(Event):
    """The provider gave no token. ``served`` tells whether callers still get a usable token (INV-4)."""

    reason: Reason
    error: str
    permanent: bool
    attempt: int
    pause: float
    served: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderWarning(Event):
    """A response was unusual but usable, for example with an unreadable expiry."""

    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordIgnored(Event):
    """A stored record was not used: it is unreadable, or belongs to another identity (INV-10)."""

    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitRefused(Event):
    """The backend kept a newer record and refused this one (INV-3)."""

    fence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseLost(Event):
    """The lease ended, or another process took it, during the fetch."""

    fence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendFailed(Event):
    """The backend did not answer; this process continues without it (INV-5)."""

    operation: str
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendRecovered(Event):
    """The backend answers again."""


class Observer(Protocol):
    """A callable that receives every event."""

    def __call__(self, event: Event, /) -> None:
        """Receive ``event``."""
        ...


def observe(observers: Sequence[Observer], event: Event) -> None:
    """Give ``event`` to every observer; log the exception of an observer that raises."""
    for observer in observers:
        try:
            observer(event)
        except Exception:
            _LOGGER.exception("an observer raised on %s", type(event).__name__)


def log(event: Event) -> None:
    """Write one line per event to the ``tokencache`` logger: the default observer. Cache hits are not events."""
    match event:
        case TokenFetched(shared=True):
            _LOGGER.info("[%s] token fetched and cached (expires in %.0fs)", event.provider, event.usable)
        case TokenFetched():
            _LOGGER.info("[%s] token fetched, not shared (expires in %.0fs)", event.provider, event.usable)
        case TokenLoaded():
            _LOGGER.debug("[%s] token taken from the backend (expires in %.0fs)", event.provider, event.usable)
        case TokenUnchanged():
            _LOGGER.info("[%s] the provider gave no newer token; next attempt in %.0fs", event.provider, event.pause)
        case TokenInvalidated():
            _LOGGER.info("[%s] refused token dropped", event.provider)
        case FetchFailed():
            level = logging.WARNING if event.served else logging.ERROR
            _LOGGER.log(level, "[%s] no token (%s); next attempt in %.1fs", event.provider, event.error, event.pause)
        case ProviderWarning() | RecordIgnored():
            _LOGGER.warning("[%s] %s", event.provider, event.message)
        case CommitRefused():
            _LOGGER.warning("[%s] a newer token was stored meanwhile; this one was not stored", event.provider)
        case LeaseLost():
            _LOGGER.warning("[%s] the lease ended during the fetch; another process may fetch too", event.provider)
        case BackendFailed():
            _LOGGER.warning(
                "[%s] backend failed on %s (%s); continuing without it", event.provider, event.operation, event.error
            )
        case BackendRecovered():
            _LOGGER.info("[%s] the backend answers again", event.provider)
        case _:
            _LOGGER.debug("[%s] %r", event.provider, event)
