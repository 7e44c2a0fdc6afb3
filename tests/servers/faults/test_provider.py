"""Rows 22 and 24: a provider that fails, stalls, answers nonsense, repeats itself, or ends its earlier tokens."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import socket
import socketserver
import struct
import threading
import time
from base64 import b64encode
from contextlib import contextmanager
from email.utils import formatdate
from typing import TYPE_CHECKING

import httpx
import pytest

from tokencache import ProviderRejected, ProviderUnavailable, RefreshPolicy, TokenCache, TokenCacheError
from tokencache.backends._threaded import async_half
from tokencache.events import FetchFailed, TokenUnchanged
from tokencache.integrations.httpx import TokenAuth
from tokencache.ports import Secret
from tokencache.providers.http import HTTPTokenProvider
from tokencache.providers.oauth_response import date_of, raise_for_error, read_json, token_from_mapping
from tokencache.testing.fakes import FakeClock, Recorder
from tokencache_qpay import QPayProvider
from tokencache_qpay.testing import FakeQPay

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from conftest import Outcome, Store
    from tokencache import Token, TokenSource
    from tokencache.ports import FetchContext
    from tokencache.providers.http import TokenFlow

pytestmark = [pytest.mark.live, pytest.mark.usefixtures("tidy")]

PATIENCE = 30.0
SECRET = "planted/secret+of=the&client"
BASIC = b64encode(f"client:{SECRET}".encode()).decode()
IMPATIENT = RefreshPolicy(backoff=0.2, rejected_cooldown=0.2)
EVERY = pytest.mark.parametrize("store", ["memory", "file", "redis", "memcached"], indirect=True)


# --- a token endpoint whose answers are bytes, and its client


def reply(status: int, body: bytes | object, length: int | None = None, **headers: str) -> bytes:
    """Return a whole answer; a body that is not bytes is sent as JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    fields = {"Content-Length": str(len(content) if length is None else length), **headers}
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {status} Told\r\n{lines}\r\n".encode() + content


class Endpoint(socketserver.ThreadingTCPServer):
    """A token endpoint on loopback. ``fault`` happens to the next ``faults`` requests; the others get a new token.

    ``came_at`` holds the wall clock's time of each request. With ``same``, the endpoint gives the same token again.
    """

    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.fault: Callable[[Answer], None] = Answer.nothing
        self.faults = 0
        self.same = False
        self.came_at: list[float] = []
        self.over = threading.Event()
        self._lock = threading.Lock()  # guards came_at, faults, _given
        self._given = 0

    @property
    def url(self) -> str:
        """The URL of the token endpoint."""
        return f"http://127.0.0.1:{self.server_address[1]}/token"

    def due(self) -> Callable[[Answer], None]:
        """Count a request and return its fault."""
        with self._lock:
            self.came_at.append(time.time())
            if self.faults:
                self.faults -= 1
                return self.fault
            self._given += not self.same
            token = {"access_token": f"planted-token-{self._given}", "expires_in": 3600}
        return lambda answer: answer.send(reply(200, token))

    def handle_error(self, *_: object) -> None:
        """Ignore clients that hang up."""


class Answer(socketserver.StreamRequestHandler):
    """One request to the endpoint."""

    server: Endpoint

    def handle(self) -> None:
        """Read the request, then answer it with its fault."""
        length = 0
        while (line := self.rfile.readline().strip()) != b"":
            if line.lower().startswith(b"content-length:"):
                length = int(line.partition(b":")[2])
        self.rfile.read(length)
        self.server.due()(self)

    def send(self, data: bytes) -> None:
        """Send bytes, valid or not."""
        self.wfile.write(data)

    def nothing(self) -> None:
        """Leave the request without an answer."""
        self.server.over.wait(PATIENCE)

    def drip(self) -> None:
        """Send an answer of endless length, a byte at a time."""
        self.send(b"HTTP/1.1 200 OK\r\n\r\n")
        while not self.server.over.wait(0.01):
            self.send(b" ")

    def reset(self) -> None:
        """Send half of an answer, then reset the connection."""
        self.send(reply(200, b'{"access_token": "planted', length=100))
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()


