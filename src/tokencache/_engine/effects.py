"""Effects: the steps that a flow asks its driver for, as frozen values, with a typed helper for each.

A flow says ``reply = yield from lease(…)``; a driver performs the effect and sends the reply back. The reply is
``Any``, because a generator's send type cannot depend on what it yielded; the helpers restore the type at once.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

if TYPE_CHECKING:
    from tokencache.errors import BackendUnavailable, ProviderError
    from tokencache.events import Event
    from tokencache.ports import AsyncBackend, Backend, Cooldown, LeaseGrant, LeaseReply, Reason, Slot, Stored
    from tokencache.token import Token

T = TypeVar("T")
Flow: TypeAlias = Generator["Effect", Any, T]
Half: TypeAlias = "Backend | AsyncBackend"


@dataclass(frozen=True, slots=True)
class Unreachable:
    """The reply to an effect on a backend that did not answer; not ``Held``: the lease may be free."""

    error: BackendUnavailable


@dataclass(frozen=True, slots=True)
class Instants:
    """One reading of both clocks: ``clock`` of the steady clock, ``wall`` in epoch seconds."""

    clock: float
    wall: float


@dataclass(frozen=True, slots=True)
class Effect:
    """One step of a flow that its driver performs."""


@dataclass(frozen=True, slots=True)
class BackendEffect(Effect):
    """A call of the backend; ``on`` makes it on either half."""

    key: str

    writes = True

    def on(self, backend: Half) -> object:
        """Call the backend and return its answer: an awaitable if it is an ``AsyncBackend``."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Load(BackendEffect):
    """Read the record."""

    writes = False

    def on(self, backend: Half) -> object:
        """Call ``load``."""
        return backend.load(self.key)


@dataclass(frozen=True, slots=True)
class Inspect(BackendEffect):
    """Read record, lease and cooldown."""

    writes = False

    def on(self, backend: Half) -> object:
        """Call ``inspect``."""
        return backend.inspect(self.key)


@dataclass(frozen=True, slots=True)
class Lease(BackendEffect):
    """Ask for the right to fetch."""

    owner: str
    identity: str
    seen: bytes | None = field(repr=False)
    ttl: float

    def on(self, backend: Half) -> object:
        """Call ``lease``."""
        return backend.lease(self.key, self.owner, self.identity, self.seen, self.ttl)


@dataclass(frozen=True, slots=True)
class Commit(BackendEffect):
    """Store the record and free the lease."""

    lease: LeaseGrant
    data: bytes = field(repr=False)
    ttl: float

    def on(self, backend: Half) -> object:
        """Call ``commit``."""
        return backend.commit(self.lease, self.data, self.ttl)


@dataclass(frozen=True, slots=True)
class Release(BackendEffect):
    """Free the lease, and leave the cooldown, if there is one."""

    lease: LeaseGrant
    cooldown: Cooldown | None

    def on(self, backend: Half) -> object:
        """Call ``release``."""
        return backend.release(self.lease, self.cooldown)


@dataclass(frozen=True, slots=True)
class Wait(BackendEffect):
    """Wait for a change of record or lease."""

    seen: bytes | None = field(repr=False)
    timeout: float

    writes = False

    def on(self, backend: Half) -> object:
        """Call ``wait``."""
        return backend.wait(self.key, self.seen, self.timeout)


@dataclass(frozen=True, slots=True)
class Discard(BackendEffect):
    """Delete the record if its bytes are still ``seen``."""

    seen: bytes = field(repr=False)

    def on(self, backend: Half) -> object:
        """Call ``discard``."""
        return backend.discard(self.key, self.seen)


@dataclass(frozen=True, slots=True)
class Fetch(Effect):
    """Ask the provider for a token; the driver extends ``lease`` meanwhile."""

    previous: Token | None
    timeout: float
    reason: Reason
    lease: LeaseGrant | None


@dataclass(frozen=True, slots=True)
class Sleep(Effect):
    """Let ``duration`` seconds pass."""

    duration: float


@dataclass(frozen=True, slots=True)
class Now(Effect):
    """Read the clocks."""


@dataclass(frozen=True, slots=True)
class Draw(Effect):
    """Draw a random number, uniform in [0, 1)."""


@dataclass(frozen=True, slots=True)
class Emit(Effect):
    """Give an event to the observers."""

    event: Event


def load(key: str) -> Flow[Stored | Unreachable | None]:
    """Read the record."""
    reply: Stored | Unreachable | None = yield Load(key)
    return reply


def inspect(key: str) -> Flow[Slot | Unreachable]:
    """Read record, lease and cooldown."""
    reply: Slot | Unreachable = yield Inspect(key)
    return reply


def lease(key: str, owner: str, identity: str, seen: bytes | None, ttl: float) -> Flow[LeaseReply | Unreachable]:
    """Ask for the right to fetch."""
    reply: LeaseReply | Unreachable = yield Lease(key, owner, identity, seen, ttl)
    return reply


def commit(grant: LeaseGrant, data: bytes, ttl: float) -> Flow[bool | Unreachable]:
    """Store the record and free the lease."""
    reply: bool | Unreachable = yield Commit(grant.key, grant, data, ttl)
    return reply


def release(grant: LeaseGrant, cooldown: Cooldown | None = None) -> Flow[None]:
    """Free the lease. The flow does not need the answer, because a lease ends by itself."""
    yield Release(grant.key, grant, cooldown)


def wait(key: str, seen: bytes | None, timeout: float) -> Flow[Stored | Unreachable | None]:
    """Wait for a change of record or lease; returns the record if it came with the wake-up."""
    reply: Stored | Unreachable | None = yield Wait(key, seen, timeout)
    return reply


def discard(key: str, seen: bytes) -> Flow[bool | Unreachable]:
    """Delete the record if its bytes are still ``seen``."""
    reply: bool | Unreachable = yield Discard(key, seen)
    return reply


def fetch(
    previous: Token | None, timeout: float, reason: Reason, grant: LeaseGrant | None
) -> Flow[Token | ProviderError]:
    """Ask the provider for a token."""
    reply: Token | ProviderError = yield Fetch(previous, timeout, reason, grant)
    return reply


def sleep(duration: float) -> Flow[None]:
    """Let time pass."""
    yield Sleep(duration)


def now() -> Flow[Instants]:
    """Read the clocks."""
    reply: Instants = yield Now()
    return reply


def draw() -> Flow[float]:
    """Draw a random number, uniform in [0, 1)."""
    reply: float = yield Draw()
    return reply


def emit(event: Event) -> Flow[None]:
    """Give an event to the observers."""
    yield Emit(event)
