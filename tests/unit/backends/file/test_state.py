"""The state of a key: the file backend writes it, and reads any file back without a crash."""

from __future__ import annotations

import json
import math

from hypothesis import example, given
from hypothesis import strategies as st

from tokencache.backends.file._state import Countdown, Lease, Pause, State, Term, dump, parse
from tokencache.testing.probes import cooldown

TERM = Term(100.5, 3.25)
FULL = State(7, Lease("a\ud800\n", TERM), Pause(cooldown(0.0), TERM), Countdown("ab", TERM))


def test_the_state_survives_the_file() -> None:
    """A state that is written and read is equal."""
    assert parse(dump(FULL, "boot"), "boot") == FULL
    assert parse(dump(State(3), "boot"), "boot") == State(3)
    assert parse(dump(FULL, "boot"), "later") == State(7)


WHOLE = dump(FULL, "boot")


@given(st.binary(max_size=40) | st.integers(0, len(WHOLE) - 1).map(lambda cut: WHOLE[:cut]))
def test_an_unreadable_state_is_empty(data: bytes) -> None:
    """A truncated file, or a file of another program, does not stop a process."""
    assert parse(data, "boot") == State()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@given(
    st.sampled_from(["v", "boot", "fence", "lease", "cooldown", "record"]),
    st.sampled_from([None, "until", "ttl", "owner", "identity", "attempt", "message", "status", "error", "digest"]),
    JSON,
)
@example("fence", None, -1)
@example("fence", None, True)
@example("fence", None, 2**53)
@example("fence", None, 10**4_000)
@example("lease", "until", 10**400)
@example("record", "ttl", -(10**400))
@example("lease", "until", float("nan"))
@example("cooldown", "ttl", float("inf"))
@example("record", "until", True)
def test_a_state_with_a_wrong_field_does_not_crash(section: str, name: str | None, value: object) -> None:
    """Whatever value a field has, a state comes back, and its times are finite."""
    table = json.loads(dump(FULL, "boot"))
    if name is not None and isinstance(table[section], dict):
        table[section][name] = value
    else:
        table[section] = value
    state = parse(json.dumps(table).encode(), "boot")
    assert type(state.fence) is int
    assert 0 <= state.fence < 2**53
    for part in filter(None, (state.lease, state.pause, state.countdown)):
        assert math.isfinite(part.term.until)
        assert math.isfinite(part.term.ttl)


def test_a_clock_that_started_again_ends_every_term() -> None:
    """Without a boot id, more time left than the whole term shows that the machine was restarted."""
    term = Term(until=1000.0 + 60.0, ttl=60.0)
    assert term.remaining(1000.0) == 60.0
    assert term.remaining(1000.0 + 60.0) == 0.0
    assert term.remaining(5.0) == 0.0


def test_an_infinite_time_is_refused() -> None:
    """INV-8: a JSON infinity does not make a lease that never ends."""
    endless = dump(State(7, Lease("a", Term(float("inf"), float("inf")))), "boot")
    assert parse(endless, "boot").lease is None
