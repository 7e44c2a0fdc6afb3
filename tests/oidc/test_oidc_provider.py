"""The grants against a certified authorization server that is none of ours: oidc-provider, on loopback.

`make oidc` installs it and runs this; elsewhere it is skipped.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from tokencache import TokenCache
from tokencache.providers.oauth2 import ClientCredentials

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


def asked(source: TokenSource, colour: str) -> Any:  # noqa: ANN401
    """Return a token of the source, asked for in one of the two ways."""
    return source.token() if colour == "threads" else asyncio.run(source.atoken())


# --- client credentials, discovery ------------------------------------------------------------------------------------


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("method", METHODS)
def test_a_client_gets_a_token(
    server: AuthorizationServer, private_key: tuple[str, dict[str, str]], method: str, colour: str
) -> None:
    """Each way of client authentication is taken by a server that knows no other for that client; it issues once."""
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
