"""The client libraries of the backends: the oldest version that works, and the check for it."""

from __future__ import annotations

import re
from importlib import import_module
from typing import Final

from tokencache.errors import BackendNotInstalled

_OLDEST: Final = {"redis": (6, 2), "pymemcache": (4, 0)}
"""Before redis-py 6.2, the async cluster client never returned a connection. Tests run exactly these versions."""


def version_of(library: str, *, extra: str) -> tuple[int, ...]:
    """Return the version of a client library; raises ``BackendNotInstalled`` if it is too old."""
    text: str = import_module(library).__version__
    version = tuple(int(number) for number in re.findall(r"\d+", text)[:3])
    oldest = _OLDEST[library]
    if version < oldest:
        least = ".".join(map(str, oldest))
        message = f"tokencache needs {library} {least} or newer, {text} is installed: pip install 'tokencache[{extra}]'"
        raise BackendNotInstalled(message)
    return version
