"""Every operation of QPay's API: its request, its answer, and whether it may be sent twice."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final, Generic, TypeAlias, TypeVar

from tokencache_qpay.models import (
    CreatedInvoice,
    Document,
    Ebarimt,
    EbarimtReceiver,
    Invoice,
    Nothing,
    ObjectType,
    Payment,
    PaymentCheck,
    PaymentList,
    Subscription,
)
from tokencache_qpay.requests import InvoiceRequest, identifier, invoice_body, reject

if TYPE_CHECKING:
    from collections.abc import Mapping

D_co = TypeVar("D_co", bound=Document, covariant=True)
When: TypeAlias = "datetime | str"

_LARGEST_PAGE: Final = 100


@dataclass(frozen=True, slots=True)
class Call(Generic[D_co]):
    """One request: ``path`` is below ``/v2``, ``item`` is its last part. ``repeatable``: a second one does no harm."""

    method: str
    path: str
    answer: type[D_co]
    body: Mapping[str, object] | None = None
    item: str | None = None
    repeatable: bool = False

    @property
    def name(self) -> str:
        """Its name in messages, without the id."""
        return f"{self.method} {self.path}"

    @property
    def address(self) -> str:
        """The whole path."""
        return self.path if self.item is None else f"{self.path}/{self.item}"


def create_invoice(invoice: InvoiceRequest) -> Call[CreatedInvoice]:
    """Create an invoice. QPay creates another one for each request, so the client never repeats it by itself."""
    return Call("POST", "/invoice", CreatedInvoice, invoice_body(invoice))


def get_invoice(invoice_id: str) -> Call[Invoice]:
    """Return the current state of an invoice."""
    return Call("GET", "/invoice", Invoice, item=identifier("invoice_id", invoice_id), repeatable=True)


def cancel_invoice(invoice_id: str) -> Call[Nothing]:
    """Cancel an unpaid invoice."""
    return Call("DELETE", "/invoice", Nothing, item=identifier("invoice_id", invoice_id))


def get_payment(payment_id: str) -> Call[Payment]:
    """Return a payment."""
    return Call("GET", "/payment", Payment, item=identifier("payment_id", payment_id), repeatable=True)


def check_payment(
    object_id: str,
    *,
    object_type: ObjectType | str = ObjectType.INVOICE,
    page: int = 1,
    page_limit: int = _LARGEST_PAGE,
) -> Call[PaymentCheck]:
    """Return the payments of an invoice, a QR code or an item; ``page`` counts from 1."""
    body = _found_by(object_type, object_id, page, page_limit)
    return Call("POST", "/payment/check", PaymentCheck, body, repeatable=True)


def list_payments(
    object_id: str,
    *,
    start_date: When,
    end_date: When,
    object_type: ObjectType | str = ObjectType.INVOICE,
    page: int = 1,
    page_limit: int = _LARGEST_PAGE,
) -> Call[PaymentList]:
    """Return a page of the payments between two dates. ``object_id`` is the *invoice_code* for type INVOICE."""
    body = _found_by(object_type, object_id, page, page_limit)
    body |= {"start_date": _when("start_date", start_date), "end_date": _when("end_date", end_date)}
    return Call("POST", "/payment/list", PaymentList, body, repeatable=True)


def cancel_payment(payment_id: str, *, callback_url: str | None = None, note: str | None = None) -> Call[Nothing]:
    """Cancel a payment by card that is not settled yet."""
    body = _given(callback_url=callback_url, note=note)
    return Call("DELETE", "/payment/cancel", Nothing, body, item=identifier("payment_id", payment_id))


def refund_payment(payment_id: str, *, callback_url: str | None = None, note: str | None = None) -> Call[Nothing]:
    """Refund a payment by card."""
    body = _given(callback_url=callback_url, note=note)
    return Call("DELETE", "/payment/refund", Nothing, body, item=identifier("payment_id", payment_id))


def create_ebarimt(
    payment_id: str,
    *,
    ebarimt_receiver_type: EbarimtReceiver | str = EbarimtReceiver.CITIZEN,
    ebarimt_receiver: str | None = None,
    callback_url: str | None = None,
) -> Call[Ebarimt]:
    """Create the tax receipt of a payment; ``ebarimt_receiver`` is the register number of a COMPANY."""
    body = _receipt(payment_id, ebarimt_receiver_type, ebarimt_receiver, callback_url)
    return Call("POST", "/ebarimt/create", Ebarimt, body)


def get_ebarimt(ebarimt_id: str) -> Call[Ebarimt]:
    """Return a tax receipt."""
    return Call("GET", "/ebarimt", Ebarimt, item=identifier("ebarimt_id", ebarimt_id), repeatable=True)


def cancel_ebarimt(ebarimt_id: str) -> Call[Nothing]:
    """Cancel a tax receipt."""
    return Call("DELETE", "/ebarimt", Nothing, item=identifier("ebarimt_id", ebarimt_id))


def create_ebarimt_v3(
    payment_id: str,
    *,
    district_code: str,
    ebarimt_receiver_type: EbarimtReceiver | str = EbarimtReceiver.CITIZEN,
    ebarimt_receiver: str | None = None,
    callback_url: str | None = None,
) -> Call[Ebarimt]:
    """Create the tax receipt of a payment by version 3.0, which needs the district too."""
    if not district_code:
        reject("district_code", "it must not be empty")
    body = _receipt(payment_id, ebarimt_receiver_type, ebarimt_receiver, callback_url)
    return Call("POST", "/ebarimt_v3/create", Ebarimt, body | {"district_code": district_code})


def cancel_ebarimt_v3(payment_id: str, *, note: str | None = None) -> Call[Nothing]:
    """Cancel a tax receipt of version 3.0, by its payment."""
    return Call("DELETE", "/ebarimt_v3", Nothing, _given(note=note), identifier("payment_id", payment_id))


def get_subscription(subscription_id: str) -> Call[Subscription]:
    """Return a subscription."""
    item = identifier("subscription_id", subscription_id)
    return Call("GET", "/subscription", Subscription, item=item, repeatable=True)


def cancel_subscription(subscription_id: str) -> Call[Nothing]:
    """End a subscription."""
    return Call("DELETE", "/subscription", Nothing, item=identifier("subscription_id", subscription_id))


def _found_by(object_type: str, object_id: str, page: int, page_limit: int) -> dict[str, object]:
    """Return the body of a search."""
    identifier("object_id", object_id)
    if page < 1:
        reject("page", "pages count from 1")
    if not 1 <= page_limit <= _LARGEST_PAGE:
        reject("page_limit", f"give 1 to {_LARGEST_PAGE}")
    offset = {"page_number": page, "page_limit": page_limit}
    return {"object_type": str(object_type), "object_id": object_id, "offset": offset}


def _receipt(payment_id: str, kind: str, receiver: str | None, callback_url: str | None) -> dict[str, object]:
    """Return the common fields of a tax receipt."""
    identifier("payment_id", payment_id)
    if kind == EbarimtReceiver.COMPANY and not receiver:
        reject("ebarimt_receiver", "give the register number of the COMPANY")
    body = {"payment_id": payment_id, "ebarimt_receiver_type": str(kind)}
    return body | _given(ebarimt_receiver=receiver, callback_url=callback_url)


def _given(**fields: str | None) -> dict[str, object]:
    """Return the fields that are not ``None``."""
    return {name: value for name, value in fields.items() if value is not None}


def _when(name: str, when: When) -> str:
    """Return a date in QPay's format: ``YYYY-MM-DD HH:MM:SS``, in the local time of the shop."""
    if not isinstance(when, datetime):
        return when
    if when.tzinfo is not None:
        reject(name, "QPay expects local time; give a datetime without a time zone")
    return when.strftime("%Y-%m-%d %H:%M:%S")
