"""Events: one frozen value per thing that happens, given to observers. None holds a secret (INV-9).

An observer is a callable of one event. It is called where the thing happens, so it must be quick; what it raises is
logged and goes no further.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokencache.ports import Reason

_LOGGER: Final = logging.getLogger("tokencache")  # an interrupt in ``getLogger`` would leave its lock behind


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something happened to the token of ``provider`` at ``key``."""

    provider: str
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenFetched(Event):
    """The provider gave a token; ``usable`` is how long callers get it, ``took`` how long the fetch was, in seconds.

    ``shared`` tells whether the record was stored in the backend for the fleet.
    """

    reason: Reason
    usable: float
    took: float
    shared: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLoaded(Event):
    """A token that somebody else fetched was taken from the backend."""

    usable: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenUnchanged(Event):
    """The provider gave nothing better than the current token; the next attempt comes after ``pause`` seconds."""

    pause: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenInvalidated(Event):
    """A token was reported as refused and dropped; ``stored`` tells whether the backend still had it."""

    stored: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchFailed(Event):
    """The provider gave no token. ``served`` tells whether a usable token hides that from callers (INV-4)."""

    reason: Reason
    error: str
    permanent: bool
    attempt: int
    pause: float
    served: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderWarning(Event):
    """A response was odd but usable, for example an expiry that could not be read."""

    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordIgnored(Event):
    """A stored record was not used: unreadable, or another identity's (INV-10)."""

    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitRefused(Event):
    """A newer record was there when this one was to be stored; the newer one stands (INV-3)."""

    fence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseLost(Event):
    """The lease ended, or went to somebody else, while the fetch was running."""

    fence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendFailed(Event):
    """The backend did not answer; this process goes on by itself (INV-5)."""

    operation: str
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendRecovered(Event):
    """The backend answers again."""


class Observer(Protocol):
    """Anything that wants to know."""

    def __call__(self, event: Event, /) -> None:
        """Take note of ``event``."""
        ...


def observe(observers: Sequence[Observer], event: Event) -> None:
    """Give ``event`` to every observer; an observer that raises is logged and harms nobody."""
    for observer in observers:
        try:
            observer(event)
        except Exception:
            _LOGGER.exception("an observer raised on %s", type(event).__name__)


def log(event: Event) -> None:
    """Write one line per event to the ``tokencache`` logger: the default observer. Hits are no events."""
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
            _LOGGER.warning("[%s] a newer token was stored meanwhile; ours was not", event.provider)
        case LeaseLost():
            _LOGGER.warning("[%s] the lease ended during the fetch; somebody else may fetch too", event.provider)
        case BackendFailed():
            _LOGGER.warning(
                "[%s] backend failed on %s (%s); going on without it", event.provider, event.operation, event.error
            )
        case BackendRecovered():
            _LOGGER.info("[%s] backend answers again", event.provider)
        case _:
            _LOGGER.debug("[%s] %r", event.provider, event)
