"""The setup of a command: the configuration, and the backend of ``--backend``."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tokencache._resolver import Resolver
from tokencache.config import Configuration

if TYPE_CHECKING:
    from tokencache import TokenCache
    from tokencache._resolver import Resolved
    from tokencache.policy import RefreshPolicy
    from tokencache.ports import TokenProvider
    from tokencache.url import BackendURL


class Setup:
    """The configuration; ``backend``, if given, overrides it.

    Without ``config``, ``TOKENCACHE_CONFIG`` names the file. The default is ``tokencache.toml`` in the working folder,
    if it exists. Variables override the file. Raises ``ConfigurationError`` for a configuration of the wrong form.
    """

    def __init__(self, config: str | None = None, backend: str | None = None) -> None:
        self.plan = Configuration.found(config).right()
        self.config = config or None
        self.backend = backend or None

    def cache(self) -> TokenCache:
        """Return a cache."""
        from tokencache import TokenCache

        return TokenCache.from_config(self.plan, backend=self.backend)

    def provider(self, provider: str | TokenProvider) -> Resolved:
        """Return the resolved provider, policy, key and backend of a source."""
        return Resolver(self.plan, backend=self.backend).resolve(provider)

    def url(self, resolved: Resolved | None = None) -> BackendURL:
        """Return the URL of the backend; the default is the cache's own backend."""
        return self.plan.backend_url(self.backend if resolved is None else resolved.backend)

    def quiet_policy(self, resolved: Resolved) -> RefreshPolicy:
        """Return the policy of a source without early renewal, so that a look at a token starts no login."""
        return quiet(resolved.policy)

    def orders(self, provider: str, timeout: float | None) -> dict[str, object]:
        """Return what another process needs for the same setup."""
        return {"provider": provider, "config": self.config, "backend": self.backend, "timeout": timeout}


def quiet(policy: RefreshPolicy) -> RefreshPolicy:
    """Return a policy without renewal ahead of expiry."""
    return replace(policy, window=0.0)
