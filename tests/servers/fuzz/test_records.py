"""Records with any content: decoding refuses them or is right, and a damaged record never gives another token."""

from __future__ import annotations

import hashlib
import hmac
import json
import math

from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from tokencache._record import Record, UnreadableRecord, _any, _own, decode, encode, fence_of, is_another
from tokencache.expiry import classify
from tokencache.token import Token

FUZZ = settings.get_profile("fuzz")

VISIBLE = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=40)
TEXT = st.text(max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None), max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
INSTANTS = st.floats(1e9, 4e9) | st.integers(10**9, 4 * 10**9)
TOKENS = st.builds(
    Token,
    VISIBLE,
    expires_at=INSTANTS,
    issued_at=INSTANTS,
    token_type=st.sampled_from(["Bearer", "DPoP"]) | VISIBLE,
    scope=st.none() | TEXT,
    refresh_token=st.none() | TEXT,
    refresh_expires_at=st.none() | INSTANTS,
    extra=st.dictionaries(TEXT, st.text(max_size=10) | st.integers(-99, 99) | st.lists(st.booleans()), max_size=3),
)
LARGEST_FENCE = 2**53 - 1
FENCES = st.integers(0, LARGEST_FENCE)
ODD = (
    JSON | INSTANTS | INSTANTS.map(str) | FENCES | st.sampled_from([1, "1", 1.0, 2, 0, -1, 2**53 + 1, 10**400, "", "x"])
)
NAMES = ("v", "fence", "accessToken", "expiresAt", "tokenType", "scope", "issuedAt", "lifetime", "refreshToken")
NAMES += ("refreshExpiresAt", "identity", "reason", "extra", "sealed")
NOTHING = object()


@st.composite
def tables(draw: st.DrawFn) -> dict[str, object]:
    """Draw the fields of a good record, a few of them odd or missing, or those of another program's record."""
    token = draw(TOKENS)
    whole: dict[str, object] = json.loads(encode(token, fence=draw(FENCES), identity="somebody", reason="cold"))
    kind = draw(st.sampled_from(["ours", "changed", "changed", "theirs"]))
    if kind == "theirs":
        whole = {"accessToken": token.value, "expiresAt": draw(INSTANTS)}
    elif kind == "changed":  # one of the times was changed, the others were not
        name = draw(st.sampled_from(["expiresAt", "issuedAt"]))
        whole[name] = whole[name] + draw(st.integers(-99_999, 99_999) | st.floats(-2, 2))  # type: ignore[operator]
    if draw(st.booleans()):
        whole["fence"] = draw(st.sampled_from([-1, 0, 1, LARGEST_FENCE, 2**53, 10**400, 1.0, 1.5, True, "1", None]))
    odd = draw(
        st.dictionaries(st.sampled_from(NAMES), ODD | st.just(NOTHING), max_size=draw(st.sampled_from([0, 0, 1, 3])))
    )
    return {name: value for name, value in {**whole, **odd}.items() if value is not NOTHING}


TABLES = tables()


class Sealed:
    """A transparent sealing that detects every change, which is enough for these tests."""

    def seal(self, key: str, plain: bytes) -> bytes:
        """Put a keyed digest of key and text before the text."""
        return self._digest(key, plain) + plain

    def open(self, key: str, sealed: bytes) -> bytes:
        """Return the text if the digest is right."""
        if not hmac.compare_digest(sealed[:32], self._digest(key, sealed[32:])):
            message = f"planted: {sealed!r}"
            raise ValueError(message)
        return sealed[32:]

    def _digest(self, key: str, plain: bytes) -> bytes:
        return hmac.digest(b"planted", b"%d:%s%s" % (len(key.encode()), key.encode(), plain), hashlib.sha256)


SEALING = Sealed()


def stored(token: Token, fence: int, *, sealed: bool) -> bytes:
    """Return the record of a token."""
    return encode(token, fence=fence, identity="somebody", key="K", sealing=SEALING if sealed else None)


def read(data: bytes, *, key: str = "K", sealed: bool = False) -> Record | None:
    """Return the content of a record, ``None`` for a refused one; no other exception may be raised."""
    try:
        return decode(data, key=key, sealing=SEALING if sealed else None)
    except UnreadableRecord as error:
        refusal = error
    assert "planted" not in str(refusal), "INV-9: a refusal repeats nothing of the content"
    assert (refusal.__cause__, refusal.__context__) == (None, None)
    return None


