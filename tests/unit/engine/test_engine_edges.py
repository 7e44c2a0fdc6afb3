"""The engine's parts at their edges: heartbeat, flights that nobody lands, the breaker, the thread pool."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tokencache import (
    BackendUnavailable,
    DeadlineExceeded,
    ProviderUnavailable,
    RefreshPolicy,
    Token,
    TokenCache,
    TokenSource,
)
from tokencache._engine.breaker import Breaker
from tokencache._engine.flights import Flights
from tokencache._engine.launcher import Launcher
from tokencache._engine.timer import Heartbeat
from tokencache.backends._threaded import InlineBackend, ThreadedBackend, async_half
from tokencache.backends.memory import MemoryBackend
from tokencache.errors import BackendClosed, ConfigurationError
from tokencache.events import LeaseLost, ProviderWarning
from tokencache.ports import Granted
from tokencache.testing.fakes import FakeClock, FakeProvider, Recorder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tokencache.ports import LeaseGrant, Slot, Stored

PATIENCE = 30.0
PLANTED = "planted"
HOUR = 3600.0
SHORT = RefreshPolicy(lease=1.5)


class Watched(MemoryBackend):
    """A memory backend that tells when a lease was prolonged three times, and can refuse to."""

    def __init__(self, *, keeps: bool = True) -> None:
        super().__init__()
        self.keeps = keeps
        self.extended = 0
        self.enough = threading.Event()

    def extend(self, lease: LeaseGrant, ttl: float) -> bool:
        """Count, then prolong or refuse."""
        self.extended += 1
        if self.extended >= 3 or not self.keeps:
            self.enough.set()
        return self.keeps and super().extend(lease, ttl)


def ask(source: TokenSource, half: str) -> Token:
    """Get a token by one half or the other."""
    return source.token() if half == "sync" else asyncio.run(source.atoken())


@pytest.mark.parametrize("half", ["sync", "async"])
def test_a_slow_fetch_keeps_its_lease(half: str) -> None:
    """INV-2: a fetch that takes several leases is one fetch; whoever waits elsewhere waits on."""
    backend, provider = Watched(), FakeProvider()
    provider.gate.clear()
    got: list[Token] = []
    sources = [TokenCache(backend, policy=SHORT).source(provider) for _ in range(2)]
    threads = [threading.Thread(target=lambda source=source: got.append(ask(source, half))) for source in sources]
    for thread in threads:
        thread.start()
    assert backend.enough.wait(PATIENCE)
    provider.gate.set()
    for thread in threads:
        thread.join(PATIENCE)
    assert provider.calls == 1
    assert len(set(got)) == 1


@pytest.mark.parametrize("half", ["sync", "async"])
def test_a_lease_that_cannot_be_prolonged_is_told_of(half: str) -> None:
    """INV-2: somebody else may fetch too, and the event says so; the fetch itself goes on."""
    backend, provider, seen = Watched(keeps=False), FakeProvider(), Recorder()
    provider.gate.clear()
    source = TokenCache(backend, policy=SHORT, observers=[seen]).source(provider)
    got: list[Token] = []
    thread = threading.Thread(target=lambda: got.append(ask(source, half)))
    thread.start()
    assert backend.enough.wait(PATIENCE)
    while not seen.of(LeaseLost):
        threading.Event().wait(0.001)
    provider.gate.set()
    thread.join(PATIENCE)
    assert len(got) == 1
    assert len(seen.of(LeaseLost)) == 1


@pytest.mark.parametrize("half", ["sync", "async"])
def test_a_backend_that_does_not_answer_the_heartbeat_has_not_taken_the_lease(half: str) -> None:
    """INV-5: an outage in mid-fetch is no lost lease; the heartbeat tries again."""

    class Mute(Watched):
        """Fails to answer each heartbeat."""

        def extend(self, lease: LeaseGrant, ttl: float) -> bool:
            """Count, then fail."""
            super().extend(lease, ttl)
            message = "no answer"
            raise BackendUnavailable(message)

    backend, provider, seen = Mute(), FakeProvider(), Recorder()
    provider.gate.clear()
    source = TokenCache(backend, policy=SHORT, observers=[seen]).source(provider)
    thread = threading.Thread(target=ask, args=(source, half))
    thread.start()
    assert backend.enough.wait(PATIENCE)
    provider.gate.set()
    thread.join(PATIENCE)
    assert not seen.of(LeaseLost)
    assert source.token()


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the threads that are started from now on; the process has no heartbeat yet."""
    names: list[str] = []
    start = threading.Thread.start

    def noted(thread: threading.Thread) -> None:
        names.append(thread.name)
        start(thread)

    monkeypatch.setattr("tokencache._engine.timer._heartbeat", Heartbeat())
    monkeypatch.setattr(threading.Thread, "start", noted)
    return names


