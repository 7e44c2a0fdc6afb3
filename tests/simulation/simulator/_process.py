"""The third driver: one simulated process runs the real source, its calls and its flights on virtual time."""

from __future__ import annotations

import functools
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

from simulator._time import Clocks
from tokencache import _keys
from tokencache._engine import breaker
from tokencache._engine.breaker import Breaker
from tokencache._engine.context import SourceContext
from tokencache._engine.drivers import _Leases  # pyright: ignore[reportPrivateUsage]
from tokencache._engine.effects import BackendEffect, Fetch, Lease, Sleep, Wait
from tokencache._engine.flow import Failed, Kept, Obtained, obtain
from tokencache._engine.heartbeat import extend
from tokencache._engine.timer import Beat
from tokencache.errors import BackendUnavailable, DeadlineExceeded, TokenCacheError
from tokencache.ports import Granted
from tokencache.source import RunFlow, TokenSource
from tokencache.token import Token

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from simulator._plan import Arrival, Fate, Host, Plan
    from simulator._world import Surroundings
    from tokencache._engine.effects import Flow
    from tokencache._engine.flights import Flight
    from tokencache._engine.flow import Job, Outcome
    from tokencache.ports import AsyncBackend, LeaseGrant, Reason
    from tokencache.source import Steps

T = TypeVar("T")
KEY = "shared"


class NamedProvider:
    """The provider as a source sees it before it fetches: a name and an identity."""

    name = "simulated"
    key = KEY
    policy = None

    def __init__(self, number: int) -> None:
        self._identity = {"client": number}

    def identity(self) -> dict[str, object]:
        """Return the identity of the tokens."""
        return dict(self._identity)


@dataclass(frozen=True, slots=True)
class Underway:
    """A call that found no cached token: the remaining steps to get one."""

    steps: Steps[Any]


class SimulatedSource(TokenSource):
    """The real source; its process drives its calls and runs its flights."""

    __slots__ = ("_process",)

    def __init__(self, world: SourceContext, process: Process, policy: Any) -> None:
        self._process = process
        super().__init__(world, policy=policy, namespace="simulated", key=KEY)

    def _drive(self, steps: Steps[T]) -> T:
        """Hand the steps to the process."""
        return cast("T", Underway(steps))

    def _launch_thread(self, flight: Flight, reason: Reason) -> None:
        """Let the process run the flight."""
        self._process.launch(flight, reason)

    def _owner(self) -> str:
        """Return an owner that a replay repeats."""
        return self._process.next_owner()

    def landed(self, flight: Flight, outcome: Outcome) -> None:
        """Take the outcome of a flight."""
        self._landed(flight, outcome)

    def took_off(self, flight: Flight) -> None:
        """Note that a flight has a runner."""
        self._took_off(flight)

    def abandon(self, flight: Flight) -> None:
        """Abandon a flight whose runner is gone."""
        self._abandon(flight)

    def orders(self, reason: Reason) -> Job:
        """Return the orders for a flow."""
        return self._job(reason)

    @property
    def copy(self) -> Any:
        """The local copy."""
        return self._copy

    @property
    def refused(self) -> tuple[str, ...]:
        """The values that were reported as refused."""
        return self._refused

    @property
    def fingerprint(self) -> str:
        """The identity as records hold it."""
        return self._identify().fingerprint


