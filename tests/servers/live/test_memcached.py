"""The memcached backend on real servers: pitfalls of the protocol, of the client, of servers that come and go."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, TypeVar, cast

import pytest
from pymemcache.client.base import Client, PooledClient
from pymemcache.client.hash import HashClient

from tokencache import Token, TokenCache
from tokencache.backends.memcached import MemcachedBackend, _backend
from tokencache.backends.memcached._form import LARGEST, LONGEST, Lease, lease_value
from tokencache.backends.memcached._servers import Session
from tokencache.errors import BackendUnavailable
from tokencache.ports import Granted
from tokencache.testing.probes import KEY, cooldown, found, granted, held, record
from tokencache.testing.servers import MemcachedServer, require
from tokencache_qpay.testing import FakeQPay, fleet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tokencache.backends.memcached._wire import Item
    from tokencache.ports import LeaseGrant, LeaseReply

pytestmark = pytest.mark.live

T = TypeVar("T")
PATIENCE = 30.0
LONG = 60.0


@pytest.fixture(scope="module")
def shared() -> Iterator[MemcachedServer]:
    """Start the server for tests that do not disturb it."""
    require("memcached")
    with MemcachedServer() as running:
        yield running


@pytest.fixture
def server(shared: MemcachedServer) -> MemcachedServer:
    """Return the server, emptied."""
    assert shared.command("flush_all") == ["OK"]
    return shared


@pytest.fixture
def fragile() -> Iterator[MemcachedServer]:
    """Start a server for a test that stops or restarts it."""
    require("memcached")
    with MemcachedServer() as running:
        yield running


def connect(*servers: MemcachedServer, timeout: float = PATIENCE) -> MemcachedBackend:
    """Return a backend on these servers."""
    return MemcachedBackend([f"127.0.0.1:{server.port}" for server in servers], timeout=timeout)


@pytest.fixture
def backend(server: MemcachedServer) -> Iterator[MemcachedBackend]:
    """Connect to the server."""
    made = connect(server)
    yield made
    made.close()


@pytest.fixture
def other(server: MemcachedServer) -> Iterator[Client]:
    """Connect another program to the server, which knows only the protocol."""
    client = Client(("127.0.0.1", server.port), timeout=PATIENCE)
    yield client
    client.close()


def ask(backend: MemcachedBackend, owner: str = "a", seen: bytes | None = None, *, ttl: float = LONG) -> LeaseReply:
    """Ask for the lease of the one key."""
    return backend.lease(KEY, owner, "identity", seen, ttl)


def eventually(look: Callable[[], T | None]) -> T:
    """Repeat a call until it returns something."""
    give_up = time.monotonic() + PATIENCE
    while (sight := look()) is None:
        assert time.monotonic() < give_up
        time.sleep(0.01)
    return sight


def countdown(server: MemcachedServer, name: str) -> int:
    """Return the remaining whole seconds by the server's own count; -1 without an end, 0 without an item."""
    (answer,) = server.command(f"mg {name} t")
    return int(answer[4:]) if answer.startswith("HD t") else 0


# --- expiry


@pytest.mark.parametrize(("ttl", "most"), [(0.5, 2), (3540.0, 3540), (86_400.0 - 60, 86_340)])
def test_the_server_counts_down_a_record(
    server: MemcachedServer, backend: MemcachedBackend, ttl: float, most: int
) -> None:
    """An hour's token stays for 3540 seconds; a tiny life becomes two seconds: 0 would mean for ever."""
    lease = granted(ask(backend))
    assert backend.commit(lease, record(lease.fence), ttl)
    assert max(0, most - PATIENCE) <= countdown(server, KEY) <= most


def test_more_than_thirty_days_are_not_a_past_date(server: MemcachedServer, backend: MemcachedBackend) -> None:
    """To memcached, an expiry above 30 days is a date in 1970: the item would be gone at once."""
    lease = granted(ask(backend, ttl=1e9))
    assert LONGEST - PATIENCE <= countdown(server, f"{KEY}:lock") <= LONGEST
    assert backend.commit(lease, record(lease.fence), 40 * 86_400.0)
    assert LONGEST - PATIENCE <= countdown(server, KEY) <= LONGEST


