"""QPay's callback: every form is read, a payment is checked, QPay gets its answer; three frameworks."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import httpx
import pytest
from django.conf import settings as django_settings
from django.test import RequestFactory
from flask import Flask
from starlette.applications import Starlette
from starlette.routing import Route
from werkzeug.test import EnvironBuilder
from werkzeug.wrappers import Response

from tokencache import ConfigurationError, TokenCache
from tokencache.testing.fakes import FakeClock
from tokencache_qpay import (
    AsyncQPayClient,
    Callback,
    InvoiceRequest,
    QPayClient,
    QPayInvalidRequest,
    QPayNotFound,
    QPayProvider,
    asgi_callback,
    confirm,
    django_callback,
    flask_callback,
    read_callback,
)
from tokencache_qpay.callbacks import AT_ONCE
from tokencache_qpay.testing import FakeQPay, fake_qpay

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokencache import TokenSource
    from tokencache_qpay.callbacks import Confirmed

__all__ = ["fake_qpay"]

ORDER = InvoiceRequest(
    invoice_code="TEST_INVOICE",
    sender_invoice_no="1",
    invoice_description="tea",
    callback_url="https://shop.example/paid?order=7",
    amount=100,
)
JSON = "application/json; charset=utf-8"
FORM = "application/x-www-form-urlencoded"


@pytest.mark.parametrize(
    ("query", "body", "kind"),
    [
        ("order=7&qpay_payment_id=493", b"", ""),
        (b"order=7&a=1&qpay_payment_id=493", b"", ""),
        ("order=7&payment_id=493", b"", ""),
        ("order=7", b"payment_id=493", FORM),
        ("order=7", b'{"payment_id": "493"}', JSON),
        ("order=7", b'{"qpay_payment_id": 493, "x": null}', JSON),
    ],
)
def test_every_form_of_a_callback_is_read(query: str | bytes, body: bytes, kind: str) -> None:
    """GET and POST, both names of the payment, forms and JSON are read; the shop's own parameters are kept."""
    callback = read_callback(query, body, kind)
    assert callback.payment_id == "493"
    assert callback.parameters["order"] == "7"


@pytest.mark.parametrize(
    ("query", "body", "kind"),
    [
        ("", b"", ""),
        ("qpay_payment_id=", b"", ""),
        ("qpay_payment_id=" + "9" * 201, b"", ""),
        ("", b"[1]", JSON),
        ("", b"{" * 100_000, JSON),
        ("", b'{"payment_id":"\xff"}', JSON),
        ("", b"\xff\xfe", FORM),
        ("x=1", b'{"payment_id": {"a": 1}}', JSON),
    ],
)
def test_a_call_without_a_payment_is_refused(query: str, body: bytes, kind: str) -> None:
    """A callback that does not name a payment is refused, and QPay is not asked."""
    with pytest.raises(QPayInvalidRequest, match="qpay_payment_id"):
        read_callback(query, body, kind)


def test_the_address_overrides_the_body() -> None:
    """A stranger's body does not replace the parameters that the shop put into ``callback_url``."""
    callback = read_callback("order=7&qpay_payment_id=1", b"order=8&qpay_payment_id=2", FORM)
    assert callback == Callback("1", {"order": "7", "qpay_payment_id": "1"})


