"""The engine through its public methods: one fetch, early renewal, failures, refusals, on a clock that tests set."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tokencache import (
    BackendClosed,
    ConfigurationError,
    DeadlineExceeded,
    ProviderRejected,
    ProviderUnavailable,
    RefreshPolicy,
    Token,
    TokenCache,
    TokenSource,
)
from tokencache._engine import timer
from tokencache._engine.flow import Obtained
from tokencache.backends.memory import MemoryBackend
from tokencache.events import (
    BackendFailed,
    BackendRecovered,
    FetchFailed,
    RecordIgnored,
    TokenFetched,
    TokenInvalidated,
    TokenLoaded,
    TokenUnchanged,
)
from tokencache.ports import Cooldown, Granted, LeaseGrant, Stored
from tokencache.testing.fakes import FakeClock, FakeProvider, FlakyBackend, Recorder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tokencache._engine.flights import Flight
    from tokencache.ports import FetchContext, Reason

HOUR = 3600.0


class World:
    """A cache on a memory backend, with its clocks, provider and observer."""

    def __init__(self, **policy: float) -> None:
        self.clock = FakeClock()
        self.provider = FakeProvider(lifetime=HOUR, wall=self.clock.wall)
        self.backend = FlakyBackend(self.clock)
        self.seen = Recorder()
        self.policy = RefreshPolicy(jitter=0.0, **policy)
        self.cache = self.another()
        self.source = self.cache.source(self.provider)

    def another(self) -> TokenCache:
        """Return a cache as in another process: its own sources, the same backend."""
        return TokenCache(
            self.backend,
            policy=self.policy,
            observers=[self.seen],
            clock=self.clock,
            wall=self.clock.wall,
        )

    def settle(self, source: TokenSource | None = None) -> None:
        """Wait until no flight is open."""
        source = source or self.source
        for thread in threading.enumerate():
            if thread.name == f"tokencache-{source.provider}":
                thread.join(10)


@pytest.fixture
def world() -> Iterator[World]:
    """A fresh world."""
    world = World()
    yield world
    world.settle()


def test_a_token_is_fetched_once_and_then_served_from_the_local_copy(world: World) -> None:
    """INV-2: the second call reads neither the backend nor the provider."""
    first = world.source.token()
    world.backend.calls.clear()
    assert world.source.token() is first
    assert world.backend.calls == []
    assert world.provider.calls == 1


def test_a_miss_takes_three_backend_calls(world: World) -> None:
    """A cold call loads, leases and commits."""
    world.source.token()
    assert world.backend.calls == ["load", "lease", "commit"]


def test_a_token_of_another_process_takes_one_backend_call(world: World) -> None:
    """To read a shared token, the process loads once."""
    token = world.source.token()
    world.backend.calls.clear()
    other = world.another().source(world.provider)
    assert other.token() == token
    assert world.backend.calls == ["load"]
    assert world.provider.calls == 1
    assert len(world.seen.of(TokenLoaded)) == 1


def test_threads_and_loops_share_one_flight(world: World) -> None:
    """INV-2: sync and async callers of one source share the flight and the local copy."""
    world.provider.gate.clear()
    got: list[Token] = []

    async def many() -> None:
        got.extend(await asyncio.gather(*(world.source.atoken() for _ in range(20))))

    threads = [threading.Thread(target=lambda: got.append(world.source.token())) for _ in range(20)]
    threads += [threading.Thread(target=lambda: asyncio.run(many())) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert world.provider.started.wait(10)
    world.provider.gate.set()
    for thread in threads:
        thread.join(10)
    assert len(got) == 80
    assert set(got) == {world.source.token()}
    assert world.provider.calls == 1


@pytest.mark.parametrize(
    ("lifetime", "early", "window"),
    [
        (86400.0, 60, 3600),
        (3600.0, 60, 720),
        (600.0, 60, 120),
        (10.0, 1, 2),
        (2.0, 0.2, 1),
        (1.0, 0.1, 0.5),
        (2_592_000.0, 60, 3600),
    ],
)
def test_renewal_begins_before_the_usable_end_without_a_wait(lifetime: float, early: float, window: float) -> None:
    """INV-1, INV-4: exactly at refresh_at a renewal starts in the background, and callers keep the token meanwhile."""
    world = World()
    world.provider.lifetime = lifetime
    first = world.source.token()
    tick = lifetime / 1e6
    world.clock.advance(lifetime - early - window - tick)
    assert world.source.token() is first
    assert world.provider.calls == 1
    world.clock.advance(2 * tick)
    world.provider.started.clear()
    world.provider.gate.clear()
    assert world.source.token() is first  # while the renewal runs
    assert world.provider.started.wait(10)
    world.provider.gate.set()
    world.settle()
    assert world.provider.calls == 2
    assert world.source.token() is not first


def test_callers_keep_the_hot_path_during_a_renewal(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """INV-4: one caller starts the renewal; until it ends the others neither look at the flight nor take a lock."""
    first = world.source.token()
    world.clock.advance(HOUR - 60 - 700)
    world.provider.started.clear()
    world.provider.gate.clear()
    assert world.source.token() is first
    assert world.provider.started.wait(10)
    with monkeypatch.context() as patch:
        patch.setattr(TokenSource, "_serve_and_refresh", None)
        for _ in range(3):
            assert world.source.token() is first
    world.provider.gate.set()
    world.settle()
    assert world.source.token() is not first


@pytest.mark.parametrize("lifetime", [1.0, 2.0, 60.0, 3600.0])
def test_a_token_is_not_served_at_its_usable_end(lifetime: float) -> None:
    """INV-1: one tick before its usable end the token is served, and at the end it is not."""
    world = World()
    world.provider.lifetime = lifetime
    world.source.token()
    world.provider.failure = ProviderUnavailable("down")
    early = min(60.0, lifetime / 10)
    world.clock.advance(lifetime - early - 1e-4)
    assert world.source.token()
    world.settle()
    world.clock.advance(1e-4 + 1e-6)
    with pytest.raises(ProviderUnavailable):
        world.source.token()


@pytest.mark.parametrize("step", [-7200.0, 7200.0])
def test_a_wall_clock_step_changes_nothing(world: World, step: float) -> None:
    """INV-1: the steady clock counts for the local copy."""
    first = world.source.token()
    world.clock.step(step)
    assert world.source.token() is first
    world.clock.advance(HOUR)
    assert world.source.token() is not first


def test_a_failing_renewal_is_hidden_until_the_usable_end(world: World) -> None:
    """INV-4, INV-7: callers get the usable token while attempts back off; then a clear error; then recovery."""
    first = world.source.token()
    world.provider.failure = ProviderUnavailable("HTTP 500")
    world.clock.advance(HOUR - 60 - 719)
    for _ in range(719):
        assert world.source.token() is first
        world.settle()
        world.clock.advance(1)
    attempts = world.provider.calls - 1
    assert 5 <= attempts <= 200
    assert all(event.served for event in world.seen.of(FetchFailed))  # type: ignore[attr-defined]
    world.clock.advance(60)
    with pytest.raises(ProviderUnavailable, match="HTTP 500"):
        world.source.token()
    calls = world.provider.calls
    with pytest.raises(ProviderUnavailable):
        world.source.token()
    assert world.provider.calls == calls, "the cooldown holds"
    world.provider.failure = None
    world.clock.advance(60)
    assert world.source.token() is not first


def test_wrong_credentials_are_not_retried_in_a_loop(world: World) -> None:
    """INV-7: a rejection holds for the whole fleet, and keeps its fields."""
    world.provider.failure = ProviderRejected("no", error="invalid_client", status=401)
    with pytest.raises(ProviderRejected):
        world.source.token()
    other = world.another().source(world.provider)
    for source in (world.source, other):
        for _ in range(20):
            with pytest.raises(ProviderRejected, match="no") as caught:
                source.token()
            assert (caught.value.error, caught.value.status) == ("invalid_client", 401)
            world.clock.advance(1.01)
    assert world.provider.calls == 1


def test_a_cooldown_binds_only_the_identity_that_caused_it(world: World) -> None:
    """INV-7: a wrongly configured process does not stop others, even under one key."""
    wrong = FakeProvider(secret="wrong", wall=world.clock.wall)
    wrong.failure = ProviderRejected("no", error="invalid_client")
    with pytest.raises(ProviderRejected):
        world.cache.source(wrong, key="shared").token()
    assert world.another().source(world.provider, key="shared").token()


def test_retry_after_is_kept_by_the_fleet(world: World) -> None:
    """INV-7: no process asks before retry_at, which is at most 300 s ahead."""
    world.provider.failure = ProviderUnavailable("429", retry_at=world.clock.wall() + 10_000)
    with pytest.raises(ProviderUnavailable):
        world.source.token()
    world.provider.failure = None
    world.clock.advance(299)
    with pytest.raises(ProviderUnavailable):
        world.another().source(world.provider).token()
    assert world.provider.calls == 1
    world.clock.advance(2)
    assert world.source.token()


def test_another_identitys_record_is_never_used(world: World) -> None:
    """INV-10: if two sources share a manual key, a rotated secret counts at once, and an event warns."""
    old = world.cache.source(world.provider, key="shared").token()
    rotated = FakeProvider("rotated", secret="new", wall=world.clock.wall)
    new = world.cache.source(rotated, key="shared").token()
    assert new.value != old.value
    assert rotated.calls == 1
    assert len(world.seen.of(RecordIgnored)) >= 1


def test_another_programs_record_of_two_fields_is_accepted(world: World) -> None:
    """A record of another program is a valid token for every process with the key."""
    end = int(world.clock.wall()) + 3600
    record = f'{{"accessToken":"foreign","expiresAt":{end}}}'.encode()
    grant = world.backend.lease("shared", "them", "", None, 3)
    world.backend.commit(grant.lease, record, 3540)  # type: ignore[union-attr]
    source = world.cache.source(world.provider, key="shared")
    assert source.token().value == "foreign"
    assert world.provider.calls == 0


def plain(world: World, value: str) -> None:
    """Store a record of another program, which does not say whose it is."""
    end = int(world.clock.wall()) + 3600
    data = f'{{"accessToken":"{value}","expiresAt":{end}}}'.encode()
    assert world.backend.commit(LeaseGrant("shared", "them", 2**53 - 1, 3), data, 3540)


def test_a_nameless_record_is_not_taken_where_another_identity_was_seen(world: World) -> None:
    """INV-10: after a record of other credentials at the key, one that does not say whose it is may be theirs."""
    world.another().source(FakeProvider("theirs", secret="theirs", wall=world.clock.wall), key="shared").token()
    source = world.cache.source(world.provider, key="shared")
    assert source.token().value == "fake-token-1"
    plain(world, "plain")
    world.clock.advance(3600)
    plain(world, "plain-too")
    assert source.token().value == "fake-token-2"
    assert any("does not say whose it is" in event.message for event in world.seen.of(RecordIgnored))
    assert world.another().source(world.provider, key="shared").token().value == "fake-token-2"


def test_a_nameless_record_is_not_taken_by_two_sources_of_one_key(world: World) -> None:
    """INV-10: a cache with two identities at one key knows that such a record is wrong for one of them."""
    plain(world, "plain")
    theirs = FakeProvider("theirs", secret="theirs", wall=world.clock.wall)
    theirs.value = "other"
    one, two = (world.cache.source(provider, key="shared") for provider in (world.provider, theirs))
    assert {one.token().value, two.token().value} == {"fake-token-1", "other"}
    assert world.provider.calls == theirs.calls == 1


def test_one_identity_twice_takes_the_record_of_one_writer(world: World) -> None:
    """A second source of the same credentials contests nothing, and another key has a use of its own."""
    plain(world, "plain")
    world.cache.source(FakeProvider("theirs", secret="theirs", wall=world.clock.wall), key="elsewhere")
    one = world.cache.source(world.provider, key="shared")
    two = world.cache.source(world.provider, key="shared", policy=RefreshPolicy(early=10))
    assert one is not two
    assert one.token().value == two.token().value == "plain"


@pytest.mark.parametrize("junk", [b"", b"{", b"[]", b'{"v":99,"accessToken":"x","expiresAt":2e9}', b"\xff" * 100])
def test_an_unreadable_record_is_a_miss(world: World, junk: bytes) -> None:
    """An unreadable record is replaced, and an event warns."""
    grant = world.backend.lease("shared", "them", "", None, 3)
    world.backend.commit(grant.lease, junk, 3540)  # type: ignore[union-attr]
    assert world.cache.source(world.provider, key="shared").token().value == "fake-token-1"
    assert len(world.seen.of(RecordIgnored)) >= 1


def test_many_reports_of_one_refused_token_cause_one_renewal(world: World) -> None:
    """INV-6: after 50 reports of one 401 there is one fetch, and all get its token."""
    bad = world.source.token()
    got: list[Token | None] = []
    threads = [threading.Thread(target=lambda: got.append(world.source.replace(bad))) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert {token.value for token in got if token} == {"fake-token-2"}
    assert len(got) == 50
    assert world.provider.calls == 2


def test_a_refused_replacement_is_not_replaced_at_once(world: World) -> None:
    """INV-6: the 401 reaches the caller, here and in another process; after a pause the token may be replaced again."""
    second = world.source.replace(world.source.token())
    assert second is not None
    assert world.source.replace(second) is None
    assert world.another().source(world.provider).replace(second) is None
    assert world.source.token() is second
    assert world.provider.calls == 2
    world.clock.advance(6)
    third = world.source.replace(second)
    assert third is not None
    assert (third.value, world.provider.calls) == ("fake-token-3", 3)


def test_a_process_without_the_refused_token_replaces_it(world: World) -> None:
    """INV-6: another process may have handed the token over; one fetch follows, even if the new token ends no later."""
    bad = world.source.token()
    stranger = world.another().source(world.provider)
    good = stranger.replace(bad)
    assert good is not None
    assert (good.value, world.provider.calls) == ("fake-token-2", 2)
    late = world.another().source(world.provider)
    assert late.replace(bad) == good, "what the fleet has by now is another token, and costs nothing"
    assert world.another().source(world.provider).replace(good) is None, "it has just replaced a refused one"
    assert world.provider.calls == 2
    assert world.source.replace(bad) == good
    assert world.provider.calls == 2


def test_a_process_without_backend_and_provider_leaves_the_401(world: World) -> None:
    """INV-6: neither the stored token nor another error replaces the 401."""
    bad = world.source.token()
    world.provider.failure = ProviderUnavailable("gone")
    assert world.another().source(world.provider).replace(bad) is None
    world.backend.down = FlakyBackend.EVERYTHING
    assert world.another().source(world.provider).replace(bad) is None


def test_a_replacement_fetched_by_another_caller_counts(world: World) -> None:
    """INV-6: if another caller asks first after a report, its fetched token counts as the replacement."""
    world.source.invalidate(world.source.token())
    young = world.source.token()
    assert world.source.replace(young) is None
    assert world.provider.calls == 2


def test_a_repeated_refused_token_is_not_asked_for_again(world: World) -> None:
    """INV-6: if the provider repeats the refused token, the caller keeps the 401."""
    world.provider.value = "same"
    bad = world.source.token()
    assert world.source.replace(bad) is None
    assert world.provider.calls == 2
    assert world.source.replace(bad) is None
    assert world.provider.calls == 2


def test_invalidate_drops_only_the_named_token(world: World) -> None:
    """INV-6: the backend compares and discards."""
    first = world.source.token()
    second = world.source.renew()
    assert not world.source.invalidate(first)
    assert world.source.token() is second
    assert world.source.invalidate(second)
    assert world.backend.load(world.source.key) is None
    assert len(world.seen.of(TokenInvalidated)) == 1
    assert world.source.token().value == "fake-token-3"


def test_renew_is_one_fetch_for_the_fleet(world: World) -> None:
    """INV-2: a process that renews a token which another process has renewed gets that process's token."""
    other = world.another().source(world.provider)
    assert other.token() == world.source.token()
    second = world.source.renew()
    assert other.renew() == second
    assert world.provider.calls == 2