def test_each_fetch_has_a_thread_of_its_own_and_all_share_one_heartbeat(started: list[str]) -> None:
    """INV-8: a fetch on threads runs beside its caller, on one thread; the heartbeat is one for the process."""
    cache, fetching = TokenCache("memory://"), []

    def fetch() -> dict[str, object]:
        fetching.append(threading.current_thread())
        return {"access_token": "x", "expires_in": 60}

    for number in range(5):
        cache.source(fetch, key=str(number)).token()
    own = [f"tokencache-{number}" for number in range(5)]
    assert [thread.name for thread in fetching] == own
    assert sorted(started) == [*own, "tokencache-heartbeat"]


def test_a_fetch_on_an_event_loop_starts_no_thread(started: list[str]) -> None:
    """On an event loop the flight is a task, and the heartbeat a timer; only the key was worked out on a thread."""
    cache, fetching = TokenCache("memory://"), []

    async def fetch() -> dict[str, object]:
        fetching.append(asyncio.current_task())
        return {"access_token": "x", "expires_in": 60}

    async def main() -> None:
        sources = [cache.source(fetch, key=str(number)) for number in range(5)]
        assert len({source.key for source in sources}) == 5
        for source in sources:
            await source.atoken()
        assert asyncio.current_task() not in fetching

    asyncio.run(main())
    assert len(fetching) == 5
    assert started == []


