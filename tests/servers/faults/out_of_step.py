"""A probe: it cancels calls at random moments and counts answers that belong to other calls.

`out_of_step.py URL ours` calls the Redis backend. `out_of_step.py URL plain` calls redis-py itself, in the version that
is first on the path. It prints the version, the number of cancelled calls and the number of wrong answers.
"""

from __future__ import annotations

import asyncio
import random
import sys
from typing import TYPE_CHECKING

import redis
from redis.asyncio import Redis

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

QUESTIONS = {f"question-{number}": f"answer-{number}".encode() for number in range(10)}
CANCELLED = 1000


async def probe(ask: Callable[[str], Awaitable[bytes | None]]) -> tuple[int, int]:
    """Return how many calls were cancelled, and how many of the others got a wrong answer."""
    draw = random.Random(7)
    cancelled = wrong = 0
    while cancelled < CANCELLED:
        key = draw.choice(list(QUESTIONS))
        call = asyncio.ensure_future(ask(key))
        for _ in range(draw.randrange(6)):
            await asyncio.sleep(0)
        if draw.random() < 0.5:
            call.cancel()
        try:
            wrong += await call != QUESTIONS[key]
        except asyncio.CancelledError:
            cancelled += 1
    return cancelled, wrong


async def main(url: str, client: str) -> None:
    """Store the answers, ask for them, and print the counts."""
    plain = Redis.from_url(url)
    await plain.mset(QUESTIONS)
    if client == "plain":
        print(redis.__version__, *await probe(plain.get))
    else:
        from tokencache.backends.redis import from_url
        from tokencache.url import BackendURL

        half = from_url(BackendURL.parse(url)).aio()

        async def ask(key: str) -> bytes | None:
            """Ask for the record."""
            stored = await half.load(key)
            return None if stored is None else stored.data

        print(redis.__version__, *await probe(ask))
        await half.close()
    await plain.connection_pool.disconnect()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
