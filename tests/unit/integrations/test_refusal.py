"""The decisions that all HTTP clients share: where a token may go, and which answers renew it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tokencache.errors import ConfigurationError
from tokencache.integrations._refusal import (
    REFUSED,
    Answer,
    FirstOrigin,
    Origin,
    Origins,
    checked_statuses,
    heals,
    says_bad_token,
)
from tokencache.token import Token

HERE = Origin.parse("https://api.example")
TOKEN = Token("secret-value", expires_at=2e9, issued_at=1e9)
REFUSAL = Answer(status=401, challenge="", asked=HERE, answered=HERE, carried="Bearer secret-value", repeatable=True)


@pytest.mark.parametrize(
    ("status", "challenge", "bad"),
    [
        (401, "", True),
        (401, "Bearer", True),
        (401, 'Basic realm="error"', True),
        (401, 'Bearer error="invalid_token"', True),
        (403, 'Bearer error="invalid_token"', True),
        (400, "Bearer error=invalid_token", True),
        (400, 'bearer ERROR = "INVALID_TOKEN"', True),
        (403, 'Basic realm="x", Bearer error="invalid_token"', True),
        (403, 'Bearer error="invalid_tokens"', False),
        (400, 'Bearer error="invalid_request"', False),
        (403, "", False),
        (401, 'Bearer error="insufficient_scope", scope="a"', False),
        (403, 'Bearer error="insufficient_scope"', False),
        (401, 'Bearer error="insufficient_user_authentication", max_age="5"', False),
        (200, 'Bearer error="invalid_token"', False),
        (302, 'Bearer error="invalid_token"', False),
        (500, 'Bearer error="invalid_token"', False),
    ],
)
def test_an_answer_says_whether_the_token_is_bad(status: int, challenge: str, *, bad: bool) -> None:
    """RFC 6750 section 3.1 and RFC 9470: an insufficient token is not a bad one (INV-7)."""
    assert says_bad_token(status, challenge) is bad


@pytest.mark.parametrize(
    ("change", "renews"),
    [
        ({}, True),
        ({"carried": None}, False),
        ({"carried": "Bearer another"}, False),
        ({"answered": Origin.parse("https://other.example")}, False),
        ({"answered": Origin.parse("http://api.example")}, False),
        ({"answered": Origin.parse("https://api.example:8443")}, False),
        ({"answered": Origin.parse("HTTPS://API.example:443/path")}, True),
        ({"repeatable": False}, False),
        ({"status": 403}, False),
    ],
)
def test_only_a_refusal_of_the_token_renews_it(change: dict[str, object], *, renews: bool) -> None:
    """The refused request must carry this token, go to the token's origin, and be replayable (INV-6)."""
    assert heals(replace(REFUSAL, **change), TOKEN, REFUSED) is renews  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("status", "challenge", "bad"), [(403, "", True), (403, "Bearer error=insufficient_scope", False)]
)
def test_a_named_status_refuses_too(status: int, challenge: str, *, bad: bool) -> None:
    """Some servers send a bare 403 for an ended token; insufficient rights stay what they are (INV-7)."""
    assert says_bad_token(status, challenge, {401, 403}) is bad


@pytest.mark.parametrize("refused", [403, {200}, {500}, ["401"], {401, None}])
def test_statuses_that_cannot_refuse_are_an_error(refused: object) -> None:
    """A set of 4xx statuses is wanted; the message shows one."""
    with pytest.raises(ConfigurationError, match=r"such as \{401, 403\}"):
        checked_statuses(refused)  # type: ignore[arg-type]


def test_an_answer_does_not_show_the_token() -> None:
    """The repr of an answer leaves out the request's token (INV-9)."""
    assert "secret-value" not in repr(REFUSAL)


@pytest.mark.parametrize(
    ("url", "other", "same"),
    [
        ("http://a.example", "http://a.example:80/path", True),
        ("https://a.example", "https://A.EXAMPLE:443", True),
        ("https://a.example", "https://a.example:444", False),
        ("https://a.example", "http://a.example", False),
        ("https://a.example", "https://b.a.example", False),
        ("https://a.example", "https://a.example.evil", False),
        ("https://a.example", "https://a.example@evil.example", False),
        ("https://[::1]:8000", "https://[::1]:8000/x", True),
    ],
)
def test_origins_are_compared_in_one_form(url: str, other: str, *, same: bool) -> None:
    """Scheme, host and port decide; case, the default port and the rest of the URL do not count (RFC 6454)."""
    assert Origins(url).allow(Origin.parse(other)) is same


def test_every_clients_spelling_gives_the_same_origin() -> None:
    """Clients that split a URL themselves get the same origin, in any case, with or without the port."""
    assert Origin.of("HTTPS", "A.Example", None) == Origin.of("https", "a.example", 443) == ("https", "a.example", 443)


def test_without_names_every_origin_is_allowed() -> None:
    """Without names all origins are allowed. A name with non-ASCII letters is compared in its encoded form."""
    assert Origins(()).allow(HERE)
    assert not Origins(())
    assert Origins(["https://bücher.example"]).allow(Origin.parse("https://xn--bcher-kva.example"))


def test_the_first_origin_stays_the_only_one() -> None:
    """If redirects look like requests to a client, only the first origin is allowed, unless others were named."""
    other = Origin.parse("https://other.example")
    first = FirstOrigin(())
    assert [first.allow(HERE), first.allow(other), first.allow(HERE)] == [True, False, True]
    named = FirstOrigin("https://other.example")
    assert [named.allow(HERE), named.allow(other)] == [False, True]


def test_a_wrong_name_is_shown_with_the_remedy() -> None:
    """The message repeats the wrong name and shows a right one."""
    with pytest.raises(ConfigurationError, match=r"origins='api\.example': give scheme and host"):
        Origins("api.example")