def test_the_heartbeat_ends_when_idle_and_starts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that fetches once an hour keeps no thread for it."""
    monkeypatch.setattr("tokencache._engine.timer._IDLE", 0.01)
    heart = Heartbeat()
    for _ in range(2):
        ran = threading.Event()
        heart.start(0.001, lambda _beat, ran=ran: ran.set() or False)  # type: ignore[misc]
        assert ran.wait(PATIENCE)
        while heart._running:
            threading.Event().wait(0.001)


def test_the_earliest_beat_comes_first() -> None:
    """A later, shorter beat is not held up by an earlier, longer one; a stopped one never runs."""
    heart = Heartbeat()
    order: list[str] = []
    done = threading.Event()
    long = heart.start(3600, lambda _beat: order.append("long") or False)  # type: ignore[func-returns-value]
    while not heart._changed._waiters:  # type: ignore[attr-defined]  # the thread sleeps until the long one is due
        threading.Event().wait(0.001)
    with heart._changed:  # so that it is stopped before it can run
        heart.start(0.0, lambda _beat: order.append("stopped") or False).stop()  # type: ignore[func-returns-value]
    heart.start(0.001, lambda _beat: order.append("short") or done.set() or False)  # type: ignore[func-returns-value]
    assert done.wait(PATIENCE)
    long.stop()
    assert order == ["short"]


def test_a_flight_that_nobody_lands_is_given_up() -> None:
    """INV-8: past its time a flight makes room for another, and those who joined are sent back."""
    flights = Flights()
    lost, leads = flights.lead_or_join(0.0, 10.0)
    assert leads
    assert flights.lead_or_join(9.9, 20.0) == (lost, False)
    fresh, leads = flights.lead_or_join(10.0, 20.0)
    assert leads
    assert fresh is not lost
    assert lost.join(PATIENCE) is None
    flights.leave(lost)
    assert flights.flying
    lost.abandon()
    lost.fail(ValueError())
    assert lost.join(0) is None


def test_a_cancelled_waiter_cancels_nobody_else() -> None:
    """INV-8: waiting on a loop and being cancelled leaves the flight to the others."""

    async def main() -> None:
        flight, _ = Flights().lead_or_join(0.0, 10.0)
        waiter = asyncio.create_task(flight.ajoin(PATIENCE))
        await asyncio.sleep(0)
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
        assert not flight.over
        assert await flight.ajoin(0) is None
        flight.abandon()
        assert await flight.ajoin(PATIENCE) is None

    asyncio.run(main())


def test_the_breaker_lets_one_caller_per_probe_through() -> None:
    """INV-5: closed, open, one probe, open again, closed again."""
    clock = FakeClock()
    breaker = Breaker(clock, 1.0)
    error = BackendUnavailable("down")
    assert breaker.refuse() is None
    assert breaker.failed(error)
    assert not breaker.failed(error)
    assert breaker.refuse() is error
    clock.advance(1.0)
    assert breaker.refuse() is None, "the probe"
    assert breaker.refuse() is error, "everybody else"
    assert breaker.error is error
    assert breaker.answered()
    assert not breaker.answered()
    assert breaker.refuse() is None


def test_a_backend_without_an_async_half_runs_on_threads_of_its_own() -> None:
    """A backend without an async half serves event loops from a thread pool; one with both halves uses its own."""

    class Plain:
        """A backend with the half for threads only."""

        name = "plain"

        def __init__(self) -> None:
            self.inner = MemoryBackend()

        def __getattr__(self, name: str) -> object:
            if name in {"aio", "after_fork"}:
                raise AttributeError(name)
            return getattr(self.inner, name)

    backend = Plain()
    assert type(async_half(backend)) is ThreadedBackend  # type: ignore[arg-type]
    assert type(async_half(MemoryBackend())) is InlineBackend
    provider = FakeProvider()

    async def main() -> tuple[Token, Token]:
        async with TokenCache(backend) as cache:  # type: ignore[arg-type]
            source = cache.source(provider)
            first = await source.atoken()
            assert (await source.astatus()).stored == "ours"
            assert await source.ainvalidate(first)
            return first, await source.atoken()

    first, second = asyncio.run(main())
    assert first != second


def test_the_threads_of_a_backend_end_with_it(tmp_path: Path) -> None:
    """INV-8: a cache that is closed from a loop leaves none of the threads that called its backend."""
    before = set(threading.enumerate())

    async def main() -> list[threading.Thread]:
        async with TokenCache((tmp_path / "tokens").as_uri()) as cache:
            await cache.source(FakeProvider()).atoken()
            started = set(threading.enumerate()) - before
            return [thread for thread in started if thread.name.startswith("tokencache-backend")]

    started = asyncio.run(main())
    assert started
    for thread in started:
        thread.join(PATIENCE)
        assert not thread.is_alive()


def test_waiting_threads_leave_room_for_the_commit() -> None:
    """INV-8: on a thread pool, callers that wait for a record do not delay the commit of that record."""
    waiting, committed, in_time = threading.Semaphore(0), threading.Event(), []

    class Full(MemoryBackend):
        """A backend whose waiters wait for nothing but the commit."""

        def wait(self, key: str, seen: bytes | None, timeout: float) -> Stored | None:
            waiting.release()
            in_time.append(committed.wait(timeout))
            return super().load(key)

        def commit(self, lease: LeaseGrant, data: bytes, ttl: float) -> bool:
            committed.set()
            return super().commit(lease, data, ttl)

    backend = Full()
    half = ThreadedBackend(backend, threads=2)
    lease = backend.lease("key", "owner", "identity", None, 180.0)
    assert isinstance(lease, Granted)

    async def main() -> list[Stored | None]:
        waits = [asyncio.create_task(half.wait("key", None, PATIENCE)) for _ in range(8)]
        for _ in range(2):
            await asyncio.to_thread(waiting.acquire)
        assert await half.commit(lease.lease, b"record", 60.0)
        return await asyncio.gather(*waits)

    woken = asyncio.run(main())
    assert in_time == [True, True]
    assert woken.count(None) == 6, "for whom no thread is left, a wait is a pause"


def test_an_outage_is_met_once_by_those_in_line() -> None:
    """INV-5: on a thread pool, calls queued behind a call that fails fail with it, without a time-out of their own."""
    calls: list[str] = []
    begun, over = threading.Event(), threading.Event()

    class Gone(MemoryBackend):
        """A backend whose first call takes long to fail."""

        def load(self, key: str) -> Stored | None:
            calls.append(key)
            begun.set()
            over.wait(PATIENCE)
            message = "gone"
            raise BackendUnavailable(message)

    half = ThreadedBackend(Gone(), threads=1)

    async def main() -> list[object]:
        loads = [asyncio.create_task(half.load(str(number))) for number in range(50)]
        await asyncio.to_thread(begun.wait)
        over.set()
        got: list[object] = list(await asyncio.gather(*loads, return_exceptions=True))
        with pytest.raises(BackendUnavailable, match="gone"):
            await half.load("later")
        return got

    got = asyncio.run(main())
    assert all(isinstance(each, BackendUnavailable) for each in got)
    assert calls == ["0", "later"]


def test_closing_on_a_loop_closes_the_backend() -> None:
    """``aclose`` is ``close``: a source that holds nothing says that the cache is closed."""

    async def main() -> None:
        cache = TokenCache("memory://")
        source = cache.source(FakeProvider())
        await cache.aclose()
        with pytest.raises(BackendClosed):
            await source.atoken()

    asyncio.run(main())


def test_a_warning_of_a_provider_becomes_an_event() -> None:
    """An expiry that cannot be read is told of, and the token is used."""
    seen = Recorder()
    cache = TokenCache("memory://", observers=[seen])
    assert cache.source(lambda: {"access_token": "x", "expires_in": "soon"}, key="k").token()
    assert len(seen.of(ProviderWarning)) == 1


@pytest.mark.parametrize("wrong", ["a string", None, 42, object()])
def test_a_provider_that_gives_no_token_is_told_what_to_give(wrong: object) -> None:
    """What is not a Token is an error that says so, and no crash."""
    provider = FakeProvider()
    provider._answer = lambda: wrong  # type: ignore[method-assign,assignment,return-value]
    with pytest.raises(ProviderUnavailable, match="not a Token"):
        TokenCache("memory://").source(provider).token()


def test_a_provider_that_hangs_on_a_loop_is_left_at_the_deadline() -> None:
    """INV-8: an async fetch that never ends is ended by the policy's fetch_timeout."""
    provider = FakeProvider()
    provider.gate.clear()
    source = TokenCache("memory://", policy=RefreshPolicy(fetch_timeout=0.05)).source(provider)
    with pytest.raises(ProviderUnavailable, match="did not answer within"):
        asyncio.run(source.atoken())


