"""Keys: different identities never share one, equal ones always do, and no credential can be found in them."""

from __future__ import annotations

import enum
import hashlib
import subprocess
import sys
from collections import OrderedDict
from types import MappingProxyType
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tokencache import _keys
from tokencache._keys import fingerprint, has_secret, quick_fingerprint, record_key, stretched
from tokencache.errors import ConfigurationError
from tokencache.ports import Secret

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ATOMS = (
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.integers()
    | st.sampled_from([0.0, -0.0, 1.0, float("nan"), float("inf")])
    | st.floats()
    | st.text(st.characters(codec=None), max_size=4)
    | st.binary(max_size=4)
    | st.binary(max_size=4).map(Secret)
)
VALUES = st.recursive(
    ATOMS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.frozensets(ATOMS, max_size=3)
        | st.dictionaries(ATOMS, inner, max_size=3)
    ),
    max_leaves=8,
)
IDENTITIES = st.dictionaries(st.text(max_size=3), VALUES, max_size=3)


def shape(value: object) -> object:
    """Return plain strings, tuples and frozensets that are equal exactly when two keys must be equal."""
    match value:
        case float():
            return ("float", value.hex())
        case list() | tuple():
            return ("list", tuple(map(shape, value)))
        case set() | frozenset():
            return ("set", frozenset(map(shape, value)))
        case dict():
            return ("dict", frozenset((shape(name), shape(item)) for name, item in value.items()))
        case Secret():
            return ("Secret", value.reveal())
        case _:
            return (type(value).__name__, repr(value))


@settings(max_examples=400, deadline=None)
@given(one=IDENTITIES, other=IDENTITIES, names=st.tuples(st.sampled_from("ab"), st.sampled_from("ab")))
def test_quick_fingerprints_differ_exactly_for_different_identities(
    one: dict[str, object], other: dict[str, object], names: tuple[str, str]
) -> None:
    """Two identities share a fingerprint exactly if they are equal in type and content."""
    same = shape(one) == shape(other) and names[0] == names[1]
    assert (quick_fingerprint(names[0], one) == quick_fingerprint(names[1], other)) is same


@settings(max_examples=400, deadline=None)
@given(one=VALUES, other=VALUES)
@example(one=[b"a", b"b"], other=[b"ab"])
@example(one=["a", ["b"]], other=[["a"], "b"])
@example(one={"a": 1, "b": 2}, other={"a": 2, "b": 1})
@example(one="1:s1", other="1:s2")
def test_encoding_is_injective(one: object, other: object) -> None:
    """Two values have one encoding exactly if they are equal in type and content."""
    encoder = _keys._Encoder("p", Secret.reveal)
    assert (encoder.encode(one) == encoder.encode(other)) is (shape(one) == shape(other))


DISTINCT: tuple[object, ...] = (
    *(None, True, False, 0, 1, -1, 1.0, -1.0, 0.0, -0.0, "1", "", "0", "None", "True", b"1", b"", 10**5000),
    *("\u00e9", "e\u0301", "\u212b", "\u00c5"),  # NFC, NFD, and characters that only normalisation makes equal
    *("\ud83d\ude00", "\U0001f600", "\ud800", "\udc00"),  # two halves differ from the whole
    *(Secret("1"), Secret(""), [], ["1"], [["1"]], ["1", "1"], [""], set(), {"1"}, {}, {"1": "1"}, {"1": None}),
    *({1: "1"}, [None], [[]], [{}], "s1:1", ["s", "1"], frozenset({"s", "1"}), {"a": {"b": 1}}, {"a": ["b", 1]}),
)


def test_lookalikes_have_different_fingerprints() -> None:
    """Values that look alike in some notation all have different fingerprints."""
    assert len({quick_fingerprint("p", {"field": value}) for value in DISTINCT}) == len(DISTINCT)
    assert len({fingerprint("p", {"field": value}) for value in DISTINCT[:-9]}) == len(DISTINCT) - 9


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a", "b", "c"}, frozenset({"c", "b", "a"})),
        (["a", "b"], ("a", "b")),
        ({"a": 1, "b": 2}, OrderedDict(b=2, a=1)),
        ({"a": 1}, MappingProxyType({"a": 1})),
        (1, enum.IntEnum("Number", {"ONE": 1})(1)),
        (Secret("x"), Secret(b"x")),
    ],
    ids=["sets", "sequences", "order", "mappings", "enums", "secrets"],
)
@pytest.mark.parametrize("make", [fingerprint, quick_fingerprint])
def test_equal_content_has_the_same_fingerprint(
    make: Callable[[str, Mapping[str, object]], object], one: object, other: object
) -> None:
    """Neither the order of sets and mappings nor a container's type makes another identity."""
    assert make("p", {"field": one}) == make("p", {"field": other})


