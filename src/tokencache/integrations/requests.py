"""``TokenAuth`` for requests: the token of a source in every request, and one replay after a refusal.

Requests calls the auth when it prepares a request, so the token is added there, and a hook checks each answer. A
redirect is a copy of the request with its hooks. Requests removes ``Authorization`` from a redirect to another origin,
except from ``http`` to ``https`` of the same host on default ports.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

from requests import RequestException
from requests.auth import AuthBase

from tokencache.integrations._refusal import REFUSED, Answer, Origin, Origins, checked_statuses, heals

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from requests import PreparedRequest, Response

    from tokencache.integrations._refusal import TokenSupply
    from tokencache.token import Token

__all__ = ["TokenAuth"]


class TokenAuth(AuthBase):
    """Puts the token of ``source`` into each request of a ``requests.Session``, or of a single call.

    A server refuses the token by status 401 or by ``error="invalid_token"`` in ``WWW-Authenticate``. Then the source
    replaces *that* token and the refused request is sent once more; a file is rewound. A second refusal is returned
    unchanged. So is the first one if the source has no other token (INV-6), if the scope does not suffice (INV-7), if
    the body was streamed and cannot be sent again, or if a redirect led to another origin. The refused answer is the
    first in the ``history`` of the new one.

    ``refused`` are the statuses that refuse a token: add 403 for a server that sends it for an ended token.

    ``origins`` are the origins that may get the token, such as ``"https://api.example"``; other requests go without it.
    By default each request of the caller carries it, but not a redirect to another origin.
    """

    def __init__(
        self, source: TokenSupply, *, origins: str | Iterable[str] = (), refused: Collection[int] = REFUSED
    ) -> None:
        self._source = source
        self._origins = Origins(origins)
        self._refused = checked_statuses(refused)

    def __call__(self, r: PreparedRequest) -> PreparedRequest:
        """Put the token into a request that is being prepared."""
        asked = Origin.parse(r.url or "")
        if self._origins.allow(asked):
            token = self._source.token()
            r.headers["Authorization"] = token.authorization
            prepared: Any = r  # its hooks have no types
            prepared.register_hook("response", _Watch(self._source, r, token, asked, self._refused))
        return r

    def __repr__(self) -> str:
        """Return a text without the token."""
        return f"TokenAuth({self._source!r})"


class _Watch:
    """The hook of one request of the caller: it checks each answer, also after redirects, and replays once."""

    def __init__(
        self, source: TokenSupply, request: PreparedRequest, token: Token, asked: Origin, refused: Collection[int]
    ) -> None:
        self._source = source
        self._request = request
        self._token = token
        self._asked = asked
        self._refused = refused
        self._start = _position(request.body)
        self._replayed = False

    def __call__(self, response: Response, **sending: Any) -> Response:  # noqa: ANN401  (what Session.send was given)
        """Return the answer, or the answer to the same request with another token."""
        request = response.request
        if request is self._request:  # the caller's own, not a redirect's copy; a prepared one may be sent many times
            self._replayed = False
        if self._replayed or not heals(self._answer(response), self._token, self._refused):
            return response

        other = self._source.replace(self._token)
        if other is None:
            return response

        self._replayed = True
        self._token = other
        # Changed in place, because requests copies a redirect of the replay from this object.
        request.headers["Authorization"] = other.authorization
        if self._start is not None:
            body: Any = request.body
            body.seek(self._start)
        with suppress(RequestException, RuntimeError):  # a fully read answer frees its connection for reuse
            _ = response.content
        response.close()
        again: Response = response.connection.send(request, **sending)
        again.history.append(response)
        return again

    def _answer(self, response: Response) -> Answer:
        """Describe the answer to a request; after a redirect that is not the caller's own request."""
        request = response.request
        body = cast("object", request.body)
        return Answer(
            status=response.status_code,
            challenge=response.headers.get("WWW-Authenticate", ""),
            asked=self._asked,
            answered=Origin.parse(request.url or ""),
            carried=request.headers.get("Authorization"),
            repeatable=body is None or isinstance(body, str | bytes) or self._start is not None,
        )


def _position(body: Any) -> int | None:  # noqa: ANN401  (anything that requests sends)
    """Return the position of a file, ``None`` if the body is not a seekable file."""
    seekable = getattr(body, "seekable", None)
    if seekable is None or not seekable():
        return None
    position: int = body.tell()
    return position
