"""The cache: backends, and the sources on them."""

from __future__ import annotations

import os
import threading
import time
from contextlib import AsyncExitStack, ExitStack
from importlib import import_module
from typing import TYPE_CHECKING, Final, TypeAlias, TypedDict, cast

from cachetools import LRUCache

from tokencache import _keys
from tokencache._engine.clock import steady_clock
from tokencache._engine.handle import BackendHandle, Deferred, url_from
from tokencache._fork import Stage, enrol
from tokencache.errors import BackendClosed, ConfigurationError
from tokencache.policy import RefreshPolicy
from tokencache.source import TokenSource

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from types import TracebackType
    from typing import Self, Unpack

    from tokencache._crypto import Encrypt, Sealer
    from tokencache._engine.warmer import Warmer
    from tokencache.config import Configuration, Configured
    from tokencache.events import Event, Observer
    from tokencache.ports import Backend, Clock, FetchContext, TokenProvider
    from tokencache.token import Token

    Answer: TypeAlias = Token | Mapping[str, object]
    Fetcher: TypeAlias = (
        Callable[[], Answer]
        | Callable[[FetchContext], Answer]
        | Callable[[], Awaitable[Answer]]
        | Callable[[FetchContext], Awaitable[Answer]]
    )


class Settings(TypedDict, total=False):
    """The keywords of :class:`TokenCache`, by which code overrides a configuration."""

    backend: str | Backend | None
    namespace: str
    policy: RefreshPolicy | None
    encrypt: Encrypt | None
    observers: Sequence[Observer] | None
    sources: int
    clock: Clock | None
    wall: Clock


