"""The lifetime of a token: the documented table, its boundaries, and values of every kind."""

from __future__ import annotations

import base64
import json
import math
import re
import time
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokencache.expiry import TEN_YEARS, Classified, classify, parse_http_date, parse_retry_after, read_expiry

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokencache.expiry import Expiry

DATE = 1767225600.0
HOUR = 3600.0
PAGE = Path(__file__).parents[2] / "docs" / "expiry.md"
CLOCKS = {"right": 0.0, "2 h behind": -2 * HOUR, "2 h ahead": 2 * HOUR}


def read(fields: Mapping[str, object], *, date: float | None = DATE, off: float = 0.0) -> Expiry:
    """Read an expiry with a local clock that is ``off`` seconds ahead."""
    return read_expiry(fields, date=date, before_wall=DATE + off)


def label(value: object) -> str:
    """Return a short name for a case."""
    text = ascii(value)
    return text if len(text) < 40 else f"{text[:20]} ({len(text)} characters)"


def raw_jwt(payload: bytes) -> str:
    """Return a text that looks like a JWT."""
    return f"eyJhbGciOiJub25lIn0.{base64.urlsafe_b64encode(payload).decode().rstrip('=')}.c2ln"


def jwt(payload: object) -> str:
    """Return an unsigned JWT."""
    return raw_jwt(json.dumps(payload).encode())


def jwt_with(exp: object) -> str:
    """Return a JWT whose ``exp`` is the value; if JSON cannot hold the value, a text that is not a JWT."""
    try:
        return jwt({"exp": exp})
    except (TypeError, ValueError):
        return "a.b.c"


def rows(*header: str) -> list[tuple[str, ...]]:
    """Return the rows of the documented table with this header, without code quotes."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    start = lines.index(f"| {' | '.join(header)} |") + 2
    found = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        found.append(tuple(cell.strip().strip("`") for cell in line.strip("|").split(" | ")))
    assert len(found) >= 3
    assert all(len(row) == len(header) for row in found)
    return found


@pytest.mark.parametrize(("value", "taken_as", "lifetime"), rows("`expires_in`", "taken as", "lifetime"))
def test_documented_values_give_the_documented_lifetimes(value: str, taken_as: str, lifetime: str) -> None:
    """Each value on the page is read as the page says, and gives the page's lifetime."""
    expiry = read({"expires_in": json.loads(value)})
    if taken_as in {"unusable", "missing"}:
        assert (expiry.kind, expiry.field) == ("default", None)
        assert expiry.unusable == (("expires_in",) if taken_as == "unusable" else ())
        assert expiry.warning is not None
    else:
        assert (expiry.kind, expiry.field, expiry.unusable) == (taken_as, "expires_in", ())
        assert expiry.warning is None
    assert expiry.lifetime == float(lifetime)


@pytest.mark.parametrize(("first", "last", "kind"), rows("from", "to", "taken as"))
@pytest.mark.parametrize("spelled", [int, float, str])
def test_documented_bands_begin_and_end_as_documented(first: str, last: str, kind: str, spelled: type) -> None:
    """The bands' boundaries are exact, for numbers and for numeric texts."""
    inside = [classify(spelled(int(edge))) for edge in (first, last)]
    assert [found and found.kind for found in inside] == [kind, kind]
    assert classify(spelled(int(first) - 1)) is None
    assert classify(spelled(int(last) + 1)) is None


@pytest.mark.parametrize(("response", "decided_by", "lifetime"), rows("response", "decided by", "lifetime"))
def test_documented_fields_have_the_documented_order(response: str, decided_by: str, lifetime: str) -> None:
    """If several fields are there, the one that the page names decides."""
    expiry = read(json.loads(response))
    assert expiry.field == (None if decided_by == "the default" else decided_by)
    assert expiry.lifetime == float(lifetime)


@pytest.mark.parametrize(
    ("value", "has_date", "clock", "lifetime"), rows("`expires_in`", "`Date`", "local clock is", "lifetime")
)
def test_documented_clock_skews_have_the_documented_effect(
    value: str, has_date: str, clock: str, lifetime: str
) -> None:
    """The effect of a skewed local clock is as documented, with a Date and without."""
    expiry = read({"expires_in": json.loads(value)}, date=DATE if has_date == "yes" else None, off=CLOCKS[clock])
    assert expiry.lifetime == float(lifetime)


