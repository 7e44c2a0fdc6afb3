"""The HTTP clients that all providers make: the proxies of the environment, and entries that httpx cannot read."""

# ruff: noqa: ANN401 - clients of both kinds

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tokencache.providers.reach import reach
from tokencache.providers.transport import is_loopback, new_client
from tokencache.testing.token_server import TokenServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

KINDS = pytest.mark.parametrize("kind", [httpx.Client, httpx.AsyncClient])


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away the proxies of the machine that runs the tests."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        for spelling in (name, name.lower()):
            monkeypatch.delenv(spelling, raising=False)


@pytest.fixture
def closing() -> Iterator[Callable[[Any], Any]]:
    """Close the clients of a test."""
    clients: list[Any] = []

    def keep(client: Any) -> Any:
        clients.append(client)
        return client

    yield keep
    for client in clients:
        client.close() if isinstance(client, httpx.Client) else asyncio.run(client.aclose())


@KINDS
@pytest.mark.parametrize("entry", ["fd00::/8", "id.example:port"])
def test_an_unreadable_entry_of_no_proxy_is_ignored_and_named(
    kind: Any, entry: str, monkeypatch: pytest.MonkeyPatch, closing: Callable[[Any], Any]
) -> None:
    """With such an entry httpx makes no client; the other entries and the proxy still count."""
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", f"{entry},internal.example,10.1.2.3,::1")
    with pytest.raises(httpx.InvalidURL):
        kind()
    warnings: list[str] = []
    client = closing(new_client(kind, warn=warnings.append))
    assert warnings == [f"NO_PROXY: {entry!r} is not a host name or an address, and is ignored"]

    def proxied(url: str) -> bool:
        """Return whether a request to the URL goes through the proxy."""
        return client._transport_for_url(httpx.URL(url)) is not client._transport

    assert proxied("https://id.example")
    for url in ("https://internal.example", "https://a.internal.example", "https://10.1.2.3", "https://[::1]"):
        assert not proxied(url)


@KINDS
def test_brackets_around_an_address_are_understood(
    kind: Any, monkeypatch: pytest.MonkeyPatch, closing: Callable[[Any], Any]
) -> None:
    """Many people write "[::1]" into NO_PROXY, and httpx does not read it."""
    monkeypatch.setenv("ALL_PROXY", "http://proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", "[::1],localhost")
    client = closing(new_client(kind, warn=pytest.fail))
    assert client._transport_for_url(httpx.URL("http://[::1]:9")) is client._transport
    assert client._transport_for_url(httpx.URL("http://localhost:9")) is client._transport
    assert client._transport_for_url(httpx.URL("http://id.example")) is not client._transport


@KINDS
def test_a_proxy_that_cannot_be_read_is_an_error_of_httpx(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request must not go around a proxy that is set but misspelt."""
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:port")
    with pytest.raises(httpx.InvalidURL):
        new_client(kind)


@pytest.mark.parametrize(
    ("host", "own"), [("a.b.localhost", True), ("localhost.example", False), ("xlocalhost", False)]
)
def test_loopback_names(host: str, own: bool) -> None:
    """RFC 6761 section 6.3: names under localhost are this machine, and no others."""
    assert is_loopback(host) is own


def test_the_doctor_warns_of_http_beyond_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """The credential goes unencrypted; on loopback that is fine."""
    with TokenServer() as server:
        monkeypatch.setattr("socket.getaddrinfo", _resolve_to_loopback(server.url))
        port = httpx.URL(server.url).port
        marks = {
            host: {each.check: each.mark for each in reach(f"http://{host}:{port}/t")}
            for host in ("id.mesh", "127.0.0.1")
        }
    assert (marks["id.mesh"]["TLS"], marks["127.0.0.1"]["TLS"]) == ("warning", "ok")


def _resolve_to_loopback(url: str) -> Callable[..., list[Any]]:
    """Return a resolver that knows one address."""
    import socket

    real = socket.getaddrinfo

    def resolve(host: str, *args: Any, **kwargs: Any) -> list[Any]:
        del host
        return real("127.0.0.1", *args, **kwargs)

    del url
    return resolve


@KINDS
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "id.localhost", "[::1]"])
def test_no_proxy_sees_what_goes_to_this_machine(
    kind: Any, host: str, monkeypatch: pytest.MonkeyPatch, closing: Callable[[Any], Any]
) -> None:
    """Http is allowed on loopback, so a proxy of the environment would see the credential in clear text."""
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.example:3128")
    client = closing(new_client(kind))
    assert client._transport_for_url(httpx.URL(f"http://{host}:9/t")) is client._transport
    assert client._transport_for_url(httpx.URL("http://id.example/t")) is not client._transport