class Process:
    """One process: it runs, is paused, crashes and restarts; its clocks never stop."""

    def __init__(self, number: int, host: Host, plan: Plan, surroundings: Surroundings) -> None:
        self.number = number
        self.host = host
        self.plan = plan
        self.around = surroundings
        self.dice: random.Random = surroundings.dice
        self.timeline = surroundings.timeline
        self.clocks = Clocks(self.timeline, base=host.base, rate=host.rate, offset=host.offset)
        self.life = 0
        self.alive = False
        self.paused_until = 0.0
        self.effects = 0
        self.threads_fail_until = 0.0
        self.launches_lost = 0
        self.stalls: list[float] = []
        self.runs: list[Run] = []
        self.calls: list[Call] = []
        self._owners = 0
        self.start()

    def start(self) -> None:
        """Start with empty caches."""
        self.life += 1
        self.alive = True
        self.runs, self.calls = [], []
        clock = self.clocks.steady
        probe = self.plan.policy.probe
        self.world = SourceContext(
            provider=cast("Any", NamedProvider(self.host.identity)),
            backend=cast("Any", self.around.network),
            async_backend=_no_async_half,
            reads=Breaker(clock, probe),
            writes=Breaker(clock, probe),
            clock=clock,
            wall=self.clocks.wall,
            observers=(),
            draw=self.dice.random,
        )
        self.source = SimulatedSource(self.world, self, self.plan.policy)
        _ = self.source.key
        self.around.referee.started(self)

    def next_owner(self) -> str:
        """Return an owner that is unique."""
        self._owners += 1
        return f"p{self.number}.{self._owners}"

    def post(self, instant: float, action: Callable[[], None]) -> None:
        """Run ``action`` in this process: after a pause, and never after a crash."""
        life = self.life

        def happen() -> None:
            if self.life != life or not self.alive:
                return
            if self.timeline.now < self.paused_until:
                self.timeline.at(self.paused_until, happen)
                return
            action()

        self.timeline.at(instant, happen)

    def soon(self, action: Callable[[], None]) -> None:
        """Run ``action`` in this process at this instant."""
        self.post(self.timeline.now, action)

    def crash(self) -> None:
        """Crash, as by SIGKILL: no lease is released, and no observer is notified."""
        self.alive = False
        self.around.referee.crashed(self)
        for run in self.runs:
            run.over = True
        self.runs, self.calls = [], []

    def launch(self, flight: Flight, reason: Reason) -> None:
        """Run a flight on a new thread, or on the caller's if no thread is free."""
        if self.timeline.now < self.threads_fail_until and reason == "refresh":
            self.source.abandon(flight)
            message = "can't start new thread"
            raise RuntimeError(message)
        if self.launches_lost and reason != "refresh":  # a background renewal starts within one call
            self.launches_lost -= 1
            self.around.trace(self, "interrupted before the flight took off")
            return

        def fly() -> None:
            if not flight.over:
                self.source.took_off(flight)
                job = self.source.orders(reason)
                self.around.trace(self, f"flight for reason {reason}")
                Run(self, obtain(job), lambda outcome: self._land(flight, outcome), flight=flight, job=job).send(None)

        self.post(self.timeline.now + self.dice.random() * 0.001, fly)

    def call(self, arrival: Arrival) -> None:
        """Accept a caller."""
        if arrival.kind == "renew":
            Call(self, arrival, lambda: self.source.renew(arrival.timeout), "renew")
        else:
            Call(self, arrival, lambda: self.source.token(arrival.timeout), "token")

    def report(self, arrival: Arrival, token: Token) -> None:
        """Let a caller report its token as refused."""
        self.around.referee.reported(self, token)
        Call(self, arrival, lambda: self.source.replace(token), "replace")
        self.around.referee.refusals(self)

    def interrupt(self) -> None:
        """Interrupt the flights of every thread."""
        for run in tuple(self.runs):
            run.interrupt()

    def _land(self, flight: Flight, outcome: Outcome) -> None:
        """Apply the outcome of a flight."""
        self.around.referee.landing(self, outcome)
        if self.around.tracing:
            self.around.trace(self, f"landed: {_told(outcome)}")
        self.source.landed(flight, outcome)
        self.around.referee.settled(self)


