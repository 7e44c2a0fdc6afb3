"""The fault matrix: the tests' results are compared with docs/reliability.md, or written to it with `--reliability`."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tokencache import TokenCache, events
from tokencache._record import fence_of
from tokencache.plugins import open_backend
from tokencache.testing.fakes import FakeProvider, Recorder
from tokencache.testing.servers import MemcachedServer, Proxy, RedisServer

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from tokencache import RefreshPolicy, Token, TokenSource
    from tokencache.ports import Backend
    from tokencache.testing.fakes import FakeClock

DOCUMENT = Path(__file__).parents[3] / "docs" / "reliability.md"
HEALED = 3.0 + 0.5 + 1.0
"""The promise in seconds: a lease, a fetch of the tests, and one. It is held when the table is written."""
HEAD = "| # | fault | backend | what callers saw | provider calls | healed after | test |"

FAULTS = {
    1: "holder dies before, in or after the fetch",
    2: "holder paused beyond its lease",
    3: "holder cancelled or interrupted",
    4: "reply lost after lease or commit was performed",
    5: "store refuses connections",
    6: "store frozen",
    7: "store slow",
    8: "store half-open, cut in mid-reply, one byte at a time",
    9: "store restarts empty",
    10: "lease or record evicted",
    11: "store full",
    12: "store answers with an error",
    13: "store pauses its clients",
    14: "Sentinel failover",
    15: "replication lost at promotion",
    16: "Cluster node dies, slot moves",
    17: "one of several memcached servers is gone",
    18: "wall clock steps, hosts disagree",
    19: "host suspended",
    20: "the store's clock jumps",
    21: "many waiters, few connections",
    22: "provider fails or answers nonsense",
    23: "odd expiries",
    24: "same token again; new token kills the old",
    25: "500 callers report one token",
    26: "stored bytes are not a valid record",
    27: "fork, threads, closed loops, interpreter exit",
    28: "hostile keys",
    29: "file store: disk full, read-only, removed, planted links",
    30: "client libraries at their minimum versions",
}


@dataclass
class Outcome:
    """The result of one test of the matrix. The test fills it in; it becomes a row of docs/reliability.md."""

    row: int
    backend: str
    test: str
    case: str = ""
    saw: str = ""
    calls: str = ""
    healed: float | None = None

    def record(self, saw: str, *, calls: int | str) -> None:
        """Note what callers saw, and the number of calls to the provider, as a count or as a range."""
        self.saw, self.calls = saw, str(calls)

    @contextmanager
    def healing(self) -> Iterator[None]:
        """Measure the time from the fault's end to the moment when every caller is served: the length of this block."""
        began = time.monotonic()
        yield
        self.healed = time.monotonic() - began

    @property
    def line(self) -> str:
        """The row of the table without the time to heal, which differs from run to run."""
        fault = FAULTS[self.row] + (f": {self.case}" if self.case else "")
        return f"| {self.row} | {fault} | {self.backend} | {self.saw} | {self.calls} |"

    @property
    def whole(self) -> str:
        """The row of the table."""
        healed = "" if self.healed is None else f"{self.healed:.1f} s"
        return f"{self.line} {healed} | `{self.test}` |"


SEEN = pytest.StashKey[list[Outcome]]()


@pytest.fixture
def outcome(request: pytest.FixtureRequest) -> Iterator[Outcome]:
    """Return the outcome for the test to fill in. Its mark names the row.

    The mark is `@pytest.mark.fault(6, backend="redis", case="…")`. The test or its fixture may set backend and case.
    """
    mark = request.node.get_closest_marker("fault")
    assert mark is not None, "a test that uses `outcome` is marked with its row"
    name = f"{Path(request.node.fspath).name}::{request.node.originalname}"
    seen = Outcome(mark.args[0], mark.kwargs.get("backend", ""), name, case=mark.kwargs.get("case", ""))
    yield seen
    if not seen.saw:
        return  # failed or skipped before its end
    assert seen.backend
    if request.config.getoption("reliability"):
        request.config.stash.setdefault(SEEN, []).append(seen)
        return
    known = DOCUMENT.read_text(encoding="utf-8") if DOCUMENT.exists() else ""
    assert seen.line in known, f"docs/reliability.md does not say this; `make reliability` writes it:\n{seen.line}"


