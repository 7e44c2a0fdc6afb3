"""``TokenAuth`` for httpx: the token of a source in every request, and one replay after a refusal.

The flow never follows a redirect itself: in httpx redirects are handled inside the auth flow, which strips
``Authorization`` from a request to another origin (only from ``http`` to ``https`` of the same host, on their
default ports, it stays). The flow sees the last answer, so it must look where that came from before it answers.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, Protocol

import httpx

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator

    from tokencache.token import Token

__all__ = ["TokenAuth", "TokenSupply"]

_UNAUTHORIZED: Final = 401
_BAD_TOKEN: Final = re.compile(r'\berror\s*=\s*"?invalid_token\b', re.IGNORECASE)
_BAD_SCOPE: Final = re.compile(r'\berror\s*=\s*"?insufficient_scope\b', re.IGNORECASE)


class TokenSupply(Protocol):
    """What ``TokenAuth`` needs of a source; a :class:`tokencache.TokenSource` has it."""

    def token(self) -> Token:
        """Return a good token."""
        ...

    async def atoken(self) -> Token:
        """Return a good token."""
        ...

    def replace(self, token: Token) -> Token | None:
        """Return another token after ``token`` was refused with a 401, or ``None`` when there is none better."""
        ...

    async def areplace(self, token: Token) -> Token | None:
        """Return another token after ``token`` was refused with a 401, or ``None`` when there is none better."""
        ...


class TokenAuth(httpx.Auth):
    """Puts the token of ``source`` into each request of an ``httpx.Client`` or ``httpx.AsyncClient``.

    When the server refuses the token, by status 401 or by ``error="invalid_token"`` in ``WWW-Authenticate``, the
    source replaces *that* token and the refused request is sent once more. A second refusal is given back as it is,
    and so is the first where the source has no other token (INV-6), where the scope does not suffice (INV-7), where
    a body was streamed and so cannot be sent again, and where another origin answered than the one asked.

    Setting ``requires_request_body`` on the object reads streamed bodies into memory, so that they can be sent again.
    """

    def __init__(self, source: TokenSupply) -> None:
        self._source = source

    def sync_auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response]:
        """Send the request, and once more with another token if the first was refused."""
        if self.requires_request_body:
            request.read()
        token = self._source.token()
        response = yield _with(request, token)
        again = _refused(request, response, token)
        if again is None:
            return
        other = self._source.replace(token)
        if other is not None:
            yield _with(again, other)

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """Send the request, and once more with another token if the first was refused."""
        if self.requires_request_body:
            await request.aread()
        token = await self._source.atoken()
        response = yield _with(request, token)
        again = _refused(request, response, token)
        if again is None:
            return
        other = await self._source.areplace(token)
        if other is not None:
            yield _with(again, other)

    def __repr__(self) -> str:
        """Return a text without the token."""
        return f"TokenAuth({self._source!r})"


def _with(request: httpx.Request, token: Token) -> httpx.Request:
    """Return the request with the token in it."""
    request.headers["Authorization"] = token.authorization
    return request


def _refused(asked: httpx.Request, response: httpx.Response, token: Token) -> httpx.Request | None:
    """Return the request to send again, or ``None`` when the answer stands.

    It is the one that was refused, which after a redirect is not the one first asked: that one was served.
    """
    request = response.request
    carried = request.headers.get("Authorization") == token.authorization
    if not carried or _origin(request.url) != _origin(asked.url) or not _says_bad_token(response):
        return None
    return request if isinstance(request.stream, httpx.ByteStream) else None


def _says_bad_token(response: httpx.Response) -> bool:
    """Return whether a server refused the token itself (RFC 6750 section 3.1)."""
    challenge = response.headers.get("WWW-Authenticate", "")
    if not response.is_client_error or _BAD_SCOPE.search(challenge):
        return False
    return response.status_code == _UNAUTHORIZED or _BAD_TOKEN.search(challenge) is not None


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    """Return scheme, host and port; httpx leaves out a port that is the scheme's own."""
    return url.scheme, url.host, url.port