class Shop:
    """A shop on one framework that records its confirmed payments."""

    def __init__(self, framework: str, source: TokenSource) -> None:
        self.told: list[Confirmed] = []
        self.source = source
        self.ask: Callable[..., tuple[int, str]] = getattr(self, framework)

    def starlette(self, method: str, query: str, body: bytes = b"", kind: str = "") -> tuple[int, str]:
        """Call an ASGI application, as a route of Starlette."""

        async def paid(confirmed: Confirmed) -> None:
            await asyncio.sleep(0)
            self.told.append(confirmed)

        async def ask() -> tuple[int, str]:
            async with AsyncQPayClient(self.source) as client:
                app = Starlette(routes=[Route("/qpay", asgi_callback(client, paid))])
                async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop") as http:
                    headers = {"Content-Type": kind} if kind else {}
                    got = await http.request(method, f"/qpay?{query}", content=body, headers=headers)
                    return got.status_code, got.text

        return asyncio.run(ask())

    def flask(self, method: str, query: str, body: bytes = b"", kind: str = "") -> tuple[int, str]:
        """Call a Flask view."""
        with QPayClient(self.source) as client:
            app = Flask("shop")
            app.add_url_rule("/qpay", view_func=flask_callback(client, self.told.append), methods=["GET", "POST"])
            got = app.test_client().open(f"/qpay?{query}", method=method, data=body, content_type=kind or None)
            return got.status_code, got.text

    def django(self, method: str, query: str, body: bytes = b"", kind: str = "") -> tuple[int, str]:
        """Call a Django view."""
        if not django_settings.configured:
            django_settings.configure(ALLOWED_HOSTS=["*"], SECRET_KEY="x")
        with QPayClient(self.source) as client:
            view: Any = django_callback(client, self.told.append)
            request = RequestFactory().generic(method, f"/qpay?{query}", body, content_type=kind or FORM)
            got = view(request)
            assert view.csrf_exempt
            return got.status_code, got.content.decode()


@pytest.fixture(params=["starlette", "flask", "django"])
def shop(request: pytest.FixtureRequest, fake_qpay: FakeQPay) -> Shop:
    """Give a shop on each framework, with the fake as its QPay."""
    provider = QPayProvider("TEST_MERCHANT", "123456", base_url=fake_qpay.url)
    return Shop(request.param, TokenCache("memory://").source(provider))


def make(shop: Shop) -> str:
    """Make an invoice."""
    with QPayClient(shop.source) as client:
        return client.create_invoice(ORDER).invoice_id


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_payment_is_confirmed_and_answered(shop: Shop, fake_qpay: FakeQPay, method: str) -> None:
    """The shop gets the result of the check with its own parameters, and QPay reads SUCCESS."""
    invoice_id = make(shop)
    payment_id = fake_qpay.pay(invoice_id)
    named = urlencode({"qpay_payment_id": payment_id})
    if method == "GET":
        answer = shop.ask("GET", f"order=7&{named}")
    else:
        answer = shop.ask("POST", "order=7", named.encode(), FORM)
    assert answer == (200, "SUCCESS")
    (confirmed,) = shop.told
    assert (confirmed.invoice_id, confirmed.payment.payment_id) == (invoice_id, payment_id)
    assert confirmed.check.paid_amount == 100
    assert confirmed.callback.parameters["order"] == "7"


def test_an_unconfirmed_payment_is_not_passed_on(shop: Shop, fake_qpay: FakeQPay) -> None:
    """Anyone can call: an unknown or refunded payment does not reach the shop."""
    invoice_id = make(shop)
    assert shop.ask("GET", "qpay_payment_id=1") == (404, "no such payment")
    refunded = fake_qpay.pay(invoice_id, kind="CARD")
    with QPayClient(shop.source) as client:
        client.refund_payment(refunded)
    assert shop.ask("GET", f"qpay_payment_id={refunded}")[0] == 404
    assert shop.ask("GET", "order=7")[0] == 400
    assert shop.ask("PUT", "qpay_payment_id=1")[0] == 405
    assert shop.ask("HEAD", "qpay_payment_id=1")[0] == 405
    assert shop.told == []


@pytest.mark.parametrize("answer", [{"error": "INVALID_PAYMENT_ID"}, {"message": {"payment_id": {"type": "UUID"}}}])
def test_a_payment_id_that_qpay_rejects_is_not_found(shop: Shop, fake_qpay: FakeQPay, answer: object) -> None:
    """The answer is 404 and not an error of QPay, so the caller does not try again."""
    shop.source.token()
    fake_qpay.fail_next(status=400, body=answer, where="shop")
    assert shop.ask("GET", "qpay_payment_id=nonsense") == (404, "no such payment")
    assert shop.told == []


