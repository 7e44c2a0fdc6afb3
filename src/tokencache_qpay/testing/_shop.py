"""The merchant side of the fake: invoices and payments in memory, with QPay's mixture of strings and numbers."""

from __future__ import annotations

import threading
import uuid
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, cast

from tokencache_qpay.testing._forms import Fields, Refusal, answer, object_of, require
from tokencache_qpay.testing._receipts import Receipts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokencache.testing.loopback import Reply

PaymentType: TypeAlias = Literal["P2P", "CARD"]

_REQUIRED: Final = (
    "invoice_code",
    "sender_invoice_no",
    "invoice_receiver_code",
    "invoice_description",
    "callback_url",
)
_OBJECT_TYPES: Final = frozenset({"INVOICE", "QR", "ITEM", "MERCHANT"})
_DATE: Final = "2026-01-30T07:02:05.000Z"


@dataclass(slots=True)
class _Invoice:
    """An invoice and its payments."""

    invoice_id: str
    asked: Fields
    amount: Decimal
    status: str = "OPEN"
    payments: list[Fields] = field(default_factory=list["Fields"])


class Shop:
    """Invoices, and the payments that a test makes on them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards _invoices and their contents: tests pay from their own threads
        self._invoices: dict[str, _Invoice] = {}
        self._paid = 493_622_150_113_497
        self._receipts = Receipts()

    def serve(self, method: str, path: str, body: bytes) -> Reply | None:  # noqa: PLR0911  a table of calls
        """Answer a call below ``/v2``, ``None`` for an unknown call. Raises ``Refusal``."""
        with self._lock:
            match method, path.strip("/").split("/"):
                case "POST", ["invoice"]:
                    return answer(self._create(object_of(body)))
                case "GET", ["invoice", invoice_id]:
                    return answer(self._described(self._invoice(invoice_id)))
                case "DELETE", ["invoice", invoice_id]:
                    return answer(self._cancel(self._invoice(invoice_id)))
                case "POST", ["payment", "check"]:
                    return answer(self._check(object_of(body)))
                case "POST", ["payment", "list"]:
                    return answer(self._list(object_of(body)))
                case "GET", ["payment", payment_id]:
                    return answer(_single(*self._paid_on(payment_id)))
                case "DELETE", ["payment", "cancel" | "refund", payment_id]:
                    return answer(self._give_back(payment_id))
                case method, ["ebarimt" | "ebarimt_v3" | "subscription", *rest]:
                    return self._receipts.serve(method, path.strip("/").split("/")[0], rest, body, self._paid_on)
                case _:
                    return None

    def pay(self, invoice_id: str, amount: float | str | None, kind: PaymentType) -> str:
        """Pay an invoice, like a customer, and return the payment's id."""
        with self._lock:
            invoice = self._invoice(invoice_id)
            self._paid += 1
            payment_id = str(self._paid) if kind == "P2P" else str(uuid.uuid4())
            paid = invoice.amount if amount is None else Decimal(str(amount))
            invoice.payments.append(_payment_row(payment_id, paid, kind))
            if _total(invoice) >= invoice.amount:
                invoice.status = "CLOSED"
            return payment_id

    def callback_of(self, payment_id: str) -> str:
        """Return the address that QPay calls for a payment: the invoice's, with the payment's id appended."""
        with self._lock:
            for invoice in self._invoices.values():
                if any(row["payment_id"] == payment_id for row in invoice.payments):
                    url = str(invoice.asked["callback_url"])
                    return f"{url}{'&' if '?' in url else '?'}qpay_payment_id={payment_id}"
        message = f"there is no payment {payment_id!r}; `pay` returns the ids"
        raise KeyError(message)

    def _invoice(self, invoice_id: str) -> _Invoice:
        invoice = self._invoices.get(invoice_id)
        if invoice is None:
            raise Refusal(422, "INVOICE_NOTFOUND", "Нэхэмжлэх олдсонгүй")
        return invoice

    def _create(self, asked: Fields) -> Fields:
        """Make an invoice; a repeated call makes another one, because QPay's call is not idempotent."""
        missing = [name for name in _REQUIRED if not asked.get(name)]
        if not asked.get("amount") and not asked.get("lines"):
            missing.append("amount")
        require(missing)
        invoice = _Invoice(str(uuid.uuid4()), asked, _amount_of(asked))
        self._invoices[invoice.invoice_id] = invoice
        link = f"https://s.qpay.mn/{invoice.invoice_id[:8]}"
        bank = {"name": "Khan bank", "description": "Хаан банк", "logo": "https://qpay.mn/q/logo/khanbank.png"}
        return {
            "invoice_id": invoice.invoice_id,
            "qr_text": f"0002010102121531{invoice.invoice_id.replace('-', '').upper()}6304A1B2",
            "qr_image": "",
            "qPay_shortUrl": link,
            "urls": [{**bank, "link": f"khanbank://q?qPay_QRcode={invoice.invoice_id}"}],
        }

    def _described(self, invoice: _Invoice) -> Fields:
        amount = invoice.amount
        return {
            "invoice_id": invoice.invoice_id,
            "invoice_status": invoice.status,
            "sender_invoice_no": invoice.asked["sender_invoice_no"],
            "invoice_description": invoice.asked["invoice_description"],
            "total_amount": f"{amount:.2f}",
            "gross_amount": _number(amount),
            "tax_amount": 0,
            "surcharge_amount": 0,
            "discount_amount": 0,
            "callback_url": invoice.asked["callback_url"],
            "lines": invoice.asked.get("lines") or [],
            "payments": [_listed(row) for row in invoice.payments],
        }

    def _cancel(self, invoice: _Invoice) -> Fields:
        if invoice.status == "CANCELED":
            raise Refusal(400, "INVOICE_ALREADY_CANCELED", "Нэхэмжлэх цуцлагдсан байна")
        if invoice.status == "CLOSED":
            raise Refusal(400, "INVOICE_PAID", "Нэхэмжлэх төлөгдсөн байна")
        invoice.status = "CANCELED"
        return {}

    def _check(self, asked: Fields) -> Fields:
        """Report the payments of an invoice; without one, ``paid_amount`` is missing."""
        require([name for name in ("object_type", "object_id") if not asked.get(name)])
        if asked["object_type"] not in _OBJECT_TYPES:
            raise Refusal(400, "INVALID_OBJECT_TYPE", "INVALID_OBJECT_TYPE")
        invoice = self._invoices.get(str(asked["object_id"]))
        if invoice is None or not invoice.payments:
            return {"count": 0, "rows": []}
        rows = _page(invoice.payments, asked)
        return {"count": len(invoice.payments), "paid_amount": _number(_total(invoice)), "rows": rows}

    def _list(self, asked: Fields) -> Fields:
        """List payments by invoice code (or invoice id): the rows have other field names again."""
        require([name for name in ("object_type", "object_id") if not asked.get(name)])
        wanted = asked["object_id"]
        found = [
            _listed(row) | {"object_type": "INVOICE", "object_id": invoice.invoice_id}
            for invoice in self._invoices.values()
            if wanted in (invoice.asked.get("invoice_code"), invoice.invoice_id)
            for row in invoice.payments
        ]
        return {"count": len(found), "rows": _page(found, asked)}

    def _paid_on(self, payment_id: str) -> tuple[Fields, str]:
        """Return a payment, and its invoice."""
        for invoice in self._invoices.values():
            for row in invoice.payments:
                if row["payment_id"] == payment_id:
                    return row, invoice.invoice_id
        raise Refusal(422, "PAYMENT_NOTFOUND", "Төлбөр олдсонгүй")

    def _give_back(self, payment_id: str) -> Fields:
        """Cancel or refund a payment: only by card, and only once."""
        row, _ = self._paid_on(payment_id)
        if row["payment_type"] != "CARD":
            raise Refusal(400, "PAYMENT_SETTLED", "Төлбөр шилжсэн байна")
        if row["payment_status"] == "REFUNDED":
            raise Refusal(400, "PAYMENT_ALREADY_CANCELED", "Төлбөр цуцлагдсан байна")
        row["payment_status"] = "REFUNDED"
        return {}


