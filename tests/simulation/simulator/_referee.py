"""The referee: knows the truth and holds every step against the invariants, with the design's exact bounds.

INV-1 a token is handed out until its usable end by true time, plus what the best evidence erred by: a holder who
fetched it counts from before the request; one who shares it has the store's countdown, the wall clock and the token's
whole life to go by, and is allowed the smallest of their three errors, and the drift of its clock.
INV-2 two fetches at once need a lost lease, each extra fetch one loss of its own; a fetch without a lease needs a
store that did not answer; a process that was shown a usable record does not fetch.
INV-3 no older record over a newer one, in the store or in a process. INV-4 no error while a usable token is held.
INV-5 without the store a process fetches one at a time and once per ``probe``; what it fetched is shared in the end.
INV-6 a refused token does not return to the process that refused it, no other is dropped, a young replacement stays.
INV-7 the pauses that a provider's failure asks for are kept by all. INV-8 every call ends by its deadline, and each
process gets a token after the last fault. INV-10 no identity gets another's token.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NoReturn, cast

from simulator._process import fingerprint
from tokencache._engine.effects import Commit
from tokencache._engine.flow import Kept, Obtained
from tokencache.errors import DeadlineExceeded, ProviderError, ProviderRejected, ProviderUnavailable, TokenCacheError
from tokencache.policy import LONGEST_COOLDOWN, settle_of, unchanged_pause
from tokencache.ports import Found, Stored
from tokencache.token import Token

if TYPE_CHECKING:
    from simulator._process import Call, Process, Run
    from simulator._store import Entry
    from simulator._world import Surroundings
    from tokencache._engine.effects import BackendEffect, Fetch
    from tokencache._engine.flow import Copy, Outcome
    from tokencache.ports import Cooldown, LeaseGrant

_DRIFT: Final = 4.1e-4
"""How far two clocks may drift apart, in seconds per second: twice the hosts' 200 ppm and what a slew adds."""
_TINY: Final = 0.002
_WINDOWS: Final = ("refuse", "black hole", "read-only", "slow", "lose replies", "pause", "stall")


class Violation(Exception):
    """An invariant does not hold."""


@dataclass(slots=True)
class Fetching:
    """A fetch under a lease, from its grant until its commit was performed."""

    run: Run
    grant: LeaseGrant
    since: float
    ends_at: float
    extra: bool = False


