"""Rows 14 to 17: one server of several fails: Sentinel, a promoted replica, a Cluster, memcached."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from tokencache import RefreshPolicy
from tokencache._record import fence_of
from tokencache.events import BackendFailed, CommitRefused
from tokencache.plugins import open_backend
from tokencache.testing.fakes import FakeProvider
from tokencache.testing.servers import MemcachedServer, Proxy, RedisCluster, RedisSentinels, RedisServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future

    from conftest import Outcome, Remote
    from tokencache import Token, TokenSource

pytestmark = [pytest.mark.live, pytest.mark.usefixtures("tidy")]

REDIS = pytest.mark.parametrize("remote", ["redis", "redis, event loop"], indirect=True)
MEMCACHED = pytest.mark.parametrize("remote", ["memcached", "memcached, event loop"], indirect=True)
PATIENCE = 30.0
QUICK = RefreshPolicy(probe=0.1)
HURRIED = "timeout=2s&connect_timeout=2s"


def fence(remote: Remote, key: str) -> int:
    """Return the fence of the record that a new process would find; 0 if it finds no record or no server."""
    with closing(open_backend(remote.url)) as backend:
        stored = backend.load(key)
        return 0 if stored is None else fence_of(stored.data) or 0


def renewed(remote: Remote, source: TokenSource) -> Future[Token]:
    """Start one call for a newer token, and return when the provider has the request; its gate is shut."""
    remote.provider.gate.clear()
    remote.provider.started.clear()
    callers = remote.callers
    call = callers.do(source.arenew()) if callers.looped else callers._pool.submit(source.renew)
    assert remote.provider.started.wait(PATIENCE)
    return call


# --- row 14


@pytest.mark.fault(14)
@REDIS
def test_a_failover_in_mid_fetch_does_not_interrupt_callers(remote: Remote, outcome: Outcome) -> None:
    """INV-3, INV-4: the holder's master is killed in mid-fetch; callers keep their token, then share the newest.

    The lease may be lost with the master; the fence never falls.
    """
    provider = remote.provider
    with RedisSentinels() as servers:
        remote.url = servers.url
        holder, another = (remote.process(HURRIED, policy=QUICK) for _ in range(2))
        first = remote.ask(holder)
        assert remote.ask(another) == first
        before = fence(remote, holder.key)
        call = renewed(remote, holder)
        servers.failover(kill=True)
        assert remote.ask(*[holder, another] * 10) == first
        with outcome.healing():
            provider.gate.set()
            second = call.result(PATIENCE)
            remote.until(lambda: remote.ask(holder) == second and fence(remote, holder.key) > before)
            assert remote.ask(remote.process()) == second
        assert remote.ask(another) == first
        assert (provider.calls, provider.together) == (2, 1)
    outcome.record("the token that they have, then the renewed one", calls="1 a renewal")


# --- row 15


@pytest.mark.fault(15)
@REDIS
def test_a_lease_that_was_not_replicated_is_granted_twice(remote: Remote, outcome: Outcome) -> None:
    """INV-2, INV-3: two holders, one extra call; the late commit is refused and every caller has the newer token."""
    slow, quick = remote.provider, FakeProvider(secret=remote.provider._secret)
    quick.value = "newer"
    with Proxy(remote.server.port) as link, RedisServer() as replica:
        replica.command("REPLICAOF", "127.0.0.1", str(link.port))
        remote.until(lambda: replica.info("replication")["master_link_status"] == "up")
        link.black_hole()
        late, prompt = remote.process(), remote.process(provider=quick)
        assert late.key == prompt.key
        slow.gate.clear()
        call = remote.callers.start(late)
        assert slow.started.wait(PATIENCE)
        remote.server.kill()
        replica.command("REPLICAOF", "NO", "ONE")
        remote.proxy.target_port = replica.port
        remote.proxy.cut()
        with outcome.healing():
            second = remote.ask(prompt)
            stored = fence(remote, late.key)
            slow.gate.set()
            assert call.result(PATIENCE) == second
        assert len(remote.seen.of(CommitRefused)) == 1
        assert remote.ask(late, prompt, remote.process()) == second
        assert fence(remote, late.key) == stored
        assert (slow.calls, quick.calls) == (1, 1)
    outcome.record("the newer token, all of them; the late commit is refused", calls="2, at once")


# --- row 16


@pytest.fixture(scope="module")
def cluster() -> Iterator[RedisCluster]:
    """Yield three masters."""
    with RedisCluster() as cluster:
        yield cluster


@pytest.fixture
def emptied(cluster: RedisCluster) -> RedisCluster:
    """Yield the three masters, empty; the slots may have moved since the start."""
    for node in cluster.nodes:
        node.command("FLUSHALL")
    return cluster


def owner(cluster: RedisCluster, key: str) -> RedisServer:
    """Return the node that has a key of the fleet."""
    slot = cluster.nodes[0].command("CLUSTER", "KEYSLOT", key)
    return next(node for node in cluster.nodes if node.command("CLUSTER", "COUNTKEYSINSLOT", slot))


@pytest.mark.fault(16, case="a node dies and comes back empty")
@REDIS
def test_a_dead_cluster_node_interrupts_no_caller(remote: Remote, emptied: RedisCluster, outcome: Outcome) -> None:
    """INV-4, INV-5: a process with a token is not affected; one without fetches once; then the newest is shared."""
    remote.url, provider = emptied.url, remote.provider
    warm, cold = (remote.process(HURRIED, policy=QUICK) for _ in range(2))
    first = remote.ask(warm)
    before = fence(remote, warm.key)
    node = owner(emptied, warm.key)
    node.kill()
    assert remote.ask(*[warm] * 10) == first
    second = remote.ask(*[cold] * 10)
    assert second != first
    assert len(remote.seen.of(BackendFailed)) in {1, 2}
    node.restart()
    emptied.wait()
    with outcome.healing():
        remote.until(lambda: remote.ask(cold) == second and fence(remote, warm.key) > before)
        assert remote.ask(remote.process()) == second
    assert remote.ask(warm) == first
    assert (provider.calls, provider.together) == (2, 1)
    outcome.record("the token that they have; without one a new one", calls="1, and 1 a process without a token")


@pytest.mark.fault(16, case="a slot moves in mid-fetch")
@REDIS
def test_record_and_lease_move_with_their_slot(remote: Remote, emptied: RedisCluster, outcome: Outcome) -> None:
    """INV-2, INV-3: the hash tag keeps both on one node; the holder finds them after the move, and one call is made."""
    remote.url, provider = emptied.url, remote.provider
    holder, another = (remote.process(policy=QUICK) for _ in range(2))
    first = remote.ask(holder)
    assert remote.ask(another) == first
    before = fence(remote, holder.key)
    call = renewed(remote, holder)
    assert {holder.key, f"{{{holder.key}}}:lock"} <= moved(emptied, holder.key)
    assert remote.ask(*[holder, another] * 10) == first
    with outcome.healing():
        provider.gate.set()
        second = call.result(PATIENCE)
        remote.until(lambda: remote.ask(holder) == second and fence(remote, holder.key) > before)
        assert remote.ask(remote.process()) == second
    assert (provider.calls, provider.together) == (2, 1)
    outcome.record("the token that they have, then the renewed one", calls="1 a renewal")


def moved(cluster: RedisCluster, key: str) -> set[str]:
    """Move the slot of a key to another node; return the keys that moved with it."""
    slot = cluster.nodes[0].command("CLUSTER", "KEYSLOT", key)
    names = {node: node.command("CLUSTER", "MYID") for node in cluster.nodes}
    source = owner(cluster, key)
    target = next(node for node in cluster.nodes if node is not source)
    target.command("CLUSTER", "SETSLOT", slot, "IMPORTING", names[source])
    source.command("CLUSTER", "SETSLOT", slot, "MIGRATING", names[target])
    keys = source.command("CLUSTER", "GETKEYSINSLOT", slot, "100")
    source.command("MIGRATE", "127.0.0.1", str(target.port), "", "0", "5000", "KEYS", *keys)
    for node in (target, source, *cluster.nodes):
        node.command("CLUSTER", "SETSLOT", slot, "NODE", names[target])
    return {key.decode() for key in keys}


# --- row 17


@pytest.mark.parametrize(
    ("harm", "heal"),
    [
        pytest.param("pause", "resume", marks=pytest.mark.fault(17, case="stopped"), id="stopped"),
        pytest.param("kill", "restart", marks=pytest.mark.fault(17, case="killed"), id="killed"),
    ],
)
@MEMCACHED
def test_a_lost_memcached_server_costs_its_own_keys_a_fetch(
    remote: Remote, harm: str, heal: str, outcome: Outcome
) -> None:
    """INV-2, INV-5, INV-10: its keys do not move, so each lease has one holder; the other server's keys still work."""
    lost, kept = remote.provider, FakeProvider("kept")
    with MemcachedServer() as one, MemcachedServer() as two:
        remote.url = f"memcached://127.0.0.1:{one.port},127.0.0.1:{two.port}"
        lost.key, kept.key = key_on(one, remote), key_on(two, remote)
        warm = remote.process(HURRIED, policy=QUICK)
        first, other = remote.ask(warm), remote.ask(remote.caches[-1].source(kept))
        before = fence(remote, warm.key)
        getattr(one, harm)()
        assert remote.ask(*[warm] * 10) == first
        cold = remote.process(HURRIED, policy=QUICK)
        second = remote.ask(*[cold] * 10)
        assert second.value == "fake-token-2"
        assert remote.ask(*[remote.process(provider=kept)] * 10) == other
        assert two.stats()["curr_items"] == "1"
        getattr(one, heal)()
        with outcome.healing():
            remote.until(lambda: remote.ask(cold) == second and fence(remote, warm.key) > before)
            assert remote.ask(remote.process()) == second
        assert remote.ask(warm) == first
        assert (lost.calls, lost.together, kept.calls) == (2, 1, 1)
    saw = "the token that they have; without one a new one, if its key is of that server"
    outcome.record(saw, calls="1, and 1 a process without a token")


def key_on(server: MemcachedServer, remote: Remote) -> str:
    """Return a key whose record and lease that server has."""
    with closing(open_backend(remote.url)) as backend:
        keys = (f"key-{number}" for number in range(1000))
        return next(key for key in keys if backend._servers.of(key).name.endswith(f":{server.port}"))  # type: ignore[attr-defined]
