"""Answers of token endpoints, whole or in pieces, give a token or a documented error, and no error shows a secret."""

from __future__ import annotations

import asyncio
import gzip
import html
import json
import logging
import sys
import time
import zlib
from base64 import b64encode
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, quote_plus

import httpx
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tokencache.errors import ConfigurationError, ProviderRejected, ProviderUnavailable, TokenCacheError
from tokencache.ports import FetchContext
from tokencache.providers.callable import CallableProvider
from tokencache.providers.oauth_response import scrub
from tokencache.testing.fakes import FakeClock
from tokencache.token import Token
from tokencache_qpay import QPayProvider

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

FUZZ = settings.get_profile("fuzz")

PASSWORD = 'pl4nted/pa$$ <wyrd>+\u00e9 "&'
BASIC = b64encode(f"merchant:{PASSWORD}".encode()).decode()
PREVIOUS = Token(
    "planted-access", expires_at=4e9, issued_at=1e9, refresh_token="planted-refresh", refresh_expires_at=4e9
)
FRAGMENTS = ("pl4nted", "wyrd", BASIC, "planted-access", "planted-refresh", "planted-answer")
LONGEST = 25 * 3600.0


def lower(text: str) -> str:
    """Return percent-encoding in lower case, as other libraries write it."""
    return "".join(
        f"%{piece[:2].lower()}{piece[2:]}" if place else piece for place, piece in enumerate(text.split("%"))
    )


ECHOES = [
    *(PASSWORD, quote(PASSWORD), quote(PASSWORD, safe=""), quote_plus(PASSWORD)),
    *(lower(quote(PASSWORD)), lower(quote_plus(PASSWORD)), html.escape(PASSWORD), html.escape(PASSWORD, quote=False)),
    *(json.dumps(PASSWORD), json.dumps(PASSWORD, ensure_ascii=False), json.dumps(PASSWORD).replace("/", "\\/")),
    *(f"Basic {BASIC}", quote_plus(BASIC), "Bearer planted-refresh", "planted-access"),
]
TEXTS = st.lists(
    st.sampled_from(ECHOES) | st.text(max_size=8) | st.sampled_from(["\x00", "%", "x" * 290]), max_size=4
).map("".join)
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS | st.sampled_from([10**400, 1_769_756_525, "3600"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(TEXTS | st.sampled_from(["type", "message"]), inner, max_size=3)
    ),
    max_leaves=5,
)
PUBLIC = st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.lists(st.text(max_size=4), max_size=3)
"""For the fields that a token shows: a server that puts a secret there has published it."""
VALUES = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=20).map(
    "planted-answer".__add__
)
ERRORS = st.sampled_from(["invalid_client", "invalid_grant", "slow_down", "AUTHENTICATION_FAILED", ""]) | TEXTS
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "access_token": VALUES | VALUES | JSON,
        "token_type": st.sampled_from(["Bearer", "bearer", "DPoP"]) | PUBLIC,
        "expires_in": st.integers(-10, 100_000) | st.integers(0, 2**33) | JSON,
        "expires_on": JSON,
        "expires_at": st.integers(0, 2**33) | JSON,
        "refresh_token": VALUES | JSON,
        "refresh_expires_in": st.integers(0, 100_000) | JSON,
        "scope": PUBLIC,
        "session_state": JSON,
        "error": ERRORS | JSON,
        "error_description": TEXTS | JSON,
        "message": TEXTS | JSON,
        "detail": JSON,
        "error_uri": JSON,
    },
)
GOOD = st.builds(
    lambda value, lifetime, rest: {"access_token": value, "expires_in": lifetime, **rest},
    VALUES,
    st.integers(1, 200_000) | st.integers(1_700_000_000, 2_000_000_000),
    st.fixed_dictionaries({}, optional={"access_token": TEXTS, "refresh_token": VALUES, "scope": PUBLIC, "x": JSON}),
)
BODIES = st.one_of(
    GOOD.map(lambda fields: json.dumps(fields).encode()),
    FIELDS.map(lambda fields: json.dumps(fields).encode()),
    FIELDS.map(lambda fields: json.dumps(fields, ensure_ascii=False).encode("utf-8-sig", "replace")),
    FIELDS.map(lambda fields: json.dumps(fields)[:-2].encode()),
    FIELDS.map(lambda fields: json.dumps(fields).encode("utf-16")),
    JSON.map(lambda value: json.dumps(value).encode()),
    TEXTS.map(lambda text: f"<html>planted-answer {text}</html>".encode()),
    TEXTS.map(lambda text: f"access_token=planted-answer&x={text}".encode()),
    st.binary(max_size=60),
)
CODINGS = st.sampled_from(
    ["", "", "", "identity", "gzip", "x-gzip", "deflate", "br", "GZIP ", "gzip, gzip", "planted-answer"]
)
HEADERS = st.fixed_dictionaries(
    {},
    optional={
        "Date": st.sampled_from(["Thu, 01 Jan 2026 00:00:00 GMT", "Thu, 01 Jan 1970 00:00:00 GMT", "now"]) | TEXTS,
        "Retry-After": st.sampled_from(["5", "0", "-1", "1e9", "999999999999", "Thu, 01 Jan 2099 00:00:00 GMT"])
        | TEXTS,
        "Content-Type": st.sampled_from(["application/json", "text/html; charset=utf-16", "text/planted-refresh"])
        | TEXTS,
        "Set-Cookie": TEXTS | st.just("session=planted-answer; Path=/"),
        "Location": st.just("https://evil.example/?planted-answer") | TEXTS,
        "WWW-Authenticate": TEXTS,
        "Content-Length": st.sampled_from(["0", "5", "99999999"]),
    },
)
STATUSES = st.sampled_from(
    [200, 200, 200, 201, 204, 299, 302, 307, 400, 401, 403, 404, 408, 422, 425, 429, 500, 503, 599, 999]
)


