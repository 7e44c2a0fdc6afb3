"""The cache: a backend, and the sources on it."""

from __future__ import annotations

import os
import threading
import time
import weakref
from importlib import import_module
from typing import TYPE_CHECKING, Final, TypeAlias, cast

from cachetools import LRUCache

from tokencache import _keys
from tokencache._breaker import Breaker
from tokencache._clock import steady_clock
from tokencache._source import TokenSource
from tokencache.errors import BackendClosed, ConfigurationError
from tokencache.policy import RefreshPolicy

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from types import TracebackType
    from typing import Self

    from tokencache.events import Event, Observer
    from tokencache.ports import AsyncBackend, Backend, Clock, FetchContext, TokenProvider
    from tokencache.token import Token

    Answer: TypeAlias = Token | Mapping[str, object]
    Fetcher: TypeAlias = (
        Callable[[], Answer]
        | Callable[[FetchContext], Answer]
        | Callable[[], Awaitable[Answer]]
        | Callable[[FetchContext], Awaitable[Answer]]
    )

ENVIRONMENT: Final = ("TOKENCACHE_BACKEND", "REDIS_DATABASE_URI")
"""The variables that may hold the URL of the backend, in order; the second is what the QPay services had before."""

_caches: weakref.WeakSet[TokenCache] = weakref.WeakSet()
_sources: weakref.WeakSet[TokenSource] = weakref.WeakSet()


