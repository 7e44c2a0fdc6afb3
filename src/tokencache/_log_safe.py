"""What of a foreign error may be told: the system's own words, and nothing that came over the wire (INV-9)."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def system_words(error: BaseException) -> str:
    """Return what the operating system or the TLS library said, in brackets; nothing that came over the wire."""
    ssl = sys.modules.get("ssl")  # where nobody has loaded it, nothing of it was raised
    for link in _chain(error):
        if ssl is not None and isinstance(link, ssl.SSLCertVerificationError):
            return f" (certificate refused: {getattr(link, 'verify_message', 'not trusted')})"
        if ssl is not None and isinstance(link, ssl.SSLError):
            return f" (TLS: {getattr(link, 'reason', None) or 'failed'})"
        if isinstance(link, OSError) and isinstance(link.errno, int):
            return f" ({link.strerror or os.strerror(link.errno)})"
    return ""


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and what led to it, at most ten links."""
    link: BaseException | None = error
    for _ in range(10):
        if link is None:
            return
        yield link
        link = link.__cause__ or link.__context__
