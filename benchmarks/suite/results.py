"""The results of a run: rows of figures by scenario and way, stored as JSON."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import sysconfig
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

LATER = "measured in a later run"
LOCKED = "with the global lock"
Kind: TypeAlias = Literal["ours", "limit", "peer"]

PEERS = (
    "aiocache",
    "Authlib",
    "azure-identity",
    "cachebox",
    "cachetools",
    "cashews",
    "dogpile.cache",
    "google-auth",
    "httpx-auth",
    "meta-memcache",
    "msal",
    "pymemcache",
    "qpay-client",
    "qpay-python",
    "redis",
    "requests-oauth2client",
)
OURS = ("tokencache", "pytest-benchmark", "hiredis", "httpx", "msgspec")


@dataclass(frozen=True, slots=True)
class Row:
    """The figures of one way in one scenario. ``note`` adds a fact, such as why figures are missing."""

    scenario: str
    way: str
    kind: Kind
    figures: dict[str, float | None] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True, slots=True)
class Claim:
    """A promised ratio or count, and its measured value, relative to ``base``."""

    name: str
    base: str
    limit: float
    measured: float | None
    at_least: bool = False

    @property
    def met(self) -> bool | None:
        """Whether the claim holds; ``None`` if the run did not measure it."""
        if self.measured is None:
            return None
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit


@dataclass(slots=True)
class Results:
    """All results of one run."""

    quick: bool
    machine: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str | None] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)

    def of(self, scenario: str) -> list[Row]:
        """Return the rows of a scenario."""
        return [row for row in self.rows if row.scenario == scenario]

    def figure(self, scenario: str, way: str, name: str) -> float | None:
        """Return one figure, ``None`` if it is missing."""
        return next((row.figures.get(name) for row in self.of(scenario) if row.way == way), None)

    def best(self, scenario: str, name: str, kind: Kind = "peer") -> Row | None:
        """Return the row with the smallest figure of that name."""
        rows = [row for row in self.of(scenario) if row.kind == kind and row.figures.get(name) is not None]
        return min(rows, key=lambda row: row.figures[name] or 0.0, default=None)

    def with_rows_of(self, other: Results) -> Results:
        """Return this run with the scenarios of another run in place of its own; they are named in ``machine``."""
        again = {row.scenario for row in other.rows}
        later = {*filter(None, self.machine.get(LATER, "").split("; ")), *again}
        rows = [*(row for row in self.rows if row.scenario not in again), *other.rows]
        return replace(self, rows=rows, machine=self.machine | {LATER: "; ".join(sorted(later))})

    def save(self, path: Path) -> None:
        """Write all results as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Results:
        """Read a file of :meth:`save`."""
        told = json.loads(path.read_text())
        rows = [Row(**row) for row in told.pop("rows")]
        claims = [Claim(**claim) for claim in told.pop("claims")]
        return cls(rows=rows, claims=claims, **told)


def versions_of(names: Iterable[str] = (*OURS, *PEERS)) -> dict[str, str | None]:
    """Return the installed version of each distribution; ``None`` if it is not installed."""
    found: dict[str, str | None] = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def machine() -> dict[str, str]:
    """Return the properties of the machine, without its name."""
    return {
        "cores": str(os.cpu_count()),
        "system": f"{platform.system()} {platform.machine()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "threads": build(),
    }


def build() -> str:
    """Return whether threads run in parallel, which needs a free-threaded build with its global lock off."""
    if not sysconfig.get_config_var("Py_GIL_DISABLED"):
        return LOCKED
    is_locked: Callable[[], bool] = getattr(sys, "_is_gil_enabled", lambda: True)
    return f"free-threaded build, {'but an extension turned the global lock on' if is_locked() else 'no global lock'}"


def middle(values: Iterable[float]) -> float:
    """Return the median."""
    return statistics.median(values)


def share(values: Iterable[float], part: float) -> float:
    """Return the percentile ``part`` (0 to 1) of the values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))]
