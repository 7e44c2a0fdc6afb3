"""`tokencache doctor`, `verify` and `tail` on real servers: they name the fault of a Redis or a memcached."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from tokencache import TokenCache
from tokencache.backends.memcached import MemcachedBackend
from tokencache.cli._exit import Exit
from tokencache.cli.app import app
from tokencache.health import Finding
from tokencache.testing.servers import MemcachedServer, RedisServer
from tokencache_qpay.testing import FakeQPay

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.live

PATIENCE = 30.0
SECRET = "planted-client-secret-7f3a"
KEY = "qpay:access_token"
RIGHTS = "+get +pttl +set +del +pexpire +time +eval +evalsha +xadd +xread"
run = CliRunner()


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeQPay]:
    """A fake QPay that the environment names."""
    with FakeQPay(credentials={"merchant": SECRET}) as server:
        for name, value in server.environ.items():
            monkeypatch.setenv(name, value)
        for name in ("QPAY_CACHE_KEY", "TOKENCACHE_BACKEND", "REDIS_DATABASE_URI"):
            monkeypatch.delenv(name, raising=False)
        yield server


def examined(url: str, *arguments: str) -> tuple[int, dict[str, Finding]]:
    """Run `doctor qpay --json` on a backend; return the exit code and the findings by subject and check."""
    ran = run.invoke(app, ["doctor", "qpay", "--json", "--backend", url, *arguments])
    assert SECRET not in ran.output
    found = {
        f"{entry['subject']} {entry['check']}": Finding(entry["check"], entry["mark"], entry["seen"], entry["remedy"])
        for entry in json.loads(ran.stdout)["findings"]
    }
    return ran.exit_code, found


def user(server: RedisServer, rules: str) -> str:
    """Give a user the rights of an ACL, and return the URL with that login."""
    server.command("ACL", "SETUSER", "app", "reset", "on", ">planted-password", *rules.split())
    return f"redis://app:planted-password@127.0.0.1:{server.port}/0"


def test_a_good_redis_passes_every_check(fake: FakeQPay) -> None:
    """Version, role, eviction, rights, wake-ups and clock of a plain server are ok, and the login is shared."""
    with RedisServer() as server:
        code, found = examined(server.url)
        assert code == Exit.OK
        checks = {"reachable", "round trip", "server", "role", "eviction", "rights", "wake-ups", "clock"}
        assert {f"backend {check}" for check in checks} <= set(found)
        assert {finding.mark for finding in found.values()} == {"ok"}
        assert found["backend server"].seen.startswith(("Redis ", "Valkey "))
        with TokenCache(server.url) as cache:
            cache.source("qpay").token()
        keys = server.command("KEYS", "*:doctor*")
    assert fake.logins == 1
    assert keys in ([], [f"{KEY}:doctor:ready".encode()]), "but for a wake-up that is gone after two seconds"


@pytest.mark.parametrize(
    ("policy", "mark"), [("allkeys-lru", "warning"), ("volatile-ttl", "warning"), ("noeviction", "ok")]
)
def test_an_eviction_policy_that_loses_leases_is_a_warning(fake: FakeQPay, policy: str, mark: str) -> None:
    """With a memory limit, a policy that may evict gives a warning with its name and remedy; noeviction is ok."""
    with RedisServer("--maxmemory", "50mb", "--maxmemory-policy", policy) as server:
        code, found = examined(server.url, "--no-login")
    assert (code, found["backend eviction"].mark) == (Exit.OK, mark)
    assert policy in found["backend eviction"].seen
    assert (mark == "ok") or "maxmemory-policy noeviction" in str(found["backend eviction"].remedy)


def test_a_full_redis_is_reported(fake: FakeQPay) -> None:
    """A server without room fails the round trip with the cause, and the eviction check says how full it is."""
    with RedisServer("--maxmemory-policy", "noeviction") as server:
        server.command("CONFIG", "SET", "maxmemory", "1")
        code, found = examined(server.url, "--no-login")
    assert code == Exit.FAILED
    assert "memory" in found["backend round trip"].seen
    assert found["backend eviction"].mark == "warning"


@pytest.mark.parametrize(
    ("rules", "lacking"),
    [
        (f"~{KEY}* {RIGHTS} -set +info", "SET qpay:access_token"),
        (f"~{KEY}* {RIGHTS} -xadd +info", "XADD qpay:access_token:ready"),
        (f"~{KEY}* {RIGHTS} -time +info", "TIME"),
        (f"~{KEY}* {RIGHTS} -evalsha +info", "EVALSHA"),
        (f"~{KEY} ~{KEY}:lock ~{KEY}:cooldown {RIGHTS} +info", "ACL"),
        (f"~{KEY} ~{KEY}:lock ~{KEY}:ready {RIGHTS} +info", "ACL"),
        (f"~{KEY}* {RIGHTS} -eval +info", "ACL"),
    ],
)
def test_a_missing_right_is_named(fake: FakeQPay, rules: str, lacking: str) -> None:
    """An ACL that lacks a command, or one of the four keys, fails by its name with the ACL line; nothing is tried."""
    with RedisServer() as server:
        code, found = examined(user(server, rules), "--no-login")
        left = server.command("KEYS", "*")
    assert code == Exit.FAILED
    assert found["backend rights"].mark == "failed"
    assert lacking in found["backend rights"].seen
    assert f"~{KEY}:lock ~{KEY}:ready ~{KEY}:cooldown" in str(found["backend rights"].remedy)
    assert left == [], "asking what is allowed does nothing of it"


def test_forbidden_xread_is_reported(fake: FakeQPay) -> None:
    """Without XREAD waiters sleep until their time is up: rights and wake-ups both report it."""
    with RedisServer() as server:
        code, found = examined(user(server, f"~{KEY}* {RIGHTS} -xread +info"), "--no-login")
    assert code == Exit.FAILED
    assert f"XREAD {KEY}:ready" in found["backend rights"].seen
    assert found["backend wake-ups"].mark == "failed"


def test_the_least_rights_of_the_documents_pass(fake: FakeQPay) -> None:
    """With only the rights of docs/backends.md, on only the three keys, no check fails; others are skipped."""
    with RedisServer() as server:
        code, found = examined(user(server, f"~{KEY} ~{KEY}:lock ~{KEY}:ready ~{KEY}:cooldown {RIGHTS}"))
    assert code == Exit.OK, found
    assert found["backend rights"].mark == "ok"
    assert {name for name, finding in found.items() if finding.mark == "skipped"} == {
        "backend round trip",
        "backend server",
    }
    assert (found["token token"].mark, fake.logins) == ("ok", 1)


def test_a_server_without_a_rights_check_passes(fake: FakeQPay, monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis 5 and 6 have no `redis.acl_check_cmd`: the check is skipped, and the round trip replaces it."""
    from tokencache.backends.redis import _health as _redis_health

    monkeypatch.setattr(_redis_health, "RIGHTS", _redis_health.RIGHTS.replace("acl_check_cmd", "acl_check_none"))
    with RedisServer() as server:
        code, found = examined(server.url, "--no-login")
    assert (code, found["backend rights"].mark) == (Exit.OK, "skipped")