def test_an_unchanged_token_is_kept_and_asked_for_later(world: World) -> None:
    """A provider that repeats its token is not asked again before max(30 s, a quarter of what remains)."""
    world.provider.value = "same"
    first = world.source.token()
    world.clock.advance(HOUR - 60 - 700)
    assert world.source.token() is first
    world.settle()
    assert world.provider.calls == 2
    assert len(world.seen.of(TokenUnchanged)) == 1
    for _ in range(17):
        world.clock.advance(10)
        assert world.source.token() is first
        world.settle()
    assert world.provider.calls == 2
    world.clock.advance(10)
    world.source.token()
    world.settle()
    assert world.provider.calls == 3


def test_an_unchanged_token_is_reported_to_the_fleet(world: World) -> None:
    """INV-2: of two processes in the window, only one asks a provider that has no newer token."""
    world.provider.value = "same"
    other = world.another().source(world.provider)
    world.source.token()
    other.token()
    world.clock.advance(HOUR - 60 - 700)
    for source in (world.source, other):
        source.token()
        world.settle(source)
    assert world.provider.calls == 2


def test_a_process_goes_on_without_its_backend(world: World) -> None:
    """INV-5: without its backend a cold process fetches, reports the outage once, and shares again afterwards."""
    world.backend.down = FlakyBackend.EVERYTHING
    first = world.source.token()
    assert world.provider.calls == 1
    assert len(world.seen.of(BackendFailed)) == 1
    world.clock.advance(0.5)
    assert world.source.token() is first
    world.backend.down = frozenset()
    world.clock.advance(1)
    assert world.source.token() is first
    world.settle()
    assert world.provider.calls == 1
    assert world.another().source(world.provider).token() == first
    assert len(world.seen.of(BackendRecovered)) >= 1


