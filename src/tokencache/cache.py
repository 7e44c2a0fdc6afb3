"""The cache: its backends, and the sources that use them."""

from __future__ import annotations

import threading
import time
from contextlib import AsyncExitStack, ExitStack
from typing import TYPE_CHECKING, Final, TypedDict, cast
from weakref import WeakKeyDictionary

from cachetools import LRUCache

from tokencache import _keys
from tokencache._engine.context import SourceContext
from tokencache._engine.launcher import running_loop
from tokencache._engine.warmer import Warmer
from tokencache._fork import Stage, enrol, notice_fork
from tokencache._resolver import Resolver
from tokencache.errors import BackendClosed
from tokencache.events import log
from tokencache.shared import Shared
from tokencache.source import TokenSource

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence
    from types import TracebackType
    from typing import Self, Unpack

    from tokencache._crypto import Encrypt
    from tokencache._resolver import Fetcher, Resolved
    from tokencache.config import Configuration
    from tokencache.events import Observer
    from tokencache.policy import RefreshPolicy
    from tokencache.ports import Backend, Clock, TokenProvider

_CLOSED: Final = "the TokenCache is closed; make a new one"


class Settings(TypedDict, total=False):
    """The keywords of :class:`TokenCache` with which code overrides a configuration."""

    backend: str | Backend | None
    namespace: str
    policy: RefreshPolicy | None
    encrypt: Encrypt | None
    observers: Sequence[Observer] | None
    sources: int
    clock: Clock | None
    wall: Clock


