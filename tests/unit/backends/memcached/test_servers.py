"""How the memcached backend treats its connections, its URL and answers that make no sense; servers are fakes."""

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
        """Answer line by line; no answer at all closes the connection."""
        self.server.connections += 1
        self.server.open.append(self.wfile)
        while line := self.rfile.readline():
            self.server.commands.append(line)
            if line.startswith((b"add ", b"cas ", b"set ")):
                self.rfile.readline()  # the value: a second answer for it would put the connection out of step
            if line == b"version\r\n":
                self.wfile.write(b"VERSION 1.6\r\n")
            elif not self.server.answer:
                return
            else:
                self.wfile.write(self.server.answer)


@pytest.fixture
def fake() -> Iterator[Fake]:
    """Run a fake that has nothing stored."""
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
def test_an_answer_without_sense_is_an_outage_that_quotes_nothing(
    fake: Fake, backend: MemcachedBackend, answer: bytes
) -> None:
    """INV-9: a mix-up of the protocol is BackendUnavailable; its text, which may be another's token, is nowhere."""
    fake.answer = answer
    with pytest.raises(BackendUnavailable) as caught:
        backend.load("key")
    assert fake.place in str(caught.value)
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_after_an_answer_without_sense_the_connection_is_another(fake: Fake, backend: MemcachedBackend) -> None:
    """A connection that may be out of step is not used again."""
    fake.answer = b"STORED\r\n"
    with pytest.raises(BackendUnavailable):
        backend.load("key")
    fake.answer = b"END\r\n"
    assert backend.load("key") is None
    assert fake.connections == 2


def test_a_connection_on_which_something_was_left_is_not_used_again(fake: Fake, backend: MemcachedBackend) -> None:
    """An answer that nobody has read would be taken for the next one."""
    assert backend.load("key") is None
    session = backend._servers.of("key")._idle[0]
    assert session.is_fresh()
    (connection,) = fake.open
    connection.write(b"VALUE key 0 1 7\r\nx\r\nEND\r\n")
    select.select([session._connection.sock], [], [])
    for _ in range(3):
        assert backend.load("key") is None
    assert fake.connections == 2


def test_two_answers_to_one_question_are_none(fake: Fake, backend: MemcachedBackend) -> None:
    """Where more comes than was asked for, nobody knows which of the two is the answer."""
    fake.answer = b"END\r\nVALUE key 0 1 7\r\nx\r\nEND\r\n"
    with pytest.raises(BackendUnavailable, match="not memcached's protocol"):
        backend.load("key")
    fake.answer = b"END\r\n"
    assert backend.load("key") is None
    assert fake.connections == 2


def test_a_good_connection_is_used_again(fake: Fake, backend: MemcachedBackend) -> None:
    """Calls one after the other share a connection, and none of them is sent twice."""
    for _ in range(5):
        assert backend.load("key") is None
    assert fake.connections == 1
    assert fake.commands == [b"version\r\n", *[b"gets key\r\n"] * 5]


