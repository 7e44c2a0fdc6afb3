"""Store-related bugs that reviews found in other token caches: tokencache has none of them, on real servers.

The other bugs are in tests/unit/engine/test_field_bugs.py.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

from tokencache import ProviderUnavailable, RefreshPolicy, Token, TokenCache
from tokencache.ports import Granted
from tokencache.testing.fakes import FakeProvider
from tokencache.testing.servers import MemcachedServer, RedisServer, require

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from redis import Redis

    from tokencache import TokenSource
    from tokencache.backends.redis import RedisBackend
    from tokencache.ports import LeaseGrant

pytestmark = pytest.mark.live

PATIENCE = 30.0
LONG = 60.0
KEY = "shared"
both_colours = pytest.mark.parametrize("colour", ["threads", "event loop"])

FORKED = """
import os, sys
from tokencache import TokenCache
from tokencache.testing.fakes import FakeProvider

class Named(FakeProvider):
    def identity(self):
        return {"client": self.name}

providers = [Named(f"p{number}") for number in range(100)]
with TokenCache(sys.argv[1], observers=[]) as other:
    for provider in providers:
        other.source(provider).token()
        provider.failure = AssertionError("the record was there")
cache = TokenCache(sys.argv[1], observers=[])
cache.source(Named("parent")).token()  # the connection that the child inherits
go = os.pipe()

def wrong(asked):
    return [each.name for each in asked if cache.source(each).token().value != f"{each.name}-token-1"]

print("connected", flush=True)
sys.stdin.readline()
child = os.fork()
if child == 0:
    os.close(go[1])  # it ends with its parent
    print(len(wrong(providers[:1])), flush=True)
    os.read(go[0], 1)
    os._exit(len(wrong(providers)) != 0)
