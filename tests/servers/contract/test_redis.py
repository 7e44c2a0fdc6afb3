"""The laws of backends on a real Redis, for threads and for event loops."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from valkey import Valkey

from tokencache.backends.redis import RedisBackend, from_url
from tokencache.testing.contract import BackendContract
from tokencache.url import BackendURL

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.live


class TestRedisBackend(BackendContract):
    """Every law, on Redis."""

    url = ""

    @pytest.fixture(autouse=True)
    def _server(self, redis_url: str) -> None:
        """Note the server's URL."""
        self.url = f"{redis_url}?timeout=30s&connect_timeout=30s"

    def make_backend(self, tmp_path: Path) -> RedisBackend:
        """Return a backend on an empty server."""
        backend = from_url(BackendURL.parse(self.url))
        backend._execute("any", ["FLUSHALL"])
        return backend


class TestValkeyClient(TestRedisBackend):
    """Every law, with a client of the user's own from valkey-py, which raises errors of its own."""

    def make_backend(self, tmp_path: Path) -> RedisBackend:
        """Return a backend around such a client; event loops use it through threads."""
        super().make_backend(tmp_path).close()
        return RedisBackend(client=Valkey.from_url(self.url.partition("?")[0], socket_timeout=30.0))
