"""One process of a stampede: asks at a given instant from many threads, by tokencache or by the hand-written limit.

Arguments: ``tokencache`` or ``limit``, the URL of the fake QPay, the URL of Redis, the number of threads. Prints
``ready``, reads the instant (epoch seconds) from standard input, prints the waits as JSON.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

USER, PASSWORD, KEY = "TEST_MERCHANT", "123456", "limit:token"


def by_tokencache(qpay: str, store: str) -> Callable[[], str]:
    """Return the way of tokencache."""
    from tokencache import TokenCache
    from tokencache_qpay import QPayProvider

    source = TokenCache(store).source(QPayProvider(USER, PASSWORD, base_url=qpay))
    source.key  # noqa: B018  (the slow fingerprint, once per process, is not what is measured)
    return lambda: source.token().value


def by_hand(qpay: str, store: str) -> Callable[[], str]:
    """Return the least that does it: one flight per process, a lock with an end, the token in a message."""
    import httpx
    from redis import Redis

    redis = Redis.from_url(store, decode_responses=True)
    lock = threading.Lock()
    known: list[str] = []

    def fetch() -> str:
        reply = httpx.post(f"{qpay}/v2/auth/token", auth=(USER, PASSWORD), timeout=20)
        token = str(reply.json()["access_token"])
        redis.set(KEY, token, ex=3540)
        redis.publish(f"{KEY}:ready", token)
        redis.delete(f"{KEY}:lock")
        return token

    def get() -> str:
        if known:
            return known[0]
        with lock:
            if known:
                return known[0]
            token = redis.get(KEY)
            if token is None:
                with redis.pubsub(ignore_subscribe_messages=True) as messages:
                    messages.subscribe(f"{KEY}:ready")
                    messages.get_message(timeout=1)
                    if redis.set(f"{KEY}:lock", "mine", nx=True, px=3000):
                        token = fetch()
                    else:
                        token = redis.get(KEY)
                        while token is None:
                            message = messages.get_message(timeout=3)
                            token = message["data"] if message else redis.get(KEY)
            known.append(str(token))
            return known[0]

    return get


def main() -> None:
    """Ask when it is time."""
    way, qpay, store, threads = sys.argv[1:]
    get = by_tokencache(qpay, store) if way == "tokencache" else by_hand(qpay, store)
    print("ready", flush=True)
    start = float(sys.stdin.readline())
    waits: list[float] = []

    def ask() -> None:
        time.sleep(max(0.0, start - time.time()))
        began = time.time()
        get()
        waits.append(time.time() - began)

    crowd = [threading.Thread(target=ask) for _ in range(int(threads))]
    for thread in crowd:
        thread.start()
    for thread in crowd:
        thread.join()
    print(json.dumps(waits), flush=True)


if __name__ == "__main__":
    main()
