"""The simulated fleets of docs/scale.md: steady days, cold starts, and processes with many sources."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from simulator.scale import Figures, Fleet, run

HOUR, DAY = 3600.0, 86400.0
SIZES = (10, 100, 1000, 10_000, 100_000)
STARTS = 600.0
WORKERS = 2


@dataclass(frozen=True, slots=True)
class Case:
    """A fleet, and its table in the document."""

    kind: str
    fleet: Fleet
    note: str = ""


def _steady(lifetime: float) -> list[Case]:
    """Return the steady days; the largest fleet of short tokens runs for a part of the day."""
    watched = dict.fromkeys((1, *SIZES), DAY)
    if lifetime == HOUR:
        watched[100_000] = 2 * HOUR
    return [Case("day", Fleet(count, lifetime, lasts, STARTS)) for count, lasts in watched.items()]


def _herds() -> list[Case]:
    """Return the cold starts: growing sizes, then with each remedy."""
    sizes = (*SIZES[:4], 15_000, 20_000, 25_000, 30_000, 40_000, 100_000)
    herds = [Case("herd", Fleet(count, HOUR, 60.0 if count < 100_000 else 30.0, 1.0)) for count in sizes]
    herds += [
        Case("herd", Fleet(100_000, HOUR, 60.0, 1.0, timeout=10.0), "`timeout=10`"),
        Case("herd", Fleet(100_000, HOUR, 60.0, 10.0), "started within 10 s"),
        Case("herd", Fleet(100_000, HOUR, 120.0, 60.0), "started within 60 s"),
    ]
    return herds


def _sources() -> list[Case]:
    """Return ten processes with growing numbers of sources."""
    return [Case("sources", Fleet(10, HOUR, 2 * HOUR, 60.0, sources=count)) for count in (1, 10, 100, 1000, 10_000)]


def cases() -> list[Case]:
    """Return all cases, the longest first."""
    found = [*_steady(DAY), *_steady(HOUR), *_herds(), *_sources()]
    return sorted(found, key=lambda case: -case.fleet.instances * case.fleet.sources)


def simulate() -> list[tuple[Case, Figures]]:
    """Run all cases, each in its own process; no call is refused, no key has two fetches at once (INV-2)."""
    chosen = cases()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(WORKERS, mp_context=context, max_tasks_per_child=1) as pool:
        results = list(zip(chosen, pool.map(run, [case.fleet for case in chosen]), strict=True))
    for case, figures in results:
        assert figures.together == 1, f"{figures.together} fetches under a lease at once: {case}"
        assert not figures.errors, f"{figures.errors}: {case}"
    return results
