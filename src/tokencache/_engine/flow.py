"""The flow: how one process of a fleet gets a token, written once as generators of effects.

The invariants (ARCHITECTURE.md) that it keeps, cited below by their numbers:

INV-1 never late · INV-2 one fetch · INV-3 newest wins · INV-4 still good, still served · INV-5 backend outage is not
token outage · INV-6 one 401, one renewal · INV-7 one process asks a failing provider · INV-10 never another's token

Transitions of :func:`obtain`::

    start ──no usable token──► load ──usable──► Obtained
      │                         │ └─unreachable──► without backend
      └──renewal──► lease ◄─────┘ miss
                    ├─ Found ─── acceptable ──► Obtained        (else lease again, having seen that record)
                    ├─ Held ──── by a holder ─► wait ──► lease
                    │        └── cooldown ────► Failed
                    ├─ Granted ─► fetch ─ token ──► commit ─ stored ──► Obtained
                    │                │                    ├─ refused ─► load ──► Obtained (the newer one)
                    │                │                    └─ unreachable ─► Obtained, not shared
                    │                ├─ same token ─► commit the current one anew ──► Kept
                    │                └─ error ──► release with a cooldown ──► Failed
                    └─ unreachable ─► without backend ─ current is usable, not yet urgent ──► Kept
                                                    └─ else fetch ──► Obtained, not shared, or Failed

A flow ends at its deadline with ``Failed(DeadlineExceeded)``. It does no I/O and has no clock, lock or random source.
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
from tokencache.errors import (
    BackendUnavailable,
    ConfigurationError,
    DeadlineExceeded,
    ProviderError,
    ProviderRejected,
    ProviderUnavailable,
)
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

SHORTEST_WAIT: Final = 0.02  # seconds
LONGEST_PAUSE: Final = 0.2  # seconds between leases that change nothing
KEPT: Final = 90 * 86_400.0
"""How long a refresh token of unknown lifetime is kept after its access token ended, in seconds."""
_MOST_ATTEMPTS: Final = 1_000_000  # the number comes from the store, and is written there again
_AT_ANY_TIME: Final = -math.inf


@dataclass(frozen=True, slots=True)
class Copy:
    """A token as one process holds it. The instants are readings of that process's steady clock.

    ``data`` is the record in the backend, ``None`` while the token is not shared. ``replaces_refused`` is true if the
    token was fetched because the one before it was refused. ``fetched_at`` is when the provider gave the token.
    ``got_at`` and ``got_wall_at`` are when this process got it, by the steady and the wall clock. ``again_at`` is when
    to ask the provider again, if the record says that the provider had no newer token.
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
    """A usable token, fetched here or by another process."""

    copy: Copy


@dataclass(frozen=True, slots=True)
class Kept:
    """The current token stays until the next flight at ``next_at``.

    ``asked``: this or another process asked the provider, which has no newer token. ``unleased``: it was asked
    without a lease.
    """

    copy: Copy
    next_at: float
    asked: bool = True
    unleased: bool = False


@dataclass(frozen=True, slots=True)
class Failed:
    """No new token; do not ask before ``next_at``.

    ``unleased``: the backend did not answer either, so it cannot end the cooldown early.
    """

    error: TokenCacheError
    next_at: float
    attempt: int
    unleased: bool = False


Outcome: TypeAlias = Obtained | Kept | Failed


@dataclass(frozen=True, slots=True)
class Job:
    """The input of one run of the flow.

    ``current`` is the local copy, usable or not. ``refused`` holds the values of tokens that a resource server refused.
    The flow gives up at its ``deadline``. ``unleased_fetch_at`` is the earliest moment of a fetch without a lease.
    ``attempt`` counts the known failures in a row. ``failure`` is the last of them; it holds until its ``next_at``.
    ``contested`` holds the keys at which this process has seen two identities; the flow adds to it.
    ``spread`` is this process's place in the jitter. ``latest`` is the token of a newer record that was found but not
    taken.

    ``refreshing``: only the last token's refresh token leads to the next token. Then the record outlives its token and
    is never deleted, and no process fetches without a lease.
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
    contested: set[str] = field(default_factory=set[str], compare=False)


def usable(copy: Copy | None, clock: float) -> bool:
    """Return whether callers may get this copy's token at ``clock`` (INV-1)."""
    return copy is not None and clock < copy.usable_at


