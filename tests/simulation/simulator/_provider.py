"""The simulated provider and resource server: the true issues and ends of tokens, and the refusals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from simulator import _plan
from tokencache.errors import ProviderError, ProviderRejected, ProviderUnavailable
from tokencache.policy import early_of
from tokencache.token import Token

if TYPE_CHECKING:
    from collections.abc import Callable

    from simulator._process import Run
    from simulator._world import Surroundings
    from tokencache._engine.effects import Fetch


@dataclass(slots=True)
class Issue:
    """The truth about one token, in true time.

    ``early`` is the smallest margin that any holder applies, ``most_early`` the largest. ``offset`` and
    ``least_offset`` are the largest and smallest error of the wall clocks that computed its expiry. ``slowest`` is the
    duration of the slowest request that it answers.
    """

    value: str
    identity: int
    sent_at: float
    at: float
    expires_at: float
    early: float
    most_early: float
    offset: float
    least_offset: float
    slowest: float
    refresh_token: str | None
    healed: bool

    @property
    def usable_end(self) -> float:
        """The instant from which no caller may get it."""
        return self.expires_at - self.early

    @property
    def surely_until(self) -> float:
        """The instant until which every process should accept it: each counts its life from before its own request."""
        return self.expires_at - self.slowest - self.most_early


class Provider:
    """Issues tokens, fails as planned, and remembers everything."""

    def __init__(self, around: Surroundings) -> None:
        self.around = around
        self.issues: dict[str, Issue] = {}
        self.revoked: set[str] = set()
        self.latest: dict[int, Issue] = {}
        self.spent: set[str] = set()
        self.storm_until = 0.0
        self.calls = 0
        self._faults: dict[str, tuple[float, float]] = {}

    def fail(self, name: str, amount: float, until: float) -> None:
        """Fail in the way ``name`` until then."""
        self._faults[name] = (amount, until)

    def heal(self) -> None:
        """End all failures."""
        self._faults.clear()
        self.storm_until = 0.0

    def revoke(self) -> None:
        """Refuse every token issued so far."""
        self.revoked.update(self.issues)

    def refuses(self, value: str) -> bool:
        """Return whether the resource server refuses this token now."""
        now = self.around.timeline.now
        return value in self.revoked or now < self.storm_until or now >= self.issues[value].expires_at

    def fetch(self, run: Run, effect: Fetch, answered: Callable[[object], None]) -> None:
        """Accept a request; the answer comes after two ways, or at the caller's time limit."""
        around, process = self.around, run.process
        now = around.timeline.now
        around.referee.fetching(run, effect)
        total = 0.02 if around.healed else _plan.latency(around.dice, around.plan)
        hang = self._fault("hang")
        if hang is not None:
            total += hang
        there = total * around.dice.random()
        before, offset = process.clocks.wall(), process.clocks.offset
        limit = process.clocks.after(effect.timeout)
        self.calls += 1
        around.trace(process, f"asks the provider, reason {effect.reason}{'' if effect.lease else ', without a lease'}")

        def deliver(reply: Token | ProviderError) -> None:
            around.referee.fetched(run, reply)
            if around.tracing:
                around.trace(process, f"the provider answers: {type(reply).__name__}")
            answered(reply)

        def arrive(*, late: bool = False) -> None:
            reply = self._answer(run, effect, now, before, offset)
            if not late:
                process.post(now + total, lambda: deliver(reply))

        if now + total >= limit:
            process.post(limit, lambda: deliver(ProviderUnavailable("no answer in time")))
            around.timeline.at(now + there, lambda: arrive(late=True))
            return

        around.timeline.at(now + there, arrive)

    def _fault(self, name: str) -> float | None:
        """Return the amount of a current fault."""
        amount, until = self._faults.get(name, (0.0, -1.0))
        return amount if self.around.timeline.now < until else None

    def _answer(self, run: Run, effect: Fetch, sent_at: float, before: float, offset: float) -> Token | ProviderError:
        """Answer a request at the instant of its arrival."""
        pause = self._fault("too many")
        if pause is not None:
            return ProviderUnavailable("429", status=429, retry_at=before + pause)
        if self._fault("server error") is not None:
            return ProviderUnavailable("503", status=503)
        if self._fault("reject") is not None:
            return ProviderRejected("401", status=401)
        if self._fault("no token") is not None:
            return ProviderUnavailable("no token in the answer")
        return self._issue(run, effect, sent_at, before, offset)

    def _issue(self, run: Run, effect: Fetch, sent_at: float, before: float, offset: float) -> Token:
        """Issue a token, or the same one again; the receiver counts its life from before the request."""
        around = self.around
        now, identity, plan = around.timeline.now, run.process.host.identity, around.plan
        refresh = effect.previous.refresh_token if effect.previous is not None else None
        if plan.rotates and refresh is not None:
            around.referee.refreshing(effect, spent=refresh in self.spent)
            self.spent.add(refresh)
        issue = self.latest.get(identity)
        if not self._repeats(issue):
            number = len(self.issues) + 1
            if plan.kills_old and issue is not None:
                self.revoked.add(issue.value)
            issue = Issue(
                value=f"t{number}",
                identity=identity,
                sent_at=sent_at,
                at=now,
                expires_at=now + plan.lifetime,
                early=plan.lifetime,
                most_early=0.0,
                offset=offset,
                least_offset=offset,
                slowest=0.0,
                refresh_token=f"r{number}" if plan.rotates else None,
                healed=effect.reason == "rejected",
            )
            self.issues[issue.value] = self.latest[identity] = issue
        assert issue is not None
        issue.healed &= effect.reason == "rejected"  # a process that gets it again for another reason cannot tell
        remaining = issue.expires_at - now
        early = early_of(plan.policy, remaining)
        issue.early, issue.most_early = min(issue.early, early), max(issue.most_early, early)
        issue.slowest = max(issue.slowest, now - sent_at)
        issue.offset, issue.least_offset = max(issue.offset, offset), min(issue.least_offset, offset)
        return Token(
            issue.value,
            expires_at=before + remaining,
            issued_at=before,
            refresh_token=issue.refresh_token,
        )

    def _repeats(self, issue: Issue | None) -> bool:
        """Return whether the repeating provider gives the latest token again."""
        if issue is None or not self.around.plan.unchanged or issue.value in self.around.referee.reports:
            return False
        return self.around.timeline.now < issue.expires_at - 0.1 * self.around.plan.lifetime
