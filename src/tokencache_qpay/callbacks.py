"""QPay's callback: read it, confirm it with QPay, and answer ``SUCCESS``.

QPay calls the ``callback_url`` of an invoice with ``qpay_payment_id=…`` appended. The call is unsigned, so anyone can
forge it; only :meth:`~tokencache_qpay.QPayClient.check_payment` says what was paid. Callbacks get lost and may come
twice, so a shop must process a paid order exactly once.

``asgi_callback``, ``django_callback`` and ``flask_callback`` make the endpoint. It reads the call, confirms it, gives
the result to the shop, and answers. It answers 404 if QPay does not confirm the call, and 503 if QPay cannot be asked
now, so that QPay or its user may try again.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias, cast
from urllib.parse import parse_qsl

import msgspec

from tokencache.errors import ConfigurationError, TokenCacheError
from tokencache.steps import adrive, drive
from tokencache_qpay._calls import check_payment, get_payment
from tokencache_qpay.errors import QPayInvalidRequest, QPayNotFound, QPayValidationError
from tokencache_qpay.models import ObjectType, PaymentStatus

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Mapping, MutableMapping

    from tokencache_qpay._calls import Call
    from tokencache_qpay.client import AsyncQPayClient, QPayClient
    from tokencache_qpay.models import Payment, PaymentCheck

__all__ = [
    "Callback",
    "Confirmed",
    "asgi_callback",
    "confirm",
    "confirm_async",
    "django_callback",
    "flask_callback",
    "read_callback",
]

_NAMES: Final = ("qpay_payment_id", "payment_id")
_LONGEST: Final = 200
_BODY_LIMIT: Final = 1 << 16
_SUCCESS: Final = (200, "SUCCESS")
_UNKNOWN: Final = (404, "no such payment")
_BUSY: Final = (503, "try again later")
_UNKNOWN_FOR: Final = 10.0
_MOST_UNKNOWN: Final = 1000
AT_ONCE: Final = 16
"""How many confirmations an endpoint makes at the same time, by default."""
_WRONG_METHOD: Final = (405, "GET or POST")
_PLAIN: Final = "text/plain; charset=utf-8"
_METHODS: Final = frozenset({"GET", "POST"})


@dataclass(frozen=True, slots=True)
class Callback:
    """An unconfirmed call: the payment that it names, and all parameters. They are unsigned: do not trust them.

    Find the order by :attr:`Confirmed.invoice_id`, not by a number in the address, which anyone can forge.
    """

    payment_id: str
    parameters: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Confirmed:
    """A confirmation by QPay: the payment, and all payments of the same invoice."""

    callback: Callback
    payment: Payment
    check: PaymentCheck

    @property
    def invoice_id(self) -> str:
        """The invoice that was paid."""
        return self.payment.object_id or ""


def read_callback(query: str | bytes = "", body: bytes = b"", content_type: str = "") -> Callback:
    """Return the parameters of a call: from its query and, for a POST, its body (a form or a JSON object).

    Raises ``QPayInvalidRequest`` if the call names no payment.
    """
    text = query.decode("latin-1") if isinstance(query, bytes) else query
    parameters: dict[str, str] = {}
    if body and "json" in content_type.lower():
        try:
            document: object = msgspec.json.decode(body)
        except (msgspec.DecodeError, ValueError, RecursionError):
            document = None
        if isinstance(document, dict):
            fields = cast("dict[str, object]", document)
            parameters |= {name: str(value) for name, value in fields.items() if isinstance(value, str | int)}
    elif body:
        parameters |= dict(parse_qsl(body.decode("utf-8", "replace")))
    parameters |= dict(parse_qsl(text))  # the query wins: the shop wrote the address
    for name in _NAMES:
        payment_id = parameters.get(name, "").strip()
        if payment_id and len(payment_id) <= _LONGEST:
            return Callback(payment_id, parameters)
    message = f"[qpay] the callback does not name its payment; it needs the parameter {_NAMES[0]}"
    raise QPayInvalidRequest(message)


def confirm(client: QPayClient, callback: Callback) -> Confirmed | None:
    """Return QPay's confirmation of a callback, ``None`` if the payment is unknown or no payment counts."""
    return drive(_confirmation(callback), client.send)


async def confirm_async(client: AsyncQPayClient, callback: Callback) -> Confirmed | None:
    """Return QPay's confirmation of a callback; see :func:`confirm`."""
    return await adrive(_confirmation(callback), client.send)