sys.stdin.readline()
os.write(go[1], b".")  # both at once
sys.exit(len(wrong(providers)) != 0 or os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


class Crowd:
    """One more thread, its token and its error."""

    def __init__(self, call: Callable[[], Token]) -> None:
        self.got: Token | None = None
        self.raised: BaseException | None = None
        self._call = call
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.got = self._call()
        except BaseException as error:
            self.raised = error

    def leave(self) -> Token | None:
        """Wait until the thread has ended; return its token."""
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        return self.got


def ask(source: TokenSource, colour: str) -> Token:
    """Return a token of the source, from a thread or from a new event loop."""
    return source.token() if colour == "threads" else asyncio.run(source.atoken())


def until(reached: Callable[[], bool]) -> None:
    """Wait until the condition holds, with patience."""
    give_up = time.monotonic() + PATIENCE
    while not reached():
        assert time.monotonic() < give_up
        time.sleep(0.005)


@pytest.fixture
def process(redis_url: str, store: Redis) -> Iterator[Callable[..., TokenSource]]:
    """Return a function that makes the source of one more process of a fleet on the emptied server."""
    caches: list[TokenCache] = []

    def start(provider: FakeProvider, **policy: float) -> TokenSource:
        caches.append(TokenCache(redis_url, policy=RefreshPolicy(**policy), observers=[]))
        return caches[-1].source(provider, key=KEY)

    yield start
    for cache in caches:
        cache.close()


def granted(backend: RedisBackend, owner: str) -> LeaseGrant:
    """Return a lease that must be free."""
    reply = backend.lease(KEY, owner, "identity", None, LONG)
    assert isinstance(reply, Granted)
    return reply.lease


@both_colours
def test_a_lease_shorter_than_the_slowest_fetch(
    process: Callable[..., TokenSource], prolonged: Callable[[str, int], None], colour: str
) -> None:
    """INV-2: while a fetch takes several times its lease, another process waits for it and does not fetch."""
    provider = FakeProvider()
    provider.gate.clear()
    one, other = process(provider, lease=3.0), process(provider, lease=3.0)
    slow = Crowd(lambda: ask(one, colour))
    assert provider.started.wait(PATIENCE)
    waiting = Crowd(lambda: ask(other, colour))
    prolonged(f"{KEY}:lock", 4)  # once a second
    provider.gate.set()
    assert slow.leave() == waiting.leave() == other.token()
    assert provider.calls == 1


@both_colours
def test_a_release_without_owner_check_frees_anothers_lease(
    process: Callable[..., TokenSource], store: Redis, colour: str
) -> None:
    """INV-2: a holder that lost its lease and fails does not free the next holder's lease, and leaves no cooldown."""
    loser, winner = FakeProvider(), FakeProvider()
    loser.gate.clear()
    winner.gate.clear()
    loser.failure = ProviderUnavailable("too late")
    one, other = process(loser), process(winner)
    losing = Crowd(lambda: ask(one, colour))
    assert loser.started.wait(PATIENCE)
    store.delete(f"{KEY}:lock")
    winning = Crowd(other.token)
    assert winner.started.wait(PATIENCE)
    lock = store.get(f"{KEY}:lock")
    loser.gate.set()
    losing.leave()
    assert isinstance(losing.raised, ProviderUnavailable)
    assert store.get(f"{KEY}:lock") == lock is not None
    winner.gate.set()
    assert winning.leave() is not None


def test_a_release_that_is_a_get_then_a_del(backend: RedisBackend, store: Redis) -> None:
    """INV-2: checking the owner and freeing the lease are one command, so another owner cannot come in between."""
    backend.release(granted(backend, "one"))  # the server now knows the script
    grant = granted(backend, "one")
    sent: dict[str, list[str]] = {}
    with store.monitor() as monitor:
        backend.release(grant)
        store.echo("over")
        while "over" not in (command := monitor.next_command())["command"]:
            if command["client_type"] != "lua":
                sent.setdefault(command["client_port"], []).append(command["command"].split()[0])
    assert [commands for commands in sent.values() if not {*commands} <= {"HELLO", "CLIENT"}] == [["EVALSHA"]]
    assert not store.exists(f"{KEY}:lock")


@both_colours
def test_a_store_error_taken_for_busy(colour: str) -> None:
    """INV-5: if the store refuses the lease, or is gone, callers do not wait as if another process held it."""
    with RedisServer() as server, TokenCache(server.url, observers=[]) as cache:
        assert ask(cache.source(FakeProvider("first")), colour).value == "first-token-1"
        server.command("CONFIG", "SET", "min-replicas-to-write", "1")  # reads are answered, writes are refused
        assert ask(cache.source(FakeProvider("second")), colour).value == "second-token-1"
        server.kill()
        assert ask(cache.source(FakeProvider("third")), colour).value == "third-token-1"


@both_colours
def test_an_older_token_overwrites_a_newer_one(process: Callable[..., TokenSource], store: Redis, colour: str) -> None:
    """INV-3: a process that comes late with its token finds a newer one stored, keeps it there, and uses it."""
    late, quick = FakeProvider(), FakeProvider()
    late.gate.clear()
    quick.value = "newer"
    one, other = process(late), process(quick)
    waiting = Crowd(lambda: ask(one, colour))
    assert late.started.wait(PATIENCE)
    store.delete(f"{KEY}:lock")
    newer = other.token()
    stored = store.get(KEY)
    late.gate.set()
    assert waiting.leave() == newer
    assert store.get(KEY) == stored


@both_colours
def test_a_start_discards_the_shared_token(redis_url: str, store: Redis, colour: str) -> None:
    """INV-2: processes that start and end keep the fleet's record as it is, and use it."""
    provider = FakeProvider()
    with TokenCache(redis_url, observers=[]) as cache:
        token = cache.source(provider, key=KEY).token()
    stored = store.get(KEY)
    for _ in range(3):
        with TokenCache(redis_url, observers=[]) as cache:
            assert ask(cache.source(provider, key=KEY), colour) == token
    assert store.get(KEY) == stored is not None
    assert provider.calls == 1


def connections(server: RedisServer | MemcachedServer) -> int:
    """Return how many connections the server has had; the last of them is this query's."""
    if isinstance(server, MemcachedServer):
        return int(server.stats()["total_connections"])
    return int(server.info("stats")["total_connections_received"])


@pytest.mark.parametrize("program", [RedisServer, MemcachedServer], ids=["redis", "memcached"])
def test_a_fork_with_a_live_connection(program: type[RedisServer | MemcachedServer]) -> None:
    """INV-10: the child of a fork opens its own connection; it and its parent get their own answers."""
    require(program.program)
    with program() as server:
        command = [sys.executable, "-W", "ignore", "-c", FORKED, server.url]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as forked:
            try:
                assert forked.stdin is not None
                assert forked.stdout is not None
                assert forked.stdout.readline() == "connected\n"
                before = connections(server)
                forked.stdin.write("\n")
                forked.stdin.flush()
                assert forked.stdout.readline() == "0\n"
                assert connections(server) - before == 2
                forked.stdin.write("\n")
                forked.stdin.flush()
                assert forked.wait(PATIENCE) == 0
            finally:
                forked.kill()
