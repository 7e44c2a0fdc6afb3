"""Every backend, sync and async, by situation: the cost of each, compared with a login for every call.

A hot hit comes from the local copy. A shared hit is another process's token from the store: each round has a new
source, like a new process. A miss, a renewal and a replacement after a 401 fetch from a provider that answers at once,
so only our own time is measured; a real provider adds its own time once. The uncached calls log in at a server on
loopback that takes 250 ms.
"""

from __future__ import annotations

import asyncio
import itertools
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from cells.many import many_sources
from tokencache import TokenCache
from tokencache.testing.servers import MemcachedServer, RedisServer
from tokencache_qpay import QPayProvider
from tokencache_qpay.testing import FakeQPay

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pytest_benchmark.fixture import BenchmarkFixture

    from tokencache import TokenSource

BACKENDS = ("memory", "file", "redis", "memcached")
COLOURS = ("sync", "async")
LOGIN, ROUNDS, MANY = 0.25, 30, 10_000


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Start the servers, and return the URL of each backend."""
    folder: Path = tmp_path_factory.mktemp("tokens")
    with ExitStack() as stack:
        redis, memcached = stack.enter_context(RedisServer()), stack.enter_context(MemcachedServer())
        yield {"memory": "memory://", "file": f"file://{folder}/f", "redis": redis.url, "memcached": memcached.url}


class World:
    """A cache on a backend, and an event loop for the whole measurement."""

    def __init__(self, url: str, colour: str) -> None:
        self.cache = TokenCache(url, sources=MANY + ROUNDS)
        self.url = url
        self.awaited = colour == "async"
        self.loop = asyncio.new_event_loop()
        self._keys = itertools.count()
        self._tokens = itertools.count()

    def login(self) -> dict[str, object]:
        """Answer at once."""
        return {"access_token": f"{next(self._tokens)}-" + "x" * 1000, "expires_in": 3600}

    def source(self) -> TokenSource:
        """Return a source without a token, local or stored."""
        return self.cache.source(self.login, key=f"cell-{id(self)}-{next(self._keys)}")

    def call(self, source: TokenSource, name: str, *arguments: object) -> Any:  # noqa: ANN401  (of any method)
        """Call one of the source's methods, sync or async."""
        if not self.awaited:
            return getattr(source, name)(*arguments)
        return self.loop.run_until_complete(getattr(source, f"a{name}")(*arguments))

    def close(self) -> None:
        """Close the cache and the loop."""
        if self.awaited:
            self.loop.run_until_complete(self.cache.aclose())
        else:
            self.cache.close()
        self.loop.close()


@pytest.fixture
def world(urls: dict[str, str], backend: str, colour: str) -> Iterator[World]:
    """Yield a world of this backend, sync or async."""
    made = World(urls[backend], colour)
    yield made
    made.close()


def timed(benchmark: BenchmarkFixture, situation: str, setup: Callable[[], Any], call: Callable[..., object]) -> None:
    """Time ``call`` with the result of ``setup``, which runs anew for each round."""
    benchmark.group = situation
    benchmark.pedantic(call, setup=lambda: ((setup(),), {}), rounds=ROUNDS, warmup_rounds=2)


@pytest.mark.parametrize("colour", COLOURS)
def test_uncached(benchmark: BenchmarkFixture, colour: str) -> None:
    """A login of 250 ms for every call: the cost without a cache."""
    benchmark.group = "uncached, a login of 250 ms"
    with FakeQPay(latency=LOGIN) as qpay:
        auth = ("TEST_MERCHANT", "123456")
        if colour == "sync":
            with httpx.Client(auth=auth) as client:
                benchmark.pedantic(lambda: client.post(f"{qpay.url}/v2/auth/token").json(), rounds=4)
            return
        loop, aclient = asyncio.new_event_loop(), httpx.AsyncClient(auth=auth)
        benchmark.pedantic(lambda: loop.run_until_complete(aclient.post(f"{qpay.url}/v2/auth/token")), rounds=4)
        loop.run_until_complete(aclient.aclose())
        loop.close()


def test_the_first_token_of_qpay(benchmark: BenchmarkFixture) -> None:
    """A miss with a real provider: one login of 250 ms, and our own time."""
    benchmark.group = "uncached, a login of 250 ms"
    with FakeQPay(latency=LOGIN) as qpay, TokenCache("memory://") as cache:
        source = cache.source(QPayProvider("TEST_MERCHANT", "123456", base_url=qpay.url))
        source.token()
        benchmark.pedantic(source.renew, rounds=4)


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("backend", BACKENDS)
class TestCells:
    """One backend, sync or async, in every situation."""

    def test_hot(self, benchmark: BenchmarkFixture, world: World) -> None:
        """The local copy: the same for every backend, because the backend is not asked."""
        source = world.source()
        world.call(source, "token")
        benchmark.group = "hot hit, 1,000 calls"

        async def many() -> None:
            for _ in range(1_000):
                await source.atoken()

        def calls() -> None:
            for _ in range(1_000):
                source.token()

        benchmark((lambda: world.loop.run_until_complete(many())) if world.awaited else calls)

    def test_shared(self, benchmark: BenchmarkFixture, world: World, backend: str) -> None:
        """Another process's token, read by a new source."""
        if backend == "memory":
            pytest.skip("nothing is shared beyond the process")
        world.call(world.cache.source(world.login, key="held"), "token")
        others = (TokenCache(world.cache._backend).source(world.login, key="held") for _ in itertools.count())  # noqa: SLF001
        timed(benchmark, "shared hit", lambda: next(others), lambda source: world.call(source, "token"))

    def test_miss(self, benchmark: BenchmarkFixture, world: World) -> None:
        """No local or stored token: lease, fetch, commit."""
        timed(benchmark, "miss", world.source, lambda source: world.call(source, "token"))

    def test_renewal(self, benchmark: BenchmarkFixture, world: World) -> None:
        """A forced renewal of the held token."""
        source = world.source()
        world.call(source, "token")
        timed(benchmark, "renewal", lambda: source, lambda source: world.call(source, "renew"))

    def test_replace(self, benchmark: BenchmarkFixture, world: World) -> None:
        """After a 401, the refused token is dropped and replaced."""

        def refused() -> tuple[TokenSource, object]:
            source = world.source()
            return source, world.call(source, "token")

        timed(benchmark, "after a 401", refused, lambda pair: world.call(pair[0], "replace", pair[1]))

    def test_many(self, benchmark: BenchmarkFixture, world: World) -> None:
        """10,000 sources, asked one after the other: hot hits."""
        sources = many_sources(MANY, world.login)
        benchmark.group = "hot hit, 10,000 sources, one call each"

        async def each() -> None:
            for source in sources:
                await source.atoken()

        def calls() -> None:
            for source in sources:
                source.token()

        benchmark((lambda: world.loop.run_until_complete(each())) if world.awaited else calls)