@contextmanager
def running(server: Endpoint) -> Iterator[Endpoint]:
    """Serve as long as the block lasts, and leave no thread behind."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        server.server_close()
        thread.join(PATIENCE)


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    """A new token endpoint for one test."""
    with running(Endpoint()) as server:
        yield server


class Login(HTTPTokenProvider):
    """A provider as a user would write it on ``HTTPTokenProvider``."""

    name = "login"

    def __init__(self, url: str, limit: Callable[[], float] = lambda: PATIENCE) -> None:
        super().__init__(timeout=PATIENCE)
        self.url = url
        self.limit = limit

    def identity(self) -> Mapping[str, object]:
        """Return address and secret."""
        return {"issuer": self.url, "client_secret": Secret(SECRET)}

    def token_flow(self, context: FetchContext) -> TokenFlow:
        """Send the secret both ways, in the header and in the body."""
        before_wall = time.time()
        header, extensions = {"Authorization": f"Basic {BASIC}"}, {"timeout": {"read": self.limit()}}
        response = yield httpx.Request(
            "POST", self.url, headers=header, data={"client_secret": SECRET}, extensions=extensions
        )
        secrets = (SECRET, BASIC)
        raise_for_error(response, provider=self.name, secrets=secrets)
        fields = read_json(response, provider=self.name, secrets=secrets)
        date = date_of(response)
        return token_from_mapping(fields, provider=self.name, date=date, before_wall=before_wall, secrets=secrets)[0]


# --- row 22


def answering(status: int, body: bytes | object, **headers: str) -> Callable[[Answer], None]:
    """Return the fault that sends an answer."""
    return lambda answer: answer.send(reply(status, body, **headers))


def dated(answer: Answer) -> None:
    """Ask for a pause of one second by date, on a clock that is an hour ahead."""
    at = time.time() + 3600
    dates = {"Date": formatdate(at, usegmt=True), "Retry_After": formatdate(at + 1, usegmt=True)}
    answer.send(reply(429, b"", **dates))


PAGE = b"<html>planted/secret+of=the&client</html>"
BOMB = gzip.compress(bytes(64 << 20))
DENIED = {"error": "invalid_client", "error_description": f"{SECRET} is not the secret, nor is {BASIC}"}

FAULTS: dict[str, tuple[Callable[[Answer], None], type[TokenCacheError], str]] = {
    "429 with seconds": (answering(429, b"", Retry_After="1"), ProviderUnavailable, "status 429"),
    "429 with a date, on another clock": (dated, ProviderUnavailable, "status 429"),
    "500": (answering(500, PAGE, Content_Type="text/html"), ProviderUnavailable, "status 500"),
    "503": (answering(503, b""), ProviderUnavailable, "status 503"),
    "no answer": (Answer.nothing, ProviderUnavailable, "no complete answer within"),
    "an answer that never ends": (Answer.drip, ProviderUnavailable, "no complete answer within"),
    "connection reset in mid-body": (Answer.reset, ProviderUnavailable, "broke before the answer was complete"),
    "body cut off": (
        lambda answer: answer.send(reply(200, b'{"access_token": "planted', length=100)),
        ProviderUnavailable,
        "broke before the answer was complete",
    ),
    "an HTML page": (answering(200, PAGE, Content_Type="text/html"), ProviderUnavailable, "text/html"),
    "gzip bomb": (answering(200, BOMB, Content_Encoding="gzip"), ProviderUnavailable, "larger than 1 MiB"),
    "200 with `error`": (answering(200, DENIED), ProviderRejected, "invalid_client"),
    "empty body": (answering(200, b""), ProviderUnavailable, "an empty body"),
    "JSON cut off": (answering(200, b'{"access_token": "planted'), ProviderUnavailable, "neither a JSON object"),
    "wrong JSON": (answering(200, {"access_token": {"planted": 1}}), ProviderUnavailable, "holds no access_token"),
    "a token with a line break": (answering(200, {"access_token": "planted\r\nX: 1"}), ProviderUnavailable, "header"),
    "wrong credentials": (answering(401, DENIED), ProviderRejected, "invalid_client"),
}


def cases() -> Iterator[object]:
    """Yield every fault on Redis, and one of each kind on the other stores."""
    for case in FAULTS:
        mark = pytest.mark.fault(22, case=case)
        yield pytest.param("redis", case, marks=mark, id=case)
        if case in {"500", "wrong credentials"}:
            for store in ("memory", "file", "memcached"):
                yield pytest.param(store, case, marks=mark, id=f"{case}, {store}")


class Crowd:
    """Threads that ask again and again until each has a token."""

    def __init__(self, *sources: TokenSource) -> None:
        self.errors: list[TokenCacheError] = []
        self.tokens: list[Token] = []
        self._threads = [threading.Thread(target=self._ask, args=(source,)) for source in sources]
        for thread in self._threads:
            thread.start()
        for thread in self._threads:
            thread.join(PATIENCE)

    def _ask(self, source: TokenSource) -> None:
        give_up = time.monotonic() + PATIENCE
        while time.monotonic() < give_up:
            try:
                self.tokens.append(source.token())
            except TokenCacheError as error:
                self.errors.append(error)
                time.sleep(0.002)
            else:
                return


@pytest.mark.parametrize(("store", "case"), list(cases()), indirect=["store"])
def test_a_provider_that_fails(
    store: Store, case: str, endpoint: Endpoint, outcome: Outcome, caplog: pytest.LogCaptureFixture
) -> None:
    """INV-4, INV-7, INV-8, INV-9: the usable token is served; without one, one caller asks, and all get its error.

    The fault hits a renewal on an event loop, then cold processes on threads; no request comes before the pause ends.
    """
    caplog.set_level(logging.DEBUG)
    fault, error, text = FAULTS[case]
    stalls = case in {"no answer", "an answer that never ends"}
    provider = Login(endpoint.url, lambda: 0.3 if stalls and endpoint.faults else PATIENCE)
    seen = Recorder()
    backend = store.open()
    mine, theirs, looped = (
        TokenCache(each, policy=IMPATIENT, observers=[seen]).source(provider, key="k")
        for each in (store.open(), store.open(), backend)
    )
    first = mine.token()
    assert theirs.token() == first
    fence = store.fence("k")

    async def renew() -> None:
        assert await looped.atoken() == first
        try:
            await looped.arenew()
        finally:
            assert await looped.atoken() == first
            if store.kind == "redis":
                await async_half(backend).close()

    endpoint.fault, endpoint.faults = fault, 2
    with pytest.raises(error, match=text) as raised:
        asyncio.run(renew())
    assert mine.token() == theirs.token() == first
    mine.invalidate(first)
    theirs.invalidate(first)
    with outcome.healing():
        crowd = Crowd(*[mine, theirs] * 4)

    assert len(crowd.tokens) == 8
    assert len(set(crowd.tokens)) == 1
    assert crowd.tokens[0] != first
    assert crowd.errors
    assert {type(each) for each in crowd.errors} == {error}
    assert store.fence("k") > fence
    assert len(endpoint.came_at) == 4
    pauses = [1.0 if case.startswith("429") else event.pause for event in seen.of(FetchFailed)]
    for refused_at, pause, asked_at in zip(endpoint.came_at[1:3], pauses, endpoint.came_at[2:], strict=True):
        assert asked_at > refused_at + pause - 0.02  # the stores count milliseconds
    shown = [*map(repr, seen.events), *map(str, crowd.errors), str(raised.value), caplog.text, str(mine.status())]
    for secret in (SECRET, BASIC, "planted-token"):
        assert secret not in "\n".join(shown)
    outcome.record(
        f"the usable token; without one {error.__name__} until its pause ends, then the new token", calls="1 a pause"
    )


@pytest.mark.fault(22, backend="memory", case="redirect to another host")
def test_a_redirect_is_sent_no_secret(endpoint: Endpoint, outcome: Outcome) -> None:
    """INV-9: nothing is sent to a redirect's target, on threads or on an event loop; the error says what to do."""
    told = {"match": r"redirect.*configure the final address"}
    with running(Endpoint()) as elsewhere:
        location = elsewhere.url.replace("127.0.0.1", "localhost")
        for status in (302, 307):
            endpoint.fault, endpoint.faults = answering(status, b"", Location=location), 2
            with pytest.raises(ProviderUnavailable, **told):
                TokenCache().source(Login(endpoint.url)).token()
            with pytest.raises(ProviderUnavailable, **told):
                asyncio.run(TokenCache().source(Login(endpoint.url)).atoken())
        assert elsewhere.came_at == []
    assert len(endpoint.came_at) == 4
    outcome.record("ProviderUnavailable, and nothing was sent to the other host", calls=1)


