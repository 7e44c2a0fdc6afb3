"""The memcached backend's connections, its URL, and answers that break the protocol; servers are fakes."""

from __future__ import annotations

import select
import socket
import socketserver
import sys
import threading
from typing import TYPE_CHECKING, ClassVar

import pytest
from pymemcache.client.base import Client, PooledClient
from pymemcache.client.hash import HashClient

from tokencache.backends.memcached import MemcachedBackend, from_url
from tokencache.backends.memcached import _servers as _memcached_servers
from tokencache.backends.memcached._form import LARGEST
from tokencache.backends.memcached._wire import Item
from tokencache.errors import BackendClosed, BackendNotInstalled, BackendUnavailable, ConfigurationError
from tokencache.plugins import load_backend_factory
from tokencache.ports import LeaseGrant
from tokencache.url import BackendURL

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import BufferedIOBase

SECRET = "eyJhbGciOi.secret"


class Fake(socketserver.ThreadingTCPServer):
    """A server that greets and then answers every command with the same bytes, or not at all."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, answer: bytes) -> None:
        super().__init__(("127.0.0.1", 0), _Talk)
        self.answer = answer
        self.commands: list[bytes] = []
        self.connections = 0
        self.open: list[BufferedIOBase] = []

    @property
    def place(self) -> str:
        """Host and port."""
        return f"127.0.0.1:{self.server_address[1]}"


class _Talk(socketserver.StreamRequestHandler):
    """One connection to the fake."""

    server: Fake

    def handle(self) -> None:
        """Answer line by line; an empty answer closes the connection."""
        self.server.connections += 1
        self.server.open.append(self.wfile)
        while line := self.rfile.readline():
            self.server.commands.append(line)
            if line.startswith((b"add ", b"cas ", b"set ")):
                self.rfile.readline()  # the value line: an extra answer to it would desynchronize the connection
            if line == b"version\r\n":
                self.wfile.write(b"VERSION 1.6\r\n")
            elif not self.server.answer:
                return
            else:
                self.wfile.write(self.server.answer)


@pytest.fixture
def fake() -> Iterator[Fake]:
    """Run a fake of an empty store."""
    with Fake(b"END\r\n") as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), name="fake-memcached")
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def backend(fake: Fake) -> Iterator[MemcachedBackend]:
    """Connect to the fake."""
    made = MemcachedBackend(fake.place, timeout=5.0)
    yield made
    made.close()


# --- answers


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"ERROR\r\n",
        b"CLIENT_ERROR bad " + SECRET.encode() + b"\r\n",
        b"SERVER_ERROR out of memory " + SECRET.encode() + b"\r\n",
        b"SERVER_ERROR object too large for cache\r\n",
        SECRET.encode() + b"\r\n",
        b"VALUE " + SECRET.encode() + b" 0 1 7\r\nx\r\nEND\r\n",
        b"VALUE key 0 17\r\n" + SECRET.encode() + b"\r\nEND\r\n",
        b"VALUE key x y z\r\n",
        b"VALUE\r\n",
        b"\r\n",
        b"STORED\r\n",
    ],
    ids=range(12),
)
def test_a_nonsense_answer_is_an_outage_that_quotes_nothing(
    fake: Fake, backend: MemcachedBackend, answer: bytes
) -> None:
    """INV-9: a protocol error is BackendUnavailable, and does not quote the answer: it may hold another's token."""
    fake.answer = answer
    with pytest.raises(BackendUnavailable) as caught:
        backend.load("key")
    assert fake.place in str(caught.value)
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_a_nonsense_answer_replaces_the_connection(fake: Fake, backend: MemcachedBackend) -> None:
    """A connection that may be out of step is not used again."""
    fake.answer = b"STORED\r\n"
    with pytest.raises(BackendUnavailable):
        backend.load("key")
    fake.answer = b"END\r\n"
    assert backend.load("key") is None
    assert fake.connections == 2


def test_a_connection_with_unread_bytes_is_not_used_again(fake: Fake, backend: MemcachedBackend) -> None:
    """An unread answer would be taken for the next one."""
    assert backend.load("key") is None
    session = backend._servers.of("key")._idle[0]
    assert session.is_fresh()
    (connection,) = fake.open
    connection.write(b"VALUE key 0 1 7\r\nx\r\nEND\r\n")
    select.select([session._connection.sock], [], [])
    for _ in range(3):
        assert backend.load("key") is None
    assert fake.connections == 2


