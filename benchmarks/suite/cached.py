"""A cached get, from the local copy: one source, many sources, many threads."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from functools import partial
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any

from cells.many import many_sources
from suite import peers
from suite.logins import Logins
from suite.measure import in_turns, ratio, timed, timed_async
from suite.results import Row, build, middle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from suite.peers import Way
    from suite.plan import Plan

THREADS, LOOPS = "cached get, threads", "cached get, event loop"
SOURCES, CROWD = "cached get, many sources", "cached get, many threads"
CROWDS = (1, 4, 16, 32, 64)
SOURCE_COUNTS = (1, 100, 10_000, 100_000)


def missing(scenario: str, way: Way, error: Exception) -> Row:
    """Return the row of a way that is not installed or does not work, with the reason."""
    return Row(scenario, way.name, way.kind, note=f"not measured: {type(error).__name__}: {error}"[:160])


def made(scenario: str, ways: Sequence[Way], rows: list[Row], call: Callable[[Any], object]) -> dict[str, Any]:
    """Return the result of each way, called once, and a row with the reason for each that failed."""
    gets: dict[str, Any] = {}
    for way in ways:
        try:
            get = way.make(Logins())
            call(get)
        except Exception as error:  # noqa: BLE001  (a peer may raise anything; it is reported)
            rows.append(missing(scenario, way, error))
        else:
            gets[way.name] = get
    return gets


def rows_of(scenario: str, ways: Sequence[Way], turns: dict[str, list[float]]) -> Iterator[Row]:
    """Yield a row for each way that was timed, with its ratio to the limit."""
    limit = next(way.name for way in ways if way.kind == "limit")
    for way in ways:
        if way.name in turns:
            figures = {"ns": middle(turns[way.name]) * 1e9, "to limit": ratio(turns, way.name, limit)}
            yield Row(scenario, way.name, way.kind, figures | {"client": float(way.client)})


def threads(plan: Plan) -> list[Row]:
    """Time a cached get from a thread, for every way."""
    rows: list[Row] = []
    gets = made(THREADS, peers.THREADS, rows, lambda get: get())
    turns = in_turns({name: timed(get) for name, get in gets.items()}, plan, share=2)
    return [*rows_of(THREADS, peers.THREADS, turns), *rows]


def loops(plan: Plan) -> list[Row]:
    """Time a cached get from an event loop, for every way that has one."""
    rows: list[Row] = []
    loop = asyncio.new_event_loop()
    try:
        gets = made(LOOPS, peers.LOOPS, rows, lambda get: loop.run_until_complete(get()))
        turns = in_turns({name: timed_async(get, loop) for name, get in gets.items()}, plan)
    finally:
        loop.close()
    return [*rows_of(LOOPS, peers.LOOPS, turns), *rows]


def sources(plan: Plan) -> list[Row]:
    """Time gets in turn from more and more sources, and from one of many, and the same for closures."""
    counts = SOURCE_COUNTS[:3] if plan.quick else SOURCE_COUNTS
    ways: dict[str, Callable[[int], float]] = {}
    for name, make in (("tokencache", peers.tokencache_token), ("bare closure", peers.closure)):
        for count in counts:
            if make is peers.tokencache_token:
                gets = [source.token for source in many_sources(count, Logins().response)]
            else:
                gets = [make(Logins()) for _ in range(count)]
            ways[f"{name}, {count}"] = partial(_in_order, cycle(gets))
            if count == plan.sources:
                ways[f"{name}, one of {count}"] = partial(_in_order, cycle(gets[:1]))
    turns = in_turns(ways, plan, share=0.5)
    rows: list[Row] = []
    for name in ways:
        way, _, _ = name.partition(", ")
        figures = {"ns": middle(turns[name]) * 1e9, "to one": ratio(turns, name, f"{way}, 1")}
        rows.append(Row(SOURCES, name, "ours" if way == "tokencache" else "limit", figures))
    return rows


def _in_order(gets: Iterator[Callable[[], object]], calls: int) -> float:
    """Return the seconds of so many calls, one source after the other; a turn begins where the last ended."""
    these = list(islice(gets, calls))
    began = time.perf_counter()
    for get in these:
        get()
    return time.perf_counter() - began


def crowd(plan: Plan) -> list[Row]:
    """Time gets by more and more threads at once, and the same for a bare closure."""
    cores = os.cpu_count() or 1
    counts = sorted({*CROWDS, 16 * cores})
    calls = 2_000 if plan.quick else 10_000
    gets = {"tokencache": peers.tokencache_token(Logins()), "bare closure": peers.closure(Logins())}
    found: dict[str, list[float]] = {}
    for _ in range(5 if plan.quick else 15):
        for count in counts:
            for name, get in gets.items():
                found.setdefault(f"{name}, {count}", []).append(_together(get, count, calls))
    rows: list[Row] = []
    for count in counts:
        for name in gets:
            figures = {"ns": middle(found[f"{name}, {count}"]) * 1e9, "threads": float(count)}
            figures["to one"] = ratio(found, f"{name}, {count}", f"{name}, 1")
            rows.append(
                Row(CROWD, f"{name}, {count}", "ours" if name == "tokencache" else "limit", figures, note=build())
            )
    return rows


def _together(get: Callable[[], object], count: int, calls: int) -> float:
    """Return the seconds per call when so many threads make ``calls`` calls each, all at once."""
    barrier = threading.Barrier(count + 1)

    def work() -> None:
        barrier.wait()
        for _ in range(calls):
            get()
        barrier.wait()

    workers = [threading.Thread(target=work) for _ in range(count)]
    for worker in workers:
        worker.start()
    barrier.wait()
    began = time.perf_counter()
    barrier.wait()
    took = time.perf_counter() - began
    for worker in workers:
        worker.join()
    return took / (count * calls)
