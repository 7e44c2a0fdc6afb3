"""The token: an immutable value that is checked when it is made and never shows its secrets."""

from __future__ import annotations

import copy
import pickle
from typing import TYPE_CHECKING, Any

import pytest

from tokencache.token import Token

if TYPE_CHECKING:
    from collections.abc import Callable

FULL: dict[str, Any] = {
    "value": "v4lue",
    "expires_at": 1704067200.5,
    "issued_at": 1704063600.25,
    "token_type": "DPoP",
    "scope": "read",
    "refresh_token": "r3fresh",
    "refresh_expires_at": 1704070800.0,
    "extra": {"id_token": "3xtra"},
}


def full(**changed: object) -> Token:
    """Return a token with every field set."""
    fields = FULL | changed
    return Token(fields.pop("value"), **fields)


def test_fields_have_their_values_or_defaults() -> None:
    """A given field keeps its value; a field that was left out has its default."""
    token = full()
    assert {name: getattr(token, name) for name in FULL} == FULL
    bare = Token("t", expires_at=60, issued_at=0)
    assert (bare.token_type, bare.scope, bare.refresh_token, bare.refresh_expires_at) == ("Bearer", None, None, None)
    assert dict(bare.extra) == {}
    assert type(bare.expires_at) is type(bare.issued_at) is float


def test_header_and_lifetime_follow_from_the_fields() -> None:
    """The two properties are derived."""
    assert full().authorization == "DPoP v4lue"
    assert full().lifetime == 3600.25


@pytest.mark.parametrize("spelled", ["bearer", "Bearer", "BEARER", "bEaReR"])
def test_bearer_is_one_scheme(spelled: str) -> None:
    """However the server spells it, the header says ``Bearer``."""
    assert full(token_type=spelled).authorization == "Bearer v4lue"


@pytest.mark.parametrize("name", [*FULL, "other"])
def test_no_field_can_be_changed(name: str) -> None:
    """No field can be set, replaced or deleted, and the error does not show a value."""
    token = full()
    for change in (lambda: setattr(token, name, "n3w"), lambda: delattr(token, name)):
        with pytest.raises(AttributeError, match="immutable") as caught:
            change()
        assert "v4lue" not in str(caught.value)
        assert "n3w" not in str(caught.value)
    assert token == full()


def test_extra_is_a_separate_copy() -> None:
    """A change of the given mapping does not change the token, and the token's mapping cannot be changed."""
    given = {"a": 1}
    token = full(extra=given)
    given["a"] = 2
    assert token.extra["a"] == 1
    with pytest.raises(TypeError):
        token.extra["a"] = 2  # type: ignore[index]
    with pytest.raises(TypeError):
        Token("t", expires_at=1, issued_at=0).extra["a"] = 2  # type: ignore[index]


def test_its_texts_show_nothing_secret() -> None:
    """``repr``, ``str`` and formatting show type, expiry and scope, and hide the rest (INV-9)."""
    token = full()
    for text in (repr(token), str(token), f"{token}", repr([token])):
        assert not any(secret in text for secret in ("v4lue", "r3fresh", "3xtra", "id_token"))
    assert repr(token) == (
        "Token(<hidden>, token_type='DPoP', expires_at=1704067200.5, scope='read',"
        " refresh_token=<hidden>, extra=<1 hidden>)"
    )
    assert repr(Token("t", expires_at=60, issued_at=0)) == "Token(<hidden>, token_type='Bearer', expires_at=60.0)"


