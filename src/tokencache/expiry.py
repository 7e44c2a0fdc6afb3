"""The expiry of a token, read from a response. Its fields may give a duration or an instant, in several formats.

Pure functions. ``docs/expiry.md`` says what each value means, with examples; a test compares it with this module. No
value raises an exception, means "never expires", or leads to a fetch per call.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, cast

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

TEN_YEARS: Final = 315_360_000.0
FIELDS: Final = ("expires_in", "expires_on", "expires_at")
"""The field names that are read from every response, in this order."""

ValueKind: TypeAlias = Literal["duration", "epoch", "epoch_ms", "iso", "http_date"]
Kind: TypeAlias = Literal["duration", "epoch", "epoch_ms", "iso", "http_date", "jwt", "default"]

_LONGEST_TEXT: Final = 64  # no number or date is longer; keeps int(), float() and the patterns quick
_LONGEST_JWT: Final = 1 << 16
_NUMBER: Final = r"[+-]?[0-9]+(?:\.[0-9]+)?"  # patterns are compiled at first use, so that the import stays quick
_HTTP_DATE: Final = (
    r"(?ai)(?:[a-z]{3,9}, ?)?(?P<day>\d{1,2})[ -](?P<month>[a-z]{3})[ -](?P<year>\d{4}|\d{2})"
    r" (?P<hour>\d{1,2}):(?P<minute>\d{2}):(?P<second>\d{2}) (?:GMT|UTC|[+-]0000)"
)
_ASCTIME: Final = (
    r"(?ai)[a-z]{3} (?P<month>[a-z]{3}) {1,2}(?P<day>\d{1,2})"
    r" (?P<hour>\d{2}):(?P<minute>\d{2}):(?P<second>\d{2}) (?P<year>\d{4})"
)
_MONTHS: Final = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")


@dataclass(frozen=True, slots=True)
class Classified:
    """What one value means: ``amount`` is seconds for a ``duration``, and epoch seconds for every other kind."""

    kind: ValueKind
    amount: float

    def lifetime(self, reference: float) -> float:
        """Return the seconds from ``reference`` (epoch) to the end; zero or less for an instant in the past."""
        return self.amount if self.kind == "duration" else self.amount - reference

    def ends_at(self, reference: float) -> float:
        """Return the end in epoch seconds; a duration counts from ``reference`` (epoch)."""
        return reference + self.amount if self.kind == "duration" else self.amount


@dataclass(frozen=True, slots=True)
class Expiry:
    """How long a token lives, and which field says so.

    ``lifetime`` is in seconds, above 0, and counts from before the request was sent. ``issued_at`` is that moment in
    epoch seconds: by the server's clock if its ``Date`` is known, else by the local clock. ``expires_at`` is
    ``issued_at + lifetime``. ``field`` is the field that decided (``exp`` for a JWT), ``None`` for the default.
    ``unusable`` names the fields that were present but not usable.
    """

    lifetime: float
    expires_at: float
    issued_at: float
    field: str | None
    kind: Kind
    unusable: tuple[str, ...] = ()

    @property
    def warning(self) -> str | None:
        """The text of the warning event, without any value; ``None`` if all fields were usable."""
        if self.field is not None and not self.unusable:
            return None
        fields = ", ".join(map(repr, self.unusable))
        problem = f"the expiry in {fields} is unusable" if fields else "the response names no expiry"
        if self.field is None:
            return f"{problem}; the token counts as valid for {self.lifetime:g} s (the provider's default lifetime)"
        return f"{problem}; {self.field!r} was used instead"


def read_expiry(
    fields: Mapping[str, object],
    *,
    date: float | None,
    before_wall: float,
    names: Sequence[str] = (),
    default_lifetime: float = 300.0,
    cap: float = TEN_YEARS,
    trust_jwt: str | None = None,
) -> Expiry:
    """Return how long the token of a response lives.

    ``fields`` are the fields of the response, ``date`` its ``Date`` in epoch seconds, ``before_wall`` the local wall
    clock before the request was sent. ``names`` are further fields of this provider. ``trust_jwt`` is the token, if
    the provider trusts its ``exp``. The smallest lifetime of all usable fields wins, limited by ``cap``. Without a
    usable field it is ``default_lifetime``. A ``null`` counts as missing.
    """
    reference = _server_time(date, before_wall)
    usable: list[tuple[float, str, Kind]] = []
    unusable: list[str] = []
    for name in dict.fromkeys((*FIELDS, *names)):
        value = fields.get(name)
        if value is None:
            continue
        found = classify(value)
        if found is not None and (lifetime := found.lifetime(reference)) > 0:
            usable.append((lifetime, name, found.kind))
        else:
            unusable.append(name)
    exp = None if trust_jwt is None else _jwt_exp(trust_jwt)
    if exp is not None:
        found = classify(exp)
        if found is not None and found.kind == "epoch" and found.amount > reference:
            usable.append((found.amount - reference, "exp", "jwt"))
        else:
            unusable.append("exp")
    fallback: tuple[float, str | None, Kind] = (default_lifetime, None, "default")
    lifetime, field, kind = min(usable, key=lambda each: each[0]) if usable else fallback
    lifetime = min(lifetime, cap)
    return Expiry(lifetime, reference + lifetime, reference, field, kind, tuple(unusable))


def classify(value: object) -> Classified | None:
    """Return what one value means by itself, ``None`` if it is unusable. Never raises.

    A numeric string is a number. Any other text is an ISO 8601 instant (UTC without an offset) or an HTTP date.
    """
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return _classify_number(value)
    if not isinstance(value, str) or len(value) > _LONGEST_TEXT or not value.isascii():
        return None
    if re.fullmatch(_NUMBER, value):
        return _classify_number(float(value))
    instant = _parse_iso(value)
    if instant is not None:
        return Classified("iso", instant)
    instant = parse_http_date(value)
    return None if instant is None else Classified("http_date", instant)


def parse_http_date(text: str) -> float | None:
    """Return an HTTP date (RFC 9110 section 5.6.7, all three forms) in epoch seconds, ``None`` for any other text.

    A two-digit year stands for 1970 to 2069. Spaces around the date are ignored.
    """
    text = text.strip(" \t")
    if len(text) > _LONGEST_TEXT:
        return None
    match = re.fullmatch(_HTTP_DATE, text) or re.fullmatch(_ASCTIME, text)
    if match is None or match["month"].lower() not in _MONTHS:
        return None
    from datetime import UTC, datetime

    year, day, hour, minute = (int(match[name]) for name in ("year", "day", "hour", "minute"))
    if len(match["year"]) == 2:  # noqa: PLR2004  the form of RFC 850
        year += 1900 if year >= 70 else 2000  # noqa: PLR2004
    second = min(int(match["second"]), 59) if match["second"] == "60" else int(match["second"])  # a leap second
    try:
        moment = datetime(year, _MONTHS.index(match["month"].lower()) + 1, day, hour, minute, second, tzinfo=UTC)
    except ValueError:
        return None
    return moment.timestamp()


def parse_retry_after(text: str, *, date_or_now: float) -> float | None:
    """Return a ``Retry-After`` (seconds or an HTTP date, RFC 9110 section 10.2.3) as a delay in seconds.

    The delay is finite and not negative. It counts from ``date_or_now``: the response's ``Date``, or else the local
    wall clock, in epoch seconds. The caller limits it. ``None`` for any other text.
    """
    text = text.strip(" \t")
    if len(text) <= _LONGEST_TEXT and text[:1] not in ("+", "-") and re.fullmatch(_NUMBER, text):
        return float(text)
    instant = parse_http_date(text)
    return None if instant is None else max(0.0, instant - date_or_now)


def _server_time(date: float | None, wall: float) -> float:
    """Return the server's time: the local time if it agrees with ``Date`` (whole seconds), else ``Date``."""
    if date is None or not math.isfinite(date):
        return wall
    return min(max(wall, date), date + 1)


def _classify_number(number: float) -> Classified | None:
    """Return the meaning of a number by its band; ``None`` for NaN and for numbers between the bands."""
    if 1 <= number <= TEN_YEARS:
        return Classified("duration", float(number))
    if 1e9 <= number < 1e11:  # noqa: PLR2004  the bands are the table's
        return Classified("epoch", float(number))
    if 1e12 <= number < 1e14:  # noqa: PLR2004
        return Classified("epoch_ms", number / 1000)
    return None


def _parse_iso(text: str) -> float | None:
    """Return an ISO 8601 instant in epoch seconds; without an offset it is UTC."""
    from datetime import UTC, datetime

    try:
        moment = datetime.fromisoformat(text.upper())
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


def _jwt_exp(token: str) -> object:
    """Return the ``exp`` of a JWT, unverified; ``None`` if it has no ``exp`` or is not a JWT."""
    parts = token.split(".")
    if len(parts) != 3 or len(parts[1]) > _LONGEST_JWT:  # noqa: PLR2004  header, payload, signature
        return None
    from base64 import urlsafe_b64decode

    try:
        payload: object = json.loads(urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (ValueError, RecursionError):
        return None
    return cast("dict[str, object]", payload).get("exp") if isinstance(payload, dict) else None
