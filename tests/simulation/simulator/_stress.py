"""Stresses: states that chance seldom reaches, and plans that lead there on purpose.

A stress changes the plan of a seed: it decides when callers come and which faults happen meanwhile. It has its own
random numbers, so ``chance``, the stress without changes, runs the plan exactly as its seed draws it. Some of the
changed plans have more faults, by chance.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from simulator._plan import MISFORTUNES, Arrival, Happening, happening
from tokencache.policy import RefreshPolicy, schedule

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from simulator._plan import CallKind, Plan


class _Script:
    """The course of a changed plan. At ``at`` a token is due: none is stored, or every process must renew its own.

    ``cold`` is the probability of an empty store.
    """

    def __init__(self, dice: random.Random, plan: Plan, *, cold: float) -> None:
        self.dice = dice
        self.plan = plan
        self.arrivals: list[Arrival] = []
        self.happenings: list[Happening] = []
        times = schedule(plan.policy, lifetime=plan.lifetime, remaining=plan.lifetime, spread=-1.0)
        self.at = 0.1
        if dice.random() >= cold:
            for process in range(len(plan.hosts)):
                self.call(0.02 * dice.random(), process)
            self.at = times.refresh + (times.usable - times.refresh) * dice.random() ** 2  # early instants more often

    def anyone(self) -> int:
        """Draw a process."""
        return self.dice.randrange(len(self.plan.hosts))

    def call(self, at: float, process: int, kind: CallKind = "token") -> None:
        """Add a caller."""
        self.arrivals.append(Arrival(at, process, kind, self.dice.choice((5.0, 30.0))))

    def calls(self, start: float, lasts: float, count: int, kinds: Sequence[CallKind]) -> None:
        """Add callers, each in a random process and at a random instant."""
        for _ in range(count):
            self.call(start + lasts * self.dice.random(), self.anyone(), self.dice.choice(kinds))

    def schedule(self, at: float, name: str, process: int = -1, *, amount: float = 1.0, lasts: float = 1.0) -> None:
        """Add a misfortune."""
        self.happenings.append(Happening(at, name, process, amount, lasts))

    def end(self) -> Plan:
        """Return the changed plan."""
        dice, fates = self.dice, self.plan.fates
        if dice.random() < 0.6:
            fates = {}
        else:
            while dice.random() < 0.5:
                self.happenings.append(happening(dice, dice.choice(MISFORTUNES), self.at, len(self.plan.hosts)))
        return replace(
            self.plan,
            arrivals=tuple(sorted(self.arrivals, key=lambda each: each.at)),
            happenings=tuple(sorted(self.happenings, key=lambda each: each.at)),
            fates=fates,
            horizon=max([each.at for each in self.arrivals] + [each.at + each.lasts for each in self.happenings]),
        )


def _outage(dice: random.Random, plan: Plan) -> Plan:
    """Start an outage of the store when a token is due: processes fetch alone, and later steps are interrupted."""
    plan = replace(plan, lifetime=dice.choice((30.0, 300.0, 3600.0, 3600.0, 86400.0)), rotates=False)
    script = _Script(dice, replace(plan, unchanged=dice.random() < 0.6), cold=0.6)
    at, lasts = script.at, dice.choice((3.0, 8.0, 20.0))
    script.schedule(
        at - 0.05, dice.choice(("refuse", "refuse", "black hole", "lose replies", "read-only")), lasts=lasts
    )
    script.calls(at, lasts, dice.choice((4, 8, 16)), ("token", "token", "use"))
    for process in range(len(plan.hosts)):
        asked = at + lasts * dice.random()
        for _ in range(dice.choice((0, 2, 4))):  # more often than a process may call the provider alone
            script.call(asked + dice.random(), process, "renew")
        if dice.random() < 0.4:  # the store is back: the attempt to share is interrupted, or its token is refused
            tried = at + lasts + dice.uniform(1.1, 3.0)
            script.schedule(tried - 0.01, "stall", process, lasts=3.0)
            script.call(tried, process, "use")
            script.call(tried + dice.random(), process)
            if dice.random() < 0.5:
                script.schedule(tried + 2.5 * dice.random(), "interrupt", process)
            else:
                script.schedule(tried - dice.random(), "revoke")
    return script.end()


def _straggler(dice: random.Random, plan: Plan) -> Plan:
    """Pause a thread until its flight is abandoned; its process goes on with other flights meanwhile."""
    lifetime, slow = dice.choice((300.0, 3600.0)), dice.choice((0.25, 0.25, 1.0))
    plan = replace(plan, policy=RefreshPolicy(timeout=5.0), lifetime=lifetime, latency=slow, spread=0.1, rotates=False)
    script = _Script(dice, replace(plan, unchanged=dice.random() < 0.6), cold=0.2)
    at, process, lasts = script.at, script.anyone(), dice.choice((12.0, 15.0, 20.0))
    script.call(at, process)
    script.schedule(at + slow * dice.random(), "stall", process, lasts=lasts)
    script.calls(at, 10.0, dice.choice((0, 0, 3)), ("token", "renew", "use"))
    for kind in ("renew", "renew", dice.choice(("token", "use"))):  # the first finds the straggler's record
        script.call(at + dice.uniform(10.1, lasts), process, kind)
    script.calls(at + 10.0, lasts, dice.choice((2, 6)), ("token", "use", "renew"))
    if dice.random() < 0.3:
        script.schedule(at + dice.uniform(5.0, lasts), "revoke")
        script.schedule(at + dice.uniform(5.0, lasts), dice.choice(("server error", "hang")), amount=5.0, lasts=lasts)
    return script.end()


def _repeats(dice: random.Random, plan: Plan) -> Plan:
    """Let the provider repeat its token: some processes have just fetched it alone, or all restart afterwards."""
    alone, hosts = dice.random() < 0.4, plan.hosts[:2] * 3  # several with the same clock
    lifetime = 300.0 if alone else dice.choice((600.0, 1200.0))
    script = _Script(dice, replace(plan, hosts=hosts, lifetime=lifetime, unchanged=True, rotates=False), cold=0.0)
    if alone:
        script.at = lifetime - dice.uniform(35.0, 48.0)  # the token is so old that each process wants to renew it soon
        script.schedule(script.at - 10.0, "refuse", lasts=5.0)
    first = script.anyone()
    script.call(script.at, first)
    script.calls(script.at + 1.0, 25.0, dice.choice((4, 8, 16)), ("token", "token", "use"))
    for process in range(len(hosts)):
        if not alone:
            script.schedule(script.at + 5.0, "crash", process, lasts=0.1)
            script.call(script.at + dice.uniform(6.0, 20.0), process)
        elif process != first and dice.random() < 0.7:
            script.schedule(script.at - 9.0, "crash", process, lasts=0.1)
            script.call(script.at - 8.0, process)
            script.call(script.at + plan.latency + dice.uniform(1.0, 5.0), process)
    return script.end()


def _refusals(dice: random.Random, plan: Plan) -> Plan:
    """Let the resource server refuse tokens, while the store may fail to delete them."""
    script = _Script(dice, replace(plan, lifetime=dice.choice((30.0, 300.0, 3600.0))), cold=0.0)
    at, lasts = script.at * dice.choice((0.3, 1.0)), dice.choice((1.0, 3.0, 10.0))
    script.schedule(at, dice.choice(("storm", "revoke")), lasts=lasts)
    if dice.random() < 0.5:
        name = dice.choice(("read-only", "read-only", "fail over"))
        script.schedule(at + dice.choice((-0.1, 0.01, 0.3)), name, amount=lasts, lasts=lasts)
    script.calls(at, lasts, dice.choice((4, 8, 16)), ("use", "use", "token"))
    return script.end()


def _failures(dice: random.Random, plan: Plan) -> Plan:
    """Let the provider fail when a token is due, while callers ask again and again."""
    script = _Script(dice, replace(plan, lifetime=dice.choice((30.0, 300.0, 3600.0))), cold=0.5)
    at, lasts, pause = script.at, dice.choice((0.3, 3.0, 20.0)), dice.choice((7.0, 60.0))
    names = ("too many", "too many", "reject", "reject", "server error", "no token", "hang")
    script.schedule(at - 0.05, dice.choice(names), amount=pause, lasts=lasts)
    script.call(at, script.anyone())
    script.calls(at, lasts + pause, dice.choice((4, 8, 16)), ("token", "token", "renew"))
    return script.end()


def _lost_lease(dice: random.Random, plan: Plan) -> Plan:
    """Pause a process in its fetch until its lease is lost; it may use a refresh token."""
    plan = replace(plan, lifetime=dice.choice((30.0, 300.0, 3600.0)), latency=dice.choice((0.25, 1.0)))
    script = _Script(dice, replace(plan, unchanged=False, rotates=dice.random() < 0.7), cold=0.3)
    at, process, lasts = script.at, script.anyone(), dice.choice((5.0, 12.0, 40.0))
    script.call(at, process)
    script.schedule(at + plan.latency * dice.random(), "pause", process, lasts=lasts)
    script.calls(at, lasts, dice.choice((2, 4, 8)), ("token", "renew"))
    script.calls(at + lasts, plan.lifetime, dice.choice((2, 4, 8)), ("token", "use"))
    return script.end()


def _slow_answer(dice: random.Random, plan: Plan) -> Plan:
    """Delay the answer with a shared token, and call at its end; the clocks differ by up to two minutes."""
    hosts = tuple(replace(host, offset=dice.uniform(-60.0, 60.0)) for host in plan.hosts)
    lifetime, late = dice.choice((30.0, 300.0)), dice.choice((3.0, 12.0))
    plan = replace(plan, hosts=hosts, lifetime=lifetime, unchanged=False, rotates=dice.random() < 0.5)
    script = _Script(dice, plan, cold=0.5)
    end = script.at + schedule(plan.policy, lifetime=lifetime, remaining=lifetime, spread=0.0).usable
    ahead = max(host.offset for host in hosts)  # by the other clocks its token lives longer
    for process, host in enumerate(hosts):
        at = script.at
        if host.offset != ahead:
            at += plan.latency * 2 * dice.random()
            name, after = dice.choice((("stall", -0.001), ("pause", plan.latency * dice.random())))
            script.schedule(at + after, name, process, lasts=late)
        script.call(at, process)
        script.call(end + late * dice.random(), process)
    return script.end()


STRESSES: Final[Mapping[str, Callable[[random.Random, Plan], Plan]]] = {
    "chance": lambda _, plan: plan,
    "outage": _outage,
    "straggler": _straggler,
    "repeats": _repeats,
    "refusals": _refusals,
    "failures": _failures,
    "lost-lease": _lost_lease,
    "slow-answer": _slow_answer,
}


def stress_of(seed: int) -> str:
    """Return the name of a seed's stress: consecutive seeds take the stresses in turn."""
    return tuple(STRESSES)[seed % len(STRESSES)]


def steer(plan: Plan, stress: str) -> Plan:
    """Change a plan by a stress; the same plan always gets the same changes."""
    return STRESSES[stress](random.Random(f"{plan.seed} {stress}"), plan)
