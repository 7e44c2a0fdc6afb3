"""Every way to share a token between processes: tokencache, the limit, and each peer, as its documents show.

A way takes a :class:`Setting` and returns the function for callers, sync or async.
"""

from __future__ import annotations

import inspect
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from suite.results import Kind

KEY = "bench:token"
LIFETIME = 3600


@dataclass(frozen=True, slots=True)
class Setting:
    """The addresses of the login and the stores. ``lifetime`` is the lifetime of a token, in seconds."""

    login: str
    redis: str
    memcached: str
    folder: str
    lifetime: int = LIFETIME

    def client(self) -> Callable[[], dict[str, Any]]:
        """Return a login from threads; like every way, it connects at its first call."""
        import httpx

        client = httpx.Client(auth=("TEST_MERCHANT", "123456"), timeout=60)

        def login() -> dict[str, Any]:
            reply = client.post(f"{self.login}/v2/auth/token").raise_for_status()
            return {"access_token": reply.json()["access_token"], "expires_in": self.lifetime}

        return login

    def aclient(self) -> Callable[[], Any]:
        """Return a login from an event loop."""
        import httpx

        client = httpx.AsyncClient(auth=("TEST_MERCHANT", "123456"), timeout=60)

        async def login() -> dict[str, Any]:
            reply = (await client.post(f"{self.login}/v2/auth/token")).raise_for_status()
            return {"access_token": reply.json()["access_token"], "expires_in": self.lifetime}

        return login


def _ours(setting: Setting, url: str) -> Callable[[], Any]:
    """Return a source on this store."""
    from tokencache import TokenCache

    source = TokenCache(url).source(setting.client(), key=KEY)
    source.key  # noqa: B018  (derived once per process, not measured)
    return lambda: source.token().value


def tokencache_redis(setting: Setting) -> Callable[[], Any]:
    """Return a source on Redis."""
    return _ours(setting, setting.redis)


def tokencache_memcached(setting: Setting) -> Callable[[], Any]:
    """Return a source on memcached."""
    return _ours(setting, setting.memcached)


def tokencache_file(setting: Setting) -> Callable[[], Any]:
    """Return a source on a folder."""
    return _ours(setting, f"file://{setting.folder}")


def tokencache_loop(setting: Setting) -> Callable[[], Any]:
    """Return a source on Redis, for an event loop."""
    from tokencache import TokenCache

    source = TokenCache(setting.redis).source(setting.aclient(), key=KEY)
    source.key  # noqa: B018  (as above)

    async def get() -> str:
        return (await source.atoken()).value

    return get


def by_hand(setting: Setting) -> Callable[[], Any]:
    """Return the minimal code: a single flight per process, a lock with an expiry, the token in a message."""
    from redis import Redis

    redis, login = Redis.from_url(setting.redis, decode_responses=True), setting.client()
    lock = threading.Lock()
    known: list[str] = []

    def fetch() -> str:
        token = str(login()["access_token"])
        redis.set(KEY, token, ex=setting.lifetime)
        redis.publish(f"{KEY}:ready", token)
        redis.delete(f"{KEY}:lock")
        return token

    def shared() -> str:
        token = redis.get(KEY)
        if token is not None:
            return str(token)
        with redis.pubsub(ignore_subscribe_messages=True) as messages:
            messages.subscribe(f"{KEY}:ready")
            messages.get_message(timeout=1)
            while token is None:
                if redis.set(f"{KEY}:lock", "mine", nx=True, px=3000):
                    token = redis.get(KEY) or fetch()
                else:
                    message = messages.get_message(timeout=3)
                    token = message["data"] if message else redis.get(KEY)
        return str(token)

    def get() -> str:
        if known:
            return known[0]
        with lock:
            if not known:
                known.append(shared())
            return known[0]

    return get


def by_hand_loop(setting: Setting) -> Callable[[], Any]:
    """Return the minimal code for one event loop: one task asks Redis, then the provider; the others await it."""
    import asyncio

    from redis.asyncio import Redis

    redis, login = Redis.from_url(setting.redis, decode_responses=True), setting.aclient()
    flight: list[asyncio.Task[str]] = []

    async def fetch() -> str:
        token = await redis.get(KEY)
        if token is None and await redis.set(f"{KEY}:lock", "mine", nx=True, px=3000):
            token = str((await login())["access_token"])
            await redis.set(KEY, token, ex=setting.lifetime)
            await redis.publish(f"{KEY}:ready", token)
            await redis.delete(f"{KEY}:lock")
        return str(token)

    async def get() -> str:
        if not flight:
            flight.append(asyncio.create_task(fetch()))
        return await asyncio.shield(flight[0])

    return get


def redis_lock(setting: Setting) -> Callable[[], Any]:
    """Return a read, then redis-py's ``Lock`` by default settings, then another read."""
    from redis import Redis

    redis, login = Redis.from_url(setting.redis, decode_responses=True), setting.client()

    def get() -> str:
        token = redis.get(KEY)
        if token is None:
            with redis.lock(f"{KEY}:lock"):
                token = redis.get(KEY)
                if token is None:
                    token = login()["access_token"]
                    redis.set(KEY, token, ex=setting.lifetime)
        return str(token)

    return get


