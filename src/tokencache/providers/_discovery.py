"""Discovery of an issuer's token endpoint in its metadata (RFC 8414, OpenID Connect Discovery 1.0)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import httpx

from tokencache.errors import ConfigurationError, ProviderUnavailable
from tokencache.providers.oauth_response import raise_for_error, read_json, table_of
from tokencache.providers.transport import secure_url

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator


@dataclass(frozen=True, slots=True)
class Endpoints:
    """The address of the token endpoint, and the audience of signed assertions."""

    token_url: str
    audience: str


def discover(
    provider: str, issuer: str, timeout: float, *, mutual_tls: bool, allow_http: bool = False
) -> Generator[httpx.Request, httpx.Response, Endpoints]:
    """Ask ``issuer`` for its metadata at both well-known places; ``timeout`` caps each request, in seconds.

    With ``mutual_tls`` the alias of RFC 8705 section 5 counts. Raises ``ProviderUnavailable`` if the issuer publishes
    no metadata, or if they belong to another issuer (RFC 8414 section 3.3).
    """
    response: httpx.Response | None = None
    for place in _places(issuer):
        request = httpx.Request("GET", place, extensions={"timeout": {"read": timeout}})
        response = yield request
        if response.is_success:
            named, found = _read(provider, issuer, read_json(response, provider=provider), mutual_tls=mutual_tls)
            try:
                url = secure_url(provider, "token_endpoint", found, allow_http=allow_http)
            except ConfigurationError as error:
                reason = str(error)
            else:
                if url.startswith("https:") or issuer.startswith("http:") or allow_http:
                    return Endpoints(url, named)
                reason = f"[{provider}] token_endpoint must begin with https://, as its issuer does"  # also on loopback
            raise ProviderUnavailable(reason)
    if response is not None and response.status_code >= 500:  # noqa: PLR2004
        raise_for_error(response, provider=provider)
    message = f"[{provider}] {httpx.URL(issuer).host} publishes no metadata; set token_url instead of issuer"
    raise ProviderUnavailable(message)


def _places(issuer: str) -> Iterator[str]:
    """Yield the well-known addresses of an issuer: first OpenID's, then the one of RFC 8414 section 3.1."""
    url = httpx.URL(issuer)
    path = url.path.rstrip("/")
    yield str(url.copy_with(path=f"{path}/.well-known/openid-configuration", query=None))
    yield str(url.copy_with(path=f"/.well-known/oauth-authorization-server{path}", query=None))


def _read(provider: str, issuer: str, metadata: dict[str, object], *, mutual_tls: bool) -> tuple[str, str]:
    """Return the issuer and the token endpoint that the metadata name."""
    named = metadata.get("issuer")
    if not isinstance(named, str) or named.rstrip("/") != issuer.rstrip("/"):
        message = f"[{provider}] the metadata at {httpx.URL(issuer).host} name another issuer; set issuer to that name"
        raise ProviderUnavailable(message)
    aliases = table_of(metadata.get("mtls_endpoint_aliases")) if mutual_tls else {}
    url = aliases.get("token_endpoint") or metadata.get("token_endpoint")
    return named, url if isinstance(url, str) else ""
