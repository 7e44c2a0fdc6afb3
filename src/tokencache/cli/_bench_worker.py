"""One process of a stampede of `tokencache bench`: as `_demo_worker`, but its login is played and asks nobody.

The last report has ``fetches`` as well: how long each login took that this process played.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from contextlib import closing
from typing import TYPE_CHECKING

from tokencache.cli._demo_orders import Drill, first_line
from tokencache.cli._demo_worker import run, say, total
from tokencache.cli._setup import Setup, quiet
from tokencache.cli._streams import replace_streams
from tokencache.errors import TokenCacheError
from tokencache.policy import RefreshPolicy
from tokencache.ports import Secret
from tokencache.token import Token

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokencache.ports import FetchContext

LIFETIME = 120.0
"""Of a token that was played, in seconds: its record is deleted when the stampede is over, and ends by itself."""


class PlayedProvider:
    """A provider that takes as long as a login did, and gives a token that nobody accepts."""

    name = "bench"

    def __init__(self, drill: Drill) -> None:
        self.fetches: list[float] = []
        self._drill = drill

    def identity(self) -> Mapping[str, object]:
        """Return what the processes of one stampede have in common."""
        return {"stampede": Secret(self._drill.secret)}

    def fetch(self, context: FetchContext) -> Token:
        """Play a login."""
        del context
        began = time.perf_counter()
        time.sleep(self._drill.login)
        token = Token("x" * self._drill.size, expires_at=time.time() + LIFETIME, issued_at=time.time())
        self.fetches.append(time.perf_counter() - began)
        return token


def main() -> None:
    """Do as ordered."""
    drill = Drill(**json.loads(first_line()))

    from tokencache import TokenCache
    from tokencache.plugins import open_backend

    logging.getLogger("tokencache").addHandler(logging.NullHandler())  # errors are reported, not logged
    try:
        setup = Setup(drill.config, drill.backend)
        with (
            closing(open_backend(setup.url())) as backend,
            TokenCache.from_config(setup.plan, backend=backend) as cache,
        ):
            provider, policy = PlayedProvider(drill), quiet(RefreshPolicy())
            source = cache.source(provider, key=drill.key, policy=policy)
            source.status()  # the way to the store is open before the start, as in a process that is at work
            tallies = run(drill, source, policy)
    except TokenCacheError as error:
        sys.exit(f"a process of the bench: {error}")
    say({"done": "all", **total(tallies), "fetches": provider.fetches})


if __name__ == "__main__":
    replace_streams()  # as in the demo
    main()
