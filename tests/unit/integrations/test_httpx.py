"""TokenAuth for httpx and httpx2: the parts that only they have. tests/integrations holds the common laws."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import httpx2
import pytest

from tokencache.integrations import httpx as for_httpx
from tokencache.integrations import httpx2 as for_httpx2
from tokencache.token import Token

INVALID = {"WWW-Authenticate": 'Bearer error="invalid_token"'}
LIBRARIES = pytest.mark.parametrize(
    ("library", "integration"), [(httpx, for_httpx), (httpx2, for_httpx2)], ids=["httpx", "httpx2"]
)


class StubSource:
    """A source of numbered tokens that records its calls."""

    def __init__(self) -> None:
        self.replaced: list[Token] = []

    def token(self) -> Token:
        """Return the current token."""
        return Token(f"token-{len(self.replaced) + 1}", expires_at=2e9, issued_at=1e9)

    async def atoken(self) -> Token:
        """Return the current token."""
        return self.token()

    def replace(self, refused: Token) -> Token | None:
        """Return the next token."""
        self.replaced.append(refused)
        return self.token()

    async def areplace(self, refused: Token) -> Token | None:
        """Return the next token."""
        return self.replace(refused)


class Hosts:
    """Made-up hosts: a URL without a route accepts the second token and answers with the header it got."""

    def __init__(self, library: Any, routes: dict[str, tuple[int, str]] | None = None) -> None:  # noqa: ANN401
        self._library = library
        self._routes = routes or {}
        self.tokens: list[str | None] = []
        self.urls: list[str] = []

    def __call__(self, request: Any) -> Any:  # noqa: ANN401
        """Answer a request."""
        self.tokens.append(request.headers.get("Authorization"))
        self.urls.append(str(request.url))
        if self.urls[-1] in self._routes:
            status, location = self._routes[self.urls[-1]]
            return self._library.Response(status, headers={"Location": location})
        if self.tokens[-1] == "Bearer token-2":
            return self._library.Response(200, content=request.content)
        return self._library.Response(401, headers=INVALID)

    def client(self) -> Any:  # noqa: ANN401
        """Return a client that follows redirects among these hosts."""
        return self._library.Client(transport=self._library.MockTransport(self), follow_redirects=True)

    def async_client(self) -> Any:  # noqa: ANN401
        """Return the same client for event loops."""
        return self._library.AsyncClient(transport=self._library.MockTransport(self), follow_redirects=True)


@LIBRARIES
def test_an_upgrade_to_https_is_not_replayed(library: Any, integration: Any) -> None:  # noqa: ANN401
    """Httpx keeps the header from http to https of one host. That is another origin, so its 401 does not renew."""
    source = StubSource()
    hosts = Hosts(library, {"http://shop.example/": (301, "https://shop.example/")})
    with hosts.client() as client:
        response = client.get("http://shop.example/", auth=integration.TokenAuth(source))
    assert response.status_code == 401
    assert hosts.urls == ["http://shop.example/", "https://shop.example/"]
    assert source.replaced == []


@LIBRARIES
def test_a_401_without_the_token_sent_does_not_refuse_it(library: Any, integration: Any) -> None:  # noqa: ANN401
    """After a redirect to another origin and back the header is missing, so the 401 does not concern the token."""
    source = StubSource()
    hosts = Hosts(
        library,
        {
            "https://shop.example/": (302, "https://other.example/"),
            "https://other.example/": (302, "https://shop.example/back"),
        },
    )
    with hosts.client() as client:
        response = client.get("https://shop.example/", auth=integration.TokenAuth(source))
    assert response.status_code == 401
    assert hosts.tokens == ["Bearer token-1", None, None]
    assert source.replaced == []


@LIBRARIES
def test_one_object_serves_both_clients(library: Any, integration: Any) -> None:  # noqa: ANN401
    """One auth object renews after a 401 of a Client and of an AsyncClient; its repr holds no token (INV-9)."""
    source = StubSource()
    auth = integration.TokenAuth(source)

    async def scenario() -> int:
        async with Hosts(library).async_client() as client:
            status: int = (await client.get("https://shop.example/", auth=auth)).status_code
            return status

    for half in ("threads", "event loop"):
        source.replaced.clear()
        if half == "threads":
            with Hosts(library).client() as client:
                assert client.get("https://shop.example/", auth=auth).status_code == 200
        else:
            assert asyncio.run(scenario()) == 200
        assert [token.value for token in source.replaced] == ["token-1"]
    assert "token-" not in repr(auth)


def test_token_supply_is_still_exported_by_the_httpx_integration() -> None:
    """``TokenSupply`` can still be imported from the httpx integration, where it was at first."""
    from tokencache.integrations._refusal import TokenSupply

    assert for_httpx.TokenSupply is TokenSupply
