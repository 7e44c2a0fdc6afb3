"""The QPay client on a real socket: every operation, sync and async, and how it handles failures."""

from __future__ import annotations

import asyncio
import inspect
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from decimal import Decimal
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias
from unittest.mock import create_autospec

import httpx
import pytest

from tokencache import ProviderRejected, TokenCache
from tokencache.testing.fakes import FakeClock
from tokencache_qpay import (
    AsyncQPayClient,
    InvoiceRequest,
    QPayClient,
    QPayConflict,
    QPayError,
    QPayInvalidRequest,
    QPayNotFound,
    QPayOutcomeUnknown,
    QPayProvider,
    QPayUnauthorized,
    QPayUnavailable,
    QPayValidationError,
)
from tokencache_qpay.models import PaymentStatus
from tokencache_qpay.testing import FakeQPay, fake_qpay

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["fake_qpay"]

ORDER = InvoiceRequest(
    invoice_code="TEST_INVOICE",
    sender_invoice_no="order 1",
    invoice_description="Цай",
    callback_url="https://shop.example/paid?order=1",
    amount=Decimal("99.50"),
)
COMPLAINT = {"amount": {"type": "REQUIRED", "message": "Required!"}}
PATIENCE = 30.0
DATES = {"start_date": "2026-01-01 00:00:00", "end_date": "2027-01-01 00:00:00"}

Do: TypeAlias = Callable[..., Any]


@pytest.fixture(params=["threads", "event loop"])
def do(request: pytest.FixtureRequest, fake_qpay: FakeQPay) -> Iterator[Do]:
    """Call an operation of either client by its name, so that tests treat both alike."""
    source = TokenCache("memory://").source(QPayProvider("TEST_MERCHANT", "123456", base_url=fake_qpay.url))
    timeout = 1.0 if "silence" in request.node.name else PATIENCE
    with ExitStack() as stack:
        if request.param == "threads":
            client = stack.enter_context(QPayClient(source, timeout=timeout))
            yield lambda name, *args, **kwargs: getattr(client, name)(*args, **kwargs)
            return
        runner = stack.enter_context(asyncio.Runner())

        async def call(name: str, *args: object, **kwargs: object) -> object:
            async with AsyncQPayClient(source, timeout=timeout) as client:
                return await getattr(client, name)(*args, **kwargs)

        yield lambda name, *args, **kwargs: runner.run(call(name, *args, **kwargs))


def test_an_invoice_is_made_paid_and_checked(do: Do, fake_qpay: FakeQPay) -> None:
    """An invoice is made, read, paid and checked; amounts are exact, and each document keeps its raw form."""
    made = do("create_invoice", ORDER)
    assert made.banks[0].link.startswith("khanbank://")
    assert made.short_url.startswith("https://s.qpay.mn/")
    assert do("get_invoice", made.invoice_id).total_amount == Decimal("99.50")
    assert not do("is_invoice_paid", made.invoice_id)
    assert do("check_payment", made.invoice_id).paid_amount == 0
    payment_id = fake_qpay.pay(made.invoice_id)
    assert do("is_invoice_paid", made.invoice_id)
    assert do("is_invoice_paid", made.invoice_id, "99.50")
    assert not do("is_invoice_paid", made.invoice_id, "99.51")
    payment = do("get_payment", payment_id)
    assert (payment.object_id, payment.payment_amount) == (made.invoice_id, Decimal("99.50"))
    assert payment.payment_fee == Decimal("1.00")
    assert payment.raw["payment_wallet"] == "Хаан банк апп"
    assert do("get_invoice", made.invoice_id).invoice_status == "CLOSED"
    assert do("list_payments", "TEST_INVOICE", **DATES).rows[0].payment_id == payment_id


