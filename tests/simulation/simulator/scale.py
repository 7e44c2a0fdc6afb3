"""A healthy fleet of any size on virtual time: its load on the provider and the store, and its waits.

Each instance is a process that runs the real source and the real flow. Each of its sources is asked for a token at a
steady pace. No fault happens. But the store is one Redis that serves one command after another, and each takes its time
(`COSTS`). It also answers callers that have stopped waiting, so a fleet can be too large for it. Only calls that matter
are simulated: while a source has a fresh token, its callers get it at once.

Up to `JUDGED` sources in all, the referee of the simulation checks every step against the invariants. It searches its
whole memory at each step, so beyond that only the cheap rules are checked: no token past its usable end (INV-1), and a
count of the fetches that one key had under a lease at once (INV-2).
"""

from __future__ import annotations

import functools
import gc
import random
from array import array
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from simulator._plan import Arrival, Host, Plan
from simulator._process import KEY
from simulator._referee import Referee, Violation
from simulator._server import COSTS, Client, Pool, Server
from simulator._store import Store
from simulator._world import Surroundings
from tokencache.policy import RefreshPolicy
from tokencache.token import Token

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from simulator._process import Call, Run
    from simulator._store import Entry
    from tokencache._engine.effects import Fetch
    from tokencache._engine.flights import Flight
    from tokencache._engine.flow import Outcome
    from tokencache.errors import ProviderError
    from tokencache.ports import LeaseGrant

JUDGED: Final = 100
_ASKED: Final = 30.0
_STEPS: Final = 1 << 62
_SLACK: Final = 0.5
_COSTLY: Final = ("started", "granted", "holds", "performing", "released", "ended", "landing", "settled")


@dataclass(frozen=True, slots=True)
class Fleet:
    """A fleet and the time for which it is watched. Durations are seconds.

    ``instances`` processes with ``sources`` sources each start evenly within ``starts`` and live to the end. Each
    source is asked for a token every ``period``, one after another. The provider takes some ``latency``. ``costs`` is
    the store's time for each kind of work, and ``timeout`` how long a process waits for its answer, as in the backend's
    URL.
    """

    instances: int
    lifetime: float
    lasts: float
    starts: float
    sources: int = 1
    period: float = 5.0
    latency: float = 0.25
    timeout: float = 1.0
    seed: int = 1
    costs: Mapping[str, float] = field(default_factory=lambda: COSTS)
    policy: RefreshPolicy = field(default_factory=RefreshPolicy)


@dataclass(slots=True)
class Figures:
    """The figures of a fleet.

    ``calls`` counts the calls to the provider, and ``alone`` those without a lease. ``together`` is the highest number
    under a lease at once for one key. ``records`` counts stored records. ``commands`` counts the commands to the store
    by kind and second; a load is one, though it is two reads in one round trip. ``traffic`` is bytes in both
    directions, by second. ``waits`` are the durations of calls that found no cached token, ``served_at`` the end of the
    last of them, ``errors`` the errors raised instead. ``late`` counts replies whose waiter has left, ``connections``
    those open at the end, ``busy`` the seconds of the store's work.
    """

    seconds: int
    calls: int = 0
    alone: int = 0
    together: int = 0
    records: int = 0
    late: int = 0
    connections: int = 0
    busy: float = 0.0
    served_at: float = 0.0
    fetched_at: list[float] = field(default_factory=list[float])
    waits: array[float] = field(default_factory=lambda: array("d"))
    errors: Counter[str] = field(default_factory=Counter[str])
    commands: dict[str, array[int]] = field(default_factory=dict[str, "array[int]"])
    traffic: list[int] = field(default_factory=list[int])

    def by_second(self) -> list[int]:
        """Return the number of commands in each second."""
        return [sum(each) for each in zip(*self.commands.values(), strict=True)]

    def total(self) -> int:
        """Return the number of all commands."""
        return sum(map(sum, self.commands.values()))

    def count(self, kind: str, second: int) -> None:
        """Count a command."""
        row = self.commands.get(kind)
        if row is None:
            row = self.commands[kind] = array("Q", bytes(8 * self.seconds))
        row[second] += 1


def run(fleet: Fleet) -> Figures:
    """Run a fleet; raises ``Violation`` where an invariant does not hold."""
    enabled = gc.isenabled()
    gc.disable()  # objects live long here, so collecting again and again would take longer than the rest
    try:
        return _World(fleet).live()
    finally:
        if enabled:
            gc.enable()


