"""ThreadedBackend: a pool of threads serves event loops with a backend that only has blocking calls."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import pytest

from tokencache import (
    BackendUnavailable,
    Token,
    TokenCache,
)
from tokencache.backends._threaded import InlineBackend, ThreadedBackend, async_half
from tokencache.backends.memory import MemoryBackend
from tokencache.ports import Granted
from tokencache.testing.fakes import FakeProvider

if TYPE_CHECKING:
    from pathlib import Path

    from tokencache.ports import LeaseGrant, Stored

PATIENCE = 30.0


def test_a_blocking_backend_runs_on_its_own_threads() -> None:
    """Event loops call a backend without an async half on a pool of threads; a backend with both halves on its own."""

    class Plain:
        """A backend that has only blocking calls."""

        name = "plain"

        def __init__(self) -> None:
            self.inner = MemoryBackend()

        def __getattr__(self, name: str) -> object:
            if name in {"aio", "after_fork"}:
                raise AttributeError(name)
            return getattr(self.inner, name)

    backend = Plain()
    assert type(async_half(backend)) is ThreadedBackend  # type: ignore[arg-type]
    assert type(async_half(MemoryBackend())) is InlineBackend
    provider = FakeProvider()

    async def main() -> tuple[Token, Token]:
        async with TokenCache(backend) as cache:  # type: ignore[arg-type]
            source = cache.source(provider)
            first = await source.atoken()
            assert (await source.astatus()).stored == "ours"
            assert await source.ainvalidate(first)
            return first, await source.atoken()

    first, second = asyncio.run(main())
    assert first != second


def test_the_thread_pool_ends_with_its_backend(tmp_path: Path) -> None:
    """INV-8: when a loop closes the cache, the threads that called its backend end."""
    before = set(threading.enumerate())

    async def main() -> list[threading.Thread]:
        async with TokenCache((tmp_path / "tokens").as_uri()) as cache:
            await cache.source(FakeProvider()).atoken()
            started = set(threading.enumerate()) - before
            return [thread for thread in started if thread.name.startswith("tokencache-backend")]

    started = asyncio.run(main())
    assert started
    for thread in started:
        thread.join(PATIENCE)
        assert not thread.is_alive()


def test_waiting_threads_do_not_block_the_commit() -> None:
    """INV-8: callers that wait for a record leave a thread free for the commit of that record."""
    waiting, committed, in_time = threading.Semaphore(0), threading.Event(), []

    class Full(MemoryBackend):
        """A backend whose ``wait`` returns at the commit."""

        def wait(self, key: str, seen: bytes | None, timeout: float) -> Stored | None:
            waiting.release()
            in_time.append(committed.wait(timeout))
            return super().load(key)

        def commit(self, lease: LeaseGrant, data: bytes, ttl: float) -> bool:
            committed.set()
            return super().commit(lease, data, ttl)

    backend = Full()
    half = ThreadedBackend(backend, threads=2)
    lease = backend.lease("key", "owner", "identity", None, 180.0)
    assert isinstance(lease, Granted)

    async def main() -> list[Stored | None]:
        waits = [asyncio.create_task(half.wait("key", None, PATIENCE)) for _ in range(8)]
        for _ in range(2):
            await asyncio.to_thread(waiting.acquire)
        assert await half.commit(lease.lease, b"record", 60.0)
        return await asyncio.gather(*waits)

    woken = asyncio.run(main())
    assert in_time == [True, True]
    assert woken.count(None) == 6, "without a free thread, a wait is a pause"


def test_queued_calls_fail_with_the_call_that_failed() -> None:
    """INV-5: calls that are queued while one call fails get its error, and do not wait for their own time-out."""
    calls: list[str] = []
    begun, over = threading.Event(), threading.Event()

    class Gone(MemoryBackend):
        """A backend whose first call fails after a long time."""

        def load(self, key: str) -> Stored | None:
            calls.append(key)
            begun.set()
            over.wait(PATIENCE)
            message = "gone"
            raise BackendUnavailable(message)

    half = ThreadedBackend(Gone(), threads=1)

    async def main() -> list[object]:
        loads = [asyncio.create_task(half.load(str(number))) for number in range(50)]
        await asyncio.to_thread(begun.wait)
        over.set()
        got: list[object] = list(await asyncio.gather(*loads, return_exceptions=True))
        with pytest.raises(BackendUnavailable, match="gone"):
            await half.load("later")
        return got

    got = asyncio.run(main())
    assert all(isinstance(each, BackendUnavailable) for each in got)
    assert calls == ["0", "later"]
