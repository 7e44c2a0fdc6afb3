"""The form of names, expiry and locks on memcached; without a server."""

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
    pause_of,
    pause_value,
    record_expiry,
    remaining_of,
)
from tokencache.testing.probes import HOSTILE_KEYS, cooldown

NOW = 1_700_000_000.0
LEASE = Lease(7, "owner \ud800", NOW + 3.0, 3.0)
ANY_TEXT = st.text(st.characters(codec=None), max_size=300)


def safe(name: str, prefix: int = 0) -> bool:
    """Return whether memcached accepts this as one key."""
    return re.fullmatch(r"[!-~]+", name) is not None and len(name) + prefix <= 250


@given(ANY_TEXT, ANY_TEXT)
@example("a", "a:lock")
@example("a:lock", "a:lock:lock")
@example("a", "a:cooldown")
@example("a b", names_of("a b")[0])
@example("k" * 241, "k" * 242)
@example("\u212b", "\u00c5")
def test_different_keys_have_different_names_that_fit(one: str, other: str) -> None:
    """Whatever a key holds, its names are single words of at most 250 bytes, and no other key has them."""
    names, others = names_of(one), names_of(other)
    assert all(map(safe, names + others))
    assert len({*names, *others}) == (3 if one == other else 6)


def test_the_contracts_hostile_keys_have_different_names() -> None:
    """No two of the hostile keys share a name, for a record, a lock or a cooldown."""
    names = [name for key in HOSTILE_KEYS for name in names_of(key)]
    assert len(set(names)) == 3 * len(HOSTILE_KEYS)
    assert all(map(safe, names))


def test_a_plain_key_is_used_unchanged() -> None:
    """Another program finds the record and the lock where it expects them."""
    assert names_of("qpay:access_token")[:2] == ("qpay:access_token", "qpay:access_token:lock")
    assert names_of("k" * 241) == ("k" * 241, "k" * 241 + ":lock", "k" * 241 + ":cooldown")


def test_the_clients_prefix_counts_for_the_length() -> None:
    """The prefix that the client adds to a key counts too."""
    assert names_of("k" * 231, 10)[0] == "k" * 231
    assert all(safe(name, 10) for name in names_of("k" * 232, 10))
    assert len(names_of("k" * 232, 10)[0]) < 100


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
    """Whole seconds, never at once, and at most 30 days: memcached takes more for an absolute time."""
    assert record_expiry(ttl) == expiry


@pytest.mark.parametrize(
    ("ttl", "expiry"), [(-1.0, 1), (0.3, 2), (1.0, 2), (2.5, 4), (3.0, 4), (1e9, LONGEST), (LONGEST, LONGEST)]
)
def test_a_lock_lives_no_shorter_than_its_lease(ttl: float, expiry: int) -> None:
    """An expiry of n seconds may end after n - 1, so a lease takes one second more."""
    assert record_expiry(ttl) >= 2
    assert lock_expiry(ttl) == expiry


def test_a_lease_survives_its_written_form() -> None:
    """Fence, owner and end survive, whatever characters the owner's name has."""
    assert lock_of(lease_value(LEASE)) == LEASE
    assert lease_value(LEASE).isascii()


def test_a_lease_above_the_largest_fence_is_still_a_lease() -> None:
    """INV-2: a lease above a record with the largest fence says that fence, so that its lock stays readable."""
    assert lock_of(lease_value(replace(LEASE, fence=2**53))) == replace(LEASE, fence=2**53 - 1)


def test_a_cooldown_survives_its_written_form() -> None:
    """Every field of the cooldown survives; the remaining time is computed again."""
    pause = pause_of(pause_value(cooldown(5.0), NOW))
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
        {"fence": -1, "owner": "a", "endsAt": NOW, "ttl": 1.0},
        {"fence": 2**53, "owner": "a", "endsAt": NOW, "ttl": 1.0},
        {"fence": 10**4_000, "owner": "a", "endsAt": NOW, "ttl": 1.0},
        {"fence": 1, "owner": 2, "endsAt": NOW, "ttl": 1.0},
        {"fence": 1, "owner": "a", "endsAt": True, "ttl": 1.0},
        {"fence": 1, "owner": "a", "endsAt": 1e300, "ttl": 1.0},
        {"fence": 1, "owner": "a", "endsAt": float("nan"), "ttl": 1.0},
        GOOD,
    ],
)
def test_an_incomplete_lock_counts_as_another_programs(table: object) -> None:
    """A lock that lacks a field is respected like a lock of another program, without a crash."""
    assert isinstance(lock_of(json.dumps(table).encode()), Foreign)


@pytest.mark.parametrize(
    "table",
    [
        *(None, [], "text", {}),
        GOOD | {"cooldown": None},
        GOOD | {"endsAt": None},
        GOOD | {"ttl": "1"},
        GOOD | {"cooldown": GOOD["cooldown"] | {"identity": 1}},
        GOOD | {"cooldown": GOOD["cooldown"] | {"message": None}},
        GOOD | {"cooldown": GOOD["cooldown"] | {"attempt": "1"}},
        GOOD | {"cooldown": GOOD["cooldown"] | {"permanent": 1}},
    ],
)
def test_an_incomplete_cooldown_binds_no_caller(table: object) -> None:
    """A cooldown that lacks a field counts as none, without a crash."""
    assert pause_of(json.dumps(table).encode()) is None


@given(st.binary(max_size=60))
@example(b"1")
@example(b"\xff\xfe")
@example(b"[" * 100_000)
def test_any_bytes_are_read_as_a_lock(data: bytes) -> None:
    """Whatever another program writes there is read without an exception."""
    assert isinstance(lock_of(data), Foreign)


def test_wrong_optional_fields_of_a_cooldown_are_left_out() -> None:
    """An error code or status of a wrong type is left out."""
    table = GOOD | {"cooldown": GOOD["cooldown"] | {"error": 5, "status": "x"}}
    pause = pause_of(json.dumps(table).encode())
    assert pause is not None
    assert (pause.cooldown.error, pause.cooldown.status) == (None, None)


@pytest.mark.parametrize(("now", "remaining"), [(NOW, 3.0), (NOW + 1, 2.0), (NOW + 60, 0.1), (NOW - 60, 3.0)])
def test_a_lease_counts_as_held_by_any_clock(now: float, remaining: float) -> None:
    """INV-2: a clock ahead of the holder's does not end its lease; a clock behind does not lengthen it."""
    assert remaining_of(LEASE, now) == pytest.approx(remaining)


@pytest.mark.parametrize(
    ("now", "remaining"), [(NOW, 5.0), (NOW + 4, 1.0), (NOW + 5, 0.0), (NOW + 60, 0.0), (NOW - 60, 5.0)]
)
def test_a_cooldown_ends_by_the_clock(now: float, remaining: float) -> None:
    """INV-7: it lasts exactly as long as the failed holder asked for, to the fraction of a second."""
    pause = pause_of(pause_value(cooldown(5.0), NOW))
    assert pause is not None
    assert remaining_of(pause, now) == pytest.approx(remaining)


def test_another_programs_lock_is_polled() -> None:
    """The end of the lock is unknown, so a waiter asks again soon."""
    assert remaining_of(Foreign(), NOW) == 1.0
