"""Redis: a token that another process holds, beside redis-py's own GET; and how soon a waiter has a new one."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from redis import Redis

from tokencache import TokenCache
from tokencache._record import decode
from tokencache.backends.redis import from_url
from tokencache.testing.fakes import FakeProvider
from tokencache.url import BackendURL

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_benchmark.fixture import BenchmarkFixture

    from tokencache.testing.servers import RedisServer

SHARED_LIMIT = 1.5
WAKE_UP, WAKE_UP_LIMIT = 0.005, 3.0
WAITERS, TURNS = 16, 7
WORKER = Path(__file__).with_name("_waiting_worker.py")


def took(call: Callable[[], object], calls: int = 200) -> float:
    """Return the seconds per call."""
    began = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - began) / calls


def test_a_shared_read_beside_get(benchmark: BenchmarkFixture, server: RedisServer) -> None:
    """Loading and decoding another's token takes at most 1.5 times redis-py's GET; client and server on one CPU."""
    before = os.sched_getaffinity(0)
    for process in (0, server.pid):
        os.sched_setaffinity(process, {min(before)})
    try:
        backend = from_url(BackendURL.parse(server.url))
        provider = FakeProvider()
        provider.value = "x" * 1000
        source = TokenCache(backend).source(provider)
        source.token()
        key = source.key
        plain = Redis.from_url(server.url)
        rows: list[tuple[float, float]] = []

        def shared() -> object:
            stored = backend.load(key)
            assert stored is not None
            return decode(stored.data)

        benchmark.pedantic(lambda: rows.append((took(shared), took(lambda: plain.get(key)))), rounds=40)
        plain.close()
    finally:
        os.sched_setaffinity(0, before)
    ratio = statistics.median(ours / get for ours, get in rows)
    ours, get = (statistics.median(column) * 1e6 for column in zip(*rows, strict=True))
    benchmark.extra_info.update(ours_us=round(ours), get_us=round(get), ratio=round(ratio, 2))
    print(f"\nshared read {ours:.0f} us, GET {get:.0f} us, ratio {ratio:.2f}")
    assert ratio <= SHARED_LIMIT


def delays(way: str, server: RedisServer) -> list[float]:
    """Return how long after the commit was sent each of the waiters had the token."""
    server.command("FLUSHALL")
    backend = from_url(BackendURL.parse(server.url))
    sent: list[float] = []
    commit = backend.commit

    def stamped(*arguments: object) -> bool:
        sent.append(time.time())
        return commit(*arguments)

    backend.commit = stamped
    provider = FakeProvider()
    provider.gate.clear()
    holder = threading.Thread(target=TokenCache(backend).source(provider, key="k").token)
    holder.start()
    provider.started.wait(20)
    command = [sys.executable, str(WORKER), way, server.url, str(WAITERS)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as waiting:
        assert waiting.stdout is not None
        assert waiting.stdout.readline() == "waiting\n"
        while int(server.info("clients")["blocked_clients"]) < (1 if way == "threads" else WAITERS):
            time.sleep(0.01)
        provider.gate.set()
        had = json.loads(waiting.stdout.readline())
    holder.join(20)
    backend.close()
    return [instant - sent[0] for instant in had]


def test_a_waiter_holds_the_token_soon_after_commit(benchmark: BenchmarkFixture, server: RedisServer) -> None:
    """Sixteen waiters in another process: threads of one source within 5 ms (p50), sources within three bare reads."""
    found: dict[str, list[float]] = {"threads": [], "sources": [], "limit": []}

    def turn() -> None:
        for way, instants in found.items():
            instants.extend(delays(way, server))

    benchmark.pedantic(turn, rounds=TURNS)
    middle = {way: statistics.median(instants) for way, instants in found.items()}
    late = {way: sorted(instants)[int(len(instants) * 0.99)] for way, instants in found.items()}
    for way in found:
        benchmark.extra_info[way] = f"p50 {middle[way] * 1e3:.1f} ms, p99 {late[way] * 1e3:.1f} ms"
        print(f"\ncommit to {WAITERS} waiters, {way}: {benchmark.extra_info[way]}")
    assert middle["threads"] <= WAKE_UP
    assert middle["sources"] <= WAKE_UP_LIMIT * middle["limit"]
