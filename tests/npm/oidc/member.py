"""One process of a fleet: a script with its settings on the first input line, and one command on each further line.

After each command it prints its callers' results, as JSON: the tokens by their fingerprints, the number of late ones,
the errors, and when the last token ends. At the start it reports that it is ready; it ends with its input.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from typing import Any

from tokencache import RefreshPolicy, Token, TokenCache
from tokencache.providers.oauth2 import RefreshToken

PAUSE = 0.02


class Caller:
    """A caller that asks until it has seen a given number of different tokens, or an error is raised."""

    def __init__(self, times: int) -> None:
        self._times = times
        self.tokens: dict[str, Token] = {}
        self.late = 0
        self.error: str | None = None

    @property
    def content(self) -> bool:
        """Whether it has seen enough tokens."""
        return len(self.tokens) >= self._times or self.error is not None

    def take(self, token: Token | None, asked_at: float) -> None:
        """Note a token; it must not have ended before the call (INV-1)."""
        if token is None:
            self.error = "there was no other token"
            return
        self.late += token.expires_at <= asked_at
        self.tokens[sha256(token.value.encode()).hexdigest()[:8]] = token


class Member:
    """The callers of one process: threads, or tasks of one event loop."""

    def __init__(self, told: dict[str, Any]) -> None:
        self._number = told["callers"]
        self._runner = asyncio.Runner() if told["colour"] == "event loop" else None
        self._cache = TokenCache(told["backend"])
        policy = RefreshPolicy(**told["policy"])
        self._source = self._cache.source(RefreshToken(**told["provider"]), policy=policy)
        self._last: Token | None = None
        self._old: Token | None = None
        assert self._source.key  # computing it takes a while, which must not count for the first round

    def obey(self, order: str, times: int) -> dict[str, object]:
        """Run a command with all callers at once, and return the results."""
        callers = [Caller(times) for _ in range(self._number)]
        while order == "after the end" and self._last is not None and time.time() < self._last.expires_at:
            time.sleep(PAUSE)
        if self._runner is None:
            self._threads(callers, order)
        else:
            self._runner.run(self._tasks(callers, order))
        tokens = {name: token for caller in callers for name, token in caller.tokens.items()}
        last = max(tokens.values(), key=lambda token: token.expires_at, default=None)
        if last != self._last:
            self._last, self._old = last, self._last
        errors = [caller.error for caller in callers if caller.error is not None]
        late = sum(caller.late for caller in callers)
        return {
            "tokens": sorted(tokens),
            "late": late,
            "errors": errors,
            "ends_at": self._last and self._last.expires_at,
        }

    def _refused(self, order: str) -> Token | None:
        """Return the token to report: the last one, or an earlier one that another caller has replaced."""
        return {"refused": self._last, "refused late": self._old}.get(order)

    def _threads(self, callers: list[Caller], order: str) -> None:
        together = threading.Barrier(len(callers))

        def ask(caller: Caller) -> None:
            together.wait()
            while not caller.content:
                asked_at, refused = time.time(), self._refused(order)
                try:
                    caller.take(self._source.token() if refused is None else self._source.replace(refused), asked_at)
                except Exception as error:
                    caller.error = repr(error)
                time.sleep(PAUSE)

        with ThreadPoolExecutor(len(callers)) as pool:
            list(pool.map(ask, callers))

    async def _tasks(self, callers: list[Caller], order: str) -> None:
        async def ask(caller: Caller) -> None:
            while not caller.content:
                asked_at, refused = time.time(), self._refused(order)
                try:
                    token = await (self._source.atoken() if refused is None else self._source.areplace(refused))
                    caller.take(token, asked_at)
                except Exception as error:
                    caller.error = repr(error)
                await asyncio.sleep(PAUSE)

        await asyncio.gather(*(ask(caller) for caller in callers))


def main() -> None:
    """Be a member until the input ends."""
    member = Member(json.loads(sys.stdin.readline()))
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(member.obey(**json.loads(line))), flush=True)


main()