def test_a_wake_up_stream_of_another_type_is_reported(fake: FakeQPay) -> None:
    """A value of another type at the stream's key fails the wake-ups, with the key to delete."""
    with RedisServer() as server:
        server.command("SET", f"{KEY}:ready", "somebody's")
        code, found = examined(server.url, "--no-login")
    assert (code, found["backend wake-ups"].mark) == (Exit.FAILED, "failed")
    assert f"redis-cli DEL '{KEY}:ready'" in str(found["backend wake-ups"].remedy)


def test_a_replica_is_reported(fake: FakeQPay) -> None:
    """A URL that leads to a read-only replica fails role and round trip."""
    with RedisServer() as master, RedisServer(replicaof=master) as replica:
        code, found = examined(replica.url, "--no-login")
    assert code == Exit.FAILED
    assert found["backend role"].mark == "failed"
    assert "replica" in found["backend round trip"].seen


def test_an_unreachable_redis_or_a_wrong_password_is_reported(fake: FakeQPay) -> None:
    """Redis connection error: the message has cause, place and remedy; no needless login, no password."""
    with RedisServer(password="planted-right") as server:
        _, found = examined(server.url, "--no-login")
        assert "redis://:***@127.0.0.1" in found["backend reachable"].seen
        wrong = f"redis://:planted-wrong@127.0.0.1:{server.port}/0"
        code, found = examined(wrong)
        assert (code, found["backend reachable"].mark) == (Exit.FAILED, "failed")
        assert "password" in found["backend reachable"].seen
        assert "planted" not in str(found)
        server.kill()
        code, found = examined(server.url)
    assert (code, found["backend reachable"].mark) == (Exit.FAILED, "failed")
    assert f"redis at 127.0.0.1:{server.port}" in found["backend reachable"].seen
    assert (found["token token"].mark, fake.logins) == ("skipped", 0)


def test_a_lock_without_an_end_is_stuck(fake: FakeQPay) -> None:
    """INV-8: another program's `SET K:lock` without an expiry is reported at once; doctor does not wait for it."""
    with RedisServer() as server:
        server.command("SET", f"{KEY}:lock", "1")
        code, found = examined(server.url)
    assert code == Exit.FAILED
    assert "another program, with no end" in found["token lease"].seen
    assert (found["token token"].mark, fake.logins) == ("skipped", 0)