class TokenCache:
    """A backend and the sources on it; a context manager for ``with`` and ``async with``.

    ``backend`` is a URL (``memory://``, ``file:///folder``, ``redis://host/0``, …), a
    :class:`~tokencache.ports.Backend`, or ``None``: then the URL in ``TOKENCACHE_BACKEND`` or ``REDIS_DATABASE_URI``,
    else ``memory://``. A backend that is passed in as an object is not closed with the cache. ``namespace`` goes before
    every key that is made (not before keys given by hand). ``policy`` is for sources whose provider and caller bring
    none. ``encrypt`` seals what is stored (AES-256-GCM; ``pip install 'tokencache[crypto]'``): it is a key of 32 bytes,
    or their hexadecimal or base64 text; several keys, of which the first encrypts and all decrypt; or ``"provider"``:
    then each source's key comes from its provider's own credential. A record that does not open counts as missing.
    ``observers`` replace the default one, which logs. ``sources`` bounds the table of sources (the least lately
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
        encrypt: Encrypt | None = None,
        observers: Sequence[Observer] | None = None,
        sources: int = 10_000,
        clock: Clock | None = None,
        wall: Clock = time.time,
    ) -> None:
        if backend is None:
            backend = url_from(os.environ) or "memory://"
        owned = isinstance(backend, str | Deferred)  # a configuration's is opened when it is needed
        if isinstance(backend, str):
            from tokencache.plugins import open_backend

            backend = open_backend(backend)
        self._namespace = namespace
        self._policy = policy
        self._observers: tuple[Observer, ...] = (_log,) if observers is None else tuple(observers)
        self._clock = clock or steady_clock()
        self._wall = wall
        self._probe = (policy or RefreshPolicy()).probe
        self._main = BackendHandle(backend, self._clock, self._probe, owned=owned)
        self._mounts: dict[str, BackendHandle] = {"": self._main}
        self._plan: Configuration | None = None
        self._several = False
        sealer = None if encrypt is None else _sealer(encrypt)
        self._sealer: Callable[[], Sealer | None] = lambda: sealer
        self._lock = threading.Lock()  # guards _table and _mounts
        self._table: LRUCache[tuple[object, ...], TokenSource] = LRUCache(sources)
        self._closed = False
        self._warmer: Warmer | None = None
        enrol(Stage.LOCKS, self._after_fork)

    @classmethod
    def from_config(
        cls,
        source: str | os.PathLike[str] | Mapping[str, object] | Configuration | None = None,
        *,
        environ: Mapping[str, str] | None = None,
        **settings: Unpack[Settings],
    ) -> Self:
        """Return a cache set up by a TOML file, or by a mapping of the same form: docs/configuration.md.

        ``None`` means the file that ``TOKENCACHE_CONFIG`` names, else ``tokencache.toml`` in the working folder.
        ``environ`` is where references look for variables, by default the process's. ``settings`` are keywords of
        :class:`TokenCache` that go before the file's; a ``backend`` among them holds for all sources, and may be a
        name of the file's. A backend is
        opened, and a secret is read, when the first source needs it.

        Raises ``ConfigurationError`` naming file, key and remedy.
        """
        from tokencache.config import Configuration

        return cls._planned(Configuration.load(source, environ=environ), settings)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, **settings: Unpack[Settings]) -> Self:
        """Return a cache set up by ``TOKENCACHE_*`` variables: docs/configuration.md.

        ``TOKENCACHE_CONFIG`` may name a file, over which the other variables go. ``environ`` is by default that of the
        process, ``settings`` are as in :meth:`from_config`.

        Raises ``ConfigurationError`` naming variable and remedy.
        """
        from tokencache.config import Configuration

        return cls._planned(Configuration.from_env(environ), settings)

    @classmethod
    def _planned(cls, plan: Configuration, settings: Settings) -> Self:
        """Return a cache set up by a configuration, but for ``settings``."""
        chosen = cast("Settings", {name: value for name, value in settings.items() if value is not None})
        own_backend = "backend" in chosen
        named = chosen.get("backend")
        if named is None or isinstance(named, str):
            chosen["backend"] = cast("Backend", plan.deferred(named))
        chosen.setdefault("namespace", plan.namespace)
        chosen.setdefault("policy", plan.policy)
        cache = cls(**chosen)
        cache._plan = plan
        cache._several = not own_backend
        if "encrypt" not in chosen:
            cache._sealer = plan.sealer
        return cache

    def source(
        self,
        provider: str | TokenProvider | Fetcher,
        *,
        key: str | None = None,
        policy: RefreshPolicy | None = None,
        keep_warm: bool = False,
    ) -> TokenSource:
        """Return the source for a provider; an equal provider gives the same source.

        ``provider`` is a name, of the configuration or of an entry point (``"qpay"``), a
        :class:`~tokencache.ports.TokenProvider`, or a plain function, sync or async, with no argument or the
        :class:`~tokencache.ports.FetchContext`, which returns a :class:`Token` or the OAuth response as a mapping. A
        function needs a ``key``. ``key`` is used as it stands. With ``keep_warm`` its token is renewed until the cache
        is closed though nobody asks for it, by a thread of the cache, in the child of a fork too.

        Raises ``ConfigurationError`` for an unknown name, missing settings or a function without a key.
        """
        if self._closed:
            raise BackendClosed(_CLOSED)
        configured = self._configured(provider)
        known = self._provider(provider, key) if configured is None else configured.provider
        chosen = cast("RefreshPolicy | None", getattr(known, "policy", None)) or self._policy or RefreshPolicy()
        given = key or cast("str | None", getattr(known, "key", None))
        mount = self._main
        if configured is not None:
            chosen, given = configured.policy_over(chosen), key or configured.key or given
            mount = self._mount(configured)
            keep_warm = keep_warm or configured.keep_warm
        chosen = policy or chosen
        sealer = self._sealer()
        if sealer is not None:
            sealer.admit(known)
        entry = (mount, known.name, _keys.quick_fingerprint(known.name, known.identity()), given, chosen)
        with self._lock:
            source = self._table.get(entry)
            if source is None:
                source = self._table[entry] = self._make(known, given, chosen, mount, sealer)
            if keep_warm and self._warmer is None:
                from tokencache._engine.warmer import Warmer

                self._warmer = Warmer()
        if keep_warm and self._warmer is not None:
            self._warmer.add(source)
        return source

    def close(self) -> None:
        """Close the backends that the cache made. Sources serve what they hold, then raise ``BackendClosed``."""
        self._close()
        with ExitStack() as stack:
            for mount in list(self._mounts.values()):
                stack.callback(mount.close)

    async def aclose(self) -> None:
        """Close, from an event loop."""
        self._close()
        async with AsyncExitStack() as stack:
            for mount in list(self._mounts.values()):
                stack.push_async_callback(mount.aclose)

    def _close(self) -> None:
        """Take no more orders, and keep nothing warm."""
        self._closed = True
        if self._warmer is not None:
            self._warmer.stop()

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
        return f"<TokenCache on {self._main.name!r} with {len(self._table)} sources>"

    @property
    def _backend(self) -> Backend:
        """The backend of every source whose configuration names no other."""
        return self._main.backend

    def _configured(self, provider: object) -> Configured | None:
        """Return what the configuration says of a provider, if it names it."""
        return None if self._plan is None or not isinstance(provider, str) else self._plan.provider(provider)

    def _mount(self, configured: Configured) -> BackendHandle:
        """Return the mount that a provider's table names."""
        name = configured.backend
        if self._plan is None or not self._several or name is None or self._plan.is_main(name):
            return self._main
        with self._lock:
            mount = self._mounts.get(name)
            if mount is None:
                mount = self._mounts[name] = BackendHandle(self._plan.deferred(name), self._clock, self._probe)
            return mount

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

    def _make(
        self,
        provider: TokenProvider,
        key: str | None,
        policy: RefreshPolicy,
        mount: BackendHandle,
        sealer: Sealer | None,
    ) -> TokenSource:
        """Make a source, and load the engine now rather than while its first callers wait."""
        from tokencache._engine.context import SourceContext

        for module in ("tokencache._engine.drivers", "tokencache._engine.flights", "tokencache._engine.flow"):
            import_module(module)
        world = SourceContext(
            provider=provider,
            backend=mount.backend,
            async_backend=mount.async_backend,
            reads=mount.reads,
            writes=mount.writes,
            clock=self._clock,
            wall=self._wall,
            observers=self._observers,
            sealer=sealer,
        )
        source = TokenSource(world, policy=policy, namespace=self._namespace, key=key)
        enrol(Stage.SOURCES, source._start_afresh)  # noqa: SLF001  (no user is meant to call it)
        return source

    def _after_fork(self) -> None:
        """Give the child of a fork a lock of its own."""
        self._lock = threading.Lock()


def _sealer(encrypt: Encrypt) -> Sealer:
    """Return what seals records, loaded where it is wanted."""
    from tokencache._crypto import Sealer

    return Sealer(encrypt)


def _log(event: Event) -> None:
    """Log an event: the default observer, loaded when the first thing happens."""
    from tokencache.events import log

    log(event)


_CLOSED: Final = "the TokenCache is closed; make a new one"
