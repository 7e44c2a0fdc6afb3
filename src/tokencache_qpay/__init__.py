"""The QPay V2 plugin of tokencache. Its names are loaded on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokencache_qpay.provider import QPayProvider

__all__ = ["QPayProvider"]


def __getattr__(name: str) -> object:
    """Load a public name when it is first asked for (PEP 562)."""
    if name == "QPayProvider":
        from tokencache_qpay.provider import QPayProvider

        return QPayProvider
    message = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(message)


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(__all__)
