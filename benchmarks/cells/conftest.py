"""Fixtures of the cells: a Redis server, and the import path of the benchmarks."""

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
    """Yield an empty Redis."""
    with RedisServer() as server:
        yield server
