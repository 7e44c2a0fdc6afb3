"""A shared get: another process's token, read from the store and decoded; with client and server on one CPU."""

from __future__ import annotations

import asyncio
import os
import socket
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from suite.measure import in_turns, ratio, timed, timed_async
from suite.results import Row, middle
from tokencache.testing.servers import MemcachedServer, RedisServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from suite.plan import Plan
    from suite.results import Kind

REDIS, MEMCACHED, FILE = "shared get, Redis", "shared get, memcached", "shared get, file"
SIZES = "shared get, token size"
LIMITS = {REDIS: "redis-py GET", MEMCACHED: "pymemcache get", FILE: "bare read"}
TOKENS = (100, 1_200, 8_000, 64_000)
SIZE = 1_000
LOGIN = 0.25


@contextmanager
def one_cpu(*processes: int) -> Iterator[None]:
    """Keep this process and the servers on one CPU during the block."""
    before = os.sched_getaffinity(0)
    threads = [0, *(int(task.name) for process in processes for task in Path(f"/proc/{process}/task").iterdir())]
    for thread in threads:  # memcached answers from several threads; all of them must be pinned
        os.sched_setaffinity(thread, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def ours(url: str, size: int = SIZE) -> tuple[str, Callable[[], object], bytes]:
    """Return the key, a get without a local copy (load and decode), and the stored record."""
    from tokencache import TokenCache
    from tokencache._record import decode
    from tokencache.plugins import open_backend

    backend = open_backend(url)
    source = TokenCache(backend).source(lambda: {"access_token": "x" * size, "expires_in": 3600}, key="shared")
    source.token()
    key = source.key

    def get() -> object:
        stored = backend.load(key)
        assert stored is not None
        return decode(stored.data)

    return key, get, backend.load(key).data


def raw_redis(port: int, key: str) -> Callable[[], bytes]:
    """Return GET on a bare socket."""
    connection = socket.create_connection(("127.0.0.1", port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    request = f"*2\r\n$3\r\nGET\r\n${len(key)}\r\n{key}\r\n".encode()

    def get() -> bytes:
        connection.sendall(request)
        reply = connection.recv(1 << 17)
        size = int(reply[1 : reply.index(b"\r\n")])
        whole = reply.index(b"\r\n") + size + 4
        while len(reply) < whole:
            reply += connection.recv(1 << 17)
        return reply

    return get


def redis_ways(server: RedisServer, size: int = SIZE) -> dict[str, tuple[Kind, Any]]:
    """Return the ways on Redis; every peer reads the same bytes."""
    from dogpile.cache import make_region
    from redis import Redis

    key, get, record = ours(server.url, size)
    plain = Redis.from_url(server.url)
    region = make_region().configure("dogpile.cache.redis", 3600, {"url": server.url})
    region.set("dogpile", record.decode())
    return {
        "tokencache": ("ours", get),
        "redis-py GET": ("limit", lambda: plain.get(key)),
        "raw socket": ("limit", raw_redis(server.port, key)),
        "dogpile.cache": ("peer", lambda: region.get("dogpile")),
    }


async def redis_loops(server: RedisServer, record: str) -> dict[str, tuple[Kind, Any]]:
    """Return the ways on Redis for event loops."""
    from cashews import Cache
    from redis.asyncio import Redis

    from tokencache._record import decode
    from tokencache.plugins import open_backend

    aio, plain, cache = open_backend(server.url).aio(), Redis.from_url(server.url), Cache()
    cache.setup(server.url)
    await cache.set("cashews", record, expire=3600)

    async def get() -> object:
        return decode((await aio.load("shared")).data)

    return {
        "tokencache, event loop": ("ours", get),
        "redis.asyncio GET": ("limit", lambda: plain.get("shared")),
        "cashews": ("peer", lambda: cache.get("cashews")),
    }


def memcached_ways(server: MemcachedServer, size: int = SIZE) -> dict[str, tuple[Kind, Any]]:
    """Return the ways on memcached."""
    from dogpile.cache import make_region
    from meta_memcache import CacheClient, Key, ServerAddress
    from meta_memcache.configuration import connection_pool_factory_builder
    from pymemcache import Client

    key, get, record = ours(server.url, size)
    plain = Client(("127.0.0.1", server.port))
    plain.set("plain", record)
    region = make_region().configure("dogpile.cache.pymemcache", 3600, {"url": [f"127.0.0.1:{server.port}"]})
    region.set("dogpile", record.decode())
    pools = connection_pool_factory_builder()
    meta = CacheClient.cache_client_from_servers([ServerAddress("127.0.0.1", server.port)], pools)
    meta.set(Key("meta"), record, ttl=3600)
    del key
    return {
        "tokencache": ("ours", get),
        "pymemcache get": ("limit", lambda: plain.get("plain")),
        "dogpile.cache": ("peer", lambda: region.get("dogpile")),
        "meta-memcache": ("peer", lambda: meta.get(Key("meta"))),
    }


def file_ways(folder: str) -> dict[str, tuple[Kind, Any]]:
    """Return the ways on a folder."""
    _, get, record = ours(f"file://{folder}/ours")
    path = Path(folder, "plain")
    path.write_bytes(record)
    return {"tokencache": ("ours", get), "bare read": ("limit", path.read_bytes)}


def rows_of(scenario: str, kinds: dict[str, Kind], turns: dict[str, list[float]], limit: str) -> list[Row]:
    """Return a row for each way, with its ratio to the limit and the number of gets in the time of a login."""
    return [
        Row(
            scenario,
            name,
            kinds[name],
            {
                "us": middle(turns[name]) * 1e6,
                "to limit": ratio(turns, name, limit),
                "login / get": middle(LOGIN / took for took in turns[name]),
            },
        )
        for name in turns
    ]


def timed_rows(scenario: str, ways: dict[str, tuple[Kind, Any]], plan: Plan) -> list[Row]:
    """Time the ways in turns and return their rows."""
    turns = in_turns({name: timed(get) for name, (_, get) in ways.items()}, plan)
    return rows_of(scenario, {name: kind for name, (kind, _) in ways.items()}, turns, LIMITS[scenario])


def shared(plan: Plan) -> list[Row]:
    """Time shared gets on every store."""
    rows: list[Row] = []
    with (
        RedisServer() as redis,
        MemcachedServer() as memcached,
        tempfile.TemporaryDirectory() as folder,
        one_cpu(redis.pid, memcached.pid),
    ):
        rows += timed_rows(REDIS, redis_ways(redis), plan)
        rows += _loop_rows(redis, plan)
        rows += timed_rows(MEMCACHED, memcached_ways(memcached), plan)
        rows += timed_rows(FILE, file_ways(folder), plan)
        rows += sizes(redis, memcached, plan)
    return rows


def _loop_rows(server: RedisServer, plan: Plan) -> list[Row]:
    """Time shared gets from an event loop."""
    loop = asyncio.new_event_loop()
    try:
        ways = loop.run_until_complete(redis_loops(server, "x" * SIZE))
        turns = in_turns({name: timed_async(get, loop) for name, (_, get) in ways.items()}, plan)
    finally:
        loop.close()
    return rows_of(REDIS, {name: kind for name, (kind, _) in ways.items()}, turns, "redis.asyncio GET")


def sizes(redis: RedisServer, memcached: MemcachedServer, plan: Plan) -> list[Row]:
    """Time shared gets of longer and longer tokens."""
    rows: list[Row] = []
    for size in TOKENS:
        redis.command("FLUSHALL")
        memcached.command("flush_all")
        ways = {f"Redis, {name}": way for name, way in redis_ways(redis, size).items() if way[0] != "peer"}
        del ways["Redis, raw socket"]
        more = memcached_ways(memcached, size).items()
        ways |= {f"memcached, {name}": way for name, way in more if way[0] != "peer"}
        turns = in_turns({name: timed(get) for name, (_, get) in ways.items()}, plan)
        for store, limit in (("Redis", "redis-py GET"), ("memcached", "pymemcache get")):
            for name in ("tokencache", limit):
                way = f"{store}, {name}"
                figures = {"us": middle(turns[way]) * 1e6, "to limit": ratio(turns, way, f"{store}, {limit}")}
                kind = "ours" if name == "tokencache" else "limit"
                rows.append(Row(SIZES, f"{way}, {size}", kind, figures | {"size": float(size)}))
    return rows
