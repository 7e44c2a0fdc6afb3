"""HTTPTokenProvider: one generator, two halves, and translation of every failure at the edge (FAULTS row 22)."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import socket
import ssl
import threading
import time
import zlib
from contextlib import suppress
from typing import TYPE_CHECKING
from urllib.parse import quote

import httpx
import pytest

from tokencache.errors import ConfigurationError, ProviderRejected, ProviderUnavailable
from tokencache.ports import FetchContext
from tokencache.providers._exchange import Body, TimedRequest
from tokencache.providers.http import HTTPTokenProvider
from tokencache.providers.oauth_response import (
    date_of,
    raise_for_error,
    read_json,
    retry_at_of,
    scrub,
    token_from_mapping,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping
    from typing import Self

    from tokencache.providers.http import TokenFlow
    from tokencache.token import Token

HALVES = pytest.mark.parametrize("half", ["fetch", "afetch"])
TLS_HELLO = b"\x16\x03"
PATIENCE = 30.0
GOOD = b'{"access_token": "good-1", "token_type": "bearer", "expires_in": 3600}'


class Plain(HTTPTokenProvider):
    """The smallest provider: one POST, one token."""

    name = "plain"

    def __init__(self, url: str, **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        self._url = url

    def identity(self) -> Mapping[str, object]:
        """Return the address."""
        return {"url": self._url}

    def token_flow(self, context: FetchContext) -> TokenFlow:
        """Ask once."""
        before_wall = time.time()
        response = yield httpx.Request("POST", self._url, headers={"Authorization": "Basic c2VjcmV0"})
        raise_for_error(response, provider=self.name)
        fields = read_json(response, provider=self.name)
        token, expiry = token_from_mapping(fields, provider=self.name, date=date_of(response), before_wall=before_wall)
        if expiry.warning:
            context.warn(expiry.warning)
        return token


class RawServer:
    """A socket that answers each connection with given bytes, or by a function, and records the requests."""

    def __init__(self, answer: bytes | Callable[[socket.socket, RawServer], None]) -> None:
        self._answer = answer
        self.received: list[bytes] = []
        self.ended = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve)

    @property
    def url(self) -> str:
        """The address of its token endpoint."""
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}/token"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        with socket.create_connection(self._listener.getsockname()):
            pass
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        while not self.ended.is_set():
            connection, _ = self._listener.accept()
            with connection:
                head = b""
                while b"\r\n\r\n" not in head and not head.startswith(TLS_HELLO) and (chunk := connection.recv(65_536)):
                    head += chunk
                if not head:
                    continue
                self.received.append(head)
                try:
                    if isinstance(self._answer, bytes):
                        connection.sendall(self._answer)
                    else:
                        self._answer(connection, self)
                except OSError:
                    pass  # the client closed the connection


def reply(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    """Return a complete HTTP answer."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def context(timeout: float = 10.0, warn: Callable[[str], None] = print) -> FetchContext:
    """Return the context of a cold fetch."""
    return FetchContext(None, time.monotonic() + timeout, "cold", time.monotonic, warn)


def still(timeout: float) -> FetchContext:
    """Return the same context with a clock that stands still, so that a slow machine does not use up the time."""
    return FetchContext(None, timeout, "cold", lambda: 0.0)


def get(provider: HTTPTokenProvider, half: str, told: FetchContext | None = None) -> Token:
    """Fetch by either half."""
    told = told or context()
    return provider.fetch(told) if half == "fetch" else asyncio.run(provider.afetch(told))


def answering(*responses: httpx.Response | Exception) -> httpx.MockTransport:
    """Return a transport that gives these answers in turn."""
    left = list(responses)

    def handle(request: httpx.Request) -> httpx.Response:
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return httpx.MockTransport(handle)


def asked(transport: httpx.BaseTransport, **options: object) -> Plain:
    """Return a provider with this transport, and clients for both halves."""
    return Plain(
        "https://issuer.example/token",
        client=httpx.Client(transport=transport),
        async_client=httpx.AsyncClient(transport=transport),  # type: ignore[arg-type]
        **options,
    )


# --- the two halves -----------------------------------------------------------------------------------------------


@HALVES
def test_both_halves_fetch_without_a_client(half: str) -> None:
    """Without a client each half makes one; it asks for an uncompressed answer and sends no cookie."""
    with RawServer(reply(GOOD)) as server:
        token = get(Plain(server.url), half)
    assert token.authorization == "Bearer good-1"
    (request,) = server.received
    lines = request.decode().lower().split("\r\n")
    assert "accept-encoding: identity" in lines
    assert "authorization: basic c2vjcmv0" in lines
    assert not [line for line in lines if line.startswith("cookie:")]


@HALVES
def test_the_flow_may_go_on_after_a_failed_request(half: str) -> None:
    """A failed request is raised at its ``yield`` as ProviderUnavailable, and the flow may try something else."""

    class Stubborn(Plain):
        def token_flow(self, told: FetchContext) -> TokenFlow:
            with pytest.raises(ProviderUnavailable, match="broke"):
                yield httpx.Request("POST", "https://issuer.example/first")
            return (yield from super().token_flow(told))

    transport = answering(httpx.ReadError("lost"), httpx.Response(200, content=GOOD))
    provider = Stubborn(
        "https://issuer.example/second",
        client=httpx.Client(transport=transport),
        async_client=httpx.AsyncClient(transport=transport),
    )
    assert get(provider, half).value == "good-1"


@HALVES
def test_the_flow_is_closed_when_it_fails(half: str) -> None:
    """If the flow does not catch the failure, it ends, and the caller gets the failure."""
    ended = threading.Event()

    class Watched(Plain):
        def token_flow(self, told: FetchContext) -> TokenFlow:
            try:
                return (yield from super().token_flow(told))
            finally:
                ended.set()

    with pytest.raises(ProviderUnavailable, match="could not connect"):
        get(Watched(_refusing_url()), half)
    assert ended.is_set()


