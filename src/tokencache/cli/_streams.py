"""The standard streams of a process, which handle failed writes themselves.

typer and rich each treat a broken pipe in their own way, and the interpreter flushes again at its exit. A stream below
all of them handles the failure once.
"""

from __future__ import annotations

import io
import os
import sys
from errno import EAGAIN
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class Stream(io.FileIO):
    """The lowest layer of a standard stream: it keeps its first ``failure`` and discards later writes.

    With ``ends`` the first failure raises ``SystemExit``: without a reader the process has no more work.
    A write never raises ``OSError``.
    """

    failure: OSError | None = None

    def __init__(self, descriptor: int, *, ends: bool) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._ends = ends

    def write(self, data: ReadableBuffer, /) -> int:
        """Write, and return the number of bytes written."""
        if self.failure is None:
            try:
                return self._written(data)
            except OSError as error:
                self.failure = error
            if self._ends:
                raise SystemExit(1)
        return memoryview(data).nbytes

    def _written(self, data: ReadableBuffer) -> int:
        """Write; raises ``OSError``, also for a full pipe that does not block."""
        written: int | None = super().write(data)
        if written is None:
            raise BlockingIOError(EAGAIN, os.strerror(EAGAIN))
        return written


def replace_streams() -> Stream:
    """Put a :class:`Stream` below ``sys.stdout`` and ``sys.stderr``; only a failure of stdout ends the process.

    Returns the one of stdout.
    """
    sys.stderr, _ = _replaced(sys.stderr, 2, ends=False)
    sys.stdout, stdout = _replaced(sys.stdout, 1, ends=True)
    return stdout


def _replaced(text: TextIO | None, descriptor: int, *, ends: bool) -> tuple[TextIO, Stream]:
    """Return the replacement of a standard stream, and its lowest layer. A stream closed at start is ``None``."""
    # A closed descriptor may belong to another file by now. So use one that is not writable: its writes fail too.
    stream = Stream(os.open(os.devnull, os.O_RDONLY) if text is None else descriptor, ends=ends)
    encoding, errors = ("utf-8", "replace") if text is None else (text.encoding, text.errors)
    by_line = stream.isatty() or not ends  # stderr always
    return io.TextIOWrapper(io.BufferedWriter(stream), encoding, errors, line_buffering=by_line), stream
