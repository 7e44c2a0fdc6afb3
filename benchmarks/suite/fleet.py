"""Scenarios of many processes on one store: the cold stampede, a thousand tasks, and a killed holder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redis import Redis

from suite import stores
from suite.results import Row, middle, share
from tokencache.testing.servers import MemcachedServer, RedisServer
from tokencache_qpay.testing import FakeQPay

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from suite.plan import Plan
    from suite.stores import Shared

STAMPEDE, TASKS, KILLED = "cold stampede, 8 x 16 threads", "cold stampede, 1,000 tasks", "holder killed"
PROCESSES, THREADS, MANY = 8, 16, 1_000
PEER_TURNS = 2
"""The number of turns of each way after the first two: only our ratio to the limit needs more."""
_BENCHMARKS = Path(__file__).parents[1]


@dataclass(slots=True)
class Ground:
    """A login and two stores, started on loopback for the run."""

    qpay: FakeQPay
    redis: RedisServer
    memcached: MemcachedServer

    def empty(self) -> None:
        """Empty the stores, and reset the counter of commands."""
        self.redis.command("FLUSHALL")
        self.memcached.command("flush_all")
        with Redis(port=self.redis.port) as client:
            client.config_resetstat()

    def commands(self) -> int:
        """Return the number of Redis commands since ``empty``, without this one."""
        with Redis(port=self.redis.port) as client:
            return sum(row["calls"] for name, row in client.info("commandstats").items() if "config" not in name)

    def setting(self, folder: str) -> stores.Setting:
        """Return the addresses of the login and the stores."""
        return stores.Setting(self.qpay.url, self.redis.url, self.memcached.url, folder)


@contextmanager
def ground(login: float) -> Iterator[Ground]:
    """Start a login with this latency, and both stores."""
    with ExitStack() as stack:
        yield Ground(
            stack.enter_context(FakeQPay(latency=login)),
            stack.enter_context(RedisServer()),
            stack.enter_context(MemcachedServer()),
        )


class Process:
    """A process of a fleet, which waits for the instant to ask."""

    def __init__(self, way: Shared, setting: stores.Setting, count: int, *, tasks: bool = False) -> None:
        told = {"way": way.name, "tasks": tasks, "loop": way.loop, "count": count, "setting": asdict(setting)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "suite.worker", json.dumps(told)],
            cwd=_BENCHMARKS,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={name: value for name, value in os.environ.items() if not name.startswith("COV")},
        )
        self._errors: list[str] = []
        self._reader = threading.Thread(target=self._read_errors, daemon=True)
        self._reader.start()

    def _read_errors(self) -> None:
        """Keep the last line of the process's stderr."""
        assert self._process.stderr is not None
        for line in self._process.stderr:
            if line.strip():
                self._errors[:] = [line.strip()]

    def ready(self) -> None:
        """Wait until the process is ready. Raises its error."""
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            self._process.wait(10)
            self._reader.join(1)
            raise RuntimeError(self._errors[0] if self._errors else "it ended")

    def ask(self, at: float) -> None:
        """Send the instant to ask."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{at}\n")
        self._process.stdin.flush()

    def answers(self, patience: float) -> list[Any] | None:
        """Return the time of each call, or its error. After a time-out, kill the process and return ``None``."""
        try:
            return json.loads(self._process.communicate(timeout=patience)[0])
        except (subprocess.TimeoutExpired, json.JSONDecodeError):
            self.kill()
            return None

    def kill(self) -> None:
        """Kill the process."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()


def play(place: Ground, way: Shared, processes: int, count: int, *, tasks: bool = False) -> dict[str, float | None]:
    """Return the figures of one cold stampede."""
    place.empty()
    with tempfile.TemporaryDirectory() as folder:
        crowd = [Process(way, place.setting(folder), count, tasks=tasks) for _ in range(processes)]
        try:
            for process in crowd:
                process.ready()
            with Redis(port=place.redis.port) as client:
                client.config_resetstat()
            before, at = place.qpay.logins, time.time() + 0.4
            for process in crowd:
                process.ask(at)
            answers = [answer for process in crowd for answer in process.answers(40) or ["no answer"]]
        finally:
            for process in crowd:
                process.kill()
    waits = [answer - place.qpay.latency for answer in answers if isinstance(answer, float)]
    figures: dict[str, float | None] = {
        "logins": float(place.qpay.logins - before),
        "p50 ms": share(waits, 0.5) * 1e3 if waits else None,
        "p99 ms": share(waits, 0.99) * 1e3 if waits else None,
        "commands": float(place.commands()) if way.store == "redis" else None,
        "errors": float(len(answers) - len(waits)),
    }
    return figures


