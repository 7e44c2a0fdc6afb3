"""The status of a source: everything that may be shown, and nothing secret."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

from tokencache import _record
from tokencache._engine.effects import Unreachable, inspect, now
from tokencache._engine.flow import read, usable
from tokencache.ports import Slot

if TYPE_CHECKING:
    from tokencache._engine.context import SourceContext
    from tokencache._engine.effects import Flow
    from tokencache._engine.flow import Copy, Job
    from tokencache.ports import Cooldown


@dataclass(frozen=True, slots=True)
class Status:
    """What is known of a token, its lease, its cooldown and its backend. Instants are epoch seconds, durations seconds.

    ``identity`` is a fingerprint. ``stored`` tells what lies in the backend: ``ours``, ``foreign`` (another
    identity's, or unreadable), ``none`` or ``unknown`` (no answer). ``ignored`` tells why a foreign one is not used.
    ``local`` tells whether this process holds a usable copy. ``round_trip`` is how long the backend took to answer
    this. ``expires_at``, ``refresh_at`` and ``usable_until`` are of the local copy if there is one, else of the record.
    """

    provider: str
    key: str
    identity: str
    backend: str
    healthy: bool
    problem: str | None
    round_trip: float | None
    local: bool
    stored: Literal["ours", "foreign", "none", "unknown"]
    expires_at: float | None
    usable_until: float | None
    refresh_at: float | None
    fence: int | None
    lease_owner: str | None
    lease_remaining: float | None
    cooldown: Cooldown | None
    ignored: str | None = None

    def as_dict(self) -> dict[str, object]:
        """Return plain values, fit for JSON."""
        return asdict(self)


def report(job: Job, copy: Copy | None, until: float, world: SourceContext) -> Flow[Status]:
    """Look at the backend and put together what may be shown."""
    before = yield from now()
    slot = yield from inspect(job.key)
    at = yield from now()
    round_trip = None if isinstance(slot, Unreachable) else at.clock - before.clock
    problem = world.reads.error or world.writes.error
    stored: Literal["ours", "foreign", "none", "unknown"] = "none"
    shown = copy if usable(copy, at.clock) else None
    local = shown is not None
    ignored = None
    if isinstance(slot, Unreachable):
        problem, stored, slot = slot.error, "unknown", Slot(None)
    elif slot.stored is not None:
        try:
            found = read(job, slot.stored, at)
        except _record.UnreadableRecord as error:
            stored, ignored = "foreign", str(error)
        else:
            stored = "ours"
            shown = shown or (found if usable(found, at.clock) else None)
    refresh_at = None
    if shown is not None:
        refresh_at = at.wall + (until if local and until > shown.refresh_at else shown.refresh_at) - at.clock
    return Status(
        provider=job.provider,
        key=job.key,
        identity=job.identity,
        backend=getattr(world.backend, "name", type(world.backend).__name__),
        healthy=problem is None,
        problem=None if problem is None else str(problem),
        round_trip=round_trip,
        local=local,
        stored=stored,
        expires_at=None if shown is None else shown.token.expires_at,
        usable_until=None if shown is None else at.wall + shown.usable_at - at.clock,
        refresh_at=refresh_at,
        fence=None if shown is None else shown.fence,
        lease_owner=slot.owner,
        lease_remaining=slot.remaining,
        cooldown=slot.cooldown,
        ignored=ignored,
    )
