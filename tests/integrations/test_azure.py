"""The credentials for Azure SDKs, in azure.core's own pipelines, against a server on loopback."""

from __future__ import annotations

import asyncio
import base64
import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from azure.core.credentials import SupportsTokenInfo, TokenCredential
from azure.core.credentials_async import AsyncSupportsTokenInfo, AsyncTokenCredential
from azure.core.exceptions import ClientAuthenticationError, ServiceRequestError
from azure.core.pipeline import AsyncPipeline, Pipeline
from azure.core.pipeline.policies import (
    AsyncBearerTokenCredentialPolicy,
    AsyncRetryPolicy,
    BearerTokenCredentialPolicy,
    RetryPolicy,
)
from azure.core.pipeline.transport import AioHttpTransport, RequestsTransport
from azure.core.rest import HttpRequest

from tokencache import TokenCache
from tokencache.errors import ConfigurationError, ProviderRejected, ProviderUnavailable
from tokencache.integrations.azure import AsyncSourceCredential, SourceCredential
from tokencache.testing.fakes import FakeClock, FakeProvider

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TypeAlias

    from conftest import API, Issuer
    from tokencache.source import TokenSource

    Serve: TypeAlias = Callable[..., API]

SCOPE = "https://storage.azure.com/.default"
CROWD = 6


def challenge(claims: object) -> str:
    """Return the header of a claims challenge."""
    encoded = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return f'Bearer realm="", error="insufficient_claims", claims="{encoded}"'


def on_thread(credential: SourceCredential, *urls: str) -> list[int]:
    """Send requests in turn through a new pipeline, as an SDK client does."""
    policies = [RetryPolicy(retry_backoff_factor=0), BearerTokenCredentialPolicy(credential, SCOPE)]
    with Pipeline(RequestsTransport(), policies) as pipeline:
        return [
            pipeline.run(HttpRequest("GET", url), enforce_https=False).http_response.status_code  # type: ignore[misc]
            for url in urls
        ]


async def on_loop(credential: AsyncSourceCredential, *urls: str) -> list[int]:
    """Send requests in turn through a new async pipeline."""
    policies = [AsyncRetryPolicy(retry_backoff_factor=0), AsyncBearerTokenCredentialPolicy(credential, SCOPE)]
    async with AsyncPipeline(AioHttpTransport(), policies) as pipeline:
        return [
            (await pipeline.run(HttpRequest("GET", url), enforce_https=False)).http_response.status_code for url in urls
        ]


def send(kind: str, source: Any, *urls: str) -> list[int]:  # noqa: ANN401  (a source, or what stands for one)
    """Send requests in turn, by threads or by loops."""
    if kind == "sync":
        return on_thread(SourceCredential(source, SCOPE), *urls)
    return asyncio.run(on_loop(AsyncSourceCredential(source, SCOPE), *urls))


KINDS = pytest.mark.parametrize("kind", ["sync", "async"])


@pytest.fixture
def clock() -> FakeClock:
    """A clock set by hand."""
    return FakeClock()


@pytest.fixture
def provider(clock: FakeClock) -> FakeProvider:
    """A provider on that clock."""
    return FakeProvider(wall=clock.wall)


@pytest.fixture
def source(clock: FakeClock, provider: FakeProvider) -> Iterator[TokenSource]:
    """A source on that clock."""
    with TokenCache("memory://", clock=clock, wall=clock.wall) as cache:
        yield cache.source(provider)


def test_the_credentials_have_the_types_that_sdks_require(issuer: Issuer) -> None:
    """Both satisfy azure.core's protocols, also those for ``get_token_info``."""
    credential, acredential = SourceCredential(issuer.source, SCOPE), AsyncSourceCredential(issuer.source, SCOPE)
    assert isinstance(credential, TokenCredential)
    assert isinstance(credential, SupportsTokenInfo)
    assert isinstance(acredential, AsyncTokenCredential)
    assert isinstance(acredential, AsyncSupportsTokenInfo)
    with credential as same:
        assert same is credential
    credential.close()


@KINDS
def test_an_sdk_sends_the_fleets_token(kind: str, issuer: Issuer, serve: Serve) -> None:
    """A pipeline sends the source's token, and a new token at once when the source has one."""
    api = serve(1, 2)
    assert send(kind, issuer.source, api.url, api.url) == [200, 200]
    issuer.source.renew()
    assert send(kind, issuer.source, api.url) == [200]
    assert api.tokens == ["Bearer fake-token-1"] * 2 + ["Bearer fake-token-2"]
    assert issuer.calls == 2


@KINDS
def test_a_pipeline_keeps_no_copy_of_the_token(
    kind: str, clock: FakeClock, provider: FakeProvider, source: TokenSource
) -> None:
    """``refresh_on`` is past, so a pipeline asks the credential for each request, even with a long-lived copy."""
    clock.wall_at = 1_000.0
    if kind == "sync":
        info = SourceCredential(source, SCOPE).get_token_info(SCOPE, options={"enable_cae": True})
    else:
        info = asyncio.run(AsyncSourceCredential(source, SCOPE).get_token_info(SCOPE))
    assert (info.token, info.token_type) == ("fake-token-1", "Bearer")
    assert (info.expires_on, info.refresh_on) == (4_600, 1_000)
    assert isinstance(info.expires_on, int)


@KINDS
def test_the_older_protocol_gets_token_and_expiry(kind: str, clock: FakeClock, source: TokenSource) -> None:
    """``get_token`` returns value and expiry, in whole epoch seconds, never later than the true one."""
    clock.wall_at = 1_000.9
    if kind == "sync":
        given = SourceCredential(source, SCOPE).get_token(SCOPE, enable_cae=True)
    else:
        given = asyncio.run(AsyncSourceCredential(source, SCOPE).get_token(SCOPE))
    assert (given.token, given.expires_on) == ("fake-token-1", 4_600)


