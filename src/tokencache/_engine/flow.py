"""The flow: how one process of a fleet gets a token, written once as generators of effects.

Numbered rules (design, section 5), cited below where they are kept:

INV-1 never late · INV-2 one fetch · INV-3 newest wins · INV-4 still good, still served · INV-5 backend outage is not
token outage · INV-6 one 401, one renewal · INV-7 a failing provider is asked by one · INV-10 never another's token

Transitions of :func:`obtain`::

    start ──no usable token──► load ──usable──► Obtained
      │                         │ └─unreachable──► alone
      └──renewal──► lease ◄─────┘ miss
                    ├─ Found ─── acceptable ──► Obtained        (else lease again, having seen that record)
                    ├─ Held ──── by a holder ─► wait ──► lease
                    │        └── cooldown ────► Failed
                    ├─ Granted ─► fetch ─ token ──► commit ─ stored ──► Obtained
                    │                │                    ├─ refused ─► load ──► Obtained (the newer one)
                    │                │                    └─ unreachable ─► Obtained, not shared
                    │                ├─ same token ─► commit the current one anew ──► Kept
                    │                └─ error ──► release with a cooldown ──► Failed
                    └─ unreachable ─► alone ─ current is usable, not yet urgent ──► Kept
                                          └─ else fetch ──► Obtained, not shared, or Failed

A flow ends at its deadline with ``Failed(DeadlineExceeded)``. It does no I/O and holds no clock, lock or random source.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, TypeAlias, assert_never

from tokencache import _record
from tokencache._engine.effects import (
    Unreachable,
    commit,
    discard,
    draw,
    emit,
    fetch,
    lease,
    load,
    now,
    release,
    sleep,
    wait,
)
from tokencache.errors import BackendUnavailable, DeadlineExceeded, ProviderError, ProviderRejected, ProviderUnavailable
from tokencache.events import CommitRefused, FetchFailed, RecordIgnored, TokenFetched, TokenLoaded, TokenUnchanged
from tokencache.policy import LONGEST_COOLDOWN, backoff, schedule, unchanged_pause
from tokencache.ports import Cooldown, Found, Granted, Held, Stored

if TYPE_CHECKING:
    from tokencache._engine.effects import Flow, Instants
    from tokencache._record import Sealing
    from tokencache.errors import TokenCacheError
    from tokencache.policy import RefreshPolicy
    from tokencache.ports import LeaseGrant, Reason
    from tokencache.token import Token

SHORTEST_WAIT: Final = 0.02
BLIND_WAIT: Final = 0.2
KEPT: Final = 90 * 86_400.0
"""For how long a refresh token whose end is not known is kept after its access token, in seconds."""
_AT_ANY_TIME: Final = -math.inf


@dataclass(frozen=True, slots=True)
class Copy:
    """A token as one process holds it: its moments are readings of that process's steady clock.

    ``data`` is the record as it lies in the backend, ``None`` while it is not shared there. ``replaces_refused`` tells
    that the token was fetched because its predecessor was refused. ``fetched_at`` is when the provider gave it,
    ``got_at`` and ``got_wall_at`` are when this process got it, by both clocks. ``again_at`` is when to ask the
    provider again, if the record says that the provider had nothing better.
    """

    token: Token
    data: bytes | None = field(repr=False)
    fence: int | None
    refresh_at: float
    usable_at: float
    fetched_at: float
    got_at: float
    got_wall_at: float
    replaces_refused: bool = False
    again_at: float = _AT_ANY_TIME


@dataclass(frozen=True, slots=True)
class Obtained:
    """There is a token, fetched or shared."""

    copy: Copy


@dataclass(frozen=True, slots=True)
class Kept:
    """The current token stays; look again at ``next_at``.

    ``asked`` tells that the provider has nothing better, ``unleased`` that it was asked without a lease.
    """

    copy: Copy
    next_at: float
    asked: bool = True
    unleased: bool = False


@dataclass(frozen=True, slots=True)
class Failed:
    """There is no new token; do not ask before ``next_at``.

    ``unleased`` tells that the backend did not answer either, so that it cannot say when the cooldown ends.
    """

    error: TokenCacheError
    next_at: float
    attempt: int
    unleased: bool = False


Outcome: TypeAlias = Obtained | Kept | Failed


@dataclass(frozen=True, slots=True)
class Job:
    """What one run of the flow is to do, and for whom.

    ``current`` is the local copy, usable or not. ``refused`` holds the values of tokens that a resource server refused.
    ``deadline`` is when the flow gives up, ``unleased_fetch_at`` the earliest moment of a fetch without a lease,
    ``attempt`` how many failures in a row are known, ``failure`` the last of them, which binds until its ``next_at``,
    ``spread`` this process's place in the jitter, ``latest`` the token of a newer record that was found but not taken.
    ``refreshing`` tells that the next token is had for the refresh token of the last one only, so that the record
    outlives its token, is never deleted, and nobody fetches without a lease.
    """

    provider: str
    key: str
    identity: str
    owner: str
    policy: RefreshPolicy
    reason: Reason
    current: Copy | None
    deadline: float
    spread: float
    refreshing: bool = False
    refused: frozenset[str] = field(default=frozenset(), repr=False)
    attempt: int = 0
    failure: Failed | None = None
    unleased_fetch_at: float = -math.inf
    sealing: Sealing | None = None
    latest: Token | None = None


def usable(copy: Copy | None, clock: float) -> bool:
    """Return whether callers may be given this copy's token at ``clock`` (INV-1)."""
    return copy is not None and clock < copy.usable_at


