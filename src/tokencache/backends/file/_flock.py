"""Whole-file locks of the operating system, taken without waiting.

A lock belongs to an open file description, so it excludes threads as well as processes. The system frees it when the
last descriptor is closed, also when the process is killed.
"""

from __future__ import annotations

import os
from importlib.util import find_spec

from tokencache.errors import ConfigurationError


def require() -> None:
    """Raise ``ConfigurationError`` on a system without such locks."""
    if find_spec("fcntl") is None:
        message = (
            "the file backend needs POSIX file locks, which this system does not have; "
            "use another backend, for example memory:// or redis://"
        )
        raise ConfigurationError(message)


def seize(fd: int, *, shared: bool = False) -> bool:
    """Take the lock if it is free; return whether it was taken."""
    import fcntl

    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def free(fd: int) -> None:
    """Free the lock and close the descriptor.

    Unlocking comes first: closing alone does not free the lock while a forked child has a duplicate descriptor.
    """
    import fcntl

    try:
        fcntl.flock(fd, fcntl.LOCK_UN)
    finally:
        os.close(fd)