def _amount_of(asked: Fields) -> Decimal:
    """Return the total of an invoice: its amount, or the sum of its lines."""
    try:
        if asked.get("amount"):
            return Decimal(str(asked["amount"]))
        lines = cast("list[Mapping[str, object]]", asked["lines"])
        return sum((Decimal(str(n["line_quantity"])) * Decimal(str(n["line_unit_price"])) for n in lines), Decimal())
    except (InvalidOperation, KeyError, TypeError):
        raise Refusal(400, "INVALID_AMOUNT", "INVALID_AMOUNT") from None


def _payment_row(payment_id: str, amount: Decimal, kind: PaymentType) -> Fields:
    """Return a payment as ``payment/check`` shows it."""
    fee = (amount / 100).quantize(Decimal("0.01"))
    p2p = {
        "transaction_bank_code": "050000",
        "account_bank_code": "050000",
        "account_bank_name": "Хаан банк",
        "account_number": "50*******",
        "status": "SUCCESS",
        "amount": f"{amount - fee:.2f}",
        "currency": "MNT",
        "settlement_status": "SETTLED",
    }
    card = {
        "card_type": "VISA",
        "is_cross_border": False,
        "amount": f"{amount:.2f}",
        "currency": "MNT",
        "date": _DATE,
        "status": "SUCCESS",
        "settlement_status": "PENDING",
        "settlement_status_date": _DATE,
    }
    return {
        "payment_id": payment_id,
        "payment_status": "PAID",
        "payment_amount": f"{amount:.2f}",
        "trx_fee": f"{fee:.2f}",
        "payment_currency": "MNT",
        "payment_wallet": "Хаан банк апп",
        "payment_type": kind,
        "next_payment_date": None,
        "next_payment_datetime": None,
        "card_transactions": [card] if kind == "CARD" else [],
        "p2p_transactions": [p2p] if kind == "P2P" else [],
    }


