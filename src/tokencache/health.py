"""Findings: results of `tokencache doctor`, and the hook by which a backend or a provider adds its own.

A backend may have ``findings(key)``, a provider ``findings()``; both yield a :class:`Finding` per check, as soon as it
is known. A hook only reads: it changes nothing and asks for no token. It ends within some seconds and puts no secret
into a finding (INV-9). An exception counts as one failed check. A hook checks what is specific to its backend or
provider; the doctor itself checks record, lease and token.
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
"""The difference of two clocks, in seconds, above which the doctor warns."""
TOO_FAR: Final = 60.0
"""The difference above which a process may use a token too long: a record's ``early`` is at most this long."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check: its name, a mark, what was seen, and the remedy if it is not ok."""

    check: str
    mark: Mark
    seen: str
    remedy: str | None = None

    def as_dict(self) -> dict[str, object]:
        """Return plain values for JSON."""
        return asdict(self)


def ok(check: str, seen: str) -> Finding:
    """Return a passed check."""
    return Finding(check, "ok", seen)


def warning(check: str, seen: str, remedy: str) -> Finding:
    """Return a check that passed with a risk, and the remedy."""
    return Finding(check, "warning", seen, remedy)


def failed(check: str, seen: str, remedy: str) -> Finding:
    """Return a failed check, and the remedy."""
    return Finding(check, "failed", seen, remedy)


def skipped(check: str, seen: str, remedy: str | None = None) -> Finding:
    """Return a skipped check; ``seen`` is the reason."""
    return Finding(check, "skipped", seen, remedy)


def compare_clocks(who: str, *, theirs: tuple[float, float], ours: tuple[float, float]) -> Finding:
    """Return how this machine's clock compares with that of ``who``.

    ``theirs`` and ``ours`` are intervals in epoch seconds that hold the same moment on each clock: one second long for
    a server that tells whole seconds, a round trip long here. Only the gap between the two counts as a difference.
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
    """A backend with its own checks."""

    def findings(self, key: str) -> Iterable[Finding]:
        """Check what is specific to this backend, for the record at ``key``."""
        ...


@runtime_checkable
class ExaminedProvider(Protocol):
    """A provider with its own checks."""

    def findings(self) -> Iterable[Finding]:
        """Check what is specific to this provider: its settings, the way to its server, its clock."""
        ...
