"""One valid OAuth access token for a whole fleet: fetched once, shared, renewed early, never used too late."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokencache.cache import TokenCache
    from tokencache.errors import (
        BackendClosed,
        BackendConflict,
        BackendError,
        BackendNotInstalled,
        BackendUnavailable,
        ConfigurationError,
        DeadlineExceeded,
        ProviderError,
        ProviderRejected,
        ProviderUnavailable,
        TokenCacheError,
    )
    from tokencache.policy import RefreshPolicy
    from tokencache.ports import FetchContext, Secret, TokenProvider
    from tokencache.source import TokenSource
    from tokencache.status import Status
    from tokencache.token import Token

__all__ = [
    "BackendClosed",
    "BackendConflict",
    "BackendError",
    "BackendNotInstalled",
    "BackendUnavailable",
    "ConfigurationError",
    "DeadlineExceeded",
    "FetchContext",
    "ProviderError",
    "ProviderRejected",
    "ProviderUnavailable",
    "RefreshPolicy",
    "Secret",
    "Status",
    "Token",
    "TokenCache",
    "TokenCacheError",
    "TokenProvider",
    "TokenSource",
]

_HOMES = {
    "tokencache.cache": ("TokenCache",),
    "tokencache.source": ("TokenSource",),
    "tokencache.errors": (
        "BackendClosed",
        "BackendConflict",
        "BackendError",
        "BackendNotInstalled",
        "BackendUnavailable",
        "ConfigurationError",
        "DeadlineExceeded",
        "ProviderError",
        "ProviderRejected",
        "ProviderUnavailable",
        "TokenCacheError",
    ),
    "tokencache.policy": ("RefreshPolicy",),
    "tokencache.ports": ("FetchContext", "Secret", "TokenProvider"),
    "tokencache.status": ("Status",),
    "tokencache.token": ("Token",),
}


def __getattr__(name: str) -> object:
    """Load a public name when it is first used, so that importing the package costs next to nothing (PEP 562)."""
    for module, names in _HOMES.items():
        if name in names:
            from importlib import import_module

            found: object = getattr(import_module(module), name)
            globals()[name] = found
            return found
    message = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(message)


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(__all__)