def test_an_outage_costs_one_probe_a_second(world: World) -> None:
    """INV-5: a hundred calls in a second call a failed backend once, and it is called each second."""
    world.backend.down = FlakyBackend.EVERYTHING
    world.source.token()
    world.backend.calls.clear()
    for _ in range(10):
        world.clock.advance(1.01)
        for _ in range(100):
            world.source.token()
        world.settle()
    assert world.backend.calls == ["lease"] * 10
    assert world.provider.calls == 1


def test_an_outage_does_not_start_the_renewal_earlier(world: World) -> None:
    """INV-5: for half the window the current token is served; then it is renewed without the backend."""
    first = world.source.token()
    world.backend.down = FlakyBackend.EVERYTHING
    world.clock.advance(HOUR - 60 - 719)
    assert world.source.token() is first
    world.settle()
    assert world.provider.calls == 1
    world.clock.advance(400)
    world.source.token()
    world.settle()
    assert world.provider.calls == 2
    assert world.source.token() is not first


def test_a_store_that_cannot_write_does_not_lose_the_token(world: World) -> None:
    """INV-4: callers still get the token if the store is full."""
    world.backend.down = frozenset({"lease", "commit", "release"})
    assert world.source.token().value == "fake-token-1"
    events = world.seen.of(TokenFetched)
    assert [event.shared for event in events] == [False]  # type: ignore[attr-defined]


