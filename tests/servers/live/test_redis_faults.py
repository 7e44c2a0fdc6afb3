"""Redis when it fails: a restart, a failover, a cluster that loses a node."""

from __future__ import annotations

import asyncio
import gc
import threading
from typing import TYPE_CHECKING

import pytest
import redis

from tokencache import RefreshPolicy, Token, TokenCache
from tokencache.backends.redis import RedisBackend, _protocol, from_url
from tokencache.events import BackendFailed
from tokencache.plugins import open_backend
from tokencache.testing._server_process import wait_until
from tokencache.testing.contract import BackendContract
from tokencache.testing.fakes import FakeProvider, Recorder
from tokencache.testing.servers import Certificates, RedisCluster, RedisSentinels, RedisServer
from tokencache.url import BackendURL
from tokencache_qpay.testing import FakeQPay, fleet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.live

PATIENCE = 30.0


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    """A Redis for this module alone."""
    with RedisServer() as server:
        yield server


def test_no_wake_up_needs_the_safety_poll(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commit wakes a waiter, not the end of its wait, which is far away here."""
    monkeypatch.setattr(_protocol, "LONGEST_BLOCK", 10 * PATIENCE)
    server.command("FLUSHALL")
    backend = from_url(BackendURL.parse(f"{server.url}?timeout={2 * PATIENCE:g}s"))
    provider, policy = FakeProvider(), RefreshPolicy(lease=20 * PATIENCE, timeout=10 * PATIENCE)
    for number in range(20):
        holder, waiter = (TokenCache(backend, policy=policy).source(provider, key=f"k{number}") for _ in range(2))
        provider.gate.clear()
        provider.started.clear()
        threads = [threading.Thread(target=source.token) for source in (holder, waiter)]
        for thread in threads:
            thread.start()
        assert provider.started.wait(PATIENCE)
        wait_until(lambda: server.info("clients")["blocked_clients"] == "1", "a waiter", PATIENCE)
        provider.gate.set()
        for thread in threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()
        assert holder.token() == waiter.token()
    assert provider.calls == 20


@pytest.fixture(scope="module")
def cluster() -> Iterator[RedisCluster]:
    """Three masters."""
    with RedisCluster() as cluster:
        yield cluster


class TestOnCluster(BackendContract):
    """Every law, on a cluster."""

    @pytest.fixture(autouse=True)
    def _cluster(self, cluster: RedisCluster) -> None:
        """Note the cluster's address."""
        self.cluster = cluster

    def make_backend(self, tmp_path: Path) -> RedisBackend:
        """Return a backend on an emptied cluster."""
        backend = from_url(BackendURL.parse(self.cluster.url))
        backend._connected(waiting=False).flushall(target_nodes="primaries")
        return backend


@pytest.mark.parametrize("kind", [RedisCluster, RedisSentinels])
def test_a_cold_fleet_logs_in_once(kind: type[RedisCluster | RedisSentinels]) -> None:
    """INV-2: 8 processes of 16 threads make one login, on a cluster and behind Sentinel as on one server."""
    with kind() as servers, FakeQPay(latency=0.25) as qpay:
        crowd = [fleet.start(qpay, servers.url, 16) for _ in range(8)]
        fleet.go(crowd)
        rows = fleet.answers(crowd)
        assert [row[:2] for row in rows] == [["16", "1"]] * 8, rows
        assert len({row[2] for row in rows}) == 1
        assert qpay.logins == 1


@pytest.mark.parametrize("kind", [RedisCluster, RedisSentinels])
def test_a_closed_backend_leaves_no_connection_open(
    kind: type[RedisCluster | RedisSentinels], count_sockets: Callable[[], int]
) -> None:
    """No connection to a node or a sentinel stays; the client library would leave some to the garbage collector."""
    with kind() as servers:
        gc.collect()
        before = count_sockets()
        backend = from_url(BackendURL.parse(servers.url))
        assert backend.load("key") is None
        clients = (backend._client, backend._waiting)  # keeps them from the garbage collector
        assert count_sockets() > before
        backend.close()
        assert count_sockets() == before
        del clients


def test_tls_without_verification_is_shared_and_warned_of(tls_redis: RedisServer) -> None:
    """`ssl_cert_reqs=none` accepts a certificate of an unknown authority in both halves; `doctor` warns of it."""
    url = f"rediss://localhost:{tls_redis.port}/0?ssl_cert_reqs=none"
    seen = Recorder()

    async def token() -> Token:
        async with TokenCache(url, observers=[seen]) as cache:
            return await cache.source(FakeProvider(), key="unverified").atoken()

    with TokenCache(url, observers=[seen]) as cache:
        first = cache.source(FakeProvider(), key="unverified").token()
    assert asyncio.run(token()).value == first.value
    assert not seen.of(BackendFailed)
    client = redis.Redis(port=tls_redis.port, ssl=True, ssl_cert_reqs="none", ssl_check_hostname=False)
    for backend in (open_backend(url), RedisBackend(client=client)):
        (warned,) = [finding for finding in backend.findings("k") if finding.check == "TLS"]
        assert warned.mark == "warning"
        assert "ssl_cert_reqs=none" in warned.seen
    client.close()
    assert not [finding for finding in open_backend(tls_redis.url).findings("k") if finding.check == "TLS"]


def test_tls_and_an_acl_user_are_enough(tls_redis: RedisServer, certificates: Certificates) -> None:
    """A server with TLS and a user of few rights: one login, and a certificate of another authority is refused."""
    rights = "+get +pttl +set +del +pexpire +time +eval +evalsha +xadd +xread"
    tls_redis.command("ACL", "SETUSER", "app", "on", ">pw", "~tokens:*", *rights.split())
    url = f"rediss://app:pw@localhost:{tls_redis.port}/0"
    provider = FakeProvider()
    seen = Recorder()
    for _ in range(2):
        with TokenCache(f"{url}?ssl_ca_certs={certificates.authority}", observers=[seen], namespace="tokens:") as cache:
            source = cache.source(provider)
            assert source.token().value == "fake-token-1"
            assert source.invalidate(Token("other", expires_at=1, issued_at=0)) is False
    assert not seen.of(BackendFailed)
    with TokenCache(url, observers=[seen], namespace="tokens:") as cache:
        assert cache.source(FakeProvider()).token()
    (event,) = seen.of(BackendFailed)
    assert "pw" not in event.error  # type: ignore[attr-defined]
