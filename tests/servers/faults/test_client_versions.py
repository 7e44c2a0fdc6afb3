"""Row 30: redis-py and pymemcache at the oldest supported versions, and at some older ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import pytest
from redis import __version__ as current

from tokencache.testing.servers import MemcachedServer, Proxy, RedisCluster, RedisSentinels, RedisServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Outcome

    Libraries: TypeAlias = Callable[..., str]

pytestmark = pytest.mark.live

PATIENCE = 60.0
PINS = Path(__file__).parents[3] / "requirements" / "clients.txt"
PROBE = Path(__file__).with_name("out_of_step.py")

FLEET = """
import asyncio, json, sys, threading
from tokencache import TokenCache
from tokencache.events import BackendFailed
from tokencache.testing.fakes import FakeProvider, Recorder

url, library = sys.argv[1:]
provider, seen, tokens = FakeProvider(), Recorder(), []
one, two = (TokenCache(url, observers=[seen]) for _ in range(2))
threaded, looped = one.source(provider, key="k"), two.source(provider, key="k")
waits = url.startswith("redis")  # on a connection of its own

def start(work):
    thread = threading.Thread(target=lambda: tokens.append(work()))
    thread.start()
    return thread

async def main():
    backend = threaded._world.backend
    half = looped._world.backend.aio() if waits else None
    provider.gate.clear()
    threads = [start(threaded.token) for _ in range(8)]
    provider.started.wait()
    tasks = [asyncio.create_task(looped.atoken()) for _ in range(8)]
    while waits and half._free == 32:
        await asyncio.sleep(0.001)
    provider.gate.set()
    tokens.extend(await asyncio.gather(*tasks))
    for thread in threads:
        await asyncio.to_thread(thread.join)
    (first,), tokens[:] = set(tokens), []

    provider.gate.clear()
    provider.started.clear()
    task = asyncio.create_task(looped.areplace(first))
    while not provider.started.is_set():
        await asyncio.sleep(0.001)
    thread = start(lambda: threaded.replace(first))
    while waits and backend._waiters._value == 32:
        await asyncio.sleep(0.001)
    provider.gate.set()
    tokens.append(await task)
    await asyncio.to_thread(thread.join)
    assert await looped.ainvalidate(tokens[0])
    await two.aclose()
    return len(set(tokens))

replacements = asyncio.run(main())
one.close()
failures = [event.error for event in seen.of(BackendFailed)]
print(json.dumps([sys.modules[library].__version__, replacements, provider.calls, provider.together, failures]))
"""

REFUSED = """
import sys
from tokencache import BackendNotInstalled, TokenCache

try:
    TokenCache(sys.argv[1])
except BackendNotInstalled as error:
    print(error)
"""


@pytest.fixture
def libraries(pytestconfig: pytest.Config) -> Libraries:
    """Return a function that installs libraries, by their pins, into a new folder, and returns that folder."""
    cache = pytestconfig.cache.mkdir("libraries")

    def installed(*pins: str) -> str:
        assert set(pins) <= set(PINS.read_text(encoding="utf-8").splitlines())
        folder = cache / "+".join(pins)
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=cache) as work:
                fresh = Path(work) / "fresh"
                pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--no-deps", "--no-input"]
                ran = subprocess.run(
                    [*pip, "--target", str(fresh), *pins], capture_output=True, timeout=PATIENCE * 2, check=False
                )
                if ran.returncode:  # its output may contain the package index and its login
                    reason = f"pip could not install {' '.join(pins)}: is an index within reach?"
                    (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
                fresh.rename(folder)
        return str(folder)

    return installed


def run(folder: str, *command: str, traced: bool = True) -> str:
    """Run Python with the libraries of a folder first on its path; return its output."""
    environment = {name: value for name, value in os.environ.items() if traced or not name.startswith("COV")}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [folder, environment.get("PYTHONPATH")]))
    ran = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, timeout=PATIENCE, check=False, env=environment
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    return ran.stdout.strip()


@pytest.mark.parametrize(
    ("kind", "backend", "pin"),
    [
        (RedisServer, "redis", "redis==6.2.0"),
        (RedisSentinels, "redis, Sentinel", "redis==6.2.0"),
        (RedisCluster, "redis, Cluster", "redis==6.2.0"),
        (MemcachedServer, "memcached", "pymemcache==4.0.0"),
    ],
)
@pytest.mark.fault(30, case="the oldest that is taken")
def test_the_oldest_client_library_serves_a_fleet(
    kind: type[RedisServer | RedisSentinels | RedisCluster | MemcachedServer],
    backend: str,
    pin: str,
    libraries: Libraries,
    outcome: Outcome,
) -> None:
    """INV-2: threads and tasks fetch cold and renew, each side waits once for the other: one call each time."""
    library, _, version = pin.partition("==")
    folder = libraries(pin)
    with kind() as server:
        saw = json.loads(run(folder, "-c", FLEET, server.url, library))
    assert saw == [version, 1, 2, 1, []]
    outcome.backend = backend
    outcome.record("the same as with the newest", calls="1 a renewal")


@pytest.mark.parametrize(
    ("backend", "pins"), [("redis", ["redis==4.5.2"]), ("memcached", ["pymemcache==3.5.2", "six==1.17.0"])]
)
@pytest.mark.fault(30, case="too old")
def test_too_old_a_client_library_is_refused(
    backend: str, pins: list[str], libraries: Libraries, outcome: Outcome
) -> None:
    """Nothing is sent, and the reason names the version found, the version needed, and how to install it."""
    library, _, version = pins[0].partition("==")
    said = run(libraries(*pins), "-c", REFUSED, f"{backend}://127.0.0.1:9")
    assert f"{library} " in said
    assert f" or newer, {version} is installed: pip install 'tokencache[{backend}]'" in said
    outcome.backend = backend
    outcome.record("BackendNotInstalled with the reason, when the cache is made", calls=0)


@pytest.fixture
def slowed(redis_server: RedisServer) -> Iterator[str]:
    """The URL of a Redis whose answers take a millisecond, so that a cancelled call still has its answer under way."""
    with Proxy(redis_server.port) as proxy:
        proxy.delay(0.001)
        yield f"redis://127.0.0.1:{proxy.port}"


@pytest.mark.slow
@pytest.mark.fault(30, backend="redis", case="calls cancelled at any moment, as with the newest")
def test_a_cancelled_call_leaves_no_connection_out_of_step(slowed: str, libraries: Libraries, outcome: Outcome) -> None:
    """INV-10: 1,000 cancellations on an event loop, with the newest redis-py and the oldest: no wrong answer."""
    for version, folder in ((current, ""), ("6.2.0", libraries("redis==6.2.0"))):
        answer = run(folder, str(PROBE), slowed, "ours", traced=False)
        assert answer == f"{version} 1000 0"
    outcome.record("their own answers, none of another call's", calls=0)


def test_the_probe_detects_connections_out_of_step(slowed: str, libraries: Libraries) -> None:
    """redis-py 4.5.2 leaves the reply of a cancelled call to the next call, and the probe sees it."""
    answer = run(libraries("redis==4.5.2"), str(PROBE), slowed, "plain", traced=False)
    version, cancelled, wrong = answer.split()
    assert (version, cancelled) == ("4.5.2", "1000")
    assert int(wrong) > 0
