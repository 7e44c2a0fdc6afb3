"""Records: a written one can be read for ever, and an unreadable one is a miss and never a crash."""

from __future__ import annotations

import base64
import json
import math
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tokencache._record import (
    LARGEST,
    Record,
    UnreadableRecord,
    decode,
    encode,
    fence_of,
    is_another,
    is_late,
    next_fence,
)
from tokencache.token import Token

GOLDEN = Path(__file__).parents[1] / "golden" / "records"
SECRET = "s3cret-value"


class Mirror:
    """A sealing for tests: it reverses the bytes and binds the key."""

    def seal(self, key: str, plain: bytes) -> bytes:
        """Return key and bytes, reversed."""
        return (key.encode() + b"|" + plain)[::-1]

    def open(self, key: str, sealed: bytes) -> bytes:
        """Return the bytes, if the key is the same."""
        bound, _, plain = sealed[::-1].partition(b"|")
        if bound.decode() != key:
            message = f"wrong key for {plain!r}"
            raise RuntimeError(message)
        return plain


FULL = Token(
    "eyJhbGciOiJIUzI1NiJ9.e30.c2ln",
    expires_at=1704067200.75,
    issued_at=1704063600.5,
    token_type="DPoP",
    scope="read write",
    refresh_token="refresh",
    refresh_expires_at=1704070800.25,
    extra={"session_state": "prod", "not-before-policy": 0, "nested": {"é": [None, True, 1.5]}},
)
PLAIN = Token("opaque-token", expires_at=1704067200, issued_at=1704063600)
FOREIGN = Token("opaque-token", expires_at=1704067200, issued_at=1704067200)
FENCE = 1704063600500000
ID = "0123456789abcdef0123456789abcdef01234567"

RECORDS = {
    "v1-full.json": Record(FULL, FENCE, ID, "renew", 3600.25),
    "v1-plain.json": Record(PLAIN, FENCE, ID, None, 3600),
    "v1-sealed.json": Record(FULL, FENCE, ID, "renew", 3600.25),
    "foreign-two-fields.json": Record(
        Token("eyJhbGciOiJIUzI1NiJ9.e30.c2ln", expires_at=1704067200, issued_at=1704067200), None, None, None, None
    ),
    "foreign-numeric-text.json": Record(FOREIGN, None, None, None, None),
    "foreign-float.json": Record(
        Token("opaque-token", expires_at=1704067200.75, issued_at=1704067200.75), None, None, None, None
    ),
    "foreign-milliseconds.json": Record(
        Token("opaque-token", expires_at=1704067200.75, issued_at=1704063600.75), None, None, None, 3600
    ),
    "foreign-iso.json": Record(FOREIGN, None, None, None, None),
    "foreign-snake-case.json": Record(FOREIGN.replace(refresh_token="r"), None, None, None, None),
    "foreign-byte-order-mark.json": Record(FOREIGN, None, None, None, None),
}


def golden(name: str) -> bytes:
    """Return the bytes of a golden file."""
    return (GOLDEN / name).read_bytes()


def dump(**fields: object) -> bytes:
    """Return a record of our own form with these fields changed; ``...`` removes one."""
    table = {"v": 1, "fence": 7, "accessToken": SECRET, "expiresAt": 1704067200, "identity": ID} | fields
    return json.dumps({name: value for name, value in table.items() if value is not ...}).encode()


def refusal(data: bytes, **options: object) -> str:
    """Return the text with which a record is refused; neither it nor the error's causes hold the record."""
    with pytest.raises(UnreadableRecord) as caught:
        decode(data, **options)  # type: ignore[arg-type]
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    text = str(caught.value)
    assert SECRET not in text
    return text


@pytest.mark.parametrize("name", sorted(RECORDS))
def test_golden_records_stay_readable(name: str) -> None:
    """Every released form is read, with its original meaning."""
    sealing = Mirror() if "sealed" in name else None
    assert decode(golden(name), key="k", sealing=sealing) == RECORDS[name]
    assert fence_of(golden(name)) == RECORDS[name].fence


def test_each_golden_record_has_an_expectation() -> None:
    """Each golden file is listed here."""
    assert {path.name for path in GOLDEN.iterdir()} == set(RECORDS)