@pytest.mark.parametrize(
    "value",
    [
        *(315_360_001, 999_999_999, 10**11, 10**12 - 1, 10**14, 10**400, -(10**400)),
        *(0.999, -0.0, math.inf, -math.inf, math.nan, 1e308),
        *("", " ", "3600 ", " 3600", "3_600", "+", "-3600", "1.", ".5", "0x10", "1e3", "nan", "inf", "Infinity"),
        *("9" * 64, "9" * 5_000, "0" * 100 + "3600", "²", "３６００", "\ud800", "\x00", "3600\n", "3600s"),  # noqa: RUF001
        *("2026-13-01", "0000-01-01", "9999-99-99T00:00:00Z", "24:00", "2026-02-30T00:00:00Z"),
        *(b"3600", Decimal(3600), 3600 + 0j, object, [], {}, (), None, True, False, ...),
    ],
    ids=label,
)
def test_other_values_are_unusable(value: object) -> None:
    """A value outside the table is unusable, whatever its type and size, and raises nothing."""
    assert classify(value) is None
    for date in (DATE, None):
        assert read({"expires_in": value}, date=date).lifetime == 300


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("+3600", Classified("duration", 3600)),
        ("0003600", Classified("duration", 3600)),
        (10**10, Classified("epoch", 1e10)),
        (1767229200123, Classified("epoch_ms", 1767229200.123)),
        ("2026-01-01", Classified("iso", DATE)),
        ("2026-01-01t00:00:00.5z", Classified("iso", DATE + 0.5)),
        ("2026-01-01 00:00:00", Classified("iso", DATE)),
        ("20260101T000000Z", Classified("iso", DATE)),
        ("2025-12-31T23:00:00-01:00", Classified("iso", DATE)),
        ("0001-01-01T00:00:00+14:00", Classified("iso", -62135647200.0)),
    ],
)
def test_other_spellings_of_usable_values_are_read(value: object, expected: Classified) -> None:
    """Spellings that the page does not list are read with the same meaning."""
    assert classify(value) == expected


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="the system cannot change the time zone of a process")
def test_the_time_zone_of_the_machine_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """An instant without an offset is in UTC, wherever the process runs."""
    try:
        with monkeypatch.context() as patch:
            patch.setenv("TZ", "XXX-8")
            time.tzset()
            assert classify("2026-01-01T00:00:00") == Classified("iso", DATE)
            assert parse_http_date("Thu, 01 Jan 2026 00:00:00 GMT") == DATE
    finally:
        time.tzset()


def test_a_classified_value_is_measured_from_a_reference() -> None:
    """A duration counts from the reference; an instant does not depend on it."""
    assert Classified("duration", 60).lifetime(DATE) == 60
    assert Classified("duration", 60).ends_at(DATE) == DATE + 60
    assert Classified("epoch", DATE + 60).lifetime(DATE) == 60
    assert Classified("epoch", DATE + 60).ends_at(0) == DATE + 60


@pytest.mark.parametrize("off", [0.0, 0.25, 1.0])
def test_the_local_clock_gives_the_fraction_of_a_second(off: float) -> None:
    """Within the second that Date leaves open, the local clock is used: no skew, no lost second."""
    expiry = read({"expires_in": DATE + 60}, off=off)
    assert expiry.lifetime == 60 - off
    assert (expiry.issued_at, expiry.expires_at) == (DATE + off, DATE + 60)


@pytest.mark.parametrize(("off", "reference"), [(-0.25, DATE), (-7200, DATE), (1.25, DATE + 1), (7200, DATE + 1)])
def test_date_overrides_a_skewed_clock(off: float, reference: float) -> None:
    """A local clock outside the second of Date moves to its nearer end, for instants and for durations."""
    expiry = read({"expires_in": DATE + 60}, off=off)
    assert (expiry.issued_at, expiry.expires_at, expiry.lifetime) == (reference, DATE + 60, DATE + 60 - reference)
    expiry = read({"expires_in": 60}, off=off)
    assert (expiry.issued_at, expiry.expires_at, expiry.lifetime) == (reference, reference + 60, 60)


@pytest.mark.parametrize("date", [math.nan, math.inf, -math.inf])
def test_an_unreadable_date_counts_as_missing(date: float) -> None:
    """A Date that is not an instant has no effect."""
    assert read({"expires_in": DATE + 60}, date=date) == read({"expires_in": DATE + 60}, date=None)


@pytest.mark.parametrize(("ahead", "kind"), [(-1, "default"), (0, "default"), (1, "epoch")])
def test_an_instant_must_be_later_than_the_reference(ahead: int, kind: str) -> None:
    """An instant at or before the reference is unusable; one second later it is a lifetime of a second."""
    expiry = read({"expires_in": DATE + ahead})
    assert (expiry.kind, expiry.lifetime) == (kind, 300 if kind == "default" else 1)