def obtain(job: Job) -> Flow[Outcome]:
    """Get a token that satisfies ``job``: share one, renew one, or fetch one under the lease."""
    at = yield from now()
    current = job.current
    seen = current.data if current is not None else None
    if not usable(current, at.clock):
        stored = yield from load(job.key)
        if isinstance(stored, Unreachable):
            return (yield from _without_backend(job))
        if stored is not None:
            copy = yield from _read(job, stored, at)
            if copy is not None and (yield from _acceptable(job, copy)):
                return (yield from _take(job, copy))
            seen = stored.data
            job = _knowing(job, copy)
    return (yield from _lease(job, seen))


def drop(job: Job, value: str) -> Flow[bool]:
    """Delete the stored record if it is the token ``value``, and nothing else (compare-and-discard)."""
    if job.refreshing:  # its refresh token leads to the next one; who was refused knows not to take the token
        return False
    stored = yield from load(job.key)
    if stored is None or isinstance(stored, Unreachable):
        return False
    try:
        record = _record.decode(stored.data, key=job.key, sealing=job.sealing)
    except _record.UnreadableRecord:
        return False
    if record.token.value != value:
        return False
    reply = yield from discard(job.key, stored.data)
    return reply is True


def _lease(job: Job, seen: bytes | None) -> Flow[Outcome]:
    """Ask for the lease until there is a token, a failure, or no time left."""
    blind = False
    while True:
        at = yield from now()
        if at.clock >= job.deadline:
            message = f"{_who(job)}: no token before the deadline; another process holds the lease, or all is slow"
            return Failed(DeadlineExceeded(message), at.clock, job.attempt)
        reply = yield from lease(job.key, job.owner, job.identity, seen, job.policy.lease)
        match reply:
            case Unreachable():
                return (yield from _without_backend(job))
            case Found(stored=stored):
                copy = yield from _read(job, stored, at)
                if copy is not None and (yield from _acceptable(job, copy)):
                    return (yield from _take(job, copy))
                # Not for us, or at its end: say that we know it, and the lease is next.
                seen = stored.data
                job = _knowing(job, copy)
            case Held(cooldown=Cooldown() as cooldown):
                return (yield from _cooled(job, cooldown))
            case Held(remaining=remaining):
                at = yield from now()
                pause = min(max(remaining, SHORTEST_WAIT), max(job.deadline - at.clock, 0.0))
                woken = yield from wait(job.key, seen, pause)
                if isinstance(woken, Unreachable) and blind:  # leases are answered, only the waiting is refused
                    yield from sleep(min(pause, BLIND_WAIT * (1 + (yield from draw()))))
                blind = isinstance(woken, Unreachable)
                if isinstance(woken, Stored):
                    copy = yield from _read(job, woken, at)
                    if copy is not None and (yield from _acceptable(job, copy)):
                        return (yield from _take(job, copy))
            case Granted(lease=grant):
                return (yield from _fetch(job, grant))
            case _:
                assert_never(reply)


def _knowing(job: Job, copy: Copy | None) -> Job:
    """Return the orders with a newer record in mind: its refresh token is the one that is still good."""
    return job if copy is None or copy.token.refresh_token is None else replace(job, latest=copy.token)