def test_a_late_commit_never_replaces_a_newer_record(world: World) -> None:
    """INV-3: a holder that lost its lease takes the newer token."""
    world.provider.gate.clear()
    got: list[Token] = []
    late = threading.Thread(target=lambda: got.append(world.source.token()))
    late.start()
    assert world.provider.started.wait(10)
    world.clock.advance(4)  # beyond the lease, with no heartbeat in between
    quick = FakeProvider(wall=world.clock.wall)
    quick.value = "newer"
    newer = world.another().source(quick).token()
    world.provider.gate.set()
    late.join(10)
    assert newer.value == "newer"
    assert got == [newer]
    assert world.source.token() == newer


def test_a_timeout_ends_the_wait_but_not_the_flight(world: World) -> None:
    """INV-8: a caller leaves at its own deadline; the fetch goes on for the next caller."""
    world.provider.gate.clear()
    with pytest.raises(DeadlineExceeded):
        world.source.token(0.0)
    with pytest.raises(TimeoutError):
        asyncio.run(world.source.atoken(0.0))
    world.provider.gate.set()
    world.settle()
    assert world.source.token()


@pytest.mark.parametrize("exception", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_an_interrupted_leader_harms_no_other_caller(world: World, exception: type[BaseException]) -> None:
    """INV-8: another caller leads next, and the lease is free at once."""
    world.provider.gate.clear()
    world.provider.failure = exception()
    hit: list[BaseException] = []
    got: list[Token] = []

    def lead() -> None:
        try:
            world.source.token()
        except BaseException as error:
            hit.append(error)

    leader = threading.Thread(target=lead)
    leader.start()
    assert world.provider.started.wait(10)
    joiners = [threading.Thread(target=lambda: got.append(world.source.token())) for _ in range(10)]
    for joiner in joiners:
        joiner.start()
    original = world.provider._answer

    def once() -> Token:
        world.provider._answer = original  # type: ignore[method-assign]
        failure, world.provider.failure = world.provider.failure, None
        assert failure is not None
        raise failure

    world.provider._answer = once  # type: ignore[method-assign]
    world.provider.gate.set()
    leader.join(10)
    for joiner in joiners:
        joiner.join(10)
    assert hit == []
    assert len(got) == 10
    assert len(set(got)) == 1
    assert world.provider.calls == 2


def test_a_cancelled_leader_on_a_loop_leaves_the_fetch_to_others(world: World) -> None:
    """INV-8, INV-2: only the caller is cancelled, not the flight: there is still one fetch."""

    async def main() -> list[Token]:
        world.provider.gate.clear()
        leader = asyncio.create_task(world.source.atoken())
        while not world.provider.started.is_set():
            await asyncio.sleep(0)
        others = [asyncio.create_task(world.source.atoken()) for _ in range(20)]
        await asyncio.sleep(0)
        leader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leader
        world.provider.gate.set()
        return await asyncio.gather(*others)

    assert len(set(asyncio.run(main()))) == 1
    assert world.provider.calls == 1


def test_a_closed_loop_abandons_its_flight(world: World) -> None:
    """INV-8: if a loop ends during a fetch, no caller hangs, and the lease is free."""
    world.provider.gate.clear()

    async def start() -> None:
        task = asyncio.create_task(world.source.atoken())
        while not world.provider.started.is_set():
            await asyncio.sleep(0)
        del task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(_cancelled(start))
    world.provider.gate.set()
    assert world.source.token()
    assert world.provider.calls == 2


async def _cancelled(start: Callable[[], object]) -> None:
    """Run ``start`` and end as a closing loop does."""
    await start()  # type: ignore[misc]
    raise asyncio.CancelledError


def test_each_caller_gets_its_own_error(world: World) -> None:
    """INV-8: the waiters of a failed flight raise equal errors, without a shared traceback."""
    world.provider.failure = ProviderUnavailable("down", status=503)
    world.provider.gate.clear()
    errors: list[ProviderUnavailable] = []

    def ask() -> None:
        with pytest.raises(ProviderUnavailable) as caught:
            world.source.token()
        errors.append(caught.value)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    assert world.provider.started.wait(10)
    world.provider.gate.set()
    for thread in threads:
        thread.join(10)
    assert len(errors) == 8
    assert len({id(error) for error in errors}) == 8
    assert {(str(error), error.status) for error in errors} == {("down", 503)}


def test_a_caller_leaves_a_hung_provider_at_its_deadline(world: World) -> None:
    """INV-8: this also holds for a caller without its own timeout, and for any provider."""

    class Hung(FakeProvider):
        """A provider that ignores time-outs."""

        def fetch(self, context: FetchContext) -> Token:
            """Hang until the gate is open."""
            self.gate.wait()
            return super().fetch(context)

    provider = Hung(wall=world.clock.wall)
    provider.gate.clear()
    source = world.cache.source(provider, policy=RefreshPolicy(timeout=0.05))
    left: list[BaseException] = []

    def ask() -> None:
        with pytest.raises(DeadlineExceeded) as caught:
            source.token()
        left.append(caught.value)

    caller = threading.Thread(target=ask)
    caller.start()
    while caller.is_alive():
        world.clock.advance(0.1)
        caller.join(0.01)
    provider.gate.set()
    assert left


def test_a_flight_of_a_stopped_loop_is_taken_over(world: World) -> None:
    """INV-8: a renewal on a stopped loop does not block other callers."""
    loop = asyncio.new_event_loop()
    world.provider.gate.clear()

    async def leave() -> None:
        task = asyncio.create_task(world.source.atoken())
        while not world.provider.started.is_set():
            await asyncio.sleep(0)
        task.cancel()

    loop.run_until_complete(leave())
    world.provider.gate.set()
    world.clock.advance(4)  # beyond the lease of the abandoned flight
    assert world.source.token()
    assert asyncio.run(world.source.atoken())
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    loop.run_until_complete(asyncio.wait(left))
    loop.close()


def test_a_failed_thread_start_leaves_the_usable_token(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """INV-4: at a limit of threads the renewal is delayed, and the caller gets its token."""
    first = world.source.token()
    world.clock.advance(HOUR - 60 - 700)

    def refuse(thread: threading.Thread) -> None:
        message = "can't start new thread"
        raise RuntimeError(message)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        assert world.source.token() is first
        assert world.source.token() is first
    world.clock.advance(2)
    assert world.source.token() is first
    world.settle()
    assert world.source.token() is not first


def test_a_caller_fetches_on_its_own_thread_if_none_can_start(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """INV-8: at a limit of threads, or at the interpreter's exit, the caller's own thread runs the fetch."""

    def refuse(thread: threading.Thread) -> None:
        message = "can't start new thread"
        raise RuntimeError(message)

    monkeypatch.setattr(timer, "_heartbeat", timer.Heartbeat())
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        first = world.source.token()
        assert world.source.token() is first
        world.provider.failure = ProviderUnavailable("busy")
        with pytest.raises(ProviderUnavailable, match="busy"):
            world.source.renew()
    assert world.provider.calls == 2
    assert world.backend.inspect(world.source.key).owner is None


def test_a_thread_that_starts_in_spite_of_an_error_fetches_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """INV-2: an interrupt may make ``Thread.start()`` raise although the thread runs; one fetch is made."""
    start, fly, flown = threading.Thread.start, TokenSource._fly, []

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        if thread.name.startswith("tokencache-fake"):
            assert world.provider.started.wait(30)
            world.provider.gate.set()
            message = "cannot release un-acquired lock"
            raise RuntimeError(message)

    def counted(source: TokenSource, flight: Flight, reason: Reason) -> None:
        flown.append(reason)
        fly(source, flight, reason)

    world.provider.gate.clear()
    monkeypatch.setattr(TokenSource, "_fly", counted)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupted)
        first = world.source.token()
    assert world.source.token() is first
    assert flown == ["cold"]
    assert world.provider.calls == 1


def test_a_process_keeps_its_own_cooldown_after_the_store_lost_it(world: World) -> None:
    """INV-7: two wrong credentials under one key overwrite each other's cooldown, and are still sent once each."""
    wrong = [FakeProvider(f"wrong{number}", secret=f"wrong{number}", wall=world.clock.wall) for number in range(2)]
    sources = [world.another().source(provider, key="shared") for provider in wrong]
    for provider in wrong:
        provider.failure = ProviderRejected("no", error="invalid_client")
    for _ in range(20):
        for source in sources:
            with pytest.raises(ProviderRejected):
                source.token()
        world.clock.advance(1.5)
    assert [provider.calls for provider in wrong] == [1, 1]


def test_a_failed_commit_frees_the_lease(world: World) -> None:
    """INV-2: other processes do not wait for the lease of a holder that could not store its token."""
    world.backend.down = frozenset({"commit"})
    world.source.token()
    assert world.backend.inspect(world.source.key).owner is None


@pytest.mark.parametrize("timeout", [float("nan"), -1.0])
def test_an_invalid_timeout_is_refused(world: World, timeout: float) -> None:
    """An invalid timeout is an error at once."""
    with pytest.raises(ConfigurationError, match="timeout"):
        world.source.token(timeout)


@pytest.mark.parametrize("timeout", [float("inf"), 1e300])
def test_an_infinite_timeout_is_clamped(world: World, timeout: float) -> None:
    """A clock cannot count an infinite timeout, so it becomes a long one."""
    assert world.source.token(timeout)
    assert asyncio.run(world.another().source(world.provider).atoken(timeout))


def test_a_token_that_ended_during_its_fetch_is_not_returned(world: World) -> None:
    """INV-1: if a fetch takes longer than its token lives, the caller gets no token."""
    world.provider.lifetime = 5
    answer = world.provider._answer

    def slow() -> Token:
        token = answer()
        world.clock.advance(6)
        return token

    world.provider._answer = slow  # type: ignore[method-assign]
    with pytest.raises(ProviderUnavailable, match="ended when it arrived"):
        world.source.token()


def test_equal_providers_get_the_same_source(world: World) -> None:
    """Sources are found by identity, with the secret; their table is bounded."""
    twin = FakeProvider(wall=world.clock.wall)
    assert world.cache.source(twin) is world.source
    assert world.cache.source(FakeProvider(secret="other")) is not world.source
    small = TokenCache("memory://", sources=2)
    sources = [small.source(dict, key=str(number)) for number in range(5)]
    assert len(small._table) == 2
    assert small.source(dict, key="4") is sources[4]


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda cache: cache.source("no-such-provider"), "no-such-provider"),
        (lambda cache: cache.source(dict), "key="),
        (lambda cache: cache.source(42), "int"),
        (lambda cache: TokenCache("nosuch://"), "nosuch"),
        (lambda cache: TokenCache("memory://?sise=3"), "size"),
        (lambda cache: TokenCache("memory://?size=0"), "at least one"),
        (lambda cache: RefreshPolicy(early=-1), "early"),
        (lambda cache: RefreshPolicy(jitter=1), "jitter"),
        (lambda cache: RefreshPolicy(lease=0), "lease"),
        (lambda cache: RefreshPolicy(window=float("nan")), "window"),
    ],
)
def test_wrong_settings_are_refused_at_once(make: Callable[[TokenCache], object], text: str) -> None:
    """A wrong setting is a ConfigurationError that names it."""
    with pytest.raises(ConfigurationError, match=text):
        make(TokenCache("memory://"))


