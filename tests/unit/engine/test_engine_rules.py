"""Rules of the engine that a single line holds: each test here fails when its line is gone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
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
    from pathlib import Path

    from tokencache._engine.flights import Flight
    from tokencache.ports import LeaseGrant

PATIENCE = 30.0
USABLE = 3540.0
"""When a token of an hour ends for callers, in seconds from its fetch."""
DUE = 2900.0
"""A moment in the first half of its window, whatever the jitter."""


class Backend(FlakyBackend):
    """A flaky backend that calls ``at_commit`` before it stores, and takes records of another process."""

    at_commit: Callable[[], object] = bool

    def commit(self, lease: LeaseGrant, data: bytes, ttl: float) -> bool:
        """Store."""
        self.at_commit()
        return super().commit(lease, data, ttl)

    def put(self, key: str, data: bytes, life: float) -> None:
        """Store bytes as another process would that has the lease."""
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
    """A store, a provider and a clock that stands still; each source of it is a process of its own."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.backend = Backend(self.clock)
        self.provider = FakeProvider(wall=self.clock.wall)

    def source(self) -> TokenSource:
        """Return a source as another process has it."""
        source = TokenCache(self.backend, clock=self.clock, wall=self.clock.wall).source(self.provider, key="k")
        source._world = replace(source._world, launcher=AtOnce())
        return source

    def theirs(self, lifetime: float) -> bytes:
        """Return a record as another program writes it, that tells neither its lifetime nor a fence."""
        return json.dumps({"accessToken": "theirs", "expiresAt": int(self.clock.wall() + lifetime)}).encode()


@pytest.fixture
def world() -> World:
    """A world in which a flight has landed when its launch returns, on the thread that launched it."""
    return World()


def test_a_renewal_that_crashes_at_the_usable_end_makes_nobody_late(world: World) -> None:
    """INV-1: the pause after an error that is no outcome ends with the token, not a probe later."""
    source = world.source()
    first = source.token()
    world.backend.close()
    world.clock.advance(USABLE - 0.2)
    assert source.token() is first, "its renewal crashes meanwhile"
    world.clock.advance(0.3)
    with pytest.raises(BackendClosed):
        source.token()


def test_a_flight_that_lands_before_the_next_is_boarded_is_enough(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """INV-2: whoever gets the lead looks at the copy again, as another flight may have landed since the first look."""
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
    """INV-6: the flight that was about to share a token lands with it after the 401, and it is not kept."""
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


def test_a_token_refused_before_the_last_one_does_not_come_back(world: World) -> None:
    """INV-6: a stale replica, or a slow writer, brings back the token before; it is remembered as refused."""
    source = world.source()
    first = source.token()
    old = world.backend.load("k")
    assert old is not None
    second = source.replace(first)
    assert second is not None
    source.invalidate(second)
    world.backend.put("k", old.data, USABLE)
    assert source.token().value == "fake-token-3"


def test_a_replacement_is_young_by_its_fetch_and_not_by_its_finding(world: World) -> None:
    """INV-6: found at once, a replacement that is refused stands; found a minute old, it is replaced, by one fetch."""
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


def test_a_process_that_cools_down_looks_now_and_then_for_a_token(world: World) -> None:
    """INV-5, INV-7: a long cooldown is asked about again after a probe, and what was stored meanwhile is served."""
    source = world.source()
    world.provider.failure = ProviderUnavailable("busy", retry_at=world.clock.wall() + 300)
    with pytest.raises(ProviderUnavailable):
        source.token()
    world.backend.put("k", world.theirs(3600), 3600.0)  # somebody with other credentials was served
    world.clock.advance(0.9)
    with pytest.raises(ProviderUnavailable):
        source.token()
    world.clock.advance(0.2)
    assert source.token().value == "theirs"
    assert world.provider.calls == 1


@pytest.mark.parametrize("alone", [False, True])
def test_a_renewal_that_brings_less_leaves_the_current_token(world: World, alone: bool) -> None:
    """INV-4: a token that ends sooner is not better, with the lease and without; a pause follows."""
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


def test_another_programs_record_ends_early_in_full(world: World) -> None:
    """INV-1: nobody knows how long it lived, so it ends a minute before its expiry, not a tenth of what remains."""
    source = world.source()
    world.backend.put("k", world.theirs(300), 300.0)
    assert source.token().value == "theirs"
    world.clock.advance(239.0)
    assert world.source().token().value == "theirs"
    assert world.provider.calls == 0
    world.clock.advance(1.5)
    assert source.token().value == "fake-token-1"


def test_another_programs_record_that_ends_sooner_is_no_renewal(world: World) -> None:
    """INV-4: in a token's window a record without a fence that ends before it is passed over, and a new one fetched."""
    source = world.source()
    first = source.token()
    world.clock.advance(DUE)
    world.backend.put("k", world.theirs(400), 400.0)
    assert source.token() is first
    assert source.token().value == "fake-token-2"


def test_what_cannot_be_written_to_is_still_read(world: World) -> None:
    """INV-5: a process whose write has just failed reads what the same store holds; each has a breaker of its own."""
    stored, missing = FakeProvider("stored", wall=world.clock.wall), FakeProvider("missing", wall=world.clock.wall)
    first = TokenCache(world.backend, clock=world.clock, wall=world.clock.wall).source(stored).token()
    world.backend.down = FlakyBackend.WRITES
    mine = TokenCache(world.backend, clock=world.clock, wall=world.clock.wall)
    mine.source(missing).token()
    assert mine.source(stored).token() == first
    assert stored.calls == 1


FORKED = """
import os, threading
from tokencache._engine.timer import beat

def beats():
    ran = threading.Event()
    beat(0.001, lambda _beat: ran.set())
    return ran.wait({patience})

assert beats()
child = os.fork()
if not child:
    os._exit(0 if beats() else 3)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="systems that cannot fork have no such children")
def test_the_child_of_a_fork_has_a_heartbeat(tmp_path: Path) -> None:
    """INV-2: a slow fetch in a child keeps its lease, though the parent's heartbeat ran when it was forked."""
    script = tmp_path / "forked.py"
    script.write_text(FORKED.format(patience=PATIENCE))
    command = [sys.executable, "-W", "ignore::DeprecationWarning", str(script)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=3 * PATIENCE, check=False)
    assert ran.stdout.split() == ["0"], ran.stderr
