"""The pytest fixture of the fake."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tokencache_qpay.testing._fake import FakeQPay

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def fake_qpay() -> Iterator[FakeQPay]:
    """Yield a running ``FakeQPay``, which stops with the test."""
    with FakeQPay() as fake:
        yield fake