def check(data: bytes) -> None:
    """Check the claims that hold for any bytes in a store."""
    fence = fence_of(data)
    assert fence is None or (type(fence) is int and 0 <= fence <= LARGEST_FENCE)
    assert is_another(data, None) is True
    assert is_another(data, data) is False
    for sealed in (False, True):
        found = read(data, sealed=sealed)
        if found is None:
            continue
        fields = json.loads(data)
        assert not sealed or "sealed" in fields, "a plain record might be anybody's"
        assert found.fence == fence
        assert found.token.value.isascii()
        assert found.token.value.isprintable()
        assert found.identity is None or type(found.identity) is str
        assert found.reason is None or type(found.reason) is str
        assert found.lifetime is None or 0 < found.lifetime < math.inf
        assert found.token.lifetime == 0 or found.lifetime is not None
        if not sealed:
            check_expiry(found, fields)


def check_expiry(found: Record, fields: dict[str, object]) -> None:
    """Check that only `expiresAt` makes a token last longer: another field adds less than a second."""
    said = fields.get("expiresAt", fields.get("expires_at"))
    if "v" not in fields:
        meant = classify(said)
        assert meant is not None
        assert meant.kind != "duration", "a stored duration has no beginning"
        said = meant.amount
    elif not isinstance(said, int | float):
        meant = classify(said)
        assert meant is not None
        said = meant.amount
    assert isinstance(said, int | float)
    if abs(said) < 1e11:
        assert said - 0.01 <= found.token.expires_at < said + 1


@FUZZ
@given(
    data=st.binary(max_size=200)
    | st.text(max_size=80).map(str.encode)
    | JSON.map(lambda value: json.dumps(value).encode())
)
@example(data=b"[" * 100_000)
@example(data=b'{"a":' * 100_000)
@example(data=b'{"fence":' + b"9" * 5000 + b"}")
@example(data=b'\xef\xbb\xbf{"accessToken":"x","expiresAt":2000000000}')
@example(data=b'\xef\xbb\xbf{"fence":3,"access_token":"x","expires_at":2000000000}')
def test_bytes_of_any_kind_raise_only_a_refusal(data: bytes) -> None:
    """INV-9: any bytes are a usable record or refused, and the refusal quotes none of them."""
    check(data)


