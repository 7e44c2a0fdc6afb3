"""An unreachable Redis: each kind of set-up raises the port's own errors."""

from __future__ import annotations

import asyncio

import pytest
from redis.exceptions import TimeoutError as RedisTimeout

from tokencache.backends.redis import from_url
from tokencache.errors import BackendUnavailable
from tokencache.url import BackendURL

URLS = (
    "redis://u:pl4nted@127.0.0.1:1",
    "rediss://u:pl4nted@127.0.0.1:1",
    "redis+sentinel://u:pl4nted@127.0.0.1:1/main",
    "redis+cluster://u:pl4nted@127.0.0.1:1",
    "unix://u:pl4nted@/nowhere/redis.sock",
)


@pytest.mark.parametrize("url", URLS)
def test_an_outage_is_backend_unavailable_for_every_kind_of_client(url: str) -> None:
    """INV-5, INV-9: both halves raise `BackendUnavailable` each time, without the password or the first cause."""
    backend = from_url(BackendURL.parse(url))

    async def load() -> None:
        half = backend.aio()
        try:
            await half.load("key")
        finally:
            await half.close()

    for ask in (lambda: backend.load("key"), lambda: backend.load("key"), lambda: asyncio.run(load())):
        with pytest.raises(BackendUnavailable) as raised:
            ask()
        assert "pl4nted" not in str(raised.value)
        assert raised.value.__cause__ is None
        assert raised.value.__suppress_context__
    backend.close()


class Stubborn:
    """A client that refuses connections, and whose close fails."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    @property
    def connection_pool(self) -> Stubborn:
        """Return itself as its pool."""
        return self

    async def get_connection(self) -> None:
        """Refuse."""
        raise ConnectionRefusedError

    async def aclose(self) -> None:
        """Fail."""
        raise self.error


@pytest.mark.parametrize("error", [RedisTimeout("slow"), OSError("gone")])
def test_a_connection_that_fails_to_close_is_ignored(error: Exception) -> None:
    """INV-5, INV-8: neither ``close`` nor a call in progress raises the client library's error."""

    async def close() -> None:
        half = from_url(BackendURL.parse("redis://127.0.0.1:1/0")).aio()
        half._client = half._waiting = Stubborn(error)
        await half.close()
        with pytest.raises(BackendUnavailable):
            await half._exchange(Stubborn(error), "key", (["GET", "key"],))

    asyncio.run(close())
