"""Fixtures of the benchmarks: a Redis of our own, and the suite beside them to import."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tokencache.testing.servers import RedisServer

sys.path.insert(0, str(Path(__file__).parent))

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """Start an empty Redis."""
    with RedisServer() as server:
        yield server
