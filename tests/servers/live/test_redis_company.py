"""Redis shared with others: a user's own client, programs that write odd values, event loops that come and go."""

from __future__ import annotations

import asyncio
import json
import threading
import time

import pytest
from redis import Redis
from redis import asyncio as redis_asyncio

from tokencache import ConfigurationError, RefreshPolicy, TokenCache
from tokencache.backends.redis import RedisBackend, _protocol
from tokencache.ports import Cooldown, Granted, Held, Stored
from tokencache.testing.fakes import FakeProvider
from tokencache.testing.probes import found, granted, held
from tokencache.testing.servers import Proxy
from tokencache.url import BackendURL

pytestmark = pytest.mark.live

PATIENCE = 30.0
STUBBORN = RefreshPolicy(lease=60.0, timeout=PATIENCE)


@pytest.mark.parametrize("protocol", [2, 3])
def test_a_users_client_wakes_its_waiters(
    redis_url: str, store: Redis, protocol: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """INV-8: whatever protocol the client speaks, a waiter gets the record with the wake-up."""
    monkeypatch.setattr(_protocol, "LONGEST_BLOCK", PATIENCE)  # the block does not end by itself
    with Redis.from_url(redis_url, protocol=protocol) as own:
        backend, provider = RedisBackend(client=own), FakeProvider()
        holder = TokenCache(RedisBackend(client=own), policy=STUBBORN).source(provider)
        waiter = TokenCache(backend, policy=STUBBORN).source(provider)
        genuine, woken, waiting = backend.wait, [], threading.Event()

        def wait(key: str, seen: bytes | None, timeout: float) -> Stored | None:
            waiting.set()
            woken.append(genuine(key, seen, timeout))
            return woken[-1]

        backend.wait = wait  # type: ignore[method-assign]
        provider.gate.clear()
        holding = threading.Thread(target=holder.token)
        holding.start()
        assert provider.started.wait(PATIENCE)
        got: list[object] = []
        asking = threading.Thread(target=lambda: got.append(waiter.token()))
        asking.start()
        assert waiting.wait(PATIENCE)
        provider.gate.set()
        asking.join(PATIENCE)
        holding.join(PATIENCE)
        assert got == [holder.token()]
        assert [type(each) for each in woken] == [Stored]
        assert provider.calls == 1
        own.delete(waiter.key)


def test_a_client_for_loops_is_refused_at_once() -> None:
    """Bad input: an async client is refused by name before any command is sent."""
    with pytest.raises(ConfigurationError, match=r"give a redis\.Redis"):
        RedisBackend(client=redis_asyncio.Redis())


def test_a_loop_per_call_leaves_no_connection_open(backend: RedisBackend, store: Redis) -> None:
    """INV-8: `asyncio.run` for each call, as in a program without a lasting loop, leaves no socket behind."""
    source = TokenCache(backend).source(FakeProvider())
    before = store.info("clients")["connected_clients"]
    for _ in range(20):
        asyncio.run(source.arenew())
    give_up = time.monotonic() + PATIENCE
    while store.info("clients")["connected_clients"] > before:
        assert time.monotonic() < give_up
    assert len(backend._halves) <= 1


def test_a_late_commit_does_not_replace_another_programs_record(backend: RedisBackend, store: Redis) -> None:
    """INV-3: a plain program took the lock after ours had ended and stored its token: our commit comes too late."""
    reply = backend.lease("k", "me", "id", None, 60.0)
    assert isinstance(reply, Granted)
    store.set("k:lock", "theirs", px=60_000)
    store.set("k", b'{"accessToken":"theirs","expiresAt":1}', px=60_000)
    assert not backend.commit(reply.lease, b'{"fence":1}', 60.0)
    store.delete("k:lock")
    assert not backend.commit(reply.lease, b'{"fence":1}', 60.0)
    assert json.loads(store.get("k"))["accessToken"] == "theirs"


def test_a_holder_replaces_another_programs_old_record(backend: RedisBackend, store: Redis) -> None:
    """The holder of the lease stores the renewal of a plain program's token."""
    store.set("k", b'{"accessToken":"old","expiresAt":1}', px=60_000)
    reply = backend.lease("k", "me", "id", store.get("k"), 60.0)
    assert isinstance(reply, Granted)
    assert backend.commit(reply.lease, b'{"fence":%d}' % reply.lease.fence, 60.0)
    assert store.get("k:lock") is None


def test_a_cooldown_locks_no_other_program_out(backend: RedisBackend, store: Redis) -> None:
    """INV-7: after a rejection here, a program that knows only `SET K:lock NX` fetches, and its record is found."""
    lease = granted(backend.lease("k", "me", "id", None, 60.0))
    assert store.set("k:lock", "theirs", nx=True, px=60_000) is None
    backend.release(lease, Cooldown("id", 60.0, permanent=True, attempt=1, message="wrong secret"))
    assert store.get("k:lock") is None
    assert isinstance(held(backend.lease("k", "next", "id", None, 60.0)).cooldown, Cooldown)
    assert store.get("k:lock") is None, "a caller that is refused takes no lock"

    assert store.set("k:lock", "theirs", nx=True, px=60_000)
    assert held(backend.lease("k", "next", "id", None, 60.0)).cooldown is None, "the other program may bring a token"
    slot = backend.inspect("k")
    assert (slot.owner, slot.cooldown is None) == ("another program", False)
    store.set("k", b'{"accessToken":"theirs","expiresAt":2e9}', px=60_000)
    store.delete("k:lock")
    assert found(backend.lease("k", "next", "id", None, 60.0)).data == b'{"accessToken":"theirs","expiresAt":2e9}'


@pytest.mark.parametrize("lock", ["1234:abc", "99999999999999999999:abc", "9999999999999999:abc", "theirs", "a:b"])
def test_a_lock_that_only_looks_like_ours_is_respected(backend: RedisBackend, store: Redis, lock: str) -> None:
    """INV-2: a plain program may write anything into its lock; the lock counts as held."""
    store.set("k:lock", lock, px=60_000)
    reply = backend.lease("k", "me", "id", None, 60.0)
    assert isinstance(reply, Held)
    assert 60 - PATIENCE < reply.remaining <= 60
    assert backend.wait("k", None, 0.01) is None
    assert backend.inspect("k").owner


@pytest.mark.parametrize("text", ["x", "id:garbage", "id:[1]", "id:" + "[" * 10_000, 'id:{"attempt": "many"}'])
def test_an_invalid_cooldown_raises_no_error(backend: RedisBackend, store: Redis, text: str) -> None:
    """Bad input in the store: a request for the lease or for the state still gets an answer."""
    store.set("k:cooldown", text, px=60_000)
    assert backend.inspect("k").owner is None
    reply = backend.lease("k", "me", "id", None, 60.0)
    assert isinstance(reply, Held if text.startswith("id:") else Granted)
    if text.endswith("}"):
        assert isinstance(reply, Held)
        assert isinstance(reply.cooldown, Cooldown)
        assert reply.cooldown.attempt == 1


def test_another_programs_wake_up_causes_one_read(backend: RedisBackend, store: Redis) -> None:
    """Bad input in the stream: a waiter that reads it reads the record again."""
    assert isinstance(backend.lease("k", "me", "id", None, 60.0), Granted)
    assert isinstance(backend.lease("k", "you", "id", None, 60.0), Held)
    store.xadd("k:ready", {"a": "b"}, id="9999999999999999-1")
    assert backend.wait("k", None, PATIENCE) is None


def test_a_renewal_never_gives_an_older_token(redis_url: str, store: Redis) -> None:
    """INV-5: after an outage, ``renew()`` gives no older token, though the fleet still has one."""
    with Proxy(BackendURL.parse(redis_url).hosts[0][1] or 0) as proxy:
        policy = RefreshPolicy(probe=0.01)
        source = TokenCache(f"redis://127.0.0.1:{proxy.port}/0", policy=policy).source(FakeProvider())
        had = [source.token()]
        record = store.get(source.key)
        proxy.refuse()
        had.append(source.renew())
        proxy.heal()
        give_up = time.monotonic() + PATIENCE
        while store.get(source.key) == record:
            assert time.monotonic() < give_up
            had.append(source.renew())
        had.append(source.renew())
        assert [each.value for each in had] == [f"fake-token-{number}" for number in range(1, len(had) + 1)]
        assert source.token() == had[-1]