def _fetch(job: Job, grant: LeaseGrant) -> Flow[Outcome]:
    """Fetch under the lease and commit; the driver frees the lease however this ends."""
    current = job.current
    at = yield from now()
    if current is not None and current.data is None and job.reason == "refresh" and at.clock < current.refresh_at:
        return (yield from _commit(job, grant, current, at, took=None))  # INV-5: got without the backend, shared now
    failure = job.failure
    if failure is not None and at.clock < failure.next_at and isinstance(failure.error, ProviderError):
        # INV-7: the cooldown is gone from the backend, displaced or lost, but it is known here.
        yield from release(grant, _cooldown(job, failure.error, failure.next_at - at.clock, failure.attempt))
        return failure
    before = at
    got = yield from _ask(job, grant)
    at = yield from now()
    if job.refreshing and isinstance(got, ProviderRejected) and got.error == "invalid_grant":
        newer = yield from _newer(job)  # the lease was lost, and another holder has spent the refresh token
        if newer is not None and (current is None or newer.token.value != current.token.value):
            return Obtained(newer)
    if isinstance(got, ProviderError):
        return (yield from _failed(job, got, grant))
    copy = _copy_of(job, got, before)
    if current is not None and usable(current, at.clock) and not _better(job, copy, current):
        return (yield from _unchanged(job, grant, current, at))
    return (yield from _commit(job, grant, copy, at, took=at.clock - before.clock))


def _ask(job: Job, grant: LeaseGrant | None) -> Flow[Token | ProviderError]:
    """Make the one call to the provider; a token that is useless on arrival is an error."""
    before = yield from now()
    limit = min(job.policy.fetch_timeout, job.deadline - before.clock)
    previous = job.latest or (job.current.token if job.current is not None else None)
    got = yield from fetch(previous, limit, job.reason, grant)
    if isinstance(got, ProviderError):
        return got
    at = yield from now()
    if got.value in job.refused:
        return ProviderUnavailable(f"{_who(job)}: the provider gave the refused token again; try again later")
    if not usable(_copy_of(job, got, before), at.clock):
        return ProviderUnavailable(
            f"{_who(job)}: the token had ended when it arrived (lifetime {got.lifetime:.1f}s, "
            f"fetch {at.clock - before.clock:.1f}s); check the provider's clock and lifetime"
        )
    return got


def _commit(
    job: Job, grant: LeaseGrant, copy: Copy, at: Instants, *, took: float | None, again_at: float | None = None
) -> Flow[Outcome]:
    """Store a copy for the fleet and return it; without the backend it is returned all the same (INV-4)."""
    kept = _kept(job, copy.token, at)
    data = _record.encode(
        copy.token,
        fence=grant.fence,
        identity=job.identity,
        reason="rejected" if copy.replaces_refused else job.reason,
        key=job.key,
        sealing=job.sealing,
        kept=kept,
        again_at=again_at,
    )
    reply = yield from commit(grant, data, copy.usable_at - at.clock + kept)
    if reply is True:
        # The record's fence, not the grant's: a fence above the largest counts as none for every reader.
        copy = replace(copy, data=data, fence=_record.fence_of(data))
    elif reply is False:  # INV-3
        yield from emit(CommitRefused(provider=job.provider, key=job.key, fence=grant.fence))
        newer = yield from _newer(job)
        if newer is not None:
            return Obtained(newer)
    if took is not None:
        yield from emit(
            TokenFetched(
                provider=job.provider,
                key=job.key,
                reason=job.reason,
                usable=copy.usable_at - at.clock,
                took=took,
                shared=reply is True,
            )
        )
    return Obtained(copy)


def _kept(job: Job, token: Token, at: Instants) -> float:
    """Return for how long the record outlives its token: as long as its refresh token may be of use."""
    if not job.refreshing or token.refresh_token is None:
        return 0.0
    ends_at = token.refresh_expires_at
    return KEPT if ends_at is None else min(max(ends_at - max(at.wall, token.expires_at), 0.0), KEPT)


def _newer(job: Job) -> Flow[Copy | None]:
    """Return the record that refused ours, if it is usable."""
    before = yield from now()
    stored = yield from load(job.key)
    if stored is None or isinstance(stored, Unreachable):
        return None
    copy = yield from _read(job, stored, before)
    if copy is None or copy.token.value in job.refused:
        return None
    at = yield from now()
    return copy if usable(copy, at.clock) else None


def _unchanged(job: Job, grant: LeaseGrant, current: Copy, at: Instants) -> Flow[Outcome]:
    """Keep the current token and say so to the fleet under a new fence, so that nobody asks now, nor who starts now."""
    again_at = at.wall + unchanged_pause(current.usable_at - at.clock)
    outcome = yield from _commit(job, grant, current, at, took=None, again_at=again_at)
    copy = outcome.copy if isinstance(outcome, Obtained) else current
    return (yield from _keep(job, copy, at))


