"""Bugs that reviews found in other token caches: tokencache does not have them.

Each test is named after its bug and runs the real engine, on threads and on event loops where they differ.

Bugs that need real servers are in tests/servers/live/test_field_bugs.py.
"""

from __future__ import annotations

import asyncio
import threading
import time
from email.utils import formatdate
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tokencache import BackendUnavailable, ProviderRejected, ProviderUnavailable, RefreshPolicy, Token, TokenCache
from tokencache.backends.memory import MemoryBackend
from tokencache.integrations.httpx import TokenAuth
from tokencache.providers.oauth2 import ClientCredentials
from tokencache.testing.fakes import FakeClock, FakeProvider, FlakyBackend

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from tokencache import TokenSource
    from tokencache.ports import FetchContext, LeaseGrant

HOUR = 3600.0
PATIENCE = 30.0
CALLERS = 20
both_colours = pytest.mark.parametrize("colour", ["threads", "event loop"])


class Backend(FlakyBackend):
    """A flaky backend with hooks before and after a commit."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(clock)
        self.before_commit: Callable[[str], None] = lambda key: None
        self.after_commit: Callable[[], None] = lambda: None

    def commit(self, lease: LeaseGrant, data: bytes, ttl: float) -> bool:
        """Store a record."""
        self.before_commit(lease.key)
        stored = super().commit(lease, data, ttl)
        self.after_commit()
        return stored


class Provider(FakeProvider):
    """A fake provider that can fail once instead of always."""

    once: BaseException | None = None

    def _answer(self) -> Token:
        failure, self.once = self.once, None
        if failure is not None:
            raise failure
        return super()._answer()


class World:
    """A provider and a backend on a clock that the test moves; each cache on it stands for one process of a fleet."""

    def __init__(self, clock: FakeClock | None = None, **policy: float) -> None:
        self.clock = clock or FakeClock()
        self.backend = Backend(self.clock)
        self.provider = self.another_provider()
        self.policy = RefreshPolicy(jitter=0.0, **policy)
        self.source = self.process()

    def another_provider(self, lifetime: float = HOUR) -> Provider:
        """Return a provider of the same identity that counts its own calls."""
        return Provider(lifetime=lifetime, wall=self.clock.wall)

    def process(self, provider: Any = None) -> TokenSource:  # noqa: ANN401
        """Return the source of one more process."""
        cache = TokenCache(self.backend, policy=self.policy, observers=[], clock=self.clock, wall=self.clock.wall)
        return cache.source(provider or self.provider)


class RealTime(FakeClock):
    """The machine's own clocks."""

    def __call__(self) -> float:
        """Return the steady reading."""
        return time.monotonic()

    def wall(self) -> float:
        """Return the wall clock's reading."""
        return time.time()


