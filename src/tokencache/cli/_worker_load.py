"""The load of one worker process: threads that ask a source for tokens, and the messages to the parent process.

Each message is a line of JSON. The orders come in over a pipe, so that no credential is in a process list.
`{"ready": true}` goes out, and any line in is the start. Then `{"calls": n}` goes out while the threads work, and a
last report with `"done"`. The process ends when its parent does.
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
"""Between two calls of one thread under load, so that the fetch itself gets its turn at the interpreter."""


@dataclass(frozen=True, kw_only=True)
class WorkerLoad:
    """The threads of one process. With ``seconds`` they ask again and again for that long, else each asks once.

    ``patience`` is how long a call takes, in seconds, before it counts as one that waited.
    """

    threads: int
    patience: float
    seconds: float = 0.0


@dataclass
class Tally:
    """What one thread saw."""

    calls: int = 0
    waited: int = 0
    late: int = 0
    slowest: float = 0.0
    times: list[float] = field(default_factory=list[float])
    tokens: set[str] = field(default_factory=set[str])
    errors: list[str] = field(default_factory=list[str])

    def ask(self, source: TokenSource, policy: RefreshPolicy, patience: float) -> None:
        """Ask for a token and note how long it took and whether it was good at the moment of asking."""
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
    """Return the line of stdin that holds the orders; end the process if the parent ended before it wrote all of it."""
    line = sys.stdin.readline()
    return line if line.endswith("\n") else sys.exit(1)


def run(orders: WorkerLoad, source: TokenSource, policy: RefreshPolicy) -> list[Tally]:
    """Wait for the start, let the threads ask, and return what each saw."""
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
    """Return one tally for all threads, as plain values."""
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
    """Return what tells two tokens apart without being either."""
    return sha256(token.value.encode()).hexdigest()[:16]


def say(message: dict[str, object]) -> None:
    """Send one message to the parent."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()
