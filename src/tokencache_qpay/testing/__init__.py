"""A fake QPay for tests: ``FakeQPay``, a real server on a loopback port, and ``fake_qpay``, its pytest fixture.

Import the fixture in a ``conftest.py``: ``from tokencache_qpay.testing import fake_qpay``. It loads pytest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokencache_qpay.testing._fake import FakeQPay

if TYPE_CHECKING:
    from tokencache_qpay.testing._fixture import fake_qpay

__all__ = ["FakeQPay", "fake_qpay"]


def __getattr__(name: str) -> object:
    """Load the fixture, and pytest with it, at its first use (PEP 562)."""
    if name == "fake_qpay":
        from tokencache_qpay.testing._fixture import fake_qpay

        return fake_qpay
    message = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(message)
