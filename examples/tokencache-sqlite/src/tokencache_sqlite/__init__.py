"""Tokens and leases of ``sqlite://`` URLs in a SQLite file, for the processes of one host.

:class:`tokencache.ports.Backend` specifies each method, and the contract tests it. Three rules hold for any store. Each
call is one atomic step. An error of the store becomes ``BackendUnavailable``. The backend does not decide when a token
is fetched.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from tokencache import BackendClosed, BackendUnavailable
from tokencache.ports import Cooldown, Found, Granted, Held, LeaseGrant, LeaseReply, Slot, Stored
from tokencache.records import fence_of, is_another, is_late

if TYPE_CHECKING:
    from collections.abc import Generator

    from tokencache.url import BackendURL

__all__ = ["SqliteBackend", "from_url"]

TABLES = """
CREATE TABLE IF NOT EXISTS record (key BLOB PRIMARY KEY, data BLOB, ends REAL);
CREATE TABLE IF NOT EXISTS slot (key BLOB PRIMARY KEY, owner TEXT, fence INTEGER, ends REAL, cooldown TEXT);
"""


class SqliteBackend:
    """One transaction per call; SQLite's lock makes it atomic between processes."""

    name = "sqlite"

    def __init__(self, path: str) -> None:
        self._path = path
        self._closed = False
        with self._at("") as (database, _, _now):
            database.executescript(TABLES)

    def load(self, key: str) -> Stored | None:
        """Return the record, ``None`` if it is missing or has ended."""
        with self._at(key) as (database, name, now):
            return _stored(database, name, now)

    def lease(self, key: str, owner: str, identity: str, seen: bytes | None, ttl: float) -> LeaseReply:
        """Return ``Found`` for another record than the one seen, ``Held`` for another's lease, else ``Granted``."""
        with self._at(key) as (database, name, now):
            stored = _stored(database, name, now)
            if stored is not None and is_another(stored.data, seen):
                return Found(stored)
            row = database.execute("SELECT owner, fence, ends, cooldown FROM slot WHERE key = ?", [name]).fetchone()
            holder, last, ends, left = row or (None, 0, 0.0, None)
            live = ends > now
            if live and left is not None:
                cooldown = Cooldown(**json.loads(left))
                if cooldown.identity == identity:
                    return Held(ends - now, replace(cooldown, remaining=ends - now))
            elif live and holder not in (owner, None):
                return Held(ends - now)
            known = (stored and fence_of(stored.data)) or 0
            fence = last if live and holder == owner else max(time.time_ns() // 1000, last + 1, known + 1)
            database.execute("REPLACE INTO slot VALUES (?, ?, ?, ?, NULL)", [name, owner, fence, now + ttl])
            return Granted(LeaseGrant(key, owner, fence, ttl))

    def commit(self, lease: LeaseGrant, data: bytes, ttl: float) -> bool:
        """Store the record and free the lease, unless a newer record is there."""
        with self._at(lease.key) as (database, name, now):
            stored = _stored(database, name, now)
            mine = [name, lease.owner, lease.fence, now]
            held = database.execute(
                "SELECT 1 FROM slot WHERE key = ? AND owner = ? AND fence = ? AND ends > ?", mine
            ).fetchone()
            if is_late(lease.fence, None if stored is None else stored.data, held=held is not None):
                return False
            database.execute("REPLACE INTO record VALUES (?, ?, ?)", [name, data, now + ttl])
            _free(database, name, lease, now, None)
            return True

    def release(self, lease: LeaseGrant, cooldown: Cooldown | None = None) -> None:
        """Free the lease if it is still this owner's."""
        with self._at(lease.key) as (database, name, now):
            _free(database, name, lease, now, cooldown)

    def extend(self, lease: LeaseGrant, ttl: float) -> bool:
        """Prolong the lease if it is still this owner's."""
        with self._at(lease.key) as (database, name, now):
            mine = [now + ttl, name, lease.owner, lease.fence, now]
            change = "UPDATE slot SET ends = ? WHERE key = ? AND owner = ? AND fence = ? AND ends > ?"
            return database.execute(change, mine).rowcount == 1

    def wait(self, key: str, seen: bytes | None, timeout: float) -> None:
        """Poll until something changes; if your store can notify waiters, use that instead."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            slot = self.inspect(key)
            if slot.owner is None or (slot.stored is not None and is_another(slot.stored.data, seen)):
                return
            threading.Event().wait(min(0.02, max(0.0, end - time.monotonic())))

    def discard(self, key: str, seen: bytes) -> bool:
        """Delete the record if it is the one seen."""
        with self._at(key) as (database, name, _):
            return database.execute("DELETE FROM record WHERE key = ? AND data = ?", [name, seen]).rowcount == 1

    def inspect(self, key: str) -> Slot:
        """Report record, lease and cooldown."""
        with self._at(key) as (database, name, now):
            stored = _stored(database, name, now)
            row = database.execute("SELECT owner, ends, cooldown FROM slot WHERE key = ? AND ends > ?", [name, now])
            owner, ends, left = row.fetchone() or (None, now, None)
            if left is None:
                return Slot(stored, owner, None if owner is None else ends - now)
            cooldown = replace(Cooldown(**json.loads(left)), remaining=ends - now)
            return Slot(stored, remaining=ends - now, cooldown=cooldown)

    def close(self) -> None:
        """Refuse further calls; the records stay."""
        self._closed = True

    @contextmanager
    def _at(self, key: str) -> Generator[tuple[sqlite3.Connection, bytes, float]]:
        """Open the file, run one transaction, and translate errors of SQLite."""
        if self._closed:
            raise BackendClosed(f"the {self.name} backend is closed; make a new TokenCache")
        try:
            with closing(sqlite3.connect(self._path, timeout=2.0, isolation_level="IMMEDIATE")) as database, database:
                database.execute("BEGIN IMMEDIATE")
                yield database, key.encode("utf-8", "surrogatepass"), time.time()
        except sqlite3.Error as error:
            raise BackendUnavailable(f"{self.name} at {self._path}: {type(error).__name__}; check the file") from error


def _stored(database: sqlite3.Connection, name: bytes, now: float) -> Stored | None:
    """Return the record, ``None`` if it is missing or has ended."""
    row = database.execute("SELECT data, ends FROM record WHERE key = ? AND ends > ?", [name, now]).fetchone()
    return Stored(row[0], row[1] - now) if row else None


def _free(database: sqlite3.Connection, name: bytes, lease: LeaseGrant, now: float, left: Cooldown | None) -> None:
    """Free the slot if this owner holds it, and store the cooldown if one is given."""
    ends, text = (now + left.remaining, json.dumps(asdict(left))) if left else (0.0, None)
    change = (
        "UPDATE slot SET owner = NULL, ends = ?, cooldown = ? WHERE key = ? AND owner = ? AND fence = ? AND ends > ?"
    )
    database.execute(change, [ends, text, name, lease.owner, lease.fence, now])


def from_url(url: BackendURL) -> SqliteBackend:
    """Make the backend of ``sqlite:///path``; raises ``ConfigurationError`` for any option."""
    url.typed_options({})
    return SqliteBackend(url.path)