def test_two_answers_to_one_request_are_an_outage(fake: Fake, backend: MemcachedBackend) -> None:
    """If more comes than was asked for, the backend cannot know which answer is right."""
    fake.answer = b"END\r\nVALUE key 0 1 7\r\nx\r\nEND\r\n"
    with pytest.raises(BackendUnavailable, match="not memcached's protocol"):
        backend.load("key")
    fake.answer = b"END\r\n"
    assert backend.load("key") is None
    assert fake.connections == 2


def test_a_good_connection_is_used_again(fake: Fake, backend: MemcachedBackend) -> None:
    """Calls one after another share a connection, and no call is sent twice."""
    for _ in range(5):
        assert backend.load("key") is None
    assert fake.connections == 1
    assert fake.commands == [b"version\r\n", *[b"gets key\r\n"] * 5]


def test_an_old_connection_is_not_used_again(
    fake: Fake, backend: MemcachedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A firewall may have dropped a connection that was idle for long; a call on it would time out."""
    assert backend.load("key") is None
    monkeypatch.setattr(_memcached_servers, "_STALE", 0.0)
    assert backend.load("key") is None
    assert fake.connections == 2


def test_idle_connections_are_bounded(fake: Fake, backend: MemcachedBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """After many calls at once, only a few idle connections are kept."""
    monkeypatch.setattr(_memcached_servers, "_KEPT", 2)
    server = backend._servers.of("key")
    with server.session(), server.session(), server.session():
        pass
    assert len(server._idle) == 2


def test_a_server_without_cas_is_named(fake: Fake, backend: MemcachedBackend) -> None:
    """INV-2: without cas the server cannot compare, so the error names the reason at once."""
    fake.answer = b"VALUE key 0 1 0\r\nx\r\nEND\r\n"
    with pytest.raises(BackendUnavailable, match="-C"):
        backend.load("key")


def test_a_value_that_is_too_large_is_never_sent(fake: Fake, backend: MemcachedBackend) -> None:
    """A server that refuses a large value may have deleted the stored item before."""
    with pytest.raises(BackendUnavailable, match=str(LARGEST)):
        backend.commit(LeaseGrant("key", "a", 1, 3.0), b"x" * (LARGEST + 1), 60.0)
    assert not [line for line in fake.commands if not line.startswith((b"gets", b"version"))]


def test_every_write_requests_an_answer(fake: Fake, backend: MemcachedBackend) -> None:
    """With `noreply` every `add` would look like a granted lease."""
    fake.answer = b"STORED\r\n"
    with backend._servers.of("key").session() as session:
        assert session.add("key", b"", 1)
        assert session.replace("key", b"", Item(b"", b"7"), 1)
        assert session.delete("key", Item(b"", b"7"))
    commands = [line for line in fake.commands if line.startswith((b"add", b"cas"))]
    assert [line.split()[0] for line in commands] == [b"add", b"cas", b"cas"]
    assert not [line for line in commands if b"noreply" in line]


@pytest.mark.parametrize("answer", [b"NOT_STORED\r\n"])
def test_a_lease_request_that_always_loses_is_held(fake: Fake, backend: MemcachedBackend, answer: bytes) -> None:
    """A process that loses each time gets "held": the request ends, and it is not an outage."""
    answers = {b"gets": b"END\r\n", b"add ": answer}
    fake.answer = b""
    talk = _Talk.handle

    def alternate(self: _Talk) -> None:
        while line := self.rfile.readline():
            fake.commands.append(line)
            if line.startswith(b"add "):
                self.rfile.readline()
            self.wfile.write(b"VERSION 1\r\n" if line.startswith(b"version") else answers[line[:4]])

    _Talk.handle = alternate  # type: ignore[method-assign]
    try:
        reply = backend.lease("key", "a", "identity", None, 3.0)
    finally:
        _Talk.handle = talk  # type: ignore[method-assign]
    assert repr(reply) == "Held(remaining=0.05, cooldown=None)"


# --- the connection to the server


def test_a_refused_connection_is_an_outage() -> None:
    """A refused connection is BackendUnavailable and names the server."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        backend = MemcachedBackend(("127.0.0.1", taken.getsockname()[1]))
        with pytest.raises(BackendUnavailable, match=r"127\.0\.0\.1:\d+: it cannot be reached \(ConnectionRefused"):
            backend.load("key")


def test_a_server_that_does_not_answer_is_an_outage() -> None:
    """A server that does not answer costs one short time-out."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        backend = MemcachedBackend(silent.getsockname()[:2], timeout=0.05)
        with pytest.raises(BackendUnavailable, match="did not answer in time"):
            backend.load("key")


def test_a_host_that_does_not_resolve_is_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name without an address makes the backend unavailable."""

    def lookup(*_: object, **__: object) -> object:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    with pytest.raises(BackendUnavailable, match="gaierror"):
        MemcachedBackend("nowhere.invalid").load("key")


def resolve(monkeypatch: pytest.MonkeyPatch, *places: tuple[str, int]) -> None:
    """Make every name resolve to these addresses."""
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", place) for place in places]
    genuine = socket.getaddrinfo

    def lookup(host: str, *rest: object, **named: object) -> list[object]:
        return list(found if host == "name" else genuine(host, *rest, **named))  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)


