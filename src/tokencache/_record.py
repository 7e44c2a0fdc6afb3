"""The record: a token as JSON, readable by any program that reads ``{"accessToken": "…", "expiresAt": 1704067200}``.

``expiresAt`` is the true expiry in whole epoch seconds. We add ``v``, ``fence``, ``identity``, ``reason``,
``tokenType``, ``scope``, ``issuedAt``, ``lifetime`` (the float seconds that keep a short token exact),
``refreshToken``, ``refreshExpiresAt``, ``againAt``, ``kept`` and ``extra``. A sealed record is
``{"v": 1, "fence": …, "sealed": "…"}``. The fence stays readable, because backends compare it (INV-3).

Another program's record has no ``v``. It may begin with a byte order mark, and name its fields in snake case.
"""

from __future__ import annotations

import json
import math
import re
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, NamedTuple, NoReturn, Protocol, cast

import msgspec

from tokencache.expiry import classify
from tokencache.token import Token

if TYPE_CHECKING:
    from collections.abc import Mapping

VERSION: Final = 1
LARGEST: Final = 1 << 20
"""The size of the largest record, in bytes; larger data is not a record."""

LARGEST_FENCE: Final = 2**53 - 1
"""The largest fence. Lua holds the next number exactly too, but cannot tell it from the one after."""

_FENCE: Final = re.compile(rb'[ \t\r\n]*\{(?:[^{\[]*?,)??[ \t\r\n]*"fence"[ \t\r\n]*:[ \t\r\n]*([0-9]+)[ \t\r\n]*[,}]')
_USUAL: Final = re.compile(rb'\{"v":1,"fence":[0-9]')
_MOST_DIGITS: Final = len(str(LARGEST_FENCE))
_ROUNDING: Final = 0.001
_FAR: Final = 1e11  # seconds; an instant or a duration of a record is smaller
_NUMBERS: Final = (int, float)
_TEXTS: Final = ("accessToken", "tokenType", "scope", "refreshToken", "identity", "reason")


class UnreadableRecord(ValueError):
    """Stored bytes are not a usable record. The text gives the reason and quotes no content (INV-9)."""


class Record(NamedTuple):
    """A decoded record.

    ``fence`` and ``identity`` are ``None`` if another program wrote the record. ``lifetime`` is the whole life of the
    token in seconds, ``None`` if the record does not name it. Then ``token.issued_at`` is ``token.expires_at``, so
    ``token.lifetime`` is 0 and decides nothing. ``reason`` is why the token was fetched. ``kept`` is how many seconds
    the record outlives the usable end of its token. ``again_at``, in epoch seconds, is when to ask the provider again
    after it had no newer token.
    """

    token: Token
    fence: int | None
    identity: str | None
    reason: str | None
    lifetime: float | None
    kept: float = 0.0
    again_at: float | None = None


_Fence = Annotated[int, msgspec.Meta(ge=0, le=LARGEST_FENCE)]
_Seconds = Annotated[float, msgspec.Meta(gt=-_FAR, lt=_FAR)]


class _Fields(msgspec.Struct, rename="camel", gc=False):
    """The fields of a plain record, with the types that tokencache writes."""

    access_token: str
    expires_at: _Seconds
    v: Literal[1]
    fence: _Fence | None = None
    token_type: str | None = None
    scope: str | None = None
    issued_at: _Seconds | None = None
    lifetime: _Seconds | None = None
    refresh_token: str | None = None
    refresh_expires_at: _Seconds | None = None
    identity: str | None = None
    reason: str | None = None
    kept: _Seconds | None = None
    again_at: _Seconds | None = None
    extra: dict[str, Any] | None = None


class Sealing(Protocol):
    """Encrypts records. The record's ``key`` is authenticated too, so a record does not open under another key."""

    def seal(self, key: str, plain: bytes) -> bytes:
        """Return ``plain`` sealed."""
        ...

    def open(self, key: str, sealed: bytes) -> bytes:
        """Return the plain bytes; raises any exception for other data, or for another key."""
        ...


