"""Credentials for Azure SDKs that hand out the fleet's token: ``azure.core``'s ``TokenCredential``, sync and async.

For example ``BlobServiceClient(url, credential=SourceCredential(source, "https://storage.azure.com/.default"))``. The
source keeps and renews the token. ``refresh_on`` tells each pipeline to ask again at once, so that it keeps no copy.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NoReturn, cast

from azure.core.credentials import AccessToken, AccessTokenInfo
from azure.core.exceptions import ClientAuthenticationError, ServiceRequestError

from tokencache.errors import (
    BackendUnavailable,
    ConfigurationError,
    DeadlineExceeded,
    ProviderRejected,
    ProviderUnavailable,
)

if TYPE_CHECKING:
    from collections.abc import Generator
    from types import TracebackType
    from typing import Self

    from azure.core.credentials import TokenRequestOptions

    from tokencache.integrations._refusal import TokenSupply
    from tokencache.token import Token

__all__ = ["AsyncSourceCredential", "SourceCredential"]

_PASSING: Final = (ProviderUnavailable, BackendUnavailable, DeadlineExceeded)


class _Grant:
    """The scopes and tenant of a credential, and the check of requests against them."""

    def __init__(self, source: TokenSupply, *scopes: str, tenant_id: str | None = None) -> None:
        if not scopes:
            message = "give the scopes of the source's token, such as 'https://storage.azure.com/.default'"
            raise ConfigurationError(message)
        self._source = source
        self._scopes = frozenset(scopes)
        self._tenant_id = tenant_id

    def __repr__(self) -> str:
        """Return the source and the scopes, nothing secret."""
        return f"{type(self).__name__}({self._source!r}, {', '.join(map(repr, sorted(self._scopes)))})"

    def _check(self, scopes: tuple[str, ...], tenant_id: str | None) -> None:
        """Raise for a scope or tenant that the source's token does not have (INV-10)."""
        if not self._scopes.issuperset(scopes):
            _refuse(f"scopes {sorted(set(scopes) - self._scopes)}", f"scopes {sorted(self._scopes)}")
        if tenant_id and self._tenant_id and tenant_id != self._tenant_id:
            _refuse(f"tenant {tenant_id!r}", f"tenant {self._tenant_id!r}")


class SourceCredential(_Grant):
    """A ``TokenCredential`` for the clients of Azure SDKs.

    ``scopes`` are the scopes of the source's token; ``tenant_id``, if given, is its only tenant. A client that asks for
    another scope or tenant gets ``ClientAuthenticationError``, never a wrong token.

    A claims challenge (continuous access evaluation) may require a token issued after an instant. Then the source
    fetches a newer token, once for all challenged callers (INV-6). A challenge for other claims is refused.

    Raises ``ClientAuthenticationError`` if the provider rejected the credentials. If provider or backend could not
    answer, it raises ``ServiceRequestError``, which pipelines retry. The source's own error is the cause.
    """

    def get_token(
        self,
        *scopes: str,
        claims: str | None = None,
        tenant_id: str | None = None,
        enable_cae: bool = False,
        **kwargs: object,
    ) -> AccessToken:
        """Return the source's token for ``scopes``; the other parameters as in ``azure.core``."""
        del enable_cae, kwargs
        return _access(self._token(scopes, claims, tenant_id))

    def get_token_info(self, *scopes: str, options: TokenRequestOptions | None = None) -> AccessTokenInfo:
        """Return the source's token for ``scopes``, with its type and when to ask again."""
        asked = options or {}
        return _info(self._token(scopes, asked.get("claims"), asked.get("tenant_id")))

    def close(self) -> None:
        """Do nothing: the source belongs to its cache."""

    def __enter__(self) -> Self:
        """Return the credential itself."""
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        """Do nothing, as ``close``."""

    def _token(self, scopes: tuple[str, ...], claims: str | None, tenant_id: str | None) -> Token:
        """Return a token that meets what was asked."""
        self._check(scopes, tenant_id)
        issued_after = _issued_after(claims)
        with _told():
            token = self._source.token()
            if token.issued_at < issued_after:
                token = self._source.replace(token) or token
        return token


class AsyncSourceCredential(_Grant):
    """An ``AsyncTokenCredential`` for the ``aio`` clients of Azure SDKs; otherwise as :class:`SourceCredential`."""

    async def get_token(
        self,
        *scopes: str,
        claims: str | None = None,
        tenant_id: str | None = None,
        enable_cae: bool = False,
        **kwargs: object,
    ) -> AccessToken:
        """Return the source's token for ``scopes``; the other parameters as in ``azure.core``."""
        del enable_cae, kwargs
        return _access(await self._token(scopes, claims, tenant_id))

    async def get_token_info(self, *scopes: str, options: TokenRequestOptions | None = None) -> AccessTokenInfo:
        """Return the source's token for ``scopes``, with its type and when to ask again."""
        asked = options or {}
        return _info(await self._token(scopes, asked.get("claims"), asked.get("tenant_id")))

    async def close(self) -> None:
        """Do nothing: the source belongs to its cache."""

    async def __aenter__(self) -> Self:
        """Return the credential itself."""
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        """Do nothing, as ``close``."""

    async def _token(self, scopes: tuple[str, ...], claims: str | None, tenant_id: str | None) -> Token:
        """Return a token that meets what was asked."""
        self._check(scopes, tenant_id)
        issued_after = _issued_after(claims)
        with _told():
            token = await self._source.atoken()
            if token.issued_at < issued_after:
                token = await self._source.areplace(token) or token
        return token


def _access(token: Token) -> AccessToken:
    """Return the token as the SDK's ``AccessToken``."""
    return AccessToken(token.value, int(token.expires_at))


def _info(token: Token) -> AccessTokenInfo:
    """Return the token with ``refresh_on`` in the past: the source answers from memory and renews in time."""
    return AccessTokenInfo(
        token.value, int(token.expires_at), token_type=token.token_type, refresh_on=int(token.issued_at)
    )


def _issued_after(claims: str | None) -> float:
    """Return the instant after which the token must have been issued: ``nbf`` of a claims challenge, else any.

    Raises ``ClientAuthenticationError`` for a challenge that requires other claims.
    """
    if not claims:
        return 0.0
    try:
        wanted = cast("dict[str, dict[str, dict[str, str]]]", json.loads(claims))
        if list(wanted) == ["access_token"] and list(wanted["access_token"]) == ["nbf"]:
            return float(wanted["access_token"]["nbf"]["value"])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass
    message = "this credential cannot add claims to its token; give that client a credential that supports claims"
    raise ClientAuthenticationError(message)


def _refuse(asked: str, known: str) -> NoReturn:
    """Raise for a scope or tenant that the source's token does not have."""
    message = f"this credential's token is for {known}, not for {asked}; give that client its own source"
    raise ClientAuthenticationError(message)


@contextmanager
def _told() -> Generator[None]:
    """Translate the source's errors into the SDK's: permanent ones, and ones that its pipeline may retry."""
    try:
        yield
    except ProviderRejected as error:
        raise ClientAuthenticationError(str(error)) from error
    except _PASSING as error:
        raise ServiceRequestError(str(error)) from error
