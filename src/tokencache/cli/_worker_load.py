"""The load of one worker process: threads that ask a source for tokens, and the messages to the parent process.

Each message is a line of JSON. The orders come over a pipe, so that process lists show no credential. The worker sends
`{"ready": true}`, and the next line from the parent is the start. While the threads work, the worker sends
`{"calls": n}`, and at the end a report with `"done"`. It ends when its parent ends.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING

from tokencache.errors import TokenCacheError
from tokencache.policy import early_of

if TYPE_CHECKING:
    from tokencache import Token, TokenSource
    from tokencache.policy import RefreshPolicy

PAUSE = 0.001
"""Pause between two calls of one thread, in seconds, so that the fetching thread gets the interpreter lock."""


@dataclass(frozen=True, kw_only=True)
class WorkerLoad:
    """The threads of one process. With ``seconds`` they ask repeatedly for that time, else each asks once.

    A call longer than ``patience`` seconds counts as one that waited.
    """

    threads: int
    patience: float
    seconds: float = 0.0


@dataclass
class Tally:
    """The figures of one thread."""

    calls: int = 0
    waited: int = 0
    late: int = 0
    slowest: float = 0.0
    times: list[float] = field(default_factory=list[float])
    tokens: set[str] = field(default_factory=set[str])
    errors: list[str] = field(default_factory=list[str])

    def ask(self, source: TokenSource, policy: RefreshPolicy, patience: float) -> None:
        """Ask for a token; record the time, and whether the token was usable at that moment."""
        asked_at, began = time.time(), time.perf_counter()
        try:
            token = source.token()
        except TokenCacheError as error:
            self.errors.append(str(error))
            return
        took = time.perf_counter() - began
        self.calls += 1
        self.waited += took > patience
        self.slowest = max(self.slowest, took)
        self.times.append(took)
        self.late += asked_at >= token.expires_at - early_of(policy, token.lifetime)
        self.tokens.add(_mark(token))


def first_line() -> str:
    """Return the first line of stdin, the orders; end the process if the parent ended before the whole line."""
    line = sys.stdin.readline()
    return line if line.endswith("\n") else sys.exit(1)


def run(orders: WorkerLoad, source: TokenSource, policy: RefreshPolicy) -> list[Tally]:
    """Wait for the start, let the threads ask, and return the figures of each."""
    tallies = [Tally() for _ in range(orders.threads)]
    start = threading.Barrier(orders.threads + 1)
    over = threading.Event()

    def once(tally: Tally) -> None:
        start.wait()
        tally.ask(source, policy, orders.patience)

    def again(tally: Tally) -> None:
        start.wait()
        while not over.wait(PAUSE):
            tally.ask(source, policy, orders.patience)

    target = again if orders.seconds else once
    threads = [threading.Thread(target=target, args=(tally,), daemon=True) for tally in tallies]
    for thread in threads:
        thread.start()
    say({"ready": True})
    if not sys.stdin.readline():
        sys.exit(1)
    if orders.seconds:
        source.token()  # the first call waits for the fetch
    start.wait()
    ends = time.monotonic() + orders.seconds
    while time.monotonic() < ends:
        time.sleep(0.2)
        say({"calls": sum(tally.calls for tally in tallies)})
    over.set()
    for thread in threads:
        thread.join()
    return tallies


def total(tallies: list[Tally]) -> dict[str, object]:
    """Return the sum of all threads, as plain values."""
    whole = Tally()
    for tally in tallies:
        whole.calls += tally.calls
        whole.waited += tally.waited
        whole.late += tally.late
        whole.slowest = max(whole.slowest, tally.slowest)
        whole.times += tally.times
        whole.tokens |= tally.tokens
        whole.errors += tally.errors
    return {**asdict(whole), "tokens": sorted(whole.tokens)}


def _mark(token: Token) -> str:
    """Return a fingerprint that tells two tokens apart without showing them."""
    return sha256(token.value.encode()).hexdigest()[:16]


def say(message: dict[str, object]) -> None:
    """Send one message to the parent."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()