def obtain(job: Job) -> Flow[Outcome]:
    """Get a token that satisfies ``job``: share one, renew one, or fetch one under the lease."""
    at = yield from now()
    current = job.current
    seen = current.data if current is not None else None

    # Without a usable token, a read may be enough. A renewal needs the lease, whose answer has a newer record.
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
    """Delete the stored record if it holds the token ``value`` (compare-and-discard); return whether it was deleted."""
    if job.refreshing:  # the record holds the refresh token; `refused` keeps its access token out of use
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
    """Ask for the lease until there is a token, a failure, or the deadline has passed."""
    vain = 0  # turns in a row that took no time and changed nothing
    while True:
        at = yield from now()
        if at.clock >= job.deadline:
            message = f"{_who(job)}: no token before the deadline; another process holds the lease, or calls are slow"
            return Failed(DeadlineExceeded(message), at.clock, job.attempt)

        reply = yield from lease(job.key, job.owner, job.identity, seen, job.policy.lease)
        match reply:
            case Unreachable():
                return (yield from _without_backend(job))
            case Found(stored=stored):
                copy = yield from _read(job, stored, at)
                if copy is not None and (yield from _acceptable(job, copy)):
                    return (yield from _take(job, copy))
                # Not for us, or at its end. Naming it as seen makes the next answer a lease.
                seen = stored.data
                job = _knowing(job, copy)
                yield from _pause(job, vain)
                vain += 1
            case Held(cooldown=Cooldown() as cooldown):
                return (yield from _cooled(job, cooldown))
            case Held(remaining=remaining):
                yield from _pause(job, vain)
                at = yield from now()
                pause = min(max(remaining, SHORTEST_WAIT), max(job.deadline - at.clock, 0.0))
                woken = yield from wait(job.key, seen, pause)
                if isinstance(woken, Stored):
                    copy = yield from _read(job, woken, at)
                    if copy is not None and (yield from _acceptable(job, copy)):
                        return (yield from _take(job, copy))
                after = yield from now()
                early = woken is not None or after.clock - at.clock < min(pause, SHORTEST_WAIT)
                vain = vain + 1 if early else 0
            case Granted(lease=grant):
                return (yield from _fetch(job, grant))
            case _:
                assert_never(reply)


def _pause(job: Job, vain: int) -> Flow[None]:
    """Wait a moment if the last turns were in vain, longer after each: no answer may keep the loop busy."""
    if vain:
        at = yield from now()
        pause = min(SHORTEST_WAIT * 2.0 ** min(vain - 1, 10), LONGEST_PAUSE) * (1 + (yield from draw()))
        yield from sleep(max(min(pause, job.deadline - at.clock), 0.0))


def _knowing(job: Job, copy: Copy | Failed | None) -> Job:
    """Return the job with the token of a newer record as ``latest``: its refresh token is still good."""
    return job if not isinstance(copy, Copy) or copy.token.refresh_token is None else replace(job, latest=copy.token)


def _fetch(job: Job, grant: LeaseGrant) -> Flow[Outcome]:
    """Fetch under the lease and commit. The driver frees the lease, however the fetch ends."""
    current = job.current
    at = yield from now()

    # INV-5: the token was fetched while the backend was unreachable, and is shared now.
    if current is not None and current.data is None and job.reason == "refresh" and at.clock < current.refresh_at:
        return (yield from _commit(job, grant, current, at, took=None))

    # INV-7: the backend lost the cooldown, or another identity's displaced it, but this process knows it.
    failure = job.failure
    if failure is not None and at.clock < failure.next_at and isinstance(failure.error, ProviderError):
        yield from release(grant, _cooldown(job, failure.error, failure.next_at - at.clock, failure.attempt))
        return failure

    before = at
    got = yield from _ask(job, grant)
    at = yield from now()

    # The lease was lost, and its next holder has perhaps spent the refresh token and stored a token.
    if job.refreshing and isinstance(got, ProviderRejected) and got.error == "invalid_grant":
        newer = yield from _newer(job)
        if newer is not None and (current is None or newer.token.value != current.token.value):
            return Obtained(newer)
    if isinstance(got, ProviderError):
        return (yield from _failed(job, got, grant))

    copy = _copy_of(job, got, before, took=at.clock - before.clock)
    if current is not None and usable(current, at.clock) and not _better(job, copy, current):
        return (yield from _unchanged(job, grant, current, at))
    return (yield from _commit(job, grant, copy, at, took=at.clock - before.clock))


def _ask(job: Job, grant: LeaseGrant | None) -> Flow[Token | ProviderError]:
    """Call the provider once. A token that cannot be used on arrival is an error."""
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
    """Store a copy for the fleet and return it; if the backend does not answer, it is still returned (INV-4)."""
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
        # The fence as readers see it: one above the largest is missing for them.
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
    """Return how long the record outlives its token, in seconds: as long as its refresh token may be valid."""
    if not job.refreshing or token.refresh_token is None:
        return 0.0
    ends_at = token.refresh_expires_at
    return KEPT if ends_at is None else min(max(ends_at - max(at.wall, token.expires_at), 0.0), KEPT)


