"""The ports: what tokencache asks of a provider, a backend and an observer, and the values that cross them.

Instants end in ``_at``; durations are float seconds. ``clock`` instants are readings of the process's own
steady clock (it neither steps nor stops while the machine sleeps where the system has such a clock), never epoch
seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal, Protocol, TypeAlias, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokencache.token import Token

Clock: TypeAlias = Callable[[], float]
Reason: TypeAlias = Literal["cold", "refresh", "renew", "rejected"]
SecretText: TypeAlias = Annotated[str, "secret"]
"""The type of a provider's setting that no file should hold in plain text."""


# --- provider ---------------------------------------------------------------------------------------------------


class Secret:
    """A credential inside an identity: it enters the key only as a slow fingerprint, and no repr shows it."""

    __slots__ = ("_value",)

    def __init__(self, value: str | bytes) -> None:
        self._value = value.encode() if isinstance(value, str) else bytes(value)

    def reveal(self) -> bytes:
        """Return the credential as bytes."""
        return self._value

    def __eq__(self, other: object) -> bool:
        """Return whether both hold the same credential."""
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        """Return a hash of the credential (salted per process by the interpreter)."""
        return hash(self._value)

    def __repr__(self) -> str:
        """Return a text without the credential."""
        return "Secret(<hidden>)"


def _unheard(text: str) -> None:
    """Drop a warning."""
    del text


@dataclass(frozen=True, slots=True)
class FetchContext:
    """What a provider is told about a fetch.

    ``previous`` is the token to be replaced, if any is known. ``deadline`` is an absolute reading of ``clock``
    by which the fetch must have ended. ``reason`` is why: ``cold`` (none known), ``refresh`` (ahead of expiry),
    ``renew`` (a caller asked), ``rejected`` (a resource server refused ``previous``). ``warn`` takes a text without
    secrets about something odd that did not stop the fetch: an unusable expiry, a refused refresh token.
    """

    previous: Token | None
    deadline: float
    reason: Reason
    clock: Clock = field(repr=False)
    warn: Callable[[str], None] = field(default=_unheard, repr=False, compare=False)

    @property
    def timeout(self) -> float:
        """What is left until the deadline, in seconds, never negative."""
        return max(0.0, self.deadline - self.clock())


@runtime_checkable
class TokenProvider(Protocol):
    """Knows how to obtain a token.

    A provider may leave out ``fetch`` or ``afetch``: the other half is lifted. These members are optional:

    - ``policy``: a :class:`~tokencache.policy.RefreshPolicy`, used unless the caller or the configuration names one.
    - ``key``: the key of the record, used as it stands, unless the caller or the configuration names one.
    - ``refreshing``: ``True`` if only the last token's refresh token leads to the next token. Then a process never
      fetches without a lease, the record outlives its token, and a 401 does not delete it.
    - ``"issuer"`` in the identity: the address that the tokens come from, as ``TokenSource.issuer`` tells it.

    A fetch raises :class:`~tokencache.errors.ProviderRejected` or :class:`~tokencache.errors.ProviderUnavailable`.
    """

    @property
    def name(self) -> str:
        """A short name for keys, events and messages."""
        ...

    def identity(self) -> Mapping[str, object]:
        """Return everything that makes its tokens its own: issuer, client, scope set, audience, extra parameters.

        Values are None, bool, int, float, str, bytes, :class:`Secret`, or lists, tuples, sets and mappings of them.
        """
        ...


class SyncProvider(TokenProvider, Protocol):
    """A provider with the half for threads."""

    def fetch(self, context: FetchContext) -> Token:
        """Obtain a new token by ``context.deadline``."""
        ...


class AsyncProvider(TokenProvider, Protocol):
    """A provider with the half for event loops."""

    async def afetch(self, context: FetchContext) -> Token:
        """Obtain a new token by ``context.deadline``."""
        ...


# --- backend ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Stored:
    """A record as it lies in a backend, and what remains of its life by the store's own countdown.

    ``remaining`` is ``None`` where the store has no countdown for it.
    """

    data: bytes = field(repr=False)
    remaining: float | None


@dataclass(frozen=True, slots=True)
class LeaseGrant:
    """The right to fetch for ``key``: held by ``owner``, ended by itself after ``ttl`` seconds, numbered ``fence``."""

    key: str
    owner: str
    fence: int
    ttl: float


@dataclass(frozen=True, slots=True)
class Cooldown:
    """Why, for whom and for how long no process asks the provider. It holds no secret.

    ``identity`` is the only identity that it binds. ``permanent`` tells :class:`ProviderRejected` from
    :class:`ProviderUnavailable`. ``attempt`` counts the failures in a row, so that the next holder's backoff continues.
    ``remaining`` is in seconds: from the release when it is left behind, from the answer when it is reported.
    """

    identity: str
    remaining: float
    permanent: bool
    attempt: int
    message: str
    error: str | None = None
    status: int | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """The answer to a lease: the stored record is another one than the caller has seen."""

    stored: Stored


