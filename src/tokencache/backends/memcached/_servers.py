"""Connections of the memcached backend to its servers, each used by one call at a time.

A call that is interrupted or fails closes its connection: the next command would otherwise read the old answer. No
command is repeated; the flow decides what to do about a failure.
"""

from __future__ import annotations

import select
import socket
import struct
import time
from collections import deque
from contextlib import suppress
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, ParamSpec, Protocol, Self, TypeVar, cast

from tokencache.backends._answers import AnswerSocket, TooLarge
from tokencache.backends._client_library import version_of
from tokencache.backends.memcached._form import DELETED, LARGEST
from tokencache.backends.memcached._wire import NoCas, Reader
from tokencache.errors import BackendUnavailable, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from tokencache.backends.memcached._wire import Item

    Spec = tuple[str, int] | str

P = ParamSpec("P")
T = TypeVar("T")

_KEPT: Final = 16  # idle connections to one server
_TIME_OUTS: Final = (TimeoutError, BlockingIOError)  # Python's, the kernel's
_STALE: Final = 30.0  # seconds after which a firewall or NAT may have dropped an idle connection


class Connection(Protocol):
    """The part of ``pymemcache.client.base.Client`` that is used."""

    sock: AnswerSocket | None

    def version(self) -> bytes:
        """Return the server's version."""
        ...

    def add(self, key: str, value: bytes, expire: int, noreply: bool) -> bool:
        """Store what is not there."""
        ...

    def cas(self, key: str, value: bytes, cas: bytes, expire: int, noreply: bool) -> bool | None:
        """Replace what has not changed."""
        ...

    def stats(self, *kinds: str) -> dict[bytes, object]:
        """Return the server's figures."""
        ...

    def close(self) -> None:
        """Close the socket."""
        ...


class Session:
    """A connection, and the commands on it for one call of the backend; a call that ends early closes it.

    A restarted server counts its cas from the start, so an old cas may match a new item. This is harmless: the restart
    also closed the connection, and the command fails.
    """

    __slots__ = ("_connection", "_idle_since", "_poller", "_server")

    def __init__(self, server: Server, connection: Connection) -> None:
        self._server = server
        self._connection = connection
        self._idle_since = 0.0
        self._poller = select.poll() if hasattr(select, "poll") else None  # eventlet takes it away
        if connection.sock is not None and self._poller is not None:
            self._poller.register(connection.sock, select.POLLIN)

    def __enter__(self) -> Self:
        """Return the session itself."""
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """Return the connection to the pool, or close it after any exception: an answer may be unread."""
        if kind is None:
            self._idle_since = time.monotonic()
            self._server.put_back(self)
        else:
            self._connection.close()

    def is_fresh(self) -> bool:
        """Return whether the connection is reusable: not idle for too long, not closed, no unread answer."""
        if time.monotonic() - self._idle_since >= _STALE or self._connection.sock is None:
            return False
        if self._poller is None:
            return not select.select([self._connection.sock], [], [], 0)[0]
        return not self._poller.poll(0)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def read(self, *names: str) -> dict[str, Item]:
        """Return those of several items that exist, in one round trip."""
        return self._server.answered(self._server.reader.gets, self._connection.sock, names)

    def add(self, name: str, data: bytes, expiry: int) -> bool:
        """Store an item if it does not exist; return whether it was stored."""
        self._require_room(data)
        return self._server.answered(self._connection.add, name, data, expire=expiry, noreply=False) is True

    def replace(self, name: str, data: bytes, item: Item, expiry: int) -> bool:
        """Replace ``item`` if it is unchanged; return whether it was."""
        self._require_room(data)
        cas = self._connection.cas
        return self._server.answered(cas, name, data, item.cas, expire=expiry, noreply=False) is True

    def delete(self, name: str, item: Item) -> bool:
        """Delete ``item`` if it is unchanged; return whether it was."""
        return self.replace(name, b"", item, DELETED)

    def figures(self, *kinds: str) -> dict[str, str]:
        """Return the server's statistics, the general ones or one kind, such as its settings."""
        found = self._server.answered(self._connection.stats, *kinds)
        return {name.decode(): text.decode() if isinstance(text, bytes) else str(text) for name, text in found.items()}

    def failure(self, why: str) -> BackendUnavailable:
        """Return the error to raise."""
        return self._server.failure(why)

    def _require_room(self, data: bytes) -> None:
        """Raise ``BackendUnavailable`` for a value that is too large: the server might drop the old item too."""
        if len(data) > LARGEST:
            why = f"a value of {len(data)} bytes is not sent; the limit is {LARGEST}"
            raise self.failure(why)


