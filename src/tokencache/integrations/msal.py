"""An MSAL token cache on a backend: ``ConfidentialClientApplication(…, token_cache=SharedTokenCache("redis://…"))``.

MSAL keeps accounts, refresh tokens and access tokens of many users in one cache, and leaves its persistence to the
application. The usual recipe loads and writes the whole cache, so the last of two writers undoes the first. This cache
applies each change to the stored record under the backend's lease, and stores it with the fence (INV-3).

MSAL itself decides when to ask for a token, so this is not one login for the fleet: processes that start together may
each log in. After that all use the stored tokens.
"""

from __future__ import annotations

import json
import os
import time
from base64 import b64decode, b64encode
from collections import deque
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

import msal  # type: ignore[import-untyped]  # pyright: ignore[reportMissingTypeStubs]

from tokencache._fork import LateLock, Stage, enrol, notice_fork, reset_backend
from tokencache.errors import BackendError
from tokencache.ports import Found, Granted, Held

if TYPE_CHECKING:
    import threading
    from collections.abc import Generator, Iterator, Mapping, Sequence

    from tokencache._record import Sealing
    from tokencache.ports import Backend, LeaseGrant

__all__ = ["SharedTokenCache"]

_Base: Any = msal.SerializableTokenCache  # calls name it instead of super(), to keep the type Any
_LEASE: Final = 3.0
_PATIENCE: Final = 3.0
"""How long a change waits for the lease; after that it is stored with the next change."""
_PAUSE: Final = 0.02
"""The least seconds between two requests for the lease, from the second on."""
_UNSTORED: Final = 1_000
"""The maximum number of changes kept during an outage of the backend."""
_PROBE: Final = 1.0
"""The seconds between two attempts on a failed backend."""
_MONTHS: Final = 90 * 86_400.0


class _Change(NamedTuple):
    """One call of MSAL's ``modify``: entry ``old`` of ``kind`` gets the fields ``new``, or is removed."""

    kind: str
    old: Mapping[str, Any]
    new: Mapping[str, Any] | None