def _keep(job: Job, copy: Copy, at: Instants) -> Flow[Kept]:
    """Keep a copy that the provider had nothing better than, and put its renewal off."""
    pause = unchanged_pause(copy.usable_at - at.clock)
    yield from emit(TokenUnchanged(provider=job.provider, key=job.key, pause=pause))
    next_at = at.clock + pause
    return Kept(replace(copy, refresh_at=min(next_at, copy.usable_at)), next_at)


def _failed(job: Job, error: ProviderError, grant: LeaseGrant | None) -> Flow[Outcome]:
    """Leave a cooldown behind for the fleet (INV-7) and tell how long it lasts."""
    attempt = job.attempt + 1
    at = yield from now()
    permanent = isinstance(error, ProviderRejected)
    retry_at = error.retry_at if isinstance(error, ProviderRejected | ProviderUnavailable) else None
    if retry_at is not None:
        pause = min(max(retry_at - at.wall, 0.0), LONGEST_COOLDOWN)
    elif permanent:
        pause = min(job.policy.rejected_cooldown, LONGEST_COOLDOWN)
    else:
        pause = backoff(job.policy, attempt, (yield from draw()))
    if grant is not None:
        yield from release(grant, _cooldown(job, error, pause, attempt) if pause > 0 else None)
    yield from emit(
        FetchFailed(
            provider=job.provider,
            key=job.key,
            reason=job.reason,
            error=str(error),
            permanent=permanent,
            attempt=attempt,
            pause=pause,
            served=usable(job.current, at.clock),
        )
    )
    return Failed(error, at.clock + pause, attempt, unleased=grant is None)


def _cooldown(job: Job, error: ProviderError, remaining: float, attempt: int) -> Cooldown:
    """Return what a failure leaves behind for the fleet."""
    return Cooldown(
        identity=job.identity,
        remaining=remaining,
        permanent=isinstance(error, ProviderRejected),
        attempt=attempt,
        message=str(error),
        error=getattr(error, "error", None),
        status=getattr(error, "status", None),
    )


def _cooled(job: Job, cooldown: Cooldown) -> Flow[Outcome]:
    """Turn a cooldown that another process left into the error that it saw."""
    at = yield from now()
    remaining = min(cooldown.remaining, LONGEST_COOLDOWN)
    retry_at = at.wall + remaining
    error: ProviderError
    if cooldown.permanent:
        error = ProviderRejected(cooldown.message, error=cooldown.error, status=cooldown.status, retry_at=retry_at)
    else:
        error = ProviderUnavailable(cooldown.message, error=cooldown.error, status=cooldown.status, retry_at=retry_at)
    return Failed(error, at.clock + remaining, max(cooldown.attempt, job.attempt))


def _without_backend(job: Job) -> Flow[Outcome]:
    """Go on without the backend (INV-5): the current token for as long as may be, then a fetch, but not too often."""
    at = yield from now()
    current = job.current
    if job.refreshing:
        return _wait_for_backend(job, at)
    if current is not None and job.reason == "refresh" and at.clock < (current.refresh_at + current.usable_at) / 2:
        return Kept(current, at.clock + job.policy.probe, asked=False)
    if at.clock < job.unleased_fetch_at:
        yield from sleep(min(job.unleased_fetch_at, job.deadline) - at.clock)
    before = yield from now()
    if before.clock >= job.deadline:
        message = f"{_who(job)}: no token before the deadline, and the backend does not answer"
        return Failed(DeadlineExceeded(message), before.clock, job.attempt, unleased=True)
    got = yield from _ask(job, None)
    if isinstance(got, ProviderError):
        return (yield from _failed(job, got, None))
    at = yield from now()
    copy = _copy_of(job, got, before)
    if current is not None and usable(current, at.clock) and not _better(job, copy, current):
        return replace((yield from _keep(job, current, at)), unleased=True)
    yield from emit(
        TokenFetched(
            provider=job.provider,
            key=job.key,
            reason=job.reason,
            usable=copy.usable_at - at.clock,
            took=at.clock - before.clock,
            shared=False,
        )
    )
    return Obtained(copy)


def _wait_for_backend(job: Job, at: Instants) -> Outcome:
    """Go on without the backend and without a fetch: alone, two processes would spend one refresh token."""
    next_at = at.clock + job.policy.probe
    if job.current is not None and usable(job.current, at.clock) and job.reason == "refresh":
        return Kept(job.current, next_at, asked=False)
    message = f"{_who(job)}: the backend does not answer, and a refresh token must not be spent without a lease"
    return Failed(BackendUnavailable(f"{message}; see `tokencache doctor`"), next_at, job.attempt, unleased=True)