def test_a_mistake_that_the_backend_finds_reaches_everybody_and_is_not_kept() -> None:
    """A mistake in the set-up that a backend finds late fails its callers; it neither hangs nor poisons the source."""

    class Broken(MemoryBackend):
        """Raises when it is used."""

        fault: Callable[[], None] | None = None

        def load(self, key: str) -> None:  # type: ignore[override]
            """Fail or miss."""
            if self.fault is not None:
                self.fault()

    def fault() -> None:
        message = "a wrong setting"
        raise ConfigurationError(message)

    backend = Broken()
    backend.fault = fault
    source = TokenCache(backend).source(FakeProvider())
    with pytest.raises(ConfigurationError):
        source.token()
    with pytest.raises(ConfigurationError):
        asyncio.run(source.atoken())
    backend.fault = None
    assert source.token()


@pytest.mark.parametrize("half", ["sync", "async"])
def test_a_wrong_setting_is_not_taken_for_a_401_that_stands(half: str) -> None:
    """After a 401 a mistake in the set-up is raised as it is; ``None`` would hide it behind the 401."""

    class Wrong(MemoryBackend):
        """Finds a mistake when it is read."""

        def load(self, key: str) -> None:  # type: ignore[override]
            """Fail."""
            message = "a wrong setting"
            raise ConfigurationError(message)

    source = TokenCache(Wrong()).source(FakeProvider())
    refused = Token("refused", expires_at=2e9, issued_at=1e9)
    with pytest.raises(ConfigurationError, match="a wrong setting"):
        source.replace(refused) if half == "sync" else asyncio.run(source.areplace(refused))


def test_a_hung_fetch_loses_its_lease_at_its_deadline() -> None:
    """INV-8, INV-2: the heartbeat ends with the fetch's deadline, so that another process can fetch."""
    backend, hung = MemoryBackend(), FakeProvider()
    hung.gate.clear()
    policy = RefreshPolicy(lease=0.1, fetch_timeout=0.2, timeout=0.2)
    stuck = TokenCache(backend, policy=policy).source(hung, key="k")
    release = threading.Event()
    hung.gate.wait = lambda timeout=None: release.wait(PATIENCE)  # type: ignore[method-assign]
    with pytest.raises(DeadlineExceeded):
        stuck.token()
    quick = FakeProvider()
    quick.value = "quick"
    assert TokenCache(backend).source(quick, key="k").token(PATIENCE).value == "quick"
    release.set()


def test_a_hung_call_keeps_neither_the_loop_nor_its_pool() -> None:
    """INV-8: a provider that hangs on its thread lets asyncio.run end, and other calls to threads go on."""
    release = threading.Event()
    ended: list[bool] = []

    def hang() -> dict[str, object]:
        ended.append(release.wait(PATIENCE))
        return {}

    source = TokenCache("memory://", policy=RefreshPolicy(timeout=0.05, fetch_timeout=0.05)).source(hang, key="k")

    async def main() -> int:
        for _ in range(8):
            with contextlib.suppress(DeadlineExceeded, ProviderUnavailable):
                await source.atoken()
        return await asyncio.to_thread(lambda: 1)

    assert asyncio.run(main()) == 1
    assert ended == [], "neither the loop nor its pool has waited for a call that hangs"
    release.set()