# --- clients that are passed in -----------------------------------------------------------------------------------


@HALVES
def test_a_client_passed_in_gives_only_its_transport(half: str) -> None:
    """A passed-in client gives only its transport, not its auth, headers, cookies or redirects. It stays open."""
    seen: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, content=GOOD)

    options = {
        "auth": ("mallory", "other"),
        "headers": {"X-Mine": "1"},
        "cookies": {"sid": "business"},
        "follow_redirects": True,
    }
    transport = httpx.MockTransport(handle)
    client = httpx.Client(transport=transport, **options)  # type: ignore[arg-type]
    async_client = httpx.AsyncClient(transport=transport, **options)  # type: ignore[arg-type]
    assert get(Plain("https://issuer.example/token", client=client, async_client=async_client), half).value == "good-1"
    assert seen[0].headers["Authorization"] == "Basic c2VjcmV0"
    assert "X-Mine" not in seen[0].headers
    assert "Cookie" not in seen[0].headers
    assert not client.is_closed
    assert not async_client.is_closed


@HALVES
def test_cookies_of_the_login_do_not_stay(half: str) -> None:
    """The token response's cookies do not change a passed-in jar: none is added, replaced or deleted."""
    login = httpx.Response(
        200,
        content=GOOD,
        headers=[
            ("Set-Cookie", "sid=login; Path=/"),
            ("Set-Cookie", "new=login; Path=/"),
            ("Set-Cookie", "gone=; Path=/; Max-Age=0"),
            ("Set-Cookie", "bare; Path=/"),
        ],
    )
    jar = httpx.Cookies()
    for name in ("sid", "gone", "other"):
        jar.set(name, "business", domain="issuer.example", path="/")
    transport = answering(login)
    client = httpx.Client(transport=transport, cookies=jar)
    async_client = httpx.AsyncClient(transport=transport, cookies=jar)
    get(Plain("https://issuer.example/token", client=client, async_client=async_client), half)
    used = client if half == "fetch" else async_client
    assert dict(used.cookies) == {"sid": "business", "gone": "business", "other": "business"}


@HALVES
def test_a_closed_client_is_a_mistake_of_configuration(half: str) -> None:
    """The error says that the client was closed."""
    client, async_client = httpx.Client(), httpx.AsyncClient()
    client.close()
    asyncio.run(async_client.aclose())
    with pytest.raises(ConfigurationError, match="is closed"):
        get(Plain("https://issuer.example/token", client=client, async_client=async_client), half)


@HALVES
def test_a_hook_that_raises_for_status_does_not_hide_the_status(half: str) -> None:
    """With a client whose hook calls raise_for_status a 401 is still a rejection."""

    def check(response: httpx.Response) -> None:
        response.raise_for_status()

    async def acheck(response: httpx.Response) -> None:
        response.raise_for_status()

    transport = answering(httpx.Response(401))
    provider = Plain(
        "https://issuer.example/token",
        client=httpx.Client(transport=transport, event_hooks={"response": [check]}),
        async_client=httpx.AsyncClient(transport=transport, event_hooks={"response": [acheck]}),
    )
    with pytest.raises(ProviderRejected) as caught:
        get(provider, half)
    assert caught.value.status == 401


@HALVES
def test_a_flow_that_raises_for_status_is_understood(half: str) -> None:
    """A subclass may call ``response.raise_for_status()``: the result is our error."""

    class Terse(Plain):
        def token_flow(self, told: FetchContext) -> TokenFlow:
            response = yield httpx.Request("POST", self._url)
            response.raise_for_status()
            raise AssertionError

    transport = answering(httpx.Response(503, headers={"Retry-After": "7"}))
    provider = Terse(
        "https://issuer.example/token",
        client=httpx.Client(transport=transport),
        async_client=httpx.AsyncClient(transport=transport),
    )
    with pytest.raises(ProviderUnavailable) as caught:
        get(provider, half)
    assert caught.value.status == 503
    assert caught.value.retry_at is not None


def test_each_phase_gets_the_time_left_at_its_start() -> None:
    """Connecting, handshake, writing and reading together take at most the time of the request (INV-8)."""
    now = 100.0
    request = httpx.Request("POST", "https://issuer.example/token")
    call = TimedRequest("plain", request, lambda: now, ends_at=110.0, limit=10.0)
    handshake: dict[str, object] = {"timeout": 99.0}
    for bind in (call.bound, call.abound):
        now = 100.0
        begun = bind()
        if begun is not None:
            begun.__enter__()
        limits = request.extensions["timeout"]
        assert set(limits) == {"connect", "read", "write", "pool"}
        assert 9.0 < limits["connect"] < 10.0
        now = 106.0
        told = request.extensions["trace"]("connection.start_tls.started", handshake)
        if told is not None:
            asyncio.run(told)
        assert 3.0 < limits["read"] < 4.0
        assert handshake["timeout"] == limits["connect"]
        now = 200.0
        told = request.extensions["trace"]("http11.receive_response_body.started", {})
        if told is not None:
            asyncio.run(told)
        assert 0.0 < limits["read"] < 0.1
        if begun is not None:
            begun.__exit__(None, None, None)


@pytest.mark.parametrize(("own", "limit"), [(None, 5.0), (1_000.0, 5.0), (2.0, 2.0)])
def test_a_request_may_lower_its_cap_but_not_raise_it(own: float | None, limit: float) -> None:
    """The smallest of the provider's timeout, the context's time and the request's own timeout counts."""
    extensions = {} if own is None else {"timeout": {"read": own}}
    request = httpx.Request("POST", "https://issuer.example/token", extensions=extensions)
    told = FetchContext(None, 100.0, "cold", lambda: 0.0)
    assert Plain("https://issuer.example/token", timeout=5.0)._call(request, told).limit == limit
    brief = FetchContext(None, 1.0, "cold", lambda: 0.0)
    assert Plain("https://issuer.example/token", timeout=5.0)._call(request, brief).limit == 1.0