def in_turns(scenario: str, ways: Sequence[Shared], plan: Plan, processes: int, count: int) -> list[Row]:
    """Run all ways in repeated turns; return the medians, and the median of the ratios to the limit."""
    found: dict[str, list[dict[str, float | None]]] = {}
    notes: dict[str, str] = {}
    with ground(plan.login) as place:
        for turn in range(plan.repeats):
            for way in ways:
                if way.kind == "peer" and turn >= PEER_TURNS:
                    continue
                try:
                    figures = play(place, way, processes, count, tasks=scenario == TASKS)
                    found.setdefault(way.name, []).append(figures)
                except (RuntimeError, OSError) as error:
                    notes[way.name] = f"not measured: {error}"[:160]
    limit = found[next(way.name for way in ways if way.kind == "limit")]
    rows: list[Row] = []
    for way in ways:
        turns = found.get(way.name, [])
        figures = {name: _middle([turn[name] for turn in turns]) for name in (turns[0] if turns else {})}
        pairs = [(turn["p99 ms"], other["p99 ms"]) for turn, other in zip(turns, limit, strict=False)]
        ratios = [mine / other for mine, other in pairs if mine and other]
        figures["to limit"] = middle(ratios) if ratios else None
        rows.append(Row(scenario, way.name, way.kind, figures, notes.get(way.name, "")))
    return rows


def _middle(values: Sequence[float | None]) -> float | None:
    """Return the median of the measured values."""
    known = [value for value in values if value is not None]
    return middle(known) if known else None


def stampede(plan: Plan) -> list[Row]:
    """Time eight processes of sixteen threads that ask at once, without a token."""
    ways = [way for way in stores.WAYS if not plan.quick or way.name in QUICK]
    return in_turns(STAMPEDE, ways, plan, PROCESSES, THREADS)


def tasks(plan: Plan) -> list[Row]:
    """Time a thousand tasks of one loop that ask at once, without a token."""
    ways = stores.LOOPS[:3] if plan.quick else stores.LOOPS
    return in_turns(TASKS, ways, plan, 1, MANY)


QUICK = {"tokencache, Redis", "by hand: one flight, lock, pub/sub", "dogpile.cache on Redis, distributed lock"}


def killed(plan: Plan) -> list[Row]:
    """Kill the process that is logging in, and measure when the others have a token."""
    protected = [way for way in stores.WAYS if way.name != "no protection"]
    ways = protected[:2] if plan.quick else protected
    rows: list[Row] = []
    with ground(plan.login) as place:
        for way in ways:
            turns = min(plan.repeats, 3) if way.kind == "ours" else 1
            try:
                before = place.qpay.logins
                found = [_kill_the_holder(place, way, plan.patience) for _ in range(turns)]
                logins = (place.qpay.logins - before) / turns
            except (RuntimeError, OSError, AssertionError) as error:
                rows.append(Row(KILLED, way.name, way.kind, note=f"not measured: {error}"[:160]))
                continue
            times = [took for took in found if took is not None]
            note = "" if len(times) == len(found) else f"not within {plan.patience:g} s"
            recovery = {"recovery s": max(times) if times and not note else None, "logins": logins}
            rows.append(Row(KILLED, way.name, way.kind, recovery, note))
    return rows


def _kill_the_holder(place: Ground, way: Shared, patience: float) -> float | None:
    """Return the seconds from the kill until the last of the others has a token, ``None`` after the time limit."""
    place.empty()
    place.qpay.hang_next(1)
    with tempfile.TemporaryDirectory() as folder:
        setting = place.setting(folder)
        holder = Process(way, setting, 1)
        others = [Process(way, setting, 4) for _ in range(2)]
        try:
            for process in (holder, *others):
                process.ready()
            before = place.qpay.logins
            holder.ask(time.time())
            place.qpay.wait_for_logins(before + 1)
            began = time.time()
            for process in others:
                process.ask(began)
            time.sleep(0.5)
            killed_at = time.time()
            holder.kill()
            last = began
            for process in others:
                answers = process.answers(max(0.1, killed_at + patience - time.time()))
                if answers is None or not all(isinstance(answer, float) for answer in answers):
                    return None
                last = max(last, began + max(answers))
            return max(0.0, last - killed_at)
        finally:
            for process in (holder, *others):
                process.kill()
