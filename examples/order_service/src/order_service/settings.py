"""The settings of the service, from its environment."""

from __future__ import annotations

import hmac
import os
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Final, Self

from tokencache import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

REQUIRED: Final = {
    "QPAY_CLIENT_ID": "the merchant's user",
    "QPAY_CLIENT_SECRET": "the merchant's password",
    "QPAY_INVOICE_CODE": "the invoice code that QPay gave you",
    "SHOP_TOKEN": "the Bearer token that your shop sends, 16 characters or more",
    "PUBLIC_URL": "the address by which customers and QPay reach this service",
}
SHORTEST_TOKEN: Final = 16


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of an installation, without the variables that QPay's provider reads itself."""

    invoice_code: str
    shop_token: str = field(repr=False)
    public_url: str
    backend: str = field(default="file://", repr=False)  # its URL may hold a password
    orders: str = "orders.db"

    def proof(self, order: str) -> str:
        """Return the unguessable part of an order's callback address."""
        return hmac.new(self.shop_token.encode(), f"callback {order}".encode(), sha256).hexdigest()[:32]

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Self:
        """Return the settings of the environment. Raises ``ConfigurationError`` that names all missing variables."""
        given = {name: text.strip() for name, text in (os.environ if environ is None else environ).items()}
        missing = [f"{name} ({what})" for name, what in REQUIRED.items() if not given.get(name)]
        if missing:
            raise ConfigurationError(f"set {', '.join(missing)}")
        if len(given["SHOP_TOKEN"]) < SHORTEST_TOKEN:
            raise ConfigurationError(f"SHOP_TOKEN is too easy to guess: give it {SHORTEST_TOKEN} characters or more")
        if not given["PUBLIC_URL"].startswith(("http://", "https://")):
            raise ConfigurationError("PUBLIC_URL must begin with https://, or http:// on your own machine")
        return cls(
            invoice_code=given["QPAY_INVOICE_CODE"],
            shop_token=given["SHOP_TOKEN"],
            public_url=given["PUBLIC_URL"].rstrip("/"),
            backend=given.get("TOKENCACHE_BACKEND") or given.get("REDIS_DATABASE_URI") or "file://",
            orders=given.get("ORDERS_DATABASE") or "orders.db",
        )
