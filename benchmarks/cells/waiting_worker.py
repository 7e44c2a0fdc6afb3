"""Sixteen waiters in one process, for a key whose lease another process holds; each reports when it has the token.

Arguments: the way, the URL of Redis, the number of waiters. The way is ``threads`` (of one source), ``sources`` (one
thread each) or ``limit`` (bare blocking reads of redis-py). It prints ``waiting`` just before all ask, then the
instants (epoch seconds) as JSON.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import TYPE_CHECKING

from redis import Redis

from tokencache import TokenCache
from tokencache.testing.fakes import FakeProvider

if TYPE_CHECKING:
    from collections.abc import Callable


def ways(way: str, url: str, waiters: int) -> list[Callable[[], object]]:
    """Return the function of each waiter. All connections are made first, because real ones last for hours."""
    if way == "limit":
        redis = Redis.from_url(url, protocol=2)
        redis.ping()
        return [lambda: json.loads(redis.xread({"k:ready": "0-0"}, block=9000)[0][1][0][1][b"record"])] * waiters
    sources = [TokenCache(url).source(FakeProvider(), key="k") for _ in range(waiters if way == "sources" else 1)]
    for source in sources:
        source.status()
    return [source.token for source in sources] * (waiters // len(sources))


def main() -> None:
    """Wait, and print the instants."""
    had: list[float] = []

    def ask(get: Callable[[], object]) -> None:
        get()
        had.append(time.time())

    crowd = [threading.Thread(target=ask, args=(get,)) for get in ways(sys.argv[1], sys.argv[2], int(sys.argv[3]))]
    for thread in crowd:
        thread.start()
    print("waiting", flush=True)
    for thread in crowd:
        thread.join()
    print(json.dumps(had), flush=True)


if __name__ == "__main__":
    main()
