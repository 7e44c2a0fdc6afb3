"""The QR code of an invoice: QPay's own picture, our replacement, and the terminal's."""

from __future__ import annotations

import sys
from base64 import b64encode

import pytest

from tokencache import ConfigurationError
from tokencache_qpay import QPayInvalidRequest, draw_qr, png_of
from tokencache_qpay.models import CreatedInvoice, read

PNG = b"\x89PNG\r\n\x1a\n" + b"rest"
INVOICE = {
    "invoice_id": "x",
    "qr_text": "0002010102121531",
    "qPay_shortUrl": "https://s.qpay.mn/x",
    "urls": [{"name": "Khan", "description": "Хаан банк", "link": "khanbank://q?x"}, {"name": "no link"}],
}


def invoice(**fields: object) -> CreatedInvoice:
    """Return an invoice as QPay makes it."""
    return read(INVOICE | fields, CreatedInvoice)


def test_qpays_own_picture_is_used() -> None:
    """The PNG that QPay sends in base64 is returned unchanged."""
    assert png_of(invoice(qr_image=b64encode(PNG).decode())) == PNG


@pytest.mark.parametrize("image", ["", "not base64!", "QUJD"])
def test_a_missing_picture_is_generated(image: str) -> None:
    """An empty or broken picture is replaced by one of the same text."""
    made = png_of(invoice(qr_image=image))
    assert made.startswith(PNG[:8])
    assert made == png_of(invoice())
    assert made != png_of(invoice(qr_text="0002010102121532"))


def test_a_terminal_shows_code_and_links() -> None:
    """The output has half blocks, the short address, and each bank with a link."""
    shown = draw_qr(invoice())
    assert "▀" in shown
    assert shown.splitlines()[-2:] == ["https://s.qpay.mn/x", "Хаан банк: khanbank://q?x"]


def test_a_bank_name_cannot_control_the_terminal() -> None:
    """A bank's name is printed without control characters; an invoice without a text has no code."""
    assert "\x1b" not in draw_qr(invoice(urls=[{"name": "\x1b[2Jbank", "link": "x://"}]))
    with pytest.raises(QPayInvalidRequest, match="qr_text"):
        png_of(invoice(qr_text=""))


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra, the message holds the install command."""
    monkeypatch.setitem(sys.modules, "segno", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'tokencache\[qr\]'"):
        draw_qr(invoice())
