"""The servers and the proxy of the test kit: they start, break and end as documented, and leave nothing behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tokencache.testing import _server_process
from tokencache.testing.servers import (
    Certificates,
    CommandRefused,
    MemcachedServer,
    Proxy,
    RedisCluster,
    RedisSentinels,
    RedisServer,
    ServerFailed,
    ServerProcess,
    require,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.live

HOST = "127.0.0.1"
PATIENCE = 60.0
PING, PONG = b"*1\r\n$4\r\nPING\r\n", b"+PONG\r\n"


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    """Yield a Redis server."""
    require("redis-server")
    with RedisServer() as server:
        yield server


@pytest.fixture
def memcached() -> Iterator[MemcachedServer]:
    """Yield a memcached."""
    require("memcached")
    with MemcachedServer("-m", "8") as server:
        yield server


@pytest.fixture
def proxy(redis_server: RedisServer) -> Iterator[Proxy]:
    """Yield a proxy before a Redis server."""
    with Proxy(redis_server.port) as proxy:
        yield proxy


@contextmanager
def connected(port: int) -> Iterator[socket.socket]:
    """Yield a connection to loopback."""
    with socket.create_connection((HOST, port), PATIENCE) as connection:
        yield connection


def packed(*parts: str) -> bytes:
    """Return a Redis command in its wire format."""
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part.encode()) for part in parts)


def received(connection: socket.socket, size: int) -> bytes:
    """Receive so many bytes, or until the end."""
    data = b""
    while len(data) < size and (piece := connection.recv(size - len(data))):
        data += piece
    return data


def is_cut(connection: socket.socket) -> bool:
    """Return whether the other side has closed; wait for it."""
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


def until(reached: Callable[[], bool]) -> None:
    """Wait until the condition holds."""
    deadline = time.monotonic() + PATIENCE
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def is_linked(replica: RedisServer) -> bool:
    """Return whether a replica has its master's data; a server that becomes one closes its connections."""
    try:
        return replica.info("replication").get("master_link_status") == "up"
    except ConnectionError:
        return False


def is_alive(pid: int) -> bool:
    """Return whether the process exists and has not ended."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# --- processes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "program"), [(RedisServer, "redis-server"), (MemcachedServer, "memcached")])
def test_nothing_is_left_behind(kind: type[ServerProcess], program: str) -> None:
    """After the block the process and its folder are gone, and its port is free."""
    require(program)
    with kind() as server:
        pid, folder, port = server.pid, server.folder, server.port
        assert is_alive(pid)
        assert folder.is_dir()
    assert not is_alive(pid)
    assert not folder.exists()
    with pytest.raises(ConnectionRefusedError), connected(port):
        pass
    server.stop()
    assert not server.running


def test_servers_end_with_a_killed_process() -> None:
    """A server and its folder do not outlive the process that started it, even if that is killed."""
    require("redis-server")
    code = (
        "import sys\nfrom tokencache.testing.servers import RedisServer\n"
        "server = RedisServer().start(); server.restart()\n"
        "print(server.pid, server.folder, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as starter:
        assert starter.stdout is not None
        pid, folder = starter.stdout.readline().decode().split()
        assert is_alive(int(pid))
        starter.kill()
        starter.wait()
        until(lambda: not is_alive(int(pid)))
        until(lambda: not Path(folder).exists())


def test_a_server_that_does_not_start_says_why() -> None:
    """A server that ends at once raises an error with its output, and leaves no folder."""
    require("redis-server")
    server = RedisServer("--no-such-option", "1")
    with pytest.raises(ServerFailed, match="no-such-option"):
        server.start()
    assert not server.running
    assert not server.folder.exists()


def test_a_missing_program_fails_the_start() -> None:
    """Without its program a server fails to start, by name."""

    class Missing(MemcachedServer):
        program = "no-such-program"

    with pytest.raises(ServerFailed, match="no-such-program is not installed"):
        Missing().start()


def test_another_server_on_the_port_is_not_taken_for_ours(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server moves from a taken port to a free one, and the other server is left alone."""
    ports = iter([redis_server.port, _server_process.free_port()])
    monkeypatch.setattr(_server_process, "free_port", lambda: next(ports))
    with RedisServer() as second:
        assert second.port != redis_server.port
        assert redis_server.info("server")["process_id"] == str(redis_server.pid)
        assert second.info("server")["process_id"] == str(second.pid)


