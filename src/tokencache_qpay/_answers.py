"""Retries and answers of an operation, for both clients."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar, cast

import httpx
import msgspec

from tokencache.providers.oauth_response import scrub, server_error
from tokencache.providers.transport import host_of, what_failed
from tokencache_qpay.errors import QPayError, QPayOutcomeUnknown, QPayUnavailable, refusal_class
from tokencache_qpay.models import Document, read

if TYPE_CHECKING:
    from collections.abc import Generator

    from tokencache_qpay._calls import Call

D = TypeVar("D", bound=Document)
SendResult: TypeAlias = "httpx.Response | httpx.HTTPError"

_UNSENT: Final = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.ProxyError,
    httpx.UnsupportedProtocol,
)
_HICCUPS: Final = frozenset({502, 503, 504})
_REFUSING: Final = range(400, 500)
_NOT_YET: Final = frozenset({408, 425, 429})
_DECODER: Final = msgspec.json.Decoder(float_hook=Decimal)
_ENCODER: Final = msgspec.json.Encoder(decimal_format="number", enc_hook=str)  # str encodes Text
_PERHAPS: Final = "QPay may have done it, and a repetition may do it twice: check before you repeat it"


def exchange(call: Call[D], base_url: str, timeout: float) -> Generator[httpx.Request, SendResult, D]:
    """Yield requests, receive responses or errors, and return the answer or raise its error."""
    outcome = yield _request(call, base_url, timeout)
    if _is_worth_another(call, outcome):
        outcome = yield _request(call, base_url, timeout)
    if isinstance(outcome, httpx.Response):
        return _answer(call, outcome)
    raise _failure(call, outcome, timeout)


def _is_worth_another(call: Call[Document], outcome: SendResult) -> bool:
    """Return whether to send it once more: it never arrived, or it is repeatable and the failure is transient."""
    if isinstance(outcome, httpx.Response):
        return call.repeatable and outcome.status_code in _HICCUPS
    return call.repeatable or isinstance(outcome, _UNSENT)


def _request(call: Call[Document], base_url: str, timeout: float) -> httpx.Request:
    """Return a request; amounts are JSON numbers without rounding."""
    headers = {"Accept": "application/json", "User-Agent": "tokencache-qpay"}
    content = None
    if call.body is not None:
        content = _ENCODER.encode(call.body)
        headers["Content-Type"] = "application/json"
    extensions = {"timeout": httpx.Timeout(timeout).as_dict()}
    return httpx.Request(
        call.method, f"{base_url}/v2{call.address}", headers=headers, content=content, extensions=extensions
    )


def _answer(call: Call[D], response: httpx.Response) -> D:
    """Return QPay's answer, or raise its error."""
    try:
        document: object = _DECODER.decode(response.content) if response.content.strip() else {}
    except (msgspec.DecodeError, ValueError, RecursionError):
        document = None
    if not response.is_success:
        raise _refusal(call, response, document)
    if isinstance(document, dict):
        fields = cast("dict[str, object]", document)
        if fields.get("error"):  # a refusal, although the status is a success
            raise _refusal(call, response, fields)
        try:
            return read(fields, call.answer)
        except (msgspec.ValidationError, RecursionError) as error:
            why = scrub(str(error), _sent(response))
    else:
        why = "it is not a JSON object"
    kind, advice = _unanswered(undone=call.repeatable)
    message = f"[qpay] {call.name}: the answer of {host_of(response.url)} is unreadable ({why}); {advice}"
    raise kind(message, status=response.status_code)


def _refusal(call: Call[Document], response: httpx.Response, document: object) -> QPayError:
    """Return the error of an answer with an error status or an error field."""
    fields = cast("dict[str, object]", document) if isinstance(document, dict) else {}
    said = server_error(fields, _sent(response))
    status = response.status_code
    text = fields.get("message")
    echoed = any(secret in str(text) for secret in _sent(response))
    told = cast("dict[str, object]", text) if isinstance(text, dict) and not echoed else said.description
    what = f"[qpay] {call.name}: {host_of(response.url)} answered {status}{said}"
    if response.is_success or (status in _REFUSING and status not in _NOT_YET):
        return refusal_class(status, said.error)(what, code=said.error, status=status, message=told)
    kind, advice = _unanswered(undone=call.repeatable or status in _NOT_YET)
    return kind(f"{what}; {advice}", code=said.error, status=status, message=told)


def _unanswered(*, undone: bool) -> tuple[type[QPayUnavailable], str]:
    """Return error class and remedy without a usable answer; ``undone``: nothing was done, or a repetition is safe."""
    return (QPayUnavailable, "try again later") if undone else (QPayOutcomeUnknown, _PERHAPS)


def _failure(call: Call[Document], error: httpx.HTTPError, timeout: float) -> QPayError:
    """Return the error for a missing answer; it quotes only log-safe text of httpx's error."""
    try:
        host = host_of(error.request.url)
    except RuntimeError:
        host = "QPay"
    safe = call.repeatable or isinstance(error, _UNSENT)
    what = what_failed(error, host, timeout)
    if safe:
        return QPayUnavailable(f"[qpay] {call.name}: {what}")
    happened, _, _ = what.partition(";")  # the text after it says to try again
    return QPayOutcomeUnknown(f"[qpay] {call.name}: {happened}; {_PERHAPS}")


def _sent(response: httpx.Response) -> tuple[str, ...]:
    """Return the credentials of the request: a server may echo them."""
    _, _, token = response.request.headers.get("Authorization", "").partition(" ")
    return (token,) if token else ()
