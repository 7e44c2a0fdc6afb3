"""TokenAuth for httpx: the header, one replay after a refusal, and never a token to another origin."""

from __future__ import annotations

import asyncio
import io
from typing import TYPE_CHECKING

import httpx
import pytest

from tokencache.integrations.httpx import TokenAuth
from tokencache.token import Token
from tokencache_qpay.testing import _server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from typing import Self

CLIENTS = pytest.mark.parametrize("kind", ["sync", "async"])
INVALID = 'Bearer realm="x", error="invalid_token", error_description="expired"'
SCOPE = 'Bearer error="insufficient_scope", scope="admin"'


def token(number: int) -> Token:
    """Return a token that differs from others by its number."""
    return Token(f"token-{number}", expires_at=2e9, issued_at=1e9)


class StubSource:
    """A source of numbered tokens that keeps what it was asked."""

    def __init__(self, *, spare: int = 1) -> None:
        self._now = token(1)
        self._spare = spare
        self.replaced: list[Token] = []

    def token(self) -> Token:
        """Return the current token."""
        return self._now

    async def atoken(self) -> Token:
        """Return the current token."""
        return self._now

    def replace(self, refused: Token) -> Token | None:
        """Return the next token, while there is one."""
        self.replaced.append(refused)
        if not self._spare:
            return None
        self._spare -= 1
        self._now = token(len(self.replaced) + 1)
        return self._now

    async def areplace(self, refused: Token) -> Token | None:
        """Return the next token, while there is one."""
        return self.replace(refused)


class Server:
    """A loopback server that keeps what was asked of it, and answers by a function of the request."""

    def __init__(self, *accepts: str, challenge: str = INVALID, status: int = 401) -> None:
        self._accepts = {f"Bearer {value}" for value in accepts}
        self._refusal = _server.Reply(status, b"no", (("WWW-Authenticate", challenge),))
        self.redirects: dict[str, tuple[int, str]] = {}
        self.asked: list[_server.Asked] = []
        self._server = _server.LoopbackServer(self._answer)

    @property
    def url(self) -> str:
        """Its origin."""
        return f"http://127.0.0.1:{self._server.port}"

    @property
    def tokens(self) -> list[str | None]:
        """The Authorization headers that it saw, in order."""
        return [asked.headers.get("authorization") for asked in self.asked]

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop()

    async def _answer(self, asked: _server.Asked) -> _server.Reply:
        self.asked.append(asked)
        if asked.path in self.redirects:
            status, location = self.redirects[asked.path]
            return _server.Reply(status, b"", (("Location", location),))
        if asked.headers.get("authorization") in self._accepts:
            return _server.Reply(200, asked.body)
        return self._refusal


def send(
    kind: str, auth: TokenAuth, method: str, url: str, content: object = None, **options: object
) -> httpx.Response:
    """Send one request by either client; a list as content is streamed."""
    if kind == "sync":
        with httpx.Client(auth=auth, follow_redirects=True) as client:
            body = iter(content) if isinstance(content, list) else content
            return client.request(method, url, content=body, **options)  # type: ignore[arg-type]

    async def scenario() -> httpx.Response:
        async with httpx.AsyncClient(auth=auth, follow_redirects=True) as client:
            body = stream(content) if isinstance(content, list) else content
            return await client.request(method, url, content=body, **options)  # type: ignore[arg-type]

    async def stream(parts: list[bytes]) -> AsyncIterator[bytes]:
        for part in parts:
            yield part

    return asyncio.run(scenario())


@CLIENTS
def test_the_token_is_in_the_header(kind: str) -> None:
    """A request carries the source's token, and nothing else is asked of the source."""
    source = StubSource()
    with Server("token-1") as server:
        assert send(kind, TokenAuth(source), "GET", server.url).status_code == 200
    assert server.tokens == ["Bearer token-1"]
    assert source.replaced == []


