"""The simulated store: the semantics of the lease protocol in true time; it reports each change to the referee."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from tokencache._record import fence_of, is_another, is_late
from tokencache.ports import Found, Granted, Held, LeaseGrant, Slot, Stored

if TYPE_CHECKING:
    from collections.abc import Callable

    from simulator._referee import Referee
    from simulator._time import Timeline
    from tokencache.ports import Cooldown, LeaseReply

_REMEMBERED: Final = 64
"""How many changes back a stale replica may be."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A record, and the instant at which the store's countdown ends."""

    data: bytes
    ends_at: float


@dataclass(frozen=True, slots=True)
class Lock:
    """A lease, or the cooldown in its place, and the instant at which it ends."""

    ends_at: float
    grant: LeaseGrant | None = None
    cooldown: Cooldown | None = None


class Watch:
    """A waiter for a record other than ``seen``, or for the lease to be free."""

    __slots__ = ("over", "seen", "wake")

    def __init__(self, seen: bytes | None, wake: Callable[[Stored | None], None]) -> None:
        self.seen = seen
        self.wake = wake
        self.over = False


class Store:
    """Performs backend effects at the instant of their arrival: its calls are those of a backend, without ``wait``.

    ``shares`` is true if a wake-up brings the record.
    """

    name = "simulated"

    def __init__(self, timeline: Timeline, referee: Referee, *, shares: bool) -> None:
        self._timeline = timeline
        self._referee = referee
        self._shares = shares
        self._records: dict[str, Entry] = {}
        self._locks: dict[str, Lock] = {}
        self._watches: dict[str, list[Watch]] = {}
        self._history: deque[tuple[float, str, Entry | None, Lock | None]] = deque(maxlen=_REMEMBERED)
        self._fence = 0

    # --- the protocol -------------------------------------------------------------------------------------------

    def load(self, key: str) -> Stored | None:
        """Return the record."""
        entry = self.entry(key)
        return None if entry is None else Stored(entry.data, entry.ends_at - self._timeline.now)

    def lease(self, key: str, owner: str, identity: str, seen: bytes | None, ttl: float) -> LeaseReply:
        """Ask for the lease."""
        now = self._timeline.now
        entry, lock = self.entry(key), self.lock(key)
        if entry is not None and is_another(entry.data, seen):
            return Found(Stored(entry.data, entry.ends_at - now))
        if lock is not None and lock.cooldown is not None and lock.cooldown.identity == identity:
            remaining = lock.ends_at - now
            return Held(remaining, replace(lock.cooldown, remaining=remaining))
        if lock is not None and lock.grant is not None:
            if lock.grant.owner != owner:
                return Held(lock.ends_at - now)
            fence = lock.grant.fence
        else:
            known = 0 if entry is None else fence_of(entry.data) or 0
            fence = self._fence = max(int(now * 1e6), self._fence + 1, known + 1)
        grant = LeaseGrant(key, owner, fence, ttl)
        self._set(key, entry, Lock(now + ttl, grant=grant))
        self._referee.granted(grant, entry)
        return Granted(grant)

    def commit(self, lease: LeaseGrant, data: bytes, ttl: float) -> bool:
        """Store the record, free the lease, wake the waiters."""
        entry, lock = self.entry(lease.key), self.lock(lease.key)
        mine = lock is not None and lock.grant is not None and lock.grant.fence == lease.fence
        if is_late(lease.fence, None if entry is None else entry.data, held=mine):
            return False
        self._referee.committed(lease, data, entry)
        self._set(lease.key, Entry(data, self._timeline.now + ttl), None if mine else lock)
        self._wake(lease.key)
        return True

    def release(self, lease: LeaseGrant, cooldown: Cooldown | None = None) -> None:
        """Free the lease, perhaps for a cooldown."""
        lock = self.lock(lease.key)
        self._referee.released(lease, cooldown)
        if lock is None or lock.grant is None or (lock.grant.owner, lock.grant.fence) != (lease.owner, lease.fence):
            return
        left = None if cooldown is None else Lock(self._timeline.now + cooldown.remaining, cooldown=cooldown)
        self._set(lease.key, self.entry(lease.key), left)
        self._wake(lease.key)

    def extend(self, lease: LeaseGrant, ttl: float) -> bool:
        """Extend the lease."""
        lock = self.lock(lease.key)
        if lock is None or lock.grant is None or (lock.grant.owner, lock.grant.fence) != (lease.owner, lease.fence):
            return False
        self._set(lease.key, self.entry(lease.key), Lock(self._timeline.now + ttl, grant=lock.grant))
        return True

    def discard(self, key: str, seen: bytes) -> bool:
        """Delete the record if its bytes are ``seen``."""
        entry = self.entry(key)
        if entry is None or entry.data != seen:
            return False
        self._referee.discarded(key, entry)
        self._set(key, None, self.lock(key))
        self._wake(key)
        return True

    def inspect(self, key: str) -> Slot:
        """Report record, lease and cooldown."""
        lock = self.lock(key)
        owner = None if lock is None or lock.grant is None else lock.grant.owner
        remaining = None if lock is None else lock.ends_at - self._timeline.now
        return Slot(self.load(key), owner, remaining, None if lock is None else lock.cooldown)

    def watch(self, key: str, seen: bytes | None, wake: Callable[[Stored | None], None]) -> Watch:
        """Call ``wake`` once the record differs from ``seen``, or the lease is free."""
        entry, lock = self.entry(key), self.lock(key)
        watch = Watch(seen, wake)
        if lock is None or (entry is not None and is_another(entry.data, seen)):
            self._rouse(watch, key)
        else:
            self._watches.setdefault(key, []).append(watch)
        return watch

    # --- losses ----------------------------------------------------------------------------------------------------

    def evict_record(self, key: str) -> None:
        """Evict the record."""
        self._set(key, None, self.lock(key))

    def evict_lock(self, key: str) -> None:
        """Evict the lease or cooldown."""
        self._set(key, self.entry(key), None)

    def flush(self, key: str) -> None:
        """Lose everything, including the highest fence, as a restart does."""
        self._set(key, None, None)
        self._fence = 0

    def fail_over(self, key: str, lag: float) -> None:
        """Take the state that a replica had ``lag`` seconds ago."""
        then = self._timeline.now - lag
        entry, lock = None, None
        for instant, changed, was_entry, was_lock in self._history:
            if changed == key and instant <= then:
                entry, lock = was_entry, was_lock
        self._set(key, entry, lock)

    def entry(self, key: str) -> Entry | None:
        """Return the current record."""
        entry = self._records.get(key)
        return entry if entry is not None and entry.ends_at > self._timeline.now else None

    def lock(self, key: str) -> Lock | None:
        """Return the current lease or cooldown."""
        lock = self._locks.get(key)
        return lock if lock is not None and lock.ends_at > self._timeline.now else None

    def _set(self, key: str, entry: Entry | None, lock: Lock | None) -> None:
        """Change a key as a whole, and record it for replicas."""
        if entry is None:
            self._records.pop(key, None)
        else:
            self._records[key] = entry
        if lock is None:
            self._locks.pop(key, None)
        else:
            self._locks[key] = lock
        self._history.append((self._timeline.now, key, entry, lock))

    def _wake(self, key: str) -> None:
        """Wake the waiters for this key."""
        for watch in self._watches.pop(key, ()):
            self._rouse(watch, key)

    def _rouse(self, watch: Watch, key: str) -> None:
        """Wake one."""
        if not watch.over:
            watch.over = True
            stored = self.load(key) if self._shares else None
            watch.wake(stored if stored is not None and is_another(stored.data, watch.seen) else None)
