"""The simulation: the real flow and the real source on a virtual world that one seed decides.

`simulate` runs one schedule: processes with clocks that drift, step and disagree; a store that evicts, fails over,
goes silent or loses replies; a provider that fails in its ways; callers that come, leave and report refused tokens;
crashes, interruptions and pauses at every moment. A referee knows the truth and holds each step against the
invariants INV-1 to INV-8 and INV-10. `python -m tokencache.testing.simulation --help` tells the rest.
"""

from __future__ import annotations

from tokencache.testing.simulation._plan import draw
from tokencache.testing.simulation._world import Result, Surroundings

__all__ = ["Result", "simulate"]


def simulate(seed: int, *, tracing: bool = False) -> Result:
    """Run the schedule of ``seed``; the same seed gives the same schedule, step by step."""
    return Surroundings(draw(seed), tracing=tracing).run()
