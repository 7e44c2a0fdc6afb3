"""Real Redis: one login for a fleet, the keys of another service, faults of server, holder and caller."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from redis import Redis

from tokencache import (
    BackendClosed,
    BackendUnavailable,
    DeadlineExceeded,
    RefreshPolicy,
    Token,
    TokenCache,
    TokenSource,
)
from tokencache.backends.redis import RedisBackend, from_url
from tokencache.backends.redis._connect import MOST_CONNECTIONS
from tokencache.backends.redis._protocol import keys_of
from tokencache.events import BackendFailed, CommitRefused, RecordIgnored
from tokencache.ports import Found, Granted, Held
from tokencache.testing.fakes import FakeProvider, Recorder
from tokencache.testing.servers import Proxy, RedisServer
from tokencache.url import BackendURL
from tokencache_qpay import QPayProvider
from tokencache_qpay.testing import FakeQPay, fleet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.live

PATIENCE = 30.0
KEY = "qpay:access_token"
USER, PASSWORD = "TEST_MERCHANT", "123456"

INTERRUPTED = """
import random, signal, sys
from tokencache.backends.redis import from_url
from tokencache.url import BackendURL

backend = from_url(BackendURL.parse(sys.argv[1]))
draw = random.Random(7)
interrupted = wrong = number = 0
armed = False

def interrupt(*_):
    global armed
    if armed:
        armed = False  # one for each round, so that none comes between two rounds
        raise KeyboardInterrupt

def ask():  # a function, as an interrupt at the end of a loop may count as outside of the `try` around it
    global armed, number, wrong
    armed = True
    signal.setitimer(signal.ITIMER_REAL, draw.uniform(0.00005, 0.002))
    while armed:  # one that hit a finalizer was swallowed, and does not count
        number = (number + 1) % 10
        stored = backend.load(f"k{number}")
        wrong += stored is None or stored.data != str(number).encode()

signal.signal(signal.SIGALRM, interrupt)
while interrupted < 1000:
    try:
        ask()
    except KeyboardInterrupt:
        interrupted += 1