class _World(Surroundings):
    """The surroundings of a healthy fleet."""

    def __init__(self, fleet: Fleet) -> None:
        plan = Plan(
            seed=fleet.seed,
            lifetime=fleet.lifetime,
            policy=fleet.policy,
            latency=fleet.latency,
            spread=0.1,
            shares=True,
            unchanged=False,
            kills_old=False,
            rotates=False,
            hosts=(),
            arrivals=(),
            happenings=(),
            horizon=fleet.lasts,
        )
        super().__init__(plan, tracing=False)
        dice = random.Random(fleet.seed)
        hosts = [_host(dice, number % fleet.sources) for number in range(fleet.instances * fleet.sources)]
        self.fleet = fleet
        self.plan = replace(plan, hosts=tuple(hosts))
        self.figures = Figures(int(fleet.lasts) + 1)
        self.figures.traffic = [0] * self.figures.seconds
        self.referee = self.ledger = _Ledger(self, judges=len(hosts) <= JUDGED)
        self.store = Store(self.timeline, self.referee, shares=True)
        self.network = Server(self, self.figures, fleet.costs, fleet.timeout)

    def live(self) -> Figures:
        """Run all events, and return the figures."""
        fleet = self.fleet
        for place in range(fleet.instances):
            starts = fleet.starts * (place + self.dice.random()) / fleet.instances
            self.timeline.at(starts, functools.partial(self._start, place, Pool()))
        self.timeline.run(fleet.lasts, steps=_STEPS)
        if self.ledger.judges:
            self.ledger.finish()
        self.figures.calls = self.provider.calls
        return self.figures

    def _start(self, place: int, pool: Pool) -> None:
        """Start a process: one host of its kind for each of its sources, which share the connections."""
        now, fleet = self.timeline.now, self.fleet
        for nth in range(fleet.sources):
            number = place * fleet.sources + nth
            self.timeline.at(now + fleet.period * nth / fleet.sources, functools.partial(self._make, number, pool))

    def _make(self, number: int, pool: Pool) -> None:
        """Make a source, which is asked for a token from now on."""
        self.processes.append(_Instance(number, self.plan.hosts[number], self, pool))


class _Instance(Client):
    """One source of one process, which is asked for a token again and again."""

    def __init__(self, number: int, host: Host, around: _World, pool: Pool) -> None:
        self.pool = pool
        self._phase = around.timeline.now
        self._period = around.fleet.period
        self._turn = 0
        super().__init__(number, host, around.plan, around)
        if host.identity:  # another token, so another key
            self.source._given_key, self.source._identity = f"{KEY}-{host.identity}", None
            _ = self.source.key
        self._ask(self._turn)

    def post(self, instant: float, action: Callable[[], None]) -> None:
        """Let ``action`` happen: no process pauses or crashes here."""
        self.timeline.at(instant, action)

    def _ask(self, turn: int) -> None:
        """Accept a caller, unless an event since then makes another caller the next that matters."""
        if turn != self._turn:
            return
        self.call(Arrival(self.timeline.now, self.number, "token", _ASKED))
        if self.source.copy is None or not self.source._flights.flying:
            self._expect()

    def _expect(self) -> None:
        """Schedule the next caller for which the local copy may not suffice."""
        self._turn += 1
        due = self.timeline.now
        if self.source.copy is not None:
            due = max(due, self.clocks.after(self.source._fresh_until - self.clocks.steady()))
        turns = int((due - self._phase) / self._period) + 1
        self.timeline.at(self._phase + turns * self._period, functools.partial(self._ask, self._turn))

    def _land(self, flight: Flight, outcome: Outcome) -> None:
        """Apply the outcome of a flight, and schedule the next caller."""
        super()._land(flight, outcome)
        self._expect()


class _Ledger(Referee):
    """Counts. Above `JUDGED` sources, it checks only the cheap rules."""

    def __init__(self, around: _World, *, judges: bool) -> None:
        super().__init__(around)
        self.judges = judges
        self._figures = around.figures
        self._asking: dict[Run, str | None] = {}
        self._at_once: Counter[str] = Counter()
        if not judges:
            for rule in _COSTLY:
                setattr(self, rule, _pass_over)

    def reading(self, run: Run, reply: Any) -> Any:
        """Return a reply unchanged."""
        return super().reading(run, reply) if self.judges else reply

    def committed(self, lease: LeaseGrant, data: bytes, before: Entry | None) -> None:
        """Count a record."""
        self._figures.records += 1
        if self.judges:
            super().committed(lease, data, before)

    def fetching(self, run: Run, effect: Fetch) -> None:
        """Count a call to the provider."""
        figures = self._figures
        figures.fetched_at.append(self.around.timeline.now)
        key = self._asking[run] = None if effect.lease is None else effect.lease.key
        if key is None:
            figures.alone += 1
        else:
            self._at_once[key] += 1
            figures.together = max(figures.together, self._at_once[key])
        if self.judges:
            super().fetching(run, effect)

    def fetched(self, run: Run, reply: Token | ProviderError) -> None:
        """Note the end of a call to the provider."""
        key = self._asking.pop(run)
        if key is not None:
            self._at_once[key] -= 1
        if self.judges:
            super().fetched(run, reply)

    def returned(self, call: Call, result: object) -> None:
        """Measure the duration of a call, and check its token against INV-1."""
        now = self.around.timeline.now
        took = call.process.clocks.steady() - call.began_at
        if took > 0:
            self._figures.waits.append(took)
            self._figures.served_at = now
        if self.judges:
            super().returned(call, result)
        elif isinstance(result, Token):
            issue = self.around.provider.issues[result.value]
            if now >= issue.usable_end + _SLACK:
                message = f"INV-1: a token {now - issue.usable_end:.3f}s after its usable end"
                raise Violation(message)

    def raised(self, call: Call, error: Exception) -> None:
        """Count an error."""
        self._figures.errors[type(error).__name__] += 1
        if self.judges:
            super().raised(call, error)


def _pass_over(*_: object) -> None:
    """Check nothing."""


def _host(dice: random.Random, identity: int) -> Host:
    """Draw a host: synchronised clocks, the store in the same data centre."""
    return Host(
        identity=identity,
        rate=1.0 + dice.uniform(-5e-5, 5e-5),
        offset=dice.uniform(-0.05, 0.05),
        base=dice.uniform(0.0, 1e6),
        distance=dice.uniform(0.0001, 0.0005),
    )
