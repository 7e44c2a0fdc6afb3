"""``HTTPTokenProvider``: a sync and async provider from one generator that yields requests and receives responses."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping
from contextlib import asynccontextmanager, contextmanager
from http.cookiejar import Cookie
from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar

import httpx

from tokencache.errors import ConfigurationError, ProviderUnavailable, TokenCacheError
from tokencache.providers._exchange import (
    Body,
    TimedRequest,
    checked,
    cookies_of,
    plain_response,
    restore_cookies,
)
from tokencache.providers._preparation import prepare
from tokencache.providers.oauth_response import raise_for_error
from tokencache.providers.transport import host_of, new_client
from tokencache.steps import adrive, drive
from tokencache.token import Token

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncGenerator

    from tokencache.ports import FetchContext

__all__ = ["HTTPTokenProvider", "TokenFlow"]

TokenFlow: TypeAlias = Generator[httpx.Request, httpx.Response, Token]
_Reply: TypeAlias = httpx.Response | TokenCacheError
_Client = TypeVar("_Client", httpx.Client, httpx.AsyncClient)
_Cookies: TypeAlias = Mapping[tuple[str, str, str], Cookie]

_CLIENT_CLOSED: Final = "the HTTP client that was passed in is closed; keep it open as long as the provider"


class HTTPTokenProvider(ABC):
    """The base of a provider that speaks HTTP; a subclass gives ``name``, ``identity`` and ``token_flow``.

    The provider uses ``client`` and ``async_client`` if given, and never closes them. It uses only their transport
    (pool, proxies, TLS) and event hooks: not their auth, headers, cookies or redirects. The cookies of a token response
    do not stay in their jar. Without a given client, each fetch makes its own. A token is fetched about once an hour,
    so a kept connection saves nothing, and event loops and forks cannot share it by mistake. ``verify`` holds the TLS
    settings, for example for a private CA.

    ``timeout`` limits each request, in seconds; so does ``context.timeout``. A request lowers its own limit by the
    extension ``{"timeout": {"read": seconds}}``.

    The body of an answer is limited to 1 MiB. Redirects are never followed, so that no other server gets the
    credential.

    ``fetch`` and ``afetch`` raise ``ProviderRejected``, ``ProviderUnavailable`` or ``ConfigurationError``.
    """

    name: str

    def __init__(
        self,
        *,
        client: httpx.Client | None = None,
        async_client: httpx.AsyncClient | None = None,
        timeout: float = 10.0,
        verify: ssl.SSLContext | None = None,
    ) -> None:
        if not 0 < timeout < float("inf"):
            message = f"[{self.name}] timeout={timeout!r} must be a finite number of seconds above 0"
            raise ConfigurationError(message)
        self._client = client
        self._async_client = async_client
        self._timeout = timeout
        self._verify = verify

    @abstractmethod
    def identity(self) -> Mapping[str, object]:
        """Return the identity of its tokens; a value wrapped in ``Secret`` stays hidden."""

    @abstractmethod
    def token_flow(self, context: FetchContext) -> TokenFlow:
        """Yield requests, receive their responses, return the token.

        A response is complete (its body is in memory) and is not a redirect. A time-out or a broken connection raises
        ``ProviderUnavailable`` at the ``yield``: catch it there to try another way.
        """

    def fetch(self, context: FetchContext) -> Token:
        """Obtain a token by ``context.deadline``, blocking."""
        with self._session(context) as client:

            def perform(request: httpx.Request) -> httpx.Response:
                return self._judged(self._send(client, self._call(request, context)))

            return drive(self._steps(context), perform)

    async def afetch(self, context: FetchContext) -> Token:
        """Obtain a token by ``context.deadline`` in the running event loop."""
        async with self._asession(context) as client:

            async def perform(request: httpx.Request) -> httpx.Response:
                return self._judged(await self._asend(client, self._call(request, context)))

            return await adrive(self._steps(context), perform)

    def __repr__(self) -> str:
        """Return a text without credentials."""
        return f"<{type(self).__name__} {self.name!r}>"

    def _steps(self, context: FetchContext) -> TokenFlow:
        """Follow ``token_flow``, and translate what its own code raises of httpx."""
        refused: httpx.Response
        try:
            return (yield from self.token_flow(context))
        except httpx.InvalidURL:
            message = f"[{self.name}] the token address is not a URL; check its spelling"
            raise ConfigurationError(message) from None
        except httpx.HTTPStatusError as error:
            refused = error.response
        raise_for_error(refused, provider=self.name)
        message = f"[{self.name}] the answer with status {refused.status_code} was not understood"
        raise ProviderUnavailable(message, status=refused.status_code)

    def _call(self, request: httpx.Request, context: FetchContext) -> TimedRequest:
        own: Mapping[str, float] = request.extensions.get("timeout", {})
        limit = min(self._timeout, context.timeout, own.get("read", self._timeout))
        if limit <= 0:
            message = f"[{self.name}] no time was left to ask {host_of(request.url)}; give the call a longer timeout"
            raise ProviderUnavailable(message)
        return TimedRequest(self.name, checked(self.name, request), context.clock, context.clock() + limit, limit)

    def _judged(self, reply: _Reply) -> httpx.Response:
        """Return the response that came; raise what stopped the request, and refuse a redirect.

        INV-9: it raises outside the handler of the third-party error, which would otherwise be its context.
        """
        if isinstance(reply, TokenCacheError):
            raise reply
        if 300 <= reply.status_code < 400:  # noqa: PLR2004
            message = (
                f"[{self.name}] {host_of(reply.request.url)} answered with a redirect (status {reply.status_code}),"
                " which was refused so that the credential goes nowhere else; configure the final address"
            )
            raise ProviderUnavailable(message, status=reply.status_code)
        return reply

    def _send(self, client: httpx.Client, call: TimedRequest) -> _Reply:
        before = cookies_of(client.cookies.jar)
        try:
            with call.bound() as streams:
                response = client.send(call.request, stream=True, auth=None, follow_redirects=False)
                try:
                    streams.extend(filter(None, [response.extensions.get("network_stream")]))
                    restore_cookies(client.cookies.jar, before, response)
                    if response.is_stream_consumed:  # a transport that answers from memory
                        return plain_response(response, response.content)
                    body = Body(call, response.headers.get("content-encoding", ""))
                    for chunk in response.iter_raw():
                        body.feed(chunk)
                        call.check()
                    return plain_response(response, body.complete())
                finally:
                    response.close()
        except Exception as error:  # noqa: BLE001  a transport that was passed in may raise anything
            return _reply_for(error, call, client, before)

    async def _asend(self, client: httpx.AsyncClient, call: TimedRequest) -> _Reply:
        call.abound()
        before = cookies_of(client.cookies.jar)
        try:
            async with asyncio.timeout(call.remaining):
                response = await client.send(call.request, stream=True, auth=None, follow_redirects=False)
                try:
                    restore_cookies(client.cookies.jar, before, response)
                    if response.is_stream_consumed:
                        return plain_response(response, response.content)
                    body = Body(call, response.headers.get("content-encoding", ""))
                    async for chunk in response.aiter_raw():
                        body.feed(chunk)
                    return plain_response(response, body.complete())
                finally:
                    await response.aclose()
        except Exception as error:  # noqa: BLE001  a transport that was passed in may raise anything
            return _reply_for(error, call, client, before)

    @contextmanager
    def _session(self, context: FetchContext) -> Generator[httpx.Client]:
        """Give the client for one fetch: the caller's, or a fresh one that is closed after it."""
        if self._client is not None:
            yield self._open(self._client)
            return
        with self._fresh(httpx.Client, context) as client:
            yield client

    @asynccontextmanager
    async def _asession(self, context: FetchContext) -> AsyncGenerator[httpx.AsyncClient]:
        if self._async_client is not None:
            yield self._open(self._async_client)
            return
        await prepare(self._verify)
        async with self._fresh(httpx.AsyncClient, context) as client:
            yield client

    def _open(self, client: _Client) -> _Client:
        if client.is_closed:
            message = f"[{self.name}] {_CLIENT_CLOSED}"
            raise ConfigurationError(message)
        return client

    def _fresh(self, kind: type[_Client], context: FetchContext) -> _Client:
        try:
            return new_client(kind, verify=self._verify, warn=context.warn)
        except (OSError, ValueError, ImportError, httpx.InvalidURL) as error:
            reason = type(error).__name__
        message = (
            f"[{self.name}] cannot make an HTTP client ({reason});"
            " check the proxy variables (HTTPS_PROXY, ALL_PROXY, NO_PROXY) and SSL_CERT_FILE"
        )
        raise ConfigurationError(message)


def _reply_for(
    error: Exception, call: TimedRequest, client: httpx.Client | httpx.AsyncClient, before: _Cookies
) -> _Reply:
    """Return what the flow gets for an exception: its response, if a hook of the client raised for its status."""
    if isinstance(error, TokenCacheError):
        return error
    if isinstance(error, httpx.HTTPStatusError):
        restore_cookies(client.cookies.jar, before, error.response)
        return plain_response(error.response, b"")
    return call.explain(error)
