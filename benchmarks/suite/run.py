"""Run the benchmark suite: every scenario, for tokencache, the limits and every peer, in one run.

``make bench ARGS=…`` takes ``--quick``, ``--only NAME …``, ``--strict``, ``--onto FILE`` and ``--compare OLD``.
It prints the promised ratios at the end. With ``--strict`` a missed one makes the exit code 1.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from suite import boundary, cached, cells, fleet, footprint, outages, shared
from suite.claims import claims, table
from suite.compare import regressions
from suite.plan import Plan
from suite.results import Results, machine, versions_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from suite.results import Row

SCENARIOS: dict[str, Callable[[Plan], list[Row]]] = {
    "threads": cached.threads,
    "loops": cached.loops,
    "sources": cached.sources,
    "crowd": cached.crowd,
    "shared": shared.shared,
    "stampede": fleet.stampede,
    "tasks": fleet.tasks,
    "boundary": boundary.boundary,
    "killed": fleet.killed,
    "outages": outages.both,
    "cells": cells.cells,
    "imports": footprint.imports,
    "memory": footprint.memory,
    "free": footprint.free_threaded,
}


def run(plan: Plan, only: list[str]) -> Results:
    """Run the scenarios and print the progress."""
    results = Results(plan.quick, machine(), versions_of())
    for name, version in results.versions.items():
        if version is None:
            print(f"not installed: {name}", flush=True)
    chosen = [name for name in SCENARIOS if name in only or not only]
    began = time.monotonic()
    for number, name in enumerate(chosen, 1):
        print(f"[{number:2}/{len(chosen)}] {time.monotonic() - began:4.0f} s  {name} …", flush=True)
        results.rows += SCENARIOS[name](plan)
    results.claims = claims(results)
    print(f"        {time.monotonic() - began:4.0f} s  done", flush=True)
    return results


def show(results: Results) -> None:
    """Print the promises with the measured values."""
    rows = table([claim for claim in results.claims if claim.measured is not None])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    print()
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    missed = sum(claim.met is False for claim in results.claims)
    print(f"\n{missed} missed" if missed else "\nall met")


def main() -> int:
    """Run the suite, print the claims, write the files."""
    parser = argparse.ArgumentParser("python -m suite.run", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under a minute: short runs, few peers")
    parser.add_argument("--only", nargs="*", default=[], choices=SCENARIOS, help="these scenarios, of all")
    parser.add_argument("--strict", action="store_true", help="exit with 1 if a promise is missed")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--report", type=Path, help="write benchmarks.md and its pictures into that folder")
    parser.add_argument("--onto", type=Path, help="replace the scenarios in that file by those of this run")
    parser.add_argument("--compare", type=Path, help="compare the ratios with those of an earlier run")
    asked = parser.parse_args()
    logging.disable(logging.CRITICAL)  # else the log output of a peer would be measured
    results = run(Plan(quick=asked.quick), asked.only)
    if asked.onto:
        results = Results.load(asked.onto).with_rows_of(results)
        results.claims = claims(results)
    if asked.json:
        asked.json.parent.mkdir(parents=True, exist_ok=True)
        results.save(asked.json)
    if asked.report:
        from suite.report import write

        write(results, asked.report)
    show(results)
    worse: list[str] = []
    if asked.compare:
        worse = regressions(Results.load(asked.compare), results)
        print("\n".join(worse) or "no ratio is worse than in the earlier run")
    missed = asked.strict and any(claim.met is False for claim in results.claims)
    return 1 if missed or worse else 0


if __name__ == "__main__":
    sys.exit(main())
