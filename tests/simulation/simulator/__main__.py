"""The simulation's command line: one schedule with its trace, many with their sum, or a mutant until it is caught."""

from __future__ import annotations

import argparse
import contextlib
import sys

from simulator import simulate
from simulator._stress import STRESSES, stress_of
from simulator.mutants import MUTANTS, broken

_TEXT = "Run the real flow on a virtual world. Exits with 1 when an invariant was violated."


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return 1 when an invariant was violated."""
    parser = argparse.ArgumentParser("python -m simulator", description=_TEXT)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--seed", type=int, help="run this schedule and print its trace")
    what.add_argument("--schedules", type=int, metavar="N", help="run N schedules and print their sum")
    what.add_argument("--mutants", action="store_true", help="list the mutants and what each of them breaks")
    parser.add_argument("--first-seed", type=int, default=0, metavar="S", help="the first of the N seeds; 0 by default")
    parser.add_argument("--stress", choices=STRESSES, help="steer towards this, instead of what each seed names")
    parser.add_argument("--mutant", choices=sorted(MUTANTS), metavar="NAME", help="break this rule, stop when caught")
    given = parser.parse_args(arguments)
    if given.schedules is not None and given.schedules < 1:
        parser.error("--schedules: give at least 1")
    if given.schedules is None and (given.first_seed or (given.mutants and (given.mutant or given.stress))):
        parser.error("--first-seed goes with --schedules, --mutant and --stress with --schedules or --seed")
    if given.mutants:
        width = max(map(len, MUTANTS))
        for mutant in MUTANTS.values():
            print(f"{mutant.name:<{width}}  {mutant.breaks}")
        return 0
    with broken(MUTANTS[given.mutant]) if given.mutant else contextlib.nullcontext():
        if given.seed is not None:
            return _one(given.seed, given.stress)
        return _many(given.first_seed, given.schedules or 0, given.stress, stop=given.mutant is not None)


def _one(seed: int, stress: str | None) -> int:
    """Run one schedule and print its trace."""
    result = simulate(seed, stress, tracing=True)
    print("\n".join([f"seed {seed}, {stress or stress_of(seed)}, {result.effects} effects", *result.trace]))
    return int(result.violation is not None)


def _many(first: int, count: int, stress: str | None, *, stop: bool) -> int:
    """Run many schedules; print each violation, and the totals in the last line."""
    effects = violations = ran = 0
    for seed in range(first, first + count):
        result = simulate(seed, stress)
        ran += 1
        effects += result.effects
        if result.violation is not None:
            violations += 1
            print(f"seed {seed}, {stress or stress_of(seed)}: {result.violation}", flush=True)
            if stop:
                break
    print(f"schedules {ran}, effects {effects}, violations {violations}")
    return int(violations > 0)


if __name__ == "__main__":
    sys.exit(main())