# --- harmful answers --------------------------------------------------------------------------------------------------


@HALVES
@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"])
def test_a_redirect_is_refused_and_the_secret_goes_nowhere(half: str, status: str) -> None:
    """A redirect is not followed: the other server does not get a connection."""
    with RawServer(reply(GOOD)) as other, RawServer(reply(b"", status, f"Location: {other.url}")) as server:
        with pytest.raises(ProviderUnavailable, match="redirect") as caught:
            get(Plain(server.url), half)
        assert caught.value.status == int(status[:3])
        assert other.received == []
        assert len(server.received) == 1


@HALVES
def test_a_client_that_follows_redirects_does_not_follow_ours(half: str) -> None:
    """A passed-in client with ``follow_redirects`` set does not send the secret elsewhere."""

    async def over(url: str) -> Token:
        async with httpx.AsyncClient(follow_redirects=True) as client:
            return await Plain(url, async_client=client).afetch(context())

    def ask(url: str) -> Token:
        if half == "afetch":
            return asyncio.run(over(url))
        with httpx.Client(follow_redirects=True) as client:
            return Plain(url, client=client).fetch(context())

    with RawServer(reply(GOOD)) as other, RawServer(reply(b"", "307 Temporary", f"Location: {other.url}")) as server:
        with pytest.raises(ProviderUnavailable, match="redirect"):
            ask(server.url)
        assert other.received == []


@HALVES
@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_decompression_bomb_is_refused(half: str, encoding: str) -> None:
    """A small compressed body that grows beyond the limit is not unpacked."""
    import zlib

    squeeze = gzip.compress if encoding == "gzip" else zlib.compress
    body = squeeze(b" " * (64 << 20))
    answer = reply(body, "200 OK", f"Content-Encoding: {encoding}")
    with RawServer(answer) as server, pytest.raises(ProviderUnavailable, match="larger than 1 MiB"):
        get(Plain(server.url), half)


def test_a_decompression_bomb_takes_no_memory() -> None:
    """Whatever size a chunk unpacks to, memory holds little more than the limit."""
    import tracemalloc

    bomb = gzip.compress(b" " * (64 << 20))
    request = httpx.Request("POST", "https://issuer.example/token")
    body = Body(TimedRequest("plain", request, time.monotonic, ends_at=0.0, limit=1.0), "gzip")
    tracemalloc.start()
    try:
        with pytest.raises(ProviderUnavailable, match="larger"):
            body.feed(bomb)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


@HALVES
@pytest.mark.parametrize("rest", [b"\0" * 100_000, gzip.compress(b" " * 1000)], ids=["zeros", "another member"])
def test_bytes_after_a_compressed_body_are_refused(half: str, rest: bytes) -> None:
    """They pass no limit of the body: zlib would keep them all in memory."""
    chunks = [gzip.compress(GOOD), rest, rest]
    body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n"
    with RawServer(head + body) as server, pytest.raises(ProviderUnavailable, match="after the end"):
        get(Plain(server.url), half)


