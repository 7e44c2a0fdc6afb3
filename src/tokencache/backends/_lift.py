"""Lifting: the async half of a backend that has only the half for threads."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, TypeVar, cast

from tokencache.errors import BackendClosed

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import ThreadPoolExecutor

    from tokencache.ports import AsyncBackend, Backend, Cooldown, LeaseGrant, LeaseReply, Slot, Stored

T = TypeVar("T")


class ThreadedBackend:
    """Runs each call of a backend on a thread of a pool of its own, so that waiting ones starve nobody else's pool."""

    def __init__(self, backend: Backend, threads: int = 32) -> None:
        self._backend = backend
        self._threads = threads
        self._lock = threading.Lock()  # guards _pool
        self._pool: ThreadPoolExecutor | None = None

    async def _run(self, call: Callable[[], T]) -> T:
        """Run ``call`` on the pool."""
        import asyncio

        with self._lock:
            if self._pool is None:
                from concurrent.futures import ThreadPoolExecutor

                self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="tokencache-backend")
            pool = self._pool
        try:
            future = pool.submit(call)
        except RuntimeError as error:
            message = "the interpreter is shutting down; no new calls to the backend are possible"
            raise BackendClosed(message) from error
        return await asyncio.wrap_future(future)

    async def load(self, key: str) -> Stored | None:
        """Return the record, or ``None``."""
        return await self._run(lambda: self._backend.load(key))

    async def lease(self, key: str, owner: str, identity: str, seen: bytes | None, ttl: float) -> LeaseReply:
        """Ask for the lease."""
        return await self._run(lambda: self._backend.lease(key, owner, identity, seen, ttl))

    async def commit(self, lease: LeaseGrant, data: bytes, ttl: float) -> bool:
        """Store, free the lease, wake the waiters."""
        return await self._run(lambda: self._backend.commit(lease, data, ttl))

    async def release(self, lease: LeaseGrant, cooldown: Cooldown | None = None) -> None:
        """Free the lease."""
        await self._run(lambda: self._backend.release(lease, cooldown))

    async def extend(self, lease: LeaseGrant, ttl: float) -> bool:
        """Prolong the lease."""
        return await self._run(lambda: self._backend.extend(lease, ttl))

    async def wait(self, key: str, seen: bytes | None, timeout: float) -> Stored | None:  # noqa: ASYNC109
        """Wait for a change."""
        return await self._run(lambda: self._backend.wait(key, seen, timeout))

    async def discard(self, key: str, seen: bytes) -> bool:
        """Compare and delete."""
        return await self._run(lambda: self._backend.discard(key, seen))

    async def inspect(self, key: str) -> Slot:
        """Report."""
        return await self._run(lambda: self._backend.inspect(key))

    async def close(self) -> None:
        """Close the backend and let the threads end."""
        await self._run(self._backend.close)
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=False)


class InlineBackend(ThreadedBackend):
    """Calls a backend that never blocks right on the event loop; only waiting takes a thread."""

    async def _run(self, call: Callable[[], T]) -> T:
        """Run ``call`` here."""
        return call()

    async def wait(self, key: str, seen: bytes | None, timeout: float) -> Stored | None:  # noqa: ASYNC109
        """Wait for a change, on a thread."""
        return await super()._run(lambda: self._backend.wait(key, seen, timeout))


def async_half(backend: Backend) -> AsyncBackend:
    """Return the backend's half for the running event loop, lifted where it has none of its own."""
    own = getattr(backend, "aio", None)
    if own is not None:
        return cast("AsyncBackend", own())
    return ThreadedBackend(backend)
