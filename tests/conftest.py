"""Fixtures for all tests: servers of our own on free loopback ports."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tokencache.testing.servers import RedisServer

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """The URL of a Redis of our own; skipped where there is none, unless CI promises one."""
    with RedisServer() as server:
        yield server.url
