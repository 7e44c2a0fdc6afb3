"""The simulation: the real flow and the real source run in a virtual world that one seed decides.

`simulate` runs one schedule. Its processes have clocks that drift, step and disagree. Its store evicts, fails over,
goes silent or loses replies, and its provider fails in many ways. Callers come, leave and report refused tokens.
Crashes, interruptions and pauses happen at every moment. Most seeds steer towards a state that chance seldom reaches,
such as an abandoned flight that ends late; the seeds take turns. A referee knows the truth and checks each step against
the invariants INV-1 to INV-8 and INV-10. `python -m simulator --help` lists the options.
"""

from __future__ import annotations

from simulator._plan import draw
from simulator._stress import steer, stress_of
from simulator._world import Result, Surroundings

__all__ = ["Result", "simulate"]


def simulate(seed: int, stress: str | None = None, *, tracing: bool = False) -> Result:
    """Run the schedule of ``seed``; the same seed and stress give the same schedule, step by step.

    ``stress`` names the state that the schedule steers towards; without it, the seed decides. ``chance`` has no such
    state.
    """
    return Surroundings(steer(draw(seed), stress or stress_of(seed)), tracing=tracing).run()
