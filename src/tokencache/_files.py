"""Files that a user names: configurations, secrets, certificates. Reading one always ends."""

from __future__ import annotations

import errno
import os
import stat
import time
from pathlib import Path
from typing import Final

_LARGEST: Final = 1 << 20
_PATIENCE: Final = 2.0
"""How long the other end of a pipe may take to write, in seconds."""
_FLAGS: Final[int] = sum(getattr(os, name, 0) for name in ("O_RDONLY", "O_CLOEXEC", "O_NONBLOCK", "O_BINARY"))


def expanded(path: str | os.PathLike[str]) -> Path:
    """Return the path with ``~`` expanded; a ``HOME`` that is not absolute counts as unset.

    Raises ``FileNotFoundError`` for an unknown user and for a user without a home folder.
    """
    path = Path(path)
    named = os.environ.get("HOME")
    try:
        if path.parts[:1] == ("~",) and named is not None and not Path(named).is_absolute():
            import pwd

            return Path(pwd.getpwuid(os.getuid()).pw_dir).joinpath(*path.parts[1:])
        return path.expanduser()
    except (RuntimeError, KeyError):
        raise FileNotFoundError(errno.ENOENT, "there is no such home folder", str(path)) from None


def content_of(path: str | os.PathLike[str], *, pipes: bool = False) -> bytes:
    """Return the content of a file of up to 1 MiB.

    ``pipes`` allows a pipe, if its other end writes everything within seconds: a shell's ``<(command)``, or the FIFO
    of a password manager. Raises ``OSError`` for everything else that is not a regular file, and if reading fails.
    """
    try:
        fd = os.open(expanded(path), _FLAGS)  # without O_NONBLOCK, opening a FIFO would wait for a writer
    except ValueError:
        raise OSError(errno.EINVAL, "a path cannot hold a NUL character") from None
    try:
        mode = os.fstat(fd).st_mode
        pipe = pipes and stat.S_ISFIFO(mode)
        if not (pipe or stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # reading a folder raises the right error
            raise OSError(errno.EINVAL, "it is not a regular file")
        data, until = b"", time.monotonic() + _PATIENCE
        while part := _part(fd, until if pipe else None):
            data += part
            if len(data) > _LARGEST:
                raise OSError(errno.EFBIG, f"it is larger than {_LARGEST} bytes")
        return data
    finally:
        os.close(fd)


def _part(fd: int, until: float | None) -> bytes:
    """Return the next bytes, none at the end; wait for those of a pipe."""
    if until is not None:
        import select

        poll = select.poll()
        poll.register(fd, select.POLLIN)
        if not poll.poll(1000 * max(0.0, until - time.monotonic())):
            raise TimeoutError(errno.ETIMEDOUT, f"the other end of this pipe did not finish within {_PATIENCE:g} s")
    return os.read(fd, _LARGEST + 1)
