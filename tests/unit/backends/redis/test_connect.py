"""TLS connections of event loops: redis-py reads the certificates for each, we read them once and on a thread."""

from __future__ import annotations

import asyncio
import ssl
import threading
from typing import Any

import pytest
from redis.exceptions import ConnectionError  # noqa: A004

from tokencache.backends.redis._connect import connect, target_of
from tokencache.url import BackendURL

READ_CERTIFICATES = ssl.create_default_context


def made(client: Any) -> Any:  # noqa: ANN401  (redis-py does not type them)
    """Return a connection of the client, to the first node of a cluster."""
    if not hasattr(client, "nodes_manager"):
        return client.connection_pool.make_connection()
    (node,) = client.nodes_manager.startup_nodes.values()
    assert client.nodes_manager.connection_kwargs["connection_class"] is node.connection_class
    return node.connection_class(**node.connection_kwargs)


@pytest.mark.parametrize(
    "url",
    [
        "rediss://127.0.0.1:1",
        "redis+sentinel://127.0.0.1:1/main?ssl_check_hostname=false",
        "redis+cluster://127.0.0.1:1?ssl_check_hostname=false",
    ],
)
@pytest.mark.parametrize("waiting", [False, True])
def test_certificates_are_read_once_on_a_thread(url: str, waiting: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop goes on meanwhile, and each further connection shares the TLS settings of the first."""
    threads: list[int] = []

    def read() -> ssl.SSLContext:
        threads.append(threading.get_ident())
        return READ_CERTIFICATES()

    async def scenario() -> None:
        client = connect(target_of(BackendURL.parse(url)), "redis.asyncio", waiting=waiting)
        for _ in range(3):
            connection = made(client)
            with pytest.raises(ConnectionError, match=r"Connect call failed|No master found"):
                await connection.connect()

    monkeypatch.setattr(ssl, "create_default_context", read)
    asyncio.run(scenario())
    assert len(threads) == 1
    assert threading.get_ident() not in threads
