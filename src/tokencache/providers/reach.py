"""Checks of the way to a provider's server (name resolution, TLS, clock), for the ``findings`` of an HTTP provider.

They send one request without credentials, and read only the ``Date`` of its answer.
"""

from __future__ import annotations

import socket
import ssl
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final
from urllib.request import getproxies, proxy_bypass

import httpx

from tokencache._log_safe import log_safe_text
from tokencache.health import Finding, compare_clocks, failed, ok, skipped, warning
from tokencache.providers.oauth_response import date_of
from tokencache.providers.transport import host_of, is_loopback, new_client, shared_trust

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["reach"]

_PATIENCE: Final = 5.0
_SOON: Final = 14 * 86_400.0
_DAY: Final = 86_400.0


def reach(url: str, *, verify: ssl.SSLContext | None = None, timeout: float = _PATIENCE) -> Iterator[Finding]:
    """Yield whether the host of ``url`` has an address, has a valid certificate, answers, and agrees on the time.

    ``verify`` holds the TLS settings of the provider, ``timeout`` limits each step, in seconds.
    """
    address = httpx.URL(url).copy_with(userinfo=b"", query=None)
    where = host_of(address)
    proxied = _proxy_of(address)
    if proxied:
        yield skipped("name resolution", f"{where} is reached through a proxy, which resolves its name")
        yield skipped("TLS", f"{where} is reached through a proxy; the clock check shows whether that works")
    else:
        resolved = _resolve(address)
        yield resolved
        if resolved.mark == "failed":
            yield skipped("TLS", f"{where} has no address")
            yield skipped("clock", f"{where} has no address")
            return
        secured = _handshake(address, verify or shared_trust(), timeout)
        yield secured
        if secured.mark == "failed":
            yield skipped("clock", f"no connection to {where}")
            return
    yield _compared(address, verify or shared_trust(), timeout)


def _proxy_of(address: httpx.URL) -> bool:
    """Return whether the environment makes httpx send requests to this address through a proxy."""
    proxies = getproxies()
    return bool(proxies.get(address.scheme) or proxies.get("all")) and not proxy_bypass(address.host)


def _resolve(address: httpx.URL) -> Finding:
    """Return whether the host has an address."""
    try:
        found = socket.getaddrinfo(address.host, _port(address), type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        return failed(
            "name resolution",
            f"{address.host} has no address{log_safe_text(error)}",
            "check the spelling of the host and the name server of this machine (in a container: its network)",
        )
    places = list(dict.fromkeys(str(place[0]) for *_, place in found))
    more = f" and {len(places) - 2} more" if len(places) > 2 else ""  # noqa: PLR2004
    return ok("name resolution", f"{address.host} is {', '.join(places[:2])}{more}")


def _handshake(address: httpx.URL, trust: ssl.SSLContext, timeout: float) -> Finding:
    """Return whether the host answers with a trusted certificate."""
    where = host_of(address)
    try:
        with socket.create_connection((address.host, _port(address)), timeout) as plain:
            if address.scheme != "https" and is_loopback(address.host):
                return ok("TLS", f"not used: {address.scheme}:// on {where}, which accepts connections")
            if address.scheme != "https":
                remedy = "use https://, or make sure that the network between encrypts (a service mesh)"
                return warning("TLS", f"not used: {where} gets the credential unencrypted (allow_http)", remedy)
            with trust.wrap_socket(plain, server_hostname=address.host) as secured:
                return _certified(where, secured)
    except ssl.SSLCertVerificationError as error:
        remedy = "check the host, this machine's date, and its trusted CAs (SSL_CERT_FILE, a private CA)"
        return failed("TLS", f"{where}: the certificate is not trusted{log_safe_text(error)}", remedy)
    except ssl.SSLError as error:
        remedy = "check that the address belongs to the provider and serves https"
        return failed("TLS", f"{where}: the TLS handshake failed{log_safe_text(error)}", remedy)
    except OSError as error:
        remedy = "check the address, the network and the firewall: the provider may admit only known addresses"
        why = f" (no answer within {timeout:g} s)" if isinstance(error, TimeoutError) else log_safe_text(error)
        return failed("TLS", f"{where} cannot be reached{why}", remedy)


def _certified(where: str, secured: ssl.SSLSocket) -> Finding:
    """Return how long the certificate of an open connection is valid."""
    spoken = secured.version() or "TLS"
    left: float | None = None
    with suppress(ValueError, KeyError, TypeError):
        left = ssl.cert_time_to_seconds(str((secured.getpeercert() or {})["notAfter"])) - time.time()
    if left is None:
        return ok("TLS", f"{where}: {spoken}")
    seen = f"{where}: {spoken}, certificate valid for {left / _DAY:.0f} days"
    if left < _SOON:
        return warning("TLS", seen, "the provider must renew it; expect a failure on that day")
    return ok("TLS", seen)


def _compared(address: httpx.URL, trust: ssl.SSLContext, timeout: float) -> Finding:
    """Return how this machine's clock compares with the ``Date`` of an answer."""
    where = host_of(address)
    before, started = time.time(), time.monotonic()
    try:
        with new_client(httpx.Client, verify=trust, timeout=timeout) as client:
            response = client.head(address, headers={"User-Agent": "tokencache"})
    except (httpx.HTTPError, OSError, ValueError, ImportError) as error:
        remedy = "check the network, and the proxy variables (HTTPS_PROXY, ALL_PROXY, NO_PROXY) if there are any"
        return failed("clock", f"{where} gave no answer ({type(error).__name__}{log_safe_text(error)})", remedy)
    ours = (before, before + time.monotonic() - started)
    date = date_of(response)
    if date is None:
        return skipped("clock", f"{where} answers without a Date")
    return compare_clocks(where, theirs=(date, date + 1.0), ours=ours)


def _port(address: httpx.URL) -> int:
    """Return the port of an address."""
    return address.port or (443 if address.scheme == "https" else 80)
