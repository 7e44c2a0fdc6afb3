"""A running schedule: the surroundings of all processes, the network to the store, the events."""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast

from simulator._plan import Arrival
from simulator._process import KEY, Process
from simulator._provider import Provider
from simulator._referee import Referee, Violation
from simulator._store import Store
from simulator._time import Livelock, Timeline
from tokencache._engine.effects import Wait
from tokencache.errors import BackendUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from simulator._plan import Happening, Plan
    from simulator._process import Run
    from tokencache._engine.effects import BackendEffect
    from tokencache.ports import Backend, LeaseGrant, Stored

_LULL: Final = 420.0
"""How long after the last misfortune every cooldown, lease, pause and breaker has ended, in seconds."""


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a schedule: the number of effects, the violation, and the trace if requested."""

    seed: int
    effects: int
    violation: str | None
    trace: tuple[str, ...] = ()


class Network:
    """The way from the processes to the store; it fails as planned. Its own calls are those of the heartbeat."""

    timeout = 1.0

    def __init__(self, around: Surroundings) -> None:
        self.around = around
        self._modes: dict[str, float] = {}

    def fail(self, mode: str, until: float) -> None:
        """Fail in the way ``mode`` until then."""
        self._modes[mode] = until

    def heal(self) -> None:
        """End all failures."""
        self._modes.clear()

    def on(self, mode: str) -> bool:
        """Return whether a way of failing is on."""
        return self.around.timeline.now < self._modes.get(mode, -1.0)

    def call(self, run: Run, effect: BackendEffect) -> None:
        """Carry an effect to the store and its reply back."""
        around, process = self.around, run.process
        now, dice = around.timeline.now, around.dice
        what = type(effect).__name__.lower()
        if around.tracing:
            around.trace(process, what)

        def answer(reply: object) -> None:
            if around.tracing:
                around.trace(process, f"{what}: {_shown(reply)}")
            run.answer(effect, reply)

        def fail(after: float) -> None:
            process.post(now + after, lambda: answer(BackendUnavailable("[simulated] no answer")))

        there, back = self._way(process), self._way(process)
        if self.on("refuse"):
            fail(0.0005)
        elif self.on("black hole"):
            fail(self.timeout)
        elif self.on("read-only") and effect.writes:
            fail(there + back)
        else:
            lost = self.on("lose replies") and dice.random() < 0.4
            late = there + back >= self.timeout
            if isinstance(effect, Wait):
                around.timeline.at(now + there, lambda: self._wait(run, effect, back, answer, lost=lost))
                return
            if lost or late:
                fail(self.timeout if late else there + 0.0001)

            def perform() -> None:
                around.referee.performing(run, effect, now)
                reply = effect.on(cast("Backend", around.store))
                if not (lost or late):
                    at = around.timeline.now
                    process.post(at + back, lambda: answer(around.referee.reading(run, reply)))

            around.timeline.at(now + there, perform)

    def extend(self, lease: LeaseGrant, ttl: float) -> bool:
        """Extend a lease, at once; raises ``BackendUnavailable`` while the store is unreachable."""
        if self.on("refuse") or self.on("black hole") or self.on("read-only"):
            message = "[simulated] no answer"
            raise BackendUnavailable(message)
        return self.around.store.extend(lease, ttl)

    def let_go(self, process: Process, lease: LeaseGrant) -> None:
        """Carry a release whose reply has no waiter."""
        if not (self.on("refuse") or self.on("black hole") or self.on("read-only")):
            self.around.timeline.at(
                self.around.timeline.now + self._way(process), lambda: self.around.store.release(lease)
            )

    def _way(self, process: Process) -> float:
        """Draw the duration of one way."""
        dice = self.around.dice
        way = process.host.distance * (0.5 + dice.random())
        return way + (dice.choice((0.05, 0.2, 0.7)) * dice.random() if self.on("slow") else 0.0)

    def _wait(self, run: Run, effect: Wait, back: float, answer: Callable[[object], None], *, lost: bool) -> None:
        """Wait at the store."""
        around, process = self.around, run.process

        def wake(stored: Stored | None) -> None:
            at = around.timeline.now
            reply = BackendUnavailable("[simulated] no answer") if lost else around.referee.reading(run, stored)
            process.post(at + back, lambda: answer(reply))

        watch = around.store.watch(effect.key, effect.seen, wake)

        def time_out() -> None:
            if not watch.over:
                watch.over = True
                wake(None)

        around.timeline.at(around.timeline.now + effect.timeout, time_out)


class Surroundings:
    """All that the processes of one schedule share, and the schedule's course."""

    def __init__(self, plan: Plan, *, tracing: bool) -> None:
        self.plan = plan
        self.tracing = tracing
        self.lines: list[str] = []
        self.effects = 0
        self.healed = False
        self.dice = random.Random(plan.seed ^ 0x5EED)
        self.timeline = Timeline()
        self.referee = Referee(self)
        self.store = Store(self.timeline, self.referee, shares=plan.shares)
        self.network = Network(self)
        self.provider = Provider(self)
        self.processes = [Process(number, host, plan, self) for number, host in enumerate(plan.hosts)]

    def trace(self, process: Process | None, text: str) -> None:
        """Add a line to the trace."""
        if self.tracing:
            who = "" if process is None else f"p{process.number}"
            self.lines.append(f"{self.timeline.now:14.6f}  {who:<4}{text}")

    def run(self) -> Result:
        """Run the schedule, then a quiet time, then check that every call is served."""
        plan, violation = self.plan, None
        for happening in plan.happenings:
            self.timeline.at(happening.at, functools.partial(self._befall, happening))
        for arrival in plan.arrivals:
            process = self.processes[arrival.process]
            self.timeline.at(arrival.at, functools.partial(self._arrive, process, arrival))
        try:
            self.timeline.run(plan.horizon + 1.0)
            self._heal()
            self.timeline.run(self.timeline.now + _LULL)
            for pause in (0.0, 40.0):  # before the second one, tokens fetched alone have been shared
                self._everybody(self.timeline.now + pause)
                self.timeline.run(self.timeline.now + pause + 35.0)
            self.referee.finish()
        except Violation as error:
            violation = str(error)
        except Livelock as error:
            violation = f"INV-8: {error}"
        if violation is not None:
            self.trace(None, f"VIOLATION {violation}")
        return Result(plan.seed, self.effects, violation, tuple(self.lines))

    def revive(self, process: Process, after: float) -> None:
        """Restart a crashed process."""

        def start() -> None:
            if not process.alive:
                self.trace(process, "starts again")
                process.start()

        self.timeline.at(self.timeline.now + after, start)

    def _arrive(self, process: Process, arrival: Arrival) -> None:
        """Let a caller arrive, unless its process has crashed."""
        process.post(self.timeline.now, lambda: process.call(arrival))

    def _everybody(self, at: float) -> None:
        """Let every process ask for a token."""
        for process in self.processes:
            arrival = Arrival(at, process.number, "token", 30.0)
            self.timeline.at(at, functools.partial(self._arrive, process, arrival))

    def _heal(self) -> None:
        """End all misfortunes."""
        self.trace(None, "all faults end")
        self.healed = True
        self.network.heal()
        self.provider.heal()
        for process in self.processes:
            process.threads_fail_until = 0.0
            process.launches_lost = 0
            process.stalls.clear()

    def _befall(self, happening: Happening) -> None:
        """Let a misfortune happen."""
        name, until = happening.name, self.timeline.now + happening.lasts
        self.referee.loss(name, until)
        process = self.processes[happening.process] if happening.process >= 0 else None
        self.trace(process, f"MISFORTUNE {name} {happening.amount:g} for {happening.lasts:g}s")
        store = self.store
        match name:
            case "refuse" | "black hole" | "read-only" | "slow" | "lose replies":
                self.network.fail(name, until)
            case "evict record":
                store.evict_record(KEY)
            case "evict lock":
                store.evict_lock(KEY)
            case "flush":
                store.flush(KEY)
            case "fail over":
                store.fail_over(KEY, happening.amount)
            case "revoke":
                self.provider.revoke()
            case "storm":
                self.provider.storm_until = until
            case _:
                if process is None:
                    self.provider.fail(name, happening.amount, until)
                else:
                    self._strike(process, happening, until)

    def _strike(self, process: Process, happening: Happening, until: float) -> None:
        """Let a misfortune hit a process."""
        match happening.name:
            case "crash":
                if process.alive:
                    process.crash()
                    self.revive(process, happening.lasts)
            case "pause":
                process.paused_until = max(process.paused_until, until)
            case "step":
                process.clocks.offset += happening.amount
            case "slew":
                process.clocks.slew(happening.amount)
            case "interrupt":
                process.interrupt()
            case "stall":
                process.stalls.append(happening.lasts)
            case "no thread":
                process.threads_fail_until = until
            case _:
                process.launches_lost += 1


def _shown(reply: object) -> str:
    """Return a reply in a few words, without its content."""
    return str(reply) if isinstance(reply, bool) else type(reply).__name__
