"""Fixtures for the tests of the benchmark suite, a folder of programs beside the packages."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

if TYPE_CHECKING:
    from suite.results import Results


@pytest.fixture
def results() -> Results:
    """Return a small run: a peer ahead of us, a peer without a result, a kept promise and a missed one."""
    from suite.results import Claim, Results, Row

    return Results(
        quick=False,
        machine={"cores": "2", "python": "CPython 3.11.7"},
        versions={"tokencache": "0.1.0", "msal": None},
        rows=[
            Row("cached get, threads", "tokencache", "ours", {"ns": 80.0, "to limit": 1.2}),
            Row("cached get, threads", "bare closure", "limit", {"ns": 66.0, "to limit": 1.0}),
            Row("cached get, threads", "swift", "peer", {"ns": 40.0, "to limit": 0.6}),
            Row("cached get, threads", "MSAL", "peer", note="not measured: ModuleNotFoundError"),
            Row("holder killed", "tokencache, Redis", "ours", {"recovery s": 2.5}),
            Row("holder killed", "redis-py Lock", "peer", {"recovery s": None}, "not within 15 s"),
        ],
        claims=[
            Claim("cached get from a thread", "bare closure", 1.25, 1.2),
            Claim("best token client over cached get", "swift", 2.5, 0.5, at_least=True),
            Claim("expiry boundary: late tokens", "tokens", 0, 0.0),
            Claim("import", "ms beyond Python", 50, None),
        ],
    )