def test_a_new_record_has_the_released_form() -> None:
    """A record that is written today equals the golden file, byte for byte."""
    assert encode(FULL, fence=FENCE, identity=ID, reason="renew") == golden("v1-full.json")
    assert encode(PLAIN, fence=FENCE, identity=ID) == golden("v1-plain.json")
    sealed = encode(FULL, fence=FENCE, identity=ID, reason="renew", key="k", sealing=Mirror())
    assert sealed == golden("v1-sealed.json")


def test_other_programs_can_read_ours() -> None:
    """The two common fields are there: the token, and its true expiry in whole epoch seconds."""
    table = json.loads(encode(FULL, fence=FENCE, identity=ID))
    assert table["accessToken"] == FULL.value
    assert table["expiresAt"] == 1704067200
    assert type(table["expiresAt"]) is int
    assert type(table["fence"]) is int
    assert list(table)[:2] == ["v", "fence"]


def test_another_programs_record_has_no_lifetime() -> None:
    """The lifetime of another program's token is unknown: the record says so, and the token's lifetime is 0."""
    record = decode(golden("foreign-two-fields.json"))
    assert record.lifetime is None
    assert record.token.lifetime == 0


def test_short_lifetimes_keep_their_fractions() -> None:
    """A token that lives less than a second keeps its exact lifetime and expiry."""
    token = Token("t", expires_at=1704067200.9, issued_at=1704067200.1)
    record = decode(encode(token, fence=1, identity=ID))
    assert record.lifetime == pytest.approx(0.8)
    assert record.token.expires_at == pytest.approx(token.expires_at, abs=1e-6)


@pytest.mark.parametrize(
    ("changed", "expires_at", "lifetime"),
    [
        ({}, 1704067200.5, 3600),
        ({"expiresAt": 1704070800}, 1704070800, None),
        ({"expiresAt": 1704067199}, 1704067199, None),
        ({"expiresAt": 1704067201}, 1704067201, None),
        ({"issuedAt": ...}, 1704067200, 3600),
        ({"lifetime": ...}, 1704067200, 3599.5),
        ({"lifetime": ..., "issuedAt": 1704067200}, 1704067200, None),
        ({"lifetime": 0, "issuedAt": ...}, 1704067200, None),
        ({"lifetime": -5, "issuedAt": ...}, 1704067200, None),
    ],
    ids=str,
)
def test_expires_at_counts_if_the_parts_disagree(
    changed: dict[str, object], expires_at: float, lifetime: float | None
) -> None:
    """If another program changed one part of a record, ``expiresAt`` counts and the lifetime is unknown."""
    record = decode(dump(**({"issuedAt": 1704063600.5, "lifetime": 3600} | changed)))
    assert (record.token.expires_at, record.lifetime) == (expires_at, lifetime)


TEXTS = st.text(st.characters(codec=None), max_size=8)
JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
TOKENS = st.builds(
    Token,
    st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=50),
    expires_at=st.floats(0, 1e10),
    issued_at=st.floats(0, 1e10),
    token_type=st.sampled_from(["Bearer", "DPoP", "MAC"]),
    scope=st.none() | st.text(max_size=8),
    refresh_token=st.none() | st.text(max_size=8),
    refresh_expires_at=st.none() | st.floats(0, 1e10),
    extra=st.none() | st.dictionaries(st.text(max_size=4), JSON_VALUES, max_size=3),
)


@settings(max_examples=300, deadline=None)
@given(
    token=TOKENS,
    fence=st.integers(0, 2**53 - 1),
    reason=st.none() | st.sampled_from(["cold", "rejected"]),
    sealed=st.booleans(),
)
@example(  # rounds up
    token=Token("t", expires_at=8589934593.999998, issued_at=1.2054014205932617), fence=0, reason=None, sealed=False
)
def test_a_written_record_is_read_back(token: Token, fence: int, reason: str | None, sealed: bool) -> None:
    """A record is read back, sealed or not, with equal fields and instants to the microsecond.

    A token that had ended when it was issued keeps only whole seconds.
    """
    sealing = Mirror() if sealed else None
    data = encode(token, fence=fence, identity=ID, reason=reason, key="k", sealing=sealing)
    record = decode(data, key="k", sealing=sealing)
    assert (record.fence, record.identity, record.reason) == (fence, ID, reason)
    assert fence_of(data) == fence
    back = record.token
    for name in ("value", "token_type", "scope", "refresh_token", "refresh_expires_at", "extra"):
        assert getattr(back, name) == getattr(token, name)
    if token.lifetime > 0:
        assert record.lifetime == token.lifetime
        assert back.expires_at == pytest.approx(token.expires_at, abs=2e-6)
        assert back.issued_at == pytest.approx(token.issued_at, abs=4e-6)
    else:
        assert record.lifetime is None
        assert back.expires_at == math.floor(token.expires_at)


