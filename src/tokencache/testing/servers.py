"""Real servers for live tests, started on free loopback ports in folders of their own, and a proxy that injects faults.

Each server is a context manager, which waits until the server answers and stops it by its process id. The server also
ends when the process that started it is killed. Other servers of the machine are not touched::

    require("redis-server")
    with RedisServer("--maxmemory", "2mb") as server, Proxy(server.port) as proxy:
        backend = TokenCache(f"redis://127.0.0.1:{proxy.port}")
        proxy.drop_next_reply(to=b"EVALSHA")
        server.kill()
        server.restart()
"""

from tokencache.testing._memcached_server import MemcachedServer
from tokencache.testing._proxy import Proxy
from tokencache.testing._redis_fleets import RedisCluster, RedisSentinels
from tokencache.testing._redis_server import Certificates, RedisSentinel, RedisServer
from tokencache.testing._resp import CommandRefused, Reply
from tokencache.testing._server_process import ServerFailed, ServerNotInstalled, ServerProcess, require

__all__ = [
    "Certificates",
    "CommandRefused",
    "MemcachedServer",
    "Proxy",
    "RedisCluster",
    "RedisSentinel",
    "RedisSentinels",
    "RedisServer",
    "Reply",
    "ServerFailed",
    "ServerNotInstalled",
    "ServerProcess",
    "require",
]