def encode(
    token: Token,
    *,
    fence: int,
    identity: str,
    reason: str | None = None,
    kept: float = 0.0,
    again_at: float | None = None,
    key: str = "",
    sealing: Sealing | None = None,
) -> bytes:
    """Return the record of a token, without the entries of ``extra`` that JSON cannot hold."""
    lifetime = token.lifetime

    fields: dict[str, object] = {
        "v": VERSION,
        "fence": fence,
        "accessToken": token.value,
        "expiresAt": math.floor(token.expires_at),
        "tokenType": token.token_type,
        "scope": token.scope,
        "issuedAt": token.issued_at,
        "lifetime": lifetime if lifetime > 0 else None,
        "refreshToken": token.refresh_token,
        "refreshExpiresAt": token.refresh_expires_at,
        "identity": identity,
        "reason": reason,
        "kept": kept or None,
        "againAt": again_at,
    }
    stored = {name: value for name, value in fields.items() if value is not None}

    # All fields at once first; only if that fails, each entry is tried alone.
    plain = _dump_readable(stored | {"extra": dict(token.extra)} if token.extra else stored)
    if plain is None:
        stored, extra = _storable(stored), _storable(token.extra)
        plain = _dump(stored | {"extra": extra} if extra else stored)

    if sealing is None:
        return plain
    from base64 import b64encode

    return _dump({"v": VERSION, "fence": fence, "sealed": b64encode(sealing.seal(key, plain)).decode()})


def decode(data: bytes, *, key: str = "", sealing: Sealing | None = None) -> Record:
    """Return what a record holds; raises only ``UnreadableRecord``, for an unusable one.

    With ``sealing``, only sealed records are accepted: any program with access to the store can write a plain one.
    """
    fields = (_own(data) if sealing is None else None) or _any(data, key, sealing)
    expires_at, lifetime = _exact(fields.expires_at, fields.issued_at, fields.lifetime)

    # Refused below, outside of ``except``, because the text of the ValueError may hold the token (INV-9).
    token: Token | None
    try:
        token = Token(
            fields.access_token,
            expires_at=expires_at,
            issued_at=expires_at - (lifetime or 0),
            token_type=fields.token_type or "Bearer",
            scope=fields.scope,
            refresh_token=fields.refresh_token,
            refresh_expires_at=fields.refresh_expires_at,
            extra=fields.extra,
        )
    except ValueError:
        token = None

    if token is None:
        _refuse("its field 'accessToken' or 'tokenType' is missing or unusable")
    return Record(token, fields.fence, fields.identity, fields.reason, lifetime, fields.kept or 0.0, fields.again_at)


def fence_of(data: bytes) -> int | None:
    """Return the fence of a record, sealed or not; ``None`` if it has none. Never raises.

    It is the integer, from 0 to 2**53 - 1, in the field ``fence`` of a JSON object, in front of every object and list
    inside::

        {"v":1,"fence":5,"accessToken":"a"}     5
        {"accessToken":"a","fence":5,"extra":   5, though the record is damaged
        {"extra":{"a":1},"fence":5}             none

    It is read by a pattern, not by a JSON parser: no two parsers agree on damaged texts, and Lua must find the same.
    """
    found = _FENCE.match(data) if b'"fence"' in data and len(data) <= LARGEST else None
    if found is None or len(digits := found[1]) > _MOST_DIGITS or (fence := int(digits)) > LARGEST_FENCE:
        return None
    return fence


def next_fence(wall: float, stored: int | None, *earlier: int) -> int:
    """Return the fence of a new lease: above that of the stored record, and of each ``earlier`` lease that is known.

    It is the wall clock's microseconds, or one more than the highest of the others. An earlier lease with the largest
    fence does not count, because no fence is above it. A stored record with the largest fence is replaced by a record
    whose number is too large for a fence; the record after that one has a fence again.
    """
    return max(int(wall * 1e6), (stored or 0) + 1, *(fence + 1 for fence in earlier if fence < LARGEST_FENCE))


def is_another(data: bytes, seen: bytes | None) -> bool:
    """Return whether ``data`` is another record than ``seen``: a higher fence, or other bytes if one has no fence."""
    if seen is None:
        return True
    ours, theirs = fence_of(data), fence_of(seen)
    return data != seen if ours is None or theirs is None else ours > theirs


def is_late(fence: int, stored: bytes | None, *, held: bool) -> bool:
    """Return whether a commit under ``fence`` comes too late to replace the record ``stored`` (INV-3).

    ``held`` tells whether the owner still holds the lease. A record without a fence is from another program. A holder
    may replace it. After a lost lease it stays, because the program that took the lock since has stored it.
    """
    if stored is None:
        return False
    theirs = fence_of(stored)
    return not held if theirs is None else theirs > fence