class Placed(MemoryBackend):
    """A memory backend that tells on which threads it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[threading.Thread] = []

    def inspect(self, key: str) -> Slot:
        """Take note of the thread, then report."""
        self.places.append(threading.current_thread())
        return super().inspect(key)


def test_no_interrupt_meets_a_call_of_the_backend() -> None:
    """INV-8: signals interrupt the main thread, so no backend is called there; another thread makes its own calls."""
    backend = Placed()
    source = TokenCache(backend).source(FakeProvider())
    source.status()
    other = threading.Thread(target=source.status)
    other.start()
    other.join(PATIENCE)
    assert len(backend.places) == 2
    assert backend.places[0] is not threading.main_thread()
    assert backend.places[1] is other


class Threadless(Launcher):
    """A launcher in a process at its limit of threads."""

    def thread(self, call: Callable[[], object], name: str) -> None:
        """Fail as ``Thread.start`` does."""
        message = "can't start new thread"
        raise RuntimeError(message)


def test_without_another_thread_the_main_one_asks() -> None:
    """INV-4: a process that can start no thread may still ask and drop."""
    backend = Placed()
    source = TokenCache(backend).source(FakeProvider())
    source._world = replace(source._world, launcher=Threadless())
    source.status()
    assert backend.places == [threading.main_thread()]


def test_a_flight_that_is_collected_with_its_closed_loop_awaits_nothing() -> None:
    """INV-8: a coroutine that is closed may not await, not even the release of its lease."""
    backend, provider, seen = MemoryBackend(), FakeProvider(), Recorder()
    backend.aio = lambda: ThreadedBackend(backend)  # type: ignore[method-assign]
    source = TokenCache(backend, observers=[seen]).source(provider)
    provider.gate.clear()

    async def main() -> None:
        while not provider.started.is_set():
            await asyncio.sleep(0)

    loop = asyncio.new_event_loop()
    caller = loop.create_task(source.atoken())
    loop.run_until_complete(main())
    loop.close()
    (flight,) = source._tasks
    flight.get_coro().close()
    caller.get_coro().close()
    assert not seen.events
    assert backend.inspect(source.key).owner is not None


class Odd(MemoryBackend):
    """A memory backend with a defect: the operations that are named raise what no backend may raise."""

    def __init__(self, *operations: str) -> None:
        self.operations = operations
        self.raised = threading.Event()
        super().__init__()

    def __getattribute__(self, name: str) -> object:
        """Return the method, or one that raises."""
        if name in object.__getattribute__(self, "operations"):

            def fail(*arguments: object) -> None:
                self.raised.set()
                raise ValueError(PLANTED)

            return fail
        return object.__getattribute__(self, name)


@pytest.mark.parametrize("half", ["sync", "async"])
@pytest.mark.parametrize("operations", [("load",), ("lease",), ("commit", "release"), ("load", "lease")], ids=str)
def test_a_backend_that_raises_anything_counts_as_gone(half: str, operations: tuple[str, ...]) -> None:
    """INV-5: a garbled reply or a defect costs nobody the token; the event names the kind of error, not its text."""
    recorder = Recorder()
    backend = Odd(*operations)
    with TokenCache(backend, observers=[recorder]) as cache:
        token = ask(cache.source(FakeProvider("one")), half)
    assert token.value == "one-token-1"
    assert backend.raised.is_set()
    said = repr(recorder.events)
    assert "ValueError" in said
    assert "planted" not in said


def test_one_defect_ends_no_heartbeat() -> None:
    """INV-2: a backend whose prolonging raises leaves the leases of every other backend prolonged."""
    odd, slow = Odd("extend"), FakeProvider("odd")
    slow.gate.clear()
    caller = threading.Thread(target=TokenCache(odd).source(slow, policy=SHORT).token)
    caller.start()
    assert odd.raised.wait(PATIENCE)
    good, held = Watched(), FakeProvider("good")
    held.gate.clear()
    other = threading.Thread(target=TokenCache(good).source(held, policy=SHORT).token)
    other.start()
    assert good.enough.wait(PATIENCE)
    slow.gate.set()
    held.gate.set()
    caller.join(PATIENCE)
    other.join(PATIENCE)
    assert held.calls == 1


def test_an_action_that_raises_is_one_beat_less() -> None:
    """The thread of a heartbeat outlives what its actions do."""
    heartbeat, after = Heartbeat(), threading.Event()

    def defective(beat: object) -> bool:
        raise ValueError

    def sound(beat: object) -> bool:
        after.set()
        return False

    heartbeat.start(0.01, defective)
    heartbeat.start(0.05, sound)
    assert after.wait(PATIENCE)
