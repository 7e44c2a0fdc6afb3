"""The simulation: the real flow keeps its invariants, mutants are caught, each schedule can be replayed."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from simulator import simulate
from simulator.__main__ import main
from simulator._stress import STRESSES, stress_of
from simulator.mutants import MUTANTS, Mutant, broken

SEEDS = [line.split()[:3] for line in (Path(__file__).parent / "seeds.txt").read_text().splitlines()[1:]]
BOUND = 1500
"""Within how many schedules of any first seed each mutant is caught; at 1 % a schedule, all but once in 10⁶ runs."""


def run(*arguments: str, hash_seed: str = "0") -> subprocess.CompletedProcess[str]:
    """Run the command line in a new process, without tracing."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    return subprocess.run(
        [sys.executable, "-m", "simulator", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=plain | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(Path(__file__).parent)},
    )


def test_the_real_flow_keeps_every_invariant(capsys: pytest.CaptureFixture[str]) -> None:
    """INV-1 to INV-8 and INV-10 hold at every step of a few hundred schedules; `make simulate` runs many more."""
    assert main(["--schedules", "300"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("schedules 300, effects ")
    assert last.endswith(", violations 0")


@pytest.mark.parametrize(("seed", "stress", "mutant"), SEEDS, ids=[seed for seed, _, _ in SEEDS])
def test_a_schedule_that_failed_once_does_not_fail_again(seed: str, stress: str, mutant: str) -> None:
    """The schedules that showed a defect pass, and fail when a mutant restores that defect."""
    assert simulate(int(seed), stress).violation is None
    if mutant != "-":
        with broken(MUTANTS[mutant]):
            assert simulate(int(seed), stress).violation is not None


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=list(MUTANTS))
def test_each_mutant_is_caught(mutant: Mutant) -> None:
    """The simulation notices each broken rule within `BOUND` schedules of any first seed; a failure names that seed."""
    first = random.SystemRandom().randrange(2**31)
    ran = run("--mutant", mutant.name, "--schedules", str(BOUND), "--first-seed", str(first))
    assert ran.stdout.endswith(", violations 1\n"), f"not caught from {first}: {mutant.breaks}; {ran.stderr}"
    print(f"{mutant.name}: {ran.stdout}")


def test_a_mutant_leaves_no_trace() -> None:
    """After the block, the real flow is unchanged."""
    mutant = MUTANTS["held-is-down"]
    with broken(mutant):
        assert simulate(0).violation is not None
    assert simulate(0).violation is None


def test_a_mutant_of_another_text_is_refused() -> None:
    """A mutant that does not match the code raises an error, instead of changing nothing."""
    stale = Mutant("stale", "nothing", "tokencache._engine.flow", (("no such text", ""),))
    with pytest.raises(ValueError, match=r"0 times in tokencache\._engine\.flow"), broken(stale):
        pass


@pytest.mark.parametrize("stress", STRESSES)
def test_a_schedule_is_replayed_byte_for_byte(stress: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The same seed prints the same trace in any process."""
    arguments = ["--seed", "604", "--stress", stress]
    assert main(arguments) == 0
    trace = capsys.readouterr().out
    assert trace == run(*arguments, hash_seed="1").stdout
    assert trace.startswith(f"seed 604, {stress}, ")
    assert trace.count("\n") > 50


def test_each_seed_has_its_stress() -> None:
    """Consecutive seeds take the stresses in turn; without a given stress, a seed runs its own."""
    assert [stress_of(seed) for seed in range(600, 600 + len(STRESSES))] == list(STRESSES)
    for seed in range(600, 600 + len(STRESSES)):
        assert simulate(seed, tracing=True) == simulate(seed, stress_of(seed), tracing=True)


def test_a_violation_is_printed_with_its_seed_and_its_trace(capsys: pytest.CaptureFixture[str]) -> None:
    """Both ways of running exit with 1; the trace ends with the violation."""
    with broken(MUTANTS["steady-clock-only"]):
        assert main(["--schedules", "20"]) == 1
        first, *_, last = capsys.readouterr().out.splitlines()
        assert not last.endswith("violations 0")
        seed = first.split(",")[0].removeprefix("seed ")
        assert main(["--seed", seed]) == 1
    assert "VIOLATION INV-1: a token " in capsys.readouterr().out.splitlines()[-1]


def test_the_mutants_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    """Each mutant is listed with its invariant; there are enough of them, and some for each invariant."""
    assert main(["--mutants"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(MUTANTS) >= 15
    for number in (1, 2, 3, 4, 5, 6, 7, 8, 10):
        assert any(f"INV-{number}:" in line for line in lines)
