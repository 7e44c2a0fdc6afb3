"""The format of the memcached backend: names of its items, their expiry, what a lock and a cooldown hold. No I/O.

A lock is JSON, ``{"fence": …, "owner": "…", "endsAt": …, "ttl": …}``. Any other value is the lock of a program that
knows only ``add K:lock``; it is respected. A cooldown is ``{"cooldown": {…}, "endsAt": …, "ttl": …}``. It is an item of
its own: at the lock it would stop such programs. ``endsAt`` is by the wall clock of its writer.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias, TypeVar, cast

from tokencache._record import LARGEST_FENCE
from tokencache.ports import Cooldown

if TYPE_CHECKING:
    from collections.abc import Mapping

LARGEST: Final = (1 << 20) - 1024
"""Bytes of the largest value that fits into an item of the usual 1 MB together with its key."""
LONGEST: Final = 30 * 86400
"""Seconds of the longest expiry; a larger number would count as an absolute time."""
DELETED: Final = -1
"""The expiry with which ``cas`` deletes an item."""

_LONGEST_KEY: Final = 250
_LOCK: Final = ":lock"
_COOLDOWN: Final = ":cooldown"
_HASHED: Final = "tokencache:sha256:"
_PLAIN: Final = re.compile(r"[!-~]+")
_UNKNOWN: Final = 1.0  # seconds to report for a lock without an end
_SHORTEST: Final = 0.1  # seconds to report for a lease past its end, which may have ended by our clock only

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease, as a lock holds it. The server ends it; ``ends_at`` and ``ttl`` only inform other processes."""

    fence: int
    owner: str
    ends_at: float
    ttl: float


@dataclass(frozen=True, slots=True)
class Pause:
    """A cooldown, as its item holds it."""

    cooldown: Cooldown
    ends_at: float
    ttl: float


class Foreign:
    """The lock of another program, without an end."""


Lock: TypeAlias = Lease | Foreign


class Names(NamedTuple):
    """The names of the three items of a key; they lie on the server of the record."""

    record: str
    lock: str
    cooldown: str


@lru_cache(1 << 14)
def names_of(key: str, prefix: int = 0) -> Names:
    """Return the names of the items of a key; ``prefix`` is the length of the client's key prefix.

    A key that memcached does not allow, or whose name might be another key's, is hashed. So distinct keys have
    distinct names, and no key can end a command.
    """
    fits = len(key) <= _LONGEST_KEY - len(_COOLDOWN) - prefix and _PLAIN.fullmatch(key)
    if not fits or key.endswith((_LOCK, _COOLDOWN)) or key.startswith(_HASHED):
        key = _HASHED + hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
    return Names(key, key + _LOCK, key + _COOLDOWN)


def record_expiry(ttl: float) -> int:
    """Return the expiry of a record: whole seconds, rounded up, at least two.

    An item with expiry n lives between n - 1 and n seconds, because the server's clock ticks once a second: with 1, it
    might end at once. Each reader ends the record exactly, by the instants in it (INV-1).
    """
    return min(max(math.ceil(ttl), 2), LONGEST)


def lock_expiry(ttl: float) -> int:
    """Return the expiry of a lock or cooldown that must live for ``ttl`` seconds: up to two seconds longer."""
    return min(max(math.ceil(ttl), 0) + 1, LONGEST)


def lease_value(lease: Lease) -> bytes:
    """Return the value of a lock for a lease."""
    fence = min(lease.fence, LARGEST_FENCE)  # above a record with the largest fence; readers know no higher one
    return _dump({"fence": fence, "owner": lease.owner, "endsAt": lease.ends_at, "ttl": lease.ttl})


def pause_value(cooldown: Cooldown, now: float) -> bytes:
    """Return the value of a cooldown that begins now."""
    told = {
        "identity": cooldown.identity,
        "permanent": cooldown.permanent,
        "attempt": cooldown.attempt,
        "message": cooldown.message,
        "error": cooldown.error,
        "status": cooldown.status,
    }
    return _dump({"cooldown": told, "endsAt": now + cooldown.remaining, "ttl": cooldown.remaining})


def lock_of(data: bytes) -> Lock:
    """Parse the value of a lock. Never raises: an unknown value is the lock of another program."""
    table = _table(_parse(data))
    ends_at, ttl = _number(table.get("endsAt")), _number(table.get("ttl"))
    if ends_at is None or ttl is None:
        return Foreign()
    fence, owner = _typed(table.get("fence"), int), _typed(table.get("owner"), str)
    if fence is None or owner is None or not 0 <= fence <= LARGEST_FENCE:
        return Foreign()
    return Lease(fence, owner, ends_at, ttl)


def pause_of(data: bytes) -> Pause | None:
    """Parse the value of a cooldown; ``None`` for any other value. Never raises."""
    table = _table(_parse(data))
    ends_at, ttl, cooldown = (
        _number(table.get("endsAt")),
        _number(table.get("ttl")),
        _cooldown(_table(table.get("cooldown"))),
    )
    return None if ends_at is None or ttl is None or cooldown is None else Pause(cooldown, ends_at, ttl)


def remaining_of(lock: Lock | Pause, now: float) -> float:
    """Return the remaining seconds of a lock or a cooldown; zero only for a cooldown that has ended.

    A cooldown ends by the wall clock, to the fraction of a second. A lease counts as held while the server has it,
    so two clocks that differ do not make two holders (INV-2).
    """
    if isinstance(lock, Foreign):
        return _UNKNOWN
    left = min(lock.ends_at - now, lock.ttl)
    return max(left, _SHORTEST if isinstance(lock, Lease) else 0.0)


def _cooldown(table: Mapping[str, object]) -> Cooldown | None:
    """Return a cooldown, ``None`` where a field of it is missing or of the wrong kind."""
    identity, message = _typed(table.get("identity"), str), _typed(table.get("message"), str)
    permanent, attempt = table.get("permanent"), _typed(table.get("attempt"), int)
    if identity is None or message is None or attempt is None or not isinstance(permanent, bool):
        return None
    error, status = _typed(table.get("error"), str), _typed(table.get("status"), int)
    return Cooldown(identity, 0.0, permanent, attempt, message, error, status)


def _typed(value: object, kind: type[T]) -> T | None:
    """Return a value of one type, ``None`` for any other; a bool is not a number."""
    return value if isinstance(value, kind) and not isinstance(value, bool) else None


def _number(value: object) -> float | None:
    """Return a finite number, ``None`` for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e12:  # noqa: PLR2004
        return None
    return float(value)


def _table(value: object) -> dict[str, object]:
    """Return a JSON object, an empty one for anything else."""
    return cast("dict[str, object]", value) if isinstance(value, dict) else {}


def _dump(table: Mapping[str, object]) -> bytes:
    """Return JSON in ASCII, which can hold any text, also lone surrogates."""
    return json.dumps(table).encode()


def _parse(data: bytes) -> object:
    """Return the value of JSON, ``None`` for anything else."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None
