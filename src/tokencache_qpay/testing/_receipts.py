"""The fake's tax receipts, old and 3.0, and its subscriptions."""

from __future__ import annotations

import uuid
from decimal import Decimal
from typing import TYPE_CHECKING

from tokencache_qpay.testing._forms import Fields, Refusal, answer, object_of, require

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokencache.testing.loopback import Reply


class Receipts:
    """Receipts by id, in version 3.0 by payment; and subscriptions until they are ended."""

    def __init__(self) -> None:
        self._receipts: dict[str, Fields] = {}
        self._ended: set[str] = set()

    def serve(
        self, method: str, kind: str, rest: list[str], body: bytes, paid_on: Callable[[str], tuple[Fields, str]]
    ) -> Reply | None:
        """Answer a call, ``None`` for an unknown call."""
        match kind, method, rest:
            case "ebarimt" | "ebarimt_v3", "POST", ["create"]:
                return answer(self._create(object_of(body), paid_on, by_payment=kind == "ebarimt_v3"))
            case "ebarimt", "GET", [receipt]:
                return answer(self._find(receipt))
            case "ebarimt" | "ebarimt_v3", "DELETE", [receipt]:
                self._find(receipt)["ebarimt_status"] = "CANCELED"
                return answer({})
            case "subscription", "GET", [subscription]:
                return answer(self._subscription(subscription))
            case "subscription", "DELETE", [subscription]:
                self._subscription(subscription)
                self._ended.add(subscription)
                return answer({})
            case _:
                return None

    def _create(self, asked: Fields, paid_on: Callable[[str], tuple[Fields, str]], *, by_payment: bool) -> Fields:
        """Make a receipt; some of its amounts are numbers, others texts."""
        names = ["payment_id", "ebarimt_receiver_type", *(["district_code"] if by_payment else [])]
        require([name for name in names if not asked.get(name)])
        payment, _ = paid_on(str(asked["payment_id"]))
        amount = Decimal(str(payment["payment_amount"]))
        receipt: Fields = {
            "id": str(uuid.uuid4()),
            "ebarimt_receiver_type": asked["ebarimt_receiver_type"],
            "ebarimt_receiver": asked.get("ebarimt_receiver"),
            "ebarimt_qr_data": "3811",
            "ebarimt_lottery": 12345678,
            "ebarimt_status": "REGISTERED",
            "amount": f"{amount:.2f}",
            "vat_amount": float(round(amount / 11, 2)),
            "city_tax_amount": 0,
        }
        self._receipts[str(payment["payment_id"] if by_payment else receipt["id"])] = receipt
        return receipt

    def _find(self, receipt: str) -> Fields:
        """Return a receipt."""
        if receipt not in self._receipts:
            raise Refusal(422, "BARIMT_NOT_FOUND", "Баримт олдсонгүй")
        return self._receipts[receipt]

    def _subscription(self, subscription: str) -> Fields:
        """Return a subscription."""
        if subscription in self._ended:
            raise Refusal(422, "SUBSCRIPTION_NOTFOUND", "SUBSCRIPTION_NOTFOUND")
        return {"id": subscription, "subscription_interval": "1M", "subscription_status": "ACTIVE", "amount": "100.00"}
