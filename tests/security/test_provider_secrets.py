"""Planted secrets are in no output of a provider, whatever fails: message, repr, log or traceback (INV-9)."""

from __future__ import annotations

import asyncio
import base64
import logging
import ssl
import traceback
from typing import TYPE_CHECKING
from urllib.parse import quote, quote_plus

import httpx
import pytest

from tokencache.errors import TokenCacheError
from tokencache.ports import FetchContext
from tokencache.token import Token
from tokencache_qpay import QPayProvider
from tokencache_qpay.testing import FakeQPay

if TYPE_CHECKING:
    from collections.abc import Callable

HALVES = pytest.mark.parametrize("half", ["fetch", "afetch"])
PASSWORD = "pl4nted/pass word+é"
BASIC = base64.b64encode(f"merchant:{PASSWORD}".encode()).decode()
PREVIOUS = Token(
    "planted-access",
    expires_at=4e9,
    issued_at=1e9,
    refresh_token="planted-refresh",
    refresh_expires_at=4e9,
    extra={"session_state": "planted-session"},
)
FRAGMENTS = (
    PASSWORD,
    quote(PASSWORD),
    quote(PASSWORD, ""),
    quote_plus(PASSWORD),
    BASIC,
    "pl4nted",
    "planted-access",
    "planted-refresh",
    "planted-session",
    "planted-body",
    "planted-answer",
)
ECHO = f"you sent {PASSWORD}, {quote_plus(PASSWORD)}, Basic {BASIC} and Bearer planted-refresh"


def assert_clean(*texts: str) -> None:
    """Fail if any fragment of any secret is in any text."""
    for text in texts:
        found = [fragment for fragment in FRAGMENTS if fragment in text]
        assert not found, f"{found} in {text!r}"


def texts_of(error: BaseException) -> list[str]:
    """Return all that a caller could print of an error: message, fields, and the traceback with its causes."""
    fields = [repr(value) for value in vars(error).values()]
    return [str(error), repr(error), *fields, "".join(traceback.format_exception(error))]


def fetch(half: str, known: QPayProvider) -> tuple[Token | TokenCacheError, list[str]]:
    """Fetch, with a refresh first, and return the result and the warnings."""
    warnings: list[str] = []
    told = FetchContext(PREVIOUS, 1.0, "refresh", lambda: 0.0, warnings.append)  # a slow machine has its time, too
    try:
        return (known.fetch(told) if half == "fetch" else asyncio.run(known.afetch(told))), warnings
    except TokenCacheError as error:
        return error, warnings


def over(transport: httpx.MockTransport) -> QPayProvider:
    """Return a provider over a transport."""
    return QPayProvider(
        "merchant",
        PASSWORD,
        use_refresh=True,
        client=httpx.Client(transport=transport),
        async_client=httpx.AsyncClient(transport=transport),
    )


@HALVES
@pytest.mark.parametrize(
    "answer",
    [
        {"status": 401, "body": {"error": "AUTHENTICATION_FAILED", "message": ECHO}},
        {"status": 401, "body": {"error": ECHO, "error_description": ECHO, "error_uri": ECHO}},
        {"status": 400, "body": {"error": {ECHO: {"type": ECHO, "message": ECHO}}, "message": [ECHO]}},
        {"status": 500, "body": {"error": ECHO, "message": ECHO}},
        {"status": 502, "body": f"<html>planted-body {ECHO}</html>".encode()},
        {"status": 200, "body": f"planted-body {ECHO}".encode()},
        {"status": 200, "body": {"error": ECHO, "message": ECHO}},
        {"status": 200, "body": {"access_token": "planted-answer with a space"}},
        {"status": 200, "body": {"access_token": "planted-answer\r\n", "token_type": "planted-answer x"}},
        {"status": 200, "body": {"access_token": ["planted-answer"]}},
        {"status": 200, "body": {"access_token": "planted-answer", "expires_in": "planted-body"}},
        {"status": 200, "body": [ECHO]},
        {"status": 307, "body": b"planted-body", "headers": {"Location": "https://evil.example/?planted-body"}},
        {"status": 429, "body": ECHO.encode(), "headers": {"Retry-After": "planted-body"}},
        {"status": 200, "body": b"x", "headers": {"Content-Encoding": "planted-body"}},
        {"status": 200, "body": b"x", "headers": {"Content-Type": "text/planted-refresh"}},
    ],
    ids=range(16),
)
def test_no_answer_reveals_a_secret(half: str, answer: dict[str, object], caplog: pytest.LogCaptureFixture) -> None:
    """An answer that echoes, redirects or is nonsense adds no secret to messages, fields, warnings or logs."""
    caplog.set_level(logging.DEBUG)
    with FakeQPay(credentials={"merchant": PASSWORD}) as fake, fake.fail_while(**answer):  # type: ignore[arg-type]
        known = QPayProvider("merchant", PASSWORD, base_url=fake.url, use_refresh=True)
        came, warnings = fetch(half, known)
    # httpcore's own debug log holds the response's headers; the server's echo there is not our output
    logged = "\n".join(record.getMessage() for record in caplog.records if not record.name.startswith("httpcore"))
    assert_clean(repr(came), repr(known), repr(known.identity()), logged, *warnings)
    if isinstance(came, TokenCacheError):
        assert_clean(*texts_of(came))
    else:
        assert came.value == "planted-answer"


