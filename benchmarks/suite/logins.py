"""The provider of the in-process scenarios: it has a latency, knows the lifetime of each token, and can fail.

Each peer gets it through its own interface: a function, a session, a transport. So a login costs all of them the same,
and each token from a cache can be checked for lateness.
"""

from __future__ import annotations

import itertools
import json
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

NAME, SECRET = "client", "not-a-secret"
URL = "https://login.invalid/tenant/token"


class ProviderDownError(Exception):
    """Raised by a login while the provider is down."""


class Logins:
    """Logs in within ``latency`` for a token that lives ``lifetime`` seconds. ``down`` makes calls fail.

    ``told`` is the lifetime in the response. Clients with a constant window get a lifetime that is longer by this
    window, because they would treat a token of 2 s as expired. ``calls`` counts the logins.
    """

    def __init__(self, *, latency: float = 0.0, lifetime: float = 3600.0) -> None:
        self.latency = latency
        self.lifetime = lifetime
        self.told = lifetime
        self.calls = 0
        self.down = False
        self._numbers = itertools.count(1)
        self._ends: dict[str, float] = {}  # token, and the instant of its end by the monotonic clock
        self._lock = threading.Lock()  # guards calls

    def __call__(self) -> str:
        """Return a new token."""
        return str(self.response()["access_token"])

    def response(self) -> Mapping[str, object]:
        """Return the response of a token endpoint. A token's lifetime begins with the answer, as on a server."""
        with self._lock:
            self.calls += 1
        time.sleep(self.latency)
        return self._made()

    async def aresponse(self) -> Mapping[str, object]:
        """Return the response of a token endpoint, from an event loop."""
        import asyncio

        self.calls += 1
        await asyncio.sleep(self.latency)
        return self._made()

    def _made(self) -> Mapping[str, object]:
        """Return a response, or raise while the provider is down."""
        if self.down:
            message = "the provider is down"
            raise ProviderDownError(message)
        value = f"token-{next(self._numbers)}"
        self._ends[value] = time.monotonic() + self.lifetime
        return {"access_token": value, "token_type": "Bearer", "expires_in": self.told}

    def late(self, token: str, at: float) -> bool:
        """Return whether ``token`` had expired at that instant."""
        return at >= self._ends[token]

    def body(self) -> bytes:
        """Return the response as JSON, with whole seconds for clients that require them."""
        return json.dumps({**self.response(), "expires_in": int(self.told)}).encode()