def test_ports_are_outside_the_clients_range() -> None:
    """Ports are below those of clients, free, and with their cluster port never those of installed servers."""
    ports = {_server_process.free_port() for _ in range(50)}
    assert len(ports) > 1
    assert all(12_000 <= port < 22_000 for port in ports)
    with socket.socket() as holder:
        port = ports.pop()
        holder.bind((HOST, port))
        holder.listen()
        assert not _server_process._is_free(port)


def test_a_time_out_names_the_awaited_state() -> None:
    """Waiting for a server ends, with an error that names what it waited for."""
    with pytest.raises(ServerFailed, match="the moon: not within 0"):
        _server_process.wait_until(lambda: False, "the moon", 0)


@pytest.mark.parametrize(("promised", "outcome"), [("true", "failed"), ("1", "failed"), ("", "skipped")])
def test_a_missing_program_skips_unless_promised(promised: str, outcome: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the program the test is skipped; where `CI` is set, it fails."""
    monkeypatch.setenv("CI", promised)
    with pytest.raises((pytest.fail.Exception, pytest.skip.Exception)) as caught:
        require("no-such-program")
    assert "no-such-program is not installed" in str(caught.value)
    assert isinstance(caught.value, pytest.fail.Exception) == (outcome == "failed")


def test_an_installed_program_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The path of an installed program is returned, promised or not."""
    monkeypatch.setenv("CI", "true")
    assert Path(require("sh")).is_file()


# --- Redis ----------------------------------------------------------------------------------------------------------


def test_redis_answers_commands(redis_server: RedisServer) -> None:
    """Replies are bytes, numbers, lists or `None`; an error reply is raised."""
    server = redis_server
    assert server.command("SET", "k", b"\x00\r\n") == b"OK"
    assert server.command("GET", "k") == b"\x00\r\n"
    assert server.command("GET", "none") is None
    assert server.command("MGET", "k", "none") == [b"\x00\r\n", None]
    assert server.command("INCRBY", "n", 7) == 7
    with pytest.raises(CommandRefused, match="WRONGTYPE"):
        server.command("LPUSH", "k", "v")


def test_redis_counts_the_commands_of_others(redis_server: RedisServer) -> None:
    """`commands` counts the commands of others, in scripts too, and not its own query."""
    before = redis_server.commands()  # Valkey counts its own commands at its start
    redis_server.command("SET", "k", "v")
    assert redis_server.commands() == before
    with connected(redis_server.port) as connection:
        connection.sendall(PING + packed("EVAL", "return redis.call('GET', KEYS[1])", "1", "k"))
        assert received(connection, 14) == PONG + b"$1\r\nv\r\n"
    assert redis_server.commands() == before + 3
    assert redis_server.calls()["get"] == 1


def test_redis_with_a_password() -> None:
    """The server requires the password, the URL holds it, the repr does not, and the count stays right."""
    require("redis-server")
    with RedisServer(password="s3:cr/t@") as server:
        assert server.url == f"redis://:s3%3Acr%2Ft%40@{HOST}:{server.port}/0"
        assert "s3" not in repr(server)
        before = server.commands()
        assert server.command("PING") == b"PONG"
        assert server.commands() == before
        with connected(server.port) as connection:
            connection.sendall(PING)
            assert received(connection, 7) == b"-NOAUTH"
        with RedisServer(password="s3:cr/t@", replicaof=server) as replica:
            assert replica.info("replication")["master_link_status"] == "up"


def test_redis_on_a_socket_file() -> None:
    """With `unix`, the URL leads to a socket in the server's folder that answers."""
    require("redis-server")
    with RedisServer(unix=True) as server, socket.socket(socket.AF_UNIX) as connection:
        path = server.folder / "redis.sock"
        assert server.url == f"unix://{path}?db=0"
        connection.connect(str(path))
        connection.sendall(PING)
        assert received(connection, len(PONG)) == PONG


def test_redis_over_tls(tls_redis: RedisServer, certificates: Certificates) -> None:
    """With certificates, the server speaks only TLS, and the URL names the authority."""
    assert tls_redis.url == f"rediss://{HOST}:{tls_redis.port}/0?ssl_ca_certs={certificates.authority}"
    assert tls_redis.command("PING") == b"PONG"
    with connected(tls_redis.port) as connection:
        connection.sendall(PING)
        assert is_cut(connection)


def test_arguments_reach_redis() -> None:
    """Given arguments follow our settings, so they override them."""
    require("redis-server")
    with RedisServer("--maxmemory", "3mb", "--save", "900 1") as server:
        assert server.command("CONFIG", "GET", "maxmemory") == [b"maxmemory", b"3145728"]
        assert server.command("CONFIG", "GET", "save") == [b"save", b"900 1"]


def test_redis_restarts_on_its_port(redis_server: RedisServer) -> None:
    """A restart keeps the port; it keeps the data only on request, and starts a killed server too."""
    server, port, first = redis_server, redis_server.port, redis_server.pid
    server.command("SET", "k", "v")
    server.restart(keep=True)
    assert (server.port, server.command("GET", "k")) == (port, b"v")
    assert server.pid != first
    server.command("SET", "unsaved", "v")
    server.kill()
    assert not server.running
    with pytest.raises(ServerFailed, match="not running"):
        _ = server.pid
    with pytest.raises(ConnectionRefusedError):
        server.command("PING")
    server.restart(keep=True)
    assert server.command("MGET", "k", "unsaved") == [b"v", None]
    server.restart()
    before = server.commands()
    assert server.command("DBSIZE") == 0
    assert server.commands() == before


def test_a_restart_without_keep_removes_the_append_only_file() -> None:
    """Data in an append-only file survives a kill with `keep`, and no restart without it."""
    require("redis-server")
    with RedisServer("--appendonly", "yes", "--appendfsync", "always") as server:
        server.command("SET", "k", "v")
        server.kill()
        server.restart(keep=True)
        assert server.command("GET", "k") == b"v"
        server.restart()
        assert server.command("GET", "k") is None


def test_redis_pauses_and_resumes(redis_server: RedisServer) -> None:
    """A paused server accepts connections and is silent; once resumed, it answers the requests it got."""
    redis_server.pause()
    with connected(redis_server.port) as connection:
        connection.sendall(PING)
        with pytest.raises(TimeoutError):
            redis_server.command("PING", timeout=0.05)
        connection.setblocking(False)
        with pytest.raises(BlockingIOError):
            connection.recv(1)
        connection.settimeout(PATIENCE)
        redis_server.resume()
        assert received(connection, len(PONG)) == PONG


def test_a_paused_server_can_be_ended(redis_server: RedisServer) -> None:
    """A paused server is killed and restarted like any other."""
    redis_server.pause()
    redis_server.restart()
    assert redis_server.command("PING") == b"PONG"
    redis_server.pause()
    redis_server.stop()
    assert not redis_server.running


def test_a_server_that_ends_by_itself_is_noticed(redis_server: RedisServer) -> None:
    """A server that was ended from outside does not count as running, and comes back by a restart."""
    os.kill(redis_server.pid, signal.SIGKILL)
    until(lambda: not redis_server.running)
    redis_server.restart()
    assert redis_server.command("PING") == b"PONG"


def test_a_server_whose_default_user_has_no_rights_starts() -> None:
    """A server whose default user may do nothing counts as started, since it answers."""
    require("redis-server")
    with RedisServer("--user", "default", "off") as server, pytest.raises(CommandRefused, match="NOAUTH"):
        server.command("PING")


# --- Redis fleets ---------------------------------------------------------------------------------------------------


def test_sentinels_fail_over() -> None:
    """Three sentinels name the master; a command promotes the replica, and so does the master's death."""
    require("redis-server")
    with RedisSentinels(password="pw") as fleet:
        ports = ",".join(f"{HOST}:{sentinel.port}" for sentinel in fleet.sentinels)
        assert fleet.url == f"redis+sentinel://:pw@{ports}/mymaster"
        first, (second,) = fleet.master, fleet.replicas
        assert (first, len(fleet.sentinels)) == (fleet.servers[0], 3)
        first.command("SET", "k", "v")
        assert fleet.failover() is second
        assert second.command("SET", "k", "w") == b"OK"
        fleet.wait()
        assert fleet.replicas == [first]
        until(lambda: is_linked(first))
        assert fleet.failover(kill=True) is first
        assert not second.running
        second.restart()
        until(lambda: is_linked(second))
        assert fleet.master is first


def test_sentinels_stop_at_the_end_of_the_block() -> None:
    """All know each other from the start; a sentinel comes back as itself or as another; all end with the block."""
    require("redis-server")
    with RedisSentinels(replicas=2) as fleet:
        for sentinel in fleet.sentinels:
            state = sentinel.state()
            assert (state["num-slaves"], state["num-other-sentinels"]) == ("2", "2")
        kept, new = fleet.sentinels[1:]
        names = kept.command("SENTINEL", "MYID"), new.command("SENTINEL", "MYID")
        kept.restart()
        new.restart(keep=False)
        assert kept.command("SENTINEL", "MYID") == names[0]
        assert new.command("SENTINEL", "MYID") != names[1]
        assert new.address() == (HOST, fleet.master.port)
        pids = [server.pid for server in (*fleet.servers, *fleet.sentinels)]
    assert len(pids) == 6
    assert not [pid for pid in pids if is_alive(pid)]


def test_a_cluster_of_three() -> None:
    """Each key has its node, other nodes refuse it; a restarted node comes back with its slots."""
    require("redis-server")
    with RedisCluster() as cluster:
        assert cluster.url == "redis+cluster://" + ",".join(f"{HOST}:{node.port}" for node in cluster.nodes)
        owners = {key: cluster.node_of(key) for key in "abcdef"}
        assert set(owners.values()) == set(cluster.nodes)
        for key, owner in owners.items():
            assert owner.command("SET", key, "v") == b"OK"
            other = next(node for node in cluster.nodes if node is not owner)
            with pytest.raises(CommandRefused, match=f"MOVED .*:{owner.port}"):
                other.command("GET", key)
        owners["a"].restart()
        cluster.wait()
        assert owners["a"].command("GET", "a") is None
        pids = [node.pid for node in cluster.nodes]
    assert not [pid for pid in pids if is_alive(pid)]


# --- memcached ------------------------------------------------------------------------------------------------------


def test_memcached_answers_and_counts(memcached: MemcachedServer) -> None:
    """Settings reach memcached, and its statistics and command count come back, each command counted once."""
    assert memcached.url == f"memcached://{HOST}:{memcached.port}"
    assert memcached.stats()["limit_maxbytes"] == str(8 * 1024 * 1024)
    assert memcached.commands() == 0
    with connected(memcached.port) as connection:
        connection.sendall(b"set k 0 0 1\r\nv\r\nget k\r\ndelete k\r\ndelete k\r\n")
        expected = b"STORED\r\nVALUE k 0 1\r\nv\r\nEND\r\nDELETED\r\nNOT_FOUND\r\n"
        assert received(connection, len(expected)) == expected
    assert memcached.commands() == 4
    assert memcached.command("flush_all") == ["OK"]
    assert memcached.command("get k") == ["END"]


def test_memcached_restarts_empty_on_the_same_port(memcached: MemcachedServer) -> None:
    """A restart keeps the port and no data; it also starts a killed server."""
    port = memcached.port
    with connected(port) as connection:
        connection.sendall(b"set k 0 0 1\r\nv\r\n")
        assert received(connection, 8) == b"STORED\r\n"
    assert memcached.command("get k") == ["VALUE k 0 1", "v", "END"]
    memcached.kill()
    with pytest.raises(ConnectionRefusedError):
        memcached.stats()
    memcached.restart()
    assert memcached.port == port
    assert memcached.command("get k") == ["END"]
    memcached.pause()
    with connected(port) as connection:
        connection.sendall(b"get k\r\n")
        connection.setblocking(False)
        with pytest.raises(BlockingIOError):
            connection.recv(1)
        memcached.resume()
        connection.settimeout(PATIENCE)
        assert received(connection, 5) == b"END\r\n"


# --- the proxy ------------------------------------------------------------------------------------------------------


def test_the_proxy_passes_everything_on(proxy: Proxy) -> None:
    """Without a fault the proxy passes all data, large values too, and counts connections."""
    value = "v" * 300_000
    with connected(proxy.port) as connection, connected(proxy.port) as other:
        connection.sendall(packed("SET", "k", value) + packed("GET", "k"))
        expected = f"+OK\r\n$300000\r\n{value}\r\n".encode()
        assert received(connection, len(expected)) == expected
        other.sendall(PING)
        assert received(other, len(PONG)) == PONG
        assert (proxy.connections, proxy.accepted) == (2, 2)
    until(lambda: proxy.connections == 0)
    assert proxy.accepted == 2


def test_the_proxy_passes_on_the_end(proxy: Proxy, redis_server: RedisServer) -> None:
    """When the server closes, the client gets the earlier data, then the end; a client's end reaches the server."""
    proxy.delay(0.02)
    with connected(proxy.port) as connection:
        connection.sendall(PING + packed("QUIT"))
        assert received(connection, 100) == PONG + b"+OK\r\n"
    with connected(proxy.port) as connection:
        connection.sendall(PING)
        assert received(connection, len(PONG)) == PONG
        assert int(redis_server.info("clients")["connected_clients"]) == 2
    until(lambda: redis_server.info("clients")["connected_clients"] == "1")


def test_the_proxy_delays_replies(proxy: Proxy) -> None:
    """A reply comes late by the delay; pieces keep their order; once healed, it comes at once."""
    with connected(proxy.port) as connection:
        proxy.delay(0.15)
        begun = time.monotonic()
        connection.sendall(PING + packed("ECHO", "x"))
        assert received(connection, 14) == PONG + b"$1\r\nx\r\n"
        assert time.monotonic() - begun >= 0.15
        proxy.delay(3_600)
        connection.sendall(PING)
        connection.settimeout(0.1)
        with pytest.raises(TimeoutError):
            connection.recv(1)
    proxy.heal()
    with connected(proxy.port) as connection:
        connection.sendall(PING)
        assert received(connection, len(PONG)) == PONG


def test_the_proxy_cuts(proxy: Proxy) -> None:
    """A cut closes all connections at once, and lets new ones through."""
    with connected(proxy.port) as connection, connected(proxy.port) as other:
        for each in (connection, other):
            each.sendall(PING)
            assert received(each, len(PONG)) == PONG
        proxy.cut()
        assert proxy.connections == 0
        assert is_cut(connection)
        assert is_cut(other)
    with connected(proxy.port) as connection:
        connection.sendall(PING)
        assert received(connection, len(PONG)) == PONG


def test_a_cut_reaches_through_a_fork(proxy: Proxy) -> None:
    """A cut and a refusal work although a child process has inherited the proxy's sockets."""
    with connected(proxy.port) as connection:
        connection.sendall(PING)
        assert received(connection, len(PONG)) == PONG
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(writing)
            os.read(reading, 1)
            os._exit(0)
        try:
            proxy.refuse()
            assert is_cut(connection)
            with pytest.raises(ConnectionRefusedError), connected(proxy.port):
                pass
            proxy.heal()
        finally:
            os.close(reading)
            os.close(writing)
            os.waitpid(child, 0)


def test_the_proxy_refuses(proxy: Proxy) -> None:
    """Until healed, the proxy closes the existing connections and refuses new ones, on the same port."""
    port = proxy.port
    with connected(port) as connection:
        connection.sendall(PING)
        assert received(connection, len(PONG)) == PONG
        proxy.refuse()
        assert is_cut(connection)
    with pytest.raises(ConnectionRefusedError), connected(port):
        pass
    proxy.heal()
    with connected(port) as connection:
        connection.sendall(PING)
        assert received(connection, len(PONG)) == PONG


def test_the_proxy_is_a_black_hole(proxy: Proxy, redis_server: RedisServer) -> None:
    """A black hole accepts connections and requests, drops the data, and cuts those connections when healed."""
    with connected(proxy.port) as idle, connected(proxy.port) as known:
        for each in (idle, known):
            each.sendall(PING)
            assert received(each, len(PONG)) == PONG
        proxy.black_hole()
        with connected(proxy.port) as new:
            for each in (known, new):
                each.sendall(packed("SET", "k", "v"))
                each.settimeout(0.1)
                with pytest.raises(TimeoutError):
                    each.recv(1)
                each.settimeout(PATIENCE)
            assert redis_server.command("GET", "k") is None
            assert redis_server.info("clients")["connected_clients"] == "3"  # idle, known, and this query's
            proxy.heal()
            assert is_cut(known)
            assert is_cut(new)
        idle.sendall(PING)
        assert received(idle, len(PONG)) == PONG


def test_a_black_hole_swallows_a_reply_under_way(proxy: Proxy, redis_server: RedisServer) -> None:
    """A reply to an earlier request is swallowed too, and its connection is cut when healed."""
    with connected(proxy.port) as connection:
        connection.sendall(packed("BLPOP", "list", "0"))
        until(lambda: redis_server.info("clients")["blocked_clients"] == "1")
        proxy.black_hole()
        redis_server.command("RPUSH", "list", "v")
        connection.settimeout(0.1)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        connection.settimeout(PATIENCE)
        proxy.heal()
        assert is_cut(connection)


def test_a_black_hole_after_a_refusal_accepts_connections(proxy: Proxy) -> None:
    """A black hole after a refusal accepts connections again, and drops their data."""
    proxy.refuse()
    proxy.black_hole()
    with connected(proxy.port) as connection:
        connection.sendall(PING)
        connection.settimeout(0.1)
        with pytest.raises(TimeoutError):
            connection.recv(1)


def test_the_proxy_loses_one_reply(proxy: Proxy, redis_server: RedisServer) -> None:
    """The next request is performed and its reply lost with the connection; the following request is answered."""
    with connected(proxy.port) as connection, connected(proxy.port) as other:
        for each in (connection, other):
            each.sendall(PING)
            assert received(each, len(PONG)) == PONG
        lost = proxy.drop_next_reply()
        assert not lost.is_set()
        connection.sendall(packed("SET", "k", "v"))
        assert is_cut(connection)
        assert lost.wait(PATIENCE)
        assert redis_server.command("GET", "k") == b"v"
        other.sendall(PING)
        assert received(other, len(PONG)) == PONG


def test_the_proxy_loses_the_reply_to_a_named_request(proxy: Proxy, redis_server: RedisServer) -> None:
    """With given bytes, only the request that contains them loses its reply; others are answered."""
    lost = proxy.drop_next_reply(to=b"SET")
    with connected(proxy.port) as connection:
        connection.sendall(PING)
        assert received(connection, len(PONG)) == PONG
        connection.sendall(packed("SET", "k", "v"))
        assert is_cut(connection)
    assert lost.wait(PATIENCE)
    assert redis_server.command("GET", "k") == b"v"


@pytest.mark.parametrize("after", [1, 6])
def test_the_proxy_cuts_a_reply_in_two(proxy: Proxy, after: int) -> None:
    """The client gets so many bytes of the next reply and then the end, also when the reply comes in pieces."""
    done = proxy.cut_next_reply(after)
    with connected(proxy.port) as connection:
        connection.sendall(PING)
        assert received(connection, 100) == PONG[:after]
        assert done.wait(PATIENCE)
    cut_later = proxy.cut_next_reply(len(PONG) + 1)
    with connected(proxy.port) as connection:
        connection.sendall(PING)
        assert received(connection, len(PONG)) == PONG
        assert not cut_later.is_set()
        connection.sendall(PING)
        assert received(connection, 100) == PONG[:1]


def test_healing_forgets_planned_cuts(proxy: Proxy) -> None:
    """`heal` removes a planned cut that no request has met."""
    planned = proxy.drop_next_reply()
    proxy.heal()
    with connected(proxy.port) as connection:
        connection.sendall(PING)
        assert received(connection, len(PONG)) == PONG
    assert not planned.is_set()


def test_the_proxy_trickles(proxy: Proxy) -> None:
    """A slow reply comes one byte at a time, with the pause between, and complete."""
    proxy.trickle(3_600)
    with connected(proxy.port) as connection:
        connection.sendall(PING)
        assert connection.recv(100) == PONG[:1]
        connection.settimeout(0.1)
        with pytest.raises(TimeoutError):
            connection.recv(1)
    proxy.trickle(0.001)
    with connected(proxy.port) as connection:
        connection.sendall(PING)
        assert received(connection, len(PONG)) == PONG


def test_a_proxy_without_a_server_cuts(redis_server: RedisServer) -> None:
    """If no server listens behind it, the proxy closes the connection; when a server is back, it passes data on."""
    with Proxy(redis_server.port) as proxy:
        redis_server.kill()
        with connected(proxy.port) as connection:
            assert is_cut(connection)
        redis_server.restart()
        with connected(proxy.port) as connection:
            connection.sendall(PING)
            assert received(connection, len(PONG)) == PONG


def test_a_proxy_starts_anew_after_its_end(redis_server: RedisServer) -> None:
    """A stopped proxy neither listens nor takes commands; started again it has no faults."""
    proxy = Proxy(redis_server.port).start()
    proxy.black_hole()
    proxy.drop_next_reply()
    with connected(proxy.port) as connection:
        connection.sendall(PING)
        proxy.stop()
        assert is_cut(connection)
    proxy.stop()
    with pytest.raises(ConnectionRefusedError), connected(proxy.port):
        pass
    with pytest.raises(RuntimeError, match="not running"):
        proxy.cut()
    with proxy, connected(proxy.port) as connection:
        connection.sendall(PING)
        assert received(connection, len(PONG)) == PONG