@HALVES
@pytest.mark.parametrize(
    ("head", "drip"),
    [
        (b"HTTP/1.1 200 OK\r\nX-A: ", b"a"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"0"),
        (b"", b"HTTP/1.1 103 Early Hints\r\nX: y\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b" "),
    ],
    ids=["header", "chunk size", "early hints", "body"],
)
def test_a_server_that_drips_is_left_at_the_deadline(half: str, head: bytes, drip: bytes) -> None:
    """INV-8: each read gets its byte in time, so only an overall deadline ends the request and its connection."""
    left = threading.Event()

    def drop_by_drop(connection: socket.socket, server: RawServer) -> None:
        connection.sendall(head)
        try:
            for _ in range(200):
                connection.sendall(drip)
                if server.ended.wait(0.05):
                    return
        except OSError:
            left.set()

    with RawServer(drop_by_drop) as server:
        with pytest.raises(ProviderUnavailable, match="gave no complete answer within"):
            get(Plain(server.url, timeout=0.4), half)
        assert left.wait(30), "the connection stayed open"


@HALVES
def test_an_endless_body_is_refused(half: str) -> None:
    """The rest of a plain body beyond the limit is not read."""
    head = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"

    def pour(connection: socket.socket, server: RawServer) -> None:
        connection.sendall(head)
        while not server.ended.is_set():
            connection.sendall(b" " * 65_536)

    with RawServer(pour) as server, pytest.raises(ProviderUnavailable, match="larger than 1 MiB"):
        get(Plain(server.url), half)


@HALVES
def test_a_compressed_answer_is_read(half: str) -> None:
    """A compressed answer is read, although the request did not ask for compression."""
    with RawServer(reply(gzip.compress(GOOD), "200 OK", "Content-Encoding: gzip")) as server:
        assert get(Plain(server.url), half).value == "good-1"


@HALVES
@pytest.mark.parametrize(
    ("body", "encoding", "says"),
    [
        (b"\x1f\x8bbroken", "gzip", "broken"),
        (gzip.compress(GOOD, mtime=0)[:-12], "gzip", "cut off"),
        (b"\x1b\x03\x00", "br", "encoding"),
        (b"\xff\xff", "deflate", "broken"),
    ],
)
def test_broken_compression_is_reported(half: str, body: bytes, encoding: str, says: str) -> None:
    """Bytes that do not decode are the provider's failure, not a crash."""
    answer = reply(body, "200 OK", f"Content-Encoding: {encoding}")
    with RawServer(answer) as server, pytest.raises(ProviderUnavailable, match=says):
        get(Plain(server.url), half)


@HALVES
@pytest.mark.parametrize("coding", ["utf-8", "UTF-8", "none", "identity", "binary", "br"])
def test_a_body_under_an_unknown_coding_is_read_as_it_stands(half: str, coding: str) -> None:
    """Some servers name a character set, or "none", as the coding of a plain body."""
    with RawServer(reply(GOOD, "200 OK", f"Content-Encoding: {coding}")) as server:
        assert get(Plain(server.url), half).value == "good-1"


@HALVES
def test_deflate_without_its_header_is_read(half: str) -> None:
    """Some servers send raw deflate, without the zlib header of RFC 9110 section 8.4.1.2."""
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    with RawServer(reply(packer.compress(GOOD) + packer.flush(), "200 OK", "Content-Encoding: deflate")) as server:
        assert get(Plain(server.url), half).value == "good-1"


@HALVES
def test_a_connection_cut_in_the_body_is_reported(half: str) -> None:
    """A partial answer is an error."""
    with RawServer(reply(GOOD)[:-20]) as server, pytest.raises(ProviderUnavailable, match="broke before"):
        get(Plain(server.url), half)


@HALVES
@pytest.mark.parametrize("answer", [b"", b"SSH-2.0-OpenSSH_9\r\n", b"HTTP/1.1 2x0 OK\r\n\r\n"])
def test_an_answer_that_is_not_http_is_reported(half: str, answer: bytes) -> None:
    """A server of another protocol counts as a broken connection."""
    with RawServer(answer) as server, pytest.raises(ProviderUnavailable, match="broke before"):
        get(Plain(server.url), half)


@HALVES
def test_a_silent_server_is_given_up_by_the_deadline(half: str) -> None:
    """If a server accepts and then says nothing, the fetch ends with the context's time (INV-8)."""

    def keep_silent(connection: socket.socket, server: RawServer) -> None:
        server.ended.wait()

    with RawServer(keep_silent) as server, pytest.raises(ProviderUnavailable, match=r"within 0\.2 s"):
        get(Plain(server.url), half, still(0.2))


@HALVES
def test_the_timeout_caps_one_request(half: str) -> None:
    """The provider's own timeout holds, even if the context gives more time."""

    def keep_silent(connection: socket.socket, server: RawServer) -> None:
        server.ended.wait()

    with RawServer(keep_silent) as server, pytest.raises(ProviderUnavailable, match=r"within 0\.1 s"):
        get(Plain(server.url, timeout=0.1), half, context(1_000))


@HALVES
def test_a_slow_body_is_left_at_the_deadline(half: str) -> None:
    """A server that sends single bytes slowly cannot delay the end of the fetch past its deadline (INV-8)."""
    now = [0.0]

    def drip(connection: socket.socket, server: RawServer) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        while not server.ended.wait(0.02):
            now[0] += 0.1
            connection.sendall(b" ")

    told = FetchContext(None, 1.0, "cold", lambda: now[0])
    with RawServer(drip) as server, pytest.raises(ProviderUnavailable, match="no complete answer"):
        get(Plain(server.url), half, told)


@HALVES
def test_a_fetch_after_its_deadline_is_not_sent(half: str) -> None:
    """After its deadline a fetch sends no request."""
    with RawServer(reply(GOOD)) as server:
        with pytest.raises(ProviderUnavailable, match="no time was left"):
            get(Plain(server.url), half, context(-1))
        assert server.received == []


@HALVES
def test_a_refused_connection_gives_the_systems_reason(half: str) -> None:
    """The message names host and reason, and the original exception is not chained to it."""
    with pytest.raises(ProviderUnavailable, match=r"127\.0\.0\.1:\d+.*(refused|failed)") as caught:
        get(Plain(_refusing_url()), half)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


@HALVES
def test_plain_http_on_a_tls_address_is_reported(half: str) -> None:
    """If the server does not speak TLS, the error says so."""
    with RawServer(reply(GOOD)) as server, pytest.raises(ProviderUnavailable, match="TLS"):
        get(Plain(server.url.replace("http:", "https:")), half)


class Mute(RawServer):
    """A server that reads the first message of a TLS handshake, says nothing, and records when the client leaves."""

    def __init__(self) -> None:
        super().__init__(b"")
        self.heard, self.left = threading.Event(), threading.Event()

    @property
    def url(self) -> str:
        """The address of its token endpoint."""
        return super().url.replace("http:", "https:")

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with connection:
            while connection.recv(65_536):
                self.heard.set()
        self.left.set()


@HALVES
def test_a_silent_tls_handshake_leaves_no_socket(half: str) -> None:
    """If a handshake is given up, its socket is closed at once, while the loop still runs."""

    async def scenario(provider: Plain) -> bool:
        with pytest.raises(ProviderUnavailable, match="within"):
            await provider.afetch(still(0.4))
        return await asyncio.to_thread(server.left.wait, PATIENCE)

    with Mute() as server:
        provider = Plain(server.url)
        if half == "afetch":
            assert asyncio.run(scenario(provider))
        else:
            with pytest.raises(ProviderUnavailable, match="within"):
                provider.fetch(still(0.4))
            assert server.left.wait(PATIENCE)


def test_a_cancelled_tls_handshake_leaves_no_socket() -> None:
    """A caller that is cancelled during the handshake closes the socket; httpcore would leave it to the collector."""

    async def scenario(provider: Plain) -> bool:
        task = asyncio.create_task(provider.afetch(still(PATIENCE)))
        assert await asyncio.to_thread(server.heard.wait, PATIENCE)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return await asyncio.to_thread(server.left.wait, PATIENCE)

    with Mute() as server:
        assert asyncio.run(scenario(Plain(server.url)))


class Pieces(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body that comes in pieces, and counts how often it is closed."""

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = pieces
        self.closed = 0

    def __iter__(self) -> Iterator[bytes]:
        """Yield the pieces."""
        yield from self._pieces

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield the pieces."""
        for piece in self._pieces:
            yield piece

    def close(self) -> None:
        """Count."""
        self.closed += 1

    async def aclose(self) -> None:
        """Count."""
        self.closed += 1


@HALVES
@pytest.mark.parametrize("pieces", [(GOOD,), (b" " * (1 << 20), b" ")], ids=["good", "too large"])
def test_an_answer_is_closed_whatever_it_holds(half: str, pieces: tuple[bytes, ...]) -> None:
    """A client that was passed in gets its connection back, also if the answer is not read to its end (INV-8)."""
    body = Pieces(*pieces)
    with suppress(ProviderUnavailable):
        get(asked(answering(httpx.Response(200, stream=body))), half)
    assert body.closed


@HALVES
def test_an_unknown_certificate_is_reported(half: str) -> None:
    """The error names an unknown authority; a context that trusts it is used."""
    import trustme

    authority = trustme.CA()
    served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(served)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)

    def speak(connection: socket.socket, server: RawServer) -> None:
        connection.sendall(reply(GOOD))

    class TLSServer(RawServer):
        def _serve(self) -> None:
            while not self.ended.is_set():
                connection, _ = self._listener.accept()
                try:
                    with served.wrap_socket(connection, server_side=True) as wrapped:
                        wrapped.recv(65_536)
                        speak(wrapped, self)
                except OSError:
                    connection.close()

    with TLSServer(speak) as server:
        url = server.url.replace("http:", "https:")
        with pytest.raises(ProviderUnavailable, match="certificate refused"):
            get(Plain(url), half)
        assert get(Plain(url, verify=trusting), half).value == "good-1"


@HALVES
@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://[::1", "not a URL"),
        ("ftp://issuer.example/token", "https://"),
        ("https://user:pass@issuer.example/token", "user or password"),
    ],
)
def test_an_impossible_address_is_a_mistake_of_configuration(half: str, url: str, says: str) -> None:
    """Nothing is sent to an impossible address."""
    with pytest.raises(ConfigurationError, match=says):
        get(Plain(url), half)