@KINDS
@pytest.mark.parametrize(
    ("scopes", "tenant", "said"),
    [(("https://vault.azure.net/.default",), None, "vault"), ((SCOPE, "b"), None, "b"), ((SCOPE,), "other", "other")],
)
def test_a_request_for_another_scope_or_tenant_is_refused(
    kind: str, issuer: Issuer, scopes: tuple[str, ...], tenant: str | None, said: str
) -> None:
    """Another scope or tenant than the source's is refused, with both named, before the source is asked (INV-10)."""

    def get() -> object:
        if kind == "sync":
            return SourceCredential(issuer.source, SCOPE, tenant_id="home").get_token(*scopes, tenant_id=tenant)
        acredential = AsyncSourceCredential(issuer.source, SCOPE, tenant_id="home")
        return asyncio.run(acredential.get_token(*scopes, tenant_id=tenant))

    with pytest.raises(ClientAuthenticationError, match=rf"is for .*'(home|{SCOPE})'.*{said}"):
        get()
    assert issuer.calls == 0


def test_the_order_of_scopes_does_not_count(issuer: Issuer) -> None:
    """Some or all of the scopes, in any order, with the source's tenant or without one, get the one token."""
    credential = SourceCredential(issuer.source, "a", "b", tenant_id="home")
    values = {credential.get_token(*scopes).token for scopes in (("a", "b"), ("b", "a"), ("b",))}
    values |= {credential.get_token("a", tenant_id="home").token}
    assert values == {"fake-token-1"}
    with pytest.raises(ConfigurationError, match="give the scopes"):
        SourceCredential(issuer.source)


@KINDS
def test_a_revoked_token_is_replaced_once(
    kind: str, clock: FakeClock, provider: FakeProvider, source: TokenSource, serve: Serve
) -> None:
    """A challenge that demands a later token gets one; others that report the old token get the same one (INV-6)."""
    nbf = {"access_token": {"nbf": {"essential": True, "value": str(int(clock.wall_at) + 5)}}}
    api = serve(2, challenge=challenge(nbf))
    api.crowd = CROWD
    source.token()
    clock.advance(10)
    if kind == "sync":
        with ThreadPoolExecutor(CROWD) as pool:
            credential = SourceCredential(source, SCOPE)
            statuses = [*pool.map(lambda _: on_thread(credential, api.url), range(CROWD))]
    else:
        acredential = AsyncSourceCredential(source, SCOPE)

        async def scenario() -> list[list[int]]:
            return await asyncio.gather(*(on_loop(acredential, api.url) for _ in range(CROWD)))

        statuses = asyncio.run(scenario())
    assert statuses == [[200]] * CROWD
    assert provider.calls == 2


@KINDS
def test_a_challenge_that_the_token_satisfies_costs_no_login(
    kind: str, clock: FakeClock, provider: FakeProvider, source: TokenSource, serve: Serve
) -> None:
    """If the source's token is late enough by now, a report of the old token gets it without a login (INV-6)."""
    source.token()
    clock.advance(10)
    claims = json.dumps({"access_token": {"nbf": {"essential": True, "value": str(int(clock.wall_at) - 5)}}})
    source.renew()
    if kind == "sync":
        given = SourceCredential(source, SCOPE).get_token(SCOPE, claims=claims)
    else:
        given = asyncio.run(AsyncSourceCredential(source, SCOPE).get_token(SCOPE, claims=claims))
    assert given.token == "fake-token-2"
    assert provider.calls == 2


@KINDS
@pytest.mark.parametrize("claims", [{"access_token": {"acrs": {"value": "c1"}}}, {"id_token": {}}, [], {"a": 1}])
def test_unsupported_claims_are_refused(kind: str, issuer: Issuer, serve: Serve, claims: object) -> None:
    """A challenge for another claim ends with an error and without a login."""
    api = serve(challenge=challenge(claims))
    with pytest.raises(ClientAuthenticationError, match="cannot add claims"):
        send(kind, issuer.source, api.url)
    assert issuer.calls == 1


@KINDS
def test_a_plain_401_reaches_the_caller(kind: str, issuer: Issuer, serve: Serve) -> None:
    """azure.core reports no other refusal to a credential: the 401 reaches the caller, without a login."""
    assert send(kind, issuer.source, serve().url) == [401]
    assert issuer.calls == 1


@KINDS
def test_errors_are_azure_cores(kind: str, issuer: Issuer, serve: Serve) -> None:
    """A pipeline treats a rejection as final and retries an outage; the source's own error is the cause (INV-9)."""
    api = serve()
    issuer.failure = ProviderRejected("no such client", error="invalid_client")
    with pytest.raises(ClientAuthenticationError, match="no such client") as rejected:
        send(kind, issuer.source, api.url)
    assert isinstance(rejected.value.__cause__, ProviderRejected)
    other = FakeProvider("other")
    other.failure = ProviderUnavailable("busy")
    with pytest.raises(ServiceRequestError, match="busy") as busy:
        send(kind, issuer.cache.source(other), api.url)
    assert isinstance(busy.value.__cause__, ProviderUnavailable)
    assert api.asked == []


def test_no_repr_shows_the_token(issuer: Issuer) -> None:
    """The credential's repr contains only source and scopes (INV-9)."""
    credential = SourceCredential(issuer.source, SCOPE)
    credential.get_token(SCOPE)
    assert repr(credential) == f"SourceCredential({issuer.source!r}, '{SCOPE}')"