def test_a_closed_cache_serves_only_its_local_copies() -> None:
    """After close() the local copy is still served; a new source is refused."""
    with TokenCache("memory://") as cache:
        source = cache.source(lambda: {"access_token": "x", "expires_in": 60}, key="k")
        token = source.token()
        cold = cache.source(lambda: {"access_token": "x", "expires_in": 60}, key="cold")
    assert source.token() is token
    with pytest.raises(BackendClosed):
        cold.token()
    with pytest.raises(BackendClosed):
        cache.source(dict, key="k2")


def test_a_backend_that_was_passed_in_stays_open() -> None:
    """Only its caller closes a backend that was passed in."""
    backend = MemoryBackend()
    with TokenCache(backend) as cache:
        cache.source(lambda: {"access_token": "x", "expires_in": 60}, key="k").token()
    assert backend.load("k") is not None


def stored_at(world: World) -> bytes:
    """Return the record at the key of the world's source."""
    stored = world.backend.load(world.source.key)
    assert stored is not None
    return stored.data


def test_status_shows_all_but_the_secret(world: World) -> None:
    """INV-9: status shows key, instants, lease, cooldown and health, and no token."""
    token = world.source.token()
    status = world.source.status()
    assert (status.local, status.stored, status.healthy) == (True, "ours", True)
    assert (status.provider, status.key, status.backend) == ("fake", world.source.key, "memory")
    assert status.expires_at == token.expires_at
    assert status.usable_until == token.expires_at - 60
    assert status.refresh_at == token.expires_at - 60 - 720
    assert (status.lease_owner, status.lease_remaining, status.cooldown) == (None, None, None)
    assert token.value not in str(status.as_dict())
    assert status.round_trip is not None
    assert replace(asyncio.run(world.source.astatus()), round_trip=None) == replace(status, round_trip=None)
    grant = world.backend.lease(world.source.key, "another", status.identity, stored_at(world), 3.0)
    assert (world.source.status().lease_owner, world.source.status().lease_remaining) == ("another", 3.0)
    cooldown = Cooldown(status.identity, 5.0, permanent=False, attempt=2, message="busy")
    world.backend.release(grant.lease, cooldown)  # type: ignore[union-attr]
    assert (world.source.status().lease_owner, world.source.status().cooldown) == (None, cooldown)
    world.backend.down = FlakyBackend.EVERYTHING
    assert not world.source.status().healthy
    assert world.source.status().stored == "unknown"