class Callers:
    """Threads that make the same call at once; ``got`` and ``raised`` hold their results and errors."""

    def __init__(self, number: int, call: Callable[[], Any]) -> None:
        self.got: list[Any] = []
        self.raised: list[BaseException] = []
        self._call = call
        self._threads = [threading.Thread(target=self._run) for _ in range(number)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        try:
            self.got.append(self._call())
        except BaseException as error:
            self.raised.append(error)

    def leave(self) -> list[Any]:
        """Wait until all have ended; return their results."""
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()
        return self.got

    @property
    def ended(self) -> bool:
        """Return whether all have ended."""
        return not any(thread.is_alive() for thread in self._threads)


@pytest.fixture
def world() -> Iterator[World]:
    """A fresh world; its renewals have ended when the test ends."""
    world = World()
    yield world
    world.provider.gate.set()
    land()


def land() -> None:
    """Wait until no fetch is running."""
    for thread in threading.enumerate():
        if thread.name.startswith("tokencache-fake"):
            thread.join(PATIENCE)


def ask(source: TokenSource, colour: str) -> Token:
    """Return a token of the source, by a thread or by a new event loop."""
    return source.token() if colour == "threads" else asyncio.run(source.atoken())


def replace(source: TokenSource, token: Token, colour: str) -> Token | None:
    """Report a refused token."""
    return source.replace(token) if colour == "threads" else asyncio.run(source.areplace(token))


def until(reached: Callable[[], bool]) -> None:
    """Wait until the condition holds, for at most PATIENCE seconds."""
    give_up = time.monotonic() + PATIENCE
    while not reached():
        assert time.monotonic() < give_up
        time.sleep(0.001)


def queued(source: TokenSource) -> int:
    """Return the number of waiters of the source's flight."""
    flight = source._flights and source._flights._open
    future = flight and flight._future
    return len(future._condition._waiters) + len(future._done_callbacks) if future else 0


# --- locks and flights ------------------------------------------------------------------------------------------------


@both_colours
def test_a_lock_removed_while_callers_queue_on_it_makes_two_leaders(world: World, colour: str) -> None:
    """INV-2, INV-8: when a leader dies, the callers that wait and the callers that come then have one new leader.

    The source runs without a backend, so that a lease does not hide a second leader.
    """
    world.backend.down = FlakyBackend.EVERYTHING
    world.provider.once = asyncio.CancelledError()
    world.provider.gate.clear()
    queue = Callers(CALLERS, lambda: ask(world.source, colour))
    until(lambda: queued(world.source) >= CALLERS // 2)
    world.provider.gate.set()
    late = Callers(CALLERS, lambda: ask(world.source, colour))
    assert len(queue.leave() + late.leave()) == 2 * CALLERS
    assert set(queue.got + late.got) == {world.source.token()}
    assert (world.provider.calls, world.provider.together) == (2, 1)


@pytest.mark.parametrize("colour", ["threads", "event loop", "thread pool"])
def test_one_global_lock_lets_a_slow_provider_stall_everyone(world: World, colour: str) -> None:
    """INV-8: while one provider hangs, the sources of another provider still serve and fetch."""
    quick = world.process(FakeProvider("quick", wall=world.clock.wall))
    world.provider.gate.clear()

    class ThreadsOnly:
        """The hanging provider without its async half."""

        name = "fake"
        identity = world.provider.identity
        fetch = world.provider.fetch

    slow = world.process(ThreadsOnly() if colour == "thread pool" else None)

    async def main() -> Token:
        hanging = asyncio.create_task(slow.atoken())
        while not world.provider.started.is_set():
            await asyncio.sleep(0)
        token = await asyncio.wait_for(quick.atoken(), PATIENCE / 2)
        assert not hanging.done()
        world.provider.gate.set()
        await hanging
        return token

    if colour == "threads":
        hanging = Callers(1, slow.token)
        assert world.provider.started.wait(PATIENCE)
        assert Callers(1, quick.token).leave()[0].value == "quick-token-1"
        assert not hanging.ended
        world.provider.gate.set()
        hanging.leave()
    else:
        assert asyncio.run(main()).value == "quick-token-1"


@both_colours
def test_a_lock_reused_across_event_loops(world: World, colour: str) -> None:
    """INV-2: event loops in several threads, at once and one after another, share one source and one fetch."""
    world.provider.gate.clear()
    callers = Callers(CALLERS, lambda: asyncio.run(world.source.atoken()))
    until(lambda: queued(world.source) >= CALLERS // 2)
    world.provider.gate.set()
    assert len(callers.leave()) == CALLERS
    world.source.invalidate(callers.got[0])
    assert [ask(world.source, colour).value for _ in range(3)] == ["fake-token-2"] * 3
    assert (world.provider.calls, world.provider.together) == (2, 1)


def test_cancelling_the_leader_cancels_the_waiters(world: World) -> None:
    """INV-8: if the leader on a loop is cancelled, the waiters on loops and threads get the token of the same fetch."""

    async def main() -> list[Token]:
        world.provider.gate.clear()
        leader = asyncio.create_task(world.source.atoken())
        while not world.provider.started.is_set():
            await asyncio.sleep(0)
        joined = [asyncio.create_task(world.source.atoken()) for _ in range(CALLERS)]
        threads = Callers(2, world.source.token)
        for _ in range(3):  # each of them now waits
            await asyncio.sleep(0)
        joined[0].cancel()
        leader.cancel()
        left = await asyncio.gather(leader, joined[0], return_exceptions=True)
        assert [type(each) for each in left] == [asyncio.CancelledError] * 2
        world.provider.gate.set()
        tokens = await asyncio.gather(*joined[1:])
        return tokens + await asyncio.to_thread(threads.leave)

    assert len(asyncio.run(main())) == CALLERS + 1
    assert world.provider.calls == 1


@both_colours
def test_cancelling_the_leader_hangs_the_waiters(world: World, colour: str) -> None:
    """INV-8: if a leader is interrupted in its fetch, a waiter leads next; no waiter hangs."""
    world.provider.once = asyncio.CancelledError()
    world.provider.gate.clear()
    callers = Callers(CALLERS, lambda: ask(world.source, colour))
    until(lambda: queued(world.source) >= CALLERS // 2)
    world.provider.gate.set()
    assert len(callers.leave()) == CALLERS
    assert world.provider.calls == 2


# --- leases -----------------------------------------------------------------------------------------------------------


@both_colours
def test_a_lease_shorter_than_the_slowest_fetch(colour: str) -> None:
    """INV-2: a fetch that takes several leases keeps its lease, and no other process fetches."""
    world = World(RealTime(), lease=1.0)
    world.provider.gate.clear()
    callers = Callers(1, lambda: ask(world.source, colour))
    assert world.provider.started.wait(PATIENCE)
    other = world.process()
    others = Callers(1, lambda: ask(other, colour))
    until(lambda: world.backend.calls.count("extend") >= 4 or world.provider.together > 1)
    world.provider.gate.set()
    assert callers.leave() == others.leave()
    assert world.provider.calls == 1


@both_colours
def test_a_wait_shorter_than_the_winners_timeout_loses_the_token(colour: str) -> None:
    """INV-8: a process waits until another process's fetch ends, and gets its token."""
    world = World(RealTime(), lease=1.0)
    world.provider.gate.clear()
    callers = Callers(1, lambda: ask(world.source, colour))
    assert world.provider.started.wait(PATIENCE)
    loser = world.another_provider()
    source = world.process(loser)
    others = Callers(1, lambda: ask(source, colour))
    until(lambda: world.backend.calls.count("wait") >= 3 or others.ended)
    world.provider.gate.set()
    assert callers.leave() == others.leave() == [world.source.token()]
    assert loser.calls == 0
    default = RefreshPolicy()
    assert default.timeout >= default.fetch_timeout + default.lease


@both_colours
def test_a_release_without_owner_check_frees_anothers_lease(world: World, colour: str) -> None:
    """INV-2: a holder that lost its lease and then fails leaves lease and cooldown to the next holder."""
    world.provider.gate.clear()
    world.provider.once = ProviderUnavailable("too late")
    loser = Callers(1, lambda: ask(world.source, colour))
    assert world.provider.started.wait(PATIENCE)
    world.clock.advance(4)  # beyond the lease, with no heartbeat in between
    holder = world.another_provider()
    holder.gate.clear()
    source = world.process(holder)
    winner = Callers(1, source.token)
    assert holder.started.wait(PATIENCE)
    owner = world.backend.inspect(source.key).owner
    world.provider.gate.set()
    loser.leave()
    assert isinstance(loser.raised[0], ProviderUnavailable)
    slot = world.backend.inspect(source.key)
    assert (slot.owner, slot.cooldown) == (owner, None)
    assert owner is not None
    holder.gate.set()
    assert winner.leave()


@both_colours
@pytest.mark.parametrize("down", [{"lease"}, {"load"}, FlakyBackend.EVERYTHING], ids=["lease", "load", "everything"])
def test_a_store_error_taken_for_busy(world: World, colour: str, down: set[str]) -> None:
    """INV-5: a store that does not answer is not taken for a held lease: the token is fetched without a wait."""
    world.backend.down = frozenset(down)
    assert ask(world.source, colour).value == "fake-token-1"
    assert "wait" not in world.backend.calls


@both_colours
@pytest.mark.parametrize("error", [BackendUnavailable, RuntimeError, OSError])
def test_a_release_that_raises_although_the_token_was_got(
    world: World, colour: str, error: Callable[[str], Exception]
) -> None:
    """INV-4: if neither commit nor release works, the caller still gets its token."""
    world.backend.down, world.backend.error = frozenset({"commit", "release"}), error
    assert ask(world.source, colour).value == "fake-token-1"
    assert "release" in world.backend.calls


# --- newest wins ------------------------------------------------------------------------------------------------------


@both_colours
def test_an_older_token_overwrites_a_newer_one(world: World, colour: str) -> None:
    """INV-3: a holder that is late with its token finds a newer one stored, leaves it there, and takes it."""
    world.provider.gate.clear()
    late = Callers(1, lambda: ask(world.source, colour))
    assert world.provider.started.wait(PATIENCE)
    world.clock.advance(4)  # beyond the lease, with no heartbeat in between
    quick = world.another_provider()
    quick.value = "newer"
    newer = world.process(quick).token()
    world.provider.gate.set()
    assert late.leave() == [newer]
    assert world.process(quick).token() == newer


def test_a_late_background_result_replaces_a_newer_token(world: World) -> None:
    """INV-3: if a lost renewal ends after a newer one, its token is dropped."""
    world.source.token()
    held, committed = threading.Event(), threading.Event()

    def hold() -> None:
        world.backend.after_commit = lambda: None
        committed.set()
        held.wait(PATIENCE)

    world.backend.after_commit = hold
    world.clock.advance(3000)  # into the window
    assert world.source.token().value == "fake-token-1"  # a renewal starts in the background
    assert committed.wait(PATIENCE)
    world.clock.advance(40)  # longer than any flight may take
    assert world.source.renew().value == "fake-token-2"
    assert world.source.renew().value == "fake-token-3"
    held.set()
    land()
    assert world.source.token().value == "fake-token-3"
    assert world.process().token().value == "fake-token-3"


# --- 401 --------------------------------------------------------------------------------------------------------------


@both_colours
def test_blind_invalidation_drops_a_token_just_fetched(world: World, colour: str) -> None:
    """INV-6: a process that reports an old token gets its replacement, without a discard or a fetch."""
    other = world.process()
    old = world.source.token()
    assert other.token() == old
    new = other.renew()
    assert replace(world.source, old, colour) == new
    invalidated = world.source.invalidate(old) if colour == "threads" else asyncio.run(world.source.ainvalidate(old))
    assert invalidated is False
    assert world.process().token() == new
    assert world.provider.calls == 2


@both_colours
@pytest.mark.parametrize("good", ["fake-token-2", "none"], ids=["renewed", "refused again"])
def test_a_401_on_the_last_attempt_refreshes_but_never_resends(world: World, colour: str, good: str) -> None:
    """INV-6: each token that is fetched for a request is sent with it; a second 401 does not fetch."""
    sent: list[str] = []

    def resource(request: httpx.Request) -> httpx.Response:
        sent.append(request.headers["authorization"].removeprefix("Bearer "))
        return httpx.Response(200 if sent[-1] == good else 401)

    async def main() -> list[int]:
        transport = httpx.MockTransport(resource)
        async with httpx.AsyncClient(transport=transport, auth=TokenAuth(world.source)) as client:
            return [(await client.get("https://api.example")).status_code for _ in range(3)]

    if colour == "threads":
        with httpx.Client(transport=httpx.MockTransport(resource), auth=TokenAuth(world.source)) as client:
            statuses = [client.get("https://api.example").status_code for _ in range(3)]
    else:
        statuses = asyncio.run(main())
    assert statuses == [401 if good == "none" else 200] * 3
    assert sent == ["fake-token-1"] + ["fake-token-2"] * 3
    assert world.provider.calls == 2


# --- refresh tokens ---------------------------------------------------------------------------------------------------


class Rotating:
    """A provider of a server that rotates refresh tokens and refuses a spent one."""

    name = "fake"
    refreshing = True

    def __init__(self, wall: Callable[[], float]) -> None:
        self._wall = wall
        self.spent: list[str] = []

    def identity(self) -> Mapping[str, object]:
        """Return the user."""
        return {"user": "u"}

    def fetch(self, context: FetchContext) -> Token:
        """Spend the newest refresh token."""
        known = context.previous
        given = known.refresh_token if known is not None and known.refresh_token is not None else "r0"
        if given != f"r{len(self.spent)}":
            message = "the refresh token was spent"
            raise ProviderRejected(message, error="invalid_grant")
        self.spent.append(given)
        number, now = len(self.spent), self._wall()
        return Token(f"t{number}", expires_at=now + HOUR, issued_at=now, refresh_token=f"r{number}")


@both_colours
def test_a_rotated_refresh_token_stored_after_the_lease_is_freed(world: World, colour: str) -> None:
    """INV-2: the lease is still held when the record with the new refresh token is stored, without a gap."""
    held: list[str | None] = []
    source = world.process(Rotating(world.clock.wall))
    world.backend.before_commit = lambda key: held.append(MemoryBackend.inspect(world.backend, key).owner)
    ask(source, colour)
    assert len(held) == 1
    assert held[0] is not None
    assert world.backend.calls.count("release") == 0
    assert world.backend.inspect(source.key).owner is None


@both_colours
def test_a_rotated_refresh_token_not_stored_at_all(world: World, colour: str) -> None:
    """INV-3: each process, however late it renews, spends the newest refresh token."""
    provider = Rotating(world.clock.wall)
    for number in (1, 3, 5):
        source = world.process(provider)
        assert ask(source, colour).value == f"t{number}"
        newer = source.renew() if colour == "threads" else asyncio.run(source.arenew())
        assert newer.value == f"t{number + 1}"
        world.clock.advance(10 * HOUR)
    assert provider.spent == ["r0", "r1", "r2", "r3", "r4", "r5"]


# --- renewal ----------------------------------------------------------------------------------------------------------


@both_colours
def test_the_same_token_until_it_expires_makes_a_loop(world: World, colour: str) -> None:
    """INV-2: a provider that repeats its token is asked a few times in the window, not once per call."""
    world.provider.value = "same"
    source, other = world.source, world.process()
    assert ask(source, colour) == ask(other, colour)
    world.clock.advance(2900)  # into the window, 640 s before the usable end
    for _ in range(50):
        assert ask(source, colour).value == ask(other, colour).value == "same"
        land()
    assert world.provider.calls == 2
    world.clock.advance(161)  # a quarter of what remained
    for _ in range(50):
        assert ask(source, colour).value == "same"
        land()
    assert world.provider.calls == 3


@both_colours
def test_the_same_token_is_asked_for_by_each_process_that_starts(world: World, colour: str) -> None:
    """INV-2: in a rolling restart, new processes do not ask the provider again at once; later, one of them does."""
    world.provider.value = "same"
    ask(world.source, colour)
    world.clock.advance(2900)  # into the window
    for _ in range(20):
        source = world.process()
        assert ask(source, colour).value == ask(source, colour).value == "same"
        land()
    assert world.provider.calls == 2
    world.clock.advance(161)  # a quarter of what remained
    for _ in range(20):
        source = world.process()
        assert ask(source, colour).value == ask(source, colour).value == "same"
        land()
    assert world.provider.calls == 3


@both_colours
@pytest.mark.parametrize("lifetime", [1.0, 2.0, 10.0, 59.0, 240.0, 300.0])
def test_a_lifetime_shorter_than_the_window_makes_a_fetch_per_call(world: World, colour: str, lifetime: float) -> None:
    """INV-2: a token that lives shorter than the usual window is kept for at least half of its life."""
    provider = world.another_provider(lifetime)
    source = world.process(provider)
    for _ in range(50):
        assert ask(source, colour).value == "fake-token-1"
        world.clock.advance(lifetime / 2 / 101)
    land()
    assert provider.calls == 1


@both_colours
def test_a_start_discards_the_shared_token(world: World, colour: str) -> None:
    """INV-2: a process that starts or ends leaves the shared token in the store, and uses it."""
    token = world.source.token()
    stored = world.backend.load(world.source.key)
    for _ in range(3):
        with TokenCache(world.backend, clock=world.clock, wall=world.clock.wall, observers=[]) as cache:
            assert ask(cache.source(world.provider), colour) == token
    assert world.backend.load(world.source.key) == stored
    assert world.provider.calls == 1


# --- failures ---------------------------------------------------------------------------------------------------------


@both_colours
def test_a_retry_after_that_is_a_date_is_ignored(colour: str) -> None:
    """INV-7: "not before that date" holds for every process, by the server's own clock."""
    world = World(FakeClock(wall=time.time()))
    asked: list[httpx.Request] = []
    there = time.time() - 10_000  # the server's clock differs from ours

    def busy(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        if len(asked) > 1:
            return httpx.Response(200, json={"access_token": "good", "expires_in": 3600})
        dates = {"Date": formatdate(there, usegmt=True), "Retry-After": formatdate(there + 120, usegmt=True)}
        return httpx.Response(429, headers=dates)

    provider = of_server(busy)
    sources = [world.process(provider), world.process(provider)]
    for passed in (0, 60, 50):
        world.clock.advance(passed)
        for source in sources:
            with pytest.raises(ProviderUnavailable):
                ask(source, colour)
        assert len(asked) == 1
    world.clock.advance(15)
    assert [ask(source, colour).value for source in sources] == ["good", "good"]
    assert len(asked) == 2


@both_colours
@pytest.mark.parametrize(
    "failure", [RuntimeError("x"), TimeoutError(), httpx.ReadTimeout("x"), ProviderUnavailable("x")], ids=repr
)
def test_exceptions_and_timeouts_are_not_throttled(world: World, colour: str, failure: Exception) -> None:
    """INV-7: after any error of a provider no process asks again until a pause is over, and then one asks once."""
    world.provider.failure = failure
    sources = [world.source, world.process()]
    for calls in (1, 2):
        for source in sources * 10:
            with pytest.raises(ProviderUnavailable):
                ask(source, colour)
        assert world.provider.calls == calls
        world.clock.advance(120)  # longer than any backoff


@both_colours
@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(200, json={"error": "invalid_client"}),
        httpx.Response(200, json={"access_token": None, "expires_in": 3600}),
        httpx.Response(200, json={"access_token": " ", "expires_in": 3600}),
        httpx.Response(200, json={}),
        httpx.Response(200, text=""),
        httpx.Response(401, json={"error": "invalid_client"}),
    ],
    ids=["error", "null", "blank", "empty object", "empty body", "401"],
)
def test_a_failed_login_cached_as_if_it_were_a_token(colour: str, answer: httpx.Response) -> None:
    """INV-7: an answer without a token is not stored, whatever its status; the next good one is."""
    world = World(FakeClock(wall=time.time()))
    good = httpx.Response(200, json={"access_token": "good", "expires_in": 3600})
    answers = [answer, good]
    source = world.process(of_server(lambda request: answers.pop(0)))
    with pytest.raises((ProviderRejected, ProviderUnavailable)):
        ask(source, colour)
    assert world.backend.load(source.key) is None
    world.clock.advance(301)  # longer than any cooldown
    assert ask(source, colour).value == "good"


def of_server(answer: Callable[[httpx.Request], httpx.Response]) -> ClientCredentials:
    """Return a provider whose server gives this answer."""
    transport = httpx.MockTransport(answer)
    return ClientCredentials(
        token_url="https://id.example/token",
        client_id="c",
        client_secret="s",
        client=httpx.Client(transport=transport),
        async_client=httpx.AsyncClient(transport=transport),
    )