@CLIENTS
@pytest.mark.parametrize(
    ("status", "challenge"), [(401, INVALID), (401, ""), (401, "Basic"), (400, INVALID), (403, INVALID)]
)
def test_a_refused_token_is_replaced_and_the_request_sent_again(kind: str, status: int, challenge: str) -> None:
    """A 401, or ``invalid_token`` with another 4xx, heals: same method, same body, next token (INV-6)."""
    source = StubSource()
    with Server("token-2", status=status, challenge=challenge) as server:
        response = send(kind, TokenAuth(source), "POST", server.url, b"body")
    assert (response.status_code, response.content) == (200, b"body")
    assert server.tokens == ["Bearer token-1", "Bearer token-2"]
    assert [asked.body for asked in server.asked] == [b"body", b"body"]
    assert source.replaced == [token(1)]


@CLIENTS
def test_a_second_refusal_is_given_back(kind: str) -> None:
    """A token just fetched that is refused as well surfaces the 401: never a loop (INV-6)."""
    source = StubSource(spare=9)
    with Server() as server:
        assert send(kind, TokenAuth(source), "GET", server.url).status_code == 401
    assert server.tokens == ["Bearer token-1", "Bearer token-2"]
    assert source.replaced == [token(1)]


@CLIENTS
def test_without_another_token_the_refusal_is_given_back(kind: str) -> None:
    """Where the source has none better, nothing is sent again, and the answer can be read."""
    source = StubSource(spare=0)
    with Server() as server:
        response = send(kind, TokenAuth(source), "GET", server.url)
    assert (response.status_code, response.content) == (401, b"no")
    assert len(server.asked) == 1


@CLIENTS
@pytest.mark.parametrize(("status", "challenge"), [(403, SCOPE), (401, SCOPE), (403, ""), (404, ""), (500, INVALID)])
def test_other_refusals_are_no_reason_to_fetch(kind: str, status: int, challenge: str) -> None:
    """``insufficient_scope`` and statuses that say nothing of the token ask nothing of the source (INV-7)."""
    source = StubSource()
    with Server(status=status, challenge=challenge) as server:
        assert send(kind, TokenAuth(source), "GET", server.url).status_code == status
    assert source.replaced == []
    assert len(server.asked) == 1


@CLIENTS
def test_a_streamed_body_is_not_sent_again(kind: str) -> None:
    """What cannot be read twice is not replayed, and the 401 is given back."""
    source = StubSource()
    with Server("token-2") as server:
        assert send(kind, TokenAuth(source), "POST", server.url, [b"a", b"b"]).status_code == 401
    assert [asked.body for asked in server.asked] == [b"ab"]


def test_a_file_is_not_sent_again_empty() -> None:
    """A file object would be at its end the second time: it is not replayed."""
    source = StubSource()
    with Server("token-2") as server, httpx.Client(auth=TokenAuth(source)) as client:
        assert client.post(server.url, content=io.BytesIO(b"file")).status_code == 401
    assert [asked.body for asked in server.asked] == [b"file"]


@CLIENTS
def test_streams_are_read_ahead_on_request(kind: str) -> None:
    """With ``requires_request_body`` a streamed body is in memory and can be sent again."""
    auth = TokenAuth(StubSource())
    auth.requires_request_body = True
    with Server("token-2") as server:
        assert send(kind, auth, "POST", server.url, [b"a", b"b"]).status_code == 200
    assert [asked.body for asked in server.asked] == [b"ab", b"ab"]


@CLIENTS
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_the_token_never_reaches_another_origin(kind: str, status: int) -> None:
    """A redirect to another origin arrives there without the token; its 401 neither heals nor is replayed."""
    source = StubSource()
    with Server() as other, Server("token-1") as server:
        server.redirects["/go"] = (status, f"{other.url}/there")
        response = send(kind, TokenAuth(source), "POST", f"{server.url}/go", b"body")
    assert response.status_code == 401
    assert other.tokens == [None]
    assert server.tokens == ["Bearer token-1"]
    assert source.replaced == []