@FUZZ
@given(
    table=TABLES, ascii_only=st.booleans(), planted=st.sampled_from(["accessToken", "refreshToken", "extra", "sealed"])
)
@example(
    table={"v": 1, "accessToken": "x", "expiresAt": 2e9, "issuedAt": 1.9e9, "lifetime": 2e8},
    ascii_only=True,
    planted="other",
)
@example(table={"v": 1, "accessToken": "x", "expiresAt": 2e9, "scope": ["x"]}, ascii_only=True, planted="other")
def test_fields_of_any_kind_are_understood_or_refused(table: dict[str, object], ascii_only: bool, planted: str) -> None:
    """INV-1, INV-9: for any fields, the result has the right types and does not outlive `expiresAt`."""
    table.setdefault(planted, "planted")
    check(json.dumps(table, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass"))


@FUZZ
@given(token=TOKENS, fence=FENCES, sealed=st.booleans())
def test_an_encoded_token_is_decoded_unchanged(token: Token, fence: int, sealed: bool) -> None:
    """A token comes back with its value, its times to the relevant fraction, and the rest, sealed or not."""
    data = stored(token, fence, sealed=sealed)
    check(data)
    found = read(data, sealed=sealed)
    assert found is not None
    assert (found.fence, found.identity) == (fence, "somebody")
    for name in ("value", "token_type", "scope", "refresh_token", "refresh_expires_at", "extra"):
        assert getattr(found.token, name) == getattr(token, name)
    assert found.token.expires_at <= token.expires_at + 0.001, "INV-1"
    assert found.token.expires_at > token.expires_at - 1
    if token.lifetime > 0:
        assert found.lifetime == token.lifetime
    assert json.loads(data)["fence"] == fence


def spelled(pairs: list[tuple[str, object]], mark: str, ascii_only: bool) -> bytes:
    """Return pairs as a JSON object in which a name may come twice; ``mark`` separates name and value."""
    dumped = [(json.dumps(name), json.dumps(value, ensure_ascii=ascii_only)) for name, value in pairs]
    return ("{" + ",".join(name + mark + value for name, value in dumped) + "}").encode("utf-8", "surrogatepass")


@FUZZ
@given(
    table=TABLES,
    beside=st.fixed_dictionaries(
        {},
        optional={
            "scope": st.sampled_from(["https://a.example/x", "a:b", ":", "\u043f:"]) | TEXT,
            "extra": st.dictionaries(TEXT, JSON, max_size=2),
        },
    ),
    more=st.lists(st.tuples(st.sampled_from([*NAMES, "kept", "againAt", "other"]), ODD), max_size=2),
    mark=st.sampled_from([":", ": ", " :", "\n:\t"]),
    ascii_only=st.booleans(),
)
@example(
    table={"v": 1, "accessToken": "x", "expiresAt": 2e9},
    beside={"scope": ":"},
    more=[("fence", 1), ("fence", 2)],
    mark=":",
    ascii_only=True,
)
def test_the_quick_way_to_read_a_record_agrees_with_the_full_one(
    table: dict[str, object],
    beside: dict[str, object],
    more: list[tuple[str, object]],
    mark: str,
    ascii_only: bool,
) -> None:
    """Compiled code reads our own records; it finds the same fields, and refuses those with duplicate names."""
    pairs = [*(table | beside).items(), *more]
    data = spelled(pairs, mark, ascii_only)
    short = _own(data)
    if short is not None:
        assert repr(short) == repr(_any(data, "K", None))
        assert len({name for name, _ in pairs}) == len(pairs)


@FUZZ
@given(token=TOKENS, fence=FENCES, scope=st.none() | st.sampled_from(["read write", "https://a.example/x a:b"]))
def test_our_own_records_are_read_the_quick_way(token: Token, fence: int, scope: str | None) -> None:
    """Of our records, only those with colons or tables in the token or extra fields need the full way."""
    token = token.replace(scope=scope, extra={"expires_in": 3600, "note": "none"})
    plain = ":" not in token.value + (token.refresh_token or "") + token.token_type
    data = encode(token, fence=fence, identity="somebody", reason="cold", kept=1.5, again_at=2e9)
    assume(scope is None or b"\\" not in data)
    assert (_own(data) is not None) is plain


@FUZZ
@given(token=TOKENS, fence=FENCES, data=st.data())
def test_a_piece_of_a_record_is_refused(token: Token, fence: int, data: st.DataObject) -> None:
    """INV-10: a plain record that is cut, or has bytes before or after it, is refused."""
    whole = stored(token, fence, sealed=False)
    start = data.draw(st.integers(0, 3))
    end = data.draw(st.integers(0, len(whole) - 1))
    assert read(whole[:end]) is None
    assert start == 0 or read(whole[start:]) is None
    rubbish = data.draw(st.binary(min_size=1, max_size=5))
    assume(rubbish.strip(b" \t\r\n"))
    assert read(whole + rubbish) is None
    assert read(rubbish + whole) is None
    assert read(whole + whole) is None


@FUZZ
@given(token=TOKENS, fence=FENCES, data=st.data())
def test_a_damaged_sealed_record_is_never_another_token(token: Token, fence: int, data: st.DataObject) -> None:
    """INV-10: a sealed record that was changed in any place gives the same token or a refusal."""
    whole = bytearray(stored(token, fence, sealed=True))
    intact = read(bytes(whole), sealed=True)
    assert intact is not None
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(whole) - 1))
        width = data.draw(st.sampled_from([0, 1, 1, 4]))
        whole[place : place + width] = data.draw(
            st.binary(max_size=3) | st.sampled_from([b"0", b"A", b'"', b",", b"="])
        )
        assume(whole)
    found = read(bytes(whole), sealed=True)
    assert found is None or (found.token, found.fence) == (intact.token, intact.fence)


@FUZZ
@given(one=TOKENS, other=TOKENS, fences=st.tuples(FENCES, FENCES), key=TEXT, field=st.sampled_from(["fence", "sealed"]))
def test_sealed_records_do_not_mix(one: Token, other: Token, fences: tuple[int, int], key: str, field: str) -> None:
    """INV-10: another key's record, and one that is put together from two, are refused."""
    pair = [json.loads(stored(token, fence, sealed=True)) for token, fence in zip((one, other), fences, strict=True)]
    mixed = {**pair[0], field: pair[1][field]}
    found = read(json.dumps(mixed).encode(), sealed=True)
    assert found is None or (fences[0] == fences[1] and found.token.value in {one.value, other.value})
    assume(key != "K")
    assert read(json.dumps(pair[0]).encode(), key=key, sealed=True) is None


@FUZZ
@given(pair=st.lists(TABLES, min_size=2, max_size=2))
def test_of_two_records_at_most_one_is_newer(pair: list[dict[str, object]]) -> None:
    """INV-3, INV-6: between records with fences, only the higher one counts as another; else any different one does."""
    one, other = (json.dumps(table).encode("utf-8", "surrogatepass") for table in pair)
    mine, theirs = fence_of(one), fence_of(other)
    if mine is None or theirs is None:
        assert is_another(one, other) is is_another(other, one) is (one != other)
    else:
        assert is_another(one, other) is (mine > theirs)
        assert not (is_another(one, other) and is_another(other, one))
