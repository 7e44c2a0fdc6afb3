"""The contract of backends, kept by the memcached backend on a real server."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tokencache.backends.memcached import MemcachedBackend
from tokencache.testing.contract import BackendContract
from tokencache.testing.servers import MemcachedServer, require

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.live


@pytest.fixture(scope="module")
def server() -> Iterator[MemcachedServer]:
    """Give one server to all laws."""
    require("memcached")
    with MemcachedServer() as running:
        yield running


class TestMemcachedBackend(BackendContract):
    """The laws, on a store that counts in whole seconds and keeps a lease up to two seconds longer than asked."""

    short = 1.0
    rounding = 2.0

    @pytest.fixture(autouse=True)
    def _server(self, server: MemcachedServer) -> None:
        """Empty the server."""
        assert server.command("flush_all") == ["OK"]
        self.port = server.port

    def make_backend(self, tmp_path: Path) -> MemcachedBackend:
        """Return a backend on the empty server."""
        return MemcachedBackend(f"127.0.0.1:{self.port}", timeout=30.0)
