"""Row 21: a commit immediately after the lease, a thousand waiters, and two connections for all of them."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import pytest

from tokencache import RefreshPolicy, Token, TokenCache
from tokencache.ports import Stored
from tokencache.testing.fakes import FakeProvider

if TYPE_CHECKING:
    from conftest import Outcome, Store

pytestmark = [pytest.mark.live, pytest.mark.usefixtures("tidy")]

PATIENCE = 90.0
STUBBORN = RefreshPolicy(lease=180.0, timeout=60.0)  # a waiter that misses the wake-up gets no token in time
EVERY = pytest.mark.parametrize("store", ["memory", "file", "redis", "memcached"], indirect=True)


def scant(store: Store, outcome: Outcome) -> None:
    """Limit Redis to two connections for all its waiters."""
    if store.kind == "redis":
        store.url += "&waiters=2"
        outcome.case += ", 2 waiting connections"


@EVERY
@pytest.mark.fault(21, case="commit between being held off and waiting")
def test_a_commit_before_the_wait_ends_it(store: Store, outcome: Outcome, monkeypatch: pytest.MonkeyPatch) -> None:
    """INV-8: the holder commits after the lease is refused to the waiter and before it waits; the wait still ends."""
    provider, backend = FakeProvider(), store.open()
    holder = TokenCache(store.open(), policy=STUBBORN).source(provider)
    waiter = TokenCache(backend, policy=STUBBORN).source(provider)
    genuine, woken = backend.wait, []
    got: list[Token] = []
    provider.gate.clear()
    holding = threading.Thread(target=lambda: got.append(holder.token()))

    def late(key: str, seen: bytes | None, timeout: float) -> Stored | None:
        provider.gate.set()
        holding.join(PATIENCE)
        woken.append(genuine(key, seen, timeout))
        return woken[-1]

    monkeypatch.setattr(backend, "wait", late)
    holding.start()
    assert provider.started.wait(PATIENCE)
    got.append(waiter.token())
    assert len(set(got)) == 1
    assert len(woken) == 1
    if store.kind == "redis":  # a block ends by itself, without the record
        assert isinstance(woken[0], Stored)
    outcome.record("the same token, waiter and holder", calls=provider.calls)
    assert provider.calls == 1


@EVERY
@pytest.mark.fault(21, case="1,000 threads")
def test_a_thousand_threads_lose_no_wake_up(store: Store, outcome: Outcome) -> None:
    """INV-2, INV-8: all threads get the one token, though the commit comes at once and most lack a connection."""
    scant(store, outcome)
    provider, backend = FakeProvider(), store.open()
    sources = [TokenCache(backend, policy=STUBBORN).source(provider) for _ in range(100)]
    got: list[Token] = []
    threads = [threading.Thread(target=lambda source=source: got.append(source.token())) for source in sources * 10]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert len(got) == 1000
    assert len(set(got)) == 1
    outcome.record("the same token, all 1,000", calls=provider.calls)
    assert provider.calls == 1


@EVERY
@pytest.mark.fault(21, case="1,000 tasks")
def test_a_thousand_tasks_lose_no_wake_up(store: Store, outcome: Outcome) -> None:
    """INV-2, INV-8: the same on one event loop; concurrent commands stay below the client library's limit."""
    scant(store, outcome)
    provider, backend = FakeProvider(), store.open()
    flights = 25 if store.kind == "file" else 250  # each takes the file's lock in turn
    caches = [TokenCache(backend, policy=STUBBORN) for _ in range(flights)]
    provider.gate.clear()

    async def main() -> list[Token]:
        tasks = [asyncio.create_task(cache.source(provider).atoken()) for cache in caches * (1000 // flights)]
        while not provider.started.is_set():
            await asyncio.sleep(0)
        provider.gate.set()
        got = await asyncio.gather(*tasks)
        if store.kind == "redis":
            await backend.aio().close()
        return got

    got = asyncio.run(main())
    assert len(got) == 1000
    assert len(set(got)) == 1
    outcome.record("the same token, all 1,000", calls=provider.calls)
    assert provider.calls == 1