class Referee:
    """Checks one schedule against the invariants."""

    def __init__(self, around: Surroundings) -> None:
        self.around = around
        self.reports: set[str] = set()
        self._losses = 0
        self._lost_at = -1.0
        self._lost_until = -1.0
        self._extra = 0
        self._granted: dict[int, tuple[float, Entry | None]] = {}
        self._holding: dict[Run, LeaseGrant] = {}
        self._fetching: dict[int, Fetching] = {}
        self._alone: dict[int, tuple[int, float, float, Run]] = {}
        self._quiet: dict[int, tuple[float, float, str]] = {}
        self._repeated: dict[str, tuple[float, float]] = {}
        self._lags: dict[bytes, float] = {}
        self._errors: dict[tuple[int, str], float] = {}
        self._held: dict[int, tuple[str, float, int]] = {}
        self._fences: dict[int, tuple[int, float]] = {}
        self._refused: dict[tuple[int, int, str], float] = {}
        self._windows: dict[str, dict[int, float]] = {}
        self._together = len({host.identity for host in around.plan.hosts}) == 1  # else their records collide
        self._stalls = any(each.name == "stall" for each in around.plan.happenings)
        self._skewed = any(abs(host.offset) > 1 for host in around.plan.hosts)
        self._prints = {number: fingerprint(number) for number in {host.identity for host in around.plan.hosts}}

    # --- excuses for an extra fetch -----------------------------------------------------------------------------

    def loss(self, name: str, until: float) -> None:
        """Note a misfortune that may cost a lease, a record or a cooldown."""
        now = self.around.timeline.now
        self._losses += len(self.around.plan.hosts) if name in _WINDOWS else 1
        self._lost_at = now
        if name in _WINDOWS:
            self._lost_until = max(self._lost_until, until + self.around.network.timeout)
        if name == "step":
            self._skewed = True

    def _excused(self, since: float) -> bool:
        """Return whether there has been a loss since then."""
        return self._lost_at >= since or self._lost_until >= since

    def started(self, process: Process) -> None:
        """Note a process that starts without knowledge."""
        for place in [place for place in self._errors if place[0] == process.number]:
            del self._errors[place]
        self._held.pop(process.number, None)
        self._fences.pop(process.number, None)

    def crashed(self, process: Process) -> None:
        """Note a crash."""
        self.loss("crash", 0.0)
        for run in process.runs:
            self.ended(run)
        self._alone.pop(process.number, None)

    def interrupted(self, run: Run) -> None:
        """Note an interrupted flight."""
        del run
        self.loss("interrupt", 0.0)

    # --- the store ----------------------------------------------------------------------------------------------

    def granted(self, grant: LeaseGrant, entry: Entry | None) -> None:
        """Note a lease, and the record at that time."""
        self._granted[grant.fence] = (self.around.timeline.now, entry)

    def holds(self, run: Run, grant: LeaseGrant) -> None:
        """Note a run that knows of its lease."""
        self._holding[run] = grant

    def performing(self, run: Run, effect: BackendEffect, sent_at: float) -> None:
        """Note the delay with which a record's countdown starts."""
        del run
        if isinstance(effect, Commit):
            lag = self.around.timeline.now - sent_at
            self._lags[effect.data] = max(self._lags.get(effect.data, 0.0), lag)

    def reading(self, run: Run, reply: Any) -> Any:
        """Note the possible error of a shared record's evidence; return the reply unchanged."""
        stored = reply.stored if isinstance(reply, Found) else reply
        if isinstance(stored, Stored):
            value = _fields(stored.data)["accessToken"]
            issue = self.around.provider.issues[value]
            process = run.process
            now = self.around.timeline.now
            countdown = self._lags.get(stored.data, 0.0)
            wall = issue.offset - process.clocks.offset + 0.001
            error = max(0.0, min(countdown, wall, now - issue.at))
            place = (process.number, value)
            self._errors[place] = max(self._errors.get(place, 0.0), error)
        return reply

    def _reach(self, process: Process) -> float:
        """Return the longest time of a reply on its way to a process."""
        return process.host.distance * 1.5 + (0.7 if self._lost_until >= self.around.timeline.now else 0.0)

    def committed(self, lease: LeaseGrant, data: bytes, before: Entry | None) -> None:
        """Check a change of the record against INV-3."""
        fence, old = _fields(data)["fence"], None if before is None else _fields(before.data)["fence"]
        if old is not None and fence < old:
            self._violated("INV-3", f"the record of fence {fence} replaces that of fence {old}")
        self._fetching.pop(lease.fence, None)

    def released(self, lease: LeaseGrant, cooldown: Cooldown | None) -> None:
        """Note a lease given back after a failure; one without a cooldown may still have a commit to come."""
        if cooldown is not None:
            self._fetching.pop(lease.fence, None)

    def discarded(self, key: str, entry: Entry) -> None:
        """Check a deletion against INV-6: only a reported token may be deleted."""
        del key
        if _fields(entry.data)["accessToken"] not in self.reports:
            self._violated("INV-6", "a token that no caller reported was dropped from the store")

    # --- the provider -------------------------------------------------------------------------------------------

    def fetching(self, run: Run, effect: Fetch) -> None:
        """Check the start of a fetch against INV-2, INV-5, INV-6 and INV-7."""
        now, process = self.around.timeline.now, run.process
        if effect.lease is None:
            self._alone_fetch(run)
            return
        since, entry = self._granted[effect.lease.fence]
        mine = Fetching(run, effect.lease, since, now + effect.timeout * (1 + _DRIFT))
        for fence, other in tuple(self._fetching.items()):
            if other.run.over or now >= other.ends_at:
                del self._fetching[fence]
            elif fence != effect.lease.fence and other.run.process.host.identity == process.host.identity:
                lost = min(mine, other, key=lambda each: each.grant.fence)  # the later grant shows it
                self._extra += not lost.extra
                lost.extra = True
                if not self._excused(min(since, other.since)) or self._extra > self._losses:
                    self._violated("INV-2", "two fetches at once, and no lease was lost")
        self._fetching[effect.lease.fence] = mine
        if entry is not None:
            self._hold_against(run, entry, now)
        issue = self.around.provider.latest.get(process.host.identity)
        if effect.reason == "rejected" and issue is not None and issue.healed and not self._skewed:
            # Other processes compute its age by their wall clocks, which differ by up to 0.1 s on ordinary hosts.
            settled = issue.sent_at - 0.1 + settle_of(self.around.plan.policy, self.around.plan.lifetime) * (1 - _DRIFT)
            refused = run.job is not None and issue.value in run.job.refused
            if refused and now < settled and not self._excused(issue.sent_at):
                self._violated("INV-6", "a replacement that is refused at once is replaced in turn")
        until, since, why = self._quiet.get(process.host.identity, (-1.0, -1.0, ""))
        if now < until and not self._excused(since) and self._together:
            self._violated("INV-7", f"the provider is asked {until - now:.3f}s too early after {why}")

    def _hold_against(self, run: Run, entry: Entry, now: float) -> None:
        """Check a fetch against the record at the time of its lease."""
        job, fields, process = run.job, _fields(entry.data), run.process
        assert job is not None
        issue = self.around.provider.issues[fields["accessToken"]]
        if fields["identity"] != self._prints[process.host.identity]:
            return
        if issue.value in job.refused:
            return
        offset = process.clocks.offset
        wrong = (
            max(abs(offset - issue.offset), abs(offset - issue.least_offset))
            + (now - issue.at) * _DRIFT
            + 1.1 * self._reach(process)
        )
        if job.current is not None and job.current.data == entry.data:
            wrong += self.around.plan.policy.lease  # a copy from a wake-up counts from before the wait
        if now + wrong + 0.05 >= issue.surely_until or self._excused(run.began_at):
            return
        current = job.current
        if current is None or process.clocks.steady() >= current.usable_at:
            self._violated("INV-2", "a fetch although a usable record was stored")
        if current.fence is not None and fields["fence"] > current.fence:
            self._violated("INV-2", "a fetch although a newer record was stored")

    def _alone_fetch(self, run: Run) -> None:
        """Check a fetch without a lease against INV-2 and INV-5."""
        process, steady, policy = run.process, run.process.clocks.steady(), self.around.plan.policy
        if not run.unreachable:
            self._violated("INV-2", "a fetch without a lease although the store answered")
        now = self.around.timeline.now
        life, at, before, other = self._alone.get(process.number, (0, 0.0, 0.0, run))
        pause = policy.backoff / 10 if run.job is not None and run.job.attempt else policy.probe
        if life == process.life:
            if not other.over and other is not run and steady - before < policy.timeout:
                self._violated("INV-5", "two fetches without the store at once in one process")
            if steady - before < pause * (1 - 1e-3) and self._lost_at < at:
                self._violated("INV-5", f"a fetch without the store {steady - before:.3f}s after the last")
        self._alone[process.number] = (process.life, now, steady, run)

    def refreshing(self, effect: Fetch, *, spent: bool) -> None:
        """Check the use of a refresh token against INV-3: none is used twice while the store has its successor."""
        if spent and effect.lease is not None and self._together:
            since, entry = self._granted[effect.lease.fence]
            latest = next(reversed(self.around.provider.issues))
            if entry is not None and _fields(entry.data)["accessToken"] == latest and not self._excused(since):
                self._violated("INV-3", "a refresh token is used a second time though the store has the next one")

    def fetched(self, run: Run, reply: Token | ProviderError) -> None:
        """Note an answer: the pause that it demands, and whether it was the same token again."""
        now, process, policy = self.around.timeline.now, run.process, self.around.plan.policy
        grant = self._holding.get(run)
        if run.over:
            return
        if isinstance(reply, Token):
            previous = run.job.current if run.job is not None else None
            if previous is not None and previous.token.value == reply.value and run.job is not None:
                last, granted = self._repeated.get(reply.value, (-60.0, -60.0))
                since = now if grant is None else self._granted[grant.fence][0]
                again = since - 29 < last < since and not self._excused(granted)
                if again and run.job.reason == "refresh" and previous.fence is not None and self._comparable(grant):
                    self._violated("INV-2", "asked again soon after the provider had no newer token")
                if run.job.reason == "refresh" and grant is not None:
                    self._repeated[reply.value] = now, since
            return
        if grant is not None:
            self._fetching.pop(grant.fence, None)
        else:
            return
        if isinstance(reply, ProviderRejected):
            pause, why = min(policy.rejected_cooldown, LONGEST_COOLDOWN), "it rejected the request for good"
        elif isinstance(reply, ProviderUnavailable) and reply.retry_at is not None:
            pause, why = min(reply.retry_at - process.clocks.wall(), LONGEST_COOLDOWN), "Retry-After"
        else:
            pause, why = policy.backoff / 10, "a failure"
        self._quiet[process.host.identity] = (now + pause * (1 - _DRIFT) - _TINY, self._granted[grant.fence][0], why)

    def _comparable(self, grant: LeaseGrant | None) -> bool:
        """Return whether this lease's holder could learn from the store the same as the other processes."""
        if grant is None or not self._together or self._skewed:
            return False
        since, entry = self._granted[grant.fence]
        if entry is None:
            return False
        issue = self.around.provider.issues[_fields(entry.data)["accessToken"]]
        return since + self.around.plan.policy.lease < issue.surely_until

    def ended(self, run: Run) -> None:
        """Note a flow's end."""
        grant = self._holding.pop(run, None)
        if grant is not None:
            self._fetching.pop(grant.fence, None)

    # --- processes and callers ----------------------------------------------------------------------------------

    def landing(self, process: Process, outcome: Outcome) -> None:
        """Note a process's new token."""
        if not isinstance(outcome, Obtained | Kept):
            return
        copy = outcome.copy
        if copy.token.value in process.source.refused:
            return
        value, usable_at, fence = self._held.get(process.number, ("", 0.0, 0))
        gone = value in process.source.refused or process.clocks.steady() >= usable_at
        newer = isinstance(outcome, Obtained) and (copy.fence is None or copy.fence >= fence)
        if gone or newer:  # a late flight's earlier copy does not replace the current one
            self._held[process.number] = (copy.token.value, copy.usable_at, copy.fence or 0)
        if isinstance(outcome, Obtained) and not self._skewed and not self._excused(self.around.timeline.now):
            self._hold_to_pause(process, copy)
        window = copy.usable_at - copy.refresh_at
        if isinstance(outcome, Obtained) and window > 0 and self.around.plan.policy.jitter:
            windows = self._windows.setdefault(copy.token.value, {})
            windows[process.number] = window
            if sum(abs(other - window) < 1e-6 for other in windows.values()) >= 3:
                self._violated("INV-2", "three processes renew at the same instant, as a herd")

    def _hold_to_pause(self, process: Process, copy: Copy) -> None:
        """Check that a process waits until its record allows the next call to the provider."""
        again_at = _fields(copy.data).get("againAt", 0.0) if copy.data is not None else 0.0
        issue, steady = self.around.provider.issues[copy.token.value], process.clocks.steady()
        left = copy.usable_at - steady
        least = left - (issue.most_early - issue.early)  # by the record, whose writer may have another `early`
        pause = min(again_at - process.clocks.wall(), unchanged_pause(least), left)
        late = self.around.plan.policy.lease + 0.2  # a copy from a wake-up counts from before the wait
        if pause > max(0.0, copy.refresh_at - steady) + late:
            self._violated("INV-2", "a process will ask again before the provider can have a newer token")

    def settled(self, process: Process) -> None:
        """Check a process's own copy against INV-3."""
        self.refusals(process)
        copy = process.source.copy
        if copy is None or copy.fence is None:
            self._fences.pop(process.number, None)
            return
        last, usable_at = self._fences.get(process.number, (0, 0.0))
        if copy.fence < last and process.clocks.steady() < usable_at and not self._losses_of_records():
            self._violated("INV-3", f"a process went back from fence {last} to {copy.fence}")
        self._fences[process.number] = copy.fence, copy.usable_at

    def _losses_of_records(self) -> bool:
        """Return whether the store itself lost records, which allows lower fences."""
        return any(each.name in {"fail over", "flush"} for each in self.around.plan.happenings)

    def reported(self, process: Process, token: Token) -> None:
        """Note a refusal. The process may keep the token: its own list of refused tokens excludes it."""
        self.reports.add(token.value)
        self._fences.pop(process.number, None)

    def returned(self, call: Call, result: object) -> None:
        """Check a caller's token against INV-1, INV-6 and INV-10."""
        process, now = call.process, self.around.timeline.now
        self._in_time(call)
        if not isinstance(result, Token):
            return
        if self.around.tracing:
            self.around.trace(process, f"{call.what}() returns {result.value}")
        issue = self.around.provider.issues.get(result.value)
        if issue is None or issue.identity != process.host.identity:
            self._violated("INV-10", "a token of another identity")
        allowed = self._errors.get((process.number, result.value), 0.0) + (now - issue.at) * _DRIFT + 1e-6
        if now >= issue.usable_end + allowed:
            self._violated(
                "INV-1", f"a token {now - issue.usable_end:.6f}s after its usable end, {allowed:.6f}s allowed"
            )
        self.refusals(process)
        refused_at = self._refused.get((process.number, process.life, result.value))
        if refused_at is not None and refused_at < call.began_at:
            self._violated("INV-6", f"{call.what}() gives a token that was reported as refused before it began")
        if result.value in process.source.refused and call.what == "replace":
            self._violated("INV-6", "a refused token was given again")

    def raised(self, call: Call, error: Exception) -> None:
        """Check a caller's error against INV-4 and INV-8."""
        process = call.process
        if self.around.tracing:
            self.around.trace(process, f"{call.what}() raises {type(error).__name__}")
        if not isinstance(error, TokenCacheError):
            self._violated("INV-8", f"{call.what}() raises {type(error).__name__}: {error}")
        self._in_time(call)
        if (
            isinstance(error, DeadlineExceeded)
            and process.clocks.steady() < call.began_at + call.limit * (1 - _DRIFT) - _TINY
        ):
            self._violated("INV-8", "a call gives up before its deadline")
        if call.what == "token":
            steady = process.clocks.steady()
            value, usable_at, _ = self._held.get(process.number, ("", 0.0, 0))
            if steady < usable_at - _TINY and value not in process.source.refused:
                self._violated("INV-4", f"{type(error).__name__} although {value} was usable")
        if self.around.healed and self.around.timeline.now > self.around.plan.horizon + 400:
            self._violated("INV-8", f"{type(error).__name__} although no fault was active")

    def _in_time(self, call: Call) -> None:
        """Check the duration of a call against INV-8; a pause of the process excuses it."""
        process = call.process
        if call.what == "replace" and self._stalls:
            return
        took = process.clocks.steady() - call.began_at
        if took > call.limit * (1 + _DRIFT) + _TINY and self.around.timeline.now - process.paused_until > took:
            self._violated("INV-8", f"{call.what}() took {took:.3f}s of {call.limit:g}s")

    def finish(self) -> None:
        """Check the end against INV-5 and INV-8: no caller waits, and all have a token that the fleet shares."""
        for process in self.around.processes:
            if process.calls:
                self._violated("INV-8", f"{len(process.calls)} calls of p{process.number} never end")
            copy = process.source.copy
            if copy is None or (copy.data is None and self.around.plan.lifetime > 60):
                self._violated("INV-5", f"the token of p{process.number} is not shared though the store is back")

    def refusals(self, process: Process) -> None:
        """Remember which tokens a process knows as refused, and since when by its own clock; it may forget them."""
        for value in process.source.refused:
            self._refused.setdefault((process.number, process.life, value), process.clocks.steady())

    def _violated(self, invariant: str, text: str) -> NoReturn:
        """End the schedule with a violation."""
        message = f"{invariant}: {text}"
        raise Violation(message)


@lru_cache(maxsize=256)
def _fields(data: bytes) -> dict[str, Any]:
    """Return the fields of a record, read independently of the code under test."""
    return cast("dict[str, Any]", json.loads(data))
