"""The comparison of two runs: it reports worse ratios and counts, and ignores times."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from suite.results import Results

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


def changed(results: Results, name: str, measured: float | None) -> Results:
    """Return the run with another figure for one promise."""
    claims = [replace(claim, measured=measured) if claim.name == name else claim for claim in results.claims]
    return replace(results, claims=claims)


def compared(old: Results, new: Results, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the program on two runs."""
    old.save(folder / "old.json")
    new.save(folder / "new.json")
    return subprocess.run(
        [sys.executable, "-m", "suite.compare", str(folder / "old.json"), str(folder / "new.json"), *options],
        capture_output=True,
        text=True,
        check=False,
        cwd=BENCHMARKS,
    )


@pytest.mark.parametrize(
    ("name", "measured"),
    [
        ("cached get from a thread", 1.6),
        ("best token client over cached get", 0.3),
        ("expiry boundary: late tokens", 1.0),
        ("cached get from a thread", None),
    ],
    ids=["a ratio grew", "a ratio that ought to be large shrank", "a count is no longer zero", "gone"],
)
def test_a_worse_figure_fails_the_comparison(
    results: Results, tmp_path: Path, name: str, measured: float | None
) -> None:
    """A ratio that is worse by more than the tolerance exits with 1 and is named."""
    ended = compared(results, changed(results, name, measured), tmp_path)
    assert ended.returncode == 1
    assert name in ended.stdout


@pytest.mark.parametrize(
    ("name", "measured"),
    [
        ("cached get from a thread", 1.45),
        ("cached get from a thread", 0.9),
        ("best token client over cached get", 5.0),
        ("import", 30.0),
    ],
    ids=["within the tolerance", "smaller", "larger where that is good", "measured for the first time"],
)
def test_an_equal_or_better_figure_passes(results: Results, tmp_path: Path, name: str, measured: float) -> None:
    """A ratio within the tolerance, a better one, or a new one exits with 0."""
    assert compared(results, changed(results, name, measured), tmp_path).returncode == 0


def test_times_alone_never_fail_the_comparison(results: Results, tmp_path: Path) -> None:
    """A run on a machine ten times slower passes, as its ratios are the same."""
    slow = [
        replace(row, figures={name: (value or 0) * 10 for name, value in row.figures.items()}) for row in results.rows
    ]
    assert compared(results, replace(results, rows=slow), tmp_path).returncode == 0


def test_the_caller_sets_the_tolerance(results: Results, tmp_path: Path) -> None:
    """A change that a tolerance of a quarter allows fails with a tolerance of a tenth."""
    new = changed(results, "cached get from a thread", 1.4)
    assert compared(results, new, tmp_path).returncode == 0
    assert compared(results, new, tmp_path, "--tolerance", "0.1").returncode == 1


def test_a_quick_run_may_measure_less_but_not_worse(results: Results, tmp_path: Path) -> None:
    """Figures that a quick run omits are not regressions; figures that it measures as worse are."""
    gone = replace(changed(results, "cached get from a thread", None), quick=True)
    assert compared(results, gone, tmp_path).returncode == 0
    worse = replace(changed(results, "cached get from a thread", 1.6), quick=True)
    assert compared(results, worse, tmp_path).returncode == 1
