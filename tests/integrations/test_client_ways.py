"""Features of single HTTP clients: prepared requests, hooks, the first origin, answers before the body's end."""

from __future__ import annotations

import asyncio
import io
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import aiohttp
import httpx
import httpx2
import pytest
import requests

from tokencache.integrations.aiohttp import TokenAuth as AiohttpAuth
from tokencache.integrations.httpx import TokenAuth as HTTPXAuth
from tokencache.integrations.httpx2 import TokenAuth as HTTPX2Auth
from tokencache.integrations.requests import TokenAuth as RequestsAuth
from tokencache.token import Token

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path
    from typing import TypeAlias

    from conftest import API, Issuer
    from tokencache.source import TokenSource

    Serve: TypeAlias = Callable[..., API]


LIBRARIES = pytest.mark.parametrize(
    ("library", "auth"), [(httpx, HTTPXAuth), (httpx2, HTTPX2Auth)], ids=["httpx", "httpx2"]
)


class Handful:
    """A source that replaces any token at once, however young: a retry loop would never end on it."""

    def __init__(self) -> None:
        self.number = 1

    def token(self) -> Token:
        """Return the current token."""
        return Token(f"fake-token-{self.number}", expires_at=2e9, issued_at=1e9)

    def replace(self, token: Token) -> Token | None:
        """Return the next token."""
        self.number += 1
        return self.token()

    async def atoken(self) -> Token:
        """Return the current token."""
        return self.token()

    async def areplace(self, token: Token) -> Token | None:
        """Return the next token."""
        return self.replace(token)


@pytest.fixture
def session() -> Iterator[requests.Session]:
    """A session that ignores the settings of this machine."""
    with requests.Session() as session:
        session.trust_env = False
        yield session


def test_one_replay_for_a_whole_chain_of_redirects(session: requests.Session, serve: Serve) -> None:
    """After a redirected replay, the next refusal is final: at most one more login for one call (INV-6)."""
    api = serve()
    answer = api._answer

    async def turn(asked: Any) -> Any:  # noqa: ANN401
        if asked.headers["authorization"] == "Bearer fake-token-2":
            api.redirects["/start"] = (302, "/next")
        return await answer(asked)

    api._server._handler = turn
    source = Handful()
    assert session.get(f"{api.url}/start", auth=RequestsAuth(source)).status_code == 401
    assert api.tokens == ["Bearer fake-token-1", "Bearer fake-token-2", "Bearer fake-token-2"]
    assert source.number == 2


def test_a_prepared_request_can_be_sent_again(session: requests.Session, issuer: Issuer, serve: Serve) -> None:
    """Each sending of a prepared request may renew once, also the second, with the current token."""
    api = serve(2)
    prepared = session.prepare_request(
        requests.Request("POST", api.url, data=b"body", auth=RequestsAuth(issuer.source))
    )
    assert session.send(prepared).status_code == 200
    api.accepts = {"Bearer fake-token-3"}
    issuer.source.invalidate(issuer.source.token())
    assert session.send(prepared).status_code == 200
    assert api.tokens == [f"Bearer fake-token-{number}" for number in (1, 2, 2, 3)]


def test_a_callers_hooks_see_the_replayed_answer(session: requests.Session, issuer: Issuer, serve: Serve) -> None:
    """A hook that raises for a status does not get the refusal; history keeps it."""
    seen: list[int] = []
    hooks = {"response": lambda response, **_: seen.append(response.status_code)}
    response = session.get(serve(2).url, auth=RequestsAuth(issuer.source), hooks=hooks)
    assert seen == [200]
    assert [(old.status_code, old.content) for old in response.history] == [(401, b"no")]


def test_a_file_is_sent_again_from_its_position(session: requests.Session, issuer: Issuer, serve: Serve) -> None:
    """A file that was not at its start is sent again from that position, not from its start."""
    file = io.BytesIO(b"header body")
    file.seek(7)
    api = serve(2)
    assert session.post(api.url, data=file, auth=RequestsAuth(issuer.source)).status_code == 200
    assert [asked.body for asked in api.asked] == [b"body"] * 2


def test_a_file_that_cannot_seek_is_not_sent_again(session: requests.Session, issuer: Issuer, serve: Serve) -> None:
    """A body with a position but without seek counts as a stream."""
    api = serve(2)
    assert session.post(api.url, data=Pipe(b"body"), auth=RequestsAuth(issuer.source)).status_code == 401
    assert len(api.asked) == 1


class Pipe(io.BytesIO):
    """A file that cannot seek."""

    def seekable(self) -> bool:
        """Return `False`."""
        return False


class Bare:
    """A file with only a `read` method."""

    def __init__(self) -> None:
        self._file = io.BytesIO(b"file")

    def read(self, size: int = -1) -> bytes:
        """Read."""
        return self._file.read(size)


