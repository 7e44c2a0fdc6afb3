"""The local copy: when a renewal, a record or a refusal replaces the token that a process holds."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tokencache import ProviderUnavailable, TokenCache, TokenSource
from tokencache._engine.launcher import Launcher
from tokencache.errors import BackendClosed
from tokencache.ports import Granted
from tokencache.testing.fakes import FakeClock, FakeProvider, FlakyBackend

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokencache._engine.flights import Flight
    from tokencache.ports import LeaseGrant

PATIENCE = 30.0
USABLE = 3540.0
"""Usable end of a one-hour token, in seconds from its fetch."""
DUE = 2900.0
"""A moment in the first half of its window, whatever the jitter."""


class Backend(FlakyBackend):
    """A flaky backend that calls ``at_commit`` before it stores. ``put`` stores another process's record."""

    at_commit: Callable[[], object] = bool

    def commit(self, lease: LeaseGrant, data: bytes, ttl: float) -> bool:
        """Call ``at_commit``, then store."""
        self.at_commit()
        return super().commit(lease, data, ttl)

    def put(self, key: str, data: bytes, life: float) -> None:
        """Store bytes as another process does that has the lease."""
        stored = self.load(key)
        reply = self.lease(key, "another", "another", None if stored is None else stored.data, 3.0)
        assert isinstance(reply, Granted)
        assert self.commit(reply.lease, data, life)


class AtOnce(Launcher):
    """A launcher whose threads have ended when their start returns."""

    def thread(self, call: Callable[[], object], name: str) -> None:
        """Make the call on this thread."""
        call()


class World:
    """A store, a provider and a clock that the test moves; each source stands for one process."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.backend = Backend(self.clock)
        self.provider = FakeProvider(wall=self.clock.wall)

    def source(self) -> TokenSource:
        """Return the source of one more process."""
        source = TokenCache(self.backend, clock=self.clock, wall=self.clock.wall).source(self.provider, key="k")
        source._world = replace(source._world, launcher=AtOnce())
        return source

    def theirs(self, lifetime: float) -> bytes:
        """Return a record of another program: it holds neither a lifetime nor a fence."""
        return json.dumps({"accessToken": "theirs", "expiresAt": int(self.clock.wall() + lifetime)}).encode()


@pytest.fixture
def world() -> World:
    """A world whose flights run on the thread that starts them, and end before it goes on."""
    return World()


def test_the_pause_after_a_crashed_renewal_ends_with_the_token(world: World) -> None:
    """INV-1: after an unexpected error the pause ends at the token's usable end, not one probe later."""
    source = world.source()
    first = source.token()
    world.backend.close()
    world.clock.advance(USABLE - 0.2)
    assert source.token() is first, "its renewal crashes meanwhile"
    world.clock.advance(0.3)
    with pytest.raises(BackendClosed):
        source.token()


def test_a_caller_that_takes_the_lead_looks_at_the_local_copy_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """INV-2: another flight may have ended since the caller's first look, so the leader looks again."""
    source = world.source()
    board = TokenSource._lead_or_join

    def late(self: TokenSource, needed: Callable[[], bool]) -> tuple[Flight, bool] | None:
        monkeypatch.setattr(TokenSource, "_lead_or_join", board)
        self.token()
        return board(self, needed)

    monkeypatch.setattr(TokenSource, "_lead_or_join", late)
    assert source.token().value == "fake-token-1"
    assert world.provider.calls == 1


def test_a_token_refused_while_it_is_shared_does_not_come_back(world: World) -> None:
    """INV-6: if a 401 comes while a flight stores the token, the flight's result is not kept."""
    source = world.source()
    world.backend.down = FlakyBackend.EVERYTHING
    first = source.token()
    world.backend.down = frozenset()
    world.backend.at_commit = lambda: source.invalidate(first)
    world.clock.advance(2.0)
    source.token()
    world.backend.at_commit = bool
    stored = world.backend.load("k")
    assert stored is not None, "it was shared after all"
    assert first.value.encode() in stored.data
    assert source.token().value == "fake-token-2"


