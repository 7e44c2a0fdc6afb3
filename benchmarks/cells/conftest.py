"""Fixtures of the cells: a Redis of our own, and the folder of the benchmarks to import from."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tokencache.testing.servers import RedisServer

sys.path.insert(0, str(Path(__file__).parents[1]))

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """Start an empty Redis."""
    with RedisServer() as server:
        yield server
