"""The Redis backend: ``redis://``, ``rediss://``, ``unix://``, ``redis+sentinel://`` and ``redis+cluster://``."""

from tokencache.backends.redis._backend import RedisBackend, from_url

__all__ = ["RedisBackend", "from_url"]