@HALVES
@pytest.mark.parametrize("error", [RuntimeError("planted-secret"), OSError("planted-secret"), httpx.PoolTimeout("x")])
def test_any_error_of_a_transport_is_translated(half: str, error: Exception) -> None:
    """A passed-in transport may raise any error; the caller gets ours, without its text."""
    with pytest.raises(ProviderUnavailable) as caught:
        get(asked(answering(error)), half)
    assert "planted-secret" not in str(caught.value)
    assert str(caught.value).startswith("[plain] ")


def test_an_impossible_proxy_is_a_mistake_of_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy variable that no client accepts is named, without its value."""
    monkeypatch.setenv("HTTPS_PROXY", "gopher://user:planted@proxy.example")
    with pytest.raises(ConfigurationError, match="HTTPS_PROXY") as caught:
        Plain("https://issuer.example/token").fetch(context())
    assert "planted" not in str(caught.value)


@pytest.mark.parametrize("timeout", [0, -1, float("inf"), float("nan")])
def test_a_timeout_must_be_positive_and_finite(timeout: float) -> None:
    """A timeout that would mean "now" or "never" is refused."""
    with pytest.raises(ConfigurationError, match="timeout"):
        Plain("https://issuer.example/token", timeout=timeout)


def test_a_cancelled_async_fetch_ends() -> None:
    """A cancelled fetch ends as cancelled, not with a provider error (INV-8)."""

    def keep_silent(connection: socket.socket, server: RawServer) -> None:
        server.ended.wait()

    async def scenario(server: RawServer) -> None:
        task = asyncio.create_task(Plain(server.url).afetch(context()))
        while not server.received:
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with RawServer(keep_silent) as server:
        asyncio.run(scenario(server))


# --- reading answers ----------------------------------------------------------------------------------------------


def response(status: int = 200, body: bytes | str = b"", **headers: str) -> httpx.Response:
    """Return an answer of issuer.example."""
    spelled = {name.replace("_", "-"): value for name, value in headers.items()}
    request = httpx.Request("POST", "https://issuer.example/token?planted=query")
    return httpx.Response(status, content=body, headers=spelled, request=request)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"   ",
        b"<html>planted</html>",
        b"null",
        b"[1, 2]",
        b'"planted"',
        b'{"access_token": "planted"',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"\xff\xfe\x00planted",
    ],
)
def test_a_body_that_is_not_an_object_is_named_but_not_quoted(body: bytes) -> None:
    """A body that is not a JSON object is ProviderUnavailable, with status and content type, and without the body."""
    with pytest.raises(ProviderUnavailable, match=r"issuer\.example sent .*status 200, text/plain") as caught:
        read_json(response(200, body, content_type="text/plain; planted=1"), provider="plain")
    assert "planted" not in str(caught.value)
    assert caught.value.status == 200


@pytest.mark.parametrize(
    "expires_in",
    ["NaN", "Infinity", "-Infinity", "1e400", "9" * 5_000, "-" + "9" * 400, "true", "[]", "{}", '"x"', '"١٢٣"', "0"],
)
def test_a_strange_expiry_does_not_lose_the_token(expires_in: str) -> None:
    """Whatever number JSON gives as an expiry, the token is good for the default lifetime (FAULTS row 23)."""
    body = f'{{"access_token": "good-1", "expires_in": {expires_in}}}'
    fields = read_json(response(200, body), provider="plain")
    token, expiry = token_from_mapping(fields, provider="plain", date=None, before_wall=1_000_000.0)
    assert token.expires_at == 1_000_300.0
    assert expiry.warning is not None


def test_a_byte_order_mark_and_repeated_names_are_accepted() -> None:
    """The last of several equal names counts."""
    fields = read_json(response(200, b'\xef\xbb\xbf{"a": 1, "a": 2}'), provider="plain")
    assert fields == {"a": 2}


def test_a_token_is_made_from_the_fields() -> None:
    """Each known field reaches its attribute, and the rest goes to ``extra``."""
    fields = {
        "access_token": "good-1",
        "token_type": "bearer",
        "expires_in": "3600",
        "scope": "a b",
        "refresh_token": "again",
        "refresh_expires_in": 7200,
        "id": 7,
        "deep": {"a": [1, None, "x"]},
        "weird": float("nan"),
        "valid_until": 99,
    }
    token, expiry = token_from_mapping(
        fields, provider="plain", date=2_000_000.0, before_wall=1_000_000.0, names=("valid_until",), cap=60.0
    )
    assert (token.value, token.token_type, token.scope) == ("good-1", "Bearer", "a b")
    assert (token.issued_at, token.expires_at) == (2_000_000.0, 2_000_060.0)
    assert (token.refresh_token, token.refresh_expires_at) == ("again", 2_007_200.0)
    assert token.extra == {"id": 7, "deep": {"a": [1, None, "x"]}}
    assert expiry.field == "valid_until"
    kept, _ = token_from_mapping(fields, provider="plain", date=None, before_wall=1.0, keep=("id", "absent"))
    assert kept.extra == {"id": 7}


def test_the_exp_of_a_jwt_counts_only_with_trust_jwt() -> None:
    """Without ``trust_jwt`` the ``exp`` of the access token is ignored."""
    import base64
    import json

    claims = base64.urlsafe_b64encode(json.dumps({"exp": 1_700_000_100}).encode()).decode().rstrip("=")
    fields = {"access_token": f"e30.{claims}.x"}
    blind, _ = token_from_mapping(fields, provider="plain", date=None, before_wall=1_700_000_000.0)
    trusting, _ = token_from_mapping(fields, provider="plain", date=None, before_wall=1_700_000_000.0, trust_jwt=True)
    assert (blind.lifetime, trusting.lifetime) == (300.0, 100.0)


@pytest.mark.parametrize("value", [None, "", 7, ["x"], "two words", "line\nbreak", "ünprintable", "\x00"])
def test_an_unusable_access_token_is_an_error(value: object) -> None:
    """A token that a header cannot carry counts as an answer without a token; the message does not repeat it."""
    with pytest.raises(ProviderUnavailable, match="access_token") as caught:
        token_from_mapping({"access_token": value}, provider="plain", date=None, before_wall=1.0)
    assert not value or str(value) not in str(caught.value).replace("access_token or token_type", "")
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("error", "kind"),
    [("invalid_client", ProviderRejected), ("server_error", ProviderUnavailable), ("whatever", ProviderUnavailable)],
)
def test_an_error_with_status_200_is_an_error(error: str, kind: type[Exception]) -> None:
    """Some servers send their errors with a success status."""
    fields = {"error": error, "error_description": "no, planted", "error_uri": "https://issuer.example/e"}
    with pytest.raises(kind, match=f"{error}, no, <hidden>"):
        token_from_mapping(fields, provider="plain", date=None, before_wall=1.0, secrets=["planted"])


@pytest.mark.parametrize(
    "error",
    [
        "invalid_client",
        "unauthorized_client",
        "invalid_scope",
        "unsupported_grant_type",
        "invalid_request",
        "access_denied",
        "invalid_grant",
    ],
)
@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_errors_of_the_rfc_are_permanent(error: str, status: int) -> None:
    """The fields of RFC 6749 section 5.2 reach the exception."""
    body = f'{{"error": "{error}", "error_description": "why", "error_uri": "https://issuer.example/e"}}'
    with pytest.raises(ProviderRejected, match=rf"issuer\.example .*status {status}: {error}, why") as caught:
        raise_for_error(response(status, body), provider="plain")
    found = caught.value
    assert (found.error, found.error_description, found.error_uri, found.status) == (
        error,
        "why",
        "https://issuer.example/e",
        status,
    )


@pytest.mark.parametrize("status", [400, 403])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>no</html>",
        b"[]",
        b'{"error": null}',
        b'{"error": 7}',
        b'{"error": {}}',
        b'{"message": "Forbidden"}',
    ],
)
def test_a_page_without_an_oauth_error_is_transient(status: int, body: bytes) -> None:
    """A firewall's page is not the provider's word about the credentials; the message names proxy and firewall."""
    with pytest.raises(ProviderUnavailable, match="look for a proxy or firewall in between") as caught:
        raise_for_error(response(status, body), provider="plain")
    assert (caught.value.status, caught.value.retry_at) == (status, None)


@pytest.mark.parametrize(
    ("body", "headers", "kind"),
    [
        (b"", {}, ProviderRejected),
        (b'{"message": "Invalid credentials"}', {}, ProviderRejected),
        (b"<html>Unauthorized</html>", {"www_authenticate": 'Basic realm="id"'}, ProviderRejected),
        (b"<html>Sign in to this network</html>", {}, ProviderUnavailable),
        (b"[]", {}, ProviderUnavailable),
        (b"", {"retry_after": "3"}, ProviderUnavailable),
    ],
)
def test_a_bare_401_is_a_refusal_unless_it_is_a_page(
    body: bytes, headers: dict[str, str], kind: type[Exception]
) -> None:
    """A 401 is about credentials (RFC 9110 section 15.5.2); a page without WWW-Authenticate may be a proxy's."""
    with pytest.raises(kind) as caught:
        raise_for_error(response(401, body, **headers), provider="plain")
    assert type(caught.value) is kind


