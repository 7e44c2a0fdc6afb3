"""The simulation: the real flow keeps its invariants, broken ones are caught, each schedule can be replayed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tokencache.testing.simulation import simulate
from tokencache.testing.simulation.__main__ import main
from tokencache.testing.simulation.mutants import MUTANTS, Mutant, broken

SEEDS = [int(line.split()[0]) for line in (Path(__file__).parent / "seeds.txt").read_text().splitlines()[1:]]
BOUND = 2000
"""Within how many schedules each mutant is caught."""


def run(*arguments: str, hash_seed: str = "0") -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own, which nothing traces."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    return subprocess.run(
        [sys.executable, "-m", "tokencache.testing.simulation", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=plain | {"PYTHONHASHSEED": hash_seed},
    )


def test_the_real_flow_keeps_every_invariant(capsys: pytest.CaptureFixture[str]) -> None:
    """INV-1 to INV-8 and INV-10 hold at every step of a few hundred schedules; `make simulate` runs many more."""
    assert main(["--schedules", "300"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("schedules 300, effects ")
    assert last.endswith(", violations 0")


@pytest.mark.parametrize("seed", SEEDS)
def test_what_failed_once_does_not_fail_again(seed: int) -> None:
    """The schedules that showed a defect pass."""
    assert simulate(seed).violation is None


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=list(MUTANTS))
def test_each_mutant_is_caught(mutant: Mutant) -> None:
    """The simulation notices each broken rule; it prints after how many schedules."""
    ran = run("--mutant", mutant.name, "--schedules", str(BOUND))
    lines = ran.stdout.splitlines()
    assert ran.returncode == 1, f"not caught: {mutant.breaks}; {ran.stderr}"
    print(f"{mutant.name}: caught after {lines[-1]}: {lines[-2]}")


def test_a_mutant_leaves_no_trace() -> None:
    """Once it is over, the real flow is whole again."""
    mutant = MUTANTS["held-is-down"]
    with broken(mutant):
        assert simulate(0).violation is not None
    assert simulate(0).violation is None


def test_a_mutant_of_another_text_is_refused() -> None:
    """A mutant that no longer fits the code says so, instead of breaking nothing."""
    stale = Mutant("stale", "nothing", "tokencache._engine.flow", (("no such text", ""),))
    with pytest.raises(ValueError, match=r"0 times in tokencache\._engine\.flow"), broken(stale):
        pass


def test_a_schedule_is_replayed_byte_for_byte() -> None:
    """The same seed prints the same trace in any process."""
    first, second = (run("--seed", "604", hash_seed=hash_seed) for hash_seed in ("1", "2"))
    assert first.returncode == 0
    assert first.stdout == second.stdout
    assert first.stdout.count("\n") > 50


def test_a_violation_is_told_with_its_seed_and_its_trace(capsys: pytest.CaptureFixture[str]) -> None:
    """Both ways of running exit with 1; the trace ends with what was violated."""
    with broken(MUTANTS["steady-clock-only"]):
        assert main(["--schedules", "20"]) == 1
        first, *_, last = capsys.readouterr().out.splitlines()
        assert not last.endswith("violations 0")
        seed = first.split(":")[0].removeprefix("seed ")
        assert main(["--seed", seed]) == 1
    assert "VIOLATION INV-1: a token " in capsys.readouterr().out.splitlines()[-1]


def test_the_mutants_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    """Each with the invariant that it breaks; there are enough of them, and some for each invariant."""
    assert main(["--mutants"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(MUTANTS) >= 15
    for number in (1, 2, 3, 4, 5, 6, 7, 8, 10):
        assert any(f"INV-{number}:" in line for line in lines)
