"""The resolver: the one place that decides which provider, key, policy, backend and encryption a source gets."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from tokencache import plugins
from tokencache._default_backend import default_url
from tokencache._engine.clock import steady_clock
from tokencache._engine.handle import BackendHandle
from tokencache.errors import ConfigurationError
from tokencache.policy import RefreshPolicy

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from typing import TypeAlias

    from tokencache._crypto import Encrypt, Sealer
    from tokencache.config import Configuration, Configured
    from tokencache.ports import Backend, Clock, FetchContext, TokenProvider
    from tokencache.token import Token

    Answer: TypeAlias = Token | Mapping[str, object]
    Fetcher: TypeAlias = (
        Callable[[], Answer]
        | Callable[[FetchContext], Answer]
        | Callable[[], Awaitable[Answer]]
        | Callable[[FetchContext], Awaitable[Answer]]
    )


@dataclass(frozen=True, slots=True)
class Resolved:
    """The parts of one source.

    ``backend`` is the name or URL of ``handle``'s backend, ``None`` for the main one. If ``key`` is ``None``, the key
    of the record is made from namespace, provider and identity.
    """

    provider: TokenProvider
    key: str | None
    policy: RefreshPolicy
    keep_warm: bool
    backend: str | None
    handle: BackendHandle
    sealer: Sealer | None


class Resolver:
    """Decides the parts of each source, for :class:`~tokencache.TokenCache` and the command line.

    In each row the first entry that is given wins. The argument is one of ``source()`` or, where the row names
    ``TokenCache``, of the cache; the table is the provider's, ``[providers.NAME]``; the attribute is the provider's.

    ========= ================== ========================= ========= ======================= =======================
    ..        argument           table                     attribute file, variables         default
    ========= ================== ========================= ========= ======================= =======================
    provider  object, function   of that name                                                plugin of that name
    key       ``key``            ``key``                   ``key``                           made, see ``Resolved``
    policy    ``policy``         ``policy``: single fields ``policy`` ``TokenCache(policy)``, ``RefreshPolicy()``
                                 over what follows                   then ``[policy]``
    backend   ``TokenCache``     ``backend``                         ``backend``             ``memory://``
    sealer    ``TokenCache``                                         ``[encryption]``        none
    namespace ``TokenCache``                                         ``namespace``           empty
    keep_warm ``keep_warm``, or the table's: either turns it on                              off
    ========= ================== ========================= ========= ======================= =======================

    Raises ``ConfigurationError``, ``BackendNotInstalled`` and ``BackendConflict`` for a backend URL without a
    configuration; with one, each backend is opened when the first source needs it.
    """

    def __init__(
        self,
        plan: Configuration | None = None,
        *,
        backend: str | Backend | None = None,
        namespace: str | None = None,
        policy: RefreshPolicy | None = None,
        encrypt: Encrypt | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._plan = plan
        self._backend = backend
        self._policy = policy if policy is not None or plan is None else plan.policy
        self.namespace = namespace if namespace is not None else "" if plan is None else plan.namespace
        self.clock = clock or steady_clock()
        self._probe = (self._policy or RefreshPolicy()).probe
        self._sealer = None if encrypt is None else _sealer(encrypt)
        self.main = self._main()
        self._others: dict[str, BackendHandle] = {}

    @property
    def handles(self) -> list[BackendHandle]:
        """The handles of all backends in use."""
        return [self.main, *self._others.values()]

    def resolve(
        self,
        provider: str | TokenProvider | Fetcher,
        *,
        key: str | None = None,
        policy: RefreshPolicy | None = None,
        keep_warm: bool = False,
    ) -> Resolved:
        """Return the parts of the source; raises ``ConfigurationError`` as ``TokenCache.source`` does."""
        table = self._plan.provider(provider) if self._plan is not None and isinstance(provider, str) else None
        known = _provider(provider, key) if table is None else table.provider
        backend, handle = self._chosen_backend(table)
        return Resolved(
            provider=known,
            key=key or (table and table.key) or cast("str | None", getattr(known, "key", None)),
            policy=policy or self._chosen_policy(known, table),
            keep_warm=keep_warm or (table is not None and table.keep_warm),
            backend=backend,
            handle=handle,
            sealer=self._chosen_sealer(known),
        )

    def _chosen_policy(self, provider: TokenProvider, table: Configured | None) -> RefreshPolicy:
        """Return the policy of a source whose caller gives none."""
        base = cast("RefreshPolicy | None", getattr(provider, "policy", None)) or self._policy or RefreshPolicy()
        return base if table is None else table.policy_over(base)

    def _chosen_backend(self, table: Configured | None) -> tuple[str | None, BackendHandle]:
        """Return the name and the handle of the backend."""
        if self._backend is not None or self._plan is None or table is None or table.backend is None:
            return (self._backend if isinstance(self._backend, str) else None), self.main
        name = table.backend
        if self._plan.is_main(name):
            return name, self.main
        handle = self._others.get(name)
        if handle is None:  # setdefault is atomic; a handle that came second was not opened
            handle = self._others.setdefault(name, BackendHandle(self._plan.deferred(name), self.clock, self._probe))
        return name, handle

    def _chosen_sealer(self, provider: TokenProvider) -> Sealer | None:
        """Return the sealer, ``None`` without encryption; raises ``ConfigurationError`` if it lacks a credential."""
        sealer = self._sealer
        if sealer is None and self._plan is not None:
            sealer = self._plan.sealer()
        if sealer is not None:
            sealer.admit(provider)
        return sealer

    def _main(self) -> BackendHandle:
        """Return the handle of the backend of every source whose table names no other."""
        backend = self._backend
        if backend is not None and not isinstance(backend, str):
            return BackendHandle(backend, self.clock, self._probe, owned=False)
        if self._plan is not None:
            return BackendHandle(self._plan.deferred(backend), self.clock, self._probe)
        opened = plugins.open_backend(default_url(os.environ) if backend is None else backend)
        return BackendHandle(opened, self.clock, self._probe)


def _provider(provider: str | TokenProvider | Fetcher, key: str | None) -> TokenProvider:
    """Return the provider of a plugin, the given provider, or one that calls the given function."""
    if isinstance(provider, str):
        return plugins.load_provider_factory(provider)()
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


def _sealer(encrypt: Encrypt) -> Sealer:
    """Return a sealer; the import is here, because only a cache that encrypts needs the library."""
    from tokencache._crypto import Sealer

    return Sealer(encrypt)