def _newer(job: Job) -> Flow[Copy | None]:
    """Return the stored record as a copy, if it is usable here."""
    before = yield from now()
    stored = yield from load(job.key)
    if stored is None or isinstance(stored, Unreachable):
        return None
    copy = yield from _read(job, stored, before)
    if not isinstance(copy, Copy) or copy.token.value in job.refused:
        return None
    at = yield from now()
    return copy if usable(copy, at.clock) else None


def _unchanged(job: Job, grant: LeaseGrant, current: Copy, at: Instants) -> Flow[Outcome]:
    """Keep the current token and commit it under a new fence, so that no other process asks the provider now."""
    again_at = at.wall + unchanged_pause(current.usable_at - at.clock)
    outcome = yield from _commit(job, grant, current, at, took=None, again_at=again_at)
    copy = outcome.copy if isinstance(outcome, Obtained) else current
    return (yield from _keep(job, copy, at))


def _keep(job: Job, copy: Copy, at: Instants) -> Flow[Kept]:
    """Keep a copy, because the provider had no newer token, and postpone its renewal."""
    pause = unchanged_pause(copy.usable_at - at.clock)
    yield from emit(TokenUnchanged(provider=job.provider, key=job.key, pause=pause))
    next_at = at.clock + pause
    return Kept(replace(copy, refresh_at=min(next_at, copy.usable_at)), next_at)


def _failed(job: Job, error: ProviderError, grant: LeaseGrant | None) -> Flow[Outcome]:
    """Leave a cooldown for the fleet (INV-7), and return the failure with the cooldown's end."""
    attempt = job.attempt + 1
    at = yield from now()
    permanent = isinstance(error, ProviderRejected)
    retry_at = error.retry_at if isinstance(error, ProviderRejected | ProviderUnavailable) else None
    if permanent and retry_at is None:
        pause = job.policy.rejected_cooldown
    else:  # a Retry-After of 0 or in the past does not remove our own backoff (INV-7)
        pause = max(backoff(job.policy, attempt, (yield from draw())), (retry_at or at.wall) - at.wall)
    pause = min(pause, LONGEST_COOLDOWN)

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
    """Return the cooldown that a failure leaves for the fleet."""
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
    """Return the failure that a cooldown of another process stands for."""
    at = yield from now()
    remaining = min(cooldown.remaining, LONGEST_COOLDOWN)
    retry_at = at.wall + remaining
    error: ProviderError
    if cooldown.permanent:
        error = ProviderRejected(cooldown.message, error=cooldown.error, status=cooldown.status, retry_at=retry_at)
    else:
        error = ProviderUnavailable(cooldown.message, error=cooldown.error, status=cooldown.status, retry_at=retry_at)
    return Failed(error, at.clock + remaining, min(max(cooldown.attempt, job.attempt), _MOST_ATTEMPTS))


def _without_backend(job: Job) -> Flow[Outcome]:
    """Go on without the backend (INV-5): keep the current token at first, then fetch, at most once per ``probe``."""
    at = yield from now()
    current = job.current
    if job.refreshing:
        return _wait_for_backend(job, at)

    # A renewal at the start of the window would make each process of the fleet fetch during a short outage.
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
    copy = _copy_of(job, got, before, took=at.clock - before.clock)
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
    """Go on without backend and fetch: without leases, two processes could spend the same refresh token."""
    next_at = at.clock + job.policy.probe
    if job.current is not None and usable(job.current, at.clock) and job.reason == "refresh":
        return Kept(job.current, next_at, asked=False)
    message = f"{_who(job)}: the backend does not answer, and a refresh token must not be spent without a lease"
    return Failed(BackendUnavailable(f"{message}; see `tokencache doctor`"), next_at, job.attempt, unleased=True)


