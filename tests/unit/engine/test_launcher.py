"""The launcher: which calls run on a thread or task of their own."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import trio

from tokencache import (
    DeadlineExceeded,
    ProviderUnavailable,
    RefreshPolicy,
    TokenCache,
)
from tokencache._engine.launcher import Launcher
from tokencache._engine.timer import Heartbeat
from tokencache.backends.memory import MemoryBackend
from tokencache.errors import ConfigurationError
from tokencache.testing.fakes import FakeProvider

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokencache.ports import Slot

PATIENCE = 30.0


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names of the threads that start during the test; the process has no timer thread yet."""
    names: list[str] = []
    start = threading.Thread.start

    def noted(thread: threading.Thread) -> None:
        names.append(thread.name)
        start(thread)

    monkeypatch.setattr("tokencache._engine.timer._heartbeat", Heartbeat())
    monkeypatch.setattr(threading.Thread, "start", noted)
    return names


def test_each_fetch_runs_on_its_own_thread_and_all_share_one_heartbeat(started: list[str]) -> None:
    """INV-8: a fetch on threads runs on its own thread, beside its caller; the process has one heartbeat thread."""
    cache, fetching = TokenCache("memory://"), []

    def fetch() -> dict[str, object]:
        fetching.append(threading.current_thread())
        return {"access_token": "x", "expires_in": 60}

    for number in range(5):
        cache.source(fetch, key=str(number)).token()
    own = [f"tokencache-{number}" for number in range(5)]
    assert [thread.name for thread in fetching] == own
    assert sorted(started) == [*own, "tokencache-heartbeat"]


def test_a_fetch_on_an_event_loop_starts_no_thread(started: list[str]) -> None:
    """On an event loop, the flight is a task and the heartbeat is a timer of the loop."""
    cache, fetching = TokenCache("memory://"), []

    async def fetch() -> dict[str, object]:
        fetching.append(asyncio.current_task())
        return {"access_token": "x", "expires_in": 60}

    async def main() -> None:
        sources = [cache.source(fetch, key=str(number)) for number in range(5)]
        assert len({source.key for source in sources}) == 5
        for source in sources:
            await source.atoken()
        assert asyncio.current_task() not in fetching

    asyncio.run(main())
    assert len(fetching) == 5
    assert started == []


def test_a_hung_call_blocks_neither_the_loop_nor_its_thread_pool() -> None:
    """INV-8: if a provider hangs on its thread, asyncio.run still ends, and other calls to threads go on."""
    release = threading.Event()
    ended: list[bool] = []

    def hang() -> dict[str, object]:
        ended.append(release.wait(PATIENCE))
        return {}

    source = TokenCache("memory://", policy=RefreshPolicy(timeout=0.05, fetch_timeout=0.05)).source(hang, key="k")

    async def main() -> int:
        for _ in range(8):
            with contextlib.suppress(DeadlineExceeded, ProviderUnavailable):
                await source.atoken()
        return await asyncio.to_thread(lambda: 1)

    assert asyncio.run(main()) == 1
    assert ended == [], "neither the loop nor its pool waited for a hung call"
    release.set()


class Placed(MemoryBackend):
    """A memory backend that records the thread of each call."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[threading.Thread] = []

    def inspect(self, key: str) -> Slot:
        """Record the thread, then report."""
        self.places.append(threading.current_thread())
        return super().inspect(key)


def test_the_main_thread_does_not_call_the_backend_itself() -> None:
    """INV-8: a signal interrupts the main thread, so its backend calls run on another; other threads call directly."""
    backend = Placed()
    source = TokenCache(backend).source(FakeProvider())
    source.status()
    other = threading.Thread(target=source.status)
    other.start()
    other.join(PATIENCE)
    assert len(backend.places) == 2
    assert backend.places[0] is not threading.main_thread()
    assert backend.places[1] is other


class Threadless(Launcher):
    """A launcher that cannot start a thread."""

    def thread(self, call: Callable[[], object], name: str) -> None:
        """Fail as ``Thread.start`` does."""
        message = "can't start new thread"
        raise RuntimeError(message)


def test_the_main_thread_calls_the_backend_if_no_thread_can_start() -> None:
    """INV-4: a process that cannot start a thread can still ask the backend."""
    backend = Placed()
    source = TokenCache(backend).source(FakeProvider())
    source._world = replace(source._world, launcher=Threadless())
    source.status()
    assert backend.places == [threading.main_thread()]


def test_the_event_loop_makes_the_call_if_no_thread_can_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """INV-8: in a subinterpreter without threads, or at the limit of threads, a slow call is better than no token."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError(thread.name)

    source = TokenCache("memory://", observers=[]).source(lambda: {"access_token": "t", "expires_in": 60}, key="k")
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        assert asyncio.run(source.atoken()).value == "t"


@pytest.mark.filterwarnings("error")
def test_trio_is_told_of_the_way_through_a_thread() -> None:
    """Each async method names asyncio and the remedy, and leaves no coroutine without an await."""
    cache = TokenCache("memory://", observers=[])
    source = cache.source(FakeProvider())
    refused = pytest.raises(ConfigurationError, match=r"asyncio.*await trio\.to_thread\.run_sync\(source\.token\)")

    async def main() -> None:
        for call in (source.atoken, source.arenew, source.astatus, cache.aclose, cache.__aenter__):
            with refused:
                await call()  # type: ignore[operator]
        token = await trio.to_thread.run_sync(source.token)
        assert await source.atoken() is token  # a fresh token needs no loop
        source._fresh_until = float("-inf")
        assert await source.atoken() is token  # INV-4: it is usable, though nothing can renew it here
        for refusal in (source.ainvalidate, source.areplace):
            with refused:
                await refusal(token)

    trio.run(main)
    gc.collect()  # a coroutine that was never awaited warns when it goes