def _confirmation(callback: Callback) -> Generator[Call[Any], Any, Confirmed | None]:
    """Ask for the payment, then check its invoice: the check decides."""
    try:
        payment: Payment = yield get_payment(callback.payment_id)
        if payment.object_id is None or payment.object_type not in (None, ObjectType.INVOICE):
            return None
        check: PaymentCheck = yield check_payment(payment.object_id)
    except (QPayNotFound, QPayValidationError):
        return None
    paid = any(row.payment_id == payment.payment_id and row.payment_status == PaymentStatus.PAID for row in check.rows)
    return Confirmed(callback, payment, check) if paid else None


class _Gate:
    """Lets a limited number of expected callbacks reach QPay. Its lock guards ``_free`` and ``_unknown``."""

    def __init__(self, expected: Callable[[Callback], bool] | None, at_once: int) -> None:
        if at_once < 1:
            message = f"[qpay] at_once={at_once!r} must be 1 or more"
            raise ConfigurationError(message)
        self._expected = expected
        self._free = at_once
        self._unknown: dict[str, float] = {}
        self._lock = threading.Lock()

    @contextmanager
    def admitted(self, callback: Callback) -> Generator[tuple[int, str] | None]:
        """Give the answer to a call that must not reach QPay, ``None`` for one that may."""
        if self._expected is not None and not self._expected(callback):
            yield _UNKNOWN
            return
        with self._lock:
            known = self._unknown.get(callback.payment_id, 0.0) > time.monotonic()
            admitted = not known and self._free > 0
            self._free -= admitted
        try:
            yield None if admitted else _UNKNOWN if known else _BUSY
        finally:
            with self._lock:
                self._free += admitted

    def remember(self, callback: Callback, confirmed: Confirmed | None) -> None:
        """Remember a payment that QPay did not confirm, for a short time."""
        if confirmed is None:
            with self._lock:
                while len(self._unknown) >= _MOST_UNKNOWN:
                    del self._unknown[next(iter(self._unknown))]
                self._unknown[callback.payment_id] = time.monotonic() + _UNKNOWN_FOR


class _DjangoRequest(Protocol):
    """The part of Django's request that the view uses."""

    method: str
    META: Mapping[str, str]
    content_type: str | None

    def read(self, size: int) -> bytes:
        """Return the next bytes of the body."""
        ...


Scope: TypeAlias = "MutableMapping[str, Any]"
Receive: TypeAlias = "Callable[[], Awaitable[MutableMapping[str, Any]]]"
Send: TypeAlias = "Callable[[MutableMapping[str, Any]], Awaitable[None]]"


class _Endpoint:
    """An ASGI application. It is an object, because Starlette does not treat a function as an ASGI application."""

    def __init__(
        self, client: AsyncQPayClient, paid: Callable[[Confirmed], Awaitable[None] | None], gate: _Gate
    ) -> None:
        self._client = client
        self._paid = paid
        self._gate = gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            message = "the QPay callback accepts only HTTP"
            raise RuntimeError(message)
        headers = {name.lower(): value for name, value in scope["headers"]}
        status, text = _WRONG_METHOD
        if scope["method"] in _METHODS:
            body = await _body(receive)
            kind = headers.get(b"content-type", b"").decode("latin-1")
            status, text = await _answer_async(
                self._client, self._paid, self._gate, (scope["query_string"], body, kind)
            )
        head = [(b"content-type", _PLAIN.encode()), (b"content-length", b"%d" % len(text))]
        await send({"type": "http.response.start", "status": status, "headers": head})
        await send({"type": "http.response.body", "body": text.encode()})


def asgi_callback(
    client: AsyncQPayClient,
    paid: Callable[[Confirmed], Awaitable[None] | None],
    *,
    expected: Callable[[Callback], bool] | None = None,
    at_once: int = AT_ONCE,
) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    """Return an ASGI application for the callback.

    In Starlette and FastAPI it is a route of its own: ``app.router.routes.append(Route("/qpay/callback",
    asgi_callback(client, paid)))``. Do not mount it: a mount redirects to the path with a slash, and QPay may not
    follow. ``paid`` is called with the confirmation; the server reports what it raises.

    Anyone can forge a call, and each forged call costs calls to QPay. ``expected`` returns whether a call has the
    unguessable part that the shop put into the order's ``callback_url``; another call gets 404, and QPay is not asked.
    At most ``at_once`` confirmations run at the same time; beyond them the answer is 503. A payment that QPay did not
    confirm is not asked for again within ten seconds. Give the endpoint a client of its own, so that confirmations do
    not use up the connections of the shop's own calls.
    """
    return _Endpoint(client, paid, _Gate(expected, at_once))