@dataclass(frozen=True, slots=True)
class Granted:
    """The answer to a lease: the caller has it."""

    lease: LeaseGrant


@dataclass(frozen=True, slots=True)
class Held:
    """The answer to a lease: another owner has it for ``remaining`` seconds more, or a ``cooldown`` fills the slot."""

    remaining: float
    cooldown: Cooldown | None = None


LeaseReply: TypeAlias = Found | Granted | Held


@dataclass(frozen=True, slots=True)
class Slot:
    """What ``inspect`` reports of a key: the record, the owner of the lease and its remaining time, the cooldown."""

    stored: Stored | None
    owner: str | None = None
    remaining: float | None = None
    cooldown: Cooldown | None = None


class Backend(Protocol):
    """Where a fleet keeps records and takes leases: the half for threads.

    Every method may raise :class:`~tokencache.errors.BackendUnavailable`, and nothing else for a store that fails;
    :class:`~tokencache.errors.ConfigurationError` for a mistake in the set-up. Keys are any non-empty text.
    The fence of a record is what :func:`tokencache.records.fence_of` reads from its bytes.

    A backend may also have ``aio()``, which returns its :class:`AsyncBackend` for the running event loop; without
    it, calls run on threads. It may have ``after_fork()``, called in the child of a fork.
    """

    name: str

    def load(self, key: str) -> Stored | None:
        """Return the record, or ``None``. A plain read: it works when writes do not."""
        ...

    def lease(self, key: str, owner: str, identity: str, seen: bytes | None, ttl: float) -> LeaseReply:
        """Ask for the lease of ``key`` for ``ttl`` seconds; one round trip.

        ``Found`` when the stored record is another one than ``seen`` (:func:`tokencache.records.is_another`): its fence
        is higher, or, if one of the two has no fence, its bytes differ. Otherwise ``Held`` when another owner has it,
        or when a cooldown of the same ``identity`` fills the slot; a cooldown of another is displaced. Otherwise
        ``Granted``: the fence is above that of every earlier grant and of the stored record. Asking again with the
        owner that holds it gives the same lease back, extended.
        """
        ...

    def commit(self, lease: LeaseGrant, data: bytes, ttl: float) -> bool:
        """Store ``data`` for ``ttl`` seconds, free the lease if it is still the caller's, wake the waiters.

        ``False``, and nothing stored, when the stored record's fence is above ``lease.fence``. Repeating it is
        harmless.
        """
        ...

    def release(self, lease: LeaseGrant, cooldown: Cooldown | None = None) -> None:
        """Free the lease if it is still the caller's, leaving ``cooldown`` behind if there is one; wake the waiters."""
        ...

    def extend(self, lease: LeaseGrant, ttl: float) -> bool:
        """Make the lease last ``ttl`` seconds from now; ``False`` when it is no longer the caller's."""
        ...

    def wait(self, key: str, seen: bytes | None, timeout: float) -> Stored | None:
        """Return when the record is another than ``seen``, when the lease was freed, or after ``timeout``; or early.

        A backend that learns the new record with the wake-up may return it, which spares the waiter another look.
        """
        ...

    def discard(self, key: str, seen: bytes) -> bool:
        """Delete the record if its bytes are ``seen``; return whether it was deleted."""
        ...

    def inspect(self, key: str) -> Slot:
        """Report record, lease and cooldown, changing nothing."""
        ...

    def close(self) -> None:
        """Let go of connections and files. Records stay. May be called twice."""
        ...


class AsyncBackend(Protocol):
    """The half of a backend for one event loop; each method means what its namesake of :class:`Backend` does."""

    async def load(self, key: str) -> Stored | None:
        """Return the record, or ``None``."""
        ...

    async def lease(self, key: str, owner: str, identity: str, seen: bytes | None, ttl: float) -> LeaseReply:
        """Ask for the lease."""
        ...

    async def commit(self, lease: LeaseGrant, data: bytes, ttl: float) -> bool:
        """Store, free the lease, wake the waiters."""
        ...

    async def release(self, lease: LeaseGrant, cooldown: Cooldown | None = None) -> None:
        """Free the lease."""
        ...

    async def extend(self, lease: LeaseGrant, ttl: float) -> bool:
        """Prolong the lease."""
        ...

    async def wait(self, key: str, seen: bytes | None, timeout: float) -> Stored | None:  # noqa: ASYNC109
        """Wait for a change."""
        ...

    async def discard(self, key: str, seen: bytes) -> bool:
        """Compare and delete."""
        ...

    async def inspect(self, key: str) -> Slot:
        """Report."""
        ...

    async def close(self) -> None:
        """Let go of this loop's connections."""
        ...