def test_each_other_operation_sends_the_documented_request(do: Do, fake_qpay: FakeQPay) -> None:
    """Cancelling, refunds, tax receipts of both versions, and subscriptions follow QPay's document."""
    first, second, third = (do("create_invoice", ORDER).invoice_id for _ in range(3))
    do("cancel_invoice", first)
    assert do("get_invoice", first).invoice_status == "CANCELED"
    card, other = fake_qpay.pay(second, kind="CARD"), fake_qpay.pay(third, kind="CARD")
    do("refund_payment", card, callback_url="https://shop.example/refunded", note="returned")
    assert do("get_payment", card).payment_status is PaymentStatus.REFUNDED
    assert not do("is_invoice_paid", second)
    receipt = do("create_ebarimt", other, ebarimt_receiver_type="COMPANY", ebarimt_receiver="1234567")
    assert do("get_ebarimt", receipt.id).ebarimt_receiver == "1234567"
    assert receipt.ebarimt_lottery == "12345678"
    do("cancel_ebarimt", receipt.id)
    assert do("get_ebarimt", receipt.id).ebarimt_status == "CANCELED"
    assert do("create_ebarimt_v3", other, district_code="3505").amount == Decimal("99.50")
    do("cancel_ebarimt_v3", other, note="mistake")
    do("cancel_payment", other)
    assert do("get_subscription", "s 1/2").subscription_interval == "1M"
    do("cancel_subscription", "s 1/2")
    with pytest.raises(QPayNotFound, match="SUBSCRIPTION_NOTFOUND"):
        do("get_subscription", "s 1/2")


def test_lists_are_read_to_the_last_page(fake_qpay: FakeQPay) -> None:
    """Pages are read until all payments have come, and no page after the last is requested."""
    source = TokenCache("memory://").source(QPayProvider("TEST_MERCHANT", "123456", base_url=fake_qpay.url))
    with QPayClient(source) as client:
        paid = [fake_qpay.pay(client.create_invoice(ORDER).invoice_id) for _ in range(5)]
        before = fake_qpay.requests
        assert [each.payment_id for each in client.payments("TEST_INVOICE", **DATES, page_limit=2)] == paid
        assert fake_qpay.requests - before == 3
        assert list(client.payments("ANOTHER", **DATES)) == []

    async def read() -> list[str]:
        async with AsyncQPayClient(source) as client:
            return [each.payment_id async for each in client.payments("TEST_INVOICE", **DATES, page_limit=3)]

    assert asyncio.run(read()) == paid