def _single(row: Fields, invoice_id: str) -> Fields:
    """Return a payment as ``GET /payment/{id}`` shows it, under its own names."""
    card_names = {"amount": "transaction_amount", "currency": "transaction_currency"}
    card_names |= {"date": "transaction_date", "status": "transaction_status"}
    cards = cast("list[Fields]", row["card_transactions"])
    terminal = {"card_merchant_code": "1", "card_terminal_code": "2", "card_number": "4********1111"}
    single = {name: value for name, value in row.items() if name not in {"trx_fee", "payment_type"}}
    return single | {
        "payment_fee": row["trx_fee"],
        "payment_date": _DATE,
        "transaction_type": row["payment_type"],
        "object_type": "INVOICE",
        "object_id": invoice_id,
        "card_transactions": [terminal | {card_names.get(n, n): v for n, v in card.items()} for card in cards],
    }


def _listed(row: Fields) -> Fields:
    """Return a payment as lists show it: without its transactions."""
    hidden = {"card_transactions", "p2p_transactions", "next_payment_date", "next_payment_datetime"}
    return {name: value for name, value in row.items() if name not in hidden} | {"payment_date": _DATE}


def _page(rows: list[Fields], asked: Fields) -> list[Fields]:
    """Return the requested page of rows."""
    offset = asked.get("offset")
    window = cast("dict[str, object]", offset) if isinstance(offset, dict) else {}
    number, limit = int(str(window.get("page_number", 1))), int(str(window.get("page_limit", 100)))
    return rows[(number - 1) * limit : number * limit]


def _total(invoice: _Invoice) -> Decimal:
    return sum((Decimal(str(row["payment_amount"])) for row in invoice.payments), Decimal())


def _number(amount: Decimal) -> int | float:
    """Return an amount as a JSON number, an integer if it is whole."""
    return int(amount) if amount == amount.to_integral_value() else float(amount)
