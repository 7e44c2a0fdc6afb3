"""Tail: the changes of a key, one line each: fetches, lease holders, renewals, cooldowns, drops.

It polls the key with a few plain reads per second; the load is that of one more caller. It takes no lease, stores no
record, and shows no secret (INV-9). It misses a change that is undone between two reads.
"""

from __future__ import annotations

import json
import time
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Final, TypeAlias, cast

from tokencache._record import UnreadableRecord, decode
from tokencache.cli._render import duration
from tokencache.errors import BackendUnavailable
from tokencache.policy import RefreshPolicy, early_of

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping

    from tokencache._record import Sealing
    from tokencache.cli._setup import Setup
    from tokencache.ports import Backend, Cooldown, Slot

    Reading: TypeAlias = Callable[[bytes], dict[str, object]]

_NEVER: Final = float("inf")
_SHORTEST: Final = 0.01  # seconds between two reads, at least
_GREW: Final = 0.3  # seconds by which the end of a lease must move to count as extended
_TOO_SOON: Final = 1.0  # a record that disappears more seconds before its end was dropped
_SHOWN: Final = 12  # characters of an owner
_WHY: Final = {
    "cold": "none was stored",
    "refresh": "renewed ahead of expiry",
    "renew": "renewed as a caller asked",
    "rejected": "replaced after a 401",
}


@dataclass(frozen=True, slots=True)
class View:
    """The state of a key at ``at`` (epoch seconds). ``data`` tells records apart and is never shown."""

    at: float
    data: bytes | None = field(default=None, repr=False)
    ends_at: float | None = None
    expires_at: float | None = None
    fence: int | None = None
    reason: str | None = None
    owner: str | None = None
    lease_left: float | None = None
    cooldown: Cooldown | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """One change: its name, a sentence, and its facts as values."""

    at: float
    event: str
    text: str
    facts: Mapping[str, object] = field(default_factory=dict[str, object])

    def line(self) -> str:
        """Return a line for a person, in local time."""
        local = datetime.fromtimestamp(self.at, UTC).astimezone().isoformat(sep=" ", timespec="milliseconds")
        return f"{local[11:23]}  {self.event:<11} {self.text}"

    def as_dict(self) -> dict[str, object]:
        """Return plain values, fit for JSON."""
        return {"at": round(self.at, 3), "event": self.event, "text": self.text, **self.facts}


def follow(
    backend: Backend,
    key: str,
    *,
    pause: float,
    lasting: float | None = None,
    read: Reading | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Change]:
    """Yield the state of ``key``, and then each change, for ``lasting`` seconds or for ever.

    It reads every ``pause`` seconds, and as soon as the backend reports the end of a lease.
    """
    end = _NEVER if lasting is None else clock() + lasting
    before: View | None = None
    while True:
        view = look(backend, key, read)
        yield from changes(before, view)
        before = view
        left = end - clock()
        if left <= 0:
            return
        if view.owner is not None:
            try:
                backend.wait(key, view.data, min(pause, left))
            except BackendUnavailable:
                pass  # the next read shows it
            else:
                sleep(_SHORTEST)
                continue
        sleep(min(pause, left))


@contextmanager
def opened(provider: str, setup: Setup) -> Generator[tuple[Backend, str, Reading]]:
    """Yield the backend of a provider, the key of its record, and the function that reads the record."""
    from tokencache import TokenCache
    from tokencache.plugins import open_backend

    configured = setup.provider(provider)
    with (
        closing(open_backend(setup.url(configured))) as backend,
        TokenCache.from_config(setup.plan, backend=backend) as cache,
    ):
        source = cache.source(configured.provider, key=configured.key)
        identity = source._identify()  # noqa: SLF001  (the record is read like in its source)
        yield backend, identity.key, partial(_unsealed, identity.key, identity.sealing)


def look(backend: Backend, key: str, read: Reading | None = None) -> View:
    """Read the key once."""
    try:
        slot = backend.inspect(key)
    except BackendUnavailable as error:
        return View(time.time(), problem=str(error))
    return view_of(slot, time.time(), read)


def view_of(slot: Slot, at: float, read: Reading | None = None) -> View:
    """Return the log-safe view of a slot."""
    stored = slot.stored
    fields = {} if stored is None else (read or _fields)(stored.data)
    expires_at = _number(fields.get("expiresAt", fields.get("expires_at")))
    ends_at = None
    if stored is not None and stored.remaining is not None:
        ends_at = at + stored.remaining
    elif expires_at is not None:
        ends_at = expires_at - early_of(RefreshPolicy(), _number(fields.get("lifetime")) or _NEVER)
    fence, reason = fields.get("fence"), fields.get("reason")
    return View(
        at=at,
        data=None if stored is None else stored.data,
        ends_at=ends_at,
        expires_at=expires_at,
        fence=fence if isinstance(fence, int) else None,
        reason=reason if isinstance(reason, str) and reason in _WHY else None,
        owner=None if slot.owner is None else _printable(slot.owner),
        lease_left=None if slot.owner is None else slot.remaining,
        cooldown=slot.cooldown,
    )


