"""A Redis that nobody answers for: every kind of set-up says so in the words of the port."""

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
def test_an_outage_is_unavailability_whatever_the_client_library_calls_it(url: str) -> None:
    """INV-5, INV-9: both halves raise `BackendUnavailable`, each time, without the password and what led to it."""
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
    """A client that gives no connection, and cannot be closed."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    @property
    def connection_pool(self) -> Stubborn:
        """Its pool is itself."""
        return self

    async def get_connection(self) -> None:
        """Refuse."""
        raise ConnectionRefusedError

    async def aclose(self) -> None:
        """Fail."""
        raise self.error


@pytest.mark.parametrize("error", [RedisTimeout("slow"), OSError("gone")])
def test_a_connection_that_cannot_be_closed_is_nobodys_concern(error: Exception) -> None:
    """INV-5, INV-8: neither whoever closes the backend nor a call that is under way then gets a foreign error."""

    async def close() -> None:
        half = from_url(BackendURL.parse("redis://127.0.0.1:1/0")).aio()
        half._client = half._waiting = Stubborn(error)
        await half.close()
        with pytest.raises(BackendUnavailable):
            await half._exchange(Stubborn(error), "key", (["GET", "key"],))

    asyncio.run(close())