@pytest.mark.parametrize("code", ["temporarily_unavailable", "server_error", "slow_down", "internal_failure"])
def test_a_temporary_error_in_a_400_is_transient(code: str) -> None:
    """Some servers send temporary errors with status 400."""
    with pytest.raises(ProviderUnavailable, match="wait before asking again"):
        raise_for_error(response(400, json.dumps({"error": code}).encode()), provider="plain")


def test_retry_after_on_a_400_is_obeyed() -> None:
    """Entra throttles with 400 and Retry-After; a permanent error stays permanent."""
    with pytest.raises(ProviderUnavailable) as caught:
        raise_for_error(response(400, b'{"error": "throttled"}', retry_after="9"), provider="plain", now=50.0)
    assert caught.value.retry_at == 59.0
    with pytest.raises(ProviderRejected):
        raise_for_error(response(400, b'{"error": "invalid_client"}', retry_after="9"), provider="plain")


def test_a_remedy_replaces_the_general_advice() -> None:
    """The caller knows its settings, so it may give the last words for an error code."""
    with pytest.raises(ProviderRejected, match=r"; set client_auth$"):
        raise_for_error(
            response(401, b'{"error": "invalid_client"}'), provider="p", remedies={"invalid_client": "set client_auth"}
        )


@pytest.mark.parametrize(
    "spelling", ["bearer", "BEARER", "Bearer ", "BearerToken", "bearer_token", "Bearer Token", "", None, 7]
)
def test_each_known_spelling_of_bearer_is_sent_as_bearer(spelling: object) -> None:
    """Apigee calls the scheme BearerToken; resource servers know only Bearer (RFC 6750)."""
    token, _ = token_from_mapping(
        {"access_token": "t", "token_type": spelling}, provider="p", date=None, before_wall=time.time()
    )
    assert token.token_type == "Bearer"


