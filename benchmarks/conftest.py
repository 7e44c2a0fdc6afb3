"""Fixtures of the benchmarks: a Redis of our own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tokencache.testing.servers import RedisServer

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """Start an empty Redis."""
    with RedisServer() as server:
        yield server