def test_an_old_connection_is_not_used_again(
    fake: Fake, backend: MemcachedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was idle for long may have been forgotten on its way, and would only time out."""
    assert backend.load("key") is None
    monkeypatch.setattr(_memcached_servers, "_STALE", 0.0)
    assert backend.load("key") is None
    assert fake.connections == 2


def test_few_idle_connections_are_kept(fake: Fake, backend: MemcachedBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crowd that has gone leaves no crowd of connections behind."""
    monkeypatch.setattr(_memcached_servers, "_KEPT", 2)
    server = backend._servers.of("key")
    with server.session(), server.session(), server.session():
        pass
    assert len(server._idle) == 2


def test_a_server_without_cas_is_named(fake: Fake, backend: MemcachedBackend) -> None:
    """INV-2: where cas is switched off nothing could be compared, so the reason is said at once."""
    fake.answer = b"VALUE key 0 1 0\r\nx\r\nEND\r\n"
    with pytest.raises(BackendUnavailable, match="-C"):
        backend.load("key")


def test_a_value_that_is_too_large_is_never_sent(fake: Fake, backend: MemcachedBackend) -> None:
    """A server that refuses a value may have dropped the item before."""
    with pytest.raises(BackendUnavailable, match=str(LARGEST)):
        backend.commit(LeaseGrant("key", "a", 1, 3.0), b"x" * (LARGEST + 1), 60.0)
    assert not [line for line in fake.commands if not line.startswith((b"gets", b"version"))]


def test_every_write_asks_for_an_answer(fake: Fake, backend: MemcachedBackend) -> None:
    """With `noreply` every `add` would look like the lease."""
    fake.answer = b"STORED\r\n"
    with backend._servers.of("key").session() as session:
        assert session.add("key", b"", 1)
        assert session.replace("key", b"", Item(b"", b"7"), 1)
        assert session.delete("key", Item(b"", b"7"))
    commands = [line for line in fake.commands if line.startswith((b"add", b"cas"))]
    assert [line.split()[0] for line in commands] == [b"add", b"cas", b"cas"]
    assert not [line for line in commands if b"noreply" in line]


@pytest.mark.parametrize("answer", [b"NOT_STORED\r\n"])
def test_a_lease_that_others_always_get_first_is_held(fake: Fake, backend: MemcachedBackend, answer: bytes) -> None:
    """Whoever loses again and again is told to wait; it is no outage, and it ends."""
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


# --- reaching it


def test_a_server_that_is_not_there_is_an_outage() -> None:
    """A refused connection is BackendUnavailable and names the server."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        backend = MemcachedBackend(("127.0.0.1", taken.getsockname()[1]))
        with pytest.raises(BackendUnavailable, match=r"127\.0\.0\.1:\d+: it cannot be reached \(ConnectionRefused"):
            backend.load("key")


def test_a_server_that_does_not_answer_is_an_outage() -> None:
    """A black hole costs one short time-out."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        backend = MemcachedBackend(silent.getsockname()[:2], timeout=0.05)
        with pytest.raises(BackendUnavailable, match="did not answer in time"):
            backend.load("key")


def test_a_name_that_nobody_knows_is_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that cannot be resolved is not reached."""

    def lookup(*_: object, **__: object) -> object:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    with pytest.raises(BackendUnavailable, match="gaierror"):
        MemcachedBackend("nowhere.invalid").load("key")


def resolve(monkeypatch: pytest.MonkeyPatch, *places: tuple[str, int]) -> None:
    """Let every name have these addresses."""
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", place) for place in places]
    genuine = socket.getaddrinfo

    def lookup(host: str, *rest: object, **named: object) -> list[object]:
        return list(found if host == "name" else genuine(host, *rest, **named))  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)


def test_every_address_of_a_name_is_tried(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that listens on only one of a name's addresses is found: `localhost` is `::1` as well."""
    port = fake.server_address[1]
    resolve(monkeypatch, ("127.0.0.2", port), ("127.0.0.1", port))
    backend = MemcachedBackend(("name", port))
    assert backend.load("key") is None
    backend.close()


def test_time_outs_are_not_added_up(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """INV-5: an address that swallows all is the end of the attempt, however many more a name has."""
    port = fake.server_address[1]
    resolve(monkeypatch, ("127.0.0.2", port), ("127.0.0.1", port))
    with socket.create_server(("127.0.0.2", port)):
        backend = MemcachedBackend(("name", port), timeout=0.05)
        with pytest.raises(BackendUnavailable, match="did not answer in time"):
            backend.load("key")
    assert fake.connections == 0


def test_after_close_everything_says_so(fake: Fake, backend: MemcachedBackend) -> None:
    """A closed backend raises BackendClosed, and its connections are closed."""
    backend.load("key")
    backend.close()
    assert not backend._servers.of("key")._idle
    for call in (lambda: backend.load("key"), lambda: backend.wait("key", None, 0.0), lambda: backend.inspect("key")):
        with pytest.raises(BackendClosed):
            call()


def test_a_connection_in_use_at_close_is_closed_after_it(fake: Fake, backend: MemcachedBackend) -> None:
    """What comes back to a closed backend is not kept."""
    server = backend._servers.of("key")
    with server.session():
        backend.close()
    assert not server._idle


# --- setting up


class Places:
    """What the constructor understands, and what it means."""

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
    """One or several, by name or pair, each once."""
    assert MemcachedBackend(servers)._servers.names == names


@pytest.mark.parametrize("servers", [[], "", [""], ["a:b"], ["a:0"], [None], [("a", 1, 2)], ("", 1), [("a", "1")], [1]])
def test_what_says_no_place_is_refused(servers: list[str]) -> None:
    """A mistake in the set-up is a ConfigurationError at once."""
    with pytest.raises(ConfigurationError):
        MemcachedBackend(servers)


@pytest.mark.parametrize(("connect_timeout", "timeout"), [(0, 1), (1, 0), (-1, 1), (1, float("nan"))])
def test_a_timeout_is_more_than_nothing(connect_timeout: float, timeout: float) -> None:
    """Zero would mean never to wait, and no time-out is not offered."""
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
def test_a_url_that_asks_for_what_there_is_not_is_refused(url: str) -> None:
    """An unknown option, a password, a path: each is said to be wrong, and no secret is repeated."""
    with pytest.raises(ConfigurationError) as caught:
        from_url(BackendURL.parse(url))
    assert "hidden" not in str(caught.value)


def test_without_pymemcache_the_line_to_install_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """The URL of a backend whose client library is missing names the extra."""
    monkeypatch.setitem(sys.modules, "pymemcache.client.base", None)
    url = BackendURL.parse("memcached://a")
    with pytest.raises(BackendNotInstalled, match=r"pip install 'tokencache\[memcached\]'"):
        load_backend_factory(url)(url)


def test_a_client_of_the_users_lends_its_settings() -> None:
    """Servers, prefix and time-outs are the client's, which is neither used nor closed."""
    for client in (Client(("a", 1), key_prefix=b"app:", timeout=7), PooledClient("a:1", key_prefix="app:", timeout=7)):
        backend = MemcachedBackend(client=client)
        server = backend._servers.of("key")
        assert backend._servers.names == ("a:1",)
        assert (server._settings["key_prefix"], server._settings["timeout"]) == (b"app:", 7)
        assert server._settings["connect_timeout"] == 0.5
        assert len(backend._names("k" * 242)[0]) < 100
        assert len(backend._names("k" * 241)[0]) == 241


def test_the_servers_of_a_hash_client_have_the_same_keys_as_there() -> None:
    """A record lies where the user's own client looks for it."""
    client = HashClient([("a", 1), ("b", 2), ("c", 3)])
    backend = MemcachedBackend(client=client)
    chosen = {key: backend._servers.of(key).name for key in map(str, range(50))}
    assert chosen == {key: client.hasher.get_node(key) for key in chosen}
    assert set(chosen.values()) == {"a:1", "b:2", "c:3"}


def test_the_order_of_the_servers_does_not_matter() -> None:
    """Two processes that list the same servers differently agree where a record is."""
    one, other = MemcachedBackend(["a:1", "b:2", "c:3"]), MemcachedBackend(["c:3", "a:1", "b:2"])
    assert [one._servers.of(str(n)).name for n in range(50)] == [other._servers.of(str(n)).name for n in range(50)]


@pytest.mark.parametrize("client", [object(), "a:1", 5])
def test_what_is_no_client_is_refused(client: object) -> None:
    """Something else than a client of pymemcache is a ConfigurationError."""
    with pytest.raises(ConfigurationError, match="not a client of pymemcache"):
        MemcachedBackend(client=client)


def test_servers_and_a_client_are_too_much() -> None:
    """One of the two says where the servers are."""
    with pytest.raises(ConfigurationError, match="either"):
        MemcachedBackend("a", client=Client(("a", 1)))


def test_the_repr_names_the_servers() -> None:
    """It says where it is, and has nothing to hide."""
    assert repr(MemcachedBackend(["a:1", "b:2"])) == "MemcachedBackend('a:1, b:2')"
