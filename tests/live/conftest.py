"""Fixtures for tests on the one Redis that all of them share: whoever uses it finds it empty."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from redis import Redis

from tokencache.backends.redis import RedisBackend, from_url
from tokencache.url import BackendURL

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def store(redis_url: str) -> Iterator[Redis]:
    """A plain client on the emptied server: what any other program sees."""
    with Redis.from_url(redis_url) as client:
        client.flushall()
        yield client


@pytest.fixture
def backend(redis_url: str, store: Redis) -> Iterator[RedisBackend]:
    """A backend on the emptied server."""
    backend = from_url(BackendURL.parse(redis_url))
    yield backend
    backend.close()
