"""The plan of a schedule: all its events, drawn from one seed before it starts."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from tokencache.policy import RefreshPolicy, schedule

Fate: TypeAlias = Literal["crash before", "crash after", "interrupt before", "interrupt after"]
CallKind: TypeAlias = Literal["token", "renew", "use"]

_LIFETIMES: Final = (1.5, 4.0, 30.0, 300.0, 3600.0, 86400.0)
_LONGEST_LATENCY: Final = 60.0


@dataclass(frozen=True, slots=True)
class Happening:
    """An event at ``at`` that lasts ``lasts``. It affects ``process``, or the store or the provider if that is -1."""

    at: float
    name: str
    process: int = -1
    amount: float = 0.0
    lasts: float = 0.0


@dataclass(frozen=True, slots=True)
class Arrival:
    """A caller: its time, process, call and deadline; it leaves at ``leaves_at`` if that is set."""

    at: float
    process: int
    kind: CallKind
    timeout: float
    leaves_at: float | None = None


@dataclass(frozen=True, slots=True)
class Host:
    """One process: its token's identity, the errors of its clocks, its distance to the store (in seconds, one way)."""

    identity: int
    rate: float
    offset: float
    base: float
    distance: float


@dataclass(frozen=True, slots=True)
class Plan:
    """A schedule. ``fates`` names the fate of a process at its n-th effect on the world (from 1)."""

    seed: int
    lifetime: float
    policy: RefreshPolicy
    latency: float
    spread: float
    shares: bool
    unchanged: bool
    kills_old: bool
    rotates: bool
    hosts: tuple[Host, ...]
    arrivals: tuple[Arrival, ...]
    happenings: tuple[Happening, ...]
    fates: dict[tuple[int, int], Fate] = field(default_factory=dict[tuple[int, int], Fate])
    horizon: float = 0.0


_STORE: Final = ("refuse", "black hole", "read-only", "slow", "lose replies")
_KEY: Final = ("evict record", "evict lock", "flush", "fail over")
_PROVIDER: Final = ("too many", "server error", "reject", "hang", "no token", "storm")
_PROCESS: Final = ("crash", "pause", "step", "slew", "interrupt", "stall", "no thread", "lose launch")
MISFORTUNES: Final = (*_STORE, *_KEY, *_PROVIDER, *_PROCESS)
"""What may go wrong."""


def draw(seed: int) -> Plan:
    """Draw the plan of ``seed``."""
    dice = random.Random(seed)
    lifetime = dice.choice(_LIFETIMES)
    policy = RefreshPolicy() if dice.random() < 0.8 else RefreshPolicy(timeout=dice.choice((5.0, 30.0)), lease=1.0)
    count = dice.choice((1, 2, 2, 3, 3, 4, 6))
    skewed = dice.random() < 0.3
    apart = dice.random() < 0.15
    hosts = tuple(_host(dice, number, skewed=skewed, apart=apart) for number in range(count))
    anchors = _anchors(dice, policy, lifetime)
    happenings: list[Happening] = []
    fates: dict[tuple[int, int], Fate] = {}
    for names, chance in ((_STORE, 0.3), (_KEY, 0.3), (_PROVIDER, 0.35), (_PROCESS, 0.5)):
        while dice.random() < chance:
            happenings.append(happening(dice, dice.choice(names), dice.choice(anchors), count))
    outage = dice.random() < 0.2
    if outage:
        happenings += _outage(dice, dice.choice(anchors), count)
    straggler = dice.random() < 0.1
    extra: list[Arrival] = []
    if straggler:
        policy = RefreshPolicy(timeout=5.0)
        stall, extra = _straggler(dice, dice.choice(anchors), count)
        happenings.append(stall)
    anchors += [
        each.at + each.lasts * share for each in happenings for share in (0.0, 0.5, 0.95) if dice.random() < 0.4
    ]
    if dice.random() < 0.15:
        happenings += [Happening(_near(dice, anchor), "revoke") for anchor in anchors if dice.random() < 0.4]
    while dice.random() < 0.35:
        fate: Fate = dice.choice(("crash before", "crash after", "interrupt before", "interrupt after"))
        fates[dice.randrange(count), dice.randint(1, 9)] = fate
    arrivals = tuple(sorted(extra + _arrivals(dice, anchors, count), key=lambda arrival: arrival.at))
    unchanged = dice.random() < (0.4 if outage else 0.1)
    last = max([arrival.at for arrival in arrivals] + [each.at + each.lasts for each in happenings])
    return Plan(
        seed=seed,
        lifetime=lifetime,
        policy=policy,
        latency=dice.choice((0.02, 0.25, 0.25, 1.0, 4.0)),
        spread=dice.choice((0.1, 0.5, 1.0)),
        shares=dice.random() < 0.5,
        unchanged=unchanged,
        kills_old=dice.random() < 0.15,
        rotates=dice.random() < 0.2 and not unchanged,
        hosts=hosts,
        arrivals=arrivals,
        happenings=tuple(sorted(happenings, key=lambda happening: happening.at)),
        fates=fates,
        horizon=last,
    )


