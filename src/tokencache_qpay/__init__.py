"""The QPay V2 plugin of tokencache: provider, client, callbacks. Its names are loaded at first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tokencache_qpay.callbacks import (
        Callback,
        asgi_callback,
        confirm,
        confirm_async,
        django_callback,
        flask_callback,
        read_callback,
    )
    from tokencache_qpay.client import AsyncQPayClient, QPayClient
    from tokencache_qpay.errors import (
        QPayConflict,
        QPayError,
        QPayInvalidRequest,
        QPayNotFound,
        QPayOutcomeUnknown,
        QPayRefused,
        QPayUnauthorized,
        QPayUnavailable,
        QPayValidationError,
    )
    from tokencache_qpay.provider import QPayProvider
    from tokencache_qpay.qr import draw_qr, png_of
    from tokencache_qpay.requests import InvoiceLine, InvoiceRequest

__all__ = [
    "AsyncQPayClient",
    "Callback",
    "InvoiceLine",
    "InvoiceRequest",
    "QPayClient",
    "QPayConflict",
    "QPayError",
    "QPayInvalidRequest",
    "QPayNotFound",
    "QPayOutcomeUnknown",
    "QPayProvider",
    "QPayRefused",
    "QPayUnauthorized",
    "QPayUnavailable",
    "QPayValidationError",
    "asgi_callback",
    "confirm",
    "confirm_async",
    "django_callback",
    "draw_qr",
    "flask_callback",
    "png_of",
    "read_callback",
]

_MODULES: Final = {
    "callbacks": (
        "Callback",
        "asgi_callback",
        "confirm",
        "confirm_async",
        "django_callback",
        "flask_callback",
        "read_callback",
    ),
    "client": ("AsyncQPayClient", "QPayClient"),
    "errors": (
        "QPayConflict",
        "QPayError",
        "QPayInvalidRequest",
        "QPayNotFound",
        "QPayOutcomeUnknown",
        "QPayRefused",
        "QPayUnauthorized",
        "QPayUnavailable",
        "QPayValidationError",
    ),
    "provider": ("QPayProvider",),
    "qr": ("draw_qr", "png_of"),
    "requests": ("InvoiceLine", "InvoiceRequest"),
}


def __getattr__(name: str) -> object:
    """Load a public name at its first use (PEP 562)."""
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    message = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(message)


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(__all__)