def test_a_page_that_comes_again_ends_the_list(fake_qpay: FakeQPay, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that ignores the number of the page is asked twice, and the caller learns that the list has a gap."""
    source = TokenCache("memory://").source(QPayProvider("TEST_MERCHANT", "123456", base_url=fake_qpay.url))
    with QPayClient(source) as client:
        fake_qpay.pay(client.create_invoice(ORDER).invoice_id)
        page = client.list_payments("TEST_INVOICE", **DATES)
        monkeypatch.setattr(client, "list_payments", lambda *_, **__: page)
        payments = client.payments("TEST_INVOICE", **DATES, page_limit=1)
        assert next(payments) == page.rows[0]
        with pytest.raises(QPayUnavailable, match="page 2 is page 1 again"):
            next(payments)


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (
            400,
            {"error": "INVOICE_CODE_INVALID", "message": "Код олдсонгүй"},
            (QPayValidationError, "INVOICE_CODE_INVALID"),
        ),
        (400, {"error": COMPLAINT, "message": COMPLAINT}, (QPayValidationError, None)),
        (400, {"error": "INVOICE_ALREADY_CANCELED"}, (QPayConflict, "INVOICE_ALREADY_CANCELED")),
        (400, {"error": "CUSTOMER_NOTFOUND"}, (QPayNotFound, "CUSTOMER_NOTFOUND")),
        (403, {"error": "PERMISSION_DENIED"}, (QPayUnauthorized, "PERMISSION_DENIED")),
        (409, {"error": "DUPLICATE"}, (QPayConflict, "DUPLICATE")),
        (422, {"error": "INVOICE_NOTFOUND"}, (QPayNotFound, "INVOICE_NOTFOUND")),
        (418, b"<html>teapot", (QPayValidationError, None)),
        (429, {"error": "SLOW"}, (QPayUnavailable, "SLOW")),
    ],
)
def test_a_refusal_raises_the_class_of_its_kind(
    do: Do, fake_qpay: FakeQPay, status: int, body: object, expected: tuple[type[QPayError], str | None]
) -> None:
    """The status decides the class, then the code; texts and objects are kept; the request is sent once."""
    kind, code = expected
    before = fake_qpay.requests
    fake_qpay.fail_next(status=status, body=body, where="shop")
    with pytest.raises(kind) as caught:
        do("create_invoice", ORDER)
    assert (caught.value.code, caught.value.status) == (code, status)
    assert not isinstance(caught.value, QPayOutcomeUnknown)
    assert fake_qpay.requests - before == 2, "a login and the call"
    if code is None and isinstance(body, dict):
        assert caught.value.message == COMPLAINT
        assert "amount: REQUIRED" in str(caught.value)


@pytest.mark.parametrize("trouble", ["500", "502", "page", "reset", "silence", "no JSON", "no invoice"])
def test_an_invoice_request_is_never_repeated(do: Do, fake_qpay: FakeQPay, trouble: str) -> None:
    """If the answer is lost, QPay was asked once, and the error says that the invoice may exist."""
    do("get_subscription", "warm")
    before = fake_qpay.requests
    script = {
        "500": lambda: fake_qpay.fail_next(where="shop"),
        "502": lambda: fake_qpay.html_next(where="shop"),
        "page": lambda: fake_qpay.fail_next(status=200, body=b"<html>", where="shop"),
        "reset": lambda: fake_qpay.reset_next(where="shop"),
        "silence": lambda: fake_qpay.hang_next(where="shop"),
        "no JSON": lambda: fake_qpay.fail_next(status=200, body=[1], where="shop"),
        "no invoice": lambda: fake_qpay.fail_next(status=200, body={"qr_text": "x"}, where="shop"),
    }
    script[trouble]()
    with pytest.raises(QPayOutcomeUnknown, match="may have done it"):
        do("create_invoice", ORDER)
    assert fake_qpay.requests - before == 1


@pytest.mark.parametrize("trouble", ["502", "reset"])
def test_a_read_is_repeated_once(do: Do, fake_qpay: FakeQPay, trouble: str) -> None:
    """A call that only reads is repeated once after a failure; a lasting failure is an error."""
    invoice = do("create_invoice", ORDER)
    fail = fake_qpay.html_next if trouble == "502" else fake_qpay.reset_next
    fail(where="shop")
    assert do("get_invoice", invoice.invoice_id).invoice_status == "OPEN"
    fail(2, where="shop")
    with pytest.raises(QPayUnavailable) as caught:
        do("get_invoice", invoice.invoice_id)
    assert not isinstance(caught.value, QPayOutcomeUnknown)


def test_a_refused_token_is_replaced_and_the_call_replayed(do: Do, fake_qpay: FakeQPay) -> None:
    """INV-6: QPay answers 401 before it acts, so an invoice request is also replayed, and one invoice is made."""
    do("get_subscription", "warm")
    fake_qpay.revoke()
    before = fake_qpay.requests
    do("create_invoice", ORDER)
    assert fake_qpay.requests - before == 3, "refused, login, made"
    assert fake_qpay.logins == 2


def test_an_unreachable_qpay_leaves_no_unknown_outcome(fake_qpay: FakeQPay) -> None:
    """If the request never arrived, the error says that nothing happened, so an invoice may be requested again."""
    source = TokenCache("memory://").source(QPayProvider("TEST_MERCHANT", "123456", base_url=fake_qpay.url))
    source.token()
    with QPayClient(source, base_url="http://127.0.0.1:1") as client, pytest.raises(QPayUnavailable) as caught:
        client.create_invoice(ORDER)
    assert not isinstance(caught.value, QPayOutcomeUnknown)
    assert "could not connect to 127.0.0.1:1" in str(caught.value)


def test_a_cancelled_tls_handshake_leaves_no_socket(fake_qpay: FakeQPay) -> None:
    """A caller that is cancelled during the handshake closes the socket; httpcore would leave it to the collector."""
    source = TokenCache("memory://").source(QPayProvider("TEST_MERCHANT", "123456", base_url=fake_qpay.url))
    source.token()

    async def scenario(mute: socket.socket) -> None:
        async with AsyncQPayClient(source, base_url=f"https://127.0.0.1:{mute.getsockname()[1]}") as client:
            task = asyncio.create_task(client.get_invoice("x"))
            connection, _ = await asyncio.to_thread(mute.accept)
            with connection:
                connection.settimeout(PATIENCE)
                assert await asyncio.to_thread(connection.recv, 1 << 16), "the first message of the handshake"
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert await asyncio.to_thread(connection.recv, 1 << 16) == b""

    with socket.create_server(("127.0.0.1", 0)) as mute:
        mute.settimeout(PATIENCE)
        asyncio.run(scenario(mute))


def test_wrong_credentials_are_the_providers_error(fake_qpay: FakeQPay) -> None:
    """INV-7: the client passes the source's error on unchanged, and sends no request to the shop."""
    source = TokenCache("memory://").source(QPayProvider("TEST_MERCHANT", "wrong", base_url=fake_qpay.url))
    with QPayClient(source) as client:
        for _ in range(3):
            with pytest.raises(ProviderRejected, match="AUTHENTICATION_FAILED"):
                client.get_invoice("x")
    assert fake_qpay.requests == 1


def test_an_echoed_token_is_hidden(do: Do, fake_qpay: FakeQPay) -> None:
    """INV-9: if a server repeats the token in its error, the message does not show it."""
    do("get_subscription", "warm")
    seen: list[str] = []

    def echo(asked: httpx.Request) -> httpx.Response:
        seen.append(asked.headers["Authorization"].partition(" ")[2])
        return httpx.Response(400, json={"error": "BAD", "message": f"no: {asked.headers['Authorization']}"})

    source = TokenCache("memory://").source(QPayProvider("TEST_MERCHANT", "123456", base_url=fake_qpay.url))
    with (
        httpx.Client(transport=httpx.MockTransport(echo)) as http,
        QPayClient(source, client=http) as client,
        pytest.raises(QPayValidationError) as caught,
    ):
        client.get_invoice("x")
    assert seen[0] not in f"{caught.value} {caught.value.message} {caught.value!r}"


@pytest.mark.parametrize("paid", ["called", "silent", "never"])
def test_waiting_for_a_payment_asks_rarely(do: Do, fake_qpay: FakeQPay, paid: str) -> None:
    """QPay forbids polling: a callback causes a check; without callbacks there are at most three."""
    invoice = do("create_invoice", ORDER)
    before = fake_qpay.requests
    if paid != "never":
        fake_qpay.pay(invoice.invoice_id)
    called = SimpleEvent(at_once=paid == "called")
    found = do("wait_until_paid", invoice.invoice_id, called, timeout=0.05, checks=3)
    assert found.covers() == (paid != "never")
    assert 1 <= fake_qpay.requests - before <= {"called": 1, "silent": 1, "never": 3}[paid]


class SimpleEvent:
    """An event for threads and for tasks; it is set from the start or never."""

    def __init__(self, *, at_once: bool) -> None:
        self.at_once = at_once

    def wait(self, timeout: float | None = None) -> Any:  # noqa: ANN401
        """Wait by either protocol."""
        if timeout is not None:
            return self.at_once or threading.Event().wait(timeout)
        return asyncio.sleep(0) if self.at_once else asyncio.Event().wait()

    def clear(self) -> None:
        """Do nothing."""


def test_cookies_are_not_kept_and_redirects_not_followed(fake_qpay: FakeQPay) -> None:
    """The token alone is the session of QPay's shop; a redirect is an error."""
    cookies: list[str | None] = []

    def transport(asked: httpx.Request) -> httpx.Response:
        cookies.append(asked.headers.get("Cookie"))
        headers = {"Set-Cookie": "qpay_merchant_openapi.sid=1; Path=/", "Location": "https://elsewhere.example/"}
        return httpx.Response(302, headers=headers)

    source = TokenCache("memory://").source(QPayProvider("TEST_MERCHANT", "123456", base_url=fake_qpay.url))
    client = QPayClient(source)
    client._client._transport = httpx.MockTransport(transport)  # type: ignore[attr-defined]
    for _ in range(2):
        with pytest.raises(QPayUnavailable, match="302"):
            client.get_invoice("x")
    client.close()
    assert cookies == [None, None]


def test_the_environment_configures_a_client(fake_qpay: FakeQPay, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old service's variables are enough; the address is the one of the credentials."""
    for name, value in fake_qpay.environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("REDIS_DATABASE_URI", raising=False)
    monkeypatch.setenv("TOKENCACHE_BACKEND", "memory://")
    with QPayClient.from_env() as client:
        assert client.create_invoice(ORDER).invoice_id
        assert client.source.key == "qpay:access_token"
        assert fake_qpay.url in repr(client)

    async def main() -> str:
        async with AsyncQPayClient.from_env(TokenCache("memory://")) as client:
            assert "AsyncQPayClient" in repr(client)
            return (await client.create_invoice(ORDER)).invoice_id

    assert asyncio.run(main())


def test_a_source_without_an_issuer_uses_production(fake_qpay: FakeQPay) -> None:
    """Any source works; without an address of its own it uses QPay's."""
    source = TokenCache("memory://").source(lambda: "token", key="mine")
    assert source.issuer is None
    with QPayClient(source) as client:
        assert "https://merchant.qpay.mn" in repr(client)
    with httpx.Client() as http, QPayClient(source, base_url=fake_qpay.url, client=http) as client:
        client.close()
        assert not http.is_closed, "the client that was passed in is not ours to close"


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (("get_invoice", ("",), {}), "invoice_id"),
        (("get_payment", ("..",), {}), "payment_id"),
        (("check_payment", ("x",), {"page": 0}), "page"),
        (("check_payment", ("x",), {"page_limit": 101}), "page_limit"),
        (("create_ebarimt", ("x",), {"ebarimt_receiver_type": "COMPANY"}), "ebarimt_receiver"),
        (("create_ebarimt_v3", ("x",), {"district_code": ""}), "district_code"),
    ],
)
def test_input_that_qpay_would_refuse_is_not_sent(
    do: Do, fake_qpay: FakeQPay, call: tuple[str, tuple[object, ...], dict[str, object]], field: str
) -> None:
    """The error names the wrong field; nothing is sent, not even a login."""
    name, args, kwargs = call
    with pytest.raises(QPayInvalidRequest, match=rf"{field}: .*nothing was sent"):
        do(name, *args, **kwargs)
    assert fake_qpay.requests == 0


