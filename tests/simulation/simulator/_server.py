"""A Redis whose commands take time: the store of `scale`, with as many connections as the processes open."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

from simulator._process import Process
from simulator._resp import weights
from simulator._world import Network
from tokencache._engine.effects import BackendEffect, Wait
from tokencache.backends.redis._protocol import LONGEST_BLOCK
from tokencache.errors import BackendUnavailable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from simulator._process import Run
    from simulator._world import Surroundings
    from simulator.scale import Figures
    from tokencache.ports import Backend, LeaseGrant, Stored

COSTS: Final[Mapping[str, float]] = {
    "connect": 40e-6,
    "load": 18e-6,
    "lease": 35e-6,
    "wait": 15e-6,
    "wake": 20e-6,
    "commit": 100e-6,
    "release": 40e-6,
    "extend": 25e-6,
}
"""How long the store is busy with each thing, in seconds."""

_WAITERS: Final = 32  # the same as the Redis backend's
_POLL: Final = (0.025, 0.05)


class Pool:
    """The connections of one process: the number of idle ones, of either kind, and of waiting calls."""

    __slots__ = ("idle", "idle_waiting", "waiting")

    def __init__(self) -> None:
        self.idle = 0
        self.idle_waiting = 0
        self.waiting = 0


class Client(Process):
    """A process that has connections."""

    pool: Pool


class Server(Network):
    """One Redis: it serves one command after another, in the order of arrival.

    ``costs`` is the time for each kind of work, ``timeout`` how long a process waits for its answer, in seconds.
    """

    def __init__(self, around: Surroundings, figures: Figures, costs: Mapping[str, float], timeout: float) -> None:
        super().__init__(around)
        self.timeout = timeout
        self._figures = figures
        self._costs = costs
        self._weights = weights()
        self._free_at = 0.0

    def call(self, run: Run, effect: BackendEffect) -> None:
        """Carry an effect to the store and its reply back."""
        process = cast("Client", run.process)
        timeline, pool = process.timeline, process.pool
        if isinstance(effect, Wait):
            if pool.waiting >= _WAITERS:
                pause = min(effect.timeout, process.dice.uniform(*_POLL))
                timeline.at(timeline.now + pause, lambda: run.answer(effect, None))
                return
            idle = pool.idle_waiting
            pool.waiting += 1
            pool.idle_waiting -= idle > 0
        else:
            idle = pool.idle
            pool.idle -= idle > 0
        command = _Command(self, run, effect, opens=idle == 0)
        timeline.at(timeline.now + self._way(process) * (3 if idle == 0 else 1), command.arrive)

    def extend(self, lease: LeaseGrant, ttl: float) -> bool:
        """Extend a lease, at once."""
        self.take("extend")
        return self.around.store.extend(lease, ttl)

    def take(self, kind: str) -> float:
        """Accept a command and return the time when it will have been served."""
        self._figures.count(kind, int(self.around.timeline.now))
        self.weigh(kind)
        return self.serve(kind)

    def serve(self, kind: str) -> float:
        """Work on one thing after everything before it; return the time when it is done."""
        cost = self._costs[kind]
        self._figures.busy += cost
        self._free_at = max(self.around.timeline.now, self._free_at) + cost
        return self._free_at

    def weigh(self, message: str) -> None:
        """Count the bytes of a message."""
        self._figures.traffic[int(self.around.timeline.now)] += self._weights[message]

    def opened(self) -> None:
        """Open a connection, which takes its time too."""
        self._figures.connections += 1
        self.serve("connect")

    def missed(self) -> None:
        """Note a reply without a waiter, and the connection that it costs."""
        self._figures.late += 1
        self._figures.connections -= 1

    def back(self, process: Process) -> float:
        """Draw the duration of a reply on its way."""
        return self._way(process)


class _Command:
    """One command on its way to the store, and its reply."""

    __slots__ = ("_effect", "_kind", "_limit", "_opens", "_run", "_sent_at", "_server")

    def __init__(self, server: Server, run: Run, effect: BackendEffect, *, opens: bool) -> None:
        self._server = server
        self._run = run
        self._effect = effect
        self._opens = opens
        self._kind = type(effect).__name__.lower()
        self._sent_at = server.around.timeline.now
        block = min(effect.timeout, LONGEST_BLOCK) if isinstance(effect, Wait) else 0.0
        self._limit = self._sent_at + block + server.timeout

    def arrive(self) -> None:
        """Queue up."""
        if self._opens:
            self._server.opened()
        done = self._server.take(self._kind)
        self._server.around.timeline.at(done, self._wait if isinstance(self._effect, Wait) else self._perform)

    def _perform(self) -> None:
        """Perform the effect, and answer."""
        around = self._server.around
        around.referee.performing(self._run, self._effect, self._sent_at)
        reply = self._effect.on(cast("Backend", around.store))
        self._server.weigh(f"{self._kind} {type(reply).__name__}")
        self._answer(around.timeline.now, reply)

    def _wait(self) -> None:
        """Wait at the store."""
        around, effect = self._server.around, cast("Wait", self._effect)

        def wake(stored: Stored | None) -> None:
            self._server.weigh(f"wait {type(stored).__name__}")
            self._answer(self._server.serve("wake"), stored)

        watch = around.store.watch(effect.key, effect.seen, wake)

        def time_out() -> None:
            if not watch.over:
                watch.over = True
                wake(None)

        around.timeline.at(around.timeline.now + min(effect.timeout, LONGEST_BLOCK), time_out)

    def _answer(self, at: float, reply: object) -> None:
        """Send the reply; a caller that has timed out has closed its connection."""
        run, effect, server = self._run, self._effect, self._server
        process = cast("Client", run.process)
        at += server.back(process)
        in_time = at < self._limit
        if in_time:
            reply = server.around.referee.reading(run, reply)
        else:
            server.missed()
            at, reply = self._limit, BackendUnavailable("[simulated] no answer in time")

        def answer() -> None:
            if isinstance(effect, Wait):
                process.pool.waiting -= 1
                process.pool.idle_waiting += in_time
            else:
                process.pool.idle += in_time
            run.answer(effect, reply)

        server.around.timeline.at(at, answer)
