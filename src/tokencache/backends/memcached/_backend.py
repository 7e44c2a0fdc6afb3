"""The memcached backend: ``memcached://host:port,host:port``, records and leases for a fleet, by pymemcache.

The record has the key ``K``, the lease ``K:lock`` and a cooldown ``K:cooldown``. All are on one server, which
pymemcache's rendezvous hash chooses for ``K``. A lease is taken by ``add``, and changed or freed by ``gets`` and
``cas``. There are no scripts and no wake-ups: a call takes up to three round trips, four if it leaves or replaces a
cooldown, and waiters poll every few milliseconds.

A lease that a process saw unchanged for its whole ``ttl``, by its own steady clock, has ended: its holder would have
extended it. The server counts whole seconds and may keep it up to a second longer.

After an eviction of a lease or a restart of the server, a second process may fetch. The fence decides which record
stays.
"""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from cachetools import LRUCache

from tokencache._fork import Stage, enrol, notice_fork
from tokencache._record import LARGEST_FENCE, fence_of, is_another, is_late, next_fence
from tokencache.backends._polling import PollPacer
from tokencache.backends.memcached._form import (
    Lease,
    lease_value,
    lock_expiry,
    lock_of,
    names_of,
    pause_of,
    pause_value,
    record_expiry,
    remaining_of,
)
from tokencache.backends.memcached._servers import Servers, check_library, prefix_of, read_servers, settings_of
from tokencache.errors import BackendClosed, BackendUnavailable, ConfigurationError
from tokencache.ports import Found, Granted, Held, LeaseGrant, Slot, Stored
from tokencache.shared import Shared

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from tokencache.backends.memcached._form import Lock, Names
    from tokencache.backends.memcached._servers import Server, Session, Spec
    from tokencache.backends.memcached._wire import Item
    from tokencache.health import Finding
    from tokencache.ports import Cooldown, LeaseReply
    from tokencache.url import BackendURL

_CONNECT_TIMEOUT: Final = 0.5
_TIMEOUT: Final = 1.0
_SHORTEST_PAUSE: Final = 0.005
_LONGEST_PAUSE: Final = 0.05
_GONE: Final = 1.0  # seconds for which a waiter tolerates a server that does not answer
_TRIES: Final = 8
_PORT: Final = 11211