def over(routes: dict[str, httpx.Response], seen: list[httpx.Request]) -> httpx.Client:
    """Return a client that follows redirects among made-up hosts; a URL without a route answers 401."""

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return routes.get(str(request.url)) or httpx.Response(401, headers={"WWW-Authenticate": INVALID})

    return httpx.Client(transport=httpx.MockTransport(handle), follow_redirects=True)


def test_an_upgrade_to_https_is_not_replayed() -> None:
    """The header stays from http to https of one host; that is another origin, so its 401 asks for nothing."""
    seen: list[httpx.Request] = []
    source = StubSource()
    routes = {"http://shop.example/": httpx.Response(301, headers={"Location": "https://shop.example/"})}
    with over(routes, seen) as client:
        assert client.get("http://shop.example/", auth=TokenAuth(source)).status_code == 401
    assert [request.url.scheme for request in seen] == ["http", "https"]
    assert source.replaced == []


def test_a_refusal_of_a_request_without_the_token_is_not_its_fault() -> None:
    """Through another origin and back the header is gone: the 401 says nothing of the token."""
    seen: list[httpx.Request] = []
    source = StubSource()
    routes = {
        "https://shop.example/": httpx.Response(302, headers={"Location": "https://other.example/"}),
        "https://other.example/": httpx.Response(302, headers={"Location": "https://shop.example/back"}),
    }
    with over(routes, seen) as client:
        assert client.get("https://shop.example/", auth=TokenAuth(source)).status_code == 401
    assert [request.headers.get("Authorization") for request in seen] == ["Bearer token-1", None, None]
    assert source.replaced == []


@CLIENTS
def test_a_refusal_after_a_redirect_repeats_only_what_was_refused(kind: str) -> None:
    """After POST, 303 and a refused GET the GET is sent again, not the POST: that one was served."""
    with Server("token-2") as server:
        server.redirects["/pay"] = (303, "/receipt")
        response = send(kind, TokenAuth(StubSource()), "POST", f"{server.url}/pay", b"body")
    assert response.status_code == 200
    assert [(asked.method, asked.path) for asked in server.asked] == [
        ("POST", "/pay"),
        ("GET", "/receipt"),
        ("GET", "/receipt"),
    ]
    assert server.tokens[-1] == "Bearer token-2"


@CLIENTS
def test_a_replay_that_is_redirected_away_carries_no_token(kind: str) -> None:
    """The replay is as careful as the first request: a redirect to another origin drops the new token too."""
    source = StubSource()
    with Server() as other, Server("token-2") as server:

        async def turn(asked: _server.Asked) -> _server.Reply:
            reply = await answer(asked)
            server.redirects["/"] = (307, other.url)
            return reply

        answer = server._answer
        server._server._handler = turn
        assert send(kind, TokenAuth(source), "GET", f"{server.url}/").status_code == 401
    assert server.tokens == ["Bearer token-1", "Bearer token-2"]
    assert other.tokens == [None]


def test_one_object_serves_both_clients() -> None:
    """The same auth is good for a Client and an AsyncClient, and its repr holds no token (INV-9)."""
    auth = TokenAuth(StubSource())
    with Server("token-1") as server:
        assert send("sync", auth, "GET", server.url).status_code == 200
        assert send("async", auth, "GET", server.url).status_code == 200
    assert "token-1" not in repr(auth)


@CLIENTS
def test_an_error_of_the_source_is_the_callers(kind: str) -> None:
    """Where there is no token at all, nothing is sent, and the source's own error arrives."""

    class Empty(StubSource):
        def token(self) -> Token:
            raise LookupError

        async def atoken(self) -> Token:
            raise LookupError

    with Server() as server, pytest.raises(LookupError):
        send(kind, TokenAuth(Empty()), "GET", server.url)
    assert server.asked == []