class TokenCache:
    """One backend and the sources on it; a context manager for ``with`` and ``async with``.

    ``backend`` is a URL (``memory://``, ``file:///folder``, ``redis://host/0``, …), a
    :class:`~tokencache.ports.Backend`, or ``None``: then the URL in ``TOKENCACHE_BACKEND`` or ``REDIS_DATABASE_URI``,
    else ``memory://``. A backend that is passed in as an object is not closed with the cache. ``namespace`` goes before
    every key that is made (not before keys given by hand). ``policy`` is for sources whose provider and caller bring
    none. ``observers`` replace the default one, which logs. ``sources`` bounds the table of sources (the least lately
    asked for is forgotten; whoever holds it may go on). ``clock`` and ``wall`` are for tests.

    Raises ``ConfigurationError`` for a bad URL, ``BackendNotInstalled`` and ``BackendConflict`` as the plugin loader
    does.
    """

    def __init__(
        self,
        backend: str | Backend | None = None,
        *,
        namespace: str = "",
        policy: RefreshPolicy | None = None,
        observers: Sequence[Observer] | None = None,
        sources: int = 10_000,
        clock: Clock | None = None,
        wall: Clock = time.time,
    ) -> None:
        self._owned = backend is None or isinstance(backend, str)
        if backend is None:
            backend = next((url for name in ENVIRONMENT if (url := os.environ.get(name))), "memory://")
        if isinstance(backend, str):
            from tokencache.plugins import open_backend

            backend = open_backend(backend)
        self._backend = backend
        self._namespace = namespace
        self._policy = policy
        self._observers: tuple[Observer, ...] = (_log,) if observers is None else tuple(observers)
        self._clock = clock or steady_clock()
        self._wall = wall
        probe = (policy or RefreshPolicy()).probe
        self._reads = Breaker(self._clock, probe)
        self._writes = Breaker(self._clock, probe)
        self._half: AsyncBackend | None = None
        self._lock = threading.Lock()  # guards _table
        self._table: LRUCache[tuple[object, ...], TokenSource] = LRUCache(sources)
        self._closed = False
        _caches.add(self)

    def source(
        self,
        provider: str | TokenProvider | Fetcher,
        *,
        key: str | None = None,
        policy: RefreshPolicy | None = None,
    ) -> TokenSource:
        """Return the source for a provider; an equal provider gives the same source.

        ``provider`` is the name of an entry point (``"qpay"``), a :class:`~tokencache.ports.TokenProvider`, or a plain
        function, sync or async, with no argument or the :class:`~tokencache.ports.FetchContext`, which returns a
        :class:`Token` or the OAuth response as a mapping. A function needs a ``key``. ``key`` is used as it stands.

        Raises ``ConfigurationError`` for an unknown name, missing settings or a function without a key.
        """
        if self._closed:
            raise BackendClosed(_CLOSED)
        known = self._provider(provider, key)
        chosen = (
            policy or cast("RefreshPolicy | None", getattr(known, "policy", None)) or self._policy or RefreshPolicy()
        )
        given = key or cast("str | None", getattr(known, "key", None))
        entry = (known.name, _keys.quick_fingerprint(known.name, known.identity()), given, chosen)
        with self._lock:
            source = self._table.get(entry)
            if source is None:
                source = self._table[entry] = self._make(known, given, chosen)
            return source

    def close(self) -> None:
        """Close the backend if the cache made it. Sources serve what they hold, then raise ``BackendClosed``."""
        self._closed = True
        if self._owned:
            self._backend.close()

    async def aclose(self) -> None:
        """Close, from an event loop."""
        self._closed = True
        if self._owned:
            await self._async_backend().close()

    def __enter__(self) -> Self:
        """Return the cache itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    async def __aenter__(self) -> Self:
        """Return the cache itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        await self.aclose()

    def __repr__(self) -> str:
        """Return the backend's name and the number of sources."""
        return f"<TokenCache on {self._backend.name!r} with {len(self._table)} sources>"

    def _provider(self, provider: str | TokenProvider | Fetcher, key: str | None) -> TokenProvider:
        """Return the provider that was named, given, or given as a function."""
        if isinstance(provider, str):
            from tokencache.plugins import load_provider_factory

            return load_provider_factory(provider)()
        if hasattr(provider, "fetch") or hasattr(provider, "afetch"):
            return cast("TokenProvider", provider)
        if not callable(provider):
            message = f"source({type(provider).__name__}): give the name of a provider, a TokenProvider, or a function"
            raise ConfigurationError(message)
        if not key:
            message = "source(function): give key=…, a name for its record; functions have no identity of their own"
            raise ConfigurationError(message)
        from tokencache.providers.callable import CallableProvider

        return CallableProvider(provider, key=key)

    def _make(self, provider: TokenProvider, key: str | None, policy: RefreshPolicy) -> TokenSource:
        """Make a source, and load the engine now rather than while its first callers wait."""
        from tokencache._world import World

        for module in ("_drivers", "_flights", "_flow"):
            import_module(f"tokencache.{module}")
        world = World(
            provider=provider,
            backend=self._backend,
            async_backend=self._async_backend,
            reads=self._reads,
            writes=self._writes,
            clock=self._clock,
            wall=self._wall,
            observers=self._observers,
        )
        source = TokenSource(world, policy=policy, namespace=self._namespace, key=key)
        _sources.add(source)
        return source

    def _async_backend(self) -> AsyncBackend:
        """Return the half of the backend for the running event loop; a lifted one serves all loops."""
        if self._half is not None:
            return self._half
        from tokencache.backends._lift import ThreadedBackend, async_half

        half = async_half(self._backend)
        if isinstance(half, ThreadedBackend):
            self._half = half  # two loops may make one each; the last one serves those who come later
        return half

    def _after_fork(self) -> None:
        """Start afresh in the child of a fork: its own locks, threads and connections."""
        self._lock = threading.Lock()
        self._half = None
        self._reads.after_fork()
        self._writes.after_fork()
        hook = getattr(self._backend, "after_fork", None)
        if hook is not None:
            hook()


def _log(event: Event) -> None:
    """Log an event: the default observer, loaded when the first thing happens."""
    from tokencache.events import log

    log(event)


_CLOSED: Final = "the TokenCache is closed; make a new one"


def _after_fork() -> None:
    """Make every cache and source of this process good for the child."""
    for cache in list(_caches):
        cache._after_fork()  # noqa: SLF001  (the module's own classes)
    for source in list(_sources):
        source._start_afresh()  # noqa: SLF001


if hasattr(os, "register_at_fork"):  # pragma: no branch
    os.register_at_fork(after_in_child=_after_fork)