UNSTORABLE = {
    "nan": math.nan,
    "inf": math.inf,
    "object": object(),
    "bytes": b"x",
    "set": {1},
    "half": "\ud800",
    "\ud800": 1,
    "deep": None,
    "endless": None,
    "huge": 10**5000,
    "twice": {1: "a", "1": "b"},
    "keys": {(1, 2): 3},
}


def test_an_extra_field_that_json_cannot_hold_is_left_out() -> None:
    """No extra field loses a good token: a field that cannot be stored and read back is left out."""
    deep: object = 1
    for _ in range(100_000):
        deep = [deep]
    endless: list[object] = []
    endless.append(endless)
    extra = UNSTORABLE | {"deep": deep, "endless": endless, "good": [1]}
    token = Token(
        "t", expires_at=1704067200, issued_at=1704063600, scope="\ud800", refresh_expires_at=math.nan, extra=extra
    )
    record = decode(encode(token, fence=1, identity=ID))
    assert record.token == Token("t", expires_at=1704067200, issued_at=1704063600, extra={"good": [1]})


@pytest.mark.parametrize("name", sorted(RECORDS))
def test_every_truncated_record_is_unreadable(name: str) -> None:
    """A record that was cut off at any byte is refused; its fence is still read if the cut is behind it."""
    data = golden(name).rstrip()
    sealing = Mirror() if "sealed" in name else None
    for end in range(len(data)):
        assert refusal(data[:end], key="k", sealing=sealing) == "it is damaged or not a JSON object"
        assert fence_of(data[:end]) == (RECORDS[name].fence if end > data.find(b'"fence":') + 24 else None)


@pytest.mark.parametrize(
    "data",
    [
        *(
            b"",
            b" ",
            b"null",
            b"[]",
            b"1",
            b"{}]",
            b"OK",
            b"\x00",
            b"\xff\xfe",
            dump() + b"x",
        ),
        *(dump().decode().encode("utf-16"), b"\x80\x04\x95", b"[" * 100_000, b'{"a":' * 100_000),
        b'{"v":1,"v":1,"accessToken":"s3cret-value","expiresAt":1704067200}',
        b'{"accessToken":"s3cret-value","expiresAt":1704067200,"extra":{"a":1,"a":2}}',
        b'{"v":1,"accessToken":"s3cret-value","expiresAt":1704067200,"fence":1,"fence":2}',
        b'{"v":1,"accessToken":"s3cret-value","expiresAt":1704067200,"fence":1,"fence":2,"scope":"\\u003a"}',
        b'{"v":1,"accessToken":"s3cret-value","expiresAt":1704067200,"extra":{"a":1,"a":2}}',
        b'{"v":1,"accessToken":"s3cret-value","expiresAt":1704067200,"scope":"\xff"}',
        b'{"v":1,"accessToken":"s3cret-value","expiresAt":1704067200,"other":"\xff"}',
        b'{"accessToken":"s3cret-value","expiresAt":NaN}',
        b'{"accessToken":"s3cret-value","expiresAt":Infinity}',
        b'{"accessToken":"s3cret-value","expiresAt":' + b"1" * 5000 + b"}",
        b'{"accessToken":"s3cret-value","expiresAt":1704067200,}',
        b'{"accessToken":"s3cret-value\xff","expiresAt":1704067200}',
    ],
    ids=lambda data: f"{data[-24:]!r} of {len(data)}",
)
def test_bytes_that_are_not_a_json_object_are_unreadable(data: bytes) -> None:
    """Only a strict JSON object is read."""
    assert refusal(data) == "it is damaged or not a JSON object"


@pytest.mark.parametrize("data", [f'"{SECRET}"'.encode(), f' "{SECRET}'.encode(), f'\ufeff"{SECRET}"'.encode()])
def test_a_bare_string_is_named(data: bytes) -> None:
    """A JSON string says nothing of its token's end, so it is refused, and the refusal says what it is."""
    assert refusal(data) == "it is a JSON string, which does not say when its token expires"
    assert fence_of(data) is None


