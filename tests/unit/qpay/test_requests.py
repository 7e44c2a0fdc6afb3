"""The requests to QPay: limits are checked before anything is sent, and bodies are exact."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from tokencache_qpay import InvoiceLine, InvoiceRequest, QPayInvalidRequest, _calls
from tokencache_qpay._answers import _request
from tokencache_qpay.requests import (
    Account,
    Address,
    BranchData,
    Discount,
    InvoiceReceiver,
    StaffData,
    Surcharge,
    Tax,
    TerminalData,
    Transaction,
    invoice_body,
)

SIMPLE: dict[str, Any] = {
    "invoice_code": "TEST_INVOICE",
    "sender_invoice_no": "1",
    "invoice_description": "tea",
    "callback_url": "https://shop.example/paid",
}
LINE = InvoiceLine(line_description="tea", line_quantity=2, line_unit_price="49.75")


def test_a_simple_invoice_sends_its_fields_only() -> None:
    """A missing field is not sent; an anonymous receiver is ``terminal``; amounts are exact numbers."""
    body = invoice_body(InvoiceRequest(**SIMPLE, amount=Decimal("99.50")))
    assert body == SIMPLE | {"amount": Decimal("99.50"), "invoice_receiver_code": "terminal"}
    request = _request(_calls.create_invoice(InvoiceRequest(**SIMPLE, amount="99.50")), "https://q.example", 1.0)
    assert request.content.endswith(b'"amount":99.50,"invoice_receiver_code":"terminal"}')
    assert str(request.url) == "https://q.example/v2/invoice"


def test_a_full_invoice_sends_every_part() -> None:
    """Every part that QPay knows is sent under its name."""
    line = InvoiceLine(
        line_description="tea",
        line_quantity=1,
        line_unit_price=100.5,
        tax_product_code="6401",
        discounts=[Discount(discount_code="NONE", amount=1)],
        surcharges=[Surcharge(surcharge_code="NONE", amount="0.5")],
        taxes=[Tax(tax_code="VAT", amount=Decimal(10))],
    )
    account = Account(account_bank_code="050000", account_number="50")
    request = InvoiceRequest(
        **SIMPLE,
        lines=[line],
        invoice_receiver_data=InvoiceReceiver(name="Бат", address=Address(city="UB")),
        sender_branch_data=BranchData(name="branch"),
        sender_staff_data=StaffData(name="staff"),
        sender_terminal_data=TerminalData(name="till"),
        enable_expiry=False,
        minimum_amount=10,
        transactions=[Transaction(description="part", amount=5, accounts=[account])],
    )
    body = invoice_body(request)
    assert {name: body[name] for name in body if name not in SIMPLE} == {
        "lines": [
            {
                "line_description": "tea",
                "line_quantity": Decimal(1),
                "line_unit_price": Decimal("100.5"),
                "tax_product_code": "6401",
                "discounts": [{"discount_code": "NONE", "amount": Decimal(1)}],
                "surcharges": [{"surcharge_code": "NONE", "amount": Decimal("0.5")}],
                "taxes": [{"tax_code": "VAT", "amount": Decimal(10)}],
            }
        ],
        "invoice_receiver_code": "terminal",
        "invoice_receiver_data": {"name": "Бат", "address": {"city": "UB"}},
        "sender_branch_data": {"name": "branch"},
        "sender_staff_data": {"name": "staff"},
        "sender_terminal_data": {"name": "till"},
        "enable_expiry": False,
        "minimum_amount": Decimal(10),
        "transactions": [
            {
                "description": "part",
                "amount": Decimal(5),
                "accounts": [{"account_bank_code": "050000", "account_number": "50", "account_currency": "MNT"}],
            }
        ],
    }


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({}, "amount: give either amount or lines, not neither"),
        ({"amount": 1, "lines": [LINE]}, "amount: give either amount or lines, not both"),
        ({"lines": []}, "not neither"),
        ({"amount": 1, "invoice_code": "x" * 46}, "invoice_code: give at most 45 characters, not 46"),
        ({"amount": 1, "sender_invoice_no": "x" * 46}, "sender_invoice_no: give at most 45"),
        ({"amount": 1, "invoice_receiver_code": "x" * 46}, "invoice_receiver_code: give at most 45"),
        ({"amount": 1, "invoice_description": "Ц" * 256}, "invoice_description: give at most 255"),
        ({"amount": 1, "callback_url": "h" * 256}, "callback_url: give at most 255"),
        ({"amount": 1, "note": "n" * 1001}, "note: give at most 1000"),
        ({"amount": 1, "sender_invoice_no": " "}, "sender_invoice_no: it must not be empty"),
        ({"amount": -1}, "amount: give an amount"),
        ({"amount": "NaN"}, "amount: give an amount"),
        ({"amount": "a lot"}, "amount: give an amount"),
        ({"amount": True}, "amount: give an amount"),
        ({"amount": float("inf")}, "amount: give an amount"),
        ({"amount": [1]}, "amount: give an amount"),
        ({"amount": 1, "note": b"bytes"}, r"note(\[0\])?: the type \w+ is not allowed here"),
        ({"amount": 1, "tax_type": 7}, "tax_type: the type int is not allowed here"),
        (
            {"lines": [LINE, InvoiceLine(line_description="", line_quantity=1, line_unit_price=1)]},
            r"lines\[1\].line_description: it must not be empty",
        ),
        (
            {"lines": [InvoiceLine(line_description="x", line_quantity="two", line_unit_price=1)]},
            r"lines\[0\].line_quantity: give an amount",
        ),
    ],
)
def test_limits_are_checked_before_anything_is_sent(given: dict[str, Any], complaint: str) -> None:
    """The error names the field, the broken limit and what is allowed."""
    with pytest.raises(QPayInvalidRequest, match=complaint):
        invoice_body(InvoiceRequest(**(SIMPLE | given)))


@pytest.mark.parametrize("name", ["invoice_code", "sender_invoice_no", "invoice_receiver_code"])
def test_values_at_the_limit_are_allowed(name: str) -> None:
    """The limits equal QPay's table, to the character."""
    fields = SIMPLE | {"amount": 1, name: "x" * 45, "invoice_description": "Ц" * 255, "note": "n" * 1000}
    assert invoice_body(InvoiceRequest(**fields))[name] == "x" * 45


def test_dates_are_written_in_qpays_form() -> None:
    """A list is between two instants, given as a datetime or as text."""
    call = _calls.list_payments("CODE", start_date=datetime(2026, 1, 2, 3, 4, 5), end_date="2026-02-01 00:00:00")  # noqa: DTZ001
    assert call.body is not None
    assert (call.body["start_date"], call.body["end_date"]) == ("2026-01-02 03:04:05", "2026-02-01 00:00:00")
    assert call.body["offset"] == {"page_number": 1, "page_limit": 100}
    with pytest.raises(QPayInvalidRequest, match="start_date: QPay expects local time"):
        _calls.list_payments("CODE", start_date=datetime.now(UTC), end_date="2026-02-01 00:00:00")
