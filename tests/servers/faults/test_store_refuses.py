"""Rows 11, 12 and 13: a store that is full, that answers with an error, that pauses its clients."""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tokencache import RefreshPolicy, TokenCache
from tokencache.events import BackendFailed
from tokencache.testing.fakes import FakeProvider, Recorder
from tokencache.testing.servers import CommandRefused, MemcachedServer, RedisCluster, RedisServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from conftest import Outcome, Remote
    from tokencache import Token

pytestmark = [pytest.mark.live, pytest.mark.usefixtures("tidy")]

REDIS = pytest.mark.parametrize("remote", ["redis", "redis, event loop"], indirect=True)
PATIENCE = 30.0
QUICK = RefreshPolicy(probe=0.1)


def refused(server: RedisServer, *command: str) -> str:
    """Return the error that the server answers with, or an empty text."""
    try:
        server.command(*command)
    except CommandRefused as error:
        return str(error)
    return ""


def fence_of(remote: Remote, key: str) -> int:
    """Return the fence of a stored record, 0 without a record."""
    with closing(remote.store) as store:
        return store.fence(key)


def fails_to_write_and_reads(remote: Remote, options: str = "") -> Token:
    """Return the stored token as read by a process that has just failed to write.

    Reads and writes have a breaker each, and the process makes no further write attempt for a while.
    """
    process = remote.process(options, provider=FakeProvider("unstored"), policy=RefreshPolicy(probe=PATIENCE))
    assert remote.ask(process).value == "unstored-token-1"
    return remote.ask(remote.caches[-1].source(remote.provider))


@contextmanager
def beside(work: Callable[[], object]) -> Iterator[None]:
    """Run a function on a thread of its own; the thread has ended when this block has."""
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        thread.join(PATIENCE)


# --- row 11


def fill(remote: Remote) -> None:
    """Stop the server's eviction, and fill it."""
    if isinstance(remote.server, RedisServer):
        remote.server.command("CONFIG", "SET", "maxmemory-policy", "noeviction")
        remote.server.command("CONFIG", "SET", "maxmemory", "1")
        return
    for size in SIZES:
        batch = 0
        while "STORED" in talk(
            remote, [f"set {size}-{batch}-{each} 0 0 {size}\r\n{'x' * size}" for each in range(500)]
        ):
            batch += 1


def empty(remote: Remote) -> None:
    """Make room again."""
    if isinstance(remote.server, RedisServer):
        remote.server.command("CONFIG", "SET", "maxmemory", "0")
        return
    for size in SIZES:
        batch = 0
        while "DELETED" in talk(remote, [f"delete {size}-{batch}-{each}" for each in range(500)]):
            batch += 1


SIZES = [int(50 * 1.2**step) for step in range(16)]
"""Sizes of values, one at least for each class of items that memcached keeps records and leases in."""


def talk(remote: Remote, commands: list[str]) -> set[str]:
    """Send commands to memcached in one go; return the distinct answers."""
    with socket.create_connection(("127.0.0.1", remote.server.port), PATIENCE) as connection:
        connection.sendall("".join(f"{command}\r\n" for command in commands).encode())
        with connection.makefile("r", newline="\r\n", encoding="ascii") as answers:
            return {answers.readline().rstrip() for _ in commands}


@pytest.mark.fault(11)
@pytest.mark.parametrize("remote", ["redis", "redis, event loop", "memcached"], indirect=True)
def test_a_full_store_serves_what_it_holds(remote: Remote, outcome: Outcome) -> None:
    """INV-4, INV-5: reads work. A token that cannot be stored is served with a warning, and shared later.

    One flight fetches it, not every caller.
    """
    provider, other = remote.provider, FakeProvider("other")
    if isinstance(remote.server, MemcachedServer):
        remote.server.arguments += ("-M",)
        remote.server.restart()
    warm, cold = (remote.process(policy=QUICK) for _ in range(2))
    without = remote.process(provider=other, policy=QUICK)
    first = remote.ask(warm)
    fence = remote.fence()
    fill(remote)
    assert remote.ask(*[cold] * 10) == first
    assert not remote.seen.of(BackendFailed)
    second = remote.ask(*[without] * 10)
    (warning,) = remote.seen.of(BackendFailed)
    assert "out of memory" in warning.error  # type: ignore[attr-defined]
    assert fails_to_write_and_reads(remote) == first
    with outcome.healing():
        empty(remote)
        remote.until(lambda: remote.ask(without) == second and fence_of(remote, without.key) > 0)
        assert remote.ask(remote.process(provider=other)) == second
    assert remote.ask(remote.process()) == first
    assert remote.fence() == fence
    assert (provider.calls, other.calls) == (1, 1)
    outcome.record("the stored token; without one a new one, not shared, with a warning", calls="1 a token")


