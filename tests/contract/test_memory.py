"""The contract of backends, tested on the memory backend."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokencache.backends.memory import MemoryBackend
from tokencache.testing.contract import BackendContract

if TYPE_CHECKING:
    from pathlib import Path


class TestMemoryBackend(BackendContract):
    """The laws, on a backend in this process."""

    def make_backend(self, tmp_path: Path) -> MemoryBackend:
        """Return an empty backend."""
        return MemoryBackend()