def test_a_lease_lives_at_least_as_long_as_requested(server: MemcachedServer, backend: MemcachedBackend) -> None:
    """INV-2: the server keeps a lease as long as requested, and as long again from its extension."""
    lease = granted(ask(backend, ttl=300.0))
    assert 301 - PATIENCE <= countdown(server, f"{KEY}:lock") <= 301
    assert backend.extend(lease, 20_000.0)
    assert 20_001 - PATIENCE <= countdown(server, f"{KEY}:lock") <= 20_001


def test_a_clock_that_is_ahead_does_not_end_a_lease(server: MemcachedServer) -> None:
    """INV-2, INV-3: a process whose clock is an hour off takes no held lease, and its fence does not fall."""
    now, ahead, behind = (MemcachedBackend(f"127.0.0.1:{server.port}", timeout=PATIENCE, wall=wall) for wall in CLOCKS)
    lease = granted(ask(now))
    for backend in (ahead, behind):
        assert 0 < held(ask(backend, "b")).remaining <= LONG
    now.release(lease)
    late = granted(ask(behind, "b"))
    assert late.fence > lease.fence
    granted(ask(behind, "b"))
    behind.release(late)
    first = granted(ask(ahead, "c"))
    assert ahead.commit(first, record(first.fence), LONG)
    second = granted(ask(behind, "b", record(first.fence)))
    assert second.fence > first.fence
    for backend in (now, ahead, behind):
        backend.close()


CLOCKS = (time.time, lambda: time.time() + 3600, lambda: time.time() - 3600)


def test_the_fence_exceeds_that_of_a_record_that_only_the_caller_knows(backend: MemcachedBackend) -> None:
    """INV-3: a caller that saw a much higher fence, gone since, gets a lease above it."""
    ahead = granted(ask(backend, ttl=1.0)).fence + 10**10
    backend.release(granted(ask(backend)))
    assert granted(ask(backend, seen=record(ahead))).fence > ahead


def test_a_cooldown_of_a_fraction_of_a_second_ends_on_time(server: MemcachedServer) -> None:
    """INV-7: the server counts whole seconds, but a backoff ends at its own end."""
    now = [1_700_000_000.0]
    backend = MemcachedBackend(f"127.0.0.1:{server.port}", timeout=PATIENCE, wall=lambda: now[0])
    backend.release(granted(ask(backend)), cooldown(60.25))
    reply = held(ask(backend, "b"))
    assert (reply.remaining, reply.cooldown) == (60.25, cooldown(60.25))
    now[0] += 60.125
    assert held(ask(backend, "b")).remaining == 0.125
    assert backend.inspect(KEY).remaining == 0.125
    now[0] += 0.125
    assert backend.inspect(KEY).cooldown is None
    granted(ask(backend, "b"))
    backend.close()


