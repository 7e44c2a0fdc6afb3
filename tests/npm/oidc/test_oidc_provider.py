"""The grants against a third-party, certified authorization server: oidc-provider, on loopback.

`make oidc` installs it and runs these tests; elsewhere they are skipped.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tokencache import ProviderRejected, ProviderUnavailable, TokenCache
from tokencache.integrations.httpx import TokenAuth
from tokencache.providers._jose import claims_of
from tokencache.providers.oauth2 import ClientCredentials, RefreshToken

if TYPE_CHECKING:
    from conftest import AuthorizationServer
    from tokencache import TokenSource

pytestmark = pytest.mark.live

SECRET = "a-secret/of more than+thirty-two:characters"
METHODS = {
    "client_secret_basic": "basic",
    "client_secret_post": "post",
    "client_secret_jwt": "secret-jwt",
    "private_key_jwt": "key-jwt",
}
COLOURS = ["threads", "event loop"]
CALLERS = 20


def asked(source: TokenSource, colour: str) -> Any:  # noqa: ANN401
    """Return a token of the source, by a thread or by an event loop."""
    return source.token() if colour == "threads" else asyncio.run(source.atoken())


# --- client credentials, discovery ------------------------------------------------------------------------------------


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("method", METHODS)
def test_a_client_gets_a_token(
    server: AuthorizationServer, private_key: tuple[str, dict[str, str]], method: str, colour: str
) -> None:
    """The server accepts each way of client authentication, registered as the client's only one; it issues once."""
    before = len(server.asked())
    signing = {"private_key": private_key[0], "key_id": "of-the-test"}
    proof = signing if method == "private_key_jwt" else {"client_secret": SECRET}
    provider = ClientCredentials(
        issuer=server.issuer, client_id=METHODS[method], client_auth=method, scope="read write", **proof
    )
    with TokenCache("memory://") as cache:
        source = cache.source(provider)
        token = asked(source, colour)
        assert asked(source, colour) is token
    seen = server.judge("introspection", token.value)
    assert seen["active"] is True
    assert seen["client_id"] == METHODS[method]
    assert seen["scope"] == token.scope == "read write"
    assert token.lifetime == 3600
    assert abs(seen["exp"] - token.expires_at) < 5
    assert [(each["client"], each["grant"], each["error"]) for each in server.asked()[before:]] == [
        (METHODS[method], "client_credentials", None)
    ]


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"client_secret": "wrong-" + SECRET}, "invalid_client"),
        ({"client_id": "key-jwt"}, "invalid_client"),
        ({"client_id": "stranger"}, "invalid_client"),
        ({"scope": "read openid"}, "invalid_scope"),
    ],
    ids=["secret", "method", "client", "scope"],
)
def test_a_refusal_is_reported_by_its_name(server: AuthorizationServer, wrong: dict[str, str], error: str) -> None:
    """INV-7, INV-9: the server's refusal is a ``ProviderRejected`` with the server's error name, after one request."""
    before = len(server.asked())
    given = {
        "issuer": server.issuer,
        "client_id": "basic",
        "client_secret": SECRET,
        "client_auth": "client_secret_basic",
    }
    with TokenCache("memory://") as cache:
        source = cache.source(ClientCredentials(**{**given, **wrong}))
        for _ in range(2):
            with pytest.raises(ProviderRejected) as caught:
                source.token()
    assert caught.value.error == error
    assert SECRET not in str(caught.value)
    assert [each["error"] for each in server.asked()[before:]] == [error]


def test_discovery_by_rfc_8414(lone_server: AuthorizationServer) -> None:
    """A server that publishes its metadata only at the path of RFC 8414 is found as well."""
    with lone_server.browser() as browser:
        assert browser.get("/.well-known/openid-configuration").status_code == 404
    provider = ClientCredentials(issuer=lone_server.issuer, client_id="basic", client_secret=SECRET)
    with TokenCache("memory://") as cache:
        token = cache.source(provider).token()
    assert lone_server.judge("introspection", token.value)["active"] is True