@pytest.mark.parametrize(
    ("given", "setting", "sent"), [("DPoP", None, "DPoP"), ("mac", None, "mac"), ("Foo", "Token", "Token")]
)
def test_another_scheme_stays_unless_a_setting_replaces_it(given: str, setting: str | None, sent: str) -> None:
    """The setting of a provider overrides what its server says."""
    token, _ = token_from_mapping(
        {"access_token": "t", "token_type": given}, provider="p", date=None, before_wall=time.time(), token_type=setting
    )
    assert token.token_type == sent


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        (
            b"access_token=gho_16C7&scope=repo%2Cgist&token_type=bearer",
            {"access_token": "gho_16C7", "scope": "repo,gist"},
        ),
        (b"access_token=a%26b&expires=5184000\n", {"access_token": "a&b", "expires": "5184000"}),
        (b"error=bad_code&error_description=too+late", {"error": "bad_code", "error_description": "too late"}),
        ('{"access_token": "ü"}'.encode("utf-16"), {"access_token": "ü"}),
    ],
)
def test_a_form_and_utf_16_are_read(body: bytes, fields: dict[str, str]) -> None:
    """GitHub's default answer is a form; some servers send UTF-16 with a byte-order mark."""
    found = read_json(response(200, body), provider="plain")
    assert found.items() >= fields.items()


@pytest.mark.parametrize("body", [b"<a href='?access_token=x'>", b"no error=here {", b"hello", b"a=b"])
def test_other_texts_are_not_forms(body: bytes) -> None:
    """A page that happens to hold an equals sign is not a token response."""
    with pytest.raises(ProviderUnavailable, match="neither a JSON object nor a form"):
        read_json(response(200, body), provider="plain")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"errcode": 40013, "errmsg": "invalid appid"}, ": invalid appid (40013); look"),
        ({"code": "E1", "msg": "no such app"}, ": no such app (E1); look"),
        ({"code": 0, "msg": "ok"}, ": ok; look"),
        ({"errors": [{"message": "a"}, {"message": "b"}]}, ": a, b; look"),
        ({"errors": [{"title": "Bad", "code": 4}]}, ": title: Bad; code: 4; look"),
        ({"error": {"type": "OAuthException", "message": "bad app"}}, ": OAuthException, bad app; "),
        ({"data": {}}, "access_token; check that the address"),
        ({"errmsg": "the secret is s3cr3t-s3cr3t"}, ": the secret is <hidden>; look"),
    ],
)
def test_an_error_inside_a_200_is_quoted(fields: dict[str, object], said: str) -> None:
    """The server's words are in the message, scrubbed."""
    with pytest.raises(ProviderUnavailable) as caught:
        token_from_mapping(fields, provider="p", date=None, before_wall=0.0, secrets=("s3cr3t-s3cr3t",))
    assert said in str(caught.value)


@pytest.mark.parametrize("status", [404, 405, 408, 410, 425, 429, 500, 502, 503, 504, 599])
def test_other_statuses_are_transient(status: int) -> None:
    """Other statuses are ProviderUnavailable, even with a permanent error in a 5xx."""
    body = b'{"error": "invalid_client"}' if status >= 500 else b"<html>"
    with pytest.raises(ProviderUnavailable) as caught:
        raise_for_error(response(status, body), provider="plain")
    assert caught.value.status == status
    assert caught.value.retry_at is None


def test_a_temporary_error_is_transient_whatever_its_status() -> None:
    """A 400 with a temporary error code counts as temporary."""
    with pytest.raises(ProviderUnavailable) as caught:
        raise_for_error(response(400, b'{"error": "temporarily_unavailable"}'), provider="plain")
    assert caught.value.error == "temporarily_unavailable"


@pytest.mark.parametrize("status", [200, 201, 204])
def test_a_success_status_raises_nothing(status: int) -> None:
    """No status of success is an error."""
    raise_for_error(response(status), provider="plain")


@pytest.mark.parametrize(
    ("retry_after", "date", "expected"),
    [
        ("7", "", 1_007.0),
        ("7.5", "", 1_007.5),
        ("0", "", 1_000.0),
        ("86400", "", 1_300.0),
        ("9" * 30, "", 1_300.0),
        ("Thu, 01 Jan 1970 00:17:00 GMT", "", 1_020.0),
        ("Thu, 01 Jan 1970 00:10:00 GMT", "", 1_000.0),
        ("Thu, 01 Jan 1970 05:00:30 GMT", "Thu, 01 Jan 1970 05:00:00 GMT", 1_030.0),
        ("Thu, 01 Jan 1970 06:00:00 GMT", "Thu, 01 Jan 1970 05:00:00 GMT", 1_300.0),
        ("-5", "", None),
        ("soon", "", None),
        ("", "", None),
        ("NaN", "", None),
        ("١٢", "", None),
    ],
)
def test_retry_after_becomes_a_local_instant(retry_after: str, date: str, expected: float | None) -> None:
    """Seconds or a date, measured by the server's own Date, give at most 300 s ahead."""
    answer = httpx.Response(429, headers=[(b"Retry-After", retry_after.encode()), (b"Date", date.encode())])
    assert retry_at_of(answer, now=1_000.0) == expected


