"""The QPay checks of `tokencache doctor`: the form of the credentials, the base URL, and the way to its server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tokencache.health import Finding, ok, warning
from tokencache.providers.reach import reach

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator

__all__ = ["examine"]

_SHARED: Final = "TEST_MERCHANT"  # the shared sandbox merchant that QPay publishes
_QUOTES: Final = "\"'"


def examine(
    *, base_url: str, client_id: str, client_secret: str, hosts: tuple[str, str], verify: ssl.SSLContext | None = None
) -> Iterator[Finding]:
    """Yield the findings, without credentials; ``hosts`` are the addresses of production and of the sandbox."""
    yield _credentials(client_id, client_secret)
    yield _address(base_url, hosts, shared=client_id == _SHARED)
    yield from reach(base_url, verify=verify)


def _credentials(client_id: str, client_secret: str) -> Finding:
    """Return whether the credentials look intact."""
    for name, text in (("client_id", client_id), ("client_secret", client_secret)):
        quoted = len(text) > 1 and text[0] == text[-1] and text[0] in _QUOTES
        if quoted or text != text.strip():
            remedy = f"check QPAY_{name.upper()} for quotes and spaces around it: an env file may have kept them"
            return warning("credentials", f"the {name} is in quotes, or begins or ends with a space (hidden)", remedy)
    return ok("credentials", "client_id and client_secret are present (hidden)")


def _address(base_url: str, hosts: tuple[str, str], *, shared: bool) -> Finding:
    """Return which server of QPay is used, and whether the merchant belongs there."""
    production, sandbox = hosts
    if base_url == production:
        if shared:
            remedy = f"set QPAY_BASE_URL={sandbox}, or the credentials of your own merchant"
            return warning("base URL", f"{base_url}, production, with the shared merchant of the sandbox", remedy)
        return ok("base URL", f"{base_url}, production")
    if base_url == sandbox:
        return ok("base URL", f"{base_url}, the sandbox: no real money moves")
    return ok("base URL", f"{base_url}, neither QPay's production ({production}) nor its sandbox")
