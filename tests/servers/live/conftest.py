"""Fixtures for tests on the one Redis that all of them share: whoever uses it finds it empty."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trustme
from redis import Redis

from tokencache.backends.redis import RedisBackend, from_url
from tokencache.testing.servers import Certificates, RedisServer, ServerFailed, require
from tokencache.url import BackendURL

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def store(redis_url: str) -> Iterator[Redis]:
    """A plain client on the emptied server: what any other program sees."""
    with Redis.from_url(redis_url) as client:
        client.flushall()
        yield client


@pytest.fixture
def backend(redis_url: str, store: Redis) -> Iterator[RedisBackend]:
    """A backend on the emptied server."""
    backend = from_url(BackendURL.parse(redis_url))
    yield backend
    backend.close()


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    """The files of an authority, and of a certificate that it issued for loopback."""
    authority = trustme.CA()
    issued = authority.issue_cert("localhost", "127.0.0.1")
    files = Certificates(*(tmp_path / name for name in ("ca.pem", "cert.pem", "key.pem")))
    authority.cert_pem.write_to_path(str(files.authority))
    issued.cert_chain_pems[0].write_to_path(str(files.certificate))
    issued.private_key_pem.write_to_path(str(files.key))
    return files


@pytest.fixture
def tls_redis(certificates: Certificates) -> Iterator[RedisServer]:
    """A Redis that speaks TLS alone; skipped where the server was built without TLS."""
    require("redis-server")
    server = RedisServer(tls=certificates)
    try:
        server.start()
    except ServerFailed as failure:
        if "TLS support" not in str(failure):
            raise
        pytest.skip("this redis-server was built without TLS")
    yield server
    server.stop()
