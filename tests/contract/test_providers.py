"""The contract of providers, tested on those of tokencache and on functions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokencache._keys import fingerprint
from tokencache.providers.callable import CallableProvider
from tokencache.providers.oauth2 import ClientCredentials, CustomGrant, OAuth2Provider, RefreshToken
from tokencache.testing.provider_contract import ProviderContract
from tokencache.testing.token_server import json_reply
from tokencache_qpay import QPayProvider

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from tokencache.ports import FetchContext
    from tokencache.testing.token_server import Reply, TokenServer
    from tokencache.token import Token


class TestClientCredentials(ProviderContract):
    """Every law, on the client credentials grant."""

    def make_provider(self, server: TokenServer, secret: str, **changes: object) -> OAuth2Provider:
        """Return a client with its secret in the header."""
        options: dict[str, object] = {"token_url": f"{server.url}/token", "client_id": "shop", "client_secret": secret}
        return ClientCredentials(**{**options, **changes})  # type: ignore[arg-type]

    def make_others(self, server: TokenServer, secret: str) -> Mapping[str, OAuth2Provider]:
        """Return providers that each differ in one setting."""
        changes: dict[str, object] = {
            "client_id": "other",
            "scope": "orders",
            "audience": "https://api.example",
            "resource": "https://api.example",
            "parameters": {"tenant": "one"},
            "client_auth": "client_secret_post",
            "token_url": f"{server.url}/elsewhere",
        }
        return {name: self.make_provider(server, secret, **{name: value}) for name, value in changes.items()}


class TestRefreshToken(ProviderContract):
    """Every law, on refresh tokens: the refresh token is the secret."""

    def make_provider(self, server: TokenServer, secret: str, **changes: object) -> OAuth2Provider:
        """Return a public client with a refresh token."""
        options: dict[str, object] = {"token_url": f"{server.url}/token", "client_id": "shop", "client_auth": "none"}
        return RefreshToken(refresh_token=secret, **{**options, **changes})  # type: ignore[arg-type]

    def make_others(self, server: TokenServer, secret: str) -> Mapping[str, OAuth2Provider]:
        """Return providers that each differ in one setting."""
        return {
            "client_id": self.make_provider(server, secret, client_id="other"),
            "scope": self.make_provider(server, secret, scope="orders"),
        }


class TestCustomGrant(ProviderContract):
    """Every law, on a JSON API that only resembles OAuth: the secret is a parameter, the token is nested."""

    def make_provider(self, server: TokenServer, secret: str, account: str = "1") -> OAuth2Provider:
        """Return a client that sends JSON."""
        return CustomGrant(
            grant_type="account_credentials",
            token_url=f"{server.url}/login",
            client_auth="none",
            parameters={"account": account, "password": secret},
            encoding="json",
            token_field="data.token",
        )

    def make_others(self, server: TokenServer, secret: str) -> Mapping[str, OAuth2Provider]:
        """Return another account's provider."""
        return {"account": self.make_provider(server, secret, account="2")}

    def token_reply(self, value: str, lifetime: float) -> Reply:
        """Return the token inside an object."""
        return json_reply({"data": {"token": value, "expires_in": lifetime}})


class TestCallable(ProviderContract):
    """Every law, on a plain function: its whole identity is the key that the author gives."""

    def make_provider(self, server: TokenServer, secret: str, scope: str = "") -> CallableProvider:
        """Return a function that logs in by client credentials."""
        inner = ClientCredentials(token_url=f"{server.url}/token", client_id="shop", client_secret=secret, scope=scope)
        return CallableProvider(self.function(inner), key=fingerprint(inner.name, inner.identity()))

    def make_others(self, server: TokenServer, secret: str) -> Mapping[str, CallableProvider]:
        """Return a function with another scope, and so another key."""
        return {"scope": self.make_provider(server, secret, scope="orders")}

    def function(self, inner: ClientCredentials) -> Callable[[FetchContext], Token | Awaitable[Token]]:
        """Return a function for threads."""
        return inner.fetch


class TestAsyncCallable(TestCallable):
    """Every law, on a coroutine function; for threads, the engine runs it in an event loop of its own."""

    def function(self, inner: ClientCredentials) -> Callable[[FetchContext], Token | Awaitable[Token]]:
        """Return a function for event loops."""

        async def login(context: FetchContext) -> Token:
            return await inner.afetch(context)

        return login


class TestQPay(ProviderContract):
    """Every law, on the plugin, which uses only the public interface."""

    rejecting = (400, 401, 403, 422)

    def make_provider(self, server: TokenServer, secret: str, merchant: str = "MERCHANT") -> QPayProvider:
        """Return a merchant's provider."""
        return QPayProvider(merchant, secret, base_url=server.url)

    def make_others(self, server: TokenServer, secret: str) -> Mapping[str, QPayProvider]:
        """Return another merchant's provider."""
        return {"merchant": self.make_provider(server, secret, merchant="OTHER")}

    def error_reply(self, status: int, said: str, headers: Mapping[str, str] | None = None) -> Reply:
        """Return an error in QPay's format."""
        return json_reply({"error": "AUTHENTICATION_FAILED", "message": said}, status, headers)
