"""The table of every backend by situation, from the files that pytest-benchmark runs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from suite.results import Row

if TYPE_CHECKING:
    from suite.plan import Plan

CELLS = "every backend by situation"
COLUMNS = {
    "test_uncached": "uncached",
    "test_hot": "hot",
    "test_many": "hot, of 10,000",
    "test_shared": "shared",
    "test_miss": "miss",
    "test_renewal": "renewal",
    "test_replace": "after a 401",
}
CALLS = {"test_hot": 1_000, "test_many": 10_000}
_FILE = Path(__file__).parents[1] / "cells" / "test_cells.py"


def cells(plan: Plan) -> list[Row]:
    """Run the files and return a row for each backend, sync and async, in µs per call; no rows in a quick run."""
    if plan.quick:
        return []
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder, "cells.json")
        options = [
            "--benchmark-only",
            "--benchmark-max-time=0.3",
            "--benchmark-min-rounds=3",
            f"--benchmark-json={told}",
        ]
        command = [sys.executable, "-m", "pytest", str(_FILE), "-q", "-p", "no:randomly", *options]
        ended = subprocess.run(command, check=False, capture_output=True, text=True, cwd=_FILE.parents[2])
        if ended.returncode:
            return [Row(CELLS, "tokencache", "ours", note=f"not measured: pytest ended with {ended.returncode}")]
        return rows_of(json.loads(told.read_text())["benchmarks"])


def rows_of(benchmarks: list[dict[str, object]]) -> list[Row]:
    """Return the rows of a result of pytest-benchmark: the median time per call."""
    found: dict[str, dict[str, float | None]] = {}
    for benchmark in benchmarks:
        named = re.fullmatch(r"(test_\w+)\[(?:(\w+)-)?(sync|async)\]", str(benchmark["name"]))
        if named is None or named[1] not in COLUMNS:
            continue
        way = f"{named[2] or 'no cache, a login of 250 ms'}, {named[3]}"
        median = benchmark["stats"]["median"]  # type: ignore[index]
        found.setdefault(way, {})[COLUMNS[named[1]]] = median / CALLS.get(named[1], 1) * 1e6
    return [Row(CELLS, way, "peer" if "uncached" in figures else "ours", figures) for way, figures in found.items()]
