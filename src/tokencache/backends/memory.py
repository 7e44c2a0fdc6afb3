"""The memory backend: records and leases of one process, in a bounded LRU cache that drops ended entries."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cachetools import TLRUCache

from tokencache._engine.clock import steady_clock
from tokencache._fork import Stage, enrol
from tokencache._record import fence_of, is_another, is_late, next_fence
from tokencache.errors import BackendClosed, ConfigurationError
from tokencache.ports import Found, Granted, Held, LeaseGrant, Slot, Stored
from tokencache.shared import Shared

if TYPE_CHECKING:
    from tokencache.health import Finding
    from tokencache.ports import AsyncBackend, Clock, Cooldown, LeaseReply
    from tokencache.url import BackendURL

_LARGEST = 10_000


@dataclass(frozen=True, slots=True)
class _Record:
    """The bytes of a record, and the instant at which it ends."""

    data: bytes
    ends_at: float


@dataclass(frozen=True, slots=True)
class _Slot:
    """A lease, or the cooldown after a failed fetch, and the instant at which it ends."""

    ends_at: float
    lease: LeaseGrant | None = None
    cooldown: Cooldown | None = None


def _end_of_record(_key: str, value: _Record, _now: float) -> float:
    """Return when a record ends, for the cache."""
    return value.ends_at


def _end_of_slot(_key: str, value: _Slot, _now: float) -> float:
    """Return when a lease or cooldown ends, for the cache."""
    return value.ends_at


class MemoryBackend(Shared):
    """Keeps at most ``size`` records in this process; LRU eviction makes room.

    Sources that share one instance share its tokens. Only ``wait`` blocks, so event loops call the others inline.
    """

    name = "memory"

    def __init__(self, size: int = _LARGEST, *, clock: Clock | None = None) -> None:
        if size < 1:
            message = f"MemoryBackend(size={size}): give room for at least one record"
            raise ConfigurationError(message)
        self._clock = clock or steady_clock()
        self._changed = threading.Condition()  # guards everything below
        self._records: TLRUCache[str, _Record] = TLRUCache(size, _end_of_record, timer=self._clock)
        self._slots: TLRUCache[str, _Slot] = TLRUCache(size, _end_of_slot, timer=self._clock)
        self._fence = 0
        self._closed = False
        enrol(Stage.CONNECTIONS, self.after_fork)

    def load(self, key: str) -> Stored | None:
        """Return the record, or ``None``."""
        with self._changed:
            self._require_open()
            return self._stored(key)

    def lease(self, key: str, owner: str, identity: str, seen: bytes | None, ttl: float) -> LeaseReply:
        """Ask for the lease."""
        with self._changed:
            self._require_open()
            now = self._clock()
            stored = self._stored(key)
            if stored is not None and is_another(stored.data, seen):
                return Found(stored)

            slot = self._slots.get(key)
            if slot is not None and slot.cooldown is not None and slot.cooldown.identity == identity:
                remaining = slot.ends_at - now
                return Held(remaining, replace(slot.cooldown, remaining=remaining))
            if slot is not None and slot.lease is not None:
                if slot.lease.owner != owner:
                    return Held(slot.ends_at - now)
                fence = slot.lease.fence
            else:
                known = None if stored is None else fence_of(stored.data)
                fence = self._fence = next_fence(time.time(), known, self._fence)
            grant = LeaseGrant(key, owner, fence, ttl)
            self._slots[key] = _Slot(now + ttl, lease=grant)
            return Granted(grant)

    def commit(self, lease: LeaseGrant, data: bytes, ttl: float) -> bool:
        """Store, free the lease, wake the waiters."""
        with self._changed:
            self._require_open()
            stored = self._stored(lease.key)
            if is_late(lease.fence, None if stored is None else stored.data, held=self._holds(lease)):
                return False
            self._records[lease.key] = _Record(data, self._clock() + ttl)
            self._free(lease)
            return True

    def release(self, lease: LeaseGrant, cooldown: Cooldown | None = None) -> None:
        """Free the lease if it is still the caller's."""
        with self._changed:
            if self._free(lease) and cooldown is not None:
                self._slots[lease.key] = _Slot(self._clock() + cooldown.remaining, cooldown=cooldown)

    def extend(self, lease: LeaseGrant, ttl: float) -> bool:
        """Prolong the lease if it is still the caller's."""
        with self._changed:
            self._require_open()
            if not self._holds(lease):
                return False
            self._slots[lease.key] = _Slot(self._clock() + ttl, lease=lease)
            return True

    def wait(self, key: str, seen: bytes | None, timeout: float) -> None:
        """Wait until the record changes, the lease is free, or the timeout has passed."""
        with self._changed:
            if not self._is_settled(key, seen):
                self._changed.wait(timeout)

    def discard(self, key: str, seen: bytes) -> bool:
        """Delete the record if its bytes are ``seen``."""
        with self._changed:
            self._require_open()
            record = self._records.get(key)
            if record is None or record.data != seen:
                return False
            del self._records[key]
            self._changed.notify_all()
            return True

    def inspect(self, key: str) -> Slot:
        """Report record, lease and cooldown."""
        with self._changed:
            self._require_open()
            stored = self._stored(key)
            slot = self._slots.get(key)
            if slot is None:
                return Slot(stored)
            remaining = slot.ends_at - self._clock()
            if slot.cooldown is not None:
                return Slot(stored, remaining=remaining, cooldown=replace(slot.cooldown, remaining=remaining))
            return Slot(stored, None if slot.lease is None else slot.lease.owner, remaining)

    def findings(self, key: str) -> tuple[Finding, ...]:
        """Warn that memory is not shared (:mod:`tokencache.health`)."""
        from tokencache.health import warning

        del key
        remedy = "use file:// for the processes of one host, redis:// or memcached:// for a fleet"
        return (warning("sharing", "memory:// is not shared: each process fetches a token for itself", remedy),)

    def close(self) -> None:
        """Refuse further calls and wake the waiters."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def aio(self) -> AsyncBackend:
        """Return the half for event loops."""
        from tokencache.backends._threaded import InlineBackend

        return InlineBackend(self)

    def after_fork(self) -> None:
        """Start with a fresh lock in the child of a fork; the parent's leases are not the child's."""
        self._changed = threading.Condition()
        self._slots.clear()

    def _stored(self, key: str) -> Stored | None:
        """Return the record with its remaining countdown."""
        record = self._records.get(key)
        return None if record is None else Stored(record.data, record.ends_at - self._clock())

    def _is_settled(self, key: str, seen: bytes | None) -> bool:
        """Return whether there is nothing to wait for."""
        stored = self._stored(key)
        return key not in self._slots or (stored is not None and is_another(stored.data, seen)) or self._closed

    def _holds(self, lease: LeaseGrant) -> bool:
        """Return whether the slot holds exactly this lease, not a later one of the same owner."""
        slot = self._slots.get(lease.key)
        held = None if slot is None else slot.lease
        return held is not None and (held.owner, held.fence) == (lease.owner, lease.fence)

    def _free(self, lease: LeaseGrant) -> bool:
        """Empty the slot if it holds ``lease``, and wake the waiters."""
        if not self._holds(lease):
            return False
        del self._slots[lease.key]
        self._changed.notify_all()
        return True

    def _require_open(self) -> None:
        """Raise ``BackendClosed`` after ``close()``."""
        if self._closed:
            message = "the memory backend is closed; make a new TokenCache"
            raise BackendClosed(message)


def from_url(url: BackendURL) -> MemoryBackend:
    """Make the backend of ``memory://[?size=N]``."""
    options = url.typed_options({"size": int})
    size = options.get("size", _LARGEST)
    return MemoryBackend(size) if isinstance(size, int) else MemoryBackend()