def test_the_order_of_a_list_counts() -> None:
    """A list is not a set: another order is another identity."""
    assert fingerprint("p", {"scope": ["a", "b"]}) != fingerprint("p", {"scope": ["b", "a"]})


def test_fingerprints_are_the_same_in_every_process() -> None:
    """These exact fingerprints hold in every process and every release."""
    identity = {
        "issuer": "https://id.example",
        "scope": {"b", "a"},
        "secret": Secret("hunter2"),
        "extra": {"n": [1, 2.5]},
    }
    assert fingerprint("orders", {}) == "248f2f5ca01dd18b951bbd96b9193ed305d7ef9d"
    assert fingerprint("orders", identity) == "4f4626cdc7fc3ea11346a8ad6a6e01ccf0938591"
    script = (
        "from tokencache._keys import fingerprint; from tokencache.ports import Secret;"
        "print(fingerprint('orders', {'extra': {'n': [1, 2.5]}, 'secret': Secret('hunter2'),"
        "'scope': {'a', 'b'}, 'issuer': 'https://id.example'}))"
    )
    environment = {"PYTHONHASHSEED": "7", "PYTHONPATH": ":".join(filter(None, sys.path))}
    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "4f4626cdc7fc3ea11346a8ad6a6e01ccf0938591"


def test_each_secret_counts_at_its_place() -> None:
    """Another secret, or two swapped ones, make another key; so do the name and the rest."""
    identities: list[tuple[str, dict[str, object]]] = [
        ("p", {"id": "me", "a": Secret("one"), "b": Secret("two")}),
        ("p", {"id": "me", "a": Secret("two"), "b": Secret("one")}),
        ("p", {"id": "me", "a": Secret("one"), "b": Secret("TWO")}),
        ("p", {"id": "you", "a": Secret("one"), "b": Secret("two")}),
        ("q", {"id": "me", "a": Secret("one"), "b": Secret("two")}),
        ("p", {"id": "me", "a": "one", "b": "two"}),
    ]
    assert len({fingerprint(name, identity) for name, identity in identities}) == len(identities)


def test_no_secret_can_be_found_in_a_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hash input holds a scrypt of the secret, salted by the rest, and never the secret (INV-9)."""
    monkeypatch.setattr(_keys, "_known", {})
    hashed: list[bytes] = []
    blake2b = hashlib.blake2b
    calls: list[tuple[bytes, bytes]] = []
    scrypt = hashlib.scrypt

    def spy(data: bytes = b"", **options: object) -> object:
        if "key" not in options:
            hashed.append(data)
        return blake2b(data, **options)  # type: ignore[arg-type]

    def slow(secret: bytes, *, salt: bytes, n: int, r: int, p: int, dklen: int) -> bytes:
        assert (n, r, p) == (2**14, 8, 1)
        calls.append((secret, salt))
        return scrypt(secret, salt=salt, n=n, r=r, p=p, dklen=dklen)

    monkeypatch.setattr(hashlib, "blake2b", spy)
    monkeypatch.setattr(hashlib, "scrypt", slow)
    secret = b"correct horse"
    names = [fingerprint("p", {"id": name, "secret": Secret(secret)}) for name in ("me", "you")]
    assert [call[0] for call in calls] == [secret, secret]
    assert calls[0][1] != calls[1][1], "one salt for two identities lets their secrets be compared"
    assert len(hashed) == 4
    for data in [*hashed, *(name.encode() for name in names)]:
        assert secret not in data
        for digest in (hashlib.md5, hashlib.sha1, hashlib.sha256, hashlib.sha512):
            assert digest(secret).digest() not in data
            assert digest(secret).hexdigest()[:16].encode() not in data
    assert all(len(name) == 40 and set(name) <= set("0123456789abcdef") for name in names)


def test_slow_fingerprints_are_computed_once_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process computes a slow fingerprint once, remembers a bounded number, and keeps no secret for that."""
    monkeypatch.setattr(_keys, "_known", {})
    made: list[bytes] = []

    def fake(secret: bytes, **_: object) -> bytes:
        made.append(secret)
        return hashlib.sha256(b"slow" + secret).digest()

    monkeypatch.setattr(hashlib, "scrypt", fake)
    for _ in range(3):
        fingerprint("p", {"secret": Secret("again")})
    assert made == [b"again"]
    for number in range(300):
        fingerprint("p", {"secret": Secret(f"s3cret {number}")})
    assert len(made) == 301
    assert len(_keys._known) <= 64
    assert "s3cret" not in repr(_keys._known)