def test_the_cap_bounds_lifetime_and_default() -> None:
    """The cap bounds every lifetime, also the default, and ``expires_at`` with it."""
    expiry = read_expiry({"expires_in": 86400 * 30}, date=None, before_wall=DATE, cap=90000)
    assert (expiry.lifetime, expiry.expires_at) == (90000, DATE + 90000)
    assert read_expiry({}, date=None, before_wall=DATE, default_lifetime=3600).lifetime == 3600
    assert read_expiry({}, date=None, before_wall=DATE, default_lifetime=3600, cap=60).lifetime == 60
    assert read({"expires_in": 99_999_999_999}).lifetime == TEN_YEARS


def test_declared_fields_come_after_the_usual_ones() -> None:
    """Only declared fields are read beside the usual three; on a tie the earlier field decides."""
    fields = {"expiresIn": 60, "expires_at": 600}
    assert read(fields).lifetime == 600
    expiry = read_expiry(fields, date=None, before_wall=DATE, names=("expiresIn",))
    assert (expiry.field, expiry.lifetime) == ("expiresIn", 60)
    tied = read_expiry({"expires_in": 60, "late": 60}, date=None, before_wall=DATE, names=("late", "expires_in"))
    assert tied.field == "expires_in"


def test_jwt_exp_counts_only_if_trusted() -> None:
    """``exp`` is read only if the provider trusts it, and the smallest lifetime wins."""
    token = jwt({"exp": DATE + 60})
    assert read({"expires_in": 3600, "access_token": token}).lifetime == 3600
    trusted = read_expiry({"expires_in": 3600}, date=DATE, before_wall=DATE, trust_jwt=token)
    assert (trusted.field, trusted.kind, trusted.lifetime, trusted.warning) == ("exp", "jwt", 60, None)
    longer = read_expiry({"expires_in": 30}, date=DATE, before_wall=DATE, trust_jwt=token)
    assert (longer.field, longer.lifetime) == ("expires_in", 30)


@pytest.mark.parametrize("exp", [60, DATE - 1, (DATE + 60) * 1000, "x", True, [1], 10**400, -1], ids=label)
def test_jwt_exp_must_be_future_epoch_seconds(exp: object) -> None:
    """An ``exp`` that is not an epoch in seconds, or not in the future, is reported as unusable."""
    expiry = read_expiry({}, date=DATE, before_wall=DATE, trust_jwt=jwt({"exp": exp}))
    assert (expiry.kind, expiry.unusable) == ("default", ("exp",))


@pytest.mark.parametrize(
    "token",
    [
        *("opaque", "a.b", "a.b.c", "..", "a.\ud800.c", "a.é.c", jwt([1]), jwt({}), jwt({"exp": None})),
        raw_jwt(b"[" * 30_000),
        raw_jwt(b'{"exp":' + b"1" * 5_000 + b"}"),
        raw_jwt(b'{"exp":1767225630}' + b" " * 70_000),
    ],
    ids=label,
)
def test_a_token_that_is_not_a_jwt_is_ignored(token: str) -> None:
    """A token that is not a readable JWT raises nothing, and the fields decide."""
    expiry = read_expiry({"expires_in": 60}, date=DATE, before_wall=DATE, trust_jwt=token)
    assert (expiry.lifetime, expiry.unusable) == (60, ())


def test_warnings_name_fields_but_not_values() -> None:
    """A warning names the unusable field and the value's replacement, and never repeats the value (INV-9)."""
    nothing = read({}).warning
    assert (
        nothing == "the response names no expiry; the token counts as valid for 300 s (the provider's default lifetime)"
    )
    unusable = read({"expires_in": "s3cret", "expires_on": [1]}).warning
    assert unusable is not None
    assert unusable.startswith(
        "the expiry in 'expires_in', 'expires_on' is unusable; the token counts as valid for 300 s"
    )
    assert "s3cret" not in unusable
    assert (
        read({"expires_in": -1, "expires_at": 60}).warning
        == "the expiry in 'expires_in' is unusable; 'expires_at' was used instead"
    )


