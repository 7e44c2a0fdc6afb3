"""The ports: what tokencache asks of a provider, a backend and an observer, and the values that cross them.

The names of instants end in ``_at``; durations are float seconds. Instants of a ``clock`` are readings of the
process's own steady clock, never epoch seconds. This clock does not step. Where the system has such a clock, it also
counts the time that the machine sleeps.
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
    """A credential inside an identity: it enters the key only as a slow fingerprint, and no repr shows it.

    ``secret`` says whether only the holders of the credential know the value. It is false for the path of a file, the
    thumbprint of a certificate or unverified claims: ``encrypt="provider"`` derives no key from these.
    """

    __slots__ = ("_value", "secret")

    def __init__(self, value: str | bytes, *, secret: bool = True) -> None:
        self._value = value.encode() if isinstance(value, str) else bytes(value)
        self.secret = secret

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
    """Ignore a warning."""
    del text


@dataclass(frozen=True, slots=True)
class FetchContext:
    """The context of one fetch, for the provider.

    ``previous`` is the token that the new one replaces, if any is known. The fetch must end by ``deadline``, an
    absolute reading of ``clock``. ``reason`` is why: ``cold`` (no token known), ``refresh`` (ahead of expiry),
    ``renew`` (a caller asked), ``rejected`` (a resource server refused ``previous``). ``warn`` takes a text about
    something unusual that did not stop the fetch: an unusable expiry, a refused refresh token. It holds no secret.
    """

    previous: Token | None
    deadline: float
    reason: Reason
    clock: Clock = field(repr=False)
    warn: Callable[[str], None] = field(default=_unheard, repr=False, compare=False)

    @property
    def timeout(self) -> float:
        """The seconds left until the deadline, never negative."""
        return max(0.0, self.deadline - self.clock())


@runtime_checkable
class TokenProvider(Protocol):
    """Knows how to obtain a token.

    A provider may have only one of ``fetch`` and ``afetch``; the engine makes the other. These members are optional:

    - ``policy``: a :class:`~tokencache.policy.RefreshPolicy`, used unless the caller or the configuration names one.
    - ``key``: the key of the record, used unchanged, unless the caller or the configuration names one.
    - ``refreshing``: ``True`` if only the last token's refresh token leads to the next token. Then a process never
      fetches without a lease, the record outlives its token, and a 401 does not delete it. A record that cannot be
      used is an error, not a miss.
    - ``"issuer"`` in the identity: the address of the issuer of the tokens, which ``TokenSource.issuer`` returns.

    A fetch raises :class:`~tokencache.errors.ProviderRejected` or :class:`~tokencache.errors.ProviderUnavailable`.
    """

    @property
    def name(self) -> str:
        """A short name for keys, events and messages."""
        ...

    def identity(self) -> Mapping[str, object]:
        """Return everything that its tokens depend on: issuer, client, scope set, audience, extra parameters.

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
    """A record in a backend, and the seconds that remain of its life by the store's own countdown.

    ``remaining`` is ``None`` if the store has no countdown for it.
    """

    data: bytes = field(repr=False)
    remaining: float | None


@dataclass(frozen=True, slots=True)
class LeaseGrant:
    """The right to fetch for ``key``: held by ``owner``, for ``ttl`` seconds, with the number ``fence``."""

    key: str
    owner: str
    fence: int
    ttl: float


@dataclass(frozen=True, slots=True)
class Cooldown:
    """The time in which no process asks the provider after a failure, and the failure itself. It holds no secret.

    It binds only ``identity``. ``permanent`` is true for :class:`ProviderRejected`, false for
    :class:`ProviderUnavailable`. ``attempt`` counts the failures in a row, so that the next holder's backoff continues.
    ``remaining`` is in seconds: in a release from that moment, in an answer of the backend from the answer. ``message``
    and ``error`` come from the store, where any writer may put escape sequences of a terminal: unprintable characters
    become blanks.
    """

    identity: str
    remaining: float
    permanent: bool
    attempt: int
    message: str
    error: str | None = None
    status: int | None = None

    def __post_init__(self) -> None:
        """Make the texts printable."""
        for name in ("message", "error"):
            text = getattr(self, name)
            if isinstance(text, str) and not text.isprintable():
                object.__setattr__(self, name, "".join(char if char.isprintable() else " " for char in text))


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
    """What ``inspect`` returns for a key: its record, the lease's owner and remaining time, and its cooldown."""

    stored: Stored | None
    owner: str | None = None
    remaining: float | None = None
    cooldown: Cooldown | None = None