def requests(sources: list[TokenSource], url: str, count: int) -> list[int]:
    """Make ``count`` requests to the shop from a thread for each source, and return all status codes."""
    codes: list[int] = []

    def ask(source: TokenSource) -> None:
        with httpx.Client(auth=TokenAuth(source), timeout=PATIENCE) as client:
            codes.extend(client.get(f"{url}/v2/payment/1").status_code for _ in range(count))

    threads = [threading.Thread(target=ask, args=(source,)) for source in sources]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    return codes


@pytest.fixture
def qpay() -> Iterator[FakeQPay]:
    """A new QPay for one test."""
    with FakeQPay() as qpay:
        yield qpay


def shops(store: Store, qpay: FakeQPay) -> list[TokenSource]:
    """Return the sources of two processes that hold the same token; a replacement counts as young for a long time."""
    provider = QPayProvider("TEST_MERCHANT", "123456", base_url=qpay.url)
    policy = RefreshPolicy(settle=600.0)
    sources = [TokenCache(store.open()).source(provider, policy=policy, key="k") for _ in range(2)]
    assert len({source.token() for source in sources}) == 1
    return sources


@pytest.mark.fault(22, case="revocation storm")
@EVERY
def test_a_revocation_storm_costs_one_renewal(store: Store, qpay: FakeQPay, outcome: Outcome) -> None:
    """INV-6: while every token is refused, one renewal is tried and the 401s reach callers; then requests work."""
    mine, theirs = shops(store, qpay)
    fence = store.fence("k")
    with qpay.fail_while(status=401, where="shop"):
        assert set(requests([mine, theirs] * 2, qpay.url, 4)) == {401}
    assert qpay.logins == 2
    with outcome.healing():
        assert 401 not in requests([mine, theirs], qpay.url, 1)
    assert qpay.logins == 2
    assert qpay.most_logins_at_once == 1
    assert store.fence("k") > fence
    outcome.record("the 401s after one renewal for all", calls=1)


