"""What the memcached backend writes: names, expiry, locks; without a server."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tokencache.backends.memcached._form import (
    LONGEST,
    Foreign,
    Lease,
    Pause,
    lease_value,
    lock_expiry,
    lock_of,
    names_of,
    pause_value,
    record_expiry,
    remaining_of,
)
from tokencache.testing.probes import HOSTILE_KEYS, cooldown

NOW = 1_700_000_000.0
LEASE = Lease(7, "owner \ud800", NOW + 3.0, 3.0)
ANY_TEXT = st.text(st.characters(codec=None), max_size=300)


def safe(name: str, prefix: int = 0) -> bool:
    """Return whether memcached takes this for one key."""
    return re.fullmatch(r"[!-~]+", name) is not None and len(name) + prefix <= 250


@given(ANY_TEXT, ANY_TEXT)
@example("a", "a:lock")
@example("a:lock", "a:lock:lock")
@example("a b", names_of("a b")[0])
@example("k" * 245, "k" * 246)
@example("\u212b", "\u00c5")
def test_distinct_keys_have_distinct_names_that_fit(one: str, other: str) -> None:
    """Whatever is in a key, its two names are single words of at most 250 bytes, and nobody else's."""
    names, others = names_of(one), names_of(other)
    assert all(map(safe, names + others))
    assert len({*names, *others}) == (2 if one == other else 4)


def test_the_contracts_hostile_keys_are_apart() -> None:
    """No two of the hostile keys share a name, be it of a record or a lock."""
    names = [name for key in HOSTILE_KEYS for name in names_of(key)]
    assert len(set(names)) == 2 * len(HOSTILE_KEYS)
    assert all(map(safe, names))


def test_a_plain_key_is_used_as_it_stands() -> None:
    """Another program finds record and lock where it looks for them."""
    assert names_of("qpay:access_token") == ("qpay:access_token", "qpay:access_token:lock")
    assert names_of("k" * 245) == ("k" * 245, "k" * 245 + ":lock")


def test_room_is_left_for_the_prefix_of_the_client() -> None:
    """What the client puts before a key counts as well."""
    assert names_of("k" * 235, 10)[0] == "k" * 235
    assert all(safe(name, 10) for name in names_of("k" * 236, 10))
    assert len(names_of("k" * 236, 10)[0]) < 100


@pytest.mark.parametrize(
    ("ttl", "expiry"),
    [
        (0.1, 2),
        (1.0, 2),
        (2.0, 2),
        (2.1, 3),
        (3540.0, 3540),
        (86400.0, 86400),
        (LONGEST, LONGEST),
        (LONGEST + 1, LONGEST),
    ],
)
def test_a_record_ends_within_a_second_of_its_life(ttl: float, expiry: int) -> None:
    """Whole seconds, never one that may be over at once, never beyond 30 days, which would be an absolute time."""
    assert record_expiry(ttl) == expiry


@pytest.mark.parametrize(
    ("ttl", "expiry"), [(-1.0, 1), (0.3, 2), (1.0, 2), (2.5, 4), (3.0, 4), (1e9, LONGEST), (LONGEST, LONGEST)]
)
def test_a_lock_lives_no_shorter_than_its_lease(ttl: float, expiry: int) -> None:
    """An expiry of n lives longer than n - 1 seconds, so a lease takes one more than it needs."""
    assert record_expiry(ttl) >= 2
    assert lock_expiry(ttl) == expiry


def test_a_lease_comes_back_as_it_was_written() -> None:
    """Fence, owner and end survive, whatever characters the owner's name has."""
    assert lock_of(lease_value(LEASE)) == LEASE
    assert lease_value(LEASE).isascii()


def test_a_cooldown_comes_back_as_it_was_written() -> None:
    """Everything that the failed holder tells survives; its remaining time is reckoned anew."""
    pause = lock_of(pause_value(cooldown(5.0), NOW))
    assert pause == Pause(replace(cooldown(0.0), remaining=0.0), NOW + 5.0, 5.0)


GOOD = json.loads(pause_value(cooldown(), NOW))


@pytest.mark.parametrize(
    "table",
    [
        None,
        [],
        "text",
        {},
        {"fence": 1, "owner": "a", "endsAt": NOW},
        {"fence": 1, "owner": "a", "ttl": 1.0},
        {"fence": True, "owner": "a", "endsAt": NOW, "ttl": 1.0},
        {"fence": 1.5, "owner": "a", "endsAt": NOW, "ttl": 1.0},
        {"fence": 1, "owner": 2, "endsAt": NOW, "ttl": 1.0},
        {"fence": 1, "owner": "a", "endsAt": True, "ttl": 1.0},
        {"fence": 1, "owner": "a", "endsAt": 1e300, "ttl": 1.0},
        {"fence": 1, "owner": "a", "endsAt": float("nan"), "ttl": 1.0},
        GOOD | {"cooldown": None},
        GOOD | {"cooldown": GOOD["cooldown"] | {"identity": 1}},
        GOOD | {"cooldown": GOOD["cooldown"] | {"message": None}},
        GOOD | {"cooldown": GOOD["cooldown"] | {"attempt": "1"}},
        GOOD | {"cooldown": GOOD["cooldown"] | {"permanent": 1}},
    ],
)
def test_what_is_not_ours_is_a_foreign_lock(table: object) -> None:
    """A lock that does not say all is respected like that of any other program, and is no crash."""
    assert isinstance(lock_of(json.dumps(table).encode()), Foreign)


@given(st.binary(max_size=60))
@example(b"1")
@example(b"\xff\xfe")
@example(b"[" * 100_000)
def test_any_bytes_are_some_lock(data: bytes) -> None:
    """Whatever another program writes there is read without an exception."""
    assert isinstance(lock_of(data), Foreign)


def test_optional_fields_of_a_cooldown_may_be_anything() -> None:
    """An error code or status of another kind is left out."""
    table = GOOD | {"cooldown": GOOD["cooldown"] | {"error": 5, "status": "x"}}
    pause = lock_of(json.dumps(table).encode())
    assert isinstance(pause, Pause)
    assert (pause.cooldown.error, pause.cooldown.status) == (None, None)


@pytest.mark.parametrize(("now", "remaining"), [(NOW, 3.0), (NOW + 1, 2.0), (NOW + 60, 0.1), (NOW - 60, 3.0)])
def test_a_lease_that_is_there_is_held_whatever_the_clocks_say(now: float, remaining: float) -> None:
    """INV-2: a clock that is ahead of the holder's does not end its lease; one behind says no more than its life."""
    assert remaining_of(LEASE, now) == pytest.approx(remaining)


@pytest.mark.parametrize(
    ("now", "remaining"), [(NOW, 5.0), (NOW + 4, 1.0), (NOW + 5, 0.0), (NOW + 60, 0.0), (NOW - 60, 5.0)]
)
def test_a_cooldown_ends_by_the_clock(now: float, remaining: float) -> None:
    """INV-7: it lasts as long as the failed holder asked for, to the fraction of a second, and no longer."""
    assert remaining_of(lock_of(pause_value(cooldown(5.0), NOW)), now) == pytest.approx(remaining)


def test_a_foreign_lock_is_there_for_a_while() -> None:
    """Nobody knows for how long, so a waiter is told to ask again soon."""
    assert remaining_of(Foreign(), NOW) == 1.0
