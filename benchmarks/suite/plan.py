"""The sizes of a run: a quick run takes less than a minute, a whole one less than ten."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Plan:
    """The sizes of a run. ``only`` names scenarios; empty means all."""

    quick: bool = False

    @property
    def rounds(self) -> int:
        """Turns of every way in a timing."""
        return 15 if self.quick else 101

    @property
    def turn(self) -> float:
        """Seconds of one turn of one way."""
        return 0.002 if self.quick else 0.004

    @property
    def repeats(self) -> int:
        """Repetitions of a scenario of many processes."""
        return 1 if self.quick else 7

    @property
    def boundary(self) -> float:
        """Seconds of calls around expiries."""
        return 3.0 if self.quick else 6.5

    @property
    def outage(self) -> float:
        """Seconds of an outage of the provider or the store."""
        return 2.0 if self.quick else 30.0

    @property
    def patience(self) -> float:
        """Seconds after which a fleet whose holder was killed counts as not recovered."""
        return 6.0 if self.quick else 12.0

    @property
    def login(self) -> float:
        """Seconds of a login."""
        return 0.25

    @property
    def sources(self) -> int:
        """The number of sources in scenarios of many sources."""
        return 10_000
