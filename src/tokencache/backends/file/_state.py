"""The state of a key beside its record: the last fence, the lease, the cooldown, the countdown.

Instants are readings of the system-wide steady clock, which restarts at each boot. So the state names the boot in
which it was written, and after another boot only its fence is used.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

from tokencache._record import LARGEST_FENCE
from tokencache.ports import Cooldown

if TYPE_CHECKING:
    from collections.abc import Mapping

_FAR: Final = 1e12  # from here on a number of seconds means nothing


@dataclass(frozen=True, slots=True)
class Term:
    """A span of ``ttl`` seconds that ends at ``until``."""

    until: float
    ttl: float

    def remaining(self, now: float) -> float:
        """Return the remaining seconds, 0 when the term has ended.

        More than ``ttl`` can remain only if the clock restarted: then the term has ended too.
        """
        left = self.until - now
        return left if 0 < left <= self.ttl + 1 else 0.0


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease that was granted; its number is the state's fence."""

    owner: str
    term: Term


@dataclass(frozen=True, slots=True)
class Pause:
    """A cooldown and when it ends."""

    cooldown: Cooldown
    term: Term


@dataclass(frozen=True, slots=True)
class Countdown:
    """When the record with this digest ends."""

    digest: str
    term: Term


@dataclass(frozen=True, slots=True)
class State:
    """The state of a key. ``fence`` is that of the last grant or commit."""

    fence: int = 0
    lease: Lease | None = None
    pause: Pause | None = None
    countdown: Countdown | None = None

    def live_lease(self, now: float) -> Lease | None:
        """Return the lease, ``None`` if it has ended."""
        return self.lease if self.lease and self.lease.term.remaining(now) else None

    def live_cooldown(self, now: float) -> Cooldown | None:
        """Return the cooldown with its remaining time, ``None`` if it has ended."""
        if self.pause is None or not (left := self.pause.term.remaining(now)):
            return None
        told = self.pause.cooldown
        return Cooldown(told.identity, left, told.permanent, told.attempt, told.message, told.error, told.status)

    def remaining(self, data: bytes, now: float) -> float | None:
        """Return the remaining seconds of the record ``data``; ``None`` if another program stored it."""
        if self.countdown is None or self.countdown.digest != digest(data):
            return None
        return self.countdown.term.remaining(now)


@functools.cache
def boot_id() -> str:
    """Return an id of this boot of the machine, or an empty text if the system does not tell it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_bytes().decode("ascii").strip()
    except OSError:
        return ""


def digest(data: bytes) -> str:
    """Return a short fingerprint of a record."""
    return blake2b(data, digest_size=16).hexdigest()


def dump(state: State, boot: str) -> bytes:
    """Return the state as JSON."""
    table: dict[str, object] = {"v": 1, "boot": boot, "fence": min(state.fence, LARGEST_FENCE)}
    if state.lease:
        table["lease"] = {"owner": state.lease.owner, **_span(state.lease.term)}
    if state.pause:
        told = state.pause.cooldown
        table["cooldown"] = {
            "identity": told.identity,
            "permanent": told.permanent,
            "attempt": told.attempt,
            "message": told.message,
            "error": told.error,
            "status": told.status,
            **_span(state.pause.term),
        }
    if state.countdown:
        table["record"] = {"digest": state.countdown.digest, **_span(state.countdown.term)}
    return json.dumps(table).encode("ascii")


def parse(data: bytes | None, boot: str) -> State:
    """Parse the state: empty if unreadable; only the fence if it is of another version or boot."""
    if data is None:
        return State()
    try:
        table = _table(json.loads(data))
        fence = _fence(table["fence"])
        if table["v"] != 1 or table["boot"] != boot:
            return State(fence)
        return State(fence, _lease(table.get("lease")), _pause(table.get("cooldown")), _countdown(table.get("record")))
    except (ValueError, TypeError, LookupError, RecursionError):
        return State()


def _span(term: Term) -> dict[str, object]:
    return {"until": term.until, "ttl": term.ttl}


def _lease(raw: object) -> Lease | None:
    if raw is None:
        return None
    table = _table(raw)
    return Lease(_text(table["owner"]), _term(table))


def _pause(raw: object) -> Pause | None:
    if raw is None:
        return None
    table = _table(raw)
    error, status = table.get("error"), table.get("status")
    cooldown = Cooldown(
        identity=_text(table["identity"]),
        remaining=0.0,
        permanent=table["permanent"] is True,
        attempt=_whole(table["attempt"]),
        message=_text(table["message"]),
        error=None if error is None else _text(error),
        status=None if status is None else _whole(status),
    )
    return Pause(cooldown, _term(table))


def _countdown(raw: object) -> Countdown | None:
    if raw is None:
        return None
    table = _table(raw)
    return Countdown(_text(table["digest"]), _term(table))


def _term(table: Mapping[str, object]) -> Term:
    return Term(_number(table["until"]), _number(table["ttl"]))


def _table(raw: object) -> Mapping[str, object]:
    if not isinstance(raw, dict):
        raise TypeError
    return cast("dict[str, object]", raw)


def _text(raw: object) -> str:
    if not isinstance(raw, str):
        raise TypeError
    return raw


def _whole(raw: object) -> int:
    if not isinstance(raw, int) or isinstance(raw, bool):
        raise TypeError
    return raw


def _fence(raw: object) -> int:
    fence = _whole(raw)
    if not 0 <= fence <= LARGEST_FENCE:
        raise ValueError
    return fence


def _number(raw: object) -> float:
    if not isinstance(raw, int | float) or isinstance(raw, bool) or not abs(raw) < _FAR:
        raise TypeError
    return float(raw)