@LIBRARIES
@pytest.mark.parametrize("way", ["sync", "async"])
def test_streams_are_read_ahead_on_request(library: Any, auth: Any, way: str, issuer: Issuer, serve: Serve) -> None:  # noqa: ANN401
    """With ``requires_request_body`` a streamed body is in memory and can be sent again."""
    api = serve(2)
    reading = auth(issuer.source)
    reading.requires_request_body = True

    async def parts() -> AsyncIterator[bytes]:
        yield b"a"
        yield b"b"

    async def scenario() -> int:
        async with library.AsyncClient(auth=reading) as client:
            status: int = (await client.post(api.url, content=parts())).status_code
            return status

    if way == "sync":
        with library.Client(auth=reading) as client:
            assert client.post(api.url, content=iter([b"a", b"b"])).status_code == 200
    else:
        assert asyncio.run(scenario()) == 200
    assert [asked.body for asked in api.asked] == [b"ab"] * 2


@LIBRARIES
@pytest.mark.parametrize(
    ("upload", "times"), [(io.BytesIO, 2), (bytes, 2), (Pipe, 1)], ids=["file", "bytes", "no way back"]
)
def test_a_form_of_files_is_sent_again_if_all_can_seek(
    library: Any,  # noqa: ANN401
    auth: Any,  # noqa: ANN401
    upload: Callable[[bytes], object],
    times: int,
    *,
    issuer: Issuer,
    serve: Serve,
) -> None:
    """Forms rewind their files by themselves; one file that cannot seek makes the form a stream."""
    api = serve(2)
    files = {"good": ("name", io.BytesIO(b"good")), "upload": ("name", upload(b"content"))}
    with library.Client(auth=auth(issuer.source)) as client:
        assert client.post(api.url, files=files).status_code == (200 if times == 2 else 401)
    assert [b"good" in asked.body and b"content" in asked.body for asked in api.asked] == [True] * times


@LIBRARIES
def test_a_form_with_a_file_that_can_only_be_read(library: Any, auth: Any, issuer: Issuer, serve: Serve) -> None:  # noqa: ANN401
    """A file without a `seekable` method counts as a stream."""
    api = serve(2)
    with library.Client(auth=auth(issuer.source)) as client:
        assert client.post(api.url, files={"upload": ("name", Bare())}).status_code == 401
    assert len(api.asked) == 1


def test_without_names_only_the_first_origin_gets_the_token(issuer: Issuer, serve: Serve) -> None:
    """In aiohttp a redirect looks like a request: without names, only the first request's origin gets the token."""
    api, other = serve(1), serve(1)

    async def scenario() -> list[int]:
        async with aiohttp.ClientSession(middlewares=[AiohttpAuth(issuer.source)]) as session:
            statuses = []
            for url in (api.url, other.url, api.url):
                async with session.get(url) as response:
                    statuses.append(response.status)
            return statuses

    assert asyncio.run(scenario()) == [200, 401, 200]
    assert other.tokens == [None]


SIZE = 32 << 20


async def hasty(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Refuse the first token before the body, and otherwise answer with the body's length."""
    head = await reader.readuntil(b"\r\n\r\n")
    if b"fake-token-1" in head:
        writer.write(b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        await reader.read()  # the rest, until the client closes
    else:
        got = 0
        while got < SIZE and (data := await reader.read(1 << 20)):
            got += len(data)
        body = str(got).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        await writer.drain()
    writer.close()


def upload(source: TokenSource, data: Callable[[], object]) -> tuple[int, bytes]:
    """Send a body to the hasty server by aiohttp."""

    async def scenario() -> tuple[int, bytes]:
        server = await asyncio.start_server(hasty, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with (
            server,
            aiohttp.ClientSession(middlewares=[AiohttpAuth(source)]) as session,
            session.put(f"http://127.0.0.1:{port}/", data=data()) as response,
        ):
            return response.status, await response.read()

    return asyncio.run(scenario())


def test_an_answer_before_the_end_of_the_body(tmp_path: Path, issuer: Issuer) -> None:
    """The refusal comes while a large file is still being written: the replay carries the whole file."""
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(SIZE)
    assert upload(issuer.source, lambda: path.open("rb")) == (200, str(SIZE).encode())


class Slow(aiohttp.Payload):
    """A body that is written until it is cancelled, and stops slowly; the second time it is short."""

    def __init__(self) -> None:
        super().__init__(b"")
        self.stopped = False
        self.overlapped = False
        self.times = 0

    @property
    def size(self) -> int:
        """Its length."""
        return SIZE

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Return an empty text, which is not used."""
        return ""

    async def write(self, writer: Any) -> None:  # noqa: ANN401
        """Write, the first time without an end."""
        self.times += 1
        if self.times > 1:
            self.overlapped = not self.stopped
            await writer.write(b"x" * SIZE)
            return
        try:
            await writer.write(b"x")
            await asyncio.Event().wait()
        finally:
            for _ in range(20):
                with suppress(asyncio.CancelledError):  # the client cancels it more than once
                    await asyncio.sleep(0.01)
            self.stopped = True

    async def write_with_length(self, writer: Any, content_length: int | None) -> None:  # noqa: ANN401
        """Write."""
        await self.write(writer)


def test_a_body_is_not_written_twice_at_once(issuer: Issuer) -> None:
    """The replay waits until the client has stopped writing the refused body, however long that takes."""
    slow: list[Slow] = []

    def make() -> Slow:
        slow.append(Slow())
        return slow[0]

    assert upload(issuer.source, make) == (200, str(SIZE).encode())
    assert slow[0].times == 2
    assert not slow[0].overlapped
