"""The client libraries of the Redis backend: redis-py, and valkey-py for a client of the user's own."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final, Self

from tokencache.errors import ConfigurationError

_NAMES: Final = {"redis": "Redis", "valkey": "Valkey"}


class UnknownScript(Exception):
    """The server does not know the script."""


@dataclass(frozen=True, slots=True)
class Library:
    """The exceptions of a client library; valkey-py is a fork of redis-py and differs in names only."""

    name: str
    failures: tuple[type[Exception], ...]
    refusal: type[Exception]
    unknown_script: type[Exception]
    moved: type[Exception]

    @classmethod
    def named(cls, name: str) -> Self:
        """Return ``redis`` or ``valkey``, which must be installed."""
        errors: Any = import_module(f"{name}.exceptions")
        base, cluster = (getattr(errors, f"{_NAMES[name]}{kind}") for kind in ("Error", "ClusterException"))
        failures = (base, cluster, OSError)  # the second is not a subclass of the first
        return cls(name, failures, errors.ResponseError, errors.NoScriptError, errors.MovedError)

    @classmethod
    def of(cls, client: object) -> Self:
        """Return the library of a client for threads. Raises ``ConfigurationError`` for any other object."""
        mro = client.__class__.__mro__  # not that of ``type(client)``, which may be a tracer's proxy
        kinds = {f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in mro}
        for name, kind in _NAMES.items():
            if kinds & {f"{name}.{kind}", f"{name}.{kind}Cluster"}:
                return cls.named(name)
        message = (
            f"RedisBackend(client=…): {type(client).__name__} is not a client of redis-py or valkey-py;"
            " give a redis.Redis or a valkey.Valkey, or name the server by its URL"
        )
        raise ConfigurationError(message)

    @property
    def version(self) -> str:
        """Name and version, for messages."""
        return f"{self.name}-py {import_module(self.name).__version__}"

    def is_of_topology(self, error: Exception) -> bool:
        """Return whether a failure may mean that nodes or slots of a cluster have moved."""
        return isinstance(error, self.moved) or not isinstance(error, self.refusal)

    def checked(self, replies: list[Any]) -> list[Any]:
        """Return the replies, or raise the first error among them."""
        for reply in replies:
            if isinstance(reply, self.unknown_script):
                raise UnknownScript(str(reply))
            if isinstance(reply, self.refusal):
                raise reply
        return replies

    def pool(self, client: Any, key: str, *, cluster: bool) -> Any:
        """Return the pool of the server that has ``key``."""
        if not cluster:
            return client.connection_pool
        lend = getattr(client, f"get_{self.name}_connection")
        return lend(client.get_node_from_key(key)).connection_pool
