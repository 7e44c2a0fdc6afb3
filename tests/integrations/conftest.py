"""The HTTP clients with a source's token, each behind one small interface, and a server that judges tokens.

A kind opens its client with a ``TokenAuth`` and sends a list of :class:`Ask`. So one test checks a behaviour on all
clients. The servers are real ones on loopback, and the sources are real too.
"""

from __future__ import annotations

import asyncio
import io
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import aiohttp
import httpx
import httpx2
import pytest
import requests
from requests.adapters import HTTPAdapter

from tokencache import TokenCache
from tokencache.integrations import aiohttp as for_aiohttp
from tokencache.integrations import httpx as for_httpx
from tokencache.integrations import httpx2 as for_httpx2
from tokencache.integrations import requests as for_requests
from tokencache.testing.fakes import FakeProvider
from tokencache.testing.loopback import Asked, LoopbackServer, Reply

if TYPE_CHECKING:
    import threading
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
    from pathlib import Path
    from types import ModuleType
    from typing import Self

    from tokencache.integrations._refusal import TokenSupply
    from tokencache.source import TokenSource

PATIENCE = 30.0
INVALID = 'Bearer realm="x", error="invalid_token", error_description="expired"'
T = TypeVar("T")


@dataclass(frozen=True)
class Ask:
    """A request: the body is given in one of the forms that clients accept."""

    url: str
    method: str = "GET"
    content: bytes | None = None
    json: object = None
    form: dict[str, str] | None = None
    upload: bytes | None = None
    file: Path | None = None
    parts: tuple[bytes, ...] | None = None


@dataclass(frozen=True)
class Got:
    """An answer, and the library's own object for it."""

    status: int
    body: bytes
    native: object = field(repr=False)


Send: TypeAlias = "Callable[[Ask], Got]"
AsyncSend: TypeAlias = "Callable[[Ask], Awaitable[Got]]"


class Kind:
    """A client library, for threads or for loops. ``files`` tells whether a bare file as the body can be sent again."""

    name: str
    files = False
    loops = False

    def run(self, source: TokenSupply, asks: Sequence[Ask], **options: object) -> list[Got]:
        """Send the requests together, and return the answers in their order."""
        raise NotImplementedError

    def auth(self, source: TokenSupply, **options: object) -> object:
        """Return the library's ``TokenAuth``."""
        raise NotImplementedError


class ThreadKind(Kind):
    """A client for threads."""

    @contextmanager
    def open(self, source: TokenSupply, **options: object) -> Iterator[Send]:
        """Open the client."""
        raise NotImplementedError
        yield

    def run(self, source: TokenSupply, asks: Sequence[Ask], **options: object) -> list[Got]:
        """Send each request on its own thread; a single one on this thread, where a time-out can end it."""
        with self.open(source, **options) as send:
            if len(asks) == 1:
                return [send(asks[0])]
            with ThreadPoolExecutor(len(asks)) as pool:
                return list(pool.map(send, asks))


class LoopKind(Kind):
    """A client for event loops."""

    loops = True

    @asynccontextmanager
    async def open(self, source: TokenSupply, **options: object) -> AsyncIterator[AsyncSend]:
        """Open the client."""
        raise NotImplementedError
        yield

    def run(self, source: TokenSupply, asks: Sequence[Ask], **options: object) -> list[Got]:
        """Send each request as a task of one loop."""

        async def scenario() -> list[Got]:
            async with self.open(source, **options) as send:
                return await asyncio.gather(*(send(ask) for ask in asks))

        return asyncio.run(scenario())


def arguments(ask: Ask, parts: object) -> dict[str, Any]:
    """Return the arguments of httpx and httpx2 for a body."""
    given: dict[str, Any] = {}
    if ask.content is not None:
        given["content"] = ask.content
    if ask.json is not None:
        given["json"] = ask.json
    if ask.form is not None:
        given["data"] = ask.form
    if ask.upload is not None:
        given["files"] = {"upload": ("name.bin", io.BytesIO(ask.upload))}
    if parts is not None:
        given["content"] = parts
    return given


async def astream(parts: Sequence[bytes]) -> AsyncIterator[bytes]:
    """Stream a body."""
    for part in parts:
        yield part