PATIENT = "timeout=30s&connect_timeout=30s"
"""The URL options of a process whose store answers, or refuses at once: a slow machine does not count as an outage."""


@dataclass
class Store:
    """An empty store of one kind: `memory`, `file`, `redis` or `memcached`; ``open`` gives backends on it."""

    kind: str
    url: str
    _opened: list[Backend] = field(default_factory=list)

    def open(self) -> Backend:
        """Return a new backend, as another process would have it; memory has only one."""
        if self.kind != "memory" or not self._opened:
            self._opened.append(open_backend(self.url))
        return self._opened[-1]

    def fence(self, key: str) -> int:
        """Return the fence of the stored record, 0 without a record."""
        stored = self.open().load(key)
        return 0 if stored is None else fence_of(stored.data) or 0

    def close(self) -> None:
        """Close what was opened."""
        while self._opened:
            self._opened.pop().close()


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """A Redis that is empty at the start of each test; each test leaves it running."""
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="session")
def memcached_server() -> Iterator[MemcachedServer]:
    """A memcached that is empty at the start of each test; each test leaves it running."""
    with MemcachedServer() as server:
        yield server


@pytest.fixture
def store(request: pytest.FixtureRequest, outcome: Outcome, tmp_path: Path) -> Iterator[Store]:
    """An empty store of the kind that the test is parametrized with: `parametrize("store", […], indirect=True)`."""
    outcome.backend = kind = request.param
    match kind:
        case "redis":
            server: RedisServer = request.getfixturevalue("redis_server")
            server.command("FLUSHALL")
            store = Store(kind, f"{server.url}?{PATIENT}")
        case "memcached":
            cache: MemcachedServer = request.getfixturevalue("memcached_server")
            cache.command("flush_all")
            store = Store(kind, f"{cache.url}?{PATIENT}")
        case _:
            store = Store(kind, "memory://" if kind == "memory" else (tmp_path / "tokens").as_uri())
    yield store
    store.close()


PATIENCE = 30.0
SECRET = "planted/secret"


