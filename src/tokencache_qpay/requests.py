"""Types of QPay's requests, which check QPay's limits before anything is sent.

A value beyond a limit raises :class:`~tokencache_qpay.errors.QPayInvalidRequest`. It names the field, the problem and
the remedy.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Final, NoReturn, TypeAlias, cast

import msgspec

from tokencache_qpay.errors import QPayInvalidRequest

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "Account",
    "Address",
    "BranchData",
    "Discount",
    "InvoiceLine",
    "InvoiceReceiver",
    "InvoiceRequest",
    "StaffData",
    "Surcharge",
    "Tax",
    "TerminalData",
    "Transaction",
]

Money: TypeAlias = "Decimal | int | float | str"

_LONGEST: Final[Mapping[str, int]] = {
    "invoice_code": 45,
    "sender_invoice_no": 45,
    "invoice_receiver_code": 45,
    "invoice_description": 255,
    "callback_url": 255,
    "note": 1000,
}
_REQUIRED: Final = (*list(_LONGEST)[:-1], "line_description")
_AMOUNTS: Final = frozenset({"amount", "minimum_amount", "maximum_amount", "line_quantity", "line_unit_price"})


class Part(msgspec.Struct, kw_only=True):
    """A part of a request; fields that are ``None`` are not sent."""


class Address(Part):
    """A postal address."""

    city: str | None = None
    district: str | None = None
    street: str | None = None
    building: str | None = None
    address: str | None = None
    zipcode: str | None = None
    longitude: str | None = None
    latitude: str | None = None


class BranchData(Part):
    """The branch that sends an invoice."""

    register: str | None = None
    name: str | None = None
    email: str | None = None
    phone: str | None = None
    address: Address | None = None


class StaffData(Part):
    """The employee that sends an invoice."""

    name: str | None = None
    email: str | None = None
    phone: str | None = None


class TerminalData(Part):
    """The terminal that sends an invoice."""

    name: str | None = None


class InvoiceReceiver(Part):
    """The payer of an invoice."""

    register: str | None = None
    name: str | None = None
    email: str | None = None
    phone: str | None = None
    address: Address | None = None


class Discount(Part):
    """A discount of a line."""

    discount_code: str | None = None
    description: str | None = None
    amount: Money | None = None
    note: str | None = None


class Surcharge(Part):
    """A surcharge of a line."""

    surcharge_code: str | None = None
    description: str | None = None
    amount: Money | None = None
    note: str | None = None


class Tax(Part):
    """A tax of a line: ``VAT`` or ``CITY_TAX``."""

    tax_code: str | None = None
    description: str | None = None
    amount: Money | None = None
    note: str | None = None


class InvoiceLine(Part):
    """A line of an invoice: quantity times price."""

    line_description: str
    line_quantity: Money
    line_unit_price: Money
    tax_product_code: str | None = None
    note: str | None = None
    discounts: Sequence[Discount] | None = None
    surcharges: Sequence[Surcharge] | None = None
    taxes: Sequence[Tax] | None = None


class Account(Part):
    """The bank account that receives a part of the money."""

    account_bank_code: str
    account_number: str
    account_name: str | None = None
    account_currency: str = "MNT"
    is_default: bool | None = None


class Transaction(Part):
    """A part of the money, and the accounts that receive it."""

    description: str
    amount: Money
    accounts: Sequence[Account] | None = None


class InvoiceRequest(Part):
    """A new invoice: give ``amount`` or ``lines``, and the other fields as needed.

    ``sender_invoice_no`` is the shop's own number. QPay does *not* make it unique: the same number twice makes two
    invoices. QPay calls ``callback_url`` after a payment; put the order's number into it. Give money exactly, as
    ``Decimal``, ``int`` or text.
    """

    invoice_code: str
    sender_invoice_no: str
    invoice_description: str
    callback_url: str
    amount: Money | None = None
    lines: Sequence[InvoiceLine] | None = None
    invoice_receiver_code: str = "terminal"
    invoice_receiver_data: InvoiceReceiver | None = None
    sender_branch_code: str | None = None
    sender_branch_data: BranchData | None = None
    sender_staff_code: str | None = None
    sender_staff_data: StaffData | None = None
    sender_terminal_code: str | None = None
    sender_terminal_data: TerminalData | None = None
    invoice_due_date: str | None = None
    enable_expiry: bool | None = None
    expiry_date: str | None = None
    calculate_vat: bool | None = None
    tax_type: str | None = None
    tax_customer_code: str | None = None
    line_tax_code: str | None = None
    allow_partial: bool | None = None
    minimum_amount: Money | None = None
    allow_exceed: bool | None = None
    maximum_amount: Money | None = None
    allow_subscribe: bool | None = None
    subscription_interval: str | None = None
    subscription_webhook: str | None = None
    note: str | None = None
    transactions: Sequence[Transaction] | None = None


def invoice_body(request: InvoiceRequest) -> dict[str, object]:
    """Return the body of a request for an invoice. Raises ``QPayInvalidRequest`` if QPay would refuse it."""
    if (request.amount is None) == (not request.lines):
        which = "neither" if request.amount is None else "both"
        reject("amount", f"give either amount or lines, not {which}")
    return _body(request, "")


def identifier(name: str, value: str) -> str:
    """Return an id quoted for a path. Raises ``QPayInvalidRequest`` for an empty one."""
    from urllib.parse import quote

    if not value or value in {".", ".."}:
        reject(name, "it must not be empty")
    return quote(value, safe="")


def reject(field: str, why: str) -> NoReturn:
    """Raise ``QPayInvalidRequest``."""
    message = f"[qpay] {field}: {why}; nothing was sent"
    raise QPayInvalidRequest(message)


def _body(part: Part, path: str) -> dict[str, object]:
    """Return a part as JSON types."""
    body: dict[str, object] = {}
    for name in part.__struct_fields__:
        value: object = getattr(part, name)
        if value is not None:
            body[name] = _value(name, value, f"{path}{name}")
    return body


def _value(name: str, value: object, path: str) -> object:
    """Return a field as JSON types; raise if it exceeds the limits of its name."""
    if isinstance(value, Part):
        return _body(value, f"{path}.")
    if name in _AMOUNTS:
        return amount_of(value, path)
    if isinstance(value, str):
        longest = _LONGEST.get(name)
        if longest is not None and len(value) > longest:
            reject(path, f"give at most {longest} characters, not {len(value)}")
        if name in _REQUIRED and not value.strip():
            reject(path, "it must not be empty")
        return value
    if isinstance(value, Sequence):
        parts = cast("Sequence[object]", value)
        return [_value(name, each, f"{path}[{number}]") for number, each in enumerate(parts)]
    if isinstance(value, bool):
        return value
    reject(path, f"the type {type(value).__name__} is not allowed here")


def amount_of(value: object, path: str) -> Decimal:
    """Return an amount of money without rounding."""
    try:
        amount = Decimal(str(value)) if isinstance(value, Decimal | int | float | str) else Decimal("NaN")
    except InvalidOperation:
        amount = Decimal("NaN")
    if not amount.is_finite() or amount < 0:
        reject(path, "give an amount, such as 100 or Decimal('99.50')")
    return amount