def test_the_async_half_behaves_as_the_sync_half(world: World) -> None:
    """The methods are arenew, ainvalidate, areplace and aclose."""

    async def main() -> None:
        async with world.another() as cache:
            source = cache.source(world.provider)
            first = await source.atoken()
            second = await source.arenew()
            assert second != first
            assert not await source.ainvalidate(first)
            assert await source.ainvalidate(second)
            third = await source.atoken()
            assert await source.areplace(third) is None
            world.clock.advance(world.policy.settle)
            fourth = await source.areplace(third)
            assert fourth is not None
            assert await source.areplace(fourth) is None

    asyncio.run(main())
    assert world.provider.calls == 4


def test_a_renewal_on_a_loop_does_not_block_callers(world: World) -> None:
    """INV-4: on an event loop, too, the renewal runs in the background."""

    async def main() -> None:
        first = await world.source.atoken()
        world.clock.advance(HOUR - 60 - 700)
        world.provider.gate.clear()
        for _ in range(5):
            assert await world.source.atoken() is first
        while world.provider.calls < 2:
            await asyncio.sleep(0)
        world.provider.gate.set()
        while await world.source.atoken() is first:
            await asyncio.sleep(0)

    asyncio.run(main())
    assert world.provider.calls == 2
    assert world.provider.together == 1


