"""Which clients of the user's own the Redis backend takes, and whose errors it knows."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from redis import Redis, RedisCluster
from redis import exceptions as redis_errors
from valkey import Valkey, ValkeyCluster
from valkey import exceptions as valkey_errors
from valkey.asyncio import Valkey as AsyncValkey

from tokencache.backends.redis import RedisBackend
from tokencache.backends.redis._library import Library, UnknownScript
from tokencache.errors import BackendUnavailable, ConfigurationError

BOTH = [("redis", redis_errors), ("valkey", valkey_errors)]


class GlideClient:
    """A client of a library that is not known here."""

    def get(self, key: str) -> bytes:
        """Return a value."""
        return key.encode()


class Traced:
    """The proxy of a tracer: it says that it is what it stands for."""

    def __init__(self, client: object) -> None:
        self._client = client

    def __getattr__(self, name: str) -> object:
        """Return what the client has."""
        return getattr(self._client, name)

    @property
    def __class__(self) -> type:  # type: ignore[override]  # as wrapt's ObjectProxy does
        """The class of the client."""
        return type(self._client)


class Own(Valkey):
    """A subclass of a user's."""


@pytest.mark.parametrize("client", [GlideClient(), object(), {}, "redis://localhost", AsyncValkey()])
def test_any_other_client_is_refused_at_once(client: object) -> None:
    """A client that cannot work is an error when the backend is made, not a fleet that shares nothing."""
    with pytest.raises(ConfigurationError, match=r"give a redis\.Redis"):
        RedisBackend(client=client)


@pytest.mark.parametrize(
    ("client", "name"),
    [
        (Redis(), "redis"),
        (Valkey(), "valkey"),
        (Own(), "valkey"),
        (Traced(Valkey()), "valkey"),
        (Traced(Redis()), "redis"),
    ],
    ids=["redis-py", "valkey-py", "a subclass", "a traced valkey-py", "a traced redis-py"],
)
def test_a_client_tells_its_library(client: object, name: str) -> None:
    """The class decides, not its subclass or its proxy."""
    assert Library.of(client).name == name
    assert RedisBackend(client=client)._library.version.startswith(f"{name}-py ")


def test_a_server_that_is_gone_is_unavailable_by_valkey_py_too(unused_port: int) -> None:
    """An error of valkey-py becomes ours, as one of redis-py does."""
    backend = RedisBackend(client=Valkey("127.0.0.1", unused_port))
    with pytest.raises(BackendUnavailable, match="redis at the given client's server"):
        backend.load("k")


@pytest.mark.parametrize(("name", "errors"), BOTH)
def test_the_errors_of_each_library_are_told_apart(name: str, errors: object) -> None:
    """An unknown script is sent again by its text, another refusal is raised, and both leave the nodes as they are."""
    library = Library.named(name)
    unknown, refused, moved, gone = (
        getattr(errors, kind)("1 a:2") for kind in ("NoScriptError", "ResponseError", "MovedError", "ConnectionError")
    )
    assert library.checked([b"a", None, 1]) == [b"a", None, 1]
    with pytest.raises(UnknownScript):
        library.checked([unknown])
    with pytest.raises(type(refused)):
        library.checked([b"a", refused])
    assert [library.is_of_topology(error) for error in (refused, moved, gone)] == [False, True, True]
    for error in (unknown, refused, moved, gone, OSError()):
        assert isinstance(error, library.failures)


@pytest.mark.parametrize(("kind", "name"), [(RedisCluster, "redis"), (ValkeyCluster, "valkey")])
def test_a_cluster_lends_by_the_method_of_its_library(kind: type, name: str) -> None:
    """The method that lends a node's connection is named after the library."""
    method = f"get_{name}_connection"
    assert callable(getattr(kind, method))
    lends = {method: lambda node: SimpleNamespace(connection_pool=f"pool of {node}")}
    client = SimpleNamespace(get_node_from_key=lambda key: f"node of {key}", **lends)
    assert Library.named(name).pool(client, "k", cluster=True) == "pool of node of k"