class MemcachedBackend(Shared):
    """Shares records and leases over memcached.

    ``servers`` are one or several ``"host:port"`` or ``(host, port)``, the same for the whole fleet; the default is
    localhost. ``client`` is a pymemcache client whose servers, prefix, TLS and time-outs are copied; it is neither
    used nor closed. ``connect_timeout`` and ``timeout`` are in seconds, for a connection and for an answer. ``wall``
    gives epoch seconds and is for tests.
    """

    name = "memcached"

    def __init__(
        self,
        servers: Iterable[Spec] | Spec | None = None,
        *,
        client: object | None = None,
        connect_timeout: float = _CONNECT_TIMEOUT,
        timeout: float = _TIMEOUT,
        wall: Callable[[], float] = time.time,
    ) -> None:
        check_library()
        if client is not None and servers is not None:
            message = "MemcachedBackend: give either servers or client=…"
            raise ConfigurationError(message)
        if not (connect_timeout > 0 and timeout > 0):
            message = "MemcachedBackend: connect_timeout and timeout are more than 0 seconds"
            raise ConfigurationError(message)
        specs, taken = (read_servers(servers), {}) if client is None else settings_of(client)
        settings = {"connect_timeout": connect_timeout, "timeout": timeout, "no_delay": True} | taken
        self._servers = Servers(specs, settings)
        self._prefix = len(prefix_of(settings))
        self._wall = wall
        self._closing = threading.Event()
        self._pacer = PollPacer(_SHORTEST_PAUSE, _LONGEST_PAUSE)
        self._guard = threading.Lock()  # guards _fences, _sights
        self._fences: LRUCache[str, int] = LRUCache(10_000)
        self._sights: LRUCache[str, tuple[Item, float]] = LRUCache(10_000)  # a lock, unchanged since when
        enrol(Stage.CONNECTIONS, self.after_fork)

    def __repr__(self) -> str:
        """Return the servers."""
        return f"MemcachedBackend({', '.join(self._servers.names)!r})"

    def load(self, key: str) -> Stored | None:
        """Return the record, or ``None``; memcached does not report its remaining time."""
        record = self._names(key).record
        with self._server(record).session() as session:
            return _stored(session.read(record).get(record))

    def lease(self, key: str, owner: str, identity: str, seen: bytes | None, ttl: float) -> LeaseReply:
        """Ask for the lease: one round trip when the record is found or the lease held, three when it is granted."""
        record, lock, pause = names = self._names(key)
        with self._server(record).session() as session:
            for _ in range(_TRIES):
                items = session.read(record, lock, pause)
                stored = _stored(items.get(record))
                if stored is not None and is_another(stored.data, seen):
                    return Found(stored)

                held, now = self._seen(key, items.get(lock)), self._wall()
                again = isinstance(held, Lease) and held.owner == owner
                if not again and self._abandoned(key, items.get(lock), held):
                    held = None
                if held is not None and not again:
                    return Held(remaining_of(held, now))
                bound = None if again else _bound(items.get(pause), identity, now)
                if bound is not None:
                    return bound

                fence = held.fence if isinstance(held, Lease) else self._next_fence(key, seen, stored)
                if _put(session, lock, items.get(lock), Lease(fence, owner, now + ttl, ttl)):
                    grant = LeaseGrant(key, owner, fence, ttl)
                    return Granted(grant) if again else self._granted(session, names, grant, identity, seen)
            return Held(_LONGEST_PAUSE)  # each time another caller was first

    def commit(self, lease: LeaseGrant, data: bytes, ttl: float) -> bool:
        """Store the record, free the lease: three round trips; waiters see it at their next poll."""
        record, lock, _ = names = self._names(lease.key)
        with self._server(record).session() as session:
            for _ in range(_TRIES):
                items = session.read(record, lock)
                before, held = items.get(record), items.get(lock)
                own = held is not None and _is_of(held, lease)
                if is_late(lease.fence, None if before is None else before.data, held=own):
                    return False

                if before is None:
                    done = session.add(record, data, record_expiry(ttl))
                else:
                    done = session.replace(record, data, before, record_expiry(ttl))
                if done:
                    self._free(session, names, lease, items)
                    return True
            failure = "other processes keep changing the record; it was not stored"
            raise session.failure(failure)

    def release(self, lease: LeaseGrant, cooldown: Cooldown | None = None) -> None:
        """Free the lease if it is still the caller's, and store ``cooldown`` beside it."""
        record, lock, pause = names = self._names(lease.key)
        with self._server(record).session() as session:
            self._free(session, names, lease, session.read(lock, pause), cooldown)

    def extend(self, lease: LeaseGrant, ttl: float) -> bool:
        """Make the lease last ``ttl`` seconds from now."""
        record, lock, _ = self._names(lease.key)
        with self._server(record).session() as session:
            for _ in range(_TRIES):
                item = session.read(lock).get(lock)
                if item is None or not _is_of(item, lease):
                    return False
                if _put(session, lock, item, Lease(lease.fence, lease.owner, self._wall() + ttl, ttl)):
                    return True
            return False

    def wait(self, key: str, seen: bytes | None, timeout: float) -> Stored | None:
        """Poll every 5 to 50 ms, or slower, until the record changes, the lease is free, or the timeout has passed.

        An outage of less than a second does not end the wait. The holder is fetching, and after a restart not all
        waiters may go to the provider.
        """
        record, lock, _ = self._names(key)
        give_up = time.monotonic() + timeout
        with self._pacer:
            answered_at = time.monotonic()
            while True:
                try:
                    with self._server(record).session() as session:
                        items = session.read(record, lock)
                except BackendUnavailable:
                    if time.monotonic() >= min(give_up, answered_at + _GONE):
                        raise
                else:
                    answered_at = time.monotonic()
                    stored, held = _stored(items.get(record)), self._seen(key, items.get(lock))
                    if stored is not None and is_another(stored.data, seen):
                        return stored
                    if held is None or self._abandoned(key, items.get(lock), held):
                        return None

                left = give_up - time.monotonic()
                if left <= 0 or self._closing.wait(min(self._pacer.pause(), left)):
                    return None

    def discard(self, key: str, seen: bytes) -> bool:
        """Delete the record if its bytes are ``seen``."""
        record = self._names(key).record
        with self._server(record).session() as session:
            for _ in range(_TRIES):
                item = session.read(record).get(record)
                if item is None or item.data != seen:
                    return False
                if session.delete(record, item):
                    return True
            return False

    def inspect(self, key: str) -> Slot:
        """Report record, lease and cooldown: one round trip."""
        record, lock, pause = self._names(key)
        with self._server(record).session() as session:
            items = session.read(record, lock, pause)
        stored, held, now = _stored(items.get(record)), self._seen(key, items.get(lock)), self._wall()
        cooldown = _cooldown(items.get(pause), now)
        if held is None:
            return Slot(stored, remaining=None if cooldown is None else cooldown.remaining, cooldown=cooldown)
        owner = held.owner if isinstance(held, Lease) else "another program"
        return Slot(stored, owner, remaining_of(held, now), cooldown)

    def findings(self, key: str) -> Iterator[Finding]:
        """Check version, cas, evictions, room for an item and clocks (:mod:`tokencache.health`)."""
        from tokencache.backends.memcached._health import examine

        record = self._names(key).record
        return examine(self._servers, self._server(record))

    def close(self) -> None:
        """Close the connections and wake the waiters; later calls raise ``BackendClosed``."""
        self._closing.set()
        self._servers.close()

    def after_fork(self) -> None:
        """Start with fresh connections in the child of a fork."""
        self._guard = threading.Lock()
        self._pacer.after_fork()
        closed, self._closing = self._closing.is_set(), threading.Event()
        if closed:
            self._closing.set()
        self._servers.after_fork()

    def _names(self, key: str) -> Names:
        """Return the names of record, lock and cooldown."""
        return names_of(key, self._prefix)

    def _server(self, record: str) -> Server:
        """Return the server of a record; raises ``BackendClosed`` after ``close()``."""
        notice_fork()
        if self._closing.is_set():
            message = "the memcached backend is closed; make a new TokenCache"
            raise BackendClosed(message)
        return self._servers.of(record)

    def _granted(
        self, session: Session, names: Names, lease: LeaseGrant, identity: str, seen: bytes | None
    ) -> LeaseReply:
        """Read again: the last holder may have left a record or a cooldown between our read and our lease."""
        self._note(lease.key, lease.fence)
        items = session.read(*names)
        stored, pause = _stored(items.get(names.record)), items.get(names.cooldown)
        reply: LeaseReply | None
        if stored is not None and is_another(stored.data, seen):
            reply = Found(stored)
        else:
            reply = _bound(pause, identity, self._wall())
        if reply is not None:
            self._free(session, names, lease, items)
            return reply
        if pause is not None:  # of another identity, or ended
            session.delete(names.cooldown, pause)
        return Granted(lease)

    def _free(
        self,
        session: Session,
        names: Names,
        lease: LeaseGrant,
        items: Mapping[str, Item],
        cooldown: Cooldown | None = None,
    ) -> None:
        """Delete the lock if it is still the caller's; before that, store the cooldown, or a waiter would miss it."""
        for _ in range(_TRIES):
            item = items.get(names.lock)
            if item is None or not _is_of(item, lease):
                return
            left = cooldown is None or self._leave(session, names.cooldown, items.get(names.cooldown), cooldown)
            if left and session.delete(names.lock, item):
                return
            items = session.read(names.lock, names.cooldown)  # a heartbeat changed the lock meanwhile

    def _leave(self, session: Session, name: str, before: Item | None, cooldown: Cooldown) -> bool:
        """Store a cooldown if its item is still as it was ``before``; return whether it was."""
        value, expiry = pause_value(cooldown, self._wall()), lock_expiry(cooldown.remaining)
        if before is None:
            return session.add(name, value, expiry)
        return session.replace(name, value, before, expiry)

    def _seen(self, key: str, item: Item | None) -> Lock | None:
        """Return the content of a lock, and remember its fence: the next fence must be higher (INV-3)."""
        held = None if item is None else lock_of(item.data)
        if isinstance(held, Lease):
            self._note(key, held.fence)
        return held

    def _abandoned(self, key: str, item: Item | None, held: Lock | None) -> bool:
        """Return whether this process saw the lease unchanged for its whole ``ttl``."""
        if item is None or not isinstance(held, Lease):
            return False
        now = time.monotonic()
        with self._guard:
            seen, since = self._sights.get(key, (None, now))
            if seen != item:
                self._sights[key] = (item, now)
                return False
            return now - since >= held.ttl

    def _note(self, key: str, fence: int) -> None:
        with self._guard:
            self._fences[key] = max(fence, self._fences.get(key, 0))

    def _next_fence(self, key: str, seen: bytes | None, stored: Stored | None) -> int:
        """Return a fence above every known one: the wall clock in µs, or the highest plus one."""
        known = max(fence_of(data or b"") or 0 for data in (seen, stored and stored.data))
        with self._guard:
            return next_fence(self._wall(), known, self._fences.get(key, 0))