def test_a_callback_during_an_outage_is_not_lost(shop: Shop, fake_qpay: FakeQPay) -> None:
    """While QPay is busy the callback gets a 503 without details; a later call is confirmed."""
    payment_id = fake_qpay.pay(make(shop))
    with fake_qpay.fail_while(where="shop"):
        status, text = shop.ask("GET", f"qpay_payment_id={payment_id}")
    assert (status, text) == (503, "try again later")
    assert shop.told == []
    assert shop.ask("GET", f"qpay_payment_id={payment_id}")[0] == 200


def test_a_payment_without_an_invoice_is_not_confirmed(fake_qpay: FakeQPay) -> None:
    """A payment without an invoice cannot be checked."""
    fake_qpay.fail_next(status=200, body={"payment_id": "1", "object_type": "QR", "object_id": "q"}, where="shop")
    provider = QPayProvider("TEST_MERCHANT", "123456", base_url=fake_qpay.url)
    with QPayClient(TokenCache("memory://").source(provider)) as client:
        assert confirm(client, Callback("1", {})) is None


def test_a_body_beyond_the_limit_is_not_read(shop: Shop, fake_qpay: FakeQPay) -> None:
    """A large body is cut off: a payment named after the limit is not found, one before it is."""
    named = urlencode({"qpay_payment_id": fake_qpay.pay(make(shop))}).encode()
    filler = b"x=" + b"1" * (1 << 16)
    assert shop.ask("POST", "", filler + b"&" + named, FORM)[0] == 400
    assert shop.ask("POST", "", named + b"&" + filler, FORM)[0] == 200


def test_an_endless_body_is_cut_off() -> None:
    """INV-8: if a caller sends without end, the answer comes after the limit, and the rest is not read."""
    taken: list[int] = []
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        taken.append(1 << 14)
        return {"type": "http.request", "body": b"1" * (1 << 14), "more_body": True}

    async def send(message: Any) -> None:  # noqa: ANN401  (a message of ASGI)
        sent.append(message)

    scope = {"type": "http", "method": "POST", "query_string": b"", "headers": [(b"content-type", FORM.encode())]}
    asyncio.run(asgi_callback(None, print)(scope, receive, send))  # type: ignore[arg-type]
    assert [message.get("status") for message in sent] == [400, None]
    assert sum(taken) == (1 << 16) + (1 << 14)


def test_the_endpoint_accepts_http_only() -> None:
    """A websocket is a mistake in the routes, and the error says so."""

    async def nothing(*_: object) -> dict[str, object]:
        return {}

    application = asgi_callback(None, print)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="only HTTP"):
        asyncio.run(application({"type": "websocket"}, nothing, nothing))  # type: ignore[arg-type]


def endpoint(
    client: QPayClient,
    told: list[Confirmed],
    *,
    expected: Callable[[Callback], bool] | None = None,
    at_once: int = AT_ONCE,
) -> Callable[[str], tuple[int, str]]:
    """Return a function that calls a Flask view."""
    app = Flask("shop")
    app.add_url_rule(
        "/qpay",
        view_func=flask_callback(client, told.append, expected=expected, at_once=at_once),
        methods=["GET", "POST"],
    )

    def ask(query: str) -> tuple[int, str]:
        got = app.test_client().open(f"/qpay?{query}")
        return got.status_code, got.text

    return ask


def test_an_unexpected_callback_reaches_no_qpay(fake_qpay: FakeQPay) -> None:
    """The shop checks its own unguessable part before QPay is asked."""
    source = TokenCache("memory://").source(QPayProvider("TEST_MERCHANT", "123456", base_url=fake_qpay.url))
    with QPayClient(source) as client:
        ask = endpoint(client, [], expected=lambda callback: callback.parameters.get("proof") == "right")
        assert ask("qpay_payment_id=1&proof=wrong") == (404, "no such payment")
        assert fake_qpay.requests == 0
        assert ask("qpay_payment_id=1&proof=right") == (404, "no such payment")
        assert fake_qpay.requests > 0


