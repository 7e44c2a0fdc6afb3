"""The requests to QPay: one invoice per order; checks of a payment only after a callback or a customer's click."""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
from base64 import b64encode
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from order_service.orders import State
from tokencache import TokenCacheError
from tokencache_qpay import InvoiceRequest, QPayOutcomeUnknown, png_of

if TYPE_CHECKING:
    from decimal import Decimal

    from order_service.orders import Order, Orders
    from order_service.settings import Settings
    from tokencache_qpay import AsyncQPayClient
    from tokencache_qpay.callbacks import Callback, Confirmed
    from tokencache_qpay.models import CreatedInvoice, PaymentCheck

log = logging.getLogger("order_service")

CALLBACK: Final = "/qpay/callback"
PATIENCE: Final = 30.0
PAUSE: Final = 0.05
LINK: Final = re.compile(r"(?!javascript:|data:|vbscript:|file:)[a-z][a-z0-9+.-]*:", re.IGNORECASE)


class Checkout:
    """Connects the orders with QPay."""

    def __init__(self, client: AsyncQPayClient, orders: Orders, settings: Settings) -> None:
        self._client = client
        self._orders = orders
        self._settings = settings

    async def open(self, key: str | None, amount: Decimal, description: str) -> tuple[Order, bool]:
        """Return the order of a key with its invoice, and whether the invoice was made now.

        A second request, on any worker, waits for the result of the first. Raises the client's errors if no invoice was
        made; then the request may be repeated. If QPay's answer was lost, the order stays in the state ``UNKNOWN``.
        """
        order, ours = await asyncio.to_thread(self._orders.claim, key, amount)
        if ours:
            return await self._make(order, description), True
        deadline = asyncio.get_running_loop().time() + PATIENCE
        while order.state is State.OPENING and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(PAUSE)
            order = await self.get(order.id) or order
        return order, False

    async def get(self, order_id: str) -> Order | None:
        """Return the stored order; QPay is not asked."""
        return await asyncio.to_thread(self._orders.get, order_id)

    async def paid(self, confirmed: Confirmed) -> None:
        """Record a payment that QPay has confirmed. The invoice finds the order, because an address can be forged."""
        order = await asyncio.to_thread(self._orders.of_invoice, confirmed.invoice_id)
        if order is None:
            log.warning("payment %s is for an unknown invoice", confirmed.payment.payment_id)
        else:
            await self._settle(order, confirmed.check)

    def expected(self, callback: Callback) -> bool:
        """Return whether a call has the proof of its order, so that forged calls cost no call to QPay."""
        proof = self._settings.proof(callback.parameters.get("order", ""))
        return hmac.compare_digest(callback.parameters.get("proof", "").encode(), proof.encode())

    async def check(self, order_id: str) -> Order | None:
        """Ask QPay whether an order is paid, for a customer that says so: callbacks get lost. Rate-limited."""
        order = await self.get(order_id)
        if order is not None and order.invoice_id and await asyncio.to_thread(self._orders.may_check, order_id):
            await self._settle(order, await self._client.check_payment(order.invoice_id))
            order = await self.get(order_id)
        return order

    async def _make(self, order: Order, description: str) -> Order:
        """Make the invoice of an order that this call has claimed."""
        request = InvoiceRequest(
            invoice_code=self._settings.invoice_code,
            sender_invoice_no=order.id,
            invoice_description=description,
            callback_url=f"{self._settings.public_url}{CALLBACK}?order={order.id}&proof={self._settings.proof(order.id)}",
            amount=order.amount,
        )
        try:
            invoice = await self._client.create_invoice(request)
        except QPayOutcomeUnknown as error:
            log.error("order %s: %s", order.id, error)  # noqa: TRY400  (its text is complete, without secrets)
            self._orders.ended(order.id, State.UNKNOWN)
            return replace(order, state=State.UNKNOWN)
        except TokenCacheError:
            self._orders.ended(order.id, State.FAILED)
            raise
        except BaseException:  # cancelled or stopped during the request
            self._orders.ended(order.id, State.UNKNOWN)
            raise
        return await asyncio.to_thread(self._keep, order, invoice)

    def _keep(self, order: Order, invoice: CreatedInvoice) -> Order:
        """Store the invoice, and the data for its page."""
        self._orders.opened(order.id, invoice.invoice_id, _shown(invoice))
        log.info("order %s has its invoice", order.id)
        return self._orders.get(order.id) or order

    async def _settle(self, order: Order, check: PaymentCheck) -> None:
        """Process a paid order, once."""
        if not check.covers(order.amount):
            return
        payment = next(row for row in check.rows if row.is_paid)
        if await asyncio.to_thread(self._orders.paid, order.id, payment.payment_id):
            log.info("order %s is paid", order.id)  # send the goods from here


def _shown(invoice: CreatedInvoice) -> dict[str, Any]:
    """Return the customer's data for payment: the code as picture and text, and links to banks' apps."""
    banks = [
        {"name": str(bank.name or bank.description or "bank"), "description": bank.description, "link": bank.link}
        for bank in invoice.banks
        if bank.link and LINK.match(bank.link)
    ]
    return {
        "qr_text": str(invoice.qr_text),
        "qr_image": f"data:image/png;base64,{b64encode(png_of(invoice)).decode()}",
        "short_url": invoice.short_url if invoice.short_url and LINK.match(invoice.short_url) else None,
        "banks": banks,
    }
