"""Compare two runs by their ratios, never by their times: only ratios are comparable between machines.

``PYTHONPATH=benchmarks .venv/bin/python -m suite.compare OLD NEW`` exits with 1 if a promised ratio or count has
become worse by more than the tolerance (a share, 0.25 by default), or is no longer measured. A quick new run may
measure less than a whole old one.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from suite.results import Claim, Results

TOLERANCE = 0.25


def measured(results: Results) -> dict[tuple[str, str], Claim]:
    """Return the measured values by claim and base; the best peer may change between runs."""
    named: dict[tuple[str, str], Claim] = {}
    for claim in results.claims:
        if claim.measured is not None:
            named[claim.name, str(claim.limit)] = claim
    return named


def worse(old: Claim, new: Claim) -> float:
    """Return the share by which ``new`` is worse than ``old``: 0.5 means 50 % worse, a negative one better."""
    before, after = old.measured or 0.0, new.measured or 0.0
    if old.at_least:
        before, after = after, before
    if before <= 0:
        return 0.0 if after <= 0 else float("inf")
    return after / before - 1


def regressions(old: Results, new: Results, tolerance: float = TOLERANCE) -> list[str]:
    """Return a line for each ratio that has become worse beyond the tolerance."""
    before, after = measured(old), measured(new)
    if new.quick and not old.quick:  # a quick run measures less
        before = {name: claim for name, claim in before.items() if name in after}
    lines: list[str] = []
    for name, claim in before.items():
        if name not in after:
            lines.append(f"{claim.name}: was {claim.measured:.3g}, is no longer measured")
        elif (share := worse(claim, after[name])) > tolerance:
            found = after[name].measured
            lines.append(f"{claim.name}: was {claim.measured:.3g}, is {found:.3g}, worse by {share:.0%}")
    return lines


def main() -> int:
    """Compare two runs and print the regressions."""
    parser = argparse.ArgumentParser("python -m suite.compare", description=__doc__)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help="a share: 0.25 allows a quarter more")
    asked = parser.parse_args()
    old, new = Results.load(asked.old), Results.load(asked.new)
    if old.quick != new.quick:
        print("note: one of the two is a quick run; its medians are of few turns")
    found = regressions(old, new, asked.tolerance)
    for line in found:
        print(line)
    both = len(measured(old).keys() & measured(new).keys())
    print(f"{both} ratios compared, {len(found)} worse by more than {asked.tolerance:.0%} or gone")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
