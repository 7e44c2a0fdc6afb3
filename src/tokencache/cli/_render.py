"""Status, plugins and times as readable text."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from tokencache.plugins import BACKENDS, PROVIDERS, known

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tokencache.status import Status

GROUPS: Final = {"backend": BACKENDS, "provider": PROVIDERS}


def lines(status: Status) -> Iterator[str]:
    """Yield a status as aligned lines; instants in local time, with the time from now."""
    now = time.time()
    facts = {
        "provider": status.provider,
        "key": status.key,
        "identity": status.identity,
        "backend": f"{status.backend}, {_health(status)}",
        "record": _RECORD[status.stored],
        "expires": _instant(status.expires_at, now),
        "usable until": _instant(status.usable_until, now),
        "next refresh": _instant(status.refresh_at, now),
        "lease": _lease(status),
        "cooldown": _cooldown(status),
    }
    width = max(map(len, facts))
    for name, fact in facts.items():
        yield f"{name:<{width}}  {fact}"


def _health(status: Status) -> str:
    """Return whether the backend answers, and its response time."""
    took = "" if status.round_trip is None else f" within {status.round_trip * 1000:.1f} ms"
    return f"answers{took}" if status.healthy else f"does not answer: {status.problem}"


def installed() -> list[dict[str, object]]:
    """Return the installed entry points without loading them; a name that two distributions claim is marked."""
    rows: list[dict[str, object]] = []
    for kind, group in GROUPS.items():
        entries = known(group)
        names = [entry.name for entry in entries]
        for entry in entries:
            row: dict[str, object] = {
                "kind": kind,
                "name": entry.name,
                "distribution": entry.distribution,
                "version": entry.version,
                "target": entry.value,
                "conflict": names.count(entry.name) > 1,
            }
            rows.append(row)
    return rows


def table(rows: Sequence[Mapping[str, object]]) -> Iterator[str]:
    """Yield the installed entry points as aligned lines."""
    cells = [("KIND", "NAME", "FROM", "TARGET")]
    for row in rows:
        note = "  CONFLICT: two distributions claim this name; uninstall one" if row["conflict"] else ""
        origin = f"{row['distribution']} {row['version']}"
        cells.append((str(row["kind"]), _scheme(row), origin, f"{row['target']}{note}"))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row_cells in cells:
        yield "  ".join(f"{cell:<{width}}" for cell, width in zip(row_cells, widths, strict=True)).rstrip()


_RECORD: Final = {
    "ours": "stored",
    "foreign": "unreadable or of another identity: not used",
    "none": "none",
    "unknown": "unknown",
}


def _scheme(row: Mapping[str, object]) -> str:
    """Return a backend's URL scheme or a provider's name, as users write it."""
    name = str(row["name"])
    return name.replace(".", "+") + "://" if row["kind"] == "backend" else name


def _instant(at: float | None, now: float) -> str:
    """Return an instant in local time, and the time from now."""
    if at is None:
        return "-"
    local = datetime.fromtimestamp(at, UTC).astimezone().isoformat(sep=" ", timespec="seconds")
    return f"{local}  ({'in ' + duration(at - now) if at >= now else duration(now - at) + ' ago'})"


def duration(seconds: float) -> str:
    """Return a duration in its two largest units."""
    whole = int(seconds)
    units = (("d", whole // 86400), ("h", whole // 3600 % 24), ("min", whole // 60 % 60), ("s", whole % 60))
    shown = [f"{count} {unit}" for unit, count in units if count]
    return " ".join(shown[:2]) or "0 s"


def spell(seconds: float) -> str:
    """Return a time in a suitable unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds * 1e9:,.0f} ns"


def _lease(status: Status) -> str:
    """Return the holder of the lease."""
    if status.lease_owner is None:
        return "free"
    remaining = "" if status.lease_remaining is None else f", for {status.lease_remaining:.1f} s more at most"
    return f"held by {status.lease_owner}{remaining}"


def _cooldown(status: Status) -> str:
    """Return the cooldown and its reason."""
    cooldown = status.cooldown
    if cooldown is None:
        return "none"
    kind = "rejected" if cooldown.permanent else f"failure {cooldown.attempt}"
    return f"{duration(cooldown.remaining)} more ({kind}): {cooldown.message}"