class Backend(Protocol):
    """Where a fleet stores records and takes leases: the half for threads.

    For a store that fails, a method raises only :class:`~tokencache.errors.BackendUnavailable`. For a mistake in the
    set-up it raises :class:`~tokencache.errors.ConfigurationError`. Keys are any non-empty text.
    :func:`tokencache.records.fence_of` reads the fence of a record from its bytes.

    A backend may also have ``aio()``, which returns its :class:`AsyncBackend` for the running event loop. Without
    it, calls run on a thread pool. It may have ``after_fork()``, which is called in the child of a fork.
    """

    name: str

    def load(self, key: str) -> Stored | None:
        """Return the record, or ``None``. It only reads, so it works when writes do not."""
        ...

    def lease(self, key: str, owner: str, identity: str, seen: bytes | None, ttl: float) -> LeaseReply:
        """Ask for the lease of ``key`` for ``ttl`` seconds; one round trip.

        ``Found`` if the stored record is another one than ``seen`` (:func:`tokencache.records.is_another`): its fence
        is higher, or, if one of the two has no fence, its bytes differ. Otherwise ``Held`` if another owner has the
        lease, or if a cooldown of the same ``identity`` fills the slot; a cooldown of another identity is replaced.
        Otherwise ``Granted``: the fence is above that of every earlier grant and of the stored record. The owner that
        holds the lease already gets the same lease, extended.
        """
        ...

    def commit(self, lease: LeaseGrant, data: bytes, ttl: float) -> bool:
        """Store ``data`` for ``ttl`` seconds, free the lease if it is still the caller's, wake the waiters.

        Return ``False`` and store nothing if the commit is late (:func:`tokencache.records.is_late`): the stored
        record has a higher fence, or the lease is lost and the record has no fence. A repeated call is harmless.
        """
        ...

    def release(self, lease: LeaseGrant, cooldown: Cooldown | None = None) -> None:
        """Free the lease if it is still the caller's, store ``cooldown`` in its slot if given, wake the waiters."""
        ...

    def extend(self, lease: LeaseGrant, ttl: float) -> bool:
        """Make the lease last ``ttl`` seconds from now; return ``False`` if it is no longer the caller's."""
        ...

    def wait(self, key: str, seen: bytes | None, timeout: float) -> Stored | None:
        """Return when the record is another one than ``seen``, the lease was freed, or ``timeout`` passed; or earlier.

        If the wake-up carries the new record, a backend may return it, so that the waiter need not read it.
        """
        ...

    def discard(self, key: str, seen: bytes) -> bool:
        """Delete the record if its bytes are ``seen``; return whether it was deleted."""
        ...

    def inspect(self, key: str) -> Slot:
        """Return record, lease and cooldown; change nothing."""
        ...

    def close(self) -> None:
        """Close connections and files. Records stay. May be called twice."""
        ...


class AsyncBackend(Protocol):
    """The half of a backend for one event loop; each method does the same as that of :class:`Backend`."""

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
        """Extend the lease."""
        ...

    async def wait(self, key: str, seen: bytes | None, timeout: float) -> Stored | None:  # noqa: ASYNC109
        """Wait for a change of record or lease."""
        ...

    async def discard(self, key: str, seen: bytes) -> bool:
        """Delete the record if its bytes are ``seen``."""
        ...

    async def inspect(self, key: str) -> Slot:
        """Return record, lease and cooldown."""
        ...

    async def close(self) -> None:
        """Close this loop's connections."""
        ...