class Run:
    """A running flow: it performs effects one after another, and owns the leases that it was granted."""

    __slots__ = ("_done", "_flow", "_leases", "_torn", "began_at", "flight", "job", "over", "process", "unreachable")

    def __init__(
        self,
        process: Process,
        flow: Flow[T],
        done: Callable[[T], None],
        *,
        flight: Flight | None = None,
        job: Job | None = None,
        torn: Callable[[], None] | None = None,
    ) -> None:
        self.process = process
        self.flight = flight
        self.job = job
        self.over = False
        self.unreachable = False
        self.began_at = process.timeline.now
        self._flow = flow
        self._done = done
        self._torn = torn
        self._leases = _Leases()
        process.runs.append(self)

    def send(self, reply: object) -> None:
        """Continue with the reply to the last effect, up to the next effect that takes time."""
        process = self.process
        around, world = process.around, process.world
        while not self.over:
            try:
                effect = self._flow.send(reply)
            except StopIteration as end:
                self._end()
                self._done(end.value)
                return
            around.effects += 1
            if isinstance(effect, BackendEffect | Fetch):
                if isinstance(effect, BackendEffect):
                    reply = breaker.refusal(effect, world)
                    if reply is not None:
                        self.unreachable = True
                        continue
                process.effects += 1
                fate = None if around.healed else process.plan.fates.get((process.number, process.effects))
                if fate is not None and fate.endswith("before"):
                    self._meet(fate)
                    return
                if isinstance(effect, Fetch):
                    self._fetch(effect)
                else:
                    around.network.call(self, effect)
                if fate is not None:
                    later = process.timeline.now + process.dice.random() * 0.01
                    process.post(later, functools.partial(self._meet, fate))
                return
            if isinstance(effect, Sleep):
                process.post(process.clocks.after(effect.duration), lambda: self.send(None))
                return
            reply = world.simple(effect)

    def answer(self, effect: BackendEffect, reply: object) -> None:
        """Take the store's reply."""
        if self.over:
            return
        process = self.process
        if isinstance(reply, BackendUnavailable):
            self.unreachable = True
            reply = breaker.failed(effect, reply, process.world)
        else:
            breaker.answered(effect, process.world)
            self._leases.note(effect, reply)
            if isinstance(effect, Lease) and isinstance(reply, Granted):
                process.around.referee.holds(self, reply.lease)
        if process.stalls and not isinstance(effect, Wait):
            stall = process.stalls.pop()
            process.around.referee.loss("stall", process.timeline.now + stall)
            process.around.trace(process, f"this thread stands still for {stall:g}s")
            process.post(process.timeline.now + stall, lambda: self.send(reply))
            return
        self.send(reply)

    def interrupt(self) -> None:
        """End as if an exception hit the thread: the driver frees the lease, and the flow's waiters try again."""
        if self.over:
            return
        process = self.process
        process.around.trace(process, "interrupted in its flight" if self.flight else "interrupted")
        process.around.referee.interrupted(self)
        self._end()
        self._flow.close()
        for lease in self._leases.held.values():
            process.around.network.let_go(process, lease)
        if self.flight is not None:
            process.source.abandon(self.flight)
        if self._torn is not None:
            self._torn()

    def _meet(self, fate: Fate) -> None:
        """Apply a fate to this flow."""
        if self.over:
            return
        if fate.startswith("crash"):
            process = self.process
            process.around.trace(process, f"crashes {fate.split()[1]} an effect")
            process.crash()
            process.around.revive(process, 1.0)
        else:
            self.interrupt()

    def _end(self) -> None:
        """Deregister from the process."""
        self.over = True
        if self in self.process.runs:
            self.process.runs.remove(self)
        self.process.around.referee.ended(self)

    def _fetch(self, effect: Fetch) -> None:
        """Call the provider, with a heartbeat that extends the lease."""
        process = self.process
        beat = Beat(0.0, _never)
        if effect.lease is not None:
            self._keep(effect.lease, process.clocks.steady() + effect.timeout, beat)

        def answered(reply: object) -> None:
            beat.stop()
            if not self.over:
                self.send(reply)

        process.around.provider.fetch(self, effect, answered)

    def _keep(self, lease: LeaseGrant, deadline: float, beat: Beat) -> None:
        """Extend the lease every third of its length, until the fetch ends."""
        process = self.process

        def prolong() -> None:
            if beat.stopped or self.over:
                return
            with suppress(TokenCacheError):
                if not extend(process.world, lease, deadline, beat):
                    return
            process.post(process.clocks.after(lease.ttl / 3), prolong)

        process.post(process.clocks.after(lease.ttl / 3), prolong)


