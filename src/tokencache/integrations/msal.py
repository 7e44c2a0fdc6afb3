"""An MSAL token cache on a backend: ``ConfidentialClientApplication(…, token_cache=SharedTokenCache("redis://…"))``.

MSAL keeps accounts, refresh tokens and access tokens of many users in one cache, whose persistence it leaves to others;
the usual recipe loads all of it before and writes all of it after, so that of two writers the last undoes the first.
Here a change is made to what is stored, under the backend's lease, and stored under its fence (INV-3).

MSAL decides itself when to ask for a token, so this is not one login for the fleet, as a source is: processes that are
cold together may log in together. From then on all use what was stored.
"""

from __future__ import annotations

import json
import os
import threading
import time
from base64 import b64decode, b64encode
from collections import deque
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

import msal  # type: ignore[import-untyped]  # pyright: ignore[reportMissingTypeStubs]

from tokencache._fork import Stage, enrol, reset_backend
from tokencache.errors import BackendError
from tokencache.ports import Found, Granted, Held

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping, Sequence

    from tokencache._record import Sealing
    from tokencache.ports import Backend, LeaseGrant

__all__ = ["SharedTokenCache"]

_Base: Any = msal.SerializableTokenCache  # named in calls, as super() would lose that it has no types
_LEASE: Final = 3.0
_PATIENCE: Final = 3.0
"""How long a change waits for the lease. Then it stays here, and is stored with the next one."""
_UNSTORED: Final = 1_000
"""The most changes that are kept while the backend is away."""
_PROBE: Final = 1.0
"""How long a backend that failed is left alone."""
_MONTHS: Final = 90 * 86_400.0


class _Change(NamedTuple):
    """One call of MSAL's ``modify``: entry ``old`` of ``kind`` gets the fields ``new``, or is removed."""

    kind: str
    old: Mapping[str, Any]
    new: Mapping[str, Any] | None


class SharedTokenCache(_Base):  # type: ignore[misc]
    """MSAL's cache, shared by all processes that name the same ``backend`` and ``key``.

    ``backend`` is a URL, or a :class:`~tokencache.ports.Backend`, which is then not closed with the cache. ``key``
    names the record; give each application a key of its own, and a web application one for each user's session.
    ``lifetime`` is how long an unchanged record is kept, in seconds. ``encrypt`` seals what is stored, as for
    :class:`~tokencache.TokenCache`: a key, or several, of which the first encrypts; refresh tokens are worth it.

    What another process changed is seen by the next search. Without its backend the cache goes on with what it holds,
    and stores its own changes when the backend is back (INV-5). A refresh token that was refused is removed only if it
    is still the one that is stored. Safe between threads and over ``fork``.
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
        self._seen: bytes | None = None
        self._unstored: deque[_Change] = deque(maxlen=_UNSTORED)
        self._lock: Any = threading.RLock()  # MSAL's own; guards everything here, too
        self._depth = 0
        self._ask_at = 0.0
        enrol(Stage.CONNECTIONS, self._after_fork)

    def search(self, *args: Any, **kwargs: Any) -> Iterator[dict[str, Any]]:  # noqa: ANN401  (MSAL's parameters)
        """Return the matching entries of what is stored now."""
        with self._together():  # it removes what has expired as it goes
            self._read()
            return iter(list(_Base.search(self, *args, **kwargs)))

    def add(self, event: Mapping[str, Any], **kwargs: Any) -> None:  # noqa: ANN401
        """Take what MSAL obtained: several changes, stored at once."""
        with self._together():
            _Base.add(self, event, **kwargs)

    def modify(
        self, credential_type: str, old_entry: Mapping[str, Any], new_key_value_pairs: Mapping[str, Any] | None = None
    ) -> None:
        """Change or remove an entry; what MSAL does with its cache comes here."""
        with self._together():
            change = _Change(credential_type, dict(old_entry), new_key_value_pairs and dict(new_key_value_pairs))
            self._unstored.append(change)
            self._apply(change)

    def close(self) -> None:
        """Let go of the backend, if the cache opened it. What is stored stays."""
        if self._owned:
            self._backend.close()

    def __repr__(self) -> str:
        """Return backend and key, nothing of what is kept."""
        return f"<SharedTokenCache {self._key!r} on {getattr(self._backend, 'name', 'a backend')!r}>"

    @contextmanager
    def _together(self) -> Generator[None]:
        """Store what changes in the block when it ends, once for nested blocks."""
        with self._lock:
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
                if not self._depth and self._unstored:
                    self._store()

    def _apply(self, change: _Change) -> None:
        """Make a change here. A removal spares an entry that somebody has since renewed."""
        if not change.new:
            key = self.key_makers[change.kind](**change.old)
            mine = self._cache.get(change.kind, {}).get(key)
            if mine is None or mine.get("secret") != change.old.get("secret"):
                return
        _Base.modify(self, change.kind, change.old, change.new)

    def _read(self) -> None:
        """Take over what is stored, with the changes on top that are not."""
        with self._reachable() as asked:
            stored = self._backend.load(self._key) if asked else None
            if stored is not None and stored.data != self._seen:
                self._take(stored.data)

    @contextmanager
    def _reachable(self) -> Generator[bool]:
        """Tell whether the backend is worth asking, and bear its failure: INV-5, changes go along with the next one."""
        try:
            yield time.monotonic() >= self._ask_at
        except BackendError:
            self._ask_at = time.monotonic() + _PROBE

    def _take(self, data: bytes | None) -> None:
        """Take over a record with the changes on top. What is no record of ours, or none, leaves all as it is."""
        state = None if data is None else self._decode(data)
        if state is not None:
            self.deserialize(state)
            self._seen = data
            for change in self._unstored:
                self._apply(change)

    def _store(self) -> None:
        """Put the changes that are not stored yet on top of what is stored, and store that, while nobody else does."""
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
                with suppress(BackendError):  # it ends by itself
                    self._backend.release(lease)
                raise

    def _lease(self) -> tuple[LeaseGrant | None, bytes | None]:
        """Return the lease, if it comes in time, and the record that lies there."""
        owner = os.urandom(12).hex()
        ends_at = time.monotonic() + _PATIENCE
        stored = self._backend.load(self._key)
        seen = None if stored is None else stored.data
        while True:
            reply = self._backend.lease(self._key, owner, "msal", seen, _LEASE)
            match reply:
                case Granted(lease=lease):
                    return lease, seen
                case Found(stored=newer):
                    seen = newer.data
                case Held(remaining=remaining):
                    left = ends_at - time.monotonic()
                    if left <= 0:
                        return None, seen
                    woken = self._backend.wait(self._key, seen, min(remaining, left))
                    seen = seen if woken is None else woken.data

    def _encode(self, fence: int) -> bytes:
        """Return the record: MSAL's own JSON, sealed or not, under a fence that backends can read."""
        state: str = self.serialize()
        if self._sealing is None:
            return json.dumps({"v": 1, "fence": fence, "msal": state}).encode()
        sealed = b64encode(self._sealing.seal(self._key, state.encode())).decode()
        return json.dumps({"v": 1, "fence": fence, "sealed": sealed}).encode()

    def _decode(self, data: bytes) -> str | None:
        """Return MSAL's JSON of a record, or ``None`` for what is none, or does not open."""
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
        """Give the child of a fork a lock and connections of its own."""
        self._lock = threading.RLock()
        self._depth = 0
        reset_backend(self._backend)
