"""``TokenAuth`` for aiohttp 3.12 and newer: a client middleware, ``ClientSession(middlewares=[TokenAuth(source)])``.

aiohttp calls a middleware for each hop of a chain of redirects as if it were a new request. So where a token may go
cannot be read from one call: it goes to the origins that were named, or to the one that was asked first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import AsyncIterablePayload, hdrs

from tokencache.integrations._refusal import Answer, FirstOrigin, Origin, heals

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aiohttp import ClientRequest, ClientResponse, Payload
    from aiohttp.client_middlewares import ClientHandlerType
    from yarl import URL

    from tokencache.integrations._refusal import TokenSupply

__all__ = ["TokenAuth"]


class TokenAuth:
    """Puts the token of ``source`` into each request of an ``aiohttp.ClientSession``.

    When the server refuses the token, by status 401 or by ``error="invalid_token"`` in ``WWW-Authenticate``, the
    source replaces *that* token and the refused request is sent once more; a file goes back to where it began. A second
    refusal is given back as it is, and so is the first where the source has no other token (INV-6), where the scope
    does not suffice (INV-7), and where a body was streamed and so cannot be sent again.

    ``origins`` are the origins that may have the token, such as ``"https://api.example"``. Without them it is the
    origin that is asked first, and no other: a request there goes without the token, by redirect or not.
    """

    def __init__(self, source: TokenSupply, *, origins: str | Iterable[str] = ()) -> None:
        self._source = source
        self._origins = FirstOrigin(origins)

    async def __call__(self, request: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
        """Send the request, and once more with another token if the first was refused."""
        origin = _origin(request.url)
        if not self._origins.allow(origin):
            return await handler(request)
        token = await self._source.atoken()
        request.headers[hdrs.AUTHORIZATION] = token.authorization
        response = await handler(request)
        answer = Answer(
            status=response.status,
            challenge=", ".join(response.headers.getall(hdrs.WWW_AUTHENTICATE, ())),
            asked=origin,
            answered=origin,
            carried=request.headers.get(hdrs.AUTHORIZATION),
            repeatable=_repeatable(request.body),
        )
        if not heals(answer, token):
            return response
        try:
            other = await self._source.areplace(token)
        except BaseException:  # the caller was cancelled: nobody else has this answer
            response.close()
            raise
        if other is None:
            return response
        response.release()
        await request.close()  # whatever still writes the body must stop before the body goes back to its start
        request.headers[hdrs.AUTHORIZATION] = other.authorization
        return await handler(request)

    def __repr__(self) -> str:
        """Return a text without the token."""
        return f"TokenAuth({self._source!r})"


def _repeatable(body: Payload | bytes) -> bool:
    """Return whether a body can be sent again; a stream cannot, also while aiohttp does not call it consumed yet."""
    return isinstance(body, bytes) or not (body.consumed or isinstance(body, AsyncIterablePayload))


def _origin(url: URL) -> Origin:
    """Return the origin of a URL."""
    return Origin.of(url.scheme, url.raw_host or "", url.port)
