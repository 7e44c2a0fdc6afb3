"""``TokenAuth`` for httpx and for its successor httpx2, which have one interface and two sets of classes.

Both libraries follow redirects inside the auth flow. They remove ``Authorization`` from a request to another origin,
except from ``http`` to ``https`` of the same host on default ports. The flow gets only the last answer, so it checks
which origin sent it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

from tokencache.integrations._refusal import REFUSED, Answer, Origin, Origins, checked_statuses, heals

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Collection, Generator, Iterable, MutableMapping

    from tokencache.integrations._refusal import TokenSupply
    from tokencache.token import Token


class URL(Protocol):
    """The common part of both libraries' URLs."""

    @property
    def scheme(self) -> str:
        """The scheme, in lower case."""
        ...

    @property
    def raw_host(self) -> bytes:
        """The host in its wire form."""
        ...

    @property
    def port(self) -> int | None:
        """The port, ``None`` for the scheme's default."""
        ...


class Request(Protocol):
    """The common part of both libraries' requests."""

    @property
    def url(self) -> URL:
        """Its URL."""
        ...

    @property
    def headers(self) -> MutableMapping[str, str]:
        """Its headers."""
        ...

    @property
    def stream(self) -> object:
        """Its body."""
        ...

    def read(self) -> bytes:
        """Take the body into memory."""
        ...

    async def aread(self) -> bytes:
        """Take the body into memory."""
        ...


RequestT = TypeVar("RequestT", bound="Request")
ResponseT = TypeVar("ResponseT", bound="Any")  # a protocol would be recursive: a response holds its request


class TokenFlow(Generic[RequestT, ResponseT]):
    """The auth flow, sync and async on one object; a subclass adds the ``Auth`` of its library."""

    requires_request_body = False
    _in_memory: ClassVar[type]
    """The class of the library for bodies that are in memory."""

    def __init__(
        self, source: TokenSupply, *, origins: str | Iterable[str] = (), refused: Collection[int] = REFUSED
    ) -> None:
        self._source = source
        self._origins = Origins(origins)
        self._refused = checked_statuses(refused)

    def sync_auth_flow(self, request: RequestT) -> Generator[RequestT, ResponseT]:
        """Send the request, and once more with another token if the first was refused."""
        if self.requires_request_body:
            request.read()
        asked = _origin(request.url)
        if not self._origins.allow(asked):
            yield request
            return
        token = self._source.token()
        response = yield _with(request, token)
        if not heals(self._answer(asked, response), token, self._refused):
            return
        other = self._source.replace(token)
        if other is not None:
            yield _with(_request_of(response), other)

    async def async_auth_flow(self, request: RequestT) -> AsyncGenerator[RequestT, ResponseT]:
        """Send the request, and once more with another token if the first was refused."""
        if self.requires_request_body:
            await request.aread()
        asked = _origin(request.url)
        if not self._origins.allow(asked):
            yield request
            return
        token = await self._source.atoken()
        response = yield _with(request, token)
        if not heals(self._answer(asked, response), token, self._refused):
            return
        other = await self._source.areplace(token)
        if other is not None:
            yield _with(_request_of(response), other)

    def __repr__(self) -> str:
        """Return a text without the token."""
        return f"TokenAuth({self._source!r})"

    def _answer(self, asked: Origin, response: ResponseT) -> Answer:
        """Describe the answer to the last request; after a redirect that is not the caller's own request."""
        request: RequestT = _request_of(response)
        return Answer(
            status=response.status_code,
            challenge=response.headers.get("WWW-Authenticate", ""),
            asked=asked,
            answered=_origin(request.url),
            carried=request.headers.get("Authorization"),
            repeatable=isinstance(request.stream, self._in_memory) or _rewinds(request.stream),
        )


def _request_of(response: Any) -> Any:  # noqa: ANN401  (the request of whichever library)
    """Return the refused request, to send it again; the requests before a redirect are not repeated."""
    return response.request


def _with(request: RequestT, token: Token) -> RequestT:
    """Return the request with the token in it."""
    request.headers["Authorization"] = token.authorization
    return request


def _origin(url: URL) -> Origin:
    """Return the origin of a URL of either library."""
    return Origin.of(url.scheme, url.raw_host.decode("ascii"), url.port)


def _rewinds(stream: object) -> bool:
    """Return whether a body is a multipart form, which rewinds its files itself when it is sent again."""
    fields = getattr(stream, "fields", None)
    if not isinstance(fields, list):
        return False
    files: list[object] = [getattr(part, "file", b"") for part in fields]  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    return all(isinstance(file, str | bytes) or _seekable(file) for file in files)


def _seekable(file: object) -> bool:
    """Return whether a file is seekable."""
    seekable = getattr(file, "seekable", None)
    return callable(seekable) and bool(seekable())