def test_the_clock_of_redis_is_compared_with_this_machines(fake: FakeQPay, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's `TIME` is compared with this machine's clock, which is two minutes off here."""
    from tokencache.backends.redis import _health as _redis_health

    late = SimpleNamespace(time=lambda: time.time() - 120, monotonic=time.monotonic)
    monkeypatch.setattr(_redis_health, "time", late)
    with RedisServer() as server:
        code, found = examined(server.url, "--no-login")
    assert (code, found["backend clock"].mark) == (Exit.FAILED, "failed")
    assert "behind" in found["backend clock"].seen


# --- memcached --------------------------------------------------------------------------------------------------


def test_a_good_memcached_passes_every_check(fake: FakeQPay) -> None:
    """Version, cas, room and clock of a plain server are ok."""
    with MemcachedServer() as server:
        code, found = examined(server.url)
    assert code == Exit.OK
    assert {f"backend {check}" for check in ("round trip", "server", "cas", "eviction", "clock")} <= set(found)
    assert {finding.mark for finding in found.values()} == {"ok"}


def test_a_memcached_without_cas_is_reported(fake: FakeQPay) -> None:
    """`-C` removes the cas that leases need: the round trip fails, and the cas check has the remedy."""
    with MemcachedServer("-C") as server:
        code, found = examined(server.url, "--no-login")
    assert code == Exit.FAILED
    assert (found["backend cas"].mark, found["backend round trip"].mark) == ("failed", "failed")
    assert "-C" in str(found["backend cas"].remedy)


def test_a_memcached_that_evicts_is_a_warning(fake: FakeQPay) -> None:
    """A server that had to evict may also lose leases: a warning with the figure and the remedy."""
    with MemcachedServer("-m", "2") as server:
        with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as filler:
            value = b"x" * 100_000
            for number in range(80):
                filler.sendall(b"set filler:%d 0 0 %d noreply\r\n%b\r\n" % (number, len(value), value))
            filler.sendall(b"version\r\n")
            assert filler.recv(100).startswith(b"VERSION")
        _, found = examined(server.url, "--no-login")
    assert found["backend eviction"].mark == "warning"
    assert "(-m)" in str(found["backend eviction"].remedy)


def test_an_unreachable_other_memcached_server_is_a_warning(fake: FakeQPay) -> None:
    """One server of several is unreachable: a failure if it has the record, else a warning that names it."""
    with MemcachedServer() as one, MemcachedServer() as other:
        servers = [f"127.0.0.1:{server.port}" for server in (one, other)]
        backend = MemcachedBackend(servers)
        own, away = (one, other) if backend._server(KEY).name == servers[0] else (other, one)
        url = f"memcached://{','.join(servers)}"
        away.kill()
        ran = run.invoke(app, ["doctor", "qpay", "--json", "--no-login", "--backend", url])
        told = [entry for entry in json.loads(ran.stdout)["findings"] if entry["check"] == "server"]
        assert ran.exit_code == Exit.OK
        assert sorted(entry["mark"] for entry in told) == ["ok", "warning"]
        assert any(entry["mark"] == "warning" and str(away.port) in entry["seen"] for entry in told)
        own.kill()
        code, found = examined(url, "--no-login")
    assert (code, found["backend reachable"].mark) == (Exit.FAILED, "failed")


# --- verify and tail --------------------------------------------------------------------------------------------


def test_verify_passes_where_processes_share(fake: FakeQPay) -> None:
    """INV-2: on a real server one login serves this process and two fresh ones."""
    with RedisServer() as server:
        ran = run.invoke(app, ["verify", "qpay", "--json", "-p", "2", "--backend", server.url])
    found = json.loads(ran.stdout)
    assert (ran.exit_code, found["shared"], found["logins"], fake.logins) == (Exit.OK, True, 1, 1)
    assert len(found["processes"]) == 2


def test_verify_fails_where_nothing_is_stored(fake: FakeQPay) -> None:
    """A full Redis stores no record: the token is obtained but not shared, with the cause in the reason; one login."""
    with RedisServer("--maxmemory-policy", "noeviction") as server:
        server.command("CONFIG", "SET", "maxmemory", "1")
        ran = run.invoke(app, ["verify", "qpay", "--json", "--backend", server.url])
    assert (ran.exit_code, fake.logins) == (Exit.FAILED, 1)
    assert "memory" in json.loads(ran.stdout)["reason"]


def test_tail_shows_a_fleets_events(fake: FakeQPay) -> None:
    """A fetch that is held open, the stored token, a 401 and its replacement: each is a line of JSON as it happens."""
    with RedisServer() as server, TokenCache(server.url) as cache:
        process = subprocess.Popen(
            [sys.executable, "-m", "tokencache", "tail", "qpay", "-b", server.url, "--json", "--every", "0.02"],
            stdout=subprocess.PIPE,
            text=True,
            env={name: value for name, value in os.environ.items() if not name.startswith("COV")},
        )
        assert process.stdout is not None
        told = (json.loads(text) for text in process.stdout)

        def until(event: str) -> dict[str, object]:
            return next(entry for entry in told if entry["event"] == event)

        try:
            until("empty")
            source = cache.source("qpay")
            with fake.hold():
                caller = threading.Thread(target=source.token)
                caller.start()
                owner = until("fetching")["owner"]
                assert until("prolonged")["owner"] == owner
            caller.join(PATIENCE)
            assert until("stored")["reason"] == "cold"
            token = source.token()
            source.invalidate(token)
            until("dropped")
            source.token()
            assert until("stored")["reason"] == "rejected"
        finally:
            process.terminate()
            process.wait(PATIENCE)
            process.stdout.close()