class HTTPXThreads(ThreadKind):
    """httpx or httpx2 for threads."""

    def __init__(self, library: ModuleType, integration: ModuleType) -> None:
        self.name = library.__name__
        self._library = library
        self._integration = integration

    def auth(self, source: TokenSupply, **options: object) -> object:
        """Return the library's ``TokenAuth``."""
        return self._integration.TokenAuth(source, **options)

    @contextmanager
    def open(self, source: TokenSupply, *, connections: int = 100, **options: object) -> Iterator[Send]:
        """Open a ``Client``."""
        limits = self._library.Limits(max_connections=connections)
        auth = self.auth(source, **options)
        with self._library.Client(auth=auth, follow_redirects=True, limits=limits, timeout=PATIENCE) as client:

            def send(ask: Ask) -> Got:
                with ExitStack() as stack:
                    parts = None if ask.parts is None else iter(ask.parts)
                    if ask.file is not None:
                        parts = stack.enter_context(ask.file.open("rb"))
                    response = client.request(ask.method, ask.url, **arguments(ask, parts))
                return Got(response.status_code, response.content, response)

            yield send


class HTTPXLoops(LoopKind):
    """httpx or httpx2 for event loops."""

    def __init__(self, library: ModuleType, integration: ModuleType) -> None:
        self.name = f"{library.__name__}-async"
        self._library = library
        self._integration = integration

    def auth(self, source: TokenSupply, **options: object) -> object:
        """Return the library's ``TokenAuth``."""
        return self._integration.TokenAuth(source, **options)

    @asynccontextmanager
    async def open(self, source: TokenSupply, *, connections: int = 100, **options: object) -> AsyncIterator[AsyncSend]:
        """Open an ``AsyncClient``."""
        limits = self._library.Limits(max_connections=connections)
        auth = self.auth(source, **options)
        client: Any = self._library.AsyncClient(auth=auth, follow_redirects=True, limits=limits, timeout=PATIENCE)
        async with client:

            async def send(ask: Ask) -> Got:
                content = ask.file.read_bytes() if ask.file is not None else None
                parts = ask.parts if content is None else (content,)
                body = arguments(ask, None if parts is None else astream(parts))
                response = await client.request(ask.method, ask.url, **body)
                return Got(response.status_code, response.content, response)

            yield send


class RequestsThreads(ThreadKind):
    """requests, one session for all threads."""

    name = "requests"
    files = True

    def auth(self, source: TokenSupply, **options: object) -> object:
        """Return the library's ``TokenAuth``."""
        return for_requests.TokenAuth(source, **options)

    @contextmanager
    def open(self, source: TokenSupply, *, connections: int = 100, **options: object) -> Iterator[Send]:
        """Open a ``Session``."""
        with requests.Session() as session:
            session.trust_env = False
            session.mount("http://", HTTPAdapter(pool_maxsize=connections, pool_block=True))
            session.auth = self.auth(source, **options)  # type: ignore[assignment]

            def send(ask: Ask) -> Got:
                with ExitStack() as stack:
                    data: Any = ask.content if ask.form is None else ask.form
                    if ask.parts is not None:
                        data = iter(ask.parts)
                    if ask.file is not None:
                        data = stack.enter_context(ask.file.open("rb"))
                    files = None if ask.upload is None else {"upload": ("name.bin", io.BytesIO(ask.upload))}
                    response = session.request(
                        ask.method, ask.url, data=data, json=ask.json, files=files, timeout=PATIENCE
                    )
                return Got(response.status_code, response.content, response)

            yield send


class AiohttpLoops(LoopKind):
    """aiohttp, one session for all tasks."""

    name = "aiohttp"
    files = True

    def auth(self, source: TokenSupply, **options: object) -> object:
        """Return the library's ``TokenAuth``."""
        return for_aiohttp.TokenAuth(source, **options)

    @asynccontextmanager
    async def open(self, source: TokenSupply, *, connections: int = 100, **options: object) -> AsyncIterator[AsyncSend]:
        """Open a ``ClientSession``."""
        middleware: Any = self.auth(source, **options)
        connector = aiohttp.TCPConnector(limit=connections)
        timeout = aiohttp.ClientTimeout(total=PATIENCE)
        async with aiohttp.ClientSession(middlewares=[middleware], connector=connector, timeout=timeout) as session:

            async def send(ask: Ask) -> Got:
                data: Any = ask.content if ask.form is None else ask.form
                if ask.upload is not None:
                    data = aiohttp.FormData()
                    data.add_field("upload", io.BytesIO(ask.upload), filename="name.bin")
                if ask.parts is not None:
                    data = astream(ask.parts)
                if ask.file is not None:
                    data = ask.file.open("rb")  # aiohttp closes it
                async with session.request(ask.method, ask.url, data=data, json=ask.json) as response:
                    return Got(response.status, await response.read(), response)

            yield send


