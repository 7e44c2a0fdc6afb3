"""The memcached backend: ``memcached://``."""

from tokencache.backends.memcached._backend import MemcachedBackend, from_url

__all__ = ["MemcachedBackend", "from_url"]
