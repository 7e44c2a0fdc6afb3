"""The orders, in a SQLite file that all workers of a host share."""

from __future__ import annotations

import json
import os
import secrets
import sqlite3
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

TABLE: Final = """
CREATE TABLE IF NOT EXISTS orders (
  id TEXT PRIMARY KEY, key TEXT UNIQUE, amount TEXT NOT NULL, state TEXT NOT NULL, begun_at REAL NOT NULL,
  invoice_id TEXT UNIQUE, shown TEXT NOT NULL DEFAULT '{}', payment_id TEXT,
  checks INTEGER NOT NULL DEFAULT 0, checked_at REAL NOT NULL DEFAULT 0
);
"""
COLUMNS: Final = "id, amount, state, begun_at, invoice_id, shown, payment_id"
LONGEST_OPENING: Final = 120.0  # seconds; longer than any wait for QPay's answer, so the process that asked has died
MOST_CHECKS: Final = 5
CHECK_PAUSE: Final = 20.0
BUSY: Final = 30.0


class State(StrEnum):
    """The state of an order."""

    OPENING = "opening"  # a worker is asking QPay for the invoice
    OPEN = "open"  # it can be paid
    PAID = "paid"
    UNKNOWN = "unknown"  # QPay's answer was lost, the invoice may exist: never ask again automatically
    FAILED = "failed"  # QPay made no invoice: the shop may ask again


@dataclass(frozen=True, slots=True)
class Order:
    """One order; ``shown`` is the data for its page."""

    id: str
    amount: Decimal
    state: State
    invoice_id: str | None = None
    shown: dict[str, Any] = field(default_factory=dict[str, Any])
    payment_id: str | None = None


class Orders:
    """The table of orders. Each method is one transaction, and blocks; threads share one connection."""

    def __init__(self, path: str, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()  # guards _database
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        self._database = sqlite3.connect(path, timeout=BUSY, isolation_level=None, check_same_thread=False)
        _prepare(self._database)

    def claim(self, key: str | None, amount: Decimal) -> tuple[Order, bool]:
        """Return the order of a key, and whether the caller must make its invoice: exactly one caller must."""
        with self._transaction() as database:
            row = database.execute(f"SELECT {COLUMNS} FROM orders WHERE key = ?", [key]).fetchone()  # noqa: S608
            order = self._order(row)
            if order is not None and order.state is not State.FAILED:
                return order, False
            made = Order(secrets.token_urlsafe(16) if order is None else order.id, amount, State.OPENING)
            database.execute(
                "REPLACE INTO orders (id, key, amount, state, begun_at) VALUES (?, ?, ?, ?, ?)",
                [made.id, key, str(amount), made.state, self._clock()],
            )
            return made, True

    def opened(self, order_id: str, invoice_id: str, shown: dict[str, Any]) -> None:
        """Store the invoice of an order."""
        with self._transaction() as database:
            database.execute(
                "UPDATE orders SET state = ?, invoice_id = ?, shown = ? WHERE id = ?",
                [State.OPEN, invoice_id, json.dumps(shown), order_id],
            )

    def ended(self, order_id: str, state: State) -> None:
        """Record that an order got no invoice, or that QPay's answer was lost."""
        with self._transaction() as database:
            database.execute("UPDATE orders SET state = ? WHERE id = ?", [state, order_id])

    def paid(self, order_id: str, payment_id: str) -> bool:
        """Record that an order is paid. Returns ``True`` only for the first call."""
        with self._transaction() as database:
            changed = database.execute(
                "UPDATE orders SET state = ?, payment_id = ? WHERE id = ? AND state = ?",
                [State.PAID, payment_id, order_id, State.OPEN],
            )
            return changed.rowcount == 1

    def may_check(self, order_id: str) -> bool:
        """Return whether a customer's check of an order may go to QPay: rate-limited, and only a few times."""
        now = self._clock()
        with self._transaction() as database:
            changed = database.execute(
                "UPDATE orders SET checks = checks + 1, checked_at = ?"
                " WHERE id = ? AND state = ? AND checks < ? AND checked_at <= ?",
                [now, order_id, State.OPEN, MOST_CHECKS, now - CHECK_PAUSE],
            )
            return changed.rowcount == 1

    def get(self, order_id: str) -> Order | None:
        """Return an order."""
        return self._find("id", order_id)

    def of_invoice(self, invoice_id: str) -> Order | None:
        """Return the order of an invoice."""
        return self._find("invoice_id", invoice_id)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._database.close()

    def _find(self, column: str, value: str) -> Order | None:
        with self._lock:
            query = f"SELECT {COLUMNS} FROM orders WHERE {column} = ?"  # noqa: S608  (a constant column name)
            return self._order(self._database.execute(query, [value]).fetchone())

    def _order(self, row: tuple[Any, ...] | None) -> Order | None:
        """Return a row as an order. One that is opening for too long counts as unknown: its worker died."""
        if row is None:
            return None
        order_id, amount, text, begun_at, invoice_id, shown, payment_id = row
        state = State(text)
        if state is State.OPENING and begun_at < self._clock() - LONGEST_OPENING:
            state = State.UNKNOWN
        return Order(order_id, Decimal(amount), state, invoice_id, json.loads(shown), payment_id)

    @contextmanager
    def _transaction(self) -> Generator[sqlite3.Connection]:
        """Yield the connection in a transaction that excludes writes of other workers."""
        with self._lock:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")


def _prepare(database: sqlite3.Connection) -> None:
    """Make the table, with a write-ahead log; retry, because SQLite does not wait for another worker here."""
    deadline = time.monotonic() + BUSY
    while True:
        try:
            database.execute("PRAGMA journal_mode = WAL").close()
            database.executescript(TABLE)
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return