def django_callback(
    client: QPayClient,
    paid: Callable[[Confirmed], None],
    *,
    expected: Callable[[Callback], bool] | None = None,
    at_once: int = AT_ONCE,
) -> Callable[[Any], object]:
    """Return a Django view for the callback.

    In ``urlpatterns``: ``path("qpay/callback", django_callback(client, paid))``. The view is CSRF-exempt: QPay sends no
    CSRF token. :func:`asgi_callback` explains ``expected`` and ``at_once``.
    """
    gate = _Gate(expected, at_once)
    http: Any = import_module("django.http")
    csrf: Any = import_module("django.views.decorators.csrf")

    def view(request: _DjangoRequest) -> object:
        status, text = _WRONG_METHOD
        if request.method in _METHODS:
            query = request.META.get("QUERY_STRING", "")
            body = request.read(_BODY_LIMIT)  # `body` would read all of it
            status, text = _answer(client, paid, gate, (query, body, request.content_type or ""))
        return http.HttpResponse(text, status=status, content_type=_PLAIN)

    return cast("Callable[[Any], object]", csrf.csrf_exempt(view))


def flask_callback(
    client: QPayClient,
    paid: Callable[[Confirmed], None],
    *,
    expected: Callable[[Callback], bool] | None = None,
    at_once: int = AT_ONCE,
) -> Callable[[], object]:
    """Return a Flask view for the callback.

    ``app.add_url_rule("/qpay/callback", view_func=flask_callback(client, paid), methods=["GET", "POST"])``.
    :func:`asgi_callback` explains ``expected`` and ``at_once``.
    """
    gate = _Gate(expected, at_once)
    flask: Any = import_module("flask")

    def qpay_callback() -> object:
        request = flask.request
        status, text = _WRONG_METHOD
        if request.method in _METHODS:
            body = request.stream.read(_BODY_LIMIT)  # `get_data` would read all of it
            status, text = _answer(client, paid, gate, (request.query_string, body, request.content_type or ""))
        return flask.Response(text, status=status, content_type=_PLAIN)

    return qpay_callback


async def _body(receive: Receive) -> bytes:
    """Return a request's body, at most ``_BODY_LIMIT`` bytes of it."""
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > _BODY_LIMIT or not message.get("more_body"):
            return bytes(body[:_BODY_LIMIT])


def _answer(
    client: QPayClient,
    paid: Callable[[Confirmed], None],
    gate: _Gate,
    call: tuple[str | bytes, bytes, str],
) -> tuple[int, str]:
    """Call the shop with the confirmation; return status and text of the answer. ``call`` is for ``read_callback``."""
    try:
        callback = read_callback(*call)
        with gate.admitted(callback) as refusal:
            if refusal is not None:
                return refusal
            confirmed = confirm(client, callback)
            gate.remember(callback, confirmed)
    except TokenCacheError as error:
        return _trouble(error)
    if confirmed is None:
        return _UNKNOWN
    paid(confirmed)
    return _SUCCESS


async def _answer_async(
    client: AsyncQPayClient,
    paid: Callable[[Confirmed], Awaitable[None] | None],
    gate: _Gate,
    call: tuple[bytes, bytes, str],
) -> tuple[int, str]:
    """Call the shop with the confirmation; return status and text of the answer. ``call`` is for ``read_callback``."""
    try:
        callback = read_callback(*call)
        with gate.admitted(callback) as refusal:
            if refusal is not None:
                return refusal
            confirmed = await confirm_async(client, callback)
            gate.remember(callback, confirmed)
    except TokenCacheError as error:
        return _trouble(error)
    if confirmed is None:
        return _UNKNOWN
    told = paid(confirmed)
    if isawaitable(told):
        await told
    return _SUCCESS


def _trouble(error: TokenCacheError) -> tuple[int, str]:
    """Return the answer after a failed confirmation; its text has no details."""
    return (400, "no payment is named") if isinstance(error, QPayInvalidRequest) else _BUSY
