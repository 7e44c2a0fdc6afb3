"""A read-only backend, for a command that must neither take a lease nor store a record."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from tokencache.errors import BackendUnavailable

if TYPE_CHECKING:
    from tokencache.ports import Backend, Cooldown, LeaseGrant, Slot, Stored


class ReadOnlyBackend:
    """``load`` and ``inspect`` of another backend; each other method raises ``BackendUnavailable``."""

    def __init__(self, inner: Backend) -> None:
        self.name = inner.name
        self._inner = inner

    def load(self, key: str) -> Stored | None:
        """Return the record, or ``None``."""
        return self._inner.load(key)

    def inspect(self, key: str) -> Slot:
        """Report record, lease and cooldown."""
        return self._inner.inspect(key)

    def lease(self, key: str, owner: str, identity: str, seen: bytes | None, ttl: float) -> NoReturn:
        """Refuse."""
        del key, owner, identity, seen, ttl
        _refuse()

    def commit(self, lease: LeaseGrant, data: bytes, ttl: float) -> NoReturn:
        """Refuse."""
        del lease, data, ttl
        _refuse()

    def release(self, lease: LeaseGrant, cooldown: Cooldown | None = None) -> NoReturn:
        """Refuse."""
        del lease, cooldown
        _refuse()

    def extend(self, lease: LeaseGrant, ttl: float) -> NoReturn:
        """Refuse."""
        del lease, ttl
        _refuse()

    def wait(self, key: str, seen: bytes | None, timeout: float) -> NoReturn:
        """Refuse."""
        del key, seen, timeout
        _refuse()

    def discard(self, key: str, seen: bytes) -> NoReturn:
        """Refuse."""
        del key, seen
        _refuse()

    def close(self) -> None:
        """Close."""
        self._inner.close()


def _refuse() -> NoReturn:
    """Raise the error of a backend that does not take writes."""
    message = "this command takes no lease"
    raise BackendUnavailable(message)