def test_every_address_of_a_name_is_tried(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that listens on only one of a name's addresses is found: `localhost` is also `::1`."""
    port = fake.server_address[1]
    resolve(monkeypatch, ("127.0.0.2", port), ("127.0.0.1", port))
    backend = MemcachedBackend(("name", port))
    assert backend.load("key") is None
    backend.close()


def test_time_outs_do_not_add_up(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """INV-5: an address that does not answer ends the attempt, even if the name has more addresses."""
    port = fake.server_address[1]
    resolve(monkeypatch, ("127.0.0.2", port), ("127.0.0.1", port))
    with socket.create_server(("127.0.0.2", port)):
        backend = MemcachedBackend(("name", port), timeout=0.05)
        with pytest.raises(BackendUnavailable, match="did not answer in time"):
            backend.load("key")
    assert fake.connections == 0


def test_a_closed_backend_refuses_calls(fake: Fake, backend: MemcachedBackend) -> None:
    """A closed backend raises BackendClosed, and its connections are closed."""
    backend.load("key")
    backend.close()
    assert not backend._servers.of("key")._idle
    for call in (lambda: backend.load("key"), lambda: backend.wait("key", None, 0.0), lambda: backend.inspect("key")):
        with pytest.raises(BackendClosed):
            call()


def test_a_connection_in_use_at_close_is_closed_when_returned(fake: Fake, backend: MemcachedBackend) -> None:
    """A connection that returns to a closed backend is not kept."""
    server = backend._servers.of("key")
    with server.session():
        backend.close()
    assert not server._idle


# --- set-up


class Places:
    """The forms of ``servers`` that the constructor reads, and their meaning."""

    GOOD: ClassVar = [
        (None, ("localhost:11211",)),
        ("a", ("a:11211",)),
        ("a:1", ("a:1",)),
        (("a", 1), ("a:1",)),
        (["a:1", ("b", 2), "a:1"], ("a:1", "b:2")),
        ("[::1]:3", ("::1:3",)),
        ("/run/memcached.sock", ("/run/memcached.sock",)),
    ]


@pytest.mark.parametrize(("servers", "names"), Places.GOOD)
def test_servers_are_read(servers: list[str | tuple[str, int]] | str | None, names: tuple[str, ...]) -> None:
    """Servers are one or several, by name or pair; duplicates count once."""
    assert MemcachedBackend(servers)._servers.names == names


@pytest.mark.parametrize("servers", [[], "", [""], ["a:b"], ["a:0"], [None], [("a", 1, 2)], ("", 1), [("a", "1")], [1]])
def test_a_value_that_does_not_name_a_server_is_refused(servers: list[str]) -> None:
    """A wrong setting is a ConfigurationError at once."""
    with pytest.raises(ConfigurationError):
        MemcachedBackend(servers)


@pytest.mark.parametrize(("connect_timeout", "timeout"), [(0, 1), (1, 0), (-1, 1), (1, float("nan"))])
def test_a_timeout_must_be_positive(connect_timeout: float, timeout: float) -> None:
    """A time-out of zero or less, or one that is not a number, is refused."""
    with pytest.raises(ConfigurationError):
        MemcachedBackend(connect_timeout=connect_timeout, timeout=timeout)


@pytest.mark.parametrize(
    ("url", "names", "settings"),
    [
        ("memcached://", ("localhost:11211",), (0.5, 1.0)),
        ("memcached://a,b:2/", ("a:11211", "b:2"), (0.5, 1.0)),
        ("memcached://[::1]:3?timeout=2s&connect_timeout=100ms", ("::1:3",), (0.1, 2.0)),
        ("memcached:///run/memcached.sock", ("/run/memcached.sock",), (0.5, 1.0)),
    ],
)
def test_a_url_is_read(url: str, names: tuple[str, ...], settings: tuple[float, float]) -> None:
    """Hosts, ports and time-outs come from the URL."""
    backend = from_url(BackendURL.parse(url))
    assert backend._servers.names == names
    server = backend._servers.of("key")
    assert (server._settings["connect_timeout"], server._settings["timeout"]) == settings


@pytest.mark.parametrize(
    "url",
    [
        "memcached://user@a",
        "memcached://user:hidden@a",
        "memcached://a/path",
        "memcached://a?timeuot=1",
        "memcached://a?timeout=soon",
        "memcached://a?timeout=0",
    ],
)
def test_a_url_with_an_unsupported_part_is_refused(url: str) -> None:
    """An error names an unknown option, a password or a path, and never repeats a secret."""
    with pytest.raises(ConfigurationError) as caught:
        from_url(BackendURL.parse(url))
    assert "hidden" not in str(caught.value)


def test_a_missing_pymemcache_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error holds the install command of the missing client library."""
    monkeypatch.setitem(sys.modules, "pymemcache.client.base", None)
    url = BackendURL.parse("memcached://a")
    with pytest.raises(BackendNotInstalled, match=r"pip install 'tokencache\[memcached\]'"):
        load_backend_factory(url)(url)


def test_the_users_client_gives_its_settings() -> None:
    """Servers, prefix and time-outs are taken from the client, which is neither used nor closed."""
    for client in (Client(("a", 1), key_prefix=b"app:", timeout=7), PooledClient("a:1", key_prefix="app:", timeout=7)):
        backend = MemcachedBackend(client=client)
        server = backend._servers.of("key")
        assert backend._servers.names == ("a:1",)
        assert (server._settings["key_prefix"], server._settings["timeout"]) == (b"app:", 7)
        assert server._settings["connect_timeout"] == 0.5
        assert len(backend._names("k" * 238)[0]) < 100
        assert len(backend._names("k" * 237)[0]) == 237


def test_a_hash_clients_servers_keep_its_key_placement() -> None:
    """A record is on the server where the user's own client looks for it."""
    client = HashClient([("a", 1), ("b", 2), ("c", 3)])
    backend = MemcachedBackend(client=client)
    chosen = {key: backend._servers.of(key).name for key in map(str, range(50))}
    assert chosen == {key: client.hasher.get_node(key) for key in chosen}
    assert set(chosen.values()) == {"a:1", "b:2", "c:3"}


def test_the_order_of_the_servers_does_not_matter() -> None:
    """Two processes that list the same servers in another order agree on a record's server."""
    one, other = MemcachedBackend(["a:1", "b:2", "c:3"]), MemcachedBackend(["c:3", "a:1", "b:2"])
    assert [one._servers.of(str(n)).name for n in range(50)] == [other._servers.of(str(n)).name for n in range(50)]


@pytest.mark.parametrize("client", [object(), "a:1", 5])
def test_a_value_that_is_not_a_client_is_refused(client: object) -> None:
    """A client that is not pymemcache's is a ConfigurationError."""
    with pytest.raises(ConfigurationError, match="not a client of pymemcache"):
        MemcachedBackend(client=client)


def test_servers_beside_a_client_are_refused() -> None:
    """Only one of the two settings may name the servers."""
    with pytest.raises(ConfigurationError, match="either"):
        MemcachedBackend("a", client=Client(("a", 1)))


def test_the_repr_names_the_servers() -> None:
    """The repr names the servers, and no secret."""
    assert repr(MemcachedBackend(["a:1", "b:2"])) == "MemcachedBackend('a:1, b:2')"