@HALVES
@pytest.mark.parametrize(
    "error",
    [
        httpx.LocalProtocolError(f"Illegal header value b'Basic {BASIC}'"),
        httpx.RemoteProtocolError(f"illegal status line: {ECHO}"),
        httpx.ConnectError(ECHO),
        httpx.ReadTimeout(ECHO),
        httpx.ProxyError(ECHO),
        httpx.UnsupportedProtocol(ECHO),
        httpx.DecodingError(ECHO),
        ssl.SSLError(ECHO),
        OSError(ECHO),
        RuntimeError(ECHO),
        KeyError(ECHO),
    ],
    ids=lambda error: type(error).__name__,
)
def test_no_exception_of_the_client_reveals_a_secret(half: str, error: Exception) -> None:
    """A third-party exception's text may contain the sent header: neither the text nor its causes are shown."""

    def handle(request: httpx.Request) -> httpx.Response:
        raise error

    came, warnings = fetch(half, over(httpx.MockTransport(handle)))
    assert isinstance(came, TokenCacheError)
    assert_clean(*texts_of(came), *warnings)
    assert came.__cause__ is None


@HALVES
@pytest.mark.parametrize("break_it", [FakeQPay.reset_next, FakeQPay.hang_next, FakeQPay.html_next, FakeQPay.fail_next])
def test_no_fault_on_the_wire_reveals_a_secret(
    half: str, break_it: Callable[[FakeQPay, int], None], caplog: pytest.LogCaptureFixture
) -> None:
    """Faults of a real connection, with all logging on, reveal no secret."""
    caplog.set_level(logging.DEBUG)
    with FakeQPay(credentials={"merchant": PASSWORD}) as fake:
        break_it(fake, 2)
        came, warnings = fetch(half, QPayProvider("merchant", PASSWORD, base_url=fake.url, use_refresh=True))
    assert isinstance(came, TokenCacheError)
    assert_clean(*texts_of(came), *warnings, caplog.text)
    assert len(warnings) == 1


@HALVES
def test_a_good_login_leaves_no_trace(half: str, caplog: pytest.LogCaptureFixture) -> None:
    """After success, no log and no repr contains a value of the login or of the new token."""
    caplog.set_level(logging.DEBUG)
    with FakeQPay(credentials={"merchant": PASSWORD}) as fake:
        came, warnings = fetch(half, QPayProvider("merchant", PASSWORD, base_url=fake.url))
    assert isinstance(came, Token)
    assert came.refresh_token is not None
    for secret in (came.value, came.refresh_token, *FRAGMENTS):
        assert secret not in caplog.text + repr(came) + "".join(warnings)


@pytest.mark.parametrize(
    "make",
    [
        lambda: QPayProvider("", "pl4nted"),
        lambda: QPayProvider("mer:chant", "pl4nted"),
        lambda: QPayProvider("merchant", "pl4nted", base_url="http://merchant.qpay.mn/pl4nted"),
        lambda: QPayProvider("merchant", "pl4nted", base_url="https://u:pl4nted@merchant.qpay.mn"),
        lambda: QPayProvider("merchant", "pl4nted", timeout=-1),
        lambda: QPayProvider.from_env({"QPAY_CLIENT_SECRET": "pl4nted"}),
    ],
    ids=range(6),
)
def test_no_mistake_of_configuration_reveals_a_secret(make: Callable[[], object]) -> None:
    """A message complains about settings next to the password, and does not show the password."""
    with pytest.raises(TokenCacheError) as caught:
        make()
    # the source lines of this test contain the planted secrets; only the raised text counts
    assert_clean(str(caught.value), repr(caught.value), *traceback.format_exception_only(caught.value))