def test_key_material_has_one_purpose_and_is_not_in_a_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    """INV-9: the fingerprint is public, so a derived key shares no slow hash with it or with another purpose."""
    monkeypatch.setattr(_keys, "_known", {})
    identity = {"id": "me", "secret": Secret("correct horse")}
    fingerprint("p", identity)
    (shown,) = _keys._known.values()
    seal, other = (stretched("p", identity, purpose) for purpose in (b"seal", b"other"))
    assert seal == stretched("p", identity, b"seal")
    assert seal != other
    for material in (seal, other):
        assert shown not in material
        assert b"correct horse" not in material


@pytest.mark.parametrize(
    ("identity", "found"),
    [
        ({}, False),
        ({"client": "abc"}, False),
        ({"secret": Secret("")}, False),
        ({"secret": Secret("x")}, True),
        ({"several": [Secret(""), {"deep": (Secret("x"),)}]}, True),
    ],
)
def test_an_empty_secret_is_not_a_credential(identity: dict[str, object], *, found: bool) -> None:
    """A secret counts at any place, unless it is empty: a key derived from nothing does not protect."""
    assert has_secret(identity) is found


@pytest.mark.parametrize("problem", [ValueError("unsupported"), AttributeError("scrypt")])
def test_without_scrypt_there_is_a_plain_error(monkeypatch: pytest.MonkeyPatch, problem: Exception) -> None:
    """If OpenSSL lacks scrypt, the error says so; a weaker fingerprint is not made."""
    monkeypatch.setattr(_keys, "_known", {})

    def missing(*_: object, **__: object) -> bytes:
        raise problem

    monkeypatch.setattr(hashlib, "scrypt", missing)
    with pytest.raises(ConfigurationError, match="no scrypt"):
        fingerprint("p", {"secret": Secret("x")})


def test_quick_fingerprints_belong_to_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """With another process's key the same identity has another quick fingerprint, so it is useless outside."""
    one = quick_fingerprint("p", {"secret": Secret("x")})
    monkeypatch.setattr(_keys, "_PROCESS_KEY", bytes(32))
    assert quick_fingerprint("p", {"secret": Secret("x")}) != one


def test_quick_fingerprints_do_not_use_scrypt(monkeypatch: pytest.MonkeyPatch) -> None:
    """The quick fingerprint does not compute the slow one."""
    monkeypatch.delattr(hashlib, "scrypt")
    assert quick_fingerprint("p", {"secret": Secret("never met before")})


@pytest.mark.parametrize(
    ("value", "named"),
    [
        *((object(), "object"), (bytearray(b"s3cret"), "bytearray"), (1j, "complex"), (type, "type")),
        *((["s3cret", object()], "object"), ({"s3cret": (1, {2: range(3)})}, "range")),
    ],
    ids=["object", "bytearray", "complex", "type", "in a list", "in a mapping"],
)
@pytest.mark.parametrize("make", [fingerprint, quick_fingerprint])
def test_other_types_are_refused_by_name(
    make: Callable[[str, Mapping[str, object]], object], value: object, named: str
) -> None:
    """A value without an encoding is refused; the error names provider, field and type, and not the value."""
    with pytest.raises(ConfigurationError) as caught:
        make("orders", {"scope": "a", "audience": value})
    message = str(caught.value)
    assert message.startswith("provider 'orders': the field 'audience' of its identity holds a ")
    assert named in message
    assert "s3cret" not in message


@pytest.mark.parametrize(
    "identity", [None, "client", [("a", 1)], Secret("s3cret")], ids=["none", "str", "list", "secret"]
)
def test_an_identity_must_be_a_mapping(identity: object) -> None:
    """An identity of another type is refused."""
    with pytest.raises(ConfigurationError, match="provider 'p': its identity holds a"):
        quick_fingerprint("p", identity)  # type: ignore[arg-type]


def test_an_identity_nested_too_deeply_is_refused() -> None:
    """A value that contains itself, or is nested too deeply, is refused with its field's name."""
    loop: list[object] = []
    loop.append(loop)
    deep: object = 1
    for _ in range(5_000):
        deep = {"a": deep}
    for value in (loop, deep):
        with pytest.raises(ConfigurationError, match="the field 'extra' of its identity is nested more than"):
            quick_fingerprint("p", {"extra": value})
    assert quick_fingerprint("p", {"extra": [[[[[[[[1]]]]]]]]})


def test_a_record_key_joins_its_parts_unchanged() -> None:
    """The parts are namespace, provider and identity."""
    assert record_key("prod:", "qpay", "ab12") == "prod:qpay:ab12"
    assert record_key("", "é\ud800", "ab12") == "é\ud800:ab12"
