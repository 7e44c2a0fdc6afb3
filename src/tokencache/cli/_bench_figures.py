"""The figures of `tokencache bench`, in seconds, as text lines and as plain values."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Self

from tokencache.cli._render import spell

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PARTS: Final = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Percentiles of the times of calls, in seconds. ``calls`` is the number of calls."""

    calls: int
    at: dict[str, float]

    @classmethod
    def of(cls, times: Sequence[float]) -> Self:
        """Return the percentiles of at least one time."""
        ordered = sorted(times)
        return cls(
            len(ordered),
            {name: ordered[min(len(ordered) - 1, int(len(ordered) * part))] for name, part in PARTS.items()},
        )

    def as_dict(self) -> dict[str, object]:
        """Return plain values."""
        return {"calls": self.calls, **self.at}


@dataclass(frozen=True, slots=True)
class Stampede:
    """Many callers at once without a stored token. ``fetch`` is the time of the login, ``beyond`` the wait after it."""

    processes: int
    threads: int
    served: int
    provider_calls: int
    fetch: float
    beyond: Percentiles

    @property
    def callers(self) -> int:
        """The number of callers."""
        return self.processes * self.threads

    def as_dict(self) -> dict[str, object]:
        """Return plain values."""
        return {
            "processes": self.processes,
            "threads": self.threads,
            "callers": self.callers,
            "served": self.served,
            "provider_calls": self.provider_calls,
            "fetch": self.fetch,
            "beyond": self.beyond.as_dict(),
        }


@dataclass
class Figures:
    """The figures of one backend. ``first`` is a call that logs in; ``cached`` calls find the local copy.

    If ``shared`` and ``stampede`` are missing, ``note`` gives the reason.
    """

    backend: str
    first: float
    cached: float
    gets: Percentiles
    shared: Percentiles | None = None
    stampede: Stampede | None = None
    note: str | None = None

    @property
    def speedup(self) -> float:
        """How many times faster a cached call is than the first."""
        return self.first / self.cached

    def rows(self) -> Iterator[tuple[str, str, Percentiles]]:
        """Yield name, meaning and percentiles of each figure that has percentiles."""
        yield "cached", "in process", self.gets
        if self.shared is not None:
            yield "shared", "from the store, no local copy", self.shared
        if self.stampede is not None:
            yield "stampede", "wait beyond the fetch", self.stampede.beyond

    def as_dict(self) -> dict[str, object]:
        """Return plain values."""
        return {
            "backend": self.backend,
            "first": self.first,
            "cached": self.cached,
            "speedup": self.speedup,
            "percentiles": {
                "cached": self.gets.as_dict(),
                "shared": None if self.shared is None else self.shared.as_dict(),
            },
            "stampede": None if self.stampede is None else self.stampede.as_dict(),
            "note": self.note,
        }

    def lines(self) -> Iterator[str]:
        """Yield the text lines, the three most important ones first."""
        yield self.backend
        yield f"  first     {spell(self.first):>12}   a login, and its token stored"
        yield f"  cached    {spell(self.cached):>12}   a get"
        yield f"  speed-up  {self.speedup:>12,.0f}   times"
        yield ""
        yield " " * 12 + "".join(f"{name:>12}" for name in PARTS)
        for name, what, found in self.rows():
            yield f"  {name:<10}" + "".join(f"{spell(value):>12}" for value in found.at.values()) + f"   {what}"
        if self.stampede is not None:
            yield f"  {told(self.stampede)}"
        if self.note is not None:
            yield f"  {self.note}"


@dataclass
class BenchReport:
    """All figures of one run. ``provider`` names the provider whose logins were timed, ``logins`` counts them."""

    provider: str
    logins: int = 0
    backends: list[Figures] = field(default_factory=list[Figures])

    def as_dict(self) -> dict[str, object]:
        """Return plain values, fit for JSON; times are in seconds."""
        return {
            "provider": self.provider,
            "logins": self.logins,
            "python": machine(),
            "cores": os.cpu_count(),
            "backends": [figures.as_dict() for figures in self.backends],
        }


def told(stampede: Stampede) -> str:
    """Return one sentence about a stampede."""
    calls = f"{stampede.provider_calls} provider call{'' if stampede.provider_calls == 1 else 's'}"
    return (
        f"{stampede.processes} x {stampede.threads} cold callers, {stampede.served} served, {calls} of"
        f" {spell(stampede.fetch)}"
    )


def machine() -> str:
    """Return the interpreter and its version."""
    return f"{platform.python_implementation()} {platform.python_version()}"