def read(job: Job, stored: Stored, at: Instants) -> Copy:
    """Decode a record into a copy as of ``at``; raises ``UnreadableRecord``, also for another identity's (INV-10)."""
    record = _record.decode(stored.data, key=job.key, sealing=job.sealing)
    if record.identity is None and job.key in job.contested:
        text = (
            "it does not say whose it is, and other credentials use this key, too; give each of them a key of its own"
        )
        raise _record.UnreadableRecord(text)
    if record.identity is not None and record.identity != job.identity:
        job.contested.add(job.key)
        text = "it is for other credentials or settings; give each of them a key of its own"
        raise _record.UnreadableRecord(text)
    token = record.token

    # INV-1: the usable end is the earliest by the wall clock, the lifetime, and the store's countdown.
    remaining = token.expires_at - at.wall
    if record.lifetime is None:  # from another program: the lifetime is unknown, so `early` counts in full
        times = schedule(job.policy, lifetime=remaining, remaining=remaining, spread=job.spread)
        last = min(times.usable, remaining - job.policy.early)
    else:
        remaining = min(remaining, record.lifetime)
        times = schedule(
            job.policy,
            lifetime=record.lifetime,
            remaining=remaining,
            spread=job.spread,
            renew_after=_renew_after(token, record.lifetime),
        )
        last = times.usable
    if stored.remaining is not None:
        last = min(last, stored.remaining - record.kept)

    # The writer's clock may be wrong, so the pause has a limit; jitter spreads processes that start together.
    again_at = _AT_ANY_TIME
    if record.again_at is not None:
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


def _read(job: Job, stored: Stored, at: Instants) -> Flow[Copy | Failed | None]:
    """Decode a record into a copy; a record that cannot be used gives an event, and counts as missing.

    With ``refreshing`` it is a failure: the record may hold the only good refresh token, and a server revokes the
    whole family for an older one.

    ``at`` is from before the request for the record, so a slow answer ends the countdown early, not late (INV-1).
    """
    try:
        return read(job, stored, at)
    except _record.UnreadableRecord as error:
        meaning = "so no refresh token is spent" if job.refreshing else "and counts as missing"
        message = f"the record at {job.key!r} is not used, {meaning}: {error}"
        yield from emit(RecordIgnored(provider=job.provider, key=job.key, message=message))
        if not job.refreshing:
            return None
        remedy = "correct that, or delete the record and sign in again"
        return Failed(
            ConfigurationError(f"[{job.provider}] {message}; {remedy}"), at.clock + job.policy.probe, job.attempt
        )


def _acceptable(job: Job, copy: Copy | Failed) -> Flow[bool]:
    """Return whether a stored copy answers the job: it is usable, not refused, and newer than a usable current one.

    A failure to read it answers the job too.
    """
    if isinstance(copy, Failed):
        return True
    at = yield from now()
    if not usable(copy, at.clock) or copy.token.value in job.refused:
        return False
    current = job.current
    if current is None or not usable(current, at.clock):
        return True

    if copy.fence is not None and current.fence is not None:
        return copy.fence > current.fence  # INV-3
    # Fetched without the backend, and shared by another process since: a refresh need not ask the provider.
    if current.fence is None and copy.token.value == current.token.value:
        return job.reason == "refresh"
    return copy.token.value != current.token.value and copy.usable_at > current.usable_at


def _take(job: Job, copy: Copy | Failed) -> Flow[Outcome]:
    """Take a stored copy. The current token under a new fence means that the provider had no newer one."""
    if isinstance(copy, Failed):
        return copy
    at = yield from now()
    current = job.current
    if current is not None and usable(current, at.clock) and copy.token.value == current.token.value:
        shared = replace(current, data=copy.data, fence=copy.fence)
        if current.data is None and at.clock < current.refresh_at:  # only sharing was due, and it is shared
            return Obtained(replace(shared, refresh_at=max(current.refresh_at, min(copy.again_at, current.usable_at))))
        return (yield from _keep(job, shared, at))
    yield from emit(TokenLoaded(provider=job.provider, key=job.key, usable=copy.usable_at - at.clock))
    return Obtained(copy)


def _better(job: Job, copy: Copy, current: Copy) -> bool:
    """Return whether ``copy`` replaces ``current``: another token that ends later, or any other on ``renew``."""
    if copy.token.value == current.token.value:
        return False
    return job.reason == "renew" or copy.usable_at > current.usable_at


def _renew_after(token: Token, lifetime: float) -> float | None:
    """Return the age at which the provider wants the token renewed: ``refresh_in`` of Entra's answer, in seconds."""
    wanted = token.extra.get("refresh_in")
    if isinstance(wanted, str) and wanted.isascii() and wanted.isdigit() and len(wanted) < 12:  # noqa: PLR2004
        wanted = int(wanted)
    if isinstance(wanted, bool) or not isinstance(wanted, int | float):
        return None
    return float(wanted) if 0 < wanted < lifetime else None


def _copy_of(job: Job, token: Token, before: Instants, *, took: float = 0.0) -> Copy:
    """Return the copy of a fetched token. Its lifetime counts from ``before``, when the request was sent (INV-1).

    ``took`` is how long the fetch took, in seconds.
    """
    times = schedule(
        job.policy,
        lifetime=token.lifetime,
        remaining=token.lifetime,
        spread=job.spread,
        took=took,
        renew_after=_renew_after(token, token.lifetime),
    )
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