class Server:
    """One server, and the idle connections to it.

    ``name`` decides which keys the server has, so it must be the same for the whole fleet. ``settings`` are arguments
    of ``pymemcache.client.base.Client``; ``reader`` reads its answers.
    """

    def __init__(self, spec: Spec, settings: Mapping[str, object]) -> None:
        self.name = spec if isinstance(spec, str) else f"{spec[0]}:{spec[1]}"
        self._spec = spec
        self._settings = settings
        self.reader = Reader(prefix_of(settings))
        self._make = _client()
        self._closed = False
        self._idle: deque[Session] = deque()  # methods of a deque are atomic, so a lock is not needed

    def answered(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what a call of the client library returns; raises ``BackendUnavailable`` for any exception."""
        try:
            return call(*args, **kwargs)
        except TooLarge as error:
            meaning = str(error)
        except Exception as error:  # noqa: BLE001  (a KeyError of pymemcache may hold another key's value: INV-9)
            meaning = _meaning(error)
        raise self.failure(meaning)  # outside, so that the library's error is not chained to ours

    def failure(self, why: str) -> BackendUnavailable:
        """Return the error to raise."""
        return BackendUnavailable(f"memcached at {self.name}: {why}")

    def close(self) -> None:
        """Close the idle connections, and the others when their calls end."""
        self._closed = True
        self._drop_idle()

    def after_fork(self) -> None:
        """Let go of the parent's connections in the child of a fork; the parent keeps them."""
        self._drop_idle()

    def _drop_idle(self) -> None:
        while self._idle:
            try:
                session = self._idle.pop()
            except IndexError:  # another thread took the last one
                return
            session.close()

    def session(self) -> Session:
        """Return a reusable idle connection, or a new one, for one call."""
        while self._idle:
            try:
                session = self._idle.pop()
            except IndexError:
                break
            if session.is_fresh():
                return session
            session.close()
        return Session(self, self.answered(self._connect))

    def put_back(self, session: Session) -> None:
        """Keep a connection for the next call, if there is room."""
        if len(self._idle) >= _KEPT:
            session.close()
            return
        self._idle.append(session)
        if self._closed:
            self._drop_idle()

    def _connect(self) -> Connection:
        """Return a new connection to the first address that answers; a time-out ends the search."""
        refused: OSError | None = None
        for address in self._addresses():
            connection = self._make(address, **self._settings)
            try:
                connection.version()
            except BaseException as error:
                connection.close()
                if not isinstance(error, OSError) or isinstance(error, _TIME_OUTS):
                    raise
                refused = error
            else:
                return connection
        raise refused or OSError

    def _addresses(self) -> Sequence[Spec]:
        """Return the addresses to try: pymemcache itself tries only the first address of a name."""
        if isinstance(self._spec, str) or self._settings.get("tls_context") is not None:
            return [self._spec]  # TLS checks the name
        found = socket.getaddrinfo(*self._spec, type=socket.SOCK_STREAM)
        return list(dict.fromkeys((str(address[0]), self._spec[1]) for *_, address in found))


@cache
def _client() -> Callable[..., Connection]:
    """Return pymemcache's client with a time-out for whole answers, from the first command on."""
    kind: Any = import_module("pymemcache.client.base").Client

    class Client(kind):  # type: ignore[misc]
        sock: Any
        timeout: float | None

        def _connect(self) -> None:
            kind._connect(self)  # noqa: SLF001  (not super(), to keep the type Any)
            _let_the_kernel_time(self.sock, self.timeout)
            self.sock = AnswerSocket(self.sock, self.timeout)

    return cast("Callable[..., Connection]", Client)


def _let_the_kernel_time(sock: socket.socket, timeout: object) -> None:
    """Set the time-out in the kernel: with a time-out of Python, each read takes two system calls."""
    plain = type(sock).__module__ == "socket"  # TLS waits by itself, and so do the sockets of gevent and eventlet
    if plain and isinstance(timeout, float | int):
        span = struct.pack("@ll", int(timeout), int(timeout % 1 * 1e6))
        sock.settimeout(None)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, span)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, span)


