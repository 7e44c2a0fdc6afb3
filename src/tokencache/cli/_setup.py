"""What a command works with: the configuration that is named or found, and the backend that is named."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, cast

from tokencache.config import Configuration, Configured
from tokencache.policy import RefreshPolicy

if TYPE_CHECKING:
    from tokencache import TokenCache
    from tokencache.url import BackendURL


class Setup:
    """The configuration, with ``backend`` before whatever it says where that is given.

    Without ``config`` it is the file that ``TOKENCACHE_CONFIG`` names, else ``tokencache.toml`` in the working folder,
    else none; the variables go over it. Raises ``ConfigurationError`` where its form is wrong.
    """

    def __init__(self, config: str | None = None, backend: str | None = None) -> None:
        self.plan = Configuration.found(config).right()
        self.config = config or None
        self.backend = backend or None

    def cache(self) -> TokenCache:
        """Return a cache."""
        from tokencache import TokenCache

        return TokenCache.from_config(self.plan, backend=self.backend)

    def provider(self, name: str) -> Configured:
        """Return the provider of a name, that of the configuration before that of an entry point."""
        configured = self.plan.provider(name)
        if configured is None:
            from tokencache.plugins import load_provider_factory

            configured = Configured(load_provider_factory(name)())
        key = cast("str | None", getattr(configured.provider, "key", None))
        return replace(configured, key=configured.key or key)

    def url(self, configured: Configured | None = None) -> BackendURL:
        """Return the URL of the backend: that which is named, else the provider's, else the configuration's."""
        return self.plan.backend_url(self.backend or (None if configured is None else configured.backend))

    def orders(self, provider: str, timeout: float | None) -> dict[str, object]:
        """Return what another process needs to know to work with the same."""
        return {"provider": provider, "config": self.config, "backend": self.backend, "timeout": timeout}

    def quiet_policy(self, configured: Configured) -> RefreshPolicy:
        """Return the policy of a source, but quiet, so that looking at a token starts no login."""
        own = cast("RefreshPolicy | None", getattr(configured.provider, "policy", None))
        return quiet(configured.policy_over(own or self.plan.policy or RefreshPolicy()))


def quiet(policy: RefreshPolicy) -> RefreshPolicy:
    """Return a policy without renewal ahead of expiry."""
    return replace(policy, window=0.0)
