"""The hot path beside its limit: a bare closure, or a bare coroutine, that reads the same clock and compares.

Run with ``make bench``. Ratios are of medians in one run; single times depend on the machine.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import TYPE_CHECKING

import pytest

from tokencache import Token, TokenCache, TokenSource
from tokencache._clock import steady_clock

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from pytest_benchmark.fixture import BenchmarkFixture

LIMIT = 1.3
CALLS = 2_000
ROUNDS = 300


def fresh_source() -> TokenSource:
    """Return a source that holds a token for an hour."""
    source = TokenCache("memory://").source(lambda: {"access_token": "x", "expires_in": 3600}, key="bench")
    source.token()
    return source


def bare_closure() -> Callable[[], Token]:
    """Return the least that a cached get can be."""
    token = fresh_source().token()
    clock = steady_clock()
    until = clock() + 3000

    def get() -> Token:
        if clock() < until:
            return token
        raise AssertionError

    return get


def bare_coroutine() -> Callable[[], Awaitable[Token]]:
    """Return the least that an awaited cached get can be."""
    token = fresh_source().token()
    clock = steady_clock()
    until = clock() + 3000

    async def get() -> Token:
        if clock() < until:
            return token
        raise AssertionError

    return get


@pytest.mark.benchmark(group="cached get, threads")
def test_bare_closure(benchmark: BenchmarkFixture) -> None:
    """The limit for threads."""
    benchmark(bare_closure())


@pytest.mark.benchmark(group="cached get, threads")
def test_source_token(benchmark: BenchmarkFixture) -> None:
    """``source.token()`` from the local copy."""
    source = fresh_source()
    benchmark(source.token)


def call_many(source: TokenSource) -> float:
    """Call ``source.token()`` many times and return the seconds per call."""
    begin = time.perf_counter()
    for _ in range(CALLS):
        source.token()
    return (time.perf_counter() - begin) / CALLS


def call_bare(get: Callable[[], Token]) -> float:
    """Call ``get`` many times and return the seconds per call."""
    begin = time.perf_counter()
    for _ in range(CALLS):
        get()
    return (time.perf_counter() - begin) / CALLS


def test_ratio_for_threads(benchmark: BenchmarkFixture) -> None:
    """``source.token()`` takes at most 1.3 times the bare closure, both measured in turns."""
    source, bare = fresh_source(), bare_closure()
    pairs: list[tuple[float, float]] = []
    benchmark.pedantic(lambda: pairs.append((call_many(source), call_bare(bare))), rounds=ROUNDS)
    report(benchmark, pairs)


def test_ratio_for_loops(benchmark: BenchmarkFixture) -> None:
    """``await source.atoken()`` takes at most 1.3 times the bare coroutine, both measured in turns."""
    source, bare = fresh_source(), bare_coroutine()
    pairs: list[tuple[float, float]] = []

    async def turn() -> tuple[float, float]:
        begin = time.perf_counter()
        for _ in range(CALLS):
            await source.atoken()
        ours = (time.perf_counter() - begin) / CALLS
        begin = time.perf_counter()
        for _ in range(CALLS):
            await bare()
        return ours, (time.perf_counter() - begin) / CALLS

    benchmark.pedantic(lambda: pairs.append(asyncio.run(turn())), rounds=ROUNDS)
    report(benchmark, pairs)


def report(benchmark: BenchmarkFixture, pairs: list[tuple[float, float]]) -> None:
    """Keep the ratio of the medians with the run, and hold it to the limit."""
    ours = statistics.median(pair[0] for pair in pairs)
    bare = statistics.median(pair[1] for pair in pairs)
    ratio = statistics.median(mine / limit for mine, limit in pairs)
    benchmark.extra_info.update(ours_ns=round(ours * 1e9), limit_ns=round(bare * 1e9), ratio=round(ratio, 3))
    print(
        f"\ncached get {ours * 1e9:.0f} ns, limit {bare * 1e9:.0f} ns, ratio {ratio:.2f} (median of {len(pairs)} turns)"
    )
    assert ratio <= LIMIT