class Servers:
    """All servers. A key stays on its server, also while that server is down.

    If keys moved to another server meanwhile, two processes could hold one lease, one on each server.
    """

    def __init__(self, specs: Sequence[Spec], settings: Mapping[str, object]) -> None:
        self._servers = {server.name: server for server in (Server(spec, settings) for spec in specs)}
        self._only = next(iter(self._servers.values())) if len(self._servers) == 1 else None
        hashing = import_module("pymemcache.client.rendezvous").RendezvousHash
        self._choose = cast("Callable[[str], str]", hashing(list(self._servers)).get_node)

    @property
    def names(self) -> tuple[str, ...]:
        """The servers, for messages."""
        return tuple(self._servers)

    def of(self, name: str) -> Server:
        """Return the server that has the record of this name, and its lock."""
        return self._only or self._servers[self._choose(name)]

    def __iter__(self) -> Iterator[Server]:
        """Yield each server."""
        return iter(self._servers.values())

    def close(self) -> None:
        """Close all connections."""
        for server in self._servers.values():
            server.close()

    def after_fork(self) -> None:
        """Let go of the parent's connections in the child of a fork."""
        for server in self._servers.values():
            server.after_fork()


def check_library() -> None:
    """Raise ``BackendNotInstalled`` if pymemcache is too old."""
    version_of("pymemcache", extra="memcached")


def read_servers(servers: Iterable[Spec] | Spec | None) -> list[Spec]:
    """Return the addresses of the servers; raises ``ConfigurationError`` for an unusable entry."""
    read = cast("Callable[[object], Spec]", import_module("pymemcache.client.base").normalize_server_spec)
    given: object = "localhost" if servers is None else servers
    chosen = [given] if isinstance(given, str) or _is_place(given) else list(cast("Iterable[object]", given))
    specs: list[Spec] = []
    with suppress(ValueError):
        specs = [read(server) for server in chosen]
    if not specs or not all(map(_is_place, specs)):
        message = (
            "MemcachedBackend: servers are 'host:port' or (host, port), one or several, or '/path/of/a/socket'; "
            "at least one"
        )
        raise ConfigurationError(message)
    return list(dict.fromkeys(specs))


def settings_of(client: object) -> tuple[list[Spec], dict[str, object]]:
    """Return the servers and the settings of the user's pymemcache client."""
    clients: list[Any] = list(getattr(client, "clients", {}).values()) or [client]
    try:
        specs = [cast("Spec", each.server) for each in clients]
        names = ("socket_module", "socket_keepalive", "key_prefix", "tls_context", "connect_timeout", "timeout")
        settings = {name: value for name in names if (value := getattr(clients[0], name)) is not None}
    except AttributeError:
        specs, settings = [], {}
    if not specs:
        message = (
            f"MemcachedBackend(client=…): {type(client).__name__} is not a client of pymemcache; "
            "give a Client, PooledClient or HashClient"
        )
        raise ConfigurationError(message)
    return specs, settings


def _is_place(spec: object) -> bool:
    """Return whether this is the path of a socket, or a host with a port."""
    match spec:
        case str():
            return spec.startswith("/")
        case (str(host), int(port)):
            return host != "" and 0 < port < 1 << 16
        case _:
            return False


def prefix_of(settings: Mapping[str, object]) -> bytes:
    """Return the client's key prefix."""
    prefix = settings.get("key_prefix")
    return prefix if isinstance(prefix, bytes) else b""


def _meaning(error: Exception) -> str:
    """Return the cause of a failure, without the text of the library's error, which may hold a value (INV-9)."""
    name = type(error).__name__
    if isinstance(error, _TIME_OUTS):
        return "it did not answer in time"
    if isinstance(error, OSError):
        return f"it cannot be reached ({name})"
    if isinstance(error, NoCas):
        return "it was started with -C, which takes cas away; start it without"
    if name == "MemcacheUnexpectedCloseError":
        return "it closed the connection"
    if name == "MemcacheServerError":
        return "it refused the command: it is out of memory, or its items are too small (its options -m and -I)"
    return f"its answer is not memcached's protocol ({name}); the connection was dropped"
