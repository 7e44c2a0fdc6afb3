"""The async half of a backend that has only methods for threads."""

from __future__ import annotations

import random
import threading
from typing import TYPE_CHECKING, Final, TypeVar, cast

from tokencache.errors import BackendClosed, BackendUnavailable
from tokencache.shared import Shared

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future, ThreadPoolExecutor

    from tokencache.ports import AsyncBackend, Backend, Cooldown, LeaseGrant, LeaseReply, Slot, Stored

T = TypeVar("T")

_POLL: Final = 0.2
"""Poll interval in seconds when all waiter threads are busy."""


class ThreadedBackend(Shared):
    """Runs each call of a backend on a thread of its own pools; the application's pools stay free.

    Waits and other calls have separate pools, because a commit must never queue behind the waiters that it wakes.
    When all waiter threads are busy, a wait is a short pause.
    """

    def __init__(self, backend: Backend, threads: int = 32) -> None:
        self._backend = backend
        self._threads = threads
        self._lock = threading.Lock()  # guards the pools
        self._pools: dict[str, ThreadPoolExecutor] = {}
        self._waiters = threading.Semaphore(threads)
        self._outages = 0

    def _submit(self, purpose: str, call: Callable[[], T]) -> Future[T]:
        """Submit ``call`` to the pool for waits or to the pool for other calls."""
        with self._lock:
            pool = self._pools.get(purpose)
            if pool is None:
                from concurrent.futures import ThreadPoolExecutor

                pool = self._pools[purpose] = ThreadPoolExecutor(self._threads, thread_name_prefix=purpose)
        try:
            return pool.submit(call)
        except RuntimeError as error:
            message = "the interpreter is shutting down; no new calls to the backend are possible"
            raise BackendClosed(message) from error

    async def _run(self, call: Callable[[], T]) -> T:
        """Run ``call`` on the pool."""
        import asyncio

        before = self._outages

        def in_turn() -> T:
            # While the store does not answer, calls queue up. One time-out fails all calls that were queued before it.
            if self._outages != before:
                message = f"{self._backend.name}: earlier calls in the queue got no answer either"
                raise BackendUnavailable(message)
            try:
                return call()
            except BackendUnavailable:
                self._outages += 1
                raise

        return await asyncio.wrap_future(self._submit("tokencache-backend", in_turn))

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
        import asyncio

        if not self._waiters.acquire(blocking=False):
            await asyncio.sleep(min(timeout, random.uniform(_POLL / 2, _POLL)))  # noqa: S311  (jitter)
            return None
        try:
            future = self._submit("tokencache-waiter", lambda: self._backend.wait(key, seen, timeout))
        except BaseException:
            self._waiters.release()
            raise
        future.add_done_callback(lambda _: self._waiters.release())  # a cancelled caller leaves its thread waiting
        return await asyncio.wrap_future(future)

    async def discard(self, key: str, seen: bytes) -> bool:
        """Compare and delete."""
        return await self._run(lambda: self._backend.discard(key, seen))

    async def inspect(self, key: str) -> Slot:
        """Report record, lease and cooldown."""
        return await self._run(lambda: self._backend.inspect(key))

    async def close(self) -> None:
        """Close the backend and let the threads end."""
        await self._run(self._backend.close)
        with self._lock:
            pools, self._pools = self._pools, {}
        for pool in pools.values():
            pool.shutdown(wait=False)


class InlineBackend(ThreadedBackend):
    """Calls a backend that never blocks directly on the event loop; only waits take a thread."""

    async def _run(self, call: Callable[[], T]) -> T:
        """Run ``call`` directly."""
        return call()


def async_half(backend: Backend) -> AsyncBackend:
    """Return the backend's half for the running event loop: its own, or one on threads."""
    own = getattr(backend, "aio", None)
    if own is not None:
        return cast("AsyncBackend", own())
    return ThreadedBackend(backend)