class TokenCache(Shared):
    """A backend and the sources on it; a context manager for ``with`` and ``async with``.

    ``backend`` is a URL (``memory://``, ``file:///folder``, ``redis://host/0``, …), a
    :class:`~tokencache.ports.Backend`, or ``None``: then the URL in ``TOKENCACHE_BACKEND`` or ``REDIS_DATABASE_URI``,
    else ``memory://``. The cache does not close a backend that it was given as an object. ``namespace`` is the prefix
    of every generated key; a key that the caller gives is used unchanged. ``policy`` is the default for sources whose
    caller and provider give none. ``observers`` replace the default observer, which logs. ``sources`` limits the table
    of sources: LRU eviction; an evicted source keeps working. ``clock`` and ``wall`` are for tests.

    ``encrypt`` seals the records (AES-256-GCM; ``pip install 'tokencache[crypto]'``). It is a key of 32 bytes, or their
    hexadecimal or base64 text. Of several keys, the first encrypts and all decrypt. With ``"provider"``, each source's
    key is derived from its provider's credential. A record that cannot be decrypted counts as missing,
    or is a ``ConfigurationError`` if the provider is ``refreshing``.

    Raises ``ConfigurationError`` for a bad URL, and ``BackendNotInstalled`` or ``BackendConflict`` as
    :func:`~tokencache.plugins.open_backend` does.
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
        given: object = backend  # a resolver, if the cache is made from a configuration
        self._resolver = (
            given
            if isinstance(given, Resolver)
            else Resolver(backend=backend, namespace=namespace, policy=policy, encrypt=encrypt, clock=clock)
        )
        self._observers: tuple[Observer, ...] = (log,) if observers is None else tuple(observers)
        self._wall = wall
        self._lock = threading.Lock()  # guards _table and _warmer
        self._table: LRUCache[tuple[object, ...], TokenSource] = LRUCache(sources)
        self._uses: WeakKeyDictionary[object, tuple[dict[str, bytes], set[str]]] = WeakKeyDictionary()
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
        """Return a cache made from a TOML file, or from a mapping of the same form: docs/configuration.md.

        ``None`` means the file that ``TOKENCACHE_CONFIG`` names, else ``tokencache.toml`` in the working folder.
        References read variables from ``environ``, by default the process's. ``settings`` are keywords of
        :class:`TokenCache` that override the file. A ``backend`` among them serves all sources, and may be a name
        from the file. Backends are opened, and secrets are read, when the first source needs them.

        Raises ``ConfigurationError`` naming file, key and remedy.
        """
        from tokencache.config import Configuration

        return cls._planned(Configuration.load(source, environ=environ), settings)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, **settings: Unpack[Settings]) -> Self:
        """Return a cache made from ``TOKENCACHE_*`` variables: docs/configuration.md.

        ``TOKENCACHE_CONFIG`` may name a file; the other variables override it. ``environ`` is by default the process's.
        ``settings`` are as in :meth:`from_config`.

        Raises ``ConfigurationError`` naming variable and remedy.
        """
        from tokencache.config import Configuration

        return cls._planned(Configuration.from_env(environ), settings)

    @classmethod
    def _planned(cls, plan: Configuration, settings: Settings) -> Self:
        """Return a cache made from a configuration; ``settings`` override it."""
        resolver = Resolver(
            plan,
            backend=settings.get("backend"),
            namespace=settings.get("namespace"),
            policy=settings.get("policy"),
            encrypt=settings.get("encrypt"),
            clock=settings.get("clock"),
        )
        given = {name: value for name, value in settings.items() if value is not None}
        return cls(**cast("Settings", given | {"backend": resolver}))

    def source(
        self,
        provider: str | TokenProvider | Fetcher,
        *,
        key: str | None = None,
        policy: RefreshPolicy | None = None,
        keep_warm: bool = False,
    ) -> TokenSource:
        """Return the source for a provider; an equal provider gives the same source.

        ``provider`` is a :class:`~tokencache.ports.TokenProvider`, a name, or a function. A name is that of a provider
        in the configuration, or of a plugin (``"qpay"``). A function may be sync or async, and may take the
        :class:`~tokencache.ports.FetchContext`; it returns a :class:`Token` or the OAuth response as a mapping, and
        needs a ``key``. A ``key`` is used unchanged. With ``keep_warm``, a thread renews the token until the cache is
        closed, also while no caller asks for it, and also in the child of a fork.

        Raises ``ConfigurationError`` for an unknown name, missing settings or a function without a key.
        """
        notice_fork()
        if self._closed:
            raise BackendClosed(_CLOSED)
        found = self._resolver.resolve(provider, key=key, policy=policy, keep_warm=keep_warm)
        name, identity = found.provider.name, found.provider.identity()
        quick = _keys.quick_fingerprint(name, identity)
        entry = (found.handle, name, quick, found.key, found.policy)
        with self._lock:
            source = self._table.get(entry)
            if source is None:
                source = self._table[entry] = self._make(found, self._contested(found, quick))
            if found.keep_warm and self._warmer is None:
                self._warmer = Warmer()
        if found.keep_warm and self._warmer is not None:
            self._warmer.add(source)
        return source

    def close(self) -> None:
        """Close the backends that the cache opened. Sources serve their local copies, then raise ``BackendClosed``."""
        self._close()
        with ExitStack() as stack:
            for handle in self._resolver.handles:
                stack.callback(handle.close)

    async def aclose(self) -> None:
        """Close, from an event loop."""
        running_loop()
        self._close()
        async with AsyncExitStack() as stack:
            for handle in self._resolver.handles:
                stack.push_async_callback(handle.aclose)

    def _close(self) -> None:
        """Refuse new sources, and stop the warmer."""
        notice_fork()
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
        running_loop()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        await self.aclose()

    def __repr__(self) -> str:
        """Return the backend's name and the number of sources."""
        return f"<TokenCache on {self._resolver.main.name!r} with {len(self._table)} sources>"

    @property
    def _backend(self) -> Backend:
        """The backend of every source whose table in the configuration names no other."""
        return self._resolver.main.backend

    def _contested(self, found: Resolved, quick: bytes) -> set[str]:
        """Return the keys of a backend that two identities use, with this one if another source has it already."""
        firsts, contested = self._uses.setdefault(found.handle, ({}, set()))
        if found.key is not None:
            if found.key not in firsts and len(firsts) >= self._table.maxsize:
                del firsts[next(iter(firsts))]  # the oldest
            if firsts.setdefault(found.key, quick) != quick:
                contested.add(found.key)
        return contested

    def _make(self, found: Resolved, contested: set[str]) -> TokenSource:
        """Make a source."""
        handle = found.handle
        world = SourceContext(
            provider=found.provider,
            backend=handle.backend,
            async_backend=handle.async_backend,
            reads=handle.reads,
            writes=handle.writes,
            clock=self._resolver.clock,
            wall=self._wall,
            observers=self._observers,
            sealer=found.sealer,
            contested=contested,
        )
        source = TokenSource(world, policy=found.policy, namespace=self._resolver.namespace, key=found.key)
        enrol(Stage.SOURCES, source._start_afresh)  # noqa: SLF001  (it is not for users)
        return source

    def _after_fork(self) -> None:
        """Give the child of a fork a lock of its own."""
        self._lock = threading.Lock()
