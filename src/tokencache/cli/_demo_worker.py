"""One process of the demo's fleet: it reads its orders from stdin, gets ready, waits for the start, and reports.

Each message is a line of JSON. The orders come in, `{"ready": true}` goes out, any line in is the start, and then the
reports go out: `{"calls": n}` while it works, and a last one with `"done"`. It ends when its parent does.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING

from tokencache.cli._demo_orders import Orders, first_line
from tokencache.cli._streams import replace_streams
from tokencache.errors import TokenCacheError
from tokencache.policy import RefreshPolicy, early_of

if TYPE_CHECKING:
    from tokencache import Token, TokenSource
    from tokencache.cli._demo_orders import WorkerLoad

PAUSE = 0.001
"""Between two calls of one thread under load, so that the fetch itself gets its turn at the interpreter."""


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


def main() -> None:
    """Do as ordered."""
    orders = Orders(**json.loads(first_line()))

    from tokencache import TokenCache
    from tokencache_qpay import QPayProvider

    logging.getLogger("tokencache").addHandler(logging.NullHandler())  # errors are reported, not logged
    try:
        with TokenCache(orders.backend, namespace=orders.namespace) as cache:
            provider = QPayProvider(orders.client_id, orders.client_secret, base_url=orders.base_url)
            policy = RefreshPolicy()
            source = cache.source(provider, policy=policy)
            _ = source.key  # worked out before the start, so that the figures are those of the fetch
            tallies = run(orders, source, policy)
    except TokenCacheError as error:
        sys.exit(f"a process of the demo: {error}")
    say({"done": "all", **total(tallies), "times": []})  # nobody looks at each of so many


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
        source.token()  # the first caller, who waits for the fetch
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


if __name__ == "__main__":
    replace_streams()  # no traceback when the parent was killed
    main()