def test_metadata_of_another_issuer_are_refused(server: AuthorizationServer) -> None:
    """RFC 8414 section 3.3: if the metadata's name differs from the configured one, no token is requested."""
    before = len(server.asked())
    provider = ClientCredentials(
        issuer=server.issuer.replace("127.0.0.1", "localhost"), client_id="basic", client_secret=SECRET
    )
    with TokenCache("memory://") as cache, pytest.raises(ProviderUnavailable, match="another issuer"):
        cache.source(provider).token()
    assert server.asked()[before:] == []


def test_a_resource_has_its_own_token(server: AuthorizationServer) -> None:
    """RFC 8707: the token is for the named resource, and is not shared with another resource."""
    given = {"issuer": server.issuer, "client_id": "basic", "client_secret": SECRET, "scope": "read"}
    with TokenCache("memory://") as cache:
        tokens = {
            resource: cache.source(ClientCredentials(**given, resource=resource)).token()
            for resource in ("https://a.example/", "https://b.example/")
        }
    assert len(set(tokens.values())) == 2
    for resource, token in tokens.items():
        claims = claims_of(token.value)
        assert claims["aud"] == resource
        assert abs(claims["exp"] - token.expires_at) < 5


# --- introspection, revocation, and the answer to a 401 ---------------------------------------------------------------


@pytest.mark.parametrize("colour", COLOURS)
def test_a_revoked_token_is_replaced_once(server: AuthorizationServer, colour: str) -> None:
    """INV-6: after the token is revoked, a real resource refuses many callers, and one renewal serves them all."""
    provider = RefreshToken(
        issuer=server.issuer,
        client_id="shop",
        client_secret=SECRET,
        client_auth="client_secret_post",
        refresh_token=server.sign_in("shop", "grace"),
    )
    before = len(server.asked())
    with TokenCache("memory://") as cache:
        source = cache.source(provider)
        ask = many if colour == "threads" else amany
        assert ask(server, source) == ["grace"] * CALLERS
        first = source.token()
        assert server.judge("introspection", first.value)["active"] is True
        server.judge("revocation", first.value, "shop")
        assert server.judge("introspection", first.value)["active"] is False
        assert source.token() is first  # no caller has been refused yet
        assert ask(server, source) == ["grace"] * CALLERS
        second = source.token()
        assert second != first
        assert server.judge("introspection", second.value)["active"] is True
    assert [(each["grant"], each["error"]) for each in server.asked()[before:]] == [("refresh_token", None)] * 2


def many(server: AuthorizationServer, source: TokenSource) -> list[str]:
    """Return the client ids of many threads' tokens, by introspection."""
    with server.browser() as browser, ThreadPoolExecutor(CALLERS) as pool:
        auth = TokenAuth(source)
        return [each.json().get("sub") for each in pool.map(lambda _: browser.get("/me", auth=auth), range(CALLERS))]


def amany(server: AuthorizationServer, source: TokenSource) -> list[str]:
    """Return the client ids of many tasks' tokens, by introspection."""

    async def main() -> list[str]:
        async with httpx.AsyncClient(base_url=server.issuer, auth=TokenAuth(source), timeout=30.0) as client:
            answers = await asyncio.gather(*(client.get("/me") for _ in range(CALLERS)))
        return [each.json().get("sub") for each in answers]

    return asyncio.run(main())


def test_a_second_refusal_reaches_the_caller(server: AuthorizationServer) -> None:
    """INV-6: the resource refuses every token without a user, as the client's are: one renewal, then the 401."""
    before = len(server.asked())
    provider = ClientCredentials(issuer=server.issuer, client_id="basic", client_secret=SECRET)
    with TokenCache("memory://") as cache, server.browser() as browser:
        auth = TokenAuth(cache.source(provider))
        assert [browser.get("/me", auth=auth).status_code for _ in range(3)] == [401, 401, 401]
    assert len(server.asked()[before:]) == 2