def test_replace_changes_and_checks_the_given_fields() -> None:
    """The other fields stay; a bad value or an unknown field is refused, as in a new token."""
    token = full()
    changed = token.replace(scope="write", issued_at=token.issued_at + 1)
    assert (changed.scope, changed.issued_at) == ("write", token.issued_at + 1)
    assert changed.replace(scope=token.scope, issued_at=token.issued_at) == token
    assert token.replace() == token
    with pytest.raises(ValueError, match="visible ASCII"):
        token.replace(value="two lines\n")
    with pytest.raises(TypeError, match="colour"):
        token.replace(colour="red")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("value", "other"), ("expires_at", 1704067201), ("issued_at", 1704063601), ("token_type", "Bearer")),
        *(("scope", None), ("refresh_token", "other"), ("refresh_expires_at", None), ("extra", {})),
    ],
)
def test_tokens_are_equal_if_all_fields_are(name: str, value: object) -> None:
    """Tokens that differ in one field are different."""
    assert full() == full()
    assert hash(full()) == hash(full())
    assert full(**{name: value}) != full()
    assert full() != FULL
    assert full() != "v4lue"


@pytest.mark.parametrize("extra", [{}, {"a": {"b": [1]}}], ids=["bare", "extra"])
@pytest.mark.parametrize("twin_of", [copy.copy, copy.deepcopy, lambda token: pickle.loads(pickle.dumps(token))])
def test_copies_are_equal_tokens(twin_of: Callable[[Token], Any], extra: dict[str, object]) -> None:
    """A copy, a deep copy and a pickle are equal tokens, as immutable as the first, and their texts hide the same."""
    token = full(extra=extra)
    twin = twin_of(token)
    assert twin == token
    assert hash(twin) == hash(token)
    assert repr(twin) == repr(token)
    with pytest.raises(AttributeError):
        twin.value = "other"
    with pytest.raises(TypeError):
        twin.extra["a"] = 1


def test_a_deep_copy_shares_nothing() -> None:
    """A deep copy also copies the content of ``extra``."""
    token = full(extra={"a": [1]})
    twin = copy.deepcopy(token)
    twin.extra["a"].append(2)  # type: ignore[attr-defined]
    assert token.extra == {"a": [1]}


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_every_pickle_protocol_works(protocol: int) -> None:
    """Every protocol that supports slots can carry a token to another process."""
    assert pickle.loads(pickle.dumps(full(), protocol)) == full()


@pytest.mark.parametrize("name", ["value", "token_type"])
@pytest.mark.parametrize(
    "bad",
    [
        *("", " ", "s3cret ", "s3 cret", "s3cret\r\nX: 1", "s3cret\n", "s3cret\t", "s3cret\x00", "s3cret\x7f"),
        *("s3cret\u0439", "s3cret\ud800", "s3cret\u00a0", None, b"s3cret", 5, ["s3cret"]),
    ],
    ids=ascii,
)
def test_values_unfit_for_a_header_are_refused(name: str, bad: object) -> None:
    """A token or scheme must be visible ASCII, and the error does not repeat the value."""
    with pytest.raises(ValueError, match=f"a token's {name} must be a non-empty string of visible ASCII") as caught:
        full(**{name: bad})
    assert "s3" not in str(caught.value)


@pytest.mark.parametrize(
    "good", ["!", "~", "a.b-c_d~e+f/g=", "(){}[]<>@,;:\\\"'", "x" * 100_000], ids=lambda good: good[:20]
)
def test_every_visible_ascii_character_is_accepted(good: str) -> None:
    """The length does not matter."""
    assert full(value=good).authorization == f"DPoP {good}"


@pytest.mark.parametrize("name", ["expires_at", "issued_at"])
@pytest.mark.parametrize(
    "bad",
    [None, "1704067200", True, float("nan"), float("inf"), float("-inf"), 1e14, -1e14, 10**400, 1j, [1]],
    ids=lambda value: ascii(value)[:24],
)
def test_instants_must_be_finite_epoch_seconds(name: str, bad: object) -> None:
    """The error for another value names the field."""
    with pytest.raises(ValueError, match=f"a token's {name} must be finite epoch seconds"):
        full(**{name: bad})


@pytest.mark.parametrize("good", [0, -1, 1e14 - 1, 1 - 1e14, 1704067200])
def test_instants_at_the_bounds_are_accepted(good: float) -> None:
    """Any finite instant within the bounds is accepted, also a past one."""
    assert full(expires_at=good).expires_at == good
