"""One process of a stampede of `tokencache bench`: its threads ask for a token of a simulated login.

Its last report also has ``fetches``: the time of each simulated login, in seconds.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tokencache.cli._setup import Setup, quiet
from tokencache.cli._streams import replace_streams
from tokencache.cli._worker_load import WorkerLoad, first_line, run, say, total
from tokencache.errors import TokenCacheError
from tokencache.policy import RefreshPolicy
from tokencache.ports import Secret
from tokencache.token import Token

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokencache.ports import FetchContext

LIFETIME = 120.0
"""The lifetime of a simulated token, in seconds. Its record is deleted at the end of the bench, or expires soon."""


@dataclass(frozen=True, kw_only=True)
class Drill(WorkerLoad):
    """The orders of one process. ``login``, ``size`` and ``secret`` go to its :class:`PlayedProvider`.

    ``backend`` and ``config`` are as on the command line.
    """

    backend: str | None = field(repr=False)
    config: str | None
    key: str
    secret: str = field(repr=False)
    login: float
    size: int


class PlayedProvider:
    """A provider without requests: after ``login`` seconds it returns a token of ``size`` characters.

    ``secret`` stands for the credential, so that all processes of one stampede have one identity.
    """

    name = "bench"

    def __init__(self, login: float, size: int, secret: str) -> None:
        self.fetches: list[float] = []
        self._login = login
        self._size = size
        self._secret = secret

    def identity(self) -> Mapping[str, object]:
        """Return the identity that the processes of one stampede share."""
        return {"stampede": Secret(self._secret)}

    def fetch(self, context: FetchContext) -> Token:
        """Simulate a login."""
        del context
        began = time.perf_counter()
        time.sleep(self._login)
        token = Token("x" * self._size, expires_at=time.time() + LIFETIME, issued_at=time.time())
        self.fetches.append(time.perf_counter() - began)
        return token


def main() -> None:
    """Read the orders and carry them out."""
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
            provider, policy = PlayedProvider(drill.login, drill.size, drill.secret), quiet(RefreshPolicy())
            source = cache.source(provider, key=drill.key, policy=policy)
            source.status()  # connects before the start, like a process that already works
            tallies = run(drill, source, policy)
    except TokenCacheError as error:
        sys.exit(f"a process of the bench: {error}")
    say({"done": "all", **total(tallies), "fetches": provider.fetches})


if __name__ == "__main__":
    replace_streams()  # as in the demo: no traceback when the parent was killed
    main()
