"""The standard streams of a process: what a failure to write one of them does, whichever library is printing.

typer and rich each treat a broken pipe in their own way, and the interpreter flushes once more at its exit. So the
stream itself, below all of them, handles the failure.
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
    """The lowest layer of a standard stream: it keeps its first ``failure``, and drops what is written after it.

    With ``ends`` the first failure raises ``SystemExit``, so that the process does no work for a reader that left.
    No write raises ``OSError``.
    """

    failure: OSError | None = None

    def __init__(self, descriptor: int, *, ends: bool) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._ends = ends

    def write(self, data: ReadableBuffer, /) -> int:
        """Write, and return how many bytes were taken."""
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

    Returns that of stdout.
    """
    sys.stderr, _ = _replaced(sys.stderr, 2, ends=False)
    sys.stdout, stdout = _replaced(sys.stdout, 1, ends=True)
    return stdout


def _replaced(text: TextIO | None, descriptor: int, *, ends: bool) -> tuple[TextIO, Stream]:
    """Return what replaces a standard stream, which is ``None`` if it was closed at start, and its lowest layer."""
    # A closed descriptor may be another file's by now. One that takes no writes fails as the closed one did.
    stream = Stream(os.open(os.devnull, os.O_RDONLY) if text is None else descriptor, ends=ends)
    encoding, errors = ("utf-8", "replace") if text is None else (text.encoding, text.errors)
    by_line = stream.isatty() or not ends  # stderr, in any case
    return io.TextIOWrapper(io.BufferedWriter(stream), encoding, errors, line_buffering=by_line), stream
