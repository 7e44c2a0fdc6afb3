"""The client against a third-party server: prism, made from the OpenAPI description, refuses undescribed requests.

`make openapi` installs prism and runs these tests; elsewhere they are skipped.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import time
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tokencache import TokenCache
from tokencache.testing._server_process import free_port
from tokencache_qpay import AsyncQPayClient, InvoiceLine, InvoiceRequest, QPayClient, QPayProvider, _calls
from tokencache_qpay.models import PaymentStatus
from tokencache_qpay.requests import Account, Address, BranchData, Discount, InvoiceReceiver, TerminalData, Transaction

if TYPE_CHECKING:
    from collections.abc import Iterator

DESCRIPTION = Path(__file__).parents[3] / "docs" / "qpay-openapi.yaml"
PRISM = os.environ.get("PRISM") or shutil.which("prism")
PATIENCE = 60.0

pytestmark = [pytest.mark.live, pytest.mark.skipif(PRISM is None, reason="prism is not there; `make openapi` gets it")]

FIELDS: dict[str, Any] = {
    "invoice_code": "TEST_INVOICE",
    "sender_invoice_no": "1",
    "invoice_description": "Цай",
    "callback_url": "https://shop.example/paid?order=1",
}
SIMPLE = InvoiceRequest(**FIELDS, amount=Decimal("99.50"))
FULL = InvoiceRequest(
    **FIELDS,
    lines=[
        InvoiceLine(
            line_description="tea", line_quantity="2", line_unit_price=Decimal("49.75"), discounts=[Discount(amount=1)]
        )
    ],
    invoice_receiver_data=InvoiceReceiver(name="Бат", address=Address(city="Ulaanbaatar")),
    sender_branch_data=BranchData(name="branch"),
    sender_terminal_data=TerminalData(name="till"),
    enable_expiry=True,
    expiry_date="2026-12-31 00:00:00",
    allow_partial=True,
    minimum_amount=10,
    allow_subscribe=True,
    subscription_interval="1M",
    note="n" * 1000,
    transactions=[
        Transaction(description="all", amount=1, accounts=[Account(account_bank_code="05", account_number="5")])
    ],
)
DATES = {"start_date": "2026-01-01 00:00:00", "end_date": "2026-02-01 00:00:00"}
OPERATIONS: list[tuple[str, tuple[Any, ...], dict[str, Any], dict[str, object]]] = [
    ("create_invoice", (SIMPLE,), {}, {"qr_text": "0002010102121531"}),
    ("create_invoice", (FULL,), {}, {"short_url": "https://s.qpay.mn/abc"}),
    ("get_invoice", ("i",), {}, {"total_amount": Decimal(10), "gross_amount": Decimal(10)}),
    ("cancel_invoice", ("i",), {}, {"raw": {}}),
    ("get_payment", ("p",), {}, {"payment_fee": Decimal(1), "payment_type": "CARD"}),
    ("check_payment", ("i",), {}, {"count": 1, "paid_amount": Decimal(100)}),
    ("check_payment", ("q",), {"object_type": "QR", "page": 2, "page_limit": 10}, {"count": 1}),
    ("list_payments", ("TEST_INVOICE",), DATES, {"count": 1}),
    ("cancel_payment", ("p",), {"callback_url": "https://shop.example/x", "note": "n"}, {"raw": {}}),
    ("refund_payment", ("p",), {}, {"raw": {}}),
    ("create_ebarimt", ("p",), {}, {"vat_amount": Decimal("9.09")}),
    ("create_ebarimt", ("p",), {"ebarimt_receiver_type": "COMPANY", "ebarimt_receiver": "1"}, {"amount": Decimal(100)}),
    ("get_ebarimt", ("e",), {}, {"ebarimt_lottery": "AB12345678"}),
    ("cancel_ebarimt", ("e",), {}, {"raw": {}}),
    ("create_ebarimt_v3", ("p",), {"district_code": "3505"}, {"city_tax_amount": Decimal(0)}),
    ("cancel_ebarimt_v3", ("p",), {"note": "n"}, {"raw": {}}),
    ("get_subscription", ("s",), {}, {"subscription_interval": "1M"}),
    ("cancel_subscription", ("s",), {}, {"raw": {}}),
]
NAMES = [f"{number} {operation[0]}" for number, operation in enumerate(OPERATIONS)]


@pytest.fixture(scope="module")
def mock() -> Iterator[str]:
    """The address of a prism that checks each request against the description."""
    port = free_port()
    command = [str(PRISM), "mock", "--errors", "--host", "127.0.0.1", "--port", str(port), str(DESCRIPTION)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as prism:
        try:
            url, give_up = f"http://127.0.0.1:{port}", time.monotonic() + PATIENCE
            while True:
                try:
                    httpx.get(url)
                    break
                except httpx.TransportError:
                    assert time.monotonic() < give_up
                    time.sleep(0.05)
            yield url
        finally:
            prism.terminate()


def test_every_operation_is_in_the_table() -> None:
    """The table misses no operation that the client has."""
    known = {name for name, each in vars(_calls).items() if getattr(each, "__module__", "") == _calls.__name__}
    operations = {name for name in known if name.islower() and not name.startswith("_")}
    assert {name for name, *_ in OPERATIONS} == operations


@pytest.mark.parametrize(("name", "args", "kwargs", "expected"), OPERATIONS, ids=NAMES)
@pytest.mark.parametrize("colour", ["threads", "event loop"])
def test_an_operation_is_as_described(  # noqa: PLR0917
    mock: str, colour: str, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], expected: dict[str, object]
) -> None:
    """The request fits the description, and the described answer becomes its type."""
    source = TokenCache("memory://").source(QPayProvider("TEST_MERCHANT", "123456", base_url=mock))

    async def main() -> object:
        async with AsyncQPayClient(source) as client:
            return await getattr(client, name)(*args, **kwargs)

    if colour == "threads":
        with QPayClient(source) as client:
            answer: object = getattr(client, name)(*args, **kwargs)
    else:
        answer = asyncio.run(main())
    assert {field: getattr(answer, field) for field in expected} == expected


def test_the_mock_refuses_undescribed_requests(mock: str) -> None:
    """The check can fail: an invoice without its amount, and a date in another form, are refused."""
    headers = {"Authorization": "Bearer x"}
    assert httpx.post(f"{mock}/v2/invoice", json=FIELDS, headers=headers).status_code == 422
    search = {"object_type": "INVOICE", "object_id": "x", "start_date": "2026-01-01", "end_date": "2026-01-02"}
    assert httpx.post(f"{mock}/v2/payment/list", json=search, headers=headers).status_code == 422
    assert httpx.post(f"{mock}/v2/payment/check", json=search).status_code == 401


def test_statuses_are_the_documented_ones() -> None:
    """The values of the description's tables are members of their enumeration."""
    assert set(PaymentStatus) == {"NEW", "FAILED", "PAID", "PARTIAL", "REFUNDED"}