def read(job: Job, stored: Stored, at: Instants) -> Copy:
    """Decode a record into a copy as of ``at``; raises ``UnreadableRecord``, also for another identity's (INV-10)."""
    record = _record.decode(stored.data, key=job.key, sealing=job.sealing)
    if record.identity is not None and record.identity != job.identity:
        text = "it is for other credentials or settings; give each of them a key of its own"
        raise _record.UnreadableRecord(text)
    token = record.token
    # INV-1: the earliest of the store's countdown (which ends at the usable end), the lifetime, and the wall clock.
    remaining = token.expires_at - at.wall
    if record.lifetime is None:  # written by another program: nobody knows how long it lived, so `early` counts in full
        times = schedule(job.policy, lifetime=remaining, remaining=remaining, spread=job.spread)
        last = min(times.usable, remaining - job.policy.early)
    else:
        remaining = min(remaining, record.lifetime)
        times = schedule(job.policy, lifetime=record.lifetime, remaining=remaining, spread=job.spread)
        last = times.usable
    if stored.remaining is not None:
        last = min(last, stored.remaining - record.kept)
    again_at = _AT_ANY_TIME
    if record.again_at is not None:  # the writer's clock may be anywhere; and who starts together is to ask apart
        pause = min(record.again_at - at.wall, unchanged_pause(last))
        again_at = at.clock + pause * (1 + job.policy.jitter * (1 + job.spread) / 2)
    return Copy(
        token=token,
        data=stored.data,
        fence=record.fence,
        refresh_at=min(max(at.clock + times.refresh, again_at), at.clock + last),
        usable_at=at.clock + last,
        fetched_at=at.clock + remaining - (record.lifetime or remaining),
        got_at=at.clock,
        got_wall_at=at.wall,
        replaces_refused=record.reason == "rejected",
        again_at=again_at,
    )


def _read(job: Job, stored: Stored, at: Instants) -> Flow[Copy | None]:
    """Decode a record into a copy; tell of one that cannot be used, and go on as if it were missing.

    ``at`` is from before the record was asked for, so that a slow answer ends the countdown early, not late (INV-1).
    """
    try:
        return read(job, stored, at)
    except _record.UnreadableRecord as error:
        message = f"the record at {job.key!r} is not used and counts as missing: {error}"
        yield from emit(RecordIgnored(provider=job.provider, key=job.key, message=message))
        return None


def _acceptable(job: Job, copy: Copy) -> Flow[bool]:
    """Return whether a stored copy answers the job: usable, not refused, and news where news is wanted."""
    at = yield from now()
    if not usable(copy, at.clock) or copy.token.value in job.refused:
        return False
    current = job.current
    if current is None or not usable(current, at.clock):
        return True
    if copy.fence is not None and current.fence is not None:
        return copy.fence > current.fence  # INV-3
    if current.fence is None and copy.token.value == current.token.value:
        return job.reason == "refresh"  # got without the backend, shared by another since: no news, but no need to ask
    return copy.token.value != current.token.value and copy.usable_at > current.usable_at  # for a renewal too


def _take(job: Job, copy: Copy) -> Flow[Outcome]:
    """Adopt a stored copy; the current token under a new fence means that the provider has nothing better."""
    at = yield from now()
    current = job.current
    if current is not None and usable(current, at.clock) and copy.token.value == current.token.value:
        shared = replace(current, data=copy.data, fence=copy.fence)
        if current.data is None and at.clock < current.refresh_at:  # shared all along, or by another process since
            return Obtained(replace(shared, refresh_at=max(current.refresh_at, min(copy.again_at, current.usable_at))))
        return (yield from _keep(job, shared, at))
    yield from emit(TokenLoaded(provider=job.provider, key=job.key, usable=copy.usable_at - at.clock))
    return Obtained(copy)


def _better(job: Job, copy: Copy, current: Copy) -> bool:
    """Return whether to give up ``current`` for ``copy``: another token that ends later, or any other on demand."""
    if copy.token.value == current.token.value:
        return False
    return job.reason == "renew" or copy.usable_at > current.usable_at


def _copy_of(job: Job, token: Token, before: Instants) -> Copy:
    """Return the local copy of a token whose life counts from ``before`` its request was sent."""
    times = schedule(job.policy, lifetime=token.lifetime, remaining=token.lifetime, spread=job.spread)
    return Copy(
        token=token,
        data=None,
        fence=None,
        refresh_at=before.clock + times.refresh,
        usable_at=before.clock + times.usable,
        fetched_at=before.clock,
        got_at=before.clock,
        got_wall_at=before.wall,
        replaces_refused=job.reason == "rejected",
    )


def _who(job: Job) -> str:
    """Return the beginning of a message: which provider, which key."""
    return f"[{job.provider}] {job.key!r}"