def test_an_id_cannot_change_the_path(do: Do, fake_qpay: FakeQPay) -> None:
    """An id with slashes and question marks stays one segment of the path."""
    with pytest.raises(QPayNotFound):
        do("get_invoice", "../payment/list?x=1#y")
    assert fake_qpay.requests == 2


@pytest.mark.parametrize("expires", ["epoch", "duration"])
def test_a_shop_takes_payments_after_24_hours(
    fake_qpay: FakeQPay, monkeypatch: pytest.MonkeyPatch, expires: Literal["epoch", "duration"]
) -> None:
    """INV-1: with an invoice an hour for three days, in either form of ``expires_in``: one login a day, and no 401."""
    clock = FakeClock(wall=time.time())
    monkeypatch.setattr("tokencache_qpay.provider.time", SimpleNamespace(time=clock.wall))
    fake_qpay.expires = expires
    cache = TokenCache("memory://", clock=clock, wall=clock.wall)
    source = cache.source(QPayProvider("TEST_MERCHANT", "123456", base_url=fake_qpay.url))
    with QPayClient(source) as client:
        for _ in range(72):
            client.create_invoice(ORDER)
            clock.advance(3600)
            fake_qpay.clock_offset += 3600
    assert fake_qpay.requests == 72 + fake_qpay.logins, "an invoice each, and nothing was refused"
    assert fake_qpay.logins == 3