def test_names_in_snake_case_are_another_programs() -> None:
    """Snake case is read only without ``v``; a name in camel case counts more; a fence after a BOM does not count."""
    assert decode(dump(v=..., expires_at=9, access_token="x")).token.value == SECRET
    assert "'expiresAt' is missing" in refusal(dump(expiresAt=..., expires_at=1704067200))
    assert "'accessToken' or" in refusal(dump(accessToken=..., access_token=SECRET))
    marked = b"\xef\xbb\xbf" + dump()
    assert decode(marked).token.value == SECRET
    assert decode(marked).fence is fence_of(marked) is None


def test_a_record_over_the_size_limit_is_unreadable() -> None:
    """Ten megabytes, or one byte above the limit, are refused unread; at the limit a record is read."""
    assert refusal(dump(extra={"a": "x" * 10_000_000})) == f"it is larger than {LARGEST} bytes"
    assert fence_of(dump(extra={"a": "x" * 10_000_000})) is None
    room = LARGEST - len(dump(extra={"a": ""}))
    assert decode(dump(extra={"a": "x" * room})).fence == 7
    assert "larger" in refusal(dump(extra={"a": "x" * (room + 1)}))


def test_optional_fields_of_a_record_are_read() -> None:
    """A record may say how long it outlives its token, and when to ask the provider again; the default is neither."""
    data = encode(FULL, fence=FENCE, identity=ID, kept=5.5, again_at=1704067100.25)
    assert (decode(data).kept, decode(data).again_at) == (5.5, 1704067100.25)
    assert (json.loads(data)["kept"], json.loads(data)["againAt"]) == (5.5, 1704067100.25)
    bare = encode(FULL, fence=FENCE, identity=ID)
    assert (decode(bare).kept, decode(bare).again_at) == (0.0, None)
    assert not {"kept", "againAt"} & set(json.loads(bare))


