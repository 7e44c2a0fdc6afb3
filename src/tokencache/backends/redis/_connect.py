"""Connections of the Redis backend: one server, a socket file, Sentinel, a Cluster; for threads and for event loops.

Every client that is made here has short time-outs and no retries, because the flow decides what to do about a failure.
It speaks RESP2 and sends no client information, so connecting takes one round trip.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from ssl import CERT_NONE, TLSVersion
from typing import TYPE_CHECKING, Any, Final

from tokencache._engine.launcher import on_thread
from tokencache.backends._client_library import version_of
from tokencache.backends.redis._protocol import LONGEST_BLOCK, misused

if TYPE_CHECKING:
    from tokencache.url import BackendURL

OPTIONS: Final[dict[str, Any]] = {
    "timeout": "duration",
    "connect_timeout": "duration",
    "waiters": int,
    "db": int,
    "ssl_ca_certs": str,
    "ssl_ca_data": str,
    "ssl_cert_reqs": str,
    "ssl_certfile": str,
    "ssl_check_hostname": bool,
    "ssl_ciphers": str,
    "ssl_keyfile": str,
    "ssl_min_version": int,
    "sentinel_username": str,
    "sentinel_password": str,
}
_LOGIN: Final = ("username", "password")
MOST_CONNECTIONS: Final = 64
"""How many commands an event loop sends at once; the others wait for their turn."""
_PORT: Final = 6379
_SENTINEL_PORT: Final = 26379


@dataclass(frozen=True, slots=True)
class Target:
    """The servers, and the settings of a connection. The repr holds no password."""

    scheme: str
    hosts: tuple[tuple[str, int], ...]
    service: str = ""
    path: str = ""
    timeout: float = 1.0
    connect_timeout: float = 0.5
    waiters: int = 32
    settings: dict[str, Any] = field(default_factory=dict[str, Any], repr=False)
    sentinel: dict[str, Any] = field(default_factory=dict[str, Any], repr=False)

    @property
    def cluster(self) -> bool:
        """Whether the servers are a Redis Cluster."""
        return self.scheme == "redis+cluster"

    @property
    def where(self) -> str:
        """The servers, for messages."""
        return self.path or ",".join(f"{host}:{port}" for host, port in self.hosts)

    def arguments(self, *, waiting: bool) -> dict[str, Any]:
        """Return the arguments of a connection; one for waiting has a time-out beyond the longest blocking read."""
        return {
            **self.settings,
            "socket_timeout": self.timeout + (LONGEST_BLOCK if waiting else 0),
            "socket_connect_timeout": self.connect_timeout,
            "protocol": 2,
        }


def target_of(url: BackendURL) -> Target:
    """Read the URL of a Redis backend. Raises ``ConfigurationError``."""
    options: dict[str, Any] = dict(url.typed_options(OPTIONS))
    sentinel = {name: options.pop(f"sentinel_{name}") for name in _LOGIN if f"sentinel_{name}" in options}
    tls = {name: options.pop(name) for name in list(options) if name.startswith("ssl_")}
    settings: dict[str, Any] = {name: value for name in _LOGIN if (value := getattr(url, name))}
    if url.scheme == "rediss" or tls:
        settings |= {"ssl": True, **_checked_tls(tls)}
    service, socket, database = _path(url, options.pop("db", 0))
    if database:
        if url.scheme == "redis+cluster":
            raise misused(option="db", value=database, remedy="a cluster has no databases")
        settings["db"] = database
    if options.get("waiters", 0) < 0:
        raise misused(
            option="waiters", value=options["waiters"], remedy="give the number of connections for waiting, 0 or more"
        )
    for name in ("timeout", "connect_timeout"):
        if options.get(name, 1) <= 0:
            raise misused(option=name, value=options[name], remedy="give more than 0 seconds")
    return Target(url.scheme, _hosts(url), service, socket, settings=settings, sentinel=sentinel, **options)


def _checked_tls(options: dict[str, Any]) -> dict[str, Any]:
    """Return the TLS options as both halves of redis-py take them."""
    if "ssl_cert_reqs" in options:
        given = options["ssl_cert_reqs"]
        reqs = given.lower().removeprefix("cert_")  # redis-py says "none", and Celery says "CERT_NONE" too
        if reqs not in {"none", "optional", "required"}:
            raise misused(option="ssl_cert_reqs", value=given, remedy="give none, optional or required")
        options |= {"ssl_cert_reqs": reqs} | ({"ssl_check_hostname": False} if reqs == "none" else {})
    if "ssl_min_version" in options:
        try:
            options["ssl_min_version"] = TLSVersion(options["ssl_min_version"])
        except ValueError:
            remedy = "give 771 for TLS 1.2 or 772 for TLS 1.3, as redis-py does"
            raise misused(option="ssl_min_version", value=options["ssl_min_version"], remedy=remedy) from None
    return options


def _path(url: BackendURL, database: int) -> tuple[str, str, int]:
    """Return what the path of the URL gives: the service, the socket, the database."""
    if url.scheme == "unix":
        if not url.path.strip("/"):
            raise misused(
                option="path",
                value=url.path,
                remedy="name the server's socket, as in unix:///run/redis/redis.sock?db=0",
            )
        return "", url.path, database
    service, number = "", url.path.strip("/")
    if url.scheme == "redis+sentinel":
        service, _, number = number.partition("/")
        if not service:
            raise misused(
                option="path",
                value=url.path,
                remedy="name the master, as in redis+sentinel://host1:26379,host2:26379/mymaster",
            )
    if number and not (number.isascii() and number.isdigit()):
        raise misused(
            option="path", value=number, remedy="give the number of a database, as in redis://localhost:6379/0"
        )
    return service, "", int(number or database)


def _hosts(url: BackendURL) -> tuple[tuple[str, int], ...]:
    """Return the servers with their ports."""
    if url.scheme == "unix":
        return ()
    if len(url.hosts) > 1 and url.scheme in {"redis", "rediss"}:
        raise misused(
            option="hosts", value=len(url.hosts), remedy="several of them take redis+sentinel:// or redis+cluster://"
        )
    usual = _SENTINEL_PORT if url.scheme == "redis+sentinel" else _PORT
    return tuple((host, port or usual) for host, port in url.hosts) or (("localhost", usual),)


def settings_of(client: Any) -> dict[str, Any]:
    """Return the settings of the connections of a client that was passed in."""
    cluster = getattr(client, "get_connection_kwargs", None)
    settings: dict[str, Any] = client.connection_pool.connection_kwargs if cluster is None else cluster()
    return settings


def is_unverified(settings: dict[str, Any]) -> bool:
    """Return whether connections with these settings accept any certificate of their server."""
    return settings.get("ssl_cert_reqs", "required") in {"none", None, CERT_NONE}


def check_library() -> None:
    """Raise ``BackendNotInstalled`` if redis-py is too old."""
    version_of("redis", extra="redis")


def _silent() -> dict[str, None]:
    """Return the arguments that turn off client information, which costs a round trip per connection."""
    named = version_of("redis", extra="redis") >= (7, 2)
    return dict.fromkeys(["driver_info"] if named else ["lib_name", "lib_version"])


def connect(target: Target, library: str, *, waiting: bool) -> Any:
    """Return a client that connects when it is first used; ``library`` is ``redis`` or ``redis.asyncio``."""
    client = _client(target, library, waiting=waiting)
    if library == "redis.asyncio" and "ssl" in target.settings:
        made: list[Any] = []
        if target.cluster:
            kind = _preparing(client.connection_kwargs["connection_class"], made)
            client.connection_kwargs["connection_class"] = kind  # of the nodes that the cluster will name
            for node in client.nodes_manager.startup_nodes.values():
                node.connection_class = kind
        else:
            pools = [client.connection_pool]
            if target.scheme == "redis+sentinel":
                pools += [each.connection_pool for each in pools[0].sentinel_manager.sentinels]
            for pool in pools:
                pool.connection_class = _preparing(pool.connection_class, made)
    return client


def _preparing(kind: Any, made: list[Any]) -> Any:
    """Return the class of TLS connections with its certificates read on a thread, once: redis-py does so each time.

    ``made`` holds the TLS settings when they are known; all connections of a client have the same.
    """

    class Preparing(kind):  # type: ignore[misc]
        async def connect(self) -> None:
            if not self.is_connected and self.ssl_context.context is None:
                self.ssl_context.context = made[0] if made else await on_thread(self.ssl_context.get)
                made.append(self.ssl_context.context)
            await kind.connect(self)

    return Preparing


def _client(target: Target, library: str, *, waiting: bool) -> Any:
    """Return the client of redis-py."""
    kinds = {name: import_module(f"{library}.{name}") for name in ("client", "cluster", "retry", "sentinel")}
    once = kinds["retry"].Retry(import_module("redis.backoff").NoBackoff(), 0)
    arguments = {**target.arguments(waiting=waiting), "retry": once, **_silent()}
    arguments["max_connections"] = target.waiters if waiting else MOST_CONNECTIONS
    if target.scheme == "redis+sentinel":
        first = {name: arguments[name] for name in ("socket_connect_timeout", "protocol", "retry")}
        first |= {name: value for name, value in target.settings.items() if name.startswith("ssl")}
        first |= {"socket_timeout": target.timeout, **target.sentinel}
        sentinels = kinds["sentinel"].Sentinel(list(target.hosts), sentinel_kwargs=first, **arguments)
        return sentinels.master_for(target.service)
    if target.cluster:
        nodes = [kinds["cluster"].ClusterNode(host, port) for host, port in target.hosts]
        return kinds["cluster"].RedisCluster(startup_nodes=nodes, **arguments)
    if target.path:
        return kinds["client"].Redis(unix_socket_path=target.path, **arguments)
    ((host, port),) = target.hosts
    return kinds["client"].Redis(host=host, port=port, **arguments)