@pytest.mark.parametrize("half", ["fetch", "afetch"])
def test_a_provider_with_one_half_serves_all_callers(half: str) -> None:
    """It serves threads, loops, and threads inside a running loop."""

    def fetch() -> dict[str, object]:
        return {"access_token": "x", "expires_in": 60}

    async def afetch() -> dict[str, object]:
        return fetch()

    def fresh() -> TokenSource:
        return TokenCache("memory://").source(fetch if half == "fetch" else afetch, key="k")

    async def inside() -> Token:
        return fresh().token()

    assert fresh().token().value == "x"
    assert asyncio.run(fresh().atoken()).value == "x"
    assert asyncio.run(inside()).value == "x"


def test_any_error_of_a_provider_is_translated(world: World) -> None:
    """INV-4, INV-9: an unknown exception becomes ProviderUnavailable, without its text."""
    world.provider.failure = RuntimeError("secret-in-the-text")
    with pytest.raises(ProviderUnavailable) as caught:
        world.source.token()
    assert "RuntimeError" in str(caught.value)
    assert "secret-in-the-text" not in str(caught.value)


def test_an_observer_that_raises_harms_no_caller(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """An observer's exception is logged and not raised."""

    def bad(event: object) -> None:
        message = "observer"
        raise RuntimeError(message)

    cache = TokenCache("memory://", observers=[bad])
    assert cache.source(lambda: {"access_token": "x", "expires_in": 60}, key="k").token()
    assert "an observer raised" in caplog.text


def test_a_fetch_writes_its_log_line(caplog: pytest.LogCaptureFixture) -> None:
    """The line is the one that operators of the old service know."""
    clock = FakeClock()
    provider = FakeProvider("qpay", lifetime=HOUR, wall=clock.wall)
    with caplog.at_level("INFO", logger="tokencache"):
        TokenCache(MemoryBackend(clock=clock), clock=clock, wall=clock.wall).source(provider).token()
    assert "[qpay] token fetched and cached (expires in 3540s)" in caplog.text


def test_an_unchanged_token_is_not_served_past_its_end(world: World) -> None:
    """INV-1: the pause after an unchanged token ends with that token."""
    world.provider.value = "same"
    world.provider.lifetime = 10
    first = world.source.token()
    world.clock.advance(8)
    assert world.source.token() is first
    world.settle()
    assert len(world.seen.of(TokenUnchanged)) == 1
    world.clock.advance(1.5)
    assert world.source.token() is not first


def test_a_failure_without_the_backend_leaves_a_cooldown(world: World) -> None:
    """INV-5, INV-7: without backend and provider, the process does not ask again until the backoff is over."""
    world.backend.down = FlakyBackend.EVERYTHING
    world.provider.failure = ProviderRejected("no")
    for _ in range(20):
        with pytest.raises(ProviderRejected):
            world.source.token()
        world.clock.advance(10)
    assert world.provider.calls == 1


def test_a_late_result_does_not_replace_a_newer_token(world: World) -> None:
    """INV-3: the late result of a lost flight is dropped if the process has a newer token."""
    world.source.token()
    older = world.source._copy
    second = world.source.renew()
    assert older is not None
    world.source._apply(Obtained(older))
    assert world.source.token() is second


def test_the_backend_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The order is TOKENCACHE_BACKEND, REDIS_DATABASE_URI, then a backend in this process."""
    monkeypatch.delenv("TOKENCACHE_BACKEND", raising=False)
    monkeypatch.delenv("REDIS_DATABASE_URI", raising=False)
    assert TokenCache()._backend.name == "memory"
    monkeypatch.setenv("REDIS_DATABASE_URI", "redis://localhost:1/0")
    assert TokenCache()._backend.name == "redis"
    monkeypatch.setenv("TOKENCACHE_BACKEND", (tmp_path / "tokens").as_uri())
    assert TokenCache()._backend.name == "file"


def test_a_caller_interrupted_before_its_flight_runs_strands_no_waiter(world: World) -> None:
    """INV-8: an interrupt between lead and start leaves a flight without a runner; waiters soon abandon it."""
    stranded, leads = world.source._lead_or_join(lambda: True) or (None, False)
    assert stranded is not None
    assert leads
    got: list[Token] = []
    caller = threading.Thread(target=lambda: got.append(world.source.token()))
    caller.start()
    while not got:
        world.clock.advance(0.5)
        caller.join(0.01)
    assert stranded.over
    assert world.provider.calls == 1


def test_closing_on_a_loop_closes_the_backend() -> None:
    """``aclose`` is ``close``: a source without a local copy says that the cache is closed."""

    async def main() -> None:
        cache = TokenCache("memory://")
        source = cache.source(FakeProvider())
        await cache.aclose()
        with pytest.raises(BackendClosed):
            await source.atoken()

    asyncio.run(main())


def test_flights_that_take_no_time_are_not_repeated_without_a_pause() -> None:
    """INV-8: another process holds the lease, and each flight gives up at once; the caller leads fifty a second."""
    backend = MemoryBackend()
    assert isinstance(backend.lease("k", "another", "another", None, 60.0), Granted)
    asked: list[str] = []
    genuine = backend.load

    def load(key: str) -> Stored | None:
        asked.append(key)
        return genuine(key)

    backend.load = load  # type: ignore[method-assign]
    source = TokenCache(backend, policy=RefreshPolicy(timeout=1e-6)).source(FakeProvider(), key="k")
    with pytest.raises(DeadlineExceeded):
        source.token(timeout=0.5)
    assert 2 <= len(asked) <= 30
