"""Tokens of a rotating refresh token: it is spent once, and stays in the record, also after a 401."""

from __future__ import annotations

import itertools
import threading
from typing import TYPE_CHECKING

import pytest

from tokencache import ProviderRejected, RefreshPolicy, Token, TokenCache, TokenSource
from tokencache._record import encode
from tokencache.backends.memory import MemoryBackend
from tokencache.errors import BackendUnavailable, ConfigurationError
from tokencache.ports import LeaseGrant
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


def unreadable_records() -> Mapping[str, bytes]:
    """Return a record of each kind that may hold the newest refresh token, and cannot be used here."""
    ours = Token("t9", expires_at=2e9, issued_at=1.9e9, refresh_token="r9")
    sealed = b'{"v":1,"fence":7,"sealed":"cGxhbnRlZA=="}'
    foreign = encode(ours, fence=7, identity="another", reason="cold")
    return {"damaged": b"{", "newer": b'{"v":2,"fence":7}', "sealed": sealed, "foreign": foreign}


WHY = {"damaged": "damaged", "newer": "newer version", "sealed": "sealed", "foreign": "other credentials"}


@pytest.mark.parametrize("kind", WHY)
def test_a_record_that_cannot_be_used_does_not_spend_the_configured_refresh_token(kind: str) -> None:
    """The error says what lies there; the server revokes the whole family for a refresh token that was spent before."""
    fleet = Fleet()
    source = fleet.source()
    assert fleet.backend.commit(LeaseGrant(source.key, "them", 8, 3.0), unreadable_records()[kind], 9e6)
    for _ in range(3):
        with pytest.raises(ConfigurationError, match=f"{WHY[kind]}.*delete the record and sign in again"):
            source.token()
        fleet.clock.advance(POLICY.probe + 1)
    assert fleet.provider.spent == []

    stored = fleet.backend.load(source.key)
    assert stored is not None
    assert fleet.backend.discard(source.key, stored.data)
    assert source.token().value == "t1"


@pytest.mark.parametrize("kind", WHY)
def test_a_usable_token_is_served_beside_a_record_that_cannot_be_used(kind: str) -> None:
    """INV-4: the renewal fails and spends nothing, and the token that this process holds stays in use to its end."""
    fleet = Fleet()
    source = fleet.source()
    source.token()
    grant = LeaseGrant(source.key, "them", 2**53 - 1, 3.0)
    assert fleet.backend.commit(
        grant, unreadable_records()[kind].replace(b'"fence":7', b'"fence":9007199254740991'), 9e6
    )
    fleet.clock.advance(3500)
    assert source.token().value == "t1"
    with pytest.raises(ConfigurationError, match=WHY[kind]):
        source.renew()
    fleet.clock.advance(100)
    with pytest.raises(ConfigurationError, match=WHY[kind]):
        source.token()
    assert fleet.provider.spent == ["r0"]


def test_a_new_token_is_not_lost_to_a_record_that_cannot_be_used() -> None:
    """INV-4: the token of a holder that lost its lease to such a record is used, though it is not stored."""
    fleet = Fleet()
    source = fleet.source()

    def overwritten() -> None:
        record = unreadable_records()["foreign"].replace(b'"fence":7', b'"fence":9007199254740991')
        assert fleet.backend.commit(LeaseGrant(source.key, "them", 2**53 - 1, 3.0), record, 9e6)

    fleet.provider.before = overwritten
    assert source.token().value == "t1"
