"""Types of QPay's answers. They accept what QPay sends: numbers as strings, absent fields, unknown words.

Money is :class:`~decimal.Decimal`. Enumerations are open: a word that QPay adds later becomes a member, equal to its
text. Dates keep QPay's format. Each document keeps the received object in ``raw``, with the fields that its type does
not have.
"""

from __future__ import annotations

from decimal import Decimal
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import msgspec

from tokencache_qpay.requests import amount_of

if TYPE_CHECKING:
    from tokencache_qpay.requests import Money

__all__ = [
    "Bank",
    "CardTransaction",
    "CreatedInvoice",
    "Document",
    "Ebarimt",
    "EbarimtReceiver",
    "Invoice",
    "InvoiceStatus",
    "Nothing",
    "ObjectType",
    "P2PTransaction",
    "Payment",
    "PaymentCheck",
    "PaymentList",
    "PaymentStatus",
    "PaymentType",
    "SettlementStatus",
    "Subscription",
    "Text",
    "read",
]


class _Open(StrEnum):
    """An enumeration that accepts any word."""

    @classmethod
    def _missing_(cls, value: object) -> _Open | None:
        if not isinstance(value, str):
            return None
        member = str.__new__(cls, value)
        member._name_ = value
        member._value_ = value
        return member


class InvoiceStatus(_Open):
    """The status of an invoice."""

    OPEN = "OPEN"
    CLOSED = "CLOSED"
    CANCELED = "CANCELED"


class PaymentStatus(_Open):
    """The status of a payment; only ``PAID`` counts as money."""

    NEW = "NEW"
    FAILED = "FAILED"
    PAID = "PAID"
    PARTIAL = "PARTIAL"
    REFUNDED = "REFUNDED"


class PaymentType(_Open):
    """The means of a payment."""

    P2P = "P2P"
    CARD = "CARD"


class SettlementStatus(_Open):
    """Whether the merchant has received the money."""

    PENDING = "PENDING"
    SETTLED = "SETTLED"


class ObjectType(_Open):
    """The object of a payment or of a search."""

    INVOICE = "INVOICE"
    QR = "QR"
    ITEM = "ITEM"
    MERCHANT = "MERCHANT"


class EbarimtReceiver(_Open):
    """The kind of receiver of a tax receipt."""

    CITIZEN = "CITIZEN"
    COMPANY = "COMPANY"


class Text(str):
    """A text, also made from a number: QPay sends ids and codes as either."""

    __slots__ = ()


class Document(msgspec.Struct, kw_only=True):
    """The base of all answers; ``raw`` is the received object."""

    raw: dict[str, Any] = msgspec.field(default_factory=dict[str, Any], name="")

    def __repr__(self) -> str:
        """Return the fields that are set, without ``raw``."""
        told = ((name, getattr(self, name)) for name in self.__struct_fields__ if name != "raw")
        shown = ", ".join(f"{name}={value!r}" for name, value in told if value not in (None, ()))
        return f"{type(self).__name__}({shown})"


class Nothing(Document):
    """An answer without content: ``{}``."""


class Bank(Document):
    """A bank's app that can pay, and the link that opens it."""

    name: Text | None = None
    description: Text | None = None
    logo: Text | None = None
    link: Text | None = None


class CreatedInvoice(Document):
    """A new invoice, with everything that a customer needs to pay it.

    ``qr_text`` is the content of the QR code, ``qr_image`` a PNG in base64 (sometimes empty), ``banks`` the deep links.
    """

    invoice_id: Text
    qr_text: Text = Text()
    qr_image: Text = Text()
    short_url: Text | None = msgspec.field(default=None, name="qPay_shortUrl")
    banks: tuple[Bank, ...] = msgspec.field(default=(), name="urls")


class CardTransaction(Document):
    """The part of a payment by card; a single payment uses the ``transaction_`` names."""

    card_type: Text | None = None
    card_number: Text | None = None
    card_merchant_code: Text | None = None
    card_terminal_code: Text | None = None
    is_cross_border: bool | None = None
    amount: Decimal | None = None
    currency: Text | None = None
    date: Text | None = None
    status: Text | None = None
    settlement_status: SettlementStatus | None = None
    settlement_status_date: Text | None = None


class P2PTransaction(Document):
    """The part of a payment that came from a bank account."""

    transaction_bank_code: Text | None = None
    account_bank_code: Text | None = None
    account_bank_name: Text | None = None
    account_number: Text | None = None
    status: Text | None = None
    amount: Decimal | None = None
    currency: Text | None = None
    settlement_status: SettlementStatus | None = None


class Payment(Document):
    """A payment from a check, a list or a single query; each sends only some of the fields."""

    payment_id: Text
    payment_status: PaymentStatus | None = None
    payment_amount: Decimal | None = None
    payment_currency: Text | None = None
    payment_fee: Decimal | None = None
    payment_wallet: Text | None = None
    payment_type: PaymentType | None = None
    payment_date: Text | None = None
    payment_name: Text | None = None
    payment_description: Text | None = None
    paid_by: Text | None = None
    object_type: ObjectType | None = None
    object_id: Text | None = None
    next_payment_date: Text | None = None
    next_payment_datetime: Text | None = None
    card_transactions: tuple[CardTransaction, ...] = ()
    p2p_transactions: tuple[P2PTransaction, ...] = ()

    @property
    def is_paid(self) -> bool:
        """Whether this payment counts as money."""
        return self.payment_status == PaymentStatus.PAID