class Call:
    """One caller on its way to a token."""

    __slots__ = ("_arrival", "_patience", "_steps", "began_at", "ended", "process", "what")

    def __init__(self, process: Process, arrival: Arrival, ask: Callable[[], Any], what: str) -> None:
        self.process = process
        self.what = what
        self.ended = False
        self.began_at = process.clocks.steady()
        self._arrival = arrival
        self._steps: Steps[Any] | None = None
        self._patience = 0
        process.calls.append(self)
        if arrival.leaves_at is not None:
            process.post(max(arrival.leaves_at, process.timeline.now), self._leave)
        try:
            result = ask()
        except Exception as error:
            self._fail(error)
            return
        if isinstance(result, Underway):
            self._steps = result.steps
            self._go(None)
        else:
            self._finish(result)

    @property
    def limit(self) -> float:
        """The longest duration of the call, in seconds."""
        if self.what == "replace":  # first it drops the stored token, which takes two calls to the store
            return self.process.plan.policy.timeout + 2 * self.process.around.network.timeout
        return self._arrival.timeout

    def _go(self, reply: object) -> None:
        """Take the next step."""
        if self.ended or self._steps is None:
            return
        try:
            step = self._steps.send(reply)
            if isinstance(step, RunFlow):
                self._run(step)
                return
            if step.leads:
                self.process.source._launch_thread(step.flight, step.reason)  # pyright: ignore[reportPrivateUsage]
        except StopIteration as end:
            self._finish(end.value)
            return
        except Exception as error:
            self._fail(error)
            return
        self._wait(step.flight, step.deadline)

    def _run(self, errand: RunFlow) -> None:
        """Run a flow on this caller's own thread: an interruption of one interrupts the other."""

        def done(result: object) -> None:
            self.process.soon(lambda: self._go(result))

        Run(self.process, errand.start(), done, torn=self._leave).send(None)

    def _wait(self, flight: Flight, deadline: float) -> None:
        """Wait for a flight, no longer than the deadline."""
        process = self.process
        self._patience += 1
        turn = self._patience

        def wake() -> None:
            if turn != self._patience or self.ended:
                return
            self._patience += 1
            try:
                outcome = flight.join(0.0)
            except Exception as error:
                self._fail(error)
                return
            self._go(outcome)

        patience = flight.patience(max(0.0, deadline - process.clocks.steady()))
        process.post(process.clocks.after(patience), wake)
        flight.when_over(lambda: process.soon(wake))

    def _leave(self) -> None:
        """Cancel the call."""
        if not self.ended:
            self._end()
            if self._steps is not None:
                self._steps.close()

    def _finish(self, result: object) -> None:
        """End with a token, or without one if the caller asked for a newer one."""
        self._end()
        process = self.process
        process.around.referee.returned(self, result)
        asked = self.what == "token" or process.dice.random() < 0.3
        if isinstance(result, Token) and self._arrival.kind == "use" and asked:
            token = result

            def use() -> None:
                if process.around.provider.refuses(token.value):
                    process.around.trace(process, "a caller reports a refused token")
                    process.report(replace(self._arrival, leaves_at=None), token)

            process.post(process.timeline.now + 0.01, use)

    def _fail(self, error: Exception) -> None:
        """End with an error."""
        self._end()
        self.process.around.referee.raised(self, error)

    def _end(self) -> None:
        """Deregister from the process."""
        self.ended = True
        if self in self.process.calls:
            self.process.calls.remove(self)


def _told(outcome: Outcome) -> str:
    """Return an outcome in a few words."""
    match outcome:
        case Obtained(copy=copy):
            return f"obtained, {'shared' if copy.data is not None else 'not shared'}"
        case Kept():
            return "kept"
        case Failed(error=DeadlineExceeded()):
            return "no token before the deadline"
        case Failed(error=error):
            return f"failed, {type(error).__name__}"


def _never(beat: Beat) -> bool:
    """Do nothing."""
    del beat
    return False


def _no_async_half() -> AsyncBackend:
    """Refuse: the simulated driver is the one for threads."""
    raise NotImplementedError


def fingerprint(identity: int) -> str:
    """Return an identity in the form that records contain."""
    provider = NamedProvider(identity)
    return _keys.fingerprint(provider.name, provider.identity())
