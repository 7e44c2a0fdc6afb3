"""Keys that look alike: different identities, namespaces and keys never share a record or a lease."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from tokencache._keys import fingerprint, record_key
from tokencache.backends.file._key_files import stem_of
from tokencache.backends.memcached._form import names_of
from tokencache.backends.redis._protocol import keys_of
from tokencache.ports import Secret

if TYPE_CHECKING:
    from collections.abc import Callable

FUZZ = settings.get_profile("fuzz")

PIECES = st.sampled_from(
    [
        *(
            "a",
            "A",
            "b",
            "k",
            "key",
            "lock",
            ":lock",
            ":ready",
            ":cooldown",
            "tokencache:sha256:",
            "a" * 250,
            " ",
            "\n",
            "\r\n",
            "\x00",
        ),
        *("{", "}", ":", "%", "%7B", "7B", "/", "..", "-", "\\", "\\xed", "\\ud800", "\ud800", "\udc80"),
        *("\u00e9", "e\u0301", "\u212a"),  # NFC, NFD, and a letter that becomes k in lower case
    ]
)
KEYS = st.lists(PIECES, min_size=1, max_size=5).map("".join) | st.text(
    st.characters(codec=None), min_size=1, max_size=12
)


def plain(key: str) -> tuple[str, ...]:
    """Return the names on Redis."""
    return keys_of(key, cluster=False)


def cluster(key: str) -> tuple[str, ...]:
    """Return the names on a Cluster."""
    return keys_of(key, cluster=True)


def memcached(key: str) -> tuple[str, ...]:
    """Return the names on memcached."""
    return names_of(key)


def files(key: str) -> tuple[str, ...]:
    """Return the file names, in the form in which a case-insensitive folder compares them."""
    return tuple(f"{stem_of(key)}.{kind}".lower() for kind in ("json", "state", "mutex", "holder"))


STORES: tuple[Callable[[str], tuple[str, ...]], ...] = (plain, cluster, memcached, files)


@st.composite
def lookalikes(draw: st.DrawFn) -> set[str]:
    """Draw keys, and others that are made from the names that stores make of them."""
    keys = set(draw(st.lists(KEYS, min_size=1, max_size=3)))
    for key in sorted(keys):
        store = draw(st.sampled_from(STORES))
        keys |= {*store(key), f"{{{key}}}", key.lower(), key.encode("utf-8", "backslashreplace").decode()}
    return keys


@FUZZ
@given(keys=lookalikes())
@example(keys={"a", "a:lock", "a:ready", "{a}", "{a}:lock", "a:cooldown", "{a}:cooldown"})
@example(keys={"{", "%7B", "%257B", "}"})
@example(keys={"\ud800", "\\xed\\xa0\\x80", "\\ud800"})
def test_no_name_in_a_store_belongs_to_two_keys(keys: set[str]) -> None:
    """INV-10: record, lease and wake-up of a key have names of their own in every store, whatever the keys contain."""
    for store in STORES:
        names = [name for key in sorted(keys) for name in store(key)]
        assert len(set(names)) == len(names), store.__name__


@FUZZ
@given(key=KEYS | st.text(st.characters(codec=None), min_size=200, max_size=300))
def test_no_key_reaches_beyond_its_name(key: str) -> None:
    """No key ends a memcached command, leaves the folder, or is text that Redis cannot take."""
    assert all(re.fullmatch(r"[!-~]{1,250}", name) for name in memcached(key))
    assert all(re.fullmatch(r"[a-z0-9_-]{1,100}\.[a-z]+", name) for name in files(key))
    assert all(name.encode() for store in (plain, cluster) for name in store(key))


ATOMS = (
    st.none()
    | st.booleans()
    | st.integers(-2, 2)
    | st.sampled_from([0.0, -0.0, 1.0, "", "1", "a", b"", b"1", b"a", "s1:a", "None", "\u00e9", "e\u0301", "\ud800"])
    | st.text("1a:sm", max_size=4)
)
VALUES = st.recursive(
    ATOMS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=2).map(tuple)
        | st.frozensets(ATOMS, max_size=3)
        | st.dictionaries(st.text("1a:", max_size=2), inner, max_size=3)
    ),
    max_leaves=5,
)
IDENTITIES = st.dictionaries(st.text("ab:", max_size=2), VALUES, max_size=3)


def shape(value: object) -> object:
    """Return a value of texts and tuples that is equal exactly if the keys must be equal."""
    match value:
        case float():
            return ("float", value.hex())
        case list() | tuple():
            return ("list", *map(shape, value))
        case frozenset():
            return ("set", frozenset(map(shape, value)))
        case dict():
            return ("dict", frozenset((name, shape(item)) for name, item in value.items()))
        case _:
            return (type(value).__name__, repr(value))


SOURCES = st.tuples(st.text("ab:", max_size=2), st.text("ab:", min_size=1, max_size=2), IDENTITIES)
LOOKALIKES = st.lists(VALUES | ATOMS, min_size=2, max_size=12)


@FUZZ
@given(sources=st.lists(SOURCES, max_size=4), values=LOOKALIKES)
@example(sources=[], values=[True, 1, 1.0, "1", b"1", ["1"], ("1",), frozenset({"1"}), {"1": "1"}, ["1", "1"], "11"])
@example(sources=[], values=[["a", "a"], ["asa"], ["sa", ""], [b"a", "a"], "aa", b"aa", {"a": "a"}, {"asa": ""}])
@example(
    sources=[], values=[["a", "b"], ["ab"], ["a", ["b"]], [["a"], "b"], {"a": "b"}, {"a": {"b": None}}, [], [[]], {}]
)
def test_sources_share_a_key_only_if_all_parts_are_equal(
    sources: list[tuple[str, str, dict[str, Any]]], values: list[object]
) -> None:
    """INV-10: namespace, provider and identity, each by type and content, decide the key; no part runs into another."""
    sources = [*sources, *(("", "p", {"field": value}) for value in values), ("", "p", {"field": values})]
    keys = {record_key(namespace, name, fingerprint(name, identity)) for namespace, name, identity in sources}
    assert len(keys) == len({(namespace, name, shape(identity)) for namespace, name, identity in sources})


@settings(FUZZ, max_examples=5)
@given(secrets=st.lists(st.text(max_size=8), min_size=2, max_size=3, unique=True), rest=IDENTITIES)
def test_each_credential_has_a_key_that_does_not_contain_it(secrets: list[str], rest: dict[str, Any]) -> None:
    """INV-9, INV-10: another credential, or the same one somewhere else or as plain text, gives another key."""
    identities = [{**rest, "s": Secret(f"planted-{secret}")} for secret in secrets]
    identities += [{**rest, "t": Secret(f"planted-{secrets[0]}")}, {**rest, "s": f"planted-{secrets[0]}"}]
    prints = [fingerprint("p", identity) for identity in identities]
    assert len(set(prints)) == len(prints)
    assert all(re.fullmatch("[0-9a-f]{40}", each) for each in prints)
