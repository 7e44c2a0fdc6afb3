"""Findings: what `tokencache doctor` learns of a backend or a provider, and the hook by which one tells it.

A backend may have ``findings(key)``, a provider ``findings()``; both yield a :class:`Finding` per check, as soon as it
is known. A hook reads and changes nothing, asks for no token, ends by itself within some seconds, and puts no secret
into a finding (INV-9). What it raises counts as one failed check. Everything that only this kind of backend or provider
has belongs there; whether a record, a lease and a token can be had at all is checked by the doctor itself.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final, Literal, Protocol, TypeAlias, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "ExaminedBackend",
    "ExaminedProvider",
    "Finding",
    "Mark",
    "compare_clocks",
    "failed",
    "ok",
    "skipped",
    "warning",
]

Mark: TypeAlias = Literal["ok", "warning", "failed", "skipped"]

CLOSE_ENOUGH: Final = 5.0
"""How far apart two clocks may be, in seconds, before it is worth a word."""
TOO_FAR: Final = 60.0
"""How far apart two clocks may be before a token may be used too long: a record's ``early`` is that long at most."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one check: its name, a mark, what was seen, and the remedy where it is not ok."""

    check: str
    mark: Mark
    seen: str
    remedy: str | None = None

    def as_dict(self) -> dict[str, object]:
        """Return plain values, fit for JSON."""
        return asdict(self)


def ok(check: str, seen: str) -> Finding:
    """Return that all is well."""
    return Finding(check, "ok", seen)


def warning(check: str, seen: str, remedy: str) -> Finding:
    """Return that it works, and what will bite."""
    return Finding(check, "warning", seen, remedy)


def failed(check: str, seen: str, remedy: str) -> Finding:
    """Return that it does not work."""
    return Finding(check, "failed", seen, remedy)


def skipped(check: str, seen: str, remedy: str | None = None) -> Finding:
    """Return that it was not checked, and why."""
    return Finding(check, "skipped", seen, remedy)


def compare_clocks(who: str, *, theirs: tuple[float, float], ours: tuple[float, float]) -> Finding:
    """Return how this machine's clock compares with that of ``who``.

    ``theirs`` and ``ours`` are epoch seconds between which the same moment lies on either clock: a server that tells
    whole seconds leaves one, a round trip leaves its time. Only what neither explains is a difference.
    """
    behind, ahead = theirs[0] - ours[1], ours[0] - theirs[1]
    apart = max(behind, ahead, 0.0)
    if apart <= 0:
        return ok("clock", f"agrees with that of {who}")
    seen = f"this machine is {apart:.1f} s {'behind' if behind > 0 else 'ahead of'} {who}"
    if apart < CLOSE_ENOUGH:
        return ok("clock", seen)
    remedy = "synchronize the clocks (NTP): records are read by the clock of the host that reads them"
    return failed("clock", seen, remedy) if apart >= TOO_FAR else warning("clock", seen, remedy)


@runtime_checkable
class ExaminedBackend(Protocol):
    """A backend that has checks of its own."""

    def findings(self, key: str) -> Iterable[Finding]:
        """Check what only this kind of backend has, for the record at ``key``."""
        ...


@runtime_checkable
class ExaminedProvider(Protocol):
    """A provider that has checks of its own."""

    def findings(self) -> Iterable[Finding]:
        """Check what only this kind of provider has: its settings, the way to its server, its clock."""
        ...