def from_url(url: BackendURL) -> MemcachedBackend:
    """Make the backend of ``memcached://host[:port],…[?timeout=…&connect_timeout=…]`` or ``memcached:///socket``."""
    if url.username or url.password:
        message = "memcached:// takes no user or password, because pymemcache cannot log in; remove them"
        raise ConfigurationError(message)
    if url.hosts and url.path.strip("/"):
        message = "memcached:// takes no path behind its hosts; remove it"
        raise ConfigurationError(message)
    options = url.typed_options({"timeout": "duration", "connect_timeout": "duration"})
    hosts: list[Spec] = [(host, port or _PORT) for host, port in url.hosts]
    sockets: list[Spec] = [url.path] if url.path.strip("/") else []
    return MemcachedBackend(
        hosts or sockets or None,
        connect_timeout=float(options.get("connect_timeout", _CONNECT_TIMEOUT)),
        timeout=float(options.get("timeout", _TIMEOUT)),
    )


def _stored(item: Item | None) -> Stored | None:
    """Return an item as a record."""
    return None if item is None else Stored(item.data, None)


def _put(session: Session, lock: str, before: Item | None, lease: Lease) -> bool:
    """Write a lease if the lock still has the content ``before``; return whether it had."""
    if before is None:
        return session.add(lock, lease_value(lease), lock_expiry(lease.ttl))
    return session.replace(lock, lease_value(lease), before, lock_expiry(lease.ttl))


def _is_of(item: Item, lease: LeaseGrant) -> bool:
    """Return whether the lock holds exactly this lease, not a later one of the same owner."""
    held = lock_of(item.data)
    return isinstance(held, Lease) and (held.owner, held.fence) == (lease.owner, min(lease.fence, LARGEST_FENCE))


def _cooldown(item: Item | None, now: float) -> Cooldown | None:
    """Return the cooldown of an item, with its remaining time; ``None`` if it is missing or has ended."""
    pause = None if item is None else pause_of(item.data)
    remaining = 0.0 if pause is None else remaining_of(pause, now)
    return None if pause is None or remaining <= 0 else replace(pause.cooldown, remaining=remaining)


def _bound(item: Item | None, identity: str, now: float) -> Held | None:
    """Return the answer to a caller whose identity is in a cooldown, ``None`` for any other caller."""
    cooldown = _cooldown(item, now)
    if cooldown is None or cooldown.identity != identity:
        return None
    return Held(cooldown.remaining, cooldown)