def _own(data: bytes) -> _Fields | None:
    """Return the fields of a plain record as tokencache writes it; ``None`` if ``_any`` must read it. Never raises.

    Reading a shared token costs little more than the round trip and this function, so msgspec's compiled code decodes.
    msgspec keeps the last of two equal names without an error. The number of colons shows the duplicate, because each
    name has one::

        {"v":1,"accessToken":"a","expiresAt":9}                       3 colons, 3 fields: taken
        {"v":1,"accessToken":"a","accessToken":"b","expiresAt":9}     4 colons, 3 fields: to ``_any``, which refuses it
        {"v":1,"accessToken":"a:b","expiresAt":9}                     4 colons, 3 fields: to ``_any``, which takes it

    A colon in a value thus costs time, and hides nothing. Scopes often hold colons ("read:orders"), so these are
    subtracted. With a backslash in the data they are not, because an escape may stand for a colon.
    """
    if len(data) > LARGEST:
        return None

    try:
        fields = _OWN.decode(data)
    except (ValueError, RecursionError):  # the errors of msgspec are ValueErrors
        return None

    values = msgspec.structs.astuple(fields)
    names = len(values) - values.count(None) + len(fields.extra or ())
    colons = data.count(b":")
    if fields.scope is not None and b"\\" not in data:
        colons -= fields.scope.count(":")
    if colons != names:
        return None
    if _USUAL.match(data) is None:  # where `fence` is the second name, both readings agree
        fields.fence = fence_of(data)
    return fields


def _any(data: bytes, key: str, sealing: Sealing | None) -> _Fields:
    """Return the fields of any record, also a sealed one or another program's; raises ``UnreadableRecord``."""
    bare = data.removeprefix(_BOM)
    fields, fence = _parse(bare), fence_of(data)
    if fields is None:
        _refuse(f"it is larger than {LARGEST} bytes" if len(data) > LARGEST else _malformed(bare))

    _require_version(fields)
    if sealing is not None or "sealed" in fields:
        fields = _opened(fields, fence, key, sealing)
    if "v" not in fields:
        fields = {_CAMEL[name]: value for name, value in fields.items() if name in _CAMEL} | fields
    _require_kinds(fields)

    given: dict[str, Any] = fields  # the types are checked
    get = given.get
    expires_at = _instant(fields, "expiresAt")
    if expires_at is None:
        _refuse("its field 'expiresAt' is missing")

    return _Fields(
        access_token=get("accessToken") or "",
        expires_at=expires_at,
        v=VERSION,
        fence=fence,
        token_type=get("tokenType"),
        scope=get("scope"),
        issued_at=_instant(fields, "issuedAt"),
        lifetime=_number(fields, "lifetime"),
        refresh_token=get("refreshToken"),
        refresh_expires_at=_instant(fields, "refreshExpiresAt"),
        identity=get("identity"),
        reason=get("reason"),
        kept=_number(fields, "kept"),
        again_at=_number(fields, "againAt"),
        extra=get("extra"),
    )


def _malformed(data: bytes) -> str:
    """Return what is wrong with data that is not a JSON object."""
    if data.lstrip()[:1] == b'"':
        return "it is a JSON string, which does not say when its token expires"
    return "it is damaged or not a JSON object"


def _exact(expires_at: float, issued_at: float | None, lifetime: float | None) -> tuple[float, float | None]:
    """Return expiry and lifetime, exact to the fraction of a second if all three agree; else the expiry alone.

    ``expiresAt`` is rounded down to a whole second, so the exact expiry is up to a second later.
    """
    if lifetime is None:
        lifetime = 0.0 if issued_at is None else expires_at - issued_at
    elif issued_at is not None:
        exact = issued_at + lifetime
        if not -_ROUNDING < exact - expires_at < 1 + _ROUNDING:  # another program changed a part of the record
            return expires_at, None
        expires_at = max(expires_at, exact)
    return expires_at, lifetime if lifetime > 0 else None