BROKEN = [
    b"<html>maintenance",
    b'{"error":"X","message":"\xcd"}',
    b"\xef\xbb\xbf{}",
    b"{",
    b"NaN",
    b"null",
    b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
]


@pytest.mark.parametrize("body", BROKEN, ids=range(len(BROKEN)))
@pytest.mark.parametrize("name", ["create_invoice", "refund_payment", "get_payment"])
def test_an_invalid_answer_is_never_a_success(do: Do, fake_qpay: FakeQPay, name: str, body: bytes) -> None:
    """An answer with a success status is either valid or our error; no refund counts as done without proof."""
    fake_qpay.fail_next(2, status=200, body=body, where="shop")
    kind = QPayUnavailable if name == "get_payment" else QPayOutcomeUnknown
    with pytest.raises(kind) as caught:
        do(name, ORDER if name == "create_invoice" else "p")
    assert type(caught.value) is kind
    assert ("try again" in str(caught.value)) == (kind is QPayUnavailable)


@pytest.mark.parametrize("status", [400, 500])
def test_an_error_in_another_encoding_keeps_its_status(do: Do, fake_qpay: FakeQPay, status: int) -> None:
    """If the text is not UTF-8, only its words are lost."""
    fake_qpay.fail_next(status=status, body=b'{"error":"X","message":"\xcd"}', where="shop")
    with pytest.raises(QPayError) as caught:
        do("create_invoice", ORDER)
    assert caught.value.status == status


