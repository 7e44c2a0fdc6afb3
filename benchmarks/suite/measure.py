"""Timing in turns: every way once, then every way again, so that a busy second affects all ways equally."""

from __future__ import annotations

import gc
import time
import timeit
from typing import TYPE_CHECKING, Any

from suite.results import middle

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Mapping, Sequence

    from suite.plan import Plan

_FIRST = 20


def in_turns(ways: Mapping[str, Callable[[int], float]], plan: Plan, *, share: float = 1.0) -> dict[str, list[float]]:
    """Return the seconds per call of each turn of each way, for a share of the plan's turns.

    A way is a function that takes a number of calls and returns the seconds.
    """
    counts: dict[str, int] = {}
    for name, run in ways.items():
        run(_FIRST)
        counts[name] = max(_FIRST, int(plan.turn / max(run(_FIRST) / _FIRST, 1e-9)))
    turns: dict[str, list[float]] = {name: [] for name in ways}
    gc.collect()
    for _ in range(max(1, int(plan.rounds * share))):
        for name, run in ways.items():
            turns[name].append(run(counts[name]) / counts[name])
    return turns


def ratio(turns: Mapping[str, Sequence[float]], ours: str, base: str) -> float:
    """Return the median of the ratios within a turn."""
    return middle(mine / other for mine, other in zip(turns[ours], turns[base], strict=True))


def timed(get: Any) -> Callable[[int], float]:  # noqa: ANN401  (a function, maybe from spelled)
    """Return a function that times so many calls of ``get``, or of the statement that a caller would write."""
    statement, names = getattr(get, "spelled", ("get()", {"get": get}))
    timer = timeit.Timer(statement, globals=names)
    return timer.timeit


def timed_async(get: Callable[[], Any], loop: asyncio.AbstractEventLoop) -> Callable[[int], float]:
    """Return a function that times so many awaited calls of ``get``."""

    async def calls_of(calls: int) -> float:
        gc.disable()
        try:
            began = time.perf_counter()
            for _ in range(calls):
                await get()
            return time.perf_counter() - began
        finally:
            gc.enable()

    return lambda calls: loop.run_until_complete(calls_of(calls))