class SharedTokenCache(_Base):  # type: ignore[misc]
    """MSAL's cache, shared by all processes that name the same ``backend`` and ``key``.

    ``backend`` is a URL, or a :class:`~tokencache.ports.Backend`, which the cache then does not close. ``key`` names
    the record: use one key per application, in a web application one per user session. ``lifetime`` is how long an
    unchanged record is kept, in seconds. ``encrypt`` encrypts the record, as for :class:`~tokencache.TokenCache`: one
    key or several, of which the first encrypts. Use it, because the record holds refresh tokens.

    The next search sees what another process changed. During an outage of its backend the cache uses what it holds, and
    stores its changes afterwards (INV-5). A refused refresh token is removed only if it is still the stored one. Safe
    between threads and over ``fork``.
    """

    def __init__(
        self,
        backend: str | Backend,
        *,
        key: str,
        lifetime: float = _MONTHS,
        encrypt: str | bytes | Sequence[str | bytes] | None = None,
    ) -> None:
        _Base.__init__(self)
        self._owned = isinstance(backend, str)
        if isinstance(backend, str):
            from tokencache.plugins import open_backend

            backend = open_backend(backend)
        self._sealing: Sealing | None = None
        if encrypt is not None:
            from tokencache._crypto import sealing_of

            self._sealing = sealing_of(encrypt)
        self._backend = backend
        self._key = key
        self._lifetime = lifetime
        self._locks = LateLock("RLock")  # of MSAL; guards the attributes below too
        self._seen: bytes | None = None
        self._unstored: deque[_Change] = deque(maxlen=_UNSTORED)
        self._depth = 0
        self._ask_at = 0.0
        enrol(Stage.CONNECTIONS, self._after_fork)

    @property
    def _lock(self) -> threading.Lock:
        """MSAL's own lock, in this process; also MSAL's methods take it."""
        notice_fork()
        return self._locks()

    @_lock.setter
    def _lock(self, lock: object) -> None:
        """Ignore the lock that MSAL made with the cache."""

    def search(self, *args: Any, **kwargs: Any) -> Iterator[dict[str, Any]]:  # noqa: ANN401  (MSAL's parameters)
        """Return the matching entries of the stored record."""
        with self._together():  # a search also removes expired entries
            self._read()
            return iter(list(_Base.search(self, *args, **kwargs)))

    def add(self, event: Mapping[str, Any], **kwargs: Any) -> None:  # noqa: ANN401
        """Add what MSAL obtained: several changes, stored together."""
        with self._together():
            _Base.add(self, event, **kwargs)

    def modify(
        self, credential_type: str, old_entry: Mapping[str, Any], new_key_value_pairs: Mapping[str, Any] | None = None
    ) -> None:
        """Change or remove an entry; all changes by MSAL pass here."""
        with self._together():
            change = _Change(credential_type, dict(old_entry), new_key_value_pairs and dict(new_key_value_pairs))
            self._unstored.append(change)
            self._apply(change)

    def close(self) -> None:
        """Close the backend if the cache opened it. The record stays."""
        if self._owned:
            self._backend.close()

    def __repr__(self) -> str:
        """Return backend and key, never an entry."""
        return f"<SharedTokenCache {self._key!r} on {getattr(self._backend, 'name', 'a backend')!r}>"

    @contextmanager
    def _together(self) -> Generator[None]:
        """Store the changes of the block at its end; nested blocks store once."""
        with self._lock:
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
                if not self._depth and self._unstored:
                    self._store()

    def _apply(self, change: _Change) -> None:
        """Apply a change in memory. A removal keeps an entry that another process has renewed since."""
        if not change.new:
            key = self.key_makers[change.kind](**change.old)
            mine = self._cache.get(change.kind, {}).get(key)
            if mine is None or mine.get("secret") != change.old.get("secret"):
                return
        _Base.modify(self, change.kind, change.old, change.new)

    def _read(self) -> None:
        """Load the stored record and apply the changes that are not stored yet."""
        with self._reachable() as asked:
            stored = self._backend.load(self._key) if asked else None
            if stored is not None and stored.data != self._seen:
                self._take(stored.data)

    @contextmanager
    def _reachable(self) -> Generator[bool]:
        """Yield whether to ask the backend, and suppress its failure: the next change is stored with these (INV-5)."""
        try:
            yield time.monotonic() >= self._ask_at
        except BackendError:
            self._ask_at = time.monotonic() + _PROBE

    def _take(self, data: bytes | None) -> None:
        """Load a record and apply the unstored changes; a missing or unreadable record changes nothing."""
        state = None if data is None else self._decode(data)
        if state is not None:
            self.deserialize(state)
            self._seen = data
            for change in self._unstored:
                self._apply(change)

    def _store(self) -> None:
        """Apply the unstored changes to the stored record and store the result, under the lease."""
        with self._reachable() as asked:
            lease, data = self._lease() if asked else (None, None)
            if lease is None:
                return

            try:
                self._take(data)
                record = self._encode(lease.fence)
                if self._backend.commit(lease, record, self._lifetime):
                    self._seen = record
                    self._unstored.clear()
            except BaseException:
                with suppress(BackendError):  # the lease expires by itself
                    self._backend.release(lease)
                raise

    def _lease(self) -> tuple[LeaseGrant | None, bytes | None]:
        """Return the lease, ``None`` if it was not granted in time, and the stored record."""
        owner = os.urandom(12).hex()
        ends_at = time.monotonic() + _PATIENCE
        stored = self._backend.load(self._key)
        seen = None if stored is None else stored.data
        pause = 0.0
        while True:
            reply = self._backend.lease(self._key, owner, "msal", seen, _LEASE)
            if isinstance(reply, Granted):
                return reply.lease, seen
            if isinstance(reply, Found):
                seen = reply.stored.data
            left = ends_at - time.monotonic()
            if left <= 0:
                return None, seen
            time.sleep(min(pause, left))  # a store whose answer never changes must not keep this loop busy
            pause = _PAUSE
            if isinstance(reply, Held):
                woken = self._backend.wait(self._key, seen, min(reply.remaining, left))
                seen = seen if woken is None else woken.data

    def _encode(self, fence: int) -> bytes:
        """Return the record: MSAL's own JSON, sealed or not, with a fence that backends can read."""
        state: str = self.serialize()
        if self._sealing is None:
            return json.dumps({"v": 1, "fence": fence, "msal": state}).encode()
        sealed = b64encode(self._sealing.seal(self._key, state.encode())).decode()
        return json.dumps({"v": 1, "fence": fence, "sealed": sealed}).encode()

    def _decode(self, data: bytes) -> str | None:
        """Return MSAL's JSON of a record, ``None`` if the data are not such a record or cannot be decrypted."""
        try:
            fields = cast("dict[str, str]", json.loads(data))
            if self._sealing is None:
                state = fields["msal"]
            else:
                state = self._sealing.open(self._key, b64decode(fields["sealed"], validate=True)).decode()
            return state if isinstance(json.loads(state), dict) else None
        except Exception:  # noqa: BLE001  (a sealing may raise anything)
            return None

    def _after_fork(self) -> None:
        """Make a new lock and new connections in the child of a fork."""
        self._locks = LateLock("RLock")
        self._depth = 0
        reset_backend(self._backend)