def changes(before: View | None, after: View) -> Iterator[Change]:
    """Yield the changes between two reads; without a first read, the current state."""
    if after.problem is not None:
        if before is None or before.problem is None:
            yield Change(after.at, "unreachable", after.problem)
        return
    if before is not None and before.problem is not None:
        yield Change(after.at, "reachable", "the backend answers again")
        before = None
    yield from _of_record(before, after)
    yield from _of_lease(before, after)
    yield from _of_cooldown(before, after)


def _of_record(before: View | None, after: View) -> Iterator[Change]:
    """Yield the changes of the record."""
    if after.data is None:
        if before is None:
            yield Change(after.at, "empty", "no token is stored")
        elif before.data is not None:
            yield _gone(before, after)
        return
    if before is not None and before.data == after.data:
        return
    left = "" if after.expires_at is None else f", expires in {duration(max(0.0, after.expires_at - after.at))}"
    number = "no fence" if after.fence is None else f"fence {after.fence}"
    why = "" if after.reason is None else f": {_WHY[after.reason]}"
    facts = {"fence": after.fence, "reason": after.reason, "expires_at": after.expires_at}
    if before is None:
        yield Change(after.at, "present", f"a token is stored{why}; {number}{left}", facts)
    else:
        by = "" if before.owner is None else f" by {before.owner}"
        yield Change(after.at, "stored", f"token stored{by}{why}; {number}{left}", facts)


def _gone(before: View, after: View) -> Change:
    """Return the likely reason why a record disappeared."""
    facts = {"fence": before.fence}
    if before.ends_at is not None and before.ends_at - after.at > _TOO_SOON:
        left = duration(before.ends_at - after.at)
        text = f"record dropped, {left} before its end: refused with a 401, invalidated, or evicted"
        return Change(after.at, "dropped", text, facts)
    return Change(after.at, "ended", "record gone at its end", facts)


def _of_lease(before: View | None, after: View) -> Iterator[Change]:
    """Yield the changes of the lease."""
    owner = None if before is None else before.owner
    left = "" if after.lease_left is None else f", for {after.lease_left:.1f} s at most"
    facts = {"owner": after.owner}
    if owner is not None and before is not None and after.owner != owner:
        stored, cooling = after.data not in {None, before.data}, after.cooldown is not None
        if not stored and not cooling:
            yield Change(after.at, "freed", f"lease of {owner} ended, with no newer token", {"owner": owner})
    if after.owner is None:
        return
    if after.owner != owner:
        yield Change(after.at, "fetching", f"{after.owner} holds the lease{left}", facts)
    elif before is not None and _was_prolonged(before, after):
        yield Change(after.at, "prolonged", f"{after.owner} is still fetching{left}", facts)


def _was_prolonged(before: View, after: View) -> bool:
    """Return whether the end of a lease has moved; the same remaining time at every read is not a countdown."""
    if before.lease_left is None or after.lease_left is None or before.lease_left == after.lease_left:
        return False
    return after.at + after.lease_left > before.at + before.lease_left + _GREW


def _of_cooldown(before: View | None, after: View) -> Iterator[Change]:
    """Yield the changes of the cooldown."""
    then, now = None if before is None else before.cooldown, after.cooldown
    if now is not None and (then is None or (then.attempt, then.message) != (now.attempt, now.message)):
        kind = "rejected" if now.permanent else f"failure {now.attempt}"
        text = f"{kind}, no login for {duration(now.remaining) if now.remaining >= 1 else f'{now.remaining:.1f} s'}"
        facts = {"remaining": round(now.remaining, 3), "permanent": now.permanent, "attempt": now.attempt}
        yield Change(after.at, "cooldown", f"{text}: {now.message}", facts)
    elif then is not None and now is None and before is not None and (after.owner, after.data) == (None, before.data):
        yield Change(after.at, "over", "cooldown over; the next caller asks again")


def _fields(data: bytes) -> dict[str, object]:
    """Return the fields of a record; they are empty if it is not a JSON object."""
    try:
        fields: object = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return cast("dict[str, object]", fields) if isinstance(fields, dict) else {}


def _unsealed(key: str, sealing: Sealing | None, data: bytes) -> dict[str, object]:
    """Return the fields of a record; a sealed one is opened if possible."""
    fields = _fields(data)
    if sealing is None or "sealed" not in fields:
        return fields
    try:
        record = decode(data, key=key, sealing=sealing)
    except UnreadableRecord:
        return fields
    facts = {"expiresAt": record.token.expires_at, "lifetime": record.lifetime, "reason": record.reason}
    return fields | {name: value for name, value in facts.items() if value is not None}


def _number(value: object) -> float | None:
    """Return a plausible number of seconds."""
    plausible = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e11  # noqa: PLR2004
    return float(cast("float", value)) if plausible else None


def _printable(text: str) -> str:
    """Return the beginning of another program's text, printable and on one line."""
    return "".join(char if char.isprintable() else " " for char in text)[:_SHOWN]