# --- row 24


@pytest.mark.fault(24, case="a new token ends the old one")
@EVERY
def test_a_new_token_that_ends_the_old_is_shared(store: Store, qpay: FakeQPay, outcome: Outcome) -> None:
    """INV-6: a holder of the token that a renewal ended gets the new one from the store, without a login."""
    qpay.one_session = True
    mine, theirs = shops(store, qpay)
    old = theirs.token()
    new = mine.renew()
    assert theirs.token() == old
    codes = requests([theirs, mine] * 3, qpay.url, 2)
    assert len(codes) == 12
    assert 401 not in codes
    assert mine.token() == theirs.token() == new
    assert qpay.logins == 2
    outcome.record("nothing: a 401 is met with the new token and the request sent again", calls=1)


@pytest.mark.fault(24, case="the same token again")
@EVERY
def test_the_same_token_again_causes_no_loop(store: Store, endpoint: Endpoint, outcome: Outcome) -> None:
    """INV-2, INV-4: a renewal that brings the same token counts for all processes; the next one comes after a pause."""
    clock, seen = FakeClock(wall=time.time()), (Recorder(), Recorder())
    provider = Login(endpoint.url)
    members = [
        TokenCache(store.open(), observers=[each], clock=clock, wall=clock.wall).source(provider, key="k")
        for each in seen
    ]
    first = members[0].token()
    assert members[1].token() == first
    endpoint.same = True

    def landed(kept: int) -> bool:
        """Ask, as callers do, and return whether each member has ``kept`` events of an unchanged token."""
        assert {member.token() for member in members} == {first}
        return all(len(each.of(TokenUnchanged)) == kept for each in seen)

    for renewals in (1, 2):
        clock.advance(3000 if renewals == 1 else 150)  # the pause is a quarter of the remaining time, some 130 s
        patience = time.monotonic() + PATIENCE
        while not landed(renewals):
            assert time.monotonic() < patience
            time.sleep(0.001)
        for _ in range(50):
            clock.advance(0.1)
            assert landed(renewals)
        assert len(endpoint.came_at) == 1 + renewals
    endpoint.same = False
    clock.advance(130)
    patience = time.monotonic() + PATIENCE
    # The new token ends by the server's clock, and only ours was moved. So each member may renew it at once, and the
    # members need not hold the same token at any instant.
    while any(member.token() == first for member in members):
        assert time.monotonic() < patience
        time.sleep(0.001)
    assert len(endpoint.came_at) >= 4
    outcome.record("the same token without waiting; asked again after a pause, by one", calls="1 a pause")
