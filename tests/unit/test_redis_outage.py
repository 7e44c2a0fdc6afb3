"""A Redis that nobody answers for: every kind of set-up says so in the words of the port."""

from __future__ import annotations

import asyncio

import pytest

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
        assert raised.value.__suppress_context__
    backend.close()
