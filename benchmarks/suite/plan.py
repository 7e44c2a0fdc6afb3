"""How long a run takes: the quick one under a minute, the whole one under ten."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Plan:
    """The sizes of a run. ``only`` names scenarios, all if it is empty."""

    quick: bool = False

    @property
    def rounds(self) -> int:
        """How many turns every way has in a timing."""
        return 15 if self.quick else 101

    @property
    def turn(self) -> float:
        """Seconds that one way's turn lasts."""
        return 0.002 if self.quick else 0.004

    @property
    def repeats(self) -> int:
        """How often a scenario of many processes is played."""
        return 1 if self.quick else 7

    @property
    def boundary(self) -> float:
        """Seconds of calls around expiries."""
        return 3.0 if self.quick else 6.5

    @property
    def outage(self) -> float:
        """Seconds that a provider or a store is gone."""
        return 2.0 if self.quick else 30.0

    @property
    def patience(self) -> float:
        """Seconds after which a fleet whose holder was killed counts as not recovered."""
        return 6.0 if self.quick else 12.0

    @property
    def login(self) -> float:
        """Seconds that a login takes."""
        return 0.25

    @property
    def sources(self) -> int:
        """How many sources are many."""
        return 10_000