def test_the_token_refused_before_the_last_one_does_not_come_back(world: World) -> None:
    """INV-6: a stale replica may serve an older refused token; the process remembers it, and fetches."""
    source = world.source()
    first = source.token()
    old = world.backend.load("k")
    assert old is not None
    second = source.replace(first)
    assert second is not None
    source.invalidate(second)
    world.backend.put("k", old.data, USABLE)
    assert source.token().value == "fake-token-3"


def test_the_age_of_a_replacement_counts_from_its_fetch(world: World) -> None:
    """INV-6: if a replacement is refused at once, the 401 stands; a minute after its fetch, it is replaced once."""
    reporter = world.source()
    second = reporter.replace(reporter.token())
    assert second is not None
    young = world.source()
    assert young.token() == second
    assert young.replace(second) is None
    world.clock.advance(60.0)
    old = world.source()
    assert old.token() == second
    third = old.replace(second)
    assert third is not None
    assert third.value == "fake-token-3"
    assert world.provider.calls == 3


def test_a_process_in_cooldown_reads_the_store_once_per_probe(world: World) -> None:
    """INV-5, INV-7: in a long cooldown the process reads the store once per probe, and serves a token found there."""
    source = world.source()
    world.provider.failure = ProviderUnavailable("busy", retry_at=world.clock.wall() + 300)
    with pytest.raises(ProviderUnavailable):
        source.token()
    world.backend.put("k", world.theirs(3600), 3600.0)  # another process, with other credentials, got a token
    world.clock.advance(0.9)
    with pytest.raises(ProviderUnavailable):
        source.token()
    world.clock.advance(0.2)
    assert source.token().value == "theirs"
    assert world.provider.calls == 1


@pytest.mark.parametrize("alone", [False, True])
def test_a_token_that_ends_sooner_does_not_replace_the_current_one(world: World, alone: bool) -> None:
    """INV-4: with and without a lease, the current token stays, and a pause follows."""
    source = world.source()
    first = source.token()
    world.clock.advance(USABLE - 200.0)
    world.backend.down = FlakyBackend.EVERYTHING if alone else frozenset()
    world.provider.lifetime = 120.0
    for _ in range(2):
        assert source.token() is first
    assert world.provider.calls == 2
    world.clock.advance(0.5)
    assert source.token() is first
    assert world.provider.calls == 2


def test_a_record_without_a_lifetime_ends_a_minute_before_its_expiry(world: World) -> None:
    """INV-1: the lifetime of another program's token is unknown, so the whole of ``early`` is kept."""
    source = world.source()
    world.backend.put("k", world.theirs(300), 300.0)
    assert source.token().value == "theirs"
    world.clock.advance(239.0)
    assert world.source().token().value == "theirs"
    assert world.provider.calls == 0
    world.clock.advance(1.5)
    assert source.token().value == "fake-token-1"


def test_another_programs_record_that_ends_sooner_does_not_renew(world: World) -> None:
    """INV-4: a record without a fence that ends before the current token is ignored, and a new token is fetched."""
    source = world.source()
    first = source.token()
    world.clock.advance(DUE)
    world.backend.put("k", world.theirs(400), 400.0)
    assert source.token() is first
    assert source.token().value == "fake-token-2"


def test_a_store_that_refuses_writes_is_still_read(world: World) -> None:
    """INV-5: reads and writes have separate breakers, so a failed write does not stop the reads."""
    stored, missing = FakeProvider("stored", wall=world.clock.wall), FakeProvider("missing", wall=world.clock.wall)
    first = TokenCache(world.backend, clock=world.clock, wall=world.clock.wall).source(stored).token()
    world.backend.down = FlakyBackend.WRITES
    mine = TokenCache(world.backend, clock=world.clock, wall=world.clock.wall)
    mine.source(missing).token()
    assert mine.source(stored).token() == first
    assert stored.calls == 1