def test_a_cooldown_is_kept_for_its_whole_length(server: MemcachedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """INV-7: the server keeps a cooldown for at least its length."""
    backend = connect(server)
    expiries: list[int] = []
    genuine = Session.add

    def noted(self: Session, name: str, data: bytes, expiry: int) -> bool:
        expiries.append(expiry)
        return genuine(self, name, data, expiry)

    lease = granted(ask(backend))
    monkeypatch.setattr(Session, "add", noted)
    backend.release(lease, cooldown(20.0))
    assert expiries == [21]
    backend.close()


# --- leases whose holder is gone


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Set the backend's steady clock by hand."""
    now = [1_000.0]
    monkeypatch.setattr(_backend, "time", SimpleNamespace(monotonic=lambda: now[0], time=time.time))
    return now


def abandon(other: Client, ttl: float = 3.0) -> None:
    """Leave a lease behind that the server keeps for a minute."""
    value = lease_value(Lease(10**15, "dead", time.time() + ttl, ttl))
    assert other.set(f"{KEY}:lock", value, expire=60, noreply=False)


def test_a_lease_without_extension_ends_at_its_own_end(
    backend: MemcachedBackend, other: Client, steady: list[float]
) -> None:
    """INV-2, INV-8: the server keeps it longer, but a process that watched it for its whole length takes it over."""
    abandon(other)
    held(ask(backend, "b"))
    steady[0] += 2.9
    held(ask(backend, "b"))
    steady[0] += 0.1
    taken = granted(ask(backend, "b"))
    assert taken.fence > 10**15
    assert backend.inspect(KEY).owner == "b"
    assert backend.commit(taken, record(taken.fence), LONG)


def test_a_wait_for_a_lease_without_extension_ends(
    backend: MemcachedBackend, other: Client, steady: list[float]
) -> None:
    """INV-8: the wait ends when the lease does, long before the server removes it."""
    abandon(other)
    looks: list[float] = []

    def pause(seconds: float) -> bool:
        looks.append(seconds)
        steady[0] += 0.5
        return False

    backend._closing = cast("threading.Event", SimpleNamespace(wait=pause, is_set=lambda: False, set=lambda: None))
    assert backend.wait(KEY, None, 30.0) is None
    assert len(looks) == 6, "three seconds, half a second a look"
    granted(ask(backend, "b"))


def test_an_extended_lease_stays_with_its_holder(
    server: MemcachedServer, backend: MemcachedBackend, steady: list[float]
) -> None:
    """INV-2: each extension restarts the count, however long the fetch takes."""
    holder = connect(server)
    lease = granted(ask(holder, ttl=LONG))
    for _ in range(5):
        held(ask(backend, "b"))
        steady[0] += LONG - 0.1
        held(ask(backend, "b"))
        assert holder.extend(lease, LONG)
        steady[0] += LONG - 0.1
    held(ask(backend, "b"))
    assert holder.commit(lease, record(lease.fence), LONG)
    holder.close()


def test_a_new_lease_of_the_same_length_is_another(
    server: MemcachedServer, backend: MemcachedBackend, steady: list[float]
) -> None:
    """INV-2: the time for which the former lease was seen does not count; nor does an owner count its own."""
    one = granted(ask(backend))
    watcher = connect(server)
    held(ask(watcher, "b"))
    backend.release(one)
    granted(ask(backend))
    steady[0] += LONG + 0.5
    held(ask(watcher, "b"))
    again = granted(ask(backend))
    assert again.fence > one.fence
    steady[0] += LONG + 0.5
    assert granted(ask(backend)).fence == again.fence
    watcher.close()


def test_a_lock_without_a_length_is_respected(backend: MemcachedBackend, other: Client, steady: list[float]) -> None:
    """The lock of a program that uses only `add` is respected for as long as the server keeps it."""
    assert other.add(f"{KEY}:lock", b"1", expire=60, noreply=False)
    for _ in range(3):
        held(ask(backend, "b"))
        steady[0] += 3_600.0


# --- keys and values


def test_the_longest_plain_key_fits(backend: MemcachedBackend, other: Client) -> None:
    """241 characters and `:cooldown` are memcached's limit of 250; one more character, and the key is hashed."""
    for length in (241, 242, 250, 251):
        lease = granted(backend.lease("k" * length, "a", "identity", None, LONG))
        assert backend.commit(lease, record(lease.fence), LONG)
    assert other.get("k" * 241) is not None
    assert other.get("k" * 242) is None


def test_the_largest_value_fits_with_the_longest_key(backend: MemcachedBackend) -> None:
    """The server accepts every value within our limit."""
    lease = granted(backend.lease("k" * 241, "a", "identity", None, LONG))
    assert backend.commit(lease, b"x" * LARGEST, LONG)
    stored = backend.load("k" * 241)
    assert stored is not None
    assert len(stored.data) == LARGEST


def test_a_value_that_is_too_large_keeps_the_record(backend: MemcachedBackend) -> None:
    """INV-4: a value that would not fit is refused before it is sent, and the record and the lease stay."""
    first = granted(ask(backend))
    assert backend.commit(first, record(first.fence), LONG)
    second = granted(ask(backend, seen=record(first.fence)))
    with pytest.raises(BackendUnavailable, match="is not sent"):
        backend.commit(second, b"x" * (1 << 20), LONG)
    stored = backend.load(KEY)
    assert stored is not None
    assert stored.data == record(first.fence)
    held(ask(backend, "b", record(first.fence)))


def test_a_server_with_small_items_refuses_and_keeps_the_record() -> None:
    """INV-4: if the server itself finds a value too large, the earlier record stays."""
    require("memcached")
    with MemcachedServer("-I", "64k", "-o", "slab_chunk_max=32768") as small:
        backend = connect(small)
        first = granted(ask(backend))
        assert backend.commit(first, record(first.fence), LONG)
        second = granted(ask(backend, seen=record(first.fence)))
        with pytest.raises(BackendUnavailable, match="-I"):
            backend.commit(second, b"x" * 100_000, LONG)
        assert backend.load(KEY) is not None
        backend.close()


# --- other programs


def test_a_cooldown_locks_no_other_program_out(backend: MemcachedBackend, other: Client) -> None:
    """INV-7: after a rejection here, a program that knows only `add K:lock` fetches, and its record is found."""
    lease = granted(ask(backend))
    assert not other.add(f"{KEY}:lock", b"1", expire=20, noreply=False)
    backend.release(lease, cooldown())
    assert other.get(f"{KEY}:lock") is None
    assert held(ask(backend)).cooldown is not None
    assert other.get(f"{KEY}:lock") is None, "a caller that is refused takes no lock"

    assert other.add(f"{KEY}:lock", b"1", expire=20, noreply=False)
    assert held(ask(backend)).cooldown is None, "the other program may bring a token"
    slot = backend.inspect(KEY)
    assert (slot.owner, slot.cooldown is None) == ("another program", False)
    other.set(KEY, b'{"accessToken":"theirs","expiresAt":4102444800}', expire=60, noreply=False)
    other.delete(f"{KEY}:lock", noreply=False)
    assert found(ask(backend)).data == b'{"accessToken":"theirs","expiresAt":4102444800}'


def test_a_cooldown_that_comes_before_the_lock_is_seen(
    backend: MemcachedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """INV-7: a holder that fails between our read and our lease leaves its cooldown to us; we take no lease."""
    first = granted(ask(backend))
    genuine, reads = Session.read, iter([True])

    def fails_after(session: Session, *names: str) -> dict[str, Item]:
        items = genuine(session, *names)
        if next(reads, False):
            items = {}  # as if the holder had come and gone since
            connection_of_the_holder.release(first, cooldown())
        return items

    connection_of_the_holder = backend
    monkeypatch.setattr(Session, "read", fails_after)
    assert held(ask(backend, "late")).cooldown is not None
    assert backend.inspect(KEY).owner is None


def test_a_lock_of_another_program_is_respected(backend: MemcachedBackend, other: Client) -> None:
    """A plain `add` of the lock holds us off, and our lease holds it off; the record that it writes is found."""
    assert other.add(f"{KEY}:lock", b"1", expire=20, noreply=False)
    assert held(ask(backend)).cooldown is None
    slot = backend.inspect(KEY)
    assert (slot.owner, slot.cooldown) == ("another program", None)
    backend.wait(KEY, None, 0.05)
    other.set(KEY, b'{"accessToken":"theirs","expiresAt":4102444800}', expire=60, noreply=False)
    theirs = found(ask(backend)).data
    held(ask(backend, seen=theirs))
    other.delete(f"{KEY}:lock", noreply=False)
    lease = granted(ask(backend, seen=theirs))
    assert other.add(f"{KEY}:lock", b"1", expire=20, noreply=False) is False
    assert backend.commit(lease, record(lease.fence), LONG)
    assert other.get(f"{KEY}:lock") is None
    assert other.get(KEY) == record(lease.fence)


def test_a_lock_with_a_giant_fence_spoils_no_later_lease(backend: MemcachedBackend, other: Client) -> None:
    """INV-3: its fence counts as none, so the lock is another program's, and the next lease has a usual fence."""
    other.set(f"{KEY}:lock", b'{"fence": %b, "owner": "x", "endsAt": 0, "ttl": 1}' % (b"9" * 4_300), noreply=False)
    held(ask(backend))
    other.delete(f"{KEY}:lock", noreply=False)
    lease = granted(ask(backend))
    assert lease.fence < 2**52
    assert backend.commit(lease, record(lease.fence), LONG) is True


def test_a_lease_above_the_largest_fence_is_kept_and_freed(backend: MemcachedBackend, other: Client) -> None:
    """INV-2: a record with the largest fence is replaced under a lease like any other, and fences are usual again."""
    other.set(KEY, record(2**53 - 1), noreply=False)
    lease = granted(ask(backend, seen=record(2**53 - 1)))
    held(ask(backend, "b", seen=record(2**53 - 1)))
    assert backend.extend(lease, LONG) is True
    assert backend.commit(lease, record(None, "good"), LONG) is True
    assert other.get(f"{KEY}:lock") is None
    assert granted(ask(backend, "b", seen=record(None, "good"))).fence < 2**52


def test_prefix_and_settings_of_a_users_client_are_used(server: MemcachedServer, other: Client) -> None:
    """The backend uses the settings of a client, but not the client itself."""
    for client in (
        PooledClient(("127.0.0.1", server.port), key_prefix=b"app:"),
        HashClient([("127.0.0.1", server.port)], key_prefix=b"app:", use_pooling=True),
    ):
        backend = MemcachedBackend(client=client)
        lease = granted(ask(backend))
        assert backend.commit(lease, record(lease.fence), LONG)
        assert other.get(f"app:{KEY}") == record(lease.fence)
        assert backend.discard(KEY, record(lease.fence))
        backend.close()


# --- losses


def lose_by_eviction(server: MemcachedServer) -> None:
    """Fill the server with items of the lease's size until the lease is gone."""
    for batch in range(50):
        with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as filler:
            keys = (b"%013d%06d" % (number, batch) for number in range(2000))
            filler.sendall(b"".join(b"set %b 0 0 110 noreply\r\n%0110d\r\n" % (key, 0) for key in keys))
        if server.command(f"mg {KEY}:lock") == ["EN"]:
            return
    pytest.fail("nothing was evicted")


def lose_by_flush(server: MemcachedServer) -> None:
    """Empty the server."""
    assert server.command("flush_all") == ["OK"]


@pytest.mark.parametrize("lose", [lose_by_eviction, lose_by_flush, MemcachedServer.restart])
def test_a_lost_lease_costs_one_fetch_and_keeps_the_newer_record(lose: Callable[[MemcachedServer], None]) -> None:
    """INV-2, INV-3: a second holder gets a larger fence, and whichever of the two is late, the newer record stays."""
    require("memcached")
    with MemcachedServer("-m", "2", "-o", "no_modern") as small:
        one, two = connect(small), connect(small)
        first = granted(ask(one, "one"))
        lose(small)
        second = granted(ask(two, "two"))
        assert second.fence > first.fence
        assert one.extend(first, LONG) is False
        one.release(first)
        held(ask(one, "three"))
        assert two.commit(second, record(second.fence), LONG)
        assert one.commit(first, record(first.fence), LONG) is False
        stored = one.load(KEY)
        assert stored is not None
        assert stored.data == record(second.fence)
        one.close()
        two.close()


def test_a_restart_causes_no_error(fragile: MemcachedServer) -> None:
    """A connection to the old server is detected before it is used."""
    backend = connect(fragile)
    assert backend.load(KEY) is None
    fragile.restart()
    assert backend.load(KEY) is None
    backend.close()


def test_a_server_without_cas_grants_no_lease_twice() -> None:
    """INV-2: with `-C` a lease cannot be compared; this is an error, not ignored."""
    require("memcached")
    with MemcachedServer("-C") as blind:
        backend = connect(blind)
        for owner in "ab":
            with pytest.raises(BackendUnavailable, match="-C"):
                ask(backend, owner)
        backend.close()


def test_a_vanished_lease_is_neither_replaced_nor_deleted(backend: MemcachedBackend) -> None:
    """INV-2: a lease that vanished between read and write was not extended by us, nor freed."""
    with backend._servers.of(KEY).session() as session:
        assert session.add(KEY, b"x", 60)
        item = session.read(KEY)[KEY]
        assert session.delete(KEY, item) is True
        assert session.delete(KEY, item) is False
        assert session.replace(KEY, b"y", item, 60) is False
        assert session.read(KEY) == {}


# --- several servers


@pytest.fixture
def pair() -> Iterator[tuple[MemcachedServer, MemcachedServer]]:
    """Start two servers."""
    require("memcached")
    with MemcachedServer() as one, MemcachedServer() as two:
        yield one, two


def keys_of(backend: MemcachedBackend, server: MemcachedServer, count: int) -> list[str]:
    """Return keys that belong to this server."""
    keys = (f"token:{number}" for number in range(10_000))
    mine = (key for key in keys if backend._servers.of(key).name.endswith(f":{server.port}"))
    return [next(mine) for _ in range(count)]


def test_record_and_lease_are_on_one_server(pair: tuple[MemcachedServer, MemcachedServer]) -> None:
    """The record's name chooses the server of both, and the keys are spread over the servers."""
    backend = connect(*pair)
    for server in pair:
        for key in keys_of(backend, server, 8):
            lease = granted(backend.lease(key, "a", "identity", None, LONG))
            assert backend.commit(lease, record(lease.fence), LONG)
            granted(backend.lease(key, "a", "identity", record(lease.fence), LONG))
        assert server.stats()["curr_items"] == "16"
    backend.close()


@pytest.mark.parametrize("stop", ["kill", "pause"])
def test_the_keys_of_a_dead_server_do_not_move(pair: tuple[MemcachedServer, MemcachedServer], stop: str) -> None:
    """INV-2: no second lease is granted elsewhere; its keys are unreachable until it is back, other keys are not."""
    backend, hurried = connect(*pair), connect(*pair, timeout=0.1 if stop == "pause" else PATIENCE)
    dead, alive = pair
    (lost,), (kept,) = keys_of(backend, dead, 1), keys_of(backend, alive, 1)
    granted(backend.lease(lost, "a", "identity", None, LONG))
    getattr(dead, stop)()
    for _ in range(20):
        with pytest.raises(BackendUnavailable):
            hurried.lease(lost, "b", "identity", None, LONG)
    granted(backend.lease(kept, "b", "identity", None, LONG))
    assert alive.stats()["curr_items"] == "1"
    if stop == "pause":
        dead.resume()
        held(backend.lease(lost, "b", "identity", None, LONG))
    else:
        dead.restart()
        granted(backend.lease(lost, "b", "identity", None, LONG))
    backend.close()
    hurried.close()


# --- interruptions, forks, many callers


INTERRUPTED = """
import gc, os, random, signal, sys
from tokencache.backends.memcached import MemcachedBackend
from tokencache.ports import Found, Granted, Held

backend = MemcachedBackend("127.0.0.1:" + sys.argv[1], timeout=5.0)
KEYS = ["key-%d" % number for number in range(16)]
RECORDS = {key: b'{"accessToken": "%s", "fence": 1}' % key.encode() * 40 for key in KEYS}
for key in KEYS:
    lease = backend.lease(key, "setter", "identity", None, 600.0).lease
    assert backend.commit(lease, RECORDS[key], 600.0)
assert isinstance(backend.lease("held", "holder", "identity", None, 600.0), Granted)
armed = False

def interrupt(number, frame):
    if armed:
        raise KeyboardInterrupt

signal.signal(signal.SIGALRM, interrupt)

def load():
    key = random.choice(KEYS)
    assert backend.load(key).data == RECORDS[key]

def missing():
    assert backend.load("missing") is None

def find():
    key = random.choice(KEYS)
    assert backend.lease(key, "somebody", "identity", None, 600.0) == Found(backend.load(key))

def ask():
    assert isinstance(backend.lease("held", "somebody", "identity", None, 600.0), Held)

def take():
    reply = backend.lease("free", "somebody", "identity", None, 600.0)
    assert isinstance(reply, Granted), reply
    assert isinstance(backend.lease("free", "else", "identity", None, 600.0), Held)
    backend.release(reply.lease)

def keep():
    assert backend.discard(random.choice(KEYS), b"another") is False

interruptions = commands = 0
while interruptions < 1000:
    question = random.choice([load, missing, find, ask, take, keep])
    try:
        armed = True
        signal.setitimer(signal.ITIMER_REAL, random.uniform(0.00001, 0.001))
        question()
        armed = False
    except KeyboardInterrupt:
        interruptions += 1
    armed = False
    signal.setitimer(signal.ITIMER_REAL, 0)
    commands += 1
    load(), missing(), ask()
gc.collect()
print(interruptions, len(os.listdir("/proc/self/fd")) < 40)
"""


def test_a_thousand_interruptions_mix_up_no_answers(server: MemcachedServer) -> None:
    """INV-10: Ctrl-C in mid-command costs the connection; the next answer belongs to the next command."""
    command = [sys.executable, "-c", INTERRUPTED, str(server.port)]
    plain = {name: value for name, value in os.environ.items() if not name.startswith("COV")}  # tracing is too slow
    ran = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, env=plain)
    assert (ran.returncode, ran.stdout) == (0, "1000 True\n"), ran.stderr[-2000:]


class Interrupt(BaseException):
    """An exception that is not an `Exception`, like the time-outs of some libraries."""


def test_an_interrupted_command_costs_only_its_connection(
    backend: MemcachedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """INV-2: with an unread answer, the next `add` of a held lock would seem to succeed, ten times of ten."""
    lease = granted(ask(backend))
    genuine = socket.socket.sendall

    def cut(self: socket.socket, data: bytes) -> None:
        genuine(self, data)
        raise Interrupt

    for _ in range(10):
        monkeypatch.setattr(socket.socket, "sendall", cut, raising=False)
        with pytest.raises(Interrupt):
            backend.lease("another", "b", "identity", None, LONG)
        monkeypatch.setattr(socket.socket, "sendall", genuine, raising=False)
        held(ask(backend, "b"))
        assert backend.load(KEY) is None
    assert backend.extend(lease, LONG)


FORKED = """
import os, sys
from tokencache.backends.memcached import MemcachedBackend

backend = MemcachedBackend("127.0.0.1:" + sys.argv[1], timeout=5.0)

def sockets():
    paths = ["/proc/self/fd/" + fd for fd in os.listdir("/proc/self/fd")]
    return {link for path in paths if os.path.lexists(path) and (link := os.readlink(path)).startswith("socket:")}

def work(key):
    data = b'{"accessToken": "%s"}' % key.encode()
    lease = backend.lease(key, key, "identity", None, 60.0).lease
    assert backend.commit(lease, data, 60.0)
    for _ in range(300):
        assert backend.load(key).data == data

assert backend.load("parent") is None
inherited = sockets()
assert len(inherited) == 1
child = os.fork()
if child == 0:
    backend.after_fork()
    fresh = not sockets()
    work("child")
    os._exit(0 if fresh and not inherited & sockets() else 1)
work("parent")
assert sockets() == inherited
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_fork_shares_no_connection(server: MemcachedServer) -> None:
    """The child drops its inherited connections at once, and the parent's connection still works."""
    command = [sys.executable, "-W", "ignore", "-c", FORKED, str(server.port)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (ran.returncode, ran.stdout) == (0, "0\n"), ran.stderr[-2000:]


def test_a_closed_backend_stays_closed_after_a_fork(backend: MemcachedBackend) -> None:
    """The fork hook does not reopen a closed backend."""
    backend.close()
    backend.after_fork()
    assert backend._closing.is_set()


def test_closing_ends_a_wait(backend: MemcachedBackend) -> None:
    """INV-8: closing the backend ends every wait in it."""
    granted(ask(backend))
    waiting = threading.Thread(target=backend.wait, args=(KEY, None, 1000.0))
    waiting.start()
    backend.close()
    waiting.join(PATIENCE)
    assert not waiting.is_alive()


def test_a_wait_brings_the_record(backend: MemcachedBackend) -> None:
    """A waiter gets the new record with the read that found it."""
    lease = granted(ask(backend))
    assert backend.wait(KEY, None, 0.01) is None
    assert backend.commit(lease, record(lease.fence), LONG)
    stored = backend.wait(KEY, None, 0.0)
    assert stored is not None
    assert stored.data == record(lease.fence)
    assert backend.wait(KEY, record(lease.fence), 1000.0) is None


def test_a_short_outage_does_not_end_a_wait(backend: MemcachedBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """INV-2: a server restart does not send every waiter to the provider; a longer outage does."""
    lease = granted(ask(backend))
    assert backend.commit(lease, record(lease.fence), LONG)
    monkeypatch.setattr(_backend, "_GONE", PATIENCE)
    genuine, failures = Session.read, [BackendUnavailable("gone")] * 3

    def failing(self: Session, *names: str) -> dict[str, Item]:
        if failures:
            raise failures.pop()
        return genuine(self, *names)

    monkeypatch.setattr(Session, "read", failing)
    stored = backend.wait(KEY, None, 2 * PATIENCE)
    assert stored is not None
    assert not failures
    monkeypatch.setattr(_backend, "_GONE", 0.05)
    failures[:] = [BackendUnavailable("gone")] * 1000
    with pytest.raises(BackendUnavailable):
        backend.wait(KEY, None, PATIENCE)
    with pytest.raises(BackendUnavailable):
        backend.wait(KEY, None, 0.0)


def test_a_record_stored_just_before_the_lease_is_found(
    server: MemcachedServer, backend: MemcachedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """INV-2: another process may fetch, store and leave between our read and our `add`; no second fetch follows."""
    rival = connect(server)
    genuine = Session.add

    def overtaken(self: Session, name: str, data: bytes, expiry: int) -> bool:
        monkeypatch.setattr(Session, "add", genuine)
        lease = granted(ask(rival, "rival"))
        assert rival.commit(lease, record(lease.fence), LONG)
        return genuine(self, name, data, expiry)

    monkeypatch.setattr(Session, "add", overtaken)
    stored = found(ask(backend))
    assert json.loads(stored.data)["accessToken"] == "token"
    assert backend.inspect(KEY).owner is None
    rival.close()


def test_a_heartbeat_does_not_stop_a_release(backend: MemcachedBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease that is extended while a commit or release frees it is free afterwards."""
    genuine = Session.delete

    def late(lease: LeaseGrant) -> None:
        def beaten(self: Session, name: str, item: object) -> bool:
            monkeypatch.setattr(Session, "delete", genuine)
            assert backend.extend(lease, LONG)
            return genuine(self, name, item)  # type: ignore[arg-type]

        monkeypatch.setattr(Session, "delete", beaten)

    first = granted(ask(backend))
    late(first)
    backend.release(first)
    second = granted(ask(backend, "b"))
    late(second)
    assert backend.commit(second, record(second.fence), LONG)
    granted(ask(backend, "c", record(second.fence)))


def test_two_commits_at_once_leave_the_newer_record(
    server: MemcachedServer, backend: MemcachedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """INV-3: a record that is stored between a late holder's read and its write stays."""
    late = granted(ask(backend))
    backend.release(late)
    newer = granted(ask(backend, "b"))
    rival, genuine = connect(server), Session.add

    def overtaken(self: Session, name: str, data: bytes, expiry: int) -> bool:
        monkeypatch.setattr(Session, "add", genuine)
        assert rival.commit(newer, record(newer.fence), LONG)
        return genuine(self, name, data, expiry)

    monkeypatch.setattr(Session, "add", overtaken)
    assert backend.commit(late, record(late.fence), LONG) is False
    stored = backend.load(KEY)
    assert stored is not None
    assert stored.data == record(newer.fence)
    rival.close()


# --- the fleet


@pytest.fixture
def qpay() -> Iterator[FakeQPay]:
    """Start a QPay whose logins take a quarter of a second."""
    with FakeQPay(latency=0.25) as fake:
        yield fake


def test_eight_processes_of_sixteen_threads_log_in_once(qpay: FakeQPay, server: MemcachedServer) -> None:
    """INV-2: a cold fleet of 128 callers makes one login, and all hold the same token."""
    crowd = [fleet.start(qpay, server.url, 16) for _ in range(8)]
    fleet.go(crowd)
    rows = fleet.answers(crowd)
    assert [row[:2] for row in rows] == [["16", "1"]] * 8, rows
    assert len({row[2] for row in rows}) == 1
    assert qpay.logins == 1


@pytest.mark.parametrize("lifetime", [1, 86_400, 2_592_000])
def test_tokens_of_a_second_a_day_and_a_month_are_shared(server: MemcachedServer, lifetime: int) -> None:
    """INV-1, INV-2: the caches of two processes make one call for a token of any lifetime, and no token is late.

    On a slow machine, tokens of one second may end between the two, so several are tried.
    """
    calls: list[int] = []

    def fetch() -> dict[str, object]:
        calls.append(len(calls))
        return {"access_token": f"token-{len(calls)}", "expires_in": lifetime}

    with TokenCache(server.url) as one, TokenCache(server.url) as two:
        sources = [cache.source(fetch, key=f"life:{lifetime}") for cache in (one, two)]

        def shared() -> Token | None:
            asked_at = time.time()
            first, second = (source.token() for source in sources)
            assert min(first.expires_at, second.expires_at) > asked_at
            assert abs(first.expires_at - second.expires_at) < 1.0 or first.value != second.value
            return first if first.value == second.value else None

        token = eventually(shared)
        assert lifetime == 1 or len(calls) == 1
        if lifetime == 1:
            eventually(lambda: sources[1].token().value != token.value or None)


def test_a_late_commit_does_not_replace_another_programs_record(backend: MemcachedBackend, other: Client) -> None:
    """INV-3: a plain program stored its token after our lease had ended: our commit comes too late."""
    reply = ask(backend)
    assert isinstance(reply, Granted)
    other.delete(f"{KEY}:lock", noreply=False)
    other.set(KEY, b'{"accessToken":"theirs"}', noreply=False)
    assert not backend.commit(reply.lease, b'{"fence":1}', LONG)
    assert other.get(KEY) == b'{"accessToken":"theirs"}'
    again = ask(backend, seen=other.get(KEY))
    assert isinstance(again, Granted)
    assert backend.commit(again.lease, b'{"fence":1}', LONG)
    assert other.get(KEY) == b'{"fence":1}'
