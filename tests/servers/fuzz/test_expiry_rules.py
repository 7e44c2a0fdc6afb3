"""Expiries of every kind: values are made together with their meaning, and compared with docs/expiry.md."""

from __future__ import annotations

import json
import math
from base64 import urlsafe_b64encode
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from email.utils import format_datetime
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from tokencache.expiry import TEN_YEARS, classify, parse_retry_after, read_expiry
from tokencache.policy import RefreshPolicy, schedule

FUZZ = settings.get_profile("fuzz")
NOW = 1_767_225_600.0

FIELDS = ("expires_in", "expires_on", "expires_at", "ttl", "validUntil")


@dataclass(frozen=True)
class Said:
    """A value as a server may send it. ``duration`` or ``instant`` is its meaning; without both it is unusable."""

    value: object
    duration: float | None = None
    instant: float | None = None

    def lifetime(self, reference: float) -> float | None:
        """Return the lifetime in seconds from ``reference`` on, ``None`` for an unusable value."""
        left = self.duration if self.instant is None else self.instant - reference
        return left if left is not None and left > 0 else None


def spelled(number: float) -> st.SearchStrategy[object]:
    """Return ways to write a number."""
    ways: list[object] = [number, f"{number:.6f}", f"+{number:.3f}"] if number % 1 else [number, float(number)]
    if not number % 1:
        ways += [f"{number:.0f}", f"+{number:.0f}", f"{number:.0f}.0", f"000{number:.0f}"]
    return st.sampled_from(ways)


def read_back(value: object) -> float:
    """Return the number that a spelling gives: a text may have fewer decimals."""
    return float(value)  # type: ignore[arg-type]


def iso(moment: datetime) -> st.SearchStrategy[object]:
    """Return ways to write an instant by ISO 8601."""
    away = moment.astimezone(timezone(timedelta(hours=8)))
    plain = moment.replace(tzinfo=None)
    texts = [
        moment.isoformat(),
        away.isoformat(),
        plain.isoformat(),
        plain.isoformat(" ") + "Z",
        f"{plain.isoformat()}z",
    ]
    return st.sampled_from(texts)


def http(moment: datetime) -> st.SearchStrategy[object]:
    """Return ways to write an instant as an HTTP date, in all three forms."""
    forms = ("%A, %d-%b-%y %H:%M:%S GMT", "%a %b %e %H:%M:%S %Y")
    return st.sampled_from([format_datetime(moment, usegmt=True), *map(moment.strftime, forms)])


DURATIONS = st.one_of(st.floats(1, TEN_YEARS), st.integers(1, int(TEN_YEARS)), st.integers(1, 100_000))
EPOCHS = st.one_of(
    st.integers(10**9, 10**11 - 1), st.integers(int(NOW) - 9999, int(NOW) + 99_999), st.floats(1e9, 9e10)
)
MOMENTS = st.datetimes(datetime(1980, 1, 1), datetime(2069, 1, 1)).map(  # noqa: DTZ001
    lambda moment: moment.replace(microsecond=0, tzinfo=UTC)
) | st.integers(-9999, 99_999).map(lambda away: datetime.fromtimestamp(NOW + away, UTC))
BETWEEN = st.one_of(
    st.floats(max_value=0.999),
    st.integers(max_value=0),
    st.integers(int(TEN_YEARS) + 1, 10**9 - 1),
    st.integers(10**11, 10**12 - 1),
    st.integers(min_value=10**14),
)
UNUSABLE = st.one_of(
    BETWEEN,
    BETWEEN.filter(lambda number: isinstance(number, int) and abs(number) < 10**30).map(str),
    st.booleans(),
    st.sampled_from(
        [
            math.nan,
            math.inf,
            -math.inf,
            "",
            " ",
            "NaN",
            "inf",
            "1e3",
            "3,600",
            "3_600",
            "0x10",
            "٣٦٠٠",
            "\uff13\uff16\uff10\uff10",
        ]
    ),
    st.sampled_from(
        ["soon", "never", "3600s", " 3600", "3600\n", "12:00", "Thu, 32 Jan 2026 00:00:00 GMT", "9" * 5000]
    ),
    st.lists(st.integers(1, 9999), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(1, 9999), max_size=2),
    st.binary(max_size=8),
)
SAID = st.one_of(
    DURATIONS.flatmap(spelled)
    .map(lambda value: Said(value, duration=read_back(value)))
    .filter(lambda said: said.duration is not None and 1 <= said.duration <= TEN_YEARS),
    EPOCHS.flatmap(spelled).map(lambda value: Said(value, instant=read_back(value))),
    EPOCHS.flatmap(lambda at: spelled(round(at * 1000))).map(
        lambda value: Said(value, instant=read_back(value) / 1000)
    ),
    MOMENTS.flatmap(lambda at: st.tuples(iso(at) | http(at), st.just(at.timestamp()))).map(
        lambda pair: Said(pair[0], instant=pair[1])
    ),
    UNUSABLE.map(Said),
)
RESPONSES = st.dictionaries(st.sampled_from(FIELDS), SAID, max_size=3)


def jwt(claims: object) -> str:
    """Return a token with these claims and no signature."""
    return f"e30.{urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip('=')}.x"