class Callers:
    """The callers of a test: threads or, if ``looped``, tasks of an event loop that has its own thread."""

    def __init__(self, *, looped: bool) -> None:
        self.looped = looped
        self._pool = ThreadPoolExecutor(64)
        if looped:
            ready: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
            self._pool.submit(asyncio.run, self._serve(ready))
            self._loop, self._over = ready.result(PATIENCE)

    async def _serve(self, ready: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]]) -> None:
        over = asyncio.Event()
        ready.set_result((asyncio.get_running_loop(), over))
        await over.wait()

    def do(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        """Run a coroutine on the event loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def start(self, source: TokenSource, timeout: float | None = None) -> Future[Token]:
        """Start one call, while the test goes on."""
        return self.do(source.atoken(timeout)) if self.looped else self._pool.submit(source.token, timeout)

    def close(self) -> None:
        """Wait for the callers, and close the loop with all its tasks."""
        if self.looped:
            self._loop.call_soon_threadsafe(self._over.set)
        self._pool.shutdown()


class Remote:
    """A store that a test breaks, the proxy in front of it, and processes that ask for its tokens.

    ``label`` is ``redis`` or ``memcached``, followed by ``, event loop`` where callers are tasks. ``seen`` has the
    events of all processes. ``caches`` has their caches, in the same order. The server evicts records when it is full.
    A test with several servers sets ``url``.
    """

    def __init__(self, label: str) -> None:
        self.kind, _, loop = label.partition(", ")
        self.provider = FakeProvider(secret=SECRET)
        self.seen = Recorder()
        self.server: RedisServer | MemcachedServer = (
            RedisServer("--maxmemory", "3mb", "--maxmemory-policy", "allkeys-lru")
            if self.kind == "redis"
            else MemcachedServer("-m", "2", "-o", "no_modern")
        ).start()
        self.proxy = Proxy(self.server.port).start()
        self.url = f"{self.kind}://127.0.0.1:{self.proxy.port}"
        self.callers = Callers(looped=bool(loop))
        self.caches: list[TokenCache] = []

    def process(
        self,
        options: str = "",
        *,
        provider: FakeProvider | None = None,
        policy: RefreshPolicy | None = None,
        clock: FakeClock | None = None,
    ) -> TokenSource:
        """Return a source with its own cache and its own connections, as another process would have it."""
        clocks = {} if clock is None else {"clock": clock, "wall": clock.wall}
        self.caches.append(
            TokenCache(f"{self.url}?{options or PATIENT}", policy=policy, observers=[self.seen, events.log], **clocks)
        )
        return self.caches[-1].source(provider or self.provider)

    def ask(self, *sources: TokenSource, timeout: float | None = None) -> Token:
        """Start one call on each source, all at once; return the token, which is the same for all of them."""
        (token,) = {call.result(PATIENCE) for call in [self.callers.start(source, timeout) for source in sources]}
        return token

    def until(self, reached: Callable[[], bool]) -> None:
        """Ask again until the condition holds."""
        patience = time.monotonic() + PATIENCE
        while not reached():
            assert time.monotonic() < patience
            time.sleep(0.005)

    def until_later(self, clock: FakeClock, reached: Callable[[], bool]) -> None:
        """Ask again until the condition holds, while the hand-set clock advances but the waits take no time on it."""

        def look() -> bool:
            clock.advance(1.0)
            return reached()

        self.until(look)

    def is_waited_for(self) -> bool:
        """Return whether one of two cold processes waits for the fetch of the other."""
        if isinstance(self.server, RedisServer):
            return self.server.info("clients")["blocked_clients"] != "0"
        return int(self.server.stats()["cmd_get"]) >= 10  # the two send 8 before one of them waits

    @property
    def store(self) -> Store:
        """The store without the proxy in front; the caller closes it."""
        return Store(self.kind, f"{self.server.url}?{PATIENT}")

    def fence(self) -> int:
        """Return the fence of the only record."""
        with closing(self.store) as store:
            return store.fence(self.caches[0].source(self.provider).key)

    def close(self) -> None:
        """End the processes, the proxy and the server."""
        try:
            for cache in self.caches:
                if self.callers.looped:
                    self.callers.do(cache.aclose()).result(PATIENCE)
                else:
                    cache.close()
        finally:
            self.callers.close()
            self.proxy.stop()
            self.server.stop()


@pytest.fixture
def remote(request: pytest.FixtureRequest, outcome: Outcome, caplog: pytest.LogCaptureFixture) -> Iterator[Remote]:
    """A store for one test to break: `parametrize("remote", ["redis", …], indirect=True)`.

    INV-9: at the end, no event and no line of the log contains a token or a secret.
    """
    caplog.set_level(logging.DEBUG)
    outcome.backend = request.param
    remote = Remote(request.param)
    yield remote
    remote.close()
    shown = "\n".join([*map(repr, remote.seen.events), *(each.getMessage() for each in caplog.get_records("call"))])
    assert SECRET not in shown
    assert "-token-" not in shown


@pytest.fixture
def tidy(count_sockets: Callable[[], int]) -> Iterator[None]:
    """After the test, its threads have ended, except the heartbeat, and its sockets are closed."""
    gc.collect()
    threads, sockets = set(threading.enumerate()), count_sockets()
    yield
    patience = time.monotonic() + 30
    while True:
        left = [each for each in threading.enumerate() if each not in threads and each.name != "tokencache-heartbeat"]
        if not left and count_sockets() <= sockets:
            return
        assert time.monotonic() < patience, f"left behind: {left}, {count_sockets() - sockets} sockets"
        gc.collect()
        time.sleep(0.005)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Write the table, if the option is given, every test passed and every fleet healed in time.

    Lines of files that did not run stay.
    """
    seen = session.config.stash.get(SEEN, [])
    if not seen or exitstatus:
        return
    late = [row.whole for row in seen if row.healed is not None and row.healed > HEALED]
    if late:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        print(f"\nnothing was written: later than {HEALED} s", *late, sep="\n")
        return
    before, _, rest = DOCUMENT.read_text(encoding="utf-8").partition("<!-- table -->\n")
    table, _, after = rest.partition("<!-- end of table -->")
    ran = {row.test.partition("::")[0] for row in seen}
    lines = [line for line in table.splitlines()[2:] if line.rpartition("| `")[2].partition("::")[0] not in ran]
    lines += [row.whole for row in seen]
    lines.sort(key=lambda line: (int(line.split("|")[1]), line))
    table = "\n".join([HEAD, "|---|---|---|---|---|---|---|", *lines])
    DOCUMENT.write_text(f"{before}<!-- table -->\n{table}\n<!-- end of table -->{after}", encoding="utf-8")