def dogpile_redis(setting: Setting) -> Callable[[], Any]:
    """Return ``get_or_create`` of a region on Redis with its distributed lock."""
    from dogpile.cache import make_region

    arguments = {"url": setting.redis, "distributed_lock": True, "thread_local_lock": False}
    return _dogpile(setting, make_region().configure("dogpile.cache.redis", setting.lifetime, arguments))


def dogpile_memcached(setting: Setting) -> Callable[[], Any]:
    """Return ``get_or_create`` of a region on memcached with its distributed lock."""
    from dogpile.cache import make_region

    arguments = {"url": [setting.memcached.removeprefix("memcached://")], "distributed_lock": True}
    return _dogpile(setting, make_region().configure("dogpile.cache.pymemcache", setting.lifetime, arguments))


def _dogpile(setting: Setting, region: Any) -> Callable[[], Any]:  # noqa: ANN401  (not typed)
    """Return ``get_or_create`` of a region."""
    login = setting.client()
    return lambda: region.get_or_create(KEY.replace(":", "-"), lambda: login()["access_token"])


def meta_memcache(setting: Setting) -> Callable[[], Any]:
    """Return ``get_or_lease`` of meta-memcache with its default policy."""
    from meta_memcache import CacheClient, Key, ServerAddress
    from meta_memcache.configuration import LeasePolicy, connection_pool_factory_builder

    host, _, port = setting.memcached.removeprefix("memcached://").partition(":")
    pools = connection_pool_factory_builder()
    client = CacheClient.cache_client_from_servers([ServerAddress(host, int(port))], pools)
    login, key, policy = setting.client(), Key("bench-token"), LeasePolicy()

    def get() -> str:
        token = client.get_or_lease(key, policy)
        if token is None:
            token = login()["access_token"]
            client.set(key, token, ttl=setting.lifetime)
        return str(token)

    return get


def cashews_redis(setting: Setting) -> Callable[[], Any]:
    """Return a coroutine decorated with cashews on Redis, with its lock."""
    from cashews import Cache

    cache, login = Cache(), setting.aclient()
    cache.setup(setting.redis)

    @cache(ttl=setting.lifetime, key=KEY, lock=True)
    async def get() -> str:
        return str((await login())["access_token"])

    return get


def aiocache_redis(setting: Setting) -> Callable[[], Any]:
    """Return a coroutine decorated with aiocache on Redis, with its protection."""
    from aiocache import Cache, cached_stampede

    host, _, port = setting.redis.removeprefix("redis://").partition("/")[0].partition(":")
    login = setting.aclient()

    @cached_stampede(lease=2, ttl=setting.lifetime, key=KEY, cache=Cache.REDIS, endpoint=host, port=int(port))
    async def get() -> str:
        return str((await login())["access_token"])

    return get


def unprotected(setting: Setting) -> Callable[[], Any]:
    """Return a read of Redis, and a login if it is empty."""
    from redis import Redis

    redis, login = Redis.from_url(setting.redis, decode_responses=True), setting.client()

    def get() -> str:
        token = redis.get(KEY)
        if token is None:
            token = login()["access_token"]
            redis.set(KEY, token, ex=setting.lifetime)
        return str(token)

    return get


@dataclass(frozen=True, slots=True)
class Shared:
    """A way to share a token, and its store."""

    name: str
    make: Callable[[Setting], Callable[[], Any]]
    kind: Kind = "peer"
    store: str = "redis"
    loop: bool = False


WAYS = (
    Shared("tokencache, Redis", tokencache_redis, "ours"),
    Shared("by hand: one flight, lock, pub/sub", by_hand, "limit"),
    Shared("tokencache, memcached", tokencache_memcached, "ours", "memcached"),
    Shared("tokencache, file", tokencache_file, "ours", "file"),
    Shared("cashews, lock", cashews_redis, loop=True),
    Shared("dogpile.cache on Redis, distributed lock", dogpile_redis),
    Shared("redis-py Lock, looked twice", redis_lock),
    Shared("aiocache, cached_stampede", aiocache_redis, loop=True),
    Shared("dogpile.cache on pymemcache, distributed lock", dogpile_memcached, store="memcached"),
    Shared("meta-memcache, get_or_lease", meta_memcache, store="memcached"),
    Shared("no protection", unprotected),
)
LOOPS = (
    Shared("tokencache, Redis", tokencache_loop, "ours", loop=True),
    Shared("by hand: one task", by_hand_loop, "limit", loop=True),
    Shared("cashews, lock", cashews_redis, loop=True),
    Shared("aiocache, cached_stampede", aiocache_redis, loop=True),
)


def is_async(get: Callable[[], Any]) -> bool:
    """Return whether ``get`` must be awaited."""
    return inspect.iscoroutinefunction(get)
