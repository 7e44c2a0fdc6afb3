"""One valid OAuth access token for a whole fleet: fetched once, shared, renewed early, never handed out late."""

from tokencache._cache import TokenCache
from tokencache._source import TokenSource
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