def latency(dice: random.Random, plan: Plan) -> float:
    """Draw the duration of one call to the provider."""
    return min(plan.latency * dice.lognormvariate(0.0, plan.spread), _LONGEST_LATENCY)


def _host(dice: random.Random, number: int, *, skewed: bool, apart: bool) -> Host:
    """Draw a host: most clocks are a little wrong, some by minutes."""
    return Host(
        identity=number % 2 if apart else 0,
        rate=1.0 + dice.uniform(-2e-4, 2e-4),
        offset=dice.uniform(-600.0, 600.0) if skewed else dice.uniform(-0.05, 0.05),
        base=dice.uniform(0.0, 1e6),
        distance=dice.choice((0.0002, 0.001, 0.02)),
    )


def _anchors(dice: random.Random, policy: RefreshPolicy, lifetime: float) -> list[float]:
    """Return the instants around which callers and misfortunes gather: start, renewal, usable end, expiry."""
    times = schedule(policy, lifetime=lifetime, remaining=lifetime, spread=0.0)
    anchors = [0.0, dice.uniform(0.0, times.refresh)]
    start = 0.0
    for _ in range(dice.choice((1, 1, 2))):
        anchors += [start + times.refresh, start + times.usable, start + lifetime]
        start += dice.choice((times.refresh, times.usable, lifetime))
    return anchors


def _near(dice: random.Random, anchor: float) -> float:
    """Return an instant near an anchor, more often just after it."""
    return max(0.0, anchor + dice.choice((-0.05, 0.0, 0.0, 0.02, 0.3, 2.0)) * dice.random() * 2)


def happening(dice: random.Random, name: str, anchor: float, count: int) -> Happening:
    """Draw one misfortune."""
    process = dice.randrange(count) if name in _PROCESS else -1
    amounts = {"step": (-3600.0, 3600.0, -600.0, 60.0), "slew": (0.9998, 1.0002), "fail over": (0.01, 0.5, 5.0)}
    lasts = {"pause": (0.5, 5.0, 40.0, 400.0), "stall": (1.0, 12.0, 40.0), "crash": (0.1, 5.0), "hang": (1.0, 30.0)}
    return Happening(
        at=_near(dice, anchor),
        name=name,
        process=process,
        amount=dice.choice(amounts.get(name, (1.0, 7.0, 60.0))),
        lasts=dice.choice(lasts.get(name, (0.3, 3.0, 20.0))),
    )


def _outage(dice: random.Random, anchor: float, count: int) -> list[Happening]:
    """Draw an outage of the store in which processes fetch without it, some of them interrupted."""
    at = _near(dice, anchor)
    outage = Happening(at, dice.choice(("refuse", "black hole", "lose replies")), lasts=dice.choice((3.0, 8.0, 20.0)))
    interrupts = [
        Happening(at + dice.uniform(0.0, outage.lasts), "interrupt", process)
        for process in range(count)
        if dice.random() < 0.4
    ]
    return [outage, *interrupts, Happening(at + outage.lasts * dice.random(), "slow", lasts=1.0)]


def _straggler(dice: random.Random, anchor: float, count: int) -> tuple[Happening, list[Arrival]]:
    """Draw a thread that pauses until its flight is abandoned, and callers that go on without it."""
    at, process = _near(dice, anchor), dice.randrange(count)
    stall = Happening(at, "stall", process, lasts=12.0)
    others = [Arrival(at + 11.0, process, "renew", 5.0), Arrival(at + 12.5 + dice.random(), process, "token", 5.0)]
    return stall, [Arrival(at, process, "token", 5.0), Arrival(at + 5.0, dice.randrange(count), "renew", 5.0), *others]


def _arrivals(dice: random.Random, anchors: list[float], count: int) -> list[Arrival]:
    """Draw the callers: a few at each anchor, in some or all of the processes."""
    arrivals: list[Arrival] = []
    for anchor in anchors:
        for _ in range(dice.choice((1, 2, 4, 8))):
            at = _near(dice, anchor)
            draw = dice.random()
            kind: CallKind = "use" if draw < 0.3 else "renew" if draw < 0.34 else "token"
            timeout = dice.choice((0.3, 5.0, 30.0, 30.0))
            leaves_at = at + dice.random() if dice.random() < 0.1 else None
            arrivals.append(Arrival(at, dice.randrange(count), kind, timeout, leaves_at))
    return arrivals
