"""Fixtures for tests on one shared Redis, which each test finds empty."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
import trustme
from redis import Redis

from tokencache.backends.redis import RedisBackend, from_url
from tokencache.testing.servers import Certificates, RedisServer, ServerFailed
from tokencache.url import BackendURL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def store(redis_url: str) -> Iterator[Redis]:
    """A plain client on the emptied server: it sees what any other program sees."""
    with Redis.from_url(redis_url) as client:
        client.flushall()
        yield client


@pytest.fixture
def prolonged(store: Redis) -> Callable[[str, int], None]:
    """Return a function that waits until a lease was extended so many times; the lease lasts all that time."""

    def wait(lock: str, times: int) -> None:
        patience = time.monotonic() + 30.0
        before = store.pttl(lock)
        while times:
            assert time.monotonic() < patience
            left = store.pttl(lock)
            assert left > 0, "the lease has ended"
            times -= left > before
            before = left
            time.sleep(0.005)

    return wait


@pytest.fixture
def backend(redis_url: str, store: Redis) -> Iterator[RedisBackend]:
    """A backend on the emptied server."""
    backend = from_url(BackendURL.parse(f"{redis_url}?timeout=30s&connect_timeout=30s"))
    yield backend
    backend.close()


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    """The files of a certificate authority, and of a certificate that it issued for loopback."""
    authority = trustme.CA()
    issued = authority.issue_cert("localhost", "127.0.0.1")
    files = Certificates(*(tmp_path / name for name in ("ca.pem", "cert.pem", "key.pem")))
    authority.cert_pem.write_to_path(str(files.authority))
    issued.cert_chain_pems[0].write_to_path(str(files.certificate))
    issued.private_key_pem.write_to_path(str(files.key))
    return files


@pytest.fixture
def tls_redis(certificates: Certificates) -> Iterator[RedisServer]:
    """A Redis that speaks only TLS; skipped if the server was built without TLS."""
    server = RedisServer(tls=certificates)
    try:
        server.start()
    except ServerFailed as failure:
        if "TLS support" not in str(failure):
            raise
        pytest.skip("this redis-server was built without TLS")
    yield server
    server.stop()