def test_a_transient_refusal_carries_the_retry_instant() -> None:
    """The exception of a 429 or 503 holds the instant of Retry-After."""
    for status in (429, 503):
        with pytest.raises(ProviderUnavailable) as caught:
            raise_for_error(response(status, b"", retry_after="7"), provider="plain", now=50.0)
        assert caught.value.retry_at == 57.0


def test_error_objects_are_read_as_text() -> None:
    """An error and a message that are objects become text, once, without braces."""
    complaint = b'{"amount":{"type":"REQUIRED","message":"Required!"}}'
    body = b'{"error":%b,"message":%b}' % (complaint, complaint)
    with pytest.raises(ProviderRejected, match=r": amount: REQUIRED, Required!;") as caught:
        raise_for_error(response(400, body), provider="plain")
    assert caught.value.error is None
    assert caught.value.error_description == "amount: REQUIRED, Required!"


@pytest.mark.parametrize(
    ("text", "secrets", "expected"),
    [
        ("you sent s3cr3t!", ["s3cr3t!"], "you sent <hidden>"),
        ("you sent s3%2Fcr%203t", ["s3/cr 3t"], "you sent <hidden>"),
        ("you sent s3%2Fcr+3t", ["s3/cr 3t"], "you sent <hidden>"),
        ("longer first: abcd", ["ab", "abcd"], "longer first: <hidden>"),
        ("line\r\nbreak\x1b[31m", [], "line break [31m"),
        ("буруу байна", [""], "буруу байна"),  # noqa: RUF001  Mongolian
        ("a\tb", ["a\tb"], "<hidden>"),
        ("a\tb", ["a b"], "<hidden>"),
        ("you sent s3%2fcr%203t", ["s3/cr 3t"], "<hidden>"),
        ("you sent s3&lt;cr&#39;3t", ["s3<cr'3t"], "<hidden>"),
        (r'{"sent": "s3\/cr\u00e9\n3t"}', ["s3/cr\u00e9\n3t"], "<hidden>"),
        (r"s3\ud83d\ude003t", ["s3\U0001f6003t"], "<hidden>"),
    ],
)
def test_texts_of_a_server_are_scrubbed(text: str, secrets: list[str], expected: str) -> None:
    """No spelling of a credential, and no unprintable character, gets from a server's text into a message (INV-9)."""
    assert scrub(text, secrets) == expected


def test_a_content_type_is_scrubbed_before_it_is_cut() -> None:
    """A secret in the content type is hidden completely, also if it holds an odd character (INV-9)."""
    with pytest.raises(ProviderUnavailable) as caught:
        raise_for_error(response(404, b"", content_type="s3cr3t/pa$$"), provider="plain", secrets=["s3cr3t/pa$$"])
    assert "s3cr3t" not in str(caught.value)


def test_server_texts_are_cut_after_scrubbing() -> None:
    """A secret that lies across the cut is not shown in part."""
    text = scrub("x" * 290 + "planted-secret-value", ["planted-secret-value"])
    assert len(text) <= 300
    assert "plant" not in text
    assert len(scrub("y" * 1_000, [])) == 300


def _refusing_url() -> str:
    """Return an address without a server."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}/token"


ECHO = "sekretCLIENT/9f+8e=7d"


@pytest.mark.parametrize(
    "form",
    [
        ECHO.upper(),
        ECHO[:-3],
        ECHO[:12],
        quote(quote(ECHO, safe=""), safe="").lower(),
        base64.b64encode(ECHO.encode()).decode(),
        base64.b64encode(b"id:" + ECHO.encode()).decode(),
        base64.urlsafe_b64encode(b"ab" + ECHO.encode()).decode(),
        ECHO.encode().hex(),
        " ".join(ECHO),
        f"{ECHO[:8]}\n{ECHO[8:]}",
        "\u200b".join(ECHO),
        "".join(chr(ord(char) + 0xFEE0) for char in ECHO),
    ],
    ids=[
        "upper",
        "truncated",
        "half",
        "urls",
        "base64",
        "pair",
        "base64url",
        "hex",
        "spaced",
        "newline",
        "zero-width",
        "full-width",
    ],
)
def test_a_secret_in_another_form_is_not_quoted(form: str) -> None:
    """INV-9: a server may echo what it was sent in any form; then none of its text is shown."""
    assert scrub(f"bad credential {form}", (ECHO,)) == "<hidden>"


def test_other_texts_are_still_quoted() -> None:
    """A remedy needs the server's words: a short secret or another token hides nothing more than itself."""
    assert scrub("client 7 is unknown", ("7",)) == "client <hidden> is unknown"
    assert scrub("the client sekret is unknown", (ECHO,)) == "the client sekret is unknown"


@pytest.mark.parametrize("unit", ["\\", "&amp;", "%25", "\\u0041", ECHO])
def test_a_huge_text_is_cut_before_it_is_searched(unit: str) -> None:
    """A megabyte of escapes costs as much as the part that can be shown; the secret at the cut stays hidden."""
    whole = unit * ((1 << 20) // len(unit))
    tracked = Counted(whole)
    assert scrub(tracked, (ECHO,)) == scrub(whole[:4200], (ECHO,))
    assert tracked.sliced, "the whole text was searched"
    assert "sekretCLIENT" not in scrub("x" * 4090 + ECHO, (ECHO,))
    assert "sekret" not in scrub(" " * 4090 + ECHO, (ECHO,))


class Counted(str):  # noqa: SLOT000
    """A text that records whether a part of it was taken."""

    sliced = False

    def __getitem__(self, key: object) -> str:
        self.sliced = True
        return str.__getitem__(self, key)  # type: ignore[index]
