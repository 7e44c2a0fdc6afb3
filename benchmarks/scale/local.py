"""The costs of many sources in one process: memory, keys, threads and connections during renewals."""

from __future__ import annotations

import gc
import multiprocessing
import resource
import threading
import time
import tracemalloc
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokencache import Token, TokenCache
from tokencache.ports import Granted, LeaseGrant, Secret

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokencache import TokenSource
    from tokencache.ports import FetchContext

LATENCY = 0.25
PATIENCE = 90.0
LIFETIME = 1500.0  # a window of 300 s, so the jitter spreads renewals over a minute
SOONEST, LATEST = 1110.0, 1170.0
VALUE = 1000


class Login:
    """A slow provider with a token of a kilobyte."""

    name = "login"

    def __init__(self, number: int, latency: float, secret: str = "") -> None:
        self._number = number
        self._latency = latency
        self._secret = secret

    def identity(self) -> Mapping[str, object]:
        """Return the number of the source, and the secret if there is one."""
        return {"client": self._number} | ({"secret": Secret(self._secret)} if self._secret else {})

    def fetch(self, context: FetchContext) -> Token:
        """Return a token."""
        del context
        time.sleep(self._latency)
        now = time.time()
        value = f"{self._number}.{time.monotonic_ns()}.".ljust(VALUE, "x")
        return Token(value, expires_at=now + LIFETIME, issued_at=now)


class Elsewhere:
    """A store without memory in this process: it grants every lease and stores nothing."""

    name = "elsewhere"

    def __init__(self) -> None:
        self._fence = 0

    def load(self, key: str) -> None:
        """Return ``None``."""

    def lease(self, key: str, owner: str, identity: str, seen: bytes | None, ttl: float) -> Granted:
        """Grant the lease."""
        del identity, seen
        self._fence += 1
        return Granted(LeaseGrant(key, owner, self._fence, ttl))

    def commit(self, lease: LeaseGrant, data: bytes, ttl: float) -> bool:
        """Discard the record."""
        del lease, data, ttl
        return True

    def close(self) -> None:
        """Do nothing."""


@dataclass(frozen=True, slots=True)
class Memory:
    """The memory of sources, in bytes per source, and the threads that remain when all have a token."""

    sources: int
    made: float
    held: float
    threads: int


def memory(count: int) -> Memory:
    """Make ``count`` sources, get a token for each, and measure their memory."""
    with TokenCache(Elsewhere(), observers=(), sources=count) as cache:  # type: ignore[arg-type]
        cache.source(Login(-1, 0.0)).token()  # loads the modules and makes the shared objects first
        before = threading.active_count()
        providers = [Login(number, 0.0) for number in range(count)]
        gc.collect()
        tracemalloc.start()
        start, _ = tracemalloc.get_traced_memory()
        sources = [cache.source(provider) for provider in providers]
        gc.collect()
        made, _ = tracemalloc.get_traced_memory()
        for source in sources:
            source.token()
        gc.collect()
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return Memory(count, (made - start) / count, (held - start) / count, threading.active_count() - before)


def key_cost(count: int = 20) -> float:
    """Return the seconds in which a source with a credential derives its key, once."""
    with TokenCache("memory://", observers=()) as cache:
        sources = [cache.source(Login(number, 0.0, f"secret-{number}")) for number in range(count)]
        begun = time.perf_counter()
        for source in sources:
            _ = source.key
        return (time.perf_counter() - begun) / count


@dataclass(frozen=True, slots=True)
class Burst:
    """The figures of renewals of all sources in one process. Durations are seconds, ``resident`` is in MB.

    ``threads`` is the most at once. ``slowest`` is the longest call of a source with a usable token. ``took`` is the
    time until all were renewed and the last thread ended. ``samples`` are threads over time.
    """

    name: str
    sources: int
    latency: float
    threads: int
    slowest: float
    took: float
    renewed: int
    resident: float
    failed: int
    samples: tuple[tuple[float, int], ...]


class _Clock:
    """The steady clock, which can be set forward."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        """Return the reading."""
        return time.monotonic() + self.ahead


def burst(name: str, count: int, *, minute: bool, latency: float) -> Burst:
    """Make ``count`` sources renew, within a minute or all at once, while each is asked steadily."""
    clock, pace, events = _Clock(), [0.0], list[str]()
    with TokenCache(
        "memory://", observers=(lambda event: events.append(type(event).__name__),), clock=clock, sources=count
    ) as cache:
        sources = [cache.source(_Late(number, pace)) for number in range(count)]
        started = clock()
        old = [source.token().value for source in sources]
        pace[0] = latency
        events.clear()
        clock.ahead = SOONEST - (clock() - started) if minute else LATEST + 1
        idle, begun = threading.active_count(), time.perf_counter()
        watch = _Watch(idle, begun)
        watch.start()
        slowest, renewed = 0.0, 0
        while (renewed < count or threading.active_count() > idle + 1) and time.perf_counter() - begun < PATIENCE:
            turn = time.perf_counter()
            slowest = max(slowest, _ask(sources))
            renewed = sum(source.token().value != value for source, value in zip(sources, old, strict=True))
            time.sleep(max(0.0, 0.5 - (time.perf_counter() - turn)))
        took = time.perf_counter() - begun
        samples = watch.end()
        most = max(threads for _, threads in samples)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        failed = sum(event in {"BackendFailed", "FetchFailed"} for event in events)
        return Burst(name, count, latency, most, slowest, took, renewed, peak, failed, tuple(samples))


class _Watch(threading.Thread):
    """Counts the threads of the process, ten times a second."""

    def __init__(self, idle: int, begun: float) -> None:
        super().__init__(daemon=True)
        self._idle = idle + 1  # plus this thread
        self._begun = begun
        self._over = threading.Event()
        self._samples: list[tuple[float, int]] = []

    def run(self) -> None:
        """Count threads until ``end``."""
        while not self._over.wait(0.1):
            self._samples.append((time.perf_counter() - self._begun, threading.active_count() - self._idle))

    def end(self) -> list[tuple[float, int]]:
        """Stop, and return the samples."""
        self._over.set()
        self.join()
        return self._samples


class _Late(Login):
    """A provider whose latency is set while it is in use."""

    def __init__(self, number: int, pace: list[float]) -> None:
        super().__init__(number, 0.0)
        self._pace = pace

    def fetch(self, context: FetchContext) -> Token:
        """Return a token."""
        self._latency = self._pace[0]
        return super().fetch(context)


def _ask(sources: list[TokenSource]) -> float:
    """Ask each source once; return how long the slowest call took."""
    slowest = 0.0
    for source in sources:
        begun = time.perf_counter()
        source.token()
        slowest = max(slowest, time.perf_counter() - begun)
    return slowest


def bursts(count: int = 10_000) -> list[Burst]:
    """Make ``count`` sources renew in three ways, each in its own process."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:
        ways = [
            pool.submit(burst, "due within a minute", count, minute=True, latency=LATENCY),
            pool.submit(burst, "due at once", count, minute=False, latency=LATENCY),
            pool.submit(burst, "due at once, a login takes 10 s", count, minute=False, latency=10.0),
        ]
        return [way.result() for way in ways]