def test_an_unknown_payment_is_asked_for_once(fake_qpay: FakeQPay, monkeypatch: pytest.MonkeyPatch) -> None:
    """Repeats of a forged call within ten seconds cost no call to QPay; later it may have become true."""
    clock = FakeClock()
    monkeypatch.setattr("tokencache_qpay.callbacks.time", SimpleNamespace(monotonic=clock))
    source = TokenCache("memory://").source(QPayProvider("TEST_MERCHANT", "123456", base_url=fake_qpay.url))
    with QPayClient(source) as client:
        ask = endpoint(client, [])
        answers = {ask("qpay_payment_id=forged") for _ in range(50)}
        asked = fake_qpay.requests
        assert answers == {(404, "no such payment")}
        clock.advance(9.9)
        ask("qpay_payment_id=forged")
        assert fake_qpay.requests == asked
        clock.advance(0.2)
        ask("qpay_payment_id=forged")
        assert fake_qpay.requests == asked + 1


def test_confirmations_beyond_the_limit_are_put_off(fake_qpay: FakeQPay) -> None:
    """A slow QPay holds up as many confirmations as allowed, and no other request of the shop."""
    asked, release = threading.Semaphore(0), threading.Event()

    class Slow:
        """A client whose QPay does not answer yet."""

        def send(self, call: object) -> object:
            asked.release()
            release.wait(30)
            message = "no"
            raise QPayNotFound(message, status=404)

    answers: list[tuple[int, str]] = []
    ask = endpoint(Slow(), [], at_once=2)  # type: ignore[arg-type]
    threads = [threading.Thread(target=lambda n=n: answers.append(ask(f"qpay_payment_id={n}"))) for n in range(2)]
    for thread in threads:
        thread.start()
        assert asked.acquire(timeout=30)
    assert ask("qpay_payment_id=third") == (503, "try again later")
    release.set()
    for thread in threads:
        thread.join(30)
    assert answers == [(404, "no such payment")] * 2
    assert ask("qpay_payment_id=fourth") == (404, "no such payment")


@pytest.mark.parametrize("at_once", [0, -1])
def test_a_limit_below_one_is_refused(at_once: int) -> None:
    """It would refuse every callback."""
    with pytest.raises(ConfigurationError, match="at_once"):
        asgi_callback(None, print, at_once=at_once)  # type: ignore[arg-type]


def test_a_large_body_is_not_read() -> None:
    """Flask and Django give the endpoint the first 64 KiB; the rest stays unread."""

    class Large:
        """An endless body that counts what is read."""

        taken = 0

        def read(self, size: int = -1) -> bytes:
            assert 0 < size <= 1 << 17, "all of it was asked for"
            self.taken += size
            return b"1" * size

    body = Large()
    ask = Flask("shop")
    ask.add_url_rule("/qpay", view_func=flask_callback(None, print), methods=["POST"])  # type: ignore[arg-type]
    about = {"wsgi.input": body, "CONTENT_LENGTH": str(300 << 20), "CONTENT_TYPE": FORM}
    environ = EnvironBuilder("/qpay", method="POST").get_environ() | about
    got = Response.from_app(ask, environ)
    assert got.status_code == 400
    assert body.taken <= 1 << 17
    if not django_settings.configured:
        django_settings.configure(ALLOWED_HOSTS=["*"], SECRET_KEY="x")
    view: Any = django_callback(None, print)  # type: ignore[arg-type]
    request = RequestFactory().post("/qpay", b"1" * (3 << 20), content_type=FORM)
    assert view(request).status_code == 400
    assert len(request.read()) == (3 << 20) - (1 << 16)
