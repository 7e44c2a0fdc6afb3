"""The file backend: ``file://``."""

from tokencache.backends.file._backend import FileBackend, from_url

__all__ = ["FileBackend", "from_url"]
