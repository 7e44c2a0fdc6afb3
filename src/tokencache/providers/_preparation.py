"""What the first request of a process needs: modules that httpx imports late, and the certificates of the machine."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Final

from tokencache._engine.launcher import on_thread
from tokencache.providers.transport import shared_trust

if TYPE_CHECKING:
    import ssl

_MODULES: Final = ("httpcore", "anyio._backends._asyncio")  # the second is imported at the first connection
_turns: Final[dict[int, threading.Lock]] = {}  # a lock for each process id: an inherited one may be held for ever


async def prepare(verify: ssl.SSLContext | None) -> None:
    """Load them on a thread, because that takes long enough to stall an event loop; at most once per process."""
    missing = [name for name in _MODULES if name not in sys.modules]
    if missing or (verify is None and not shared_trust.cache_info().currsize):
        await on_thread(lambda: _load(missing, verify))


def _load(modules: list[str], verify: ssl.SSLContext | None) -> None:
    """Import the modules, and read the certificates unless the provider has TLS settings of its own."""
    for name in modules:
        with suppress(ImportError):
            import_module(name)
    if verify is None:
        with _turns.setdefault(os.getpid(), threading.Lock()), suppress(OSError, ValueError):
            shared_trust()  # making the client fails in the same way, and reports it
