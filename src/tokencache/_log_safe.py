"""Log-safe text of a third-party exception: the reason that the system gives, and no received data (INV-9)."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def log_safe_text(error: BaseException) -> str:
    """Return the reason that the operating system or the TLS library gives, in brackets; without one, ``""``."""
    ssl = sys.modules.get("ssl")  # not imported, because a module that is not loaded has raised no error
    for link in _chain(error):
        if ssl is not None and isinstance(link, ssl.SSLCertVerificationError):
            return f" (certificate refused: {getattr(link, 'verify_message', 'not trusted')})"
        if ssl is not None and isinstance(link, ssl.SSLError):
            return f" (TLS: {getattr(link, 'reason', None) or 'failed'})"
        if isinstance(link, OSError) and isinstance(link.errno, int):
            return f" ({link.strerror or os.strerror(link.errno)})"
    return ""


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and its causes, at most ten."""
    link: BaseException | None = error
    for _ in range(10):
        if link is None:
            return
        yield link
        link = link.__cause__ or link.__context__
