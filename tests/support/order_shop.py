"""Fixtures: the order service on a fake QPay, in this process and as the workers of a shop."""

from __future__ import annotations

import os
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from tokencache_qpay.testing import FakeQPay

EXAMPLE = Path(__file__).parents[2] / "examples" / "order_service"
sys.path.insert(0, str(EXAMPLE / "src"))  # an example is not installed

from order_service.app import create_app  # noqa: E402
from order_service.settings import Settings  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator

SHOP_TOKEN = "the shop's own token, not to be seen"


class Shop:
    """The service in a test: its settings, its QPay, and how to open it."""

    def __init__(self, qpay: FakeQPay, settings: Settings) -> None:
        self.qpay = qpay
        self.settings = settings

    @property
    def invoices(self) -> dict[str, dict[str, object]]:
        """QPay's invoices, by their id."""
        return {invoice_id: invoice.asked for invoice_id, invoice in self.qpay._shop._invoices.items()}

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[httpx.AsyncClient]:
        """Start the service in this process and yield the shop's client of it."""
        app = create_app(self.settings)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(
                transport=httpx.ASGITransport(app),
                base_url=self.settings.public_url,
                headers={"Authorization": f"Bearer {SHOP_TOKEN}"},
            ) as http,
        ):
            yield http


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let started processes find the example, too."""
    before = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(EXAMPLE / "src"), *([before] if before else [])]))


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    """A configured service without orders."""
    with FakeQPay() as qpay:
        for name, value in qpay.environ.items():
            monkeypatch.setenv(name, value)
        settings = Settings(
            "TEST_INVOICE", SHOP_TOKEN, "http://shop.test", (tmp_path / "tokens").as_uri(), str(tmp_path / "orders.db")
        )
        yield Shop(qpay, settings)