@dataclass(frozen=True)
class Answer:
    """A server's answer with its encoding; ``cut`` bytes are missing at the end."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    coding: str = ""
    packed: bool = True
    cut: int = 0
    pieces: int = 1

    def response(self) -> httpx.Response:
        """Return the answer as a transport does."""
        sent = self.body
        if self.packed and "gzip" in self.coding.lower():
            sent = gzip.compress(sent)
        elif self.packed and self.coding == "deflate":
            sent = zlib.compress(sent)
        sent = sent[: len(sent) - self.cut]
        headers = [(name.encode(), value.encode("utf-8", "surrogatepass")) for name, value in self.headers.items()]
        if self.coding:
            headers.append((b"Content-Encoding", self.coding.encode()))
        return httpx.Response(self.status, headers=headers, stream=Pieces(sent, self.pieces))


class Pieces(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body that arrives piece by piece."""

    def __init__(self, body: bytes, pieces: int) -> None:
        size = max(1, -(-len(body) // pieces))
        self._pieces = [body[start : start + size] for start in range(0, len(body), size)]

    def __iter__(self) -> Iterator[bytes]:
        yield from self._pieces

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            yield piece


ANY = st.builds(
    Answer,
    status=STATUSES,
    body=BODIES,
    headers=HEADERS,
    coding=CODINGS,
    packed=st.sampled_from([True, True, False]),
    cut=st.sampled_from([0, 0, 0, 1, 9]),
    pieces=st.integers(1, 4),
)

FINE = st.builds(
    Answer,
    body=GOOD.map(lambda fields: json.dumps(fields).encode()),
    headers=HEADERS,
    coding=CODINGS,
    cut=st.sampled_from([0, 0, 0, 1, 9]),
    pieces=st.integers(1, 4),
)
BUSY = st.builds(
    Answer,
    status=st.sampled_from([429, 503, 401]),
    body=BODIES,
    headers=st.fixed_dictionaries(
        {"Retry-After": st.sampled_from(["5", "0", "1e9", "999999999999", "Thu, 01 Jan 2099 00:00:00 GMT"]) | TEXTS}
    ),
)
ANSWERS = ANY | FINE | BUSY


def fetch(half: str, answers: list[Answer], *, use_refresh: bool) -> tuple[Token | TokenCacheError, list[str]]:
    """Fetch from a server that gives these answers in turn; return the result and all warnings."""
    waiting = list(answers)

    def handle(request: httpx.Request) -> httpx.Response:
        assert "planted" not in str(request.url)
        return waiting.pop(0).response()

    clock, warned, transport = FakeClock(), list[str](), httpx.MockTransport(handle)
    told = FetchContext(PREVIOUS, clock() + 20.0, "refresh", clock, warned.append)

    async def afetch() -> Token:
        async with httpx.AsyncClient(transport=transport, trust_env=False) as client:
            return await QPayProvider("merchant", PASSWORD, use_refresh=use_refresh, async_client=client).afetch(told)

    try:
        if half == "afetch":
            return asyncio.run(afetch()), warned
        with httpx.Client(transport=transport, trust_env=False) as client:
            came = QPayProvider("merchant", PASSWORD, use_refresh=use_refresh, client=client).fetch(told)
            assert not list(client.cookies.jar), "no cookie of a login stays"
            return came, warned
    except TokenCacheError as error:
        return error, warned


def texts_of(error: BaseException) -> list[str]:
    """Return all that a caller could print of an error and of its causes."""
    texts = [str(error), repr(error), *map(repr, vars(error).values())]
    return texts + [text for led in (error.__cause__, error.__context__) if led for text in texts_of(led)]


@FUZZ
@given(
    half=st.sampled_from(["fetch", "fetch", "afetch"]),
    answers=st.lists(ANSWERS, min_size=2, max_size=2),
    use_refresh=st.booleans(),
)
def test_any_answer_is_a_token_or_a_documented_error(half: str, answers: list[Answer], use_refresh: bool) -> None:
    """INV-1, INV-9: any answer of a server gives a token within the cap or an error, and neither shows a secret."""
    logging.getLogger("httpx").setLevel(logging.WARNING)
    before = time.time()
    came, warned = fetch(half, answers, use_refresh=use_refresh)
    shown = [repr(came), str(came), *warned]
    if isinstance(came, Token):
        assert 0 < came.lifetime <= LONGEST
        assert came.value.isascii()
        assert came.value.isprintable()
        assert any(200 <= answer.status < 300 for answer in answers)
        assert came.token_type.isprintable()
    else:
        assert type(came) in {ProviderRejected, ProviderUnavailable, ConfigurationError}
        shown += texts_of(came)
        retry_at = getattr(came, "retry_at", None)
        assert retry_at is None or before <= retry_at <= time.time() + 300, "a wait has an end, and is not zero"
        if isinstance(came, ProviderRejected):
            assert came.status is None or 400 <= came.status < 500, "only a refusal is for good"
    assert not [(fragment, text) for text in shown for fragment in FRAGMENTS if fragment in text]


@FUZZ
@given(answer=ANSWERS)
@example(answer=Answer(body=gzip.compress(b"0" * 5_000_000), coding="gzip", packed=False))
@example(answer=Answer(body=b'{"access_token":"planted-answer","expires_in":60}', coding="gzip", cut=8))
@example(answer=Answer(body=b"[" * 200_000))
@example(answer=Answer(body=b'{"access_token":"x","expires_in":' + b"9" * 100_000 + b"}"))
def test_threads_and_event_loops_read_an_answer_alike(answer: Answer) -> None:
    """Both halves treat an answer alike: the same token, or the same error with the same words."""
    (one, warned), (other, warned_too) = (fetch(half, [answer], use_refresh=False) for half in ("fetch", "afetch"))
    assert type(one) is type(other)
    assert not (isinstance(one, Token) and answer.cut), "half an answer gives no token"
    assert warned == warned_too
    if isinstance(one, Token) and isinstance(other, Token):
        assert (one.value, one.scope, one.refresh_token, one.extra) == (
            other.value,
            other.scope,
            other.refresh_token,
            other.extra,
        )
        assert abs(one.lifetime - other.lifetime) < 5
    else:
        assert str(one) == str(other)


@FUZZ
@given(fields=FIELDS, value=VALUES, headers=HEADERS, byte_order_mark=st.booleans())
def test_odd_fields_do_not_lose_a_good_token(
    fields: dict[str, Any], value: str, headers: dict[str, str], byte_order_mark: bool
) -> None:
    """INV-1: a good `access_token` is taken whatever the other fields hold, for no longer than the cap."""
    fields = {**fields, "token_type": "Bearer", "access_token": value, "expires_on": 10**5000}
    sys.set_int_max_str_digits(0)
    try:
        body = json.dumps(fields).encode("utf-8-sig" if byte_order_mark else "utf-8")
    finally:
        sys.set_int_max_str_digits(sys.int_info.default_max_str_digits)
    came, _ = fetch("fetch", [Answer(body=body, headers=headers)], use_refresh=False)
    assert isinstance(came, Token)
    assert came.value == value
    assert 0 < came.lifetime <= LONGEST


@FUZZ
@given(
    secret=st.text(st.characters(exclude_categories=("Cs",)), min_size=6, max_size=12),
    around=st.tuples(st.text(max_size=5), st.text(max_size=5)),
    way=st.integers(0, 5),
)
def test_no_usual_spelling_of_a_secret_is_quoted(secret: str, around: tuple[str, str], way: int) -> None:
    """INV-9: an echoed answer is quoted without the secret, as it is or in its URL, HTML and JSON encodings."""
    ways = [secret, quote(secret, safe=""), lower(quote_plus(secret)), html.escape(secret), json.dumps(secret)[1:-1]]
    spelled = [*ways, json.dumps(secret, ensure_ascii=False)[1:-1]][way]
    said = scrub(f"{around[0]} {spelled} {around[1]}", [secret])
    assert len(said) <= 300
    assert said.isprintable()
    if secret not in around[0] + around[1] + " <hidden> ":
        assert secret not in said
        assert spelled not in said or spelled in " <hidden> "


@FUZZ
@given(
    returned=JSON | FIELDS | st.binary() | st.builds(object) | st.dictionaries(st.binary(), JSON) | st.just(PREVIOUS)
)
def test_whatever_a_function_returns_is_a_token_or_an_error(returned: object) -> None:
    """A plain function may return anything: a value that is not a token raises `ProviderError` without its content."""
    clock = FakeClock()
    provider = CallableProvider(lambda: returned, key="orders")  # type: ignore[arg-type,return-value]
    try:
        token = provider.fetch(FetchContext(None, clock() + 5, "cold", clock))  # type: ignore[attr-defined]
    except (ProviderRejected, ProviderUnavailable) as error:
        failure = error
    else:
        assert isinstance(token, Token)
        assert returned is PREVIOUS or (isinstance(returned, dict) and returned["access_token"] == token.value)
        return
    assert "planted-answer" not in str(failure)