THREADS: list[ThreadKind] = [
    HTTPXThreads(httpx, for_httpx),
    HTTPXThreads(httpx2, for_httpx2),
    RequestsThreads(),
]
LOOPS: list[LoopKind] = [HTTPXLoops(httpx, for_httpx), HTTPXLoops(httpx2, for_httpx2), AiohttpLoops()]
KINDS: list[Kind] = [*THREADS, *LOOPS]


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> Kind:
    """Each of the clients."""
    found: Kind = request.param
    return found


@pytest.fixture(params=LOOPS, ids=lambda kind: kind.name)
def loop_kind(request: pytest.FixtureRequest) -> LoopKind:
    """Each of the clients for event loops."""
    found: LoopKind = request.param
    return found


@pytest.fixture
def every_thread_kind() -> list[ThreadKind]:
    """All clients for threads."""
    return THREADS


@pytest.fixture
def every_loop_kind() -> list[LoopKind]:
    """All clients for event loops."""
    return LOOPS


class Issuer(FakeProvider):
    """A provider of ``fake-token-1``, ``fake-token-2``, … and its source."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = TokenCache("memory://")
        self.source: TokenSource = self.cache.source(self)


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    """A provider with its own source."""
    issuer = Issuer()
    yield issuer
    issuer.gate.set()
    issuer.cache.close()


class API:
    """A server that serves requests with a token that it ``accepts``, and records all requests.

    ``redirects`` maps a path to another place. With ``crowd`` set, refusals wait until that many requests have arrived,
    so that all of them carry one token. A ``held`` path is answered after its event is set.
    """

    def __init__(self, *accepts: int, challenge: str = INVALID, status: int = 401) -> None:
        self.accepts = {f"Bearer fake-token-{number}" for number in accepts}
        self.refusal = Reply(status, b"no", (("WWW-Authenticate", challenge),))
        self.redirects: dict[str, tuple[int, str]] = {}
        self.asked: list[Asked] = []
        self.crowd = 0
        self.held: dict[str, threading.Event] = {}
        self._refused = 0
        self._server = LoopbackServer(self._answer)

    @property
    def url(self) -> str:
        """Its origin."""
        return f"http://127.0.0.1:{self._server.port}"

    @property
    def tokens(self) -> list[str | None]:
        """The Authorization headers that it received, in order."""
        return [asked.headers.get("authorization") for asked in self.asked]

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop()

    async def _answer(self, asked: Asked) -> Reply:
        self.asked.append(asked)
        if asked.path in self.redirects:
            status, location = self.redirects[asked.path]
            return Reply(status, b"", (("Location", location),))
        if asked.headers.get("authorization") in self.accepts:
            return Reply(200, asked.body)
        self._refused += 1
        while self._refused < self.crowd:
            await asyncio.sleep(0.002)
        while asked.path in self.held and not self.held[asked.path].is_set():
            await asyncio.sleep(0.002)
        return self.refusal


@pytest.fixture
def serve() -> Iterator[Callable[..., API]]:
    """Yield a function that starts servers; they end with the test."""
    with ExitStack() as stack:
        yield lambda *accepts, **options: stack.enter_context(API(*accepts, **options))


def until(condition: Callable[[], object]) -> None:
    """Wait for a condition."""
    ends_at = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < ends_at, "it never came true"
        time.sleep(0.002)


@pytest.fixture
def patiently() -> Callable[[Callable[[], object]], None]:
    """The function that waits for a condition, on a thread."""
    return until


@pytest.fixture
def apatiently() -> Callable[[Callable[[], object]], Coroutine[Any, Any, None]]:
    """The function that waits for a condition, on a loop."""

    async def auntil(condition: Callable[[], object]) -> None:
        ends_at = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < ends_at, "it never came true"
            await asyncio.sleep(0.002)

    return auntil


@pytest.fixture
def ask() -> type[Ask]:
    """The class of a request."""
    return Ask
