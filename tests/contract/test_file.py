"""The contract of backends, tested on the file backend."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokencache.backends.file import FileBackend
from tokencache.testing.contract import BackendContract

if TYPE_CHECKING:
    from pathlib import Path


class TestFileBackend(BackendContract):
    """The laws, on files in a temporary folder."""

    def make_backend(self, tmp_path: Path) -> FileBackend:
        """Return a backend in an empty folder."""
        return FileBackend(tmp_path / "tokens")