signal.setitimer(signal.ITIMER_REAL, 0)
print(interrupted, wrong)
"""


@pytest.fixture
def qpay() -> Iterator[FakeQPay]:
    """A QPay whose logins take a quarter of a second and last an hour."""
    with FakeQPay(latency=0.25, lifetime=3600) as fake:
        yield fake


def eventually(reached: Callable[[], bool]) -> None:
    """Check again until the condition holds."""
    patience = time.monotonic() + PATIENCE
    while not reached():
        assert time.monotonic() < patience
        time.sleep(0.001)


def source_of(backend: RedisBackend, qpay: FakeQPay, *observers: Recorder, secret: str = PASSWORD) -> TokenSource:
    """Return a source with the key that the old service used."""
    provider = QPayProvider(USER, secret, base_url=qpay.url, key=KEY)
    return TokenCache(backend, observers=observers).source(provider)


FIRST = 8
"""What a process sends to wait once: GET, PTTL; the lease by name and by text, with its GET, GET, PTTL; XREAD."""
AGAIN = 5
"""What it sends when a second is over: XREAD, and the lease by name with its GET, GET, PTTL."""
HOLDER = 9
"""What the holder sends beyond that: TIME, SET; the commit by text, with its GET, GET, SET, DEL, XADD, PEXPIRE."""


def test_a_cold_fleet_logs_in_once_in_few_commands(qpay: FakeQPay, redis_url: str, store: Redis) -> None:
    """INV-2: 8 processes of 16 threads log in once; a waiter asks once, then at most twice a second.

    A poll takes at most a second; a late heartbeat makes one poll shorter. `make bench` checks the sum against 80.
    """
    qpay.latency = 1.0
    crowd = [fleet.start(qpay, redis_url, 16, key=KEY) for _ in range(8)]
    began = store.time()[0]
    store.config_resetstat()
    fleet.go(crowd)
    rows = fleet.answers(crowd)
    calls = sum(row["calls"] for row in store.info("commandstats").values()) - 1  # without the reset itself
    seconds = store.time()[0] - began + 1
    assert [row[:2] for row in rows] == [["16", "1"]] * 8, rows
    assert len({row[2] for row in rows}) == 1
    assert qpay.logins == 1
    assert calls <= 8 * FIRST + HOLDER + 2 * seconds * 8 * AGAIN


def test_the_lease_of_a_slow_login_is_extended(
    qpay: FakeQPay, backend: RedisBackend, redis_url: str, prolonged: Callable[[str, int], None]
) -> None:
    """INV-2: a login that outlasts its lease is still one login: the lease is extended, and waiters go on waiting."""
    waiter = fleet.start(qpay, redis_url, 4, key=KEY)
    provider = QPayProvider(USER, PASSWORD, base_url=qpay.url, key=KEY, timeout=PATIENCE)
    source = TokenCache(backend).source(provider, policy=RefreshPolicy(lease=6.0))
    got: list[Token] = []
    with qpay.hold():
        thread = threading.Thread(target=lambda: got.append(source.token()))
        thread.start()
        qpay.wait_for_logins(1)
        fleet.go([waiter])
        prolonged(f"{KEY}:lock", 4)  # every two seconds
    thread.join(PATIENCE)
    assert fleet.answers([waiter])[0][:2] == ["4", "1"]
    assert qpay.logins == 1


def test_the_record_is_what_the_old_service_reads(qpay: FakeQPay, backend: RedisBackend, store: Redis) -> None:
    """The key, the two fields, a time to live that ends 60 s early, and no lock when idle."""
    token = source_of(backend, qpay).token()
    record = json.loads(store.get(KEY))
    assert record["accessToken"] == token.value
    assert record["expiresAt"] == int(token.expires_at)
    assert 3530 <= store.ttl(KEY) <= 3540
    assert store.get(f"{KEY}:lock") is None


def test_another_programs_record_and_lock_are_respected(qpay: FakeQPay, backend: RedisBackend, store: Redis) -> None:
    """A program that uses only GET, SET, SET NX PX and DEL shares token and lock with us, in both directions."""
    assert store.set(f"{KEY}:lock", "theirs", nx=True, px=60_000)
    assert isinstance(backend.lease(KEY, "us", "me", None, 3.0), Held)
    source = source_of(backend, qpay)
    got: list[Token] = []
    thread = threading.Thread(target=lambda: got.append(source.token()))
    thread.start()
    record = json.dumps({"accessToken": "theirs", "expiresAt": int(time.time()) + 3600})
    store.set(KEY, record, px=3_540_000)
    store.delete(f"{KEY}:lock")
    thread.join(PATIENCE)
    assert [token.value for token in got] == ["theirs"]
    assert qpay.logins == 0
    granted = backend.lease(KEY, "us", "me", record.encode(), 3.0)
    assert isinstance(granted, Granted)
    assert not store.set(f"{KEY}:lock", "theirs", nx=True, px=60_000)
    backend.release(granted.lease)
    assert store.set(f"{KEY}:lock", "theirs", nx=True, px=60_000)


def test_other_credentials_under_the_same_key_get_their_own(qpay: FakeQPay, backend: RedisBackend) -> None:
    """INV-10: a record for other credentials is never used, and an event reports it."""
    qpay.credentials["OTHER"] = "other"
    seen = Recorder()
    mine = source_of(backend, qpay).token()
    other = TokenCache(backend, observers=[seen]).source(QPayProvider("OTHER", "other", base_url=qpay.url, key=KEY))
    assert other.token() != mine
    assert len(seen.of(RecordIgnored)) == 1


def test_a_wrong_password_is_reported_and_survived(qpay: FakeQPay, redis_url: str, store: Redis) -> None:
    """INV-5, INV-9: the event names the error and not the password."""
    store.config_set("requirepass", "right")
    try:
        seen = Recorder()
        url = redis_url.replace("//", "//:planted-wrong@")
        with TokenCache(url, observers=[seen]) as cache:
            assert cache.source(QPayProvider(USER, PASSWORD, base_url=qpay.url)).token()
        (event,) = seen.of(BackendFailed)
        assert "password" in event.error  # type: ignore[attr-defined]
        assert "planted-wrong" not in event.error  # type: ignore[attr-defined]
    finally:
        Redis.from_url(redis_url.replace("//", "//:right@")).config_set("requirepass", "")


def test_many_calls_on_a_loop_open_few_connections_to_a_frozen_server() -> None:
    """INV-8: of 200 calls at once some queue for a connection; when the first ones time out, the queue fails too."""

    async def main(port: int, patience: str) -> list[object]:
        backend = from_url(BackendURL.parse(f"redis://127.0.0.1:{port}?timeout={patience}&connect_timeout={patience}"))
        half = backend.aio()
        replies = await asyncio.gather(*(half.load("k") for _ in range(200)), return_exceptions=True)
        await half.close()
        return list(replies)

    with RedisServer() as server, Proxy(server.port) as proxy:
        assert set(asyncio.run(main(proxy.port, "30s"))) == {None}
        passed = proxy.accepted
        assert passed <= MOST_CONNECTIONS
        proxy.black_hole()
        replies = asyncio.run(main(proxy.port, "300ms"))
        assert {type(reply) for reply in replies} == {BackendUnavailable}
        assert proxy.accepted - passed <= MOST_CONNECTIONS


def test_an_interrupted_call_leaves_no_connection_out_of_step(redis_url: str, store: Redis) -> None:
    """1,000 interruptions at random moments, and each next answer belongs to the next command."""
    for number in range(10):
        store.set(f"k{number}", str(number))
    command = [sys.executable, "-c", INTERRUPTED, redis_url]
    plain = {name: value for name, value in os.environ.items() if not name.startswith("COV")}  # tracing is too slow
    ran = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE * 2, check=False, env=plain)
    assert ran.stdout.split() == ["1000", "0"], ran.stderr[-2000:]


def calls(store: Redis, command: str) -> int:
    """Return how many commands of one kind the server has seen."""
    stats = store.info("commandstats")
    assert isinstance(stats, dict)
    seen = stats.get(f"cmdstat_{command}", {}).get("calls", 0)
    assert isinstance(seen, int)
    return seen


@pytest.mark.parametrize("data", [b'{"fence":5,"x":"\\ud800"}', b'{"fence":5,"x":' + b"[" * 2_000, b'{"fence":5}\x00'])
def test_a_record_that_parsers_read_differently_is_replaced(backend: RedisBackend, store: Redis, data: bytes) -> None:
    """INV-2: one login replaces it, in a load, a lease and a commit."""
    store.set("k", data)
    before = calls(store, "evalsha")
    with TokenCache(backend) as cache:
        assert cache.source(FakeProvider(), key="k").token().value == "fake-token-1"
    assert calls(store, "evalsha") - before <= 4  # each script may be unknown once


def test_a_poisoned_wake_up_does_not_keep_a_waiter_busy(backend: RedisBackend, store: Redis) -> None:
    """INV-8: an entry with the highest id ends each wait at once; the waiter looks a few times a second."""
    _, lock, ready, _ = keys_of("k", cluster=False)
    store.set(lock, f"{10**15}:another", px=60_000)
    store.xadd(ready, {"record": "x", "ttl": "1"}, id=f"{2**64 - 1}-{2**64 - 1}")
    before = calls(store, "xread")
    with TokenCache(backend) as cache, pytest.raises(DeadlineExceeded):
        cache.source(FakeProvider(), key="k").token(timeout=1.0)
    assert 2 <= calls(store, "xread") - before <= 20


def test_a_users_client_serves_threads_and_loops(qpay: FakeQPay, redis_url: str, store: Redis) -> None:
    """A given client is used and left open; event loops call it through threads."""
    own = Redis.from_url(redis_url)
    with TokenCache(RedisBackend(client=own)) as cache:
        source = cache.source(QPayProvider(USER, PASSWORD, base_url=qpay.url))
        token = source.token()
        assert asyncio.run(_fresh(source)) == token
    assert own.ping()
    own.close()


async def _fresh(source: TokenSource) -> Token:
    """Return the token of another cache on the same backend."""
    cache = TokenCache(source._world.backend)
    return await cache.source(source._world.provider).atoken()


def test_a_commit_under_an_ended_lease_is_reported(backend: RedisBackend) -> None:
    """INV-3: observers get the event of a refused commit, and the newer token is served."""
    seen = Recorder()
    slow, quick = FakeProvider(), FakeProvider()
    quick.value = "newer"
    slow.gate.clear()
    source = TokenCache(backend, observers=[seen], policy=RefreshPolicy(lease=60)).source(slow, key="k")
    got: list[Token] = []
    thread = threading.Thread(target=lambda: got.append(source.token()))
    thread.start()
    assert slow.started.wait(PATIENCE)
    backend._execute("k", ["DEL", "k:lock"])
    newer = TokenCache(backend).source(quick, key="k").token()
    slow.gate.set()
    thread.join(PATIENCE)
    assert got == [newer]
    assert len(seen.of(CommitRefused)) == 1
    reply = backend.lease("k", "x", "me", None, 3.0)
    assert isinstance(reply, Found)


def test_closing_in_mid_call_leaves_no_connection_open(redis_url: str) -> None:
    """INV-8: calls that are under way when the backend is closed end, and so do their connections."""
    with Proxy(BackendURL.parse(redis_url).hosts[0][1] or 0) as proxy:
        url = BackendURL.parse(f"redis://127.0.0.1:{proxy.port}/0")
        proxy.delay(0.1)

        async def close_amid_calls() -> None:
            half = from_url(url).aio()
            calls = [asyncio.ensure_future(half.load("unused")) for _ in range(200)]
            while proxy.connections == 0:
                await asyncio.sleep(0.001)
            await half.close()
            for ended in await asyncio.gather(*calls, return_exceptions=True):
                assert ended is None or isinstance(ended, BackendUnavailable | BackendClosed)

        asyncio.run(close_amid_calls())
        eventually(lambda: proxy.connections == 0)

    with RedisServer() as server, Proxy(server.port) as proxy:
        backend = RedisBackend(client=Redis(port=proxy.port))
        server.pause()
        with ThreadPoolExecutor(8) as pool:
            loads = [pool.submit(backend.load, "unused") for _ in range(8)]
            eventually(lambda: proxy.connections == 8)
            backend.close()
            server.resume()
        assert [load.result() for load in loads] == [None] * 8
        eventually(lambda: proxy.connections == 0)


def test_no_connection_outlives_the_discarded_clients(redis_url: str) -> None:
    """A cluster's clients are remade when its nodes change: idle connections end, lent ones end on their return."""
    backend = from_url(BackendURL.parse(redis_url))
    backend.load("key")
    (stack,) = backend._idle._stacks.values()
    (idle,) = stack
    lent, pool = backend._idle, backend._pool("key", waiting=False)
    taken = pool.connection_class(**pool.connection_kwargs)
    taken.connect()
    backend._forget()
    assert not idle.is_connected
    lent.put(pool, taken)
    assert not taken.is_connected
    backend.load("key")
    (stack,) = backend._idle._stacks.values()
    (again,) = stack
    backend.close()
    assert not again.is_connected
