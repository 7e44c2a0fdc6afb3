"""Fixtures for tests of the command line: the QPay that it talks to, and a port on which nobody listens."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from tokencache_qpay.testing import FakeQPay

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def fake(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeQPay]:
    """A fake QPay that the environment names, with the module's SECRET, and a cache folder of the test's own."""
    with FakeQPay(credentials={"merchant": request.module.SECRET}) as server:
        for name, value in server.environ.items():
            monkeypatch.setenv(name, value)
        for name in ("QPAY_CACHE_KEY", "TOKENCACHE_BACKEND", "REDIS_DATABASE_URI", "NO_COLOR"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        yield server


@pytest.fixture
def unused_port() -> Iterator[int]:
    """A port of loopback that is taken, and on which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]
