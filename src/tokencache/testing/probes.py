"""Probes: one half of a backend behind plain calls; and the values that the laws of the contract use."""

# ruff: noqa: S101 - an answer of the wrong kind fails the law

from __future__ import annotations

import asyncio
import json
import threading
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from tokencache.ports import Cooldown, Found, Granted, Held

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from tokencache.ports import AsyncBackend, Backend, LeaseGrant, LeaseReply, Slot, Stored

T = TypeVar("T")

KEY: Final = "contract:token"
LONG: Final = 30.0
HOSTILE_KEYS: Final = (
    "a",
    "A",
    " a",
    "a ",
    "a b",
    "a/b",
    "a\\b",
    "../a",
    "/a",
    ".",
    "a\nb",
    "a\r\nb",
    "a\r\nset b 0 0 1\r\n1",
    "a\x00b",
    "{a}b",
    "a{b",
    "a*",
    "%61",
    "é",  # NFC
    "e\u0301",  # NFD
    "\u212a",  # the Kelvin sign, which lower-cases to k
    "k",
    "\ud800",
    "\ud801",
    "k" * 10_000,
    "k" * 10_001,
    "é" * 5_000,
)


def record(fence: int | None, value: str = "token") -> bytes:
    """Return a record of the token ``value``; without a fence, as another program would write it."""
    table: dict[str, object] = {"accessToken": value, "expiresAt": 4102444800}
    if fence is not None:
        table |= {"v": 1, "fence": fence}
    return json.dumps(table).encode()


def cooldown(remaining: float = LONG) -> Cooldown:
    """Return a cooldown with a value in every field."""
    return Cooldown(
        identity="identity",
        remaining=remaining,
        permanent=True,
        attempt=3,
        message='\u0425\u04af\u0441\u044d\u043b\u0442 "quoted" \U0001f512\r\n',
        error="invalid_client",
        status=401,
    )


def granted(reply: LeaseReply) -> LeaseGrant:
    """Return the lease that was granted; any other reply is a failure."""
    assert isinstance(reply, Granted), f"expected the lease, got {reply!r}"
    return reply.lease


def held(reply: LeaseReply) -> Held:
    """Return the reply ``Held``; any other reply is a failure."""
    assert isinstance(reply, Held), f"expected Held, got {reply!r}"
    return reply


def found(reply: LeaseReply) -> Stored:
    """Return the record that was found; any other reply is a failure."""
    assert isinstance(reply, Found), f"expected the record, got {reply!r}"
    return reply.stored


class Probe(Protocol):
    """One half of a backend, called from threads; each method does the same as in ``Backend``."""

    def load(self, key: str) -> Stored | None:
        """Return the record."""
        ...

    def lease(self, key: str, owner: str, identity: str, seen: bytes | None, ttl: float) -> LeaseReply:
        """Ask for the lease."""
        ...

    def commit(self, lease: LeaseGrant, data: bytes, ttl: float) -> bool:
        """Store the record and free the lease."""
        ...

    def release(self, lease: LeaseGrant, cooldown: Cooldown | None = None) -> None:
        """Free the lease."""
        ...

    def extend(self, lease: LeaseGrant, ttl: float) -> bool:
        """Prolong the lease."""
        ...

    def wait(self, key: str, seen: bytes | None, timeout: float) -> Stored | None:
        """Wait for a change."""
        ...

    def discard(self, key: str, seen: bytes) -> bool:
        """Compare and delete."""
        ...

    def inspect(self, key: str) -> Slot:
        """Report record, lease and cooldown."""
        ...

    def close(self) -> None:
        """Close the half."""
        ...


class AsyncProbe:
    """The async half of a backend behind calls for threads: each runs on one event loop in its own thread."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="contract-loop")
        self._thread.start()
        self._started.wait()

    async def _serve(self) -> None:
        from tokencache.backends._threaded import async_half

        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._half: AsyncBackend = async_half(self._backend)
        self._started.set()
        await self._stop.wait()
        await self._half.close()

    def _run(self, call: Coroutine[object, object, T]) -> T:
        return asyncio.run_coroutine_threadsafe(call, self._loop).result()

    def stop(self) -> None:
        """Close the half, end the loop and its thread."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def load(self, key: str) -> Stored | None:
        """Return the record."""
        return self._run(self._half.load(key))

    def lease(self, key: str, owner: str, identity: str, seen: bytes | None, ttl: float) -> LeaseReply:
        """Ask for the lease."""
        return self._run(self._half.lease(key, owner, identity, seen, ttl))

    def commit(self, lease: LeaseGrant, data: bytes, ttl: float) -> bool:
        """Store the record and free the lease."""
        return self._run(self._half.commit(lease, data, ttl))

    def release(self, lease: LeaseGrant, cooldown: Cooldown | None = None) -> None:
        """Free the lease."""
        self._run(self._half.release(lease, cooldown))

    def extend(self, lease: LeaseGrant, ttl: float) -> bool:
        """Prolong the lease."""
        return self._run(self._half.extend(lease, ttl))

    def wait(self, key: str, seen: bytes | None, timeout: float) -> Stored | None:
        """Wait for a change."""
        return self._run(self._half.wait(key, seen, timeout))

    def discard(self, key: str, seen: bytes) -> bool:
        """Compare and delete."""
        return self._run(self._half.discard(key, seen))

    def inspect(self, key: str) -> Slot:
        """Report record, lease and cooldown."""
        return self._run(self._half.inspect(key))

    def close(self) -> None:
        """Close the half."""
        self._run(self._half.close())
