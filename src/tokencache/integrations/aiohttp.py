"""``TokenAuth`` for aiohttp 3.12 and newer: a client middleware, ``ClientSession(middlewares=[TokenAuth(source)])``.

aiohttp calls a middleware for each redirect as if it were a new request. One call does not show whether it is a
redirect, so only the named origins get the token, or without names the origin of the first request.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import AsyncIterablePayload, hdrs

from tokencache.integrations._refusal import REFUSED, Answer, FirstOrigin, Origin, checked_statuses, heals

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from aiohttp import ClientRequest, ClientResponse, Payload
    from aiohttp.client_middlewares import ClientHandlerType
    from yarl import URL

    from tokencache.integrations._refusal import TokenSupply

__all__ = ["TokenAuth"]


class TokenAuth:
    """Puts the token of ``source`` into each request of an ``aiohttp.ClientSession``.

    A server refuses the token by status 401 or by ``error="invalid_token"`` in ``WWW-Authenticate``. Then the source
    replaces *that* token and the refused request is sent once more; a file is rewound. A second refusal is returned
    unchanged. So is the first one if the source has no other token (INV-6), if the scope does not suffice (INV-7), or
    if the body was streamed and cannot be sent again.

    ``refused`` are the statuses that refuse a token: add 403 for a server that sends it for an ended token.

    ``origins`` are the origins that may get the token, such as ``"https://api.example"``. Without them, only the origin
    of the first request gets it; requests to other origins, redirects included, go without the token.
    """

    def __init__(
        self, source: TokenSupply, *, origins: str | Iterable[str] = (), refused: Collection[int] = REFUSED
    ) -> None:
        self._source = source
        self._origins = FirstOrigin(origins)
        self._refused = checked_statuses(refused)

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
        if not heals(answer, token, self._refused):
            return response
        try:
            other = await self._source.areplace(token)
        except BaseException:  # the caller was cancelled, so only this code can close the answer
            response.close()
            raise
        if other is None:
            return response
        response.release()
        await request.close()  # the writer of the body must stop before the body is rewound
        request.headers[hdrs.AUTHORIZATION] = other.authorization
        return await handler(request)

    def __repr__(self) -> str:
        """Return a text without the token."""
        return f"TokenAuth({self._source!r})"


def _repeatable(body: Payload | bytes) -> bool:
    """Return whether a body can be sent again; a stream cannot, even if aiohttp does not call it consumed yet."""
    return isinstance(body, bytes) or not (body.consumed or isinstance(body, AsyncIterablePayload))


def _origin(url: URL) -> Origin:
    """Return the origin of a URL."""
    return Origin.of(url.scheme, url.raw_host or "", url.port)