def _opened(fields: dict[str, object], fence: int | None, key: str, sealing: Sealing | None) -> dict[str, object]:
    """Return the fields inside a sealed record."""
    from base64 import b64decode

    if sealing is None:
        _refuse("it is sealed, and no encryption key is set here; set the fleet's")
    sealed = fields.get("sealed")
    if not isinstance(sealed, str):
        _refuse("it is not sealed, though an encryption key is set here")

    plain, inner = b"", None
    with suppress(Exception):  # the text of a library's error may hold a secret
        plain = sealing.open(key, b64decode(sealed, validate=True))
        inner = _parse(plain)
    if inner is None:
        _refuse("it was sealed with another encryption key, for another record key, or is damaged")

    # The fence outside is readable and could be changed by any writer; the one inside is authenticated.
    if fence_of(plain) != fence:
        _refuse("its fence is not the one that was sealed")
    _require_version(inner)
    return inner


def _require_version(fields: dict[str, object]) -> None:
    """Raise ``UnreadableRecord`` for a record version that this code does not know."""
    version = fields.get("v", VERSION)
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        _refuse("its field 'v' is not a version number")
    if version > VERSION:
        _refuse("it was written by a newer version of tokencache; upgrade this one")


def _require_kinds(fields: dict[str, object]) -> None:
    """Raise ``UnreadableRecord`` if a text or an object has another type."""
    for name in _TEXTS:
        value = fields.get(name)
        if value is not None and not isinstance(value, str):
            _refuse(f"its field {name!r} is not a text")
    value = fields.get("extra")
    if value is not None and not isinstance(value, dict):
        _refuse("its field 'extra' is not an object")


def _number(fields: dict[str, object], name: str) -> float | None:
    """Return a field of finite seconds, ``None`` if it is missing."""
    value = fields.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, _NUMBERS) or not -_FAR < value < _FAR:
        _refuse(f"its field {name!r} is not a number of seconds")
    return float(value)


def _instant(fields: dict[str, object], name: str) -> float | None:
    """Return a field as epoch seconds, ``None`` if it is missing.

    tokencache writes numbers. A record of another program (without ``v``) may hold any instant that :func:`classify`
    knows.
    """
    value = fields.get(name)
    if value is None:
        return None
    if "v" in fields and isinstance(value, _NUMBERS) and not isinstance(value, bool) and -_FAR < value < _FAR:
        return float(value)
    found = classify(value)
    if found is None or found.kind == "duration":
        _refuse(f"its field {name!r} is not an instant")
    return found.amount


def _storable(fields: Mapping[str, object]) -> dict[str, object]:
    """Return the fields that can be written and read back."""
    return {name: value for name, value in fields.items() if _dump_readable({name: value}) is not None}


def _dump_readable(fields: dict[str, object]) -> bytes | None:
    """Return JSON that can be read back, ``None`` if the fields cannot be written so."""
    with suppress(TypeError, ValueError, OverflowError, RecursionError):
        data = _dump(fields)
        return None if _parse(data) is None else data
    return None


def _dump(fields: dict[str, object]) -> bytes:
    """Return strict JSON: no NaN, no lone surrogates."""
    return json.dumps(fields, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _parse(data: bytes) -> dict[str, object] | None:
    """Return a JSON object in UTF-8 whose names are unique, ``None`` for anything else. Never raises."""
    if len(data) > LARGEST:
        return None
    try:
        text = data.decode().strip(_SPACE)
        parsed, end = cast("tuple[object, int]", _JSON.raw_decode(text))
    except (ValueError, RecursionError):
        return None
    return cast("dict[str, object]", parsed) if isinstance(parsed, dict) and end == len(text) else None


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Return the pairs as a table; raises ``ValueError`` for a duplicate name."""
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError
    return table


def _no_constant(_name: str) -> NoReturn:
    """Refuse NaN and Infinity, which are not JSON."""
    raise ValueError


def _refuse(why: str) -> NoReturn:
    """Raise ``UnreadableRecord``. Never call it while another exception is handled: that text may hold a secret."""
    raise UnreadableRecord(why)


_BOM: Final = b"\xef\xbb\xbf"
_CAMEL: Final = dict(zip(_Fields.__struct_fields__, _Fields.__struct_encode_fields__, strict=True))
_OWN: Final = msgspec.json.Decoder(_Fields)
_SPACE: Final = " \t\n\r"
_JSON: Final = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)