@pytest.mark.parametrize(
    ("text", "instant"),
    [
        ("Sun, 06 Nov 1994 08:49:37 GMT", 784111777),
        ("Sunday, 06-Nov-94 08:49:37 GMT", 784111777),
        ("Sun Nov  6 08:49:37 1994", 784111777),
        ("Sun, 6 Nov 1994 08:49:37 +0000", 784111777),
        (" sun, 06 nov 1994 08:49:37 utc ", 784111777),
        ("06 Nov 1994 08:49:37 GMT", 784111777),
        ("Thu, 31 Dec 2026 23:59:60 GMT", 1798761599),
        ("Thursday, 01-Jan-69 00:00:00 GMT", 3124224000),
        ("Thursday, 01-Jan-70 00:00:00 GMT", 0),
    ],
)
def test_http_dates_are_read(text: str, instant: int) -> None:
    """The three forms of RFC 9110 are read, and common misspellings of them."""
    assert parse_http_date(text) == instant


@pytest.mark.parametrize(
    "text",
    [
        *("", "now", "Sun, 06 Nov 1994 08:49:37", "Sun, 06 Nov 1994 08:49:37 CET", "Sun, 31 Feb 1994 08:49:37 GMT"),
        *("Sun, 06 Foo 1994 08:49:37 GMT", "Sun, 06 Nov 1994 25:49:37 GMT", "Sun, 06 Nov 1994 08:49:61 GMT"),
        *("Sun, ٠٦ Nov 1994 08:49:37 GMT", "x" * 10_000, "Sun, 06 Nov 0000 08:49:37 GMT", "\ud800", "784111777"),
    ],
    ids=label,
)
def test_other_texts_are_not_http_dates(text: str) -> None:
    """Any other text gives None, and raises nothing."""
    assert parse_http_date(text) is None


@pytest.mark.parametrize(
    ("text", "delay"),
    [
        *(("120", 120), (" 120 ", 120), ("0", 0), ("1.5", 1.5), ("9" * 60, float("9" * 60))),
        *(("Thu, 01 Jan 2026 00:02:00 GMT", 120), ("Wed, 31 Dec 2025 00:00:00 GMT", 0)),
        *(("", None), ("-1", None), ("+1", None), ("soon", None), ("1e3", None), ("9" * 5_000, None), ("nan", None)),
        *(("inf", None), ("١٢٠", None), ("\ud800", None)),
    ],
    ids=label,
)
def test_retry_after_is_read(text: str, delay: float | None) -> None:
    """Retry-After is seconds or a date by the server's clock; a past date means now; other texts give None."""
    assert parse_retry_after(text, date_or_now=DATE) == delay


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**400), 10**400)
    | st.floats()
    | st.text(st.characters(codec=None))
    | st.text("0123456789+-.:TZ eE_,GMT", max_size=40)
    | st.from_regex(r"[+-]?[0-9]{1,20}(\.[0-9]{1,5})?")
    | st.datetimes().map(str)
    | st.datetimes().map(lambda moment: moment.strftime("%a, %d %b %Y %H:%M:%S GMT"))
    | st.binary()
    | st.decimals(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=400, deadline=None)
@given(
    fields=st.dictionaries(st.sampled_from(["expires_in", "expires_on", "expires_at", "ttl"]), ANYTHING, max_size=4),
    date=st.none() | st.floats(0, 4e9),
    off=st.floats(-1e9, 1e9),
    cap=st.floats(1, TEN_YEARS),
    token=st.none() | st.text(max_size=20) | ANYTHING.map(jwt_with) | st.binary().map(raw_jwt),
)
def test_any_response_gives_a_bounded_lifetime(
    fields: dict[str, object], date: float | None, off: float, cap: float, token: str | None
) -> None:
    """For any response, the lifetime is above 0, at most the cap, and consistent with the instants."""
    expiry = read_expiry(fields, date=date, before_wall=DATE + off, names=("ttl",), cap=cap, trust_jwt=token)
    assert 0 < expiry.lifetime <= cap
    assert math.isfinite(expiry.issued_at)
    assert expiry.expires_at == expiry.issued_at + expiry.lifetime
    assert (expiry.field is None) == (expiry.kind == "default")
    assert (expiry.warning is None) == (expiry.field is not None and not expiry.unusable)
    assert expiry.field not in expiry.unusable


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.characters(codec=None)) | st.from_regex(re.compile(r"[0-9 ,.:A-Za-z-]{0,40}")))
def test_any_retry_after_is_read_or_ignored(text: str) -> None:
    """For any Retry-After, the delay is None, or finite and not negative."""
    delay = parse_retry_after(text, date_or_now=DATE)
    assert delay is None or (delay >= 0 and math.isfinite(delay))
