"""Tokens of a rotating refresh token: it is spent once, and stays in the record, also after a 401."""

from __future__ import annotations

import itertools
import threading
from typing import TYPE_CHECKING

import pytest

from tokencache import ProviderRejected, RefreshPolicy, Token, TokenCache, TokenSource
from tokencache.backends.memory import MemoryBackend
from tokencache.errors import BackendUnavailable
from tokencache.testing.fakes import FakeClock, FlakyBackend

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tokencache.ports import FetchContext

DOWN, SPENT = "the store is down", "the refresh token was spent"
POLICY = RefreshPolicy(rejected_cooldown=0.0)


class Rotating:
    """A provider of a server that rotates refresh tokens and refuses a spent one."""

    name = "rotating"
    refreshing = True

    def __init__(self, clock: FakeClock, refresh_life: float | None = None) -> None:
        self.clock = clock
        self.refresh_life = refresh_life
        self.valid = "r0"
        self.spent: list[str] = []
        self.before: Callable[[], None] | None = None
        self._numbers = itertools.count(1)

    def identity(self) -> Mapping[str, object]:
        """Return the user."""
        return {"user": "u"}

    def fetch(self, context: FetchContext) -> Token:
        """Spend the newest refresh token."""
        if self.before is not None:
            self.before()
        known = context.previous
        given = known.refresh_token if known is not None and known.refresh_token else "r0"
        self.spent.append(given)
        if given != self.valid:
            raise ProviderRejected(SPENT, error="invalid_grant")
        number = next(self._numbers)
        self.valid = f"r{number}"
        now = self.clock.wall()
        ends = None if self.refresh_life is None else now + self.refresh_life
        return Token(
            f"t{number}",
            expires_at=now + 3600,
            issued_at=now,
            refresh_token=self.valid,
            refresh_expires_at=ends,
        )


class Fleet:
    """Caches on one backend, one for each process of a fleet, on a clock that the test moves."""

    def __init__(self, backend: MemoryBackend | None = None, refresh_life: float | None = None) -> None:
        self.clock = FakeClock()
        self.backend = backend or MemoryBackend(clock=self.clock)
        self.provider = Rotating(self.clock, refresh_life)

    def source(self, behind: float = 0.0) -> TokenSource:
        """Return the source of one more process, whose wall clock is ``behind``."""
        wall = self.clock.wall
        cache = TokenCache(self.backend, clock=self.clock, wall=lambda: wall() - behind, observers=[])
        return cache.source(self.provider, policy=POLICY)


@pytest.mark.parametrize("pause", [3601.0, 30 * 86_400.0], ids=["just ended", "a month"])
def test_the_record_outlives_its_token(pause: float) -> None:
    """INV-2, INV-1: after the token's end a process spends the refresh token of the record, not the first one."""
    fleet = Fleet()
    assert fleet.source().token().value == "t1"
    assert fleet.source().token().value == "t1"
    fleet.clock.advance(pause)
    assert fleet.source().token().value == "t2"
    assert fleet.provider.spent == ["r0", "r1"]


@pytest.mark.parametrize("behind", [0.0, 1000.0], ids=["right", "behind"])
def test_the_countdown_of_a_kept_record_gives_the_tokens_end(behind: float) -> None:
    """INV-1: the record outlives its token, but its countdown still gives the token's end, whatever the clock."""
    fleet = Fleet()
    fleet.source().token()
    fleet.clock.advance(3600 - 59)  # within `early`
    assert fleet.source(behind).token().value == "t2"


def test_a_record_ends_with_its_refresh_token() -> None:
    """A record is kept no longer than its refresh token lives."""
    fleet = Fleet(refresh_life=7200.0)
    source = fleet.source()
    source.token()
    fleet.clock.advance(7100)
    assert fleet.backend.load(source.key) is not None
    fleet.clock.advance(200)
    assert fleet.backend.load(source.key) is None


def test_a_refused_tokens_refresh_token_is_still_spent() -> None:
    """INV-6: after a 401 one process spends the refused token's refresh token, and the others take the result."""
    fleet = Fleet()
    one, two = fleet.source(), fleet.source()
    first = one.token()
    assert two.token() == first
    second = one.replace(first)
    assert second is not None
    assert second.value == "t2"
    third = two.replace(first)
    assert third is not None
    assert third.value == "t2"
    assert fleet.provider.spent == ["r0", "r1"]


def test_an_invalidated_token_keeps_its_refresh_token_without_a_record() -> None:
    """If the store has lost the record, the process uses the refresh token that it held."""
    fleet = Fleet()
    source = fleet.source()
    first = source.token()
    source.invalidate(first)
    stored = fleet.backend.load(source.key)
    assert stored is not None
    assert fleet.backend.discard(source.key, stored.data)
    assert source.token().value == "t2"
    assert fleet.provider.spent == ["r0", "r1"]


def test_a_process_does_not_refresh_without_the_backend() -> None:
    """INV-2 before INV-5: two processes would spend one refresh token. INV-4: a usable token is still served."""
    clock = FakeClock()
    backend = FlakyBackend(clock)
    fleet = Fleet(backend)
    fleet.clock = fleet.provider.clock = clock
    source = fleet.source()
    source.token()
    backend.down = FlakyBackend.EVERYTHING
    clock.advance(3500)
    assert source.token().value == "t1"
    clock.advance(3600)
    with pytest.raises(BackendUnavailable, match="refresh token"):
        source.token()
    assert fleet.provider.spent == ["r0"]
    backend.down = frozenset()
    clock.advance(5)
    assert source.token().value == "t2"


def test_a_holder_that_lost_its_lease_takes_the_newer_record() -> None:
    """On `invalid_grant` the process reads the store first: another holder may have stored a newer token."""
    fleet = Fleet()
    slow, quick = fleet.source(), fleet.source()
    seen = threading.Event()

    def overtaken() -> None:
        fleet.provider.before = None
        seen.set()
        fleet.backend.after_fork()  # the lease is lost, as in a store that restarts
        slot = fleet.backend.inspect(slow.key)
        if slot.owner is not None:
            fleet.clock.advance(POLICY.lease + 1)
        quick.token()

    fleet.provider.before = overtaken
    token = slow.token()
    assert seen.is_set()
    assert token.value == "t1"
    assert fleet.provider.spent == ["r0", "r0"]
