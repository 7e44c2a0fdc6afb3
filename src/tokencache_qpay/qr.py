"""The QR code of an invoice: as a picture, and in the terminal."""

from __future__ import annotations

import io
from base64 import b64decode
from typing import TYPE_CHECKING, Final

from tokencache.errors import ConfigurationError
from tokencache_qpay.requests import reject

if TYPE_CHECKING:
    from types import ModuleType

    from segno import QRCode

    from tokencache_qpay.models import CreatedInvoice

__all__ = ["draw_qr", "png_of"]

_PNG: Final = b"\x89PNG\r\n\x1a\n"
_SCALE: Final = 6  # pixels of one module


def png_of(invoice: CreatedInvoice) -> bytes:
    """Return the QR code of an invoice as a PNG: QPay's own, or one made from ``qr_text`` if QPay sent none.

    Raises ``ConfigurationError`` if it must be made and ``tokencache[qr]`` is not installed.
    """
    try:
        picture = b64decode(invoice.qr_image, validate=True)
    except ValueError:
        picture = b""
    if picture.startswith(_PNG):
        return picture
    made = io.BytesIO()
    _code(invoice).save(made, kind="png", scale=_SCALE)
    return made.getvalue()


def draw_qr(invoice: CreatedInvoice) -> str:
    """Return the QR code in half blocks for a terminal, with the links of the banks' apps below it.

    Raises ``ConfigurationError`` if ``tokencache[qr]`` is not installed.
    """
    drawn = io.StringIO()
    _code(invoice).terminal(drawn, compact=True)
    links = [f"{bank.description or bank.name or 'bank'}: {bank.link}" for bank in invoice.banks if bank.link]
    lines = [*([invoice.short_url] if invoice.short_url else []), *links]
    told = ("".join(char for char in line if char.isprintable()) for line in lines)  # no terminal escapes
    return "\n".join([drawn.getvalue().rstrip("\n"), *told])


def _code(invoice: CreatedInvoice) -> QRCode:
    """Return the code of an invoice."""
    if not invoice.qr_text:
        reject("qr_text", "the invoice has no QR code")
    code: QRCode = _segno().make(str(invoice.qr_text), micro=False)
    return code


def _segno() -> ModuleType:
    """Return the library that draws QR codes."""
    try:
        import segno
    except ModuleNotFoundError:
        message = "[qpay] drawing a QR code needs segno; run: pip install 'tokencache[qr]'"
        raise ConfigurationError(message) from None
    return segno
