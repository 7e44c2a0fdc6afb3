"""Functions for the HTTP clients of providers: safe addresses, TLS settings and handshakes, texts for failures.

The built-in providers and the QPay plugin use these functions; your own provider may use them too.
"""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar, cast
from urllib.request import getproxies

import httpx

from tokencache._log_safe import log_safe_text
from tokencache.errors import ConfigurationError

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable
    from http.cookiejar import CookieJar

    import httpcore

    Trace: TypeAlias = Callable[[str, dict[str, object]], Awaitable[None]]

__all__ = ["closing_handshake", "host_of", "is_loopback", "new_client", "secure_url", "shared_trust", "what_failed"]

_Client = TypeVar("_Client", httpx.Client, httpx.AsyncClient)
_DIRECT: Final[dict[str, None]] = dict.fromkeys(
    ["all://localhost", "all://*.localhost", "all://127.0.0.1", "all://[::1]"]
)
"""The addresses of this machine. http is allowed there, so a proxy would see the credential in clear text."""
_CERTIFICATE: Final = ("CERTIFICATE", "UNKNOWN_CA", "HANDSHAKE_FAILURE")  # TLS alerts for a bad or missing certificate


def closing_handshake() -> Trace:
    """Return the ``trace`` of one asynchronous request: it closes the socket of a cancelled TLS handshake.

    httpcore closes the socket of a failed handshake, but leaves that of a cancelled one to the garbage collection.
    """
    stream: httpcore.AsyncNetworkStream | None = None

    async def trace(event: str, info: dict[str, object]) -> None:
        nonlocal stream
        if event.endswith(".connect_tcp.complete"):
            stream = cast("httpcore.AsyncNetworkStream", info["return_value"])
        elif event.endswith(".start_tls.failed") and stream is not None:
            await stream.aclose()

    return trace


def host_of(url: httpx.URL) -> str:
    """Return host and port of an address, for messages."""
    return url.host if url.port is None else f"{url.host}:{url.port}"


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine."""
    if host == "localhost" or host.endswith(".localhost"):  # RFC 6761 section 6.3
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def secure_url(provider: str, setting: str, text: str, *, allow_http: bool = False) -> str:
    """Return an address to which a credential may be sent: https, or http on loopback; no user, no fragment.

    With ``allow_http`` it may be http anywhere, for a network that encrypts by other means. Raises
    ``ConfigurationError`` that names the setting.
    """
    try:
        url = httpx.URL(text.strip())
    except httpx.InvalidURL:
        url = None
    if url is None or url.scheme not in {"http", "https"} or not url.host or url.userinfo or url.fragment:
        message = f"[{provider}] {setting} must look like https://id.example/token, without user, password and fragment"
        raise ConfigurationError(message)
    if url.scheme == "http" and not is_loopback(url.host) and not allow_http:
        message = (
            f"[{provider}] {setting} must begin with https://: http:// sends the credential to {url.host} unencrypted;"
            " inside a network that encrypts by itself, such as a mesh, set allow_http=true"
        )
        raise ConfigurationError(message)
    return str(url)


@cache
def shared_trust() -> ssl.SSLContext:
    """Return the TLS settings of all our own clients, made once: reading the certificates is slow."""
    return httpx.create_ssl_context()


def new_client(
    kind: type[_Client],
    *,
    verify: ssl.SSLContext | None = None,
    warn: Callable[[str], None] | None = None,
    timeout: float = 5.0,
    cookies: CookieJar | None = None,
) -> _Client:
    """Return a new HTTP client that uses the proxies of the environment, as httpx does, but never for this machine.

    httpx makes no client at all if ``NO_PROXY`` holds an entry that it cannot read, such as ``fd00::/8``. Here the
    entry is ignored, and ``warn`` gets a text that names it. Raises what httpx raises.
    """
    trust = verify or shared_trust()
    try:
        return kind(verify=trust, timeout=timeout, cookies=cookies, mounts=dict(_DIRECT))
    except httpx.InvalidURL:
        mounts, ignored = _mounts(kind, trust)
    if ignored and warn is not None:
        warn(f"NO_PROXY: {', '.join(map(repr, ignored))} is not a host name or an address, and is ignored")
    mounts |= _DIRECT
    return kind(verify=trust, trust_env=False, mounts=mounts, timeout=timeout, cookies=cookies)


def _mounts(kind: type[httpx.Client | httpx.AsyncClient], trust: ssl.SSLContext) -> tuple[dict[str, Any], list[str]]:
    """Return httpx's ``mounts`` for the proxies of the environment, and the entries of ``NO_PROXY`` left out."""
    transport = httpx.HTTPTransport if kind is httpx.Client else httpx.AsyncHTTPTransport
    proxies = getproxies()
    mounts: dict[str, Any] = {}
    for scheme in ("http", "https", "all"):
        if proxy := proxies.get(scheme):
            mounts[f"{scheme}://"] = transport(proxy=proxy if "://" in proxy else f"http://{proxy}", verify=trust)
    ignored: list[str] = []
    for entry in filter(None, (each.strip() for each in proxies.get("no", "").split(","))):
        host = entry.strip("[]")
        pattern = f"all://{host}" if is_loopback(host) else f"all://*{host}"
        with suppress(ValueError):
            pattern = f"all://[{host}]" if ip_address(host).version == 6 else f"all://{host}"  # noqa: PLR2004
        try:
            httpx.URL(pattern)
        except httpx.InvalidURL:
            ignored.append(entry)
        else:
            mounts[pattern] = None
    return mounts, ignored


def what_failed(error: Exception, host: str, limit: float) -> str:  # noqa: PLR0911  one line per kind of failure
    """Return why no answer came, and the remedy; it quotes only log-safe text of the error."""
    detail = log_safe_text(error)
    match error:
        case httpx.PoolTimeout():
            return "the given HTTP client had no free connection; give it a larger pool"
        case httpx.ConnectTimeout():
            return f"could not connect to {host} within {limit:.1f} s; check the network with `tokencache doctor`"
        case httpx.TimeoutException() | TimeoutError():
            return f"{host} gave no complete answer within {limit:.1f} s; give it a longer timeout"
        case httpx.ProxyError():
            return f"the proxy refused the request to {host}; check the proxy settings"
        case httpx.TransportError() | OSError() if "ALERT" in detail and any(sign in detail for sign in _CERTIFICATE):
            return (
                f"{host} aborted the TLS handshake{detail}; it requires a client certificate that it trusts: set"
                " certificate and certificate_key"
            )
        case httpx.ConnectError():
            return f"could not connect to {host}{detail}; check the address and the network with `tokencache doctor`"
        case httpx.TransportError() | OSError():
            return f"the connection to {host} broke before the answer was complete{detail}; try again"
        case _:
            return f"the request to {host} failed with {type(error).__name__}; check the HTTP client"