# --- row 12: the errors, each a fault that lasts as long as its block


@contextmanager
def readonly(remote: Remote, *keys: str, stale: str = "yes") -> Iterator[None]:
    """Make the server the replica of a master that does not answer."""
    remote.server.command("CONFIG", "SET", "replica-serve-stale-data", stale)  # type: ignore[call-arg]
    remote.server.command("REPLICAOF", "127.0.0.1", "1")
    yield
    remote.server.command("REPLICAOF", "NO", "ONE")


@contextmanager
def masterdown(remote: Remote, *keys: str) -> Iterator[None]:
    """The same, and its stale data may not be served."""
    with readonly(remote, *keys, stale="no"):
        yield


@contextmanager
def loading(remote: Remote, *keys: str) -> Iterator[None]:
    """Restart the server with a load of data that lasts as long as the test needs."""
    server = remote.server
    server.command("EVAL", "for i = 1, 1000 do redis.call('SET', 'filler' .. i, string.rep('x', 1024)) end", "0")
    server.arguments += ("--key-load-delay", "20000", "--loading-process-events-interval-bytes", "1024")
    with beside(lambda: server.restart(keep=True)):
        remote.until(lambda: "LOADING" in _said(server, "GET", keys[0]))
        try:
            yield
        finally:
            server.command("CONFIG", "SET", "key-load-delay", "0")


def _said(server: RedisServer, *command: str) -> str:
    """Return the error of a server that may still be starting."""
    with suppress(OSError):
        return refused(server, *command)
    return ""


@contextmanager
def busy(remote: Remote, *keys: str) -> Iterator[None]:
    """Run a script that does not end."""
    server = remote.server
    server.command("CONFIG", "SET", "lua-time-limit", "10")

    def loop() -> None:
        with suppress(CommandRefused):  # the script was killed
            server.command("EVAL", "while true do end", "0", timeout=PATIENCE)

    with beside(loop):
        remote.until(lambda: refused(server, "GET", keys[0]).startswith("BUSY"))
        try:
            yield
        finally:
            server.command("SCRIPT", "KILL")


@contextmanager
def noauth(remote: Remote, *keys: str) -> Iterator[None]:
    """Have the server require a password that the processes lack."""
    server = remote.server
    server.command("CONFIG", "SET", "requirepass", "right")
    server.password = "right"
    remote.proxy.cut()
    yield
    server.command("CONFIG", "SET", "requirepass", "")
    server.password = None


@contextmanager
def noperm(remote: Remote, *keys: str) -> Iterator[None]:
    """Forbid scripts."""
    remote.server.command("ACL", "SETUSER", "default", "-eval", "-evalsha")
    yield
    remote.server.command("ACL", "SETUSER", "default", "+@all")


@contextmanager
def wrongtype(remote: Remote, *keys: str) -> Iterator[None]:
    """Put another program's lists where the records, or the leases, would be."""
    for key in keys:
        remote.server.command("DEL", key)
        remote.server.command("LPUSH", key, "theirs")
    yield
    for key in keys:
        assert remote.server.command("LRANGE", key, "0", "-1") == [b"theirs"]
        remote.server.command("DEL", key)


@contextmanager
def wrongtype_of_leases(remote: Remote, *keys: str) -> Iterator[None]:
    """Put another program's lists where the leases would be."""
    with wrongtype(remote, *(f"{key}:lock" for key in keys)):
        yield


@contextmanager
def paused(remote: Remote, *keys: str) -> Iterator[None]:
    """Pause all the server's clients for longer than this takes; the command to resume would be paused as well."""
    remote.server.command("CLIENT", "PAUSE", "5000")
    yield
    assert remote.server.command("PING", timeout=PATIENCE)


@contextmanager
def paused_for_writing(remote: Remote, *keys: str) -> Iterator[None]:
    """Pause the clients that write."""
    remote.server.command("CLIENT", "PAUSE", "600000", "WRITE")
    yield
    remote.server.command("CLIENT", "UNPAUSE")


@dataclass(frozen=True)
class Case:
    """A fault, whether reads still work, the warning's text, and the URL options of the affected processes."""

    fault: Callable[..., AbstractContextManager[None]]
    reads: bool
    said: str
    options: str = ""


HURRIED = "timeout=100ms&connect_timeout=100ms"
READING = "timeout=1s&connect_timeout=1s"
"""The same for a store that answers who reads."""


