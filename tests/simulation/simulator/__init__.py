"""The simulation: the real flow and the real source on a virtual world that one seed decides.

`simulate` runs one schedule: processes with clocks that drift, step and disagree; a store that evicts, fails over,
goes silent or loses replies; a provider that fails in its ways; callers that come, leave and report refused tokens;
crashes, interruptions and pauses at every moment. Most seeds steer towards a state that chance seldom reaches, such as
a flight that was given up and comes in late; they take turns. A referee knows the truth and holds each step against the
invariants INV-1 to INV-8 and INV-10. `python -m simulator --help` tells the rest.
"""

from __future__ import annotations

from simulator._plan import draw
from simulator._stress import steer, stress_of
from simulator._world import Result, Surroundings

__all__ = ["Result", "simulate"]


def simulate(seed: int, stress: str | None = None, *, tracing: bool = False) -> Result:
    """Run the schedule of ``seed``; the same seed and stress give the same schedule, step by step.

    ``stress`` names what the schedule steers towards; each seed names one itself. ``chance`` steers towards nothing.
    """
    return Surroundings(steer(draw(seed), stress or stress_of(seed)), tracing=tracing).run()