@FUZZ
@given(
    said=RESPONSES,
    date=st.none()
    | st.integers(-100_000, 100_000).map(lambda away: NOW + away)
    | st.sampled_from([math.nan, math.inf]),
    off=st.floats(-100_000, 100_000),
    cap=st.floats(1, TEN_YEARS) | st.just(TEN_YEARS),
    exp=st.none() | SAID.filter(lambda said: not isinstance(said.value, bytes)),
)
def test_the_lifetime_is_the_smallest_that_the_rules_allow(
    said: dict[str, Said], date: float | None, off: float, cap: float, exp: Said | None
) -> None:
    """INV-1: durations, instants, `Date`, JWT and cap together give exactly what the rules say, never more."""
    wall = NOW + off
    reference = wall if date is None or not math.isfinite(date) else min(max(wall, date), date + 1)
    expiry = read_expiry(
        {name: each.value for name, each in said.items()},
        date=date,
        before_wall=wall,
        names=FIELDS[3:],
        cap=cap,
        trust_jwt=None if exp is None else jwt({"exp": exp.value}),
    )
    usable = [left for each in said.values() if (left := each.lifetime(reference)) is not None]
    unusable = {name for name, each in said.items() if each.lifetime(reference) is None}
    if exp is not None:
        numeric = isinstance(exp.value, int | float) or (isinstance(exp.value, str) and exp.value[:1] in "+0123456789")
        epoch = exp.instant is not None and numeric and ":" not in str(exp.value) and read_back(exp.value) < 1e11
        if epoch and exp.instant is not None and exp.instant > reference:
            usable.append(exp.instant - reference)
        else:
            unusable.add("exp")
    expected = min(min(usable, default=300.0), cap)
    assert math.isclose(expiry.lifetime, expected, abs_tol=1e-5)
    assert expiry.issued_at == reference
    assert expiry.expires_at == reference + expiry.lifetime
    assert set(expiry.unusable) == unusable
    assert (expiry.field is None) == (not usable)
    assert (expiry.warning is None) == (bool(usable) and not unusable)


@FUZZ
@given(said=SAID)
@example(said=Said(1_769_756_525, instant=1_769_756_525.0))
@example(said=Said(315_360_000, duration=TEN_YEARS))
@example(said=Said(315_360_001))
def test_a_duration_is_never_taken_for_an_instant_or_back(said: Said) -> None:
    """Each value has the one meaning that it was made with, or is unusable."""
    found = classify(said.value)
    if found is None:
        assert (said.duration, said.instant) == (None, None)
    elif found.kind == "duration":
        assert said.duration == found.amount
    else:
        assert said.instant is not None
        assert math.isclose(said.instant, found.amount, abs_tol=1e-5)


@FUZZ
@given(said=RESPONSES, date=st.none() | st.just(NOW), off=st.floats(-100_000, 100_000), default=st.floats(1, 9999))
def test_no_response_gives_a_token_whose_usable_end_has_passed(
    said: dict[str, Said], date: float | None, off: float, default: float
) -> None:
    """INV-1: for any answer, the usable end lies ahead, before the expiry, and renewal begins before it."""
    fields = {name: each.value for name, each in said.items()}
    expiry = read_expiry(fields, date=date, before_wall=NOW + off, names=FIELDS[3:], default_lifetime=default)
    plan = schedule(RefreshPolicy(), lifetime=expiry.lifetime, remaining=expiry.lifetime, spread=0.0)
    assert 0 < plan.usable < expiry.lifetime <= TEN_YEARS
    assert plan.refresh < plan.usable
    instants = [each.instant for each in said.values() if each.instant is not None]
    assert all(expiry.expires_at <= instant + 1e-5 for instant in instants if instant > expiry.issued_at)


class Odd:
    """A value that raises at every operation."""

    def __eq__(self, other: object) -> bool:
        raise RuntimeError

    def __hash__(self) -> int:
        return 0

    def __float__(self) -> float:
        raise RuntimeError


ANYTHING: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(10**300, 10**400)
    | st.floats()
    | st.text(st.characters(codec=None), max_size=80)
    | st.text("0123456789+-.:TZWz eE_,GMTJanFeb", max_size=70)
    | st.binary(max_size=20)
    | st.decimals()
    | st.complex_numbers()
    | st.builds(Odd),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@FUZZ
@given(
    values=st.dictionaries(st.sampled_from(FIELDS), ANYTHING, max_size=5),
    date=st.none() | st.floats(),
    wall=st.floats(0, 4e9),
    token=st.text(max_size=40)
    | st.text("eyJ0.-_=ab", max_size=60)
    | st.binary(max_size=40).map(lambda raw: f"a.{raw.hex()}.b"),
    retry=st.text(max_size=80) | st.text("0123456789+-.: GMTThuJan,", max_size=70),
)
def test_no_value_of_any_kind_raises(
    values: dict[str, Any], date: float | None, wall: float, token: str, retry: str
) -> None:
    """No value raises an exception that loses a good token, means "for ever", or gives a lifetime of zero."""
    expiry = read_expiry(values, date=date, before_wall=wall, names=FIELDS[3:], cap=90_000.0, trust_jwt=token)
    assert 0 < expiry.lifetime <= 90_000.0
    assert math.isfinite(expiry.issued_at)
    assert expiry.warning is None or not any(
        str(value) in expiry.warning for value in values.values() if type(value) is bytes
    )
    delay = parse_retry_after(retry, date_or_now=wall)
    assert delay is None or 0 <= delay < math.inf
