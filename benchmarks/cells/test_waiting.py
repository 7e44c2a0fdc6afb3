"""Redis: the delay from a commit to the waiters of another process, compared with bare blocking reads."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tokencache import TokenCache
from tokencache.backends.redis import from_url
from tokencache.testing.fakes import FakeProvider
from tokencache.url import BackendURL

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

    from tokencache.testing.servers import RedisServer

LIMITS = {"threads": 1.5, "sources": 5.0}
WAITERS, TURNS = 16, 7
WORKER = Path(__file__).with_name("waiting_worker.py")


def delays(way: str, server: RedisServer) -> list[float]:
    """Return for each waiter the seconds from the commit until it had the token."""
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
    """Of sixteen waiters, threads of one source are as fast as bare readers; sources take at most 5 times as long."""
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
    for way, limit in LIMITS.items():
        assert middle[way] <= limit * middle["limit"], way