def case(row: int, name: str, *of: object, **more: str) -> object:
    """Return a parameter of the test below."""
    return pytest.param(Case(*of, **more), id=name, marks=pytest.mark.fault(row, case=name))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "fault",
    [
        case(12, "READONLY", readonly, True, "point the URL at the master"),
        case(12, "MASTERDOWN", masterdown, False, "lost its master"),
        case(12, "LOADING", loading, False, "loading its data"),
        case(12, "BUSY", busy, False, "busy with a long script"),
        case(12, "NOAUTH", noauth, False, "put user and password into the URL"),
        case(12, "NOPERM", noperm, True, "ACL forbids a command"),
        case(12, "WRONGTYPE, the record", wrongtype, False, "delete it, or choose another key"),
        case(12, "WRONGTYPE, the lease", wrongtype_of_leases, True, "delete it, or choose another key"),
        case(13, "all of them", paused, False, "did not answer in time", options=HURRIED),
        case(13, "those that write", paused_for_writing, True, "did not answer in time", options=READING),
    ],
)
@REDIS
def test_a_store_that_refuses_costs_one_fetch(remote: Remote, fault: Case, outcome: Outcome) -> None:
    """INV-4, INV-5: a held or readable token is served, else one fetch is made; the warning gives the remedy.

    Afterwards the fleet shares the newest again, and the fence has not fallen.
    """
    provider, other = remote.provider, FakeProvider("other")
    warm, cold = remote.process(policy=QUICK), remote.process(fault.options, policy=QUICK)
    without = remote.process(fault.options, provider=other, policy=QUICK)
    first = remote.ask(warm)
    fence = remote.fence()
    with fault.fault(remote, warm.key, without.key):
        assert remote.ask(*[warm] * 10) == first
        second = remote.ask(*[cold] * 10)
        assert (second == first) is fault.reads
        third = remote.ask(*[without] * 10)
        assert third.value == "other-token-1"
        assert (provider.calls, other.calls) == (1 if fault.reads else 2, 1)
        warnings = remote.seen.of(BackendFailed)
        assert 0 < len(warnings) <= 4  # of each process, one about reading and one about writing
        assert all(fault.said in event.error for event in warnings)  # type: ignore[attr-defined]
        if fault.reads and fault.fault is not wrongtype_of_leases:  # it refuses at some keys only
            assert fails_to_write_and_reads(remote, fault.options) == first
    with outcome.healing():
        remote.until(
            lambda: (
                (remote.ask(cold), remote.ask(without)) == (second, third)
                and remote.fence() >= fence + (not fault.reads)
                and fence_of(remote, without.key) > 0
            )
        )
        assert remote.ask(remote.process()) == second
        assert remote.ask(remote.process(provider=other)) == third
    assert (provider.calls, other.calls) == (1 if fault.reads else 2, 1)
    if fault.reads:
        saw, calls = "the stored token", "1 a token"
    else:
        saw, calls = "the token that they have", "1, and 1 a process without a token"
    late = ", after one time-out" if fault.options else ""
    outcome.record(f"{saw}; without one a new one{late}, not shared, with a warning", calls=calls)


@pytest.mark.fault(12, case="NOSCRIPT")
@REDIS
def test_scripts_that_the_server_forgets_are_sent_again(remote: Remote, outcome: Outcome) -> None:
    """INV-2: each step costs one more round trip, and lease, commit and wake-up still work."""
    provider = remote.provider
    holder, waiter = remote.process(), remote.process()
    provider.gate.clear()
    call = remote.callers.start(holder)
    assert provider.started.wait(PATIENCE)
    remote.server.command("SCRIPT", "FLUSH")
    other = remote.callers.start(waiter)
    remote.until(lambda: remote.server.info("clients")["blocked_clients"] == "1")
    remote.server.command("SCRIPT", "FLUSH")
    provider.gate.set()
    assert call.result(PATIENCE) == other.result(PATIENCE)
    assert remote.fence() > 0
    assert not remote.seen.of(BackendFailed)
    assert provider.calls == 1
    outcome.record("the token", calls=1)


@pytest.mark.fault(12, backend="redis", case="MOVED, as the URL names a node of a Cluster")
def test_a_cluster_node_is_refused_as_a_single_server(outcome: Outcome) -> None:
    """INV-5: the token is served without the store, and the warning says which URL to use."""
    seen, provider = Recorder(), FakeProvider()
    with RedisCluster() as cluster:
        node = next(node for node in cluster.nodes if node is not cluster.node_of("k"))
        with TokenCache(f"redis://127.0.0.1:{node.port}", observers=[seen]) as cache:
            assert cache.source(provider, key="k").token().value == "fake-token-1"
        cache = TokenCache(f"redis://127.0.0.1:{node.port}", observers=[seen])

        async def ask() -> str:
            async with cache:
                return (await cache.source(provider, key="k").atoken()).value

        assert asyncio.run(ask()) == "fake-token-2"
    errors = [event.error for event in seen.of(BackendFailed)]  # type: ignore[attr-defined]
    assert len(errors) == 2
    assert all("use redis+cluster://" in error for error in errors)
    outcome.record("a new token, not shared, with a warning", calls="1 a process")
