"""The decisions that all HTTP clients share: where a token may go, and which answers another token heals."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tokencache.errors import ConfigurationError
from tokencache.integrations._refusal import Answer, FirstOrigin, Origin, Origins, heals, says_bad_token
from tokencache.token import Token

HERE = Origin.parse("https://api.example")
TOKEN = Token("secret-value", expires_at=2e9, issued_at=1e9)
REFUSED = Answer(status=401, challenge="", asked=HERE, answered=HERE, carried="Bearer secret-value", repeatable=True)


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
def test_what_says_that_a_token_is_bad(status: int, challenge: str, *, bad: bool) -> None:
    """RFC 6750 section 3.1 and RFC 9470: a token that does not suffice is not a bad one (INV-7)."""
    assert says_bad_token(status, challenge) is bad


@pytest.mark.parametrize(
    ("change", "healed"),
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
def test_what_another_token_heals(change: dict[str, object], *, healed: bool) -> None:
    """Only a refusal of the very token, by the origin that was asked, of what can be sent again (INV-6)."""
    assert heals(replace(REFUSED, **change), TOKEN) is healed  # type: ignore[arg-type]


def test_an_answer_does_not_show_the_token() -> None:
    """The repr of an answer leaves out what the request carried (INV-9)."""
    assert "secret-value" not in repr(REFUSED)


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
    """Scheme, host and port decide, whatever the case, the default port or the rest of the URL (RFC 6454)."""
    assert Origins(url).allow(Origin.parse(other)) is same


def test_a_client_may_spell_its_origin_as_it_likes() -> None:
    """Clients that take a URL apart by themselves give the same origin, in whatever case and with or without port."""
    assert Origin.of("HTTPS", "A.Example", None) == Origin.of("https", "a.example", 443) == ("https", "a.example", 443)


def test_without_names_every_origin_is_the_callers_choice() -> None:
    """No names: all are allowed. A name in letters of the world is compared in the form that goes over the wire."""
    assert Origins(()).allow(HERE)
    assert not Origins(())
    assert Origins(["https://bücher.example"]).allow(Origin.parse("https://xn--bcher-kva.example"))


def test_the_first_origin_stays_the_only_one() -> None:
    """Where redirects look like requests, the first origin is the one, unless others were named."""
    other = Origin.parse("https://other.example")
    first = FirstOrigin(())
    assert [first.allow(HERE), first.allow(other), first.allow(HERE)] == [True, False, True]
    named = FirstOrigin("https://other.example")
    assert [named.allow(HERE), named.allow(other)] == [False, True]


def test_a_wrong_name_is_shown_with_the_remedy() -> None:
    """The message repeats what was given and shows what to give."""
    with pytest.raises(ConfigurationError, match=r"origins='api\.example': give scheme and host"):
        Origins("api.example")