@pytest.mark.parametrize(
    ("changed", "part"),
    [
        *(({"v": version}, "'v' is not a version") for version in (0, -1, True, None, 1.0, "1", [1])),
        ({"v": 2}, "written by a newer version"),
        ({"v": 10**30}, "written by a newer version"),
        ({"expiresAt": ...}, "'expiresAt' is missing"),
        ({"expiresAt": None}, "'expiresAt' is missing"),
        *(
            ({"expiresAt": value}, "'expiresAt' is not an instant")
            for value in (True, "soon", [], {}, 1e400, 10**400, 1e12 - 1)
        ),
        *(
            ({"expiresAt": value, "v": ...}, "'expiresAt' is not an instant")
            for value in (3600, "3600", 0, -1, 10**9 - 1, False)
        ),
        *(({"accessToken": value}, "'accessToken' or") for value in ("", None, ..., "a b", "a\r\nb", "é", "\ud800")),
        *(({"tokenType": value}, "'tokenType' is") for value in ("Be arer", "a\nb")),
        *(
            ({name: 1}, f"{name!r} is not a text")
            for name in ("accessToken", "tokenType", "scope", "identity", "reason")
        ),
        *(({"refreshToken": value}, "'refreshToken' is not a text") for value in (1, [], True)),
        *(({"issuedAt": value}, "'issuedAt' is not an instant") for value in (True, "soon", [], 1e400)),
        *(({"lifetime": value}, "'lifetime' is not a number") for value in (True, "1", [], 1e400, -1e400, 10**400)),
        *(({"againAt": value}, "'againAt' is not a number") for value in (True, "1", [], 1e400)),
        *(({"kept": value}, "'kept' is not a number") for value in (True, "1", [], 1e400)),
        *(({"refreshExpiresAt": value}, "'refreshExpiresAt' is not an instant") for value in (False, "never", {})),
        *(({"extra": value}, "'extra' is not an object") for value in (1, [], "x", True)),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_a_wrong_field_makes_a_record_unreadable(changed: dict[str, object], part: str) -> None:
    """A field of a wrong type or size makes the record unreadable; the error names the field."""
    assert part in refusal(dump(**changed).replace(b"Infinity", b"1e400"))


@pytest.mark.parametrize(
    "fence", [True, False, 1.0, "7", -1, 2**53, 10**400, None, [], {}, ...], ids=lambda f: ascii(f)[:20]
)
def test_a_fence_is_a_plain_integer(fence: object) -> None:
    """A value that is not an integer which every script holds exactly is not a fence; the record stays readable."""
    assert fence_of(dump(fence=fence)) is None
    assert decode(dump(fence=fence)).fence is None


@pytest.mark.parametrize("fence", [0, 1, 2**53 - 1])
def test_the_smallest_and_largest_fence_are_read(fence: int) -> None:
    """Both ends of the range are fences."""
    assert fence_of(dump(fence=fence)) == decode(dump(fence=fence)).fence == fence


OTHER_BYTES = dump(fence=7, reason="renew")


@pytest.mark.parametrize(
    ("data", "seen", "another"),
    [
        (dump(fence=7), None, True),
        (dump(fence=8), dump(fence=7), True),
        (dump(fence=7), dump(fence=7), False),
        (OTHER_BYTES, dump(fence=7), False),
        (dump(fence=6), dump(fence=7), False),
        (dump(fence=...), dump(fence=...), False),
        (dump(fence=..., reason="renew"), dump(fence=...), True),
        (dump(fence=...), dump(fence=7), True),
        (dump(fence=7), dump(fence=...), True),
    ],
    ids=range(9),
)
def test_a_higher_fence_makes_another_record(data: bytes, seen: bytes | None, *, another: bool) -> None:
    """INV-3: a higher fence makes another record; if one of the two has no fence, other bytes do."""
    assert is_another(data, seen) is another


@pytest.mark.parametrize(
    ("stored", "earlier", "fence"),
    [
        (None, (), 7_000_000),
        (7_000_000, (), 7_000_001),
        (7_000_004, (9_000_000, 8_000_000), 9_000_001),
        (2**53 - 1, (), 2**53),
        (None, (2**53 - 2,), 2**53 - 1),
        (None, (2**53 - 1, 10**400), 7_000_000),
    ],
)
def test_the_next_fence(stored: int | None, earlier: tuple[int, ...], fence: int) -> None:
    """INV-3: it is above the wall clock and all that is known; an earlier one that leaves no room is forgotten."""
    assert next_fence(7.0, stored, *earlier) == fence


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize(("stored", "late"), [(None, False), (6, False), (7, False), (8, True)])
def test_a_commit_is_late_if_a_higher_fence_is_stored(stored: int | None, *, held: bool, late: bool) -> None:
    """INV-3: a record with a higher fence stays, one with the same fence does not; the lease does not matter."""
    assert is_late(7, None if stored is None else dump(fence=stored), held=held) is late


@pytest.mark.parametrize("held", [True, False])
def test_a_record_without_a_fence_gives_way_only_to_the_holder(*, held: bool) -> None:
    """INV-3: another program's record means that it took the lock since, so a lost lease is too late."""
    assert is_late(7, dump(fence=...), held=held) is not held


TALLEST = str(2**53 - 1).encode()


@pytest.mark.parametrize(
    ("data", "fence"),
    [
        (b'{"fence":5,"x":"\\ud800"}', 5),
        (b'{"fence":5,"x":"\xff"}', 5),
        (b'{"fence":5,"x":NaN,"y":0x1}', 5),
        (b'{"fence":5,"x":' + b"[" * 100_000, 5),
        (b'{"fence":5,"x":' + b"1" * 100_000, 5),
        (b'{"fence":5}\x00', 5),
        (b'\r\n\t {"x":"y" , "fence"\n:\t5 }', 5),
        (b'{"fence":5,"fence":6}', 5),
        (b'{"fence":"x","fence":6}', 6),
        (b'{"fence":' + TALLEST + b"}", 2**53 - 1),
        (b'{"fence":9007199254740992}', None),
        (b'{"fence":00000000000000005,"fence":6}', None),
        (b'{"fence":' + b"9" * 10_000 + b"}", None),
        (b'{"fence":5', None),
        (b'{"fence":5.0}', None),
        (b'{"fence":5e0}', None),
        (b'{"fence":-5}', None),
        (b'{"fence":+5}', None),
        (b'{"fence":\xd9\xa5}', None),
        (b'{"\\u0066ence":5}', None),
        (b'\x0b{"fence":5}', None),
        (b'\xef\xbb\xbf{"fence":5}', None),
        (b'{"x":[],"fence":5}', None),
        (b'{"x":{"fence":5}}', None),
        (b'{"x":"\\"fence\\":5,"}', None),
        (b'{"x\\"fence":5}', None),
        (b'["fence":5]', None),
        (b'"fence":5,', None),
        (b"", None),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_the_fence_of_a_hostile_text(data: bytes, fence: int | None) -> None:
    """The fence is read by one pattern, so that Lua finds the same, whatever else the text holds.

    ``tests/servers/fuzz/test_fences.py`` asks Lua.
    """
    assert fence_of(data) == fence


def test_a_nested_fence_is_ignored() -> None:
    """Only the top level has the fence: ``extra`` and texts do not."""
    assert fence_of(dump(fence=..., extra={"fence": 9})) is None
    assert fence_of(dump(fence=..., scope='{"v":1,"fence":9}')) is None


def test_a_fence_behind_an_object_is_none() -> None:
    """A record that another program wrote in another order is read, and both sides see no fence."""
    table = json.loads(dump(extra={"a": 1}))
    data = json.dumps({"extra": table.pop("extra"), **table}).encode()
    assert fence_of(data) is None
    assert decode(data).fence is None


def test_a_sealed_record_shows_only_its_fence() -> None:
    """A sealed record hides the token, and its fence can still be read."""
    data = encode(FULL, fence=FENCE, identity=ID, key="k", sealing=Mirror())
    assert set(json.loads(data)) == {"v", "fence", "sealed"}
    assert FULL.value.encode() not in data
    assert fence_of(data) == FENCE


def test_sealed_records_that_cannot_be_opened_are_refused() -> None:
    """A record is refused with its own reason: without sealing, with another key, changed, or plain."""
    token = Token(SECRET, expires_at=1704067200, issued_at=1704063600)
    data = encode(token, fence=7, identity=ID, key="k", sealing=Mirror())
    table = json.loads(data)
    other = "another encryption key"
    assert "no encryption key is set here" in refusal(data, key="k")
    assert other in refusal(data, key="other", sealing=Mirror())
    assert "not sealed" in refusal(dump(), key="k", sealing=Mirror())
    assert "not sealed" in refusal(dump(sealed=[1]), key="k", sealing=Mirror())
    assert other in refusal(dump(sealed="*" + table["sealed"]), key="k", sealing=Mirror())
    assert other in refusal(json.dumps(table | {"sealed": table["sealed"][4:]}).encode(), key="k", sealing=Mirror())
    assert "fence is not the one" in refusal(json.dumps(table | {"fence": 8}).encode(), key="k", sealing=Mirror())
    assert "fence is not the one" in refusal(
        json.dumps({"sealed": table["sealed"]}).encode(), key="k", sealing=Mirror()
    )
    assert "newer version" in refusal(json.dumps(table | {"v": 2}).encode(), key="k", sealing=Mirror())
    newer = base64.b64encode(Mirror().seal("k", dump(v=2))).decode()
    assert "newer version" in refusal(dump(sealed=newer), key="k", sealing=Mirror())


NAMES = (
    *("v", "fence", "accessToken", "expiresAt", "tokenType", "scope", "issuedAt", "lifetime"),
    *("refreshToken", "refreshExpiresAt", "identity", "reason", "extra", "sealed"),
)
FIELDS = st.dictionaries(st.sampled_from(NAMES), JSON_VALUES | st.integers(10**9, 2 * 10**9) | st.just(1) | TEXTS)


@settings(max_examples=400, deadline=None)
@given(data=st.binary(max_size=60) | FIELDS.map(lambda table: dump(**table)), sealed=st.booleans())
def test_any_bytes_are_a_record_or_unreadable(data: bytes, sealed: bool) -> None:
    """For any stored bytes, the result is a record or unreadable, and the fence is an integer or None."""
    fence = fence_of(data)
    assert fence is None or (type(fence) is int and 0 <= fence < 2**53)
    try:
        record = decode(data, key="k", sealing=Mirror() if sealed else None)
    except UnreadableRecord:
        return
    assert record.fence == fence
    assert record.lifetime is None or record.lifetime > 0
    assert math.isfinite(record.token.expires_at)


def test_no_repr_shows_a_secret() -> None:
    """A decoded record can be printed safely (INV-9)."""
    record = decode(dump(refreshToken="r3fresh", extra={"id": "3xtra"}))
    for text in (repr(record), str(record)):
        assert not any(secret in text for secret in (SECRET, "r3fresh", "3xtra"))