class PaymentCheck(Document):
    """The payments of an invoice; ``rows`` is empty if nothing was paid."""

    count: int = 0
    paid_amount: Decimal = Decimal()
    rows: tuple[Payment, ...] = ()

    def covers(self, amount: Money | None = None) -> bool:
        """Return whether a payment counts, and the sum of all that count is at least ``amount`` if given.

        If some payments do not count, such as refunded ones, the others are added up. Raises ``QPayInvalidRequest``
        for an invalid amount.
        """
        wanted = None if amount is None else amount_of(amount, "amount")
        paid = [row for row in self.rows if row.is_paid]
        if wanted is None or not paid:
            return bool(paid)
        amounts = [row.payment_amount for row in paid if row.payment_amount is not None]
        if len(amounts) < len(paid):
            return self.paid_amount >= wanted
        together = sum(amounts, Decimal())
        return (together if len(paid) < len(self.rows) else max(together, self.paid_amount)) >= wanted


class PaymentList(Document):
    """A page of payments; ``count`` is the number of payments on all pages."""

    count: int = 0
    rows: tuple[Payment, ...] = ()


class Invoice(Document):
    """The current state of an invoice."""

    invoice_id: Text
    invoice_status: InvoiceStatus | None = None
    sender_invoice_no: Text | None = None
    sender_branch_code: Text | None = None
    invoice_description: Text | None = None
    invoice_due_date: Text | None = None
    enable_expiry: bool | None = None
    expiry_date: Text | None = None
    allow_partial: bool | None = None
    minimum_amount: Decimal | None = None
    allow_exceed: bool | None = None
    maximum_amount: Decimal | None = None
    total_amount: Decimal | None = None
    gross_amount: Decimal | None = None
    tax_amount: Decimal | None = None
    surcharge_amount: Decimal | None = None
    discount_amount: Decimal | None = None
    callback_url: Text | None = None
    note: Text | None = None
    payments: tuple[Payment, ...] = ()


class Ebarimt(Document):
    """A tax receipt."""

    id: Text | None = None
    ebarimt_receiver_type: EbarimtReceiver | None = None
    ebarimt_receiver: Text | None = None
    ebarimt_qr_data: Text | None = None
    ebarimt_lottery: Text | None = None
    ebarimt_status: Text | None = None
    amount: Decimal | None = None
    vat_amount: Decimal | None = None
    city_tax_amount: Decimal | None = None
    note: Text | None = None


class Subscription(Document):
    """A subscription that an invoice started."""

    id: Text | None = None
    subscription_interval: Text | None = None
    subscription_status: Text | None = None
    next_payment_date: Text | None = None
    amount: Decimal | None = None


D = TypeVar("D", bound=Document)

_SAME: Final[dict[str, str]] = {
    "qPay_deeplink": "urls",
    "trx_fee": "payment_fee",
    "transaction_type": "payment_type",
    "transaction_amount": "amount",
    "transaction_currency": "currency",
    "transaction_date": "date",
    "transaction_status": "status",
}
"""Other names that QPay uses for the same field."""


def read(document: object, model: type[D]) -> D:
    """Return an answer as its type. Raises ``msgspec.ValidationError`` if it does not fit."""
    made = msgspec.convert(_plain(document), model, strict=False, dec_hook=_text)
    _keep(made, document)
    return made


def _plain(value: object) -> object:
    """Return a document with one name per field, and without ``null`` and empty text."""
    if isinstance(value, dict):
        table = cast("dict[str, object]", value)
        plain = {name: _plain(each) for name, each in table.items() if each is not None and each != ""}
        for other, name in _SAME.items():
            if other in plain:
                plain.setdefault(name, plain[other])
        plain.pop("", None)
        return plain
    if isinstance(value, list):
        return [_plain(each) for each in cast("list[object]", value) if each is not None]
    return value


def _text(kind: type, value: object) -> object:
    """Convert a text or a number to ``Text``."""
    if kind is Text and isinstance(value, str | int | float | Decimal) and not isinstance(value, bool):
        return Text(value)
    message = f"expected a text, got {type(value).__name__}"
    raise msgspec.ValidationError(message)


def _keep(made: Document, document: object) -> None:
    """Set ``raw`` in each document, and check that its amounts are numbers."""
    made.raw = cast("dict[str, Any]", document)
    for field in msgspec.structs.fields(type(made)):
        value: object = getattr(made, field.name)
        if isinstance(value, Decimal) and not value.is_finite():
            message = f"{field.encode_name} is not an amount"
            raise msgspec.ValidationError(message)
        if isinstance(value, tuple) and value:
            names = (field.encode_name, *(other for other, name in _SAME.items() if name == field.encode_name))
            rows = next(cast("list[object]", made.raw[name]) for name in names if made.raw.get(name))
            for part, row in zip(cast("tuple[Document, ...]", value), (r for r in rows if r is not None), strict=True):
                _keep(part, row)