def test_an_error_with_a_success_status_is_an_error(do: Do, fake_qpay: FakeQPay) -> None:
    """The body decides that it is a refusal."""
    fake_qpay.fail_next(status=200, body={"error": "PAYMENT_SETTLED"}, where="shop")
    with pytest.raises(QPayConflict, match="PAYMENT_SETTLED"):
        do("refund_payment", "p")


def test_an_empty_answer_is_enough_for_a_cancellation(do: Do, fake_qpay: FakeQPay) -> None:
    """QPay answers a cancelled invoice without a body."""
    fake_qpay.fail_next(status=200, body=b"", where="shop")
    assert do("cancel_invoice", "i").raw == {}


def test_no_remedy_suggests_a_second_invoice(do: Do, fake_qpay: FakeQPay) -> None:
    """The error of an unknown outcome never says to try again: the invoice may exist."""
    do("get_subscription", "warm")
    fake_qpay.reset_next(where="shop")
    with pytest.raises(QPayOutcomeUnknown) as caught:
        do("create_invoice", ORDER)
    assert "try again" not in str(caught.value)


def test_an_object_that_holds_the_token_is_not_kept() -> None:
    """INV-9: complaints by field are kept unchanged, unless the token is in them."""

    def echo(asked: httpx.Request) -> httpx.Response:
        return httpx.Response(400, json={"message": {"auth": {"message": asked.headers["Authorization"]}}})

    source = TokenCache("memory://").source(lambda: {"access_token": "planted-value", "expires_in": 3600}, key="mine")
    with (
        httpx.Client(transport=httpx.MockTransport(echo)) as http,
        QPayClient(source, client=http) as client,
        pytest.raises(QPayValidationError) as caught,
    ):
        client.get_invoice("x")
    assert "planted" not in f"{caught.value} {caught.value.message}"


def test_waiting_survives_a_failure_and_ends(do: Do, fake_qpay: FakeQPay) -> None:
    """A busy QPay does not end the wait, except at its last check; an invalid time is refused at once."""
    invoice = do("create_invoice", ORDER)
    fake_qpay.pay(invoice.invoice_id)
    fake_qpay.fail_next(2, status=503, where="shop")
    assert do("wait_until_paid", invoice.invoice_id, SimpleEvent(at_once=True), timeout=30.0).covers()
    with fake_qpay.fail_while(where="shop"), pytest.raises(QPayUnavailable):
        do("wait_until_paid", invoice.invoice_id, SimpleEvent(at_once=False), timeout=0.0)
    with pytest.raises(QPayInvalidRequest, match="timeout"):
        do("wait_until_paid", invoice.invoice_id, SimpleEvent(at_once=False), timeout=float("inf"))


def test_methods_show_the_parameters_of_their_operations() -> None:
    """``help()`` and ``create_autospec`` see a method's parameters."""
    assert list(inspect.signature(QPayClient.check_payment).parameters)[:3] == ["self", "object_id", "object_type"]
    double = create_autospec(QPayClient, instance=True)
    double.create_invoice(ORDER)
    with pytest.raises(TypeError):
        double.create_invoice()
