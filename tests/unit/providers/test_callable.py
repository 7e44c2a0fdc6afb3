"""CallableProvider: a plain function as a provider, sync or async as the function is."""

from __future__ import annotations

import asyncio
import functools
import itertools
import time
import traceback
from typing import TYPE_CHECKING

import pytest

from tokencache import TokenCache
from tokencache.errors import ConfigurationError, ProviderRejected, ProviderUnavailable
from tokencache.ports import FetchContext
from tokencache.providers.callable import CallableProvider
from tokencache.token import Token

if TYPE_CHECKING:
    from collections.abc import Callable

_numbers = itertools.count()
TOKEN = Token("good-1", expires_at=3e9, issued_at=2.5e9)  # issued later than any run of this test
FIELDS = {"access_token": "good-1", "expires_in": 3600}


def context(warn: Callable[[str], None] = print) -> FetchContext:
    """Return the context of a cold fetch."""
    return FetchContext(None, time.monotonic() + 10, "cold", time.monotonic, warn)


def fetch(provider: CallableProvider, told: FetchContext | None = None) -> Token:
    """Fetch by the half that the provider has."""
    told = told or context()
    if hasattr(provider, "fetch"):
        return provider.fetch(told)
    return asyncio.run(provider.afetch(told))  # type: ignore[attr-defined]


class Callables:
    """Methods of every kind."""

    def method(self) -> Token:
        """Return a token."""
        return TOKEN

    async def amethod(self) -> Token:
        """Return a token."""
        return TOKEN

    def __call__(self, told: FetchContext) -> Token:
        """Return a token."""
        assert told.reason == "cold"
        return TOKEN


class AsyncCallable:
    """An object whose ``__call__`` is async."""

    async def __call__(self) -> Token:
        """Return a token."""
        return TOKEN


async def aplain(told: FetchContext) -> Token:
    """Return a token, from a coroutine that takes the context."""
    assert told.reason == "cold"
    return TOKEN


def defaulted(host: str = "issuer.example") -> Token:
    """Return a token; the argument is not a context."""
    assert host == "issuer.example"
    return TOKEN


def starred(*arguments: object) -> Token:
    """Return a token; the arguments are arbitrary, so no context is passed."""
    assert arguments == ()
    return TOKEN


@pytest.mark.parametrize(
    ("function", "half"),
    [
        (lambda: TOKEN, "fetch"),
        (lambda told: TOKEN if told.reason == "cold" else None, "fetch"),
        (Callables().method, "fetch"),
        (Callables(), "fetch"),
        (functools.partial(lambda extra, told: TOKEN, 1), "fetch"),
        (defaulted, "fetch"),
        (starred, "fetch"),
        (aplain, "afetch"),
        (Callables().amethod, "afetch"),
        (AsyncCallable(), "afetch"),
        (functools.partial(aplain), "afetch"),
    ],
    ids=lambda value: None if isinstance(value, str) else str(next(_numbers)),
)
def test_a_function_gives_its_own_half_only(function: Callable[..., object], half: str) -> None:
    """A sync function gives ``fetch`` alone, an async one ``afetch`` alone, with or without the context."""
    provider = CallableProvider(function, key="orders-api")  # type: ignore[arg-type]
    assert {name for name in ("fetch", "afetch") if hasattr(provider, name)} == {half}
    assert fetch(provider) is TOKEN


def test_the_key_is_the_whole_identity() -> None:
    """The key is the identity, and the default name; it is not a record key."""
    provider = CallableProvider(lambda: TOKEN, key="orders-api")
    assert provider.identity() == {"key": "orders-api"}
    assert provider.name == "orders-api"
    assert CallableProvider(lambda: TOKEN, key="k", name="orders").name == "orders"
    assert not hasattr(provider, "key")
    assert isinstance(provider, CallableProvider)


@pytest.mark.parametrize("sync", [True, False])
def test_a_mapping_is_read_as_an_oauth_response(sync: bool) -> None:
    """The lifetime counts from before the call, in each half, and an odd field is a warning."""
    began: list[float] = []
    warnings: list[str] = []

    def slow() -> dict[str, object]:
        began.append(time.time())
        return FIELDS

    async def aslow() -> dict[str, object]:
        return slow()

    token = fetch(CallableProvider(slow if sync else aslow, key="k"), context(warnings.append))
    assert token.value == "good-1"
    assert token.lifetime == pytest.approx(3600)
    assert token.issued_at <= began[0]
    assert warnings == []
    odd = fetch(CallableProvider(lambda: {"access_token": "good-1"}, key="k"), context(warnings.append))
    assert odd.lifetime == pytest.approx(300)
    assert len(warnings) == 1


def test_an_error_in_a_mapping_is_an_error() -> None:
    """A mapping that holds an RFC 6749 error is a rejection."""
    with pytest.raises(ProviderRejected, match=r"\[k\] .*invalid_client"):
        fetch(CallableProvider(lambda: {"error": "invalid_client"}, key="k"))


@pytest.mark.parametrize("sync", [True, False])
def test_a_functions_error_is_named_but_not_quoted(sync: bool) -> None:
    """An unknown exception is named by type and place; its text, which may hold a secret, is not shown (INV-9)."""
    planted = "planted-" + "secret"

    def fail() -> Token:
        raise KeyError(planted)

    async def afail() -> Token:
        fail()
        raise AssertionError

    source = TokenCache("memory://").source(fail if sync else afail, key="k")
    with pytest.raises(ProviderUnavailable, match=r"\[k\] .*KeyError at fail, line \d+") as caught:
        source.token()
    assert planted not in "".join(traceback.format_exception(caught.value))


def test_an_older_token_lives_from_its_issue() -> None:
    """A function may return a token that it got earlier: only the remaining lifetime counts (INV-1)."""
    now = time.time()
    old = Token("x", issued_at=now - 3000, expires_at=now + 600)
    source = TokenCache("memory://").source(lambda: old, key="k")
    source.token()
    usable_until = source.status().usable_until
    assert usable_until is not None
    assert usable_until <= now + 600 - 60 + 1


@pytest.mark.parametrize("sync", [True, False])
def test_our_own_errors_pass_unchanged(sync: bool) -> None:
    """A function may raise our errors."""
    original = ProviderRejected("no", error="invalid_client")

    def fail() -> Token:
        raise original

    async def afail() -> Token:
        raise original

    with pytest.raises(ProviderRejected) as caught:
        fetch(CallableProvider(fail if sync else afail, key="k"))
    assert caught.value is original


@pytest.mark.parametrize("answer", [None, "planted-secret", b"planted-secret-bytes", ["x"], 7])
def test_another_result_is_explained(answer: object) -> None:
    """A result of a wrong type gets an error that says what to return, and does not quote the result."""
    with pytest.raises(ProviderUnavailable, match=rf"returned {type(answer).__name__}: .* Token") as caught:
        fetch(CallableProvider(lambda: answer, key="k"))  # type: ignore[arg-type, return-value]
    assert "planted-secret" not in str(caught.value)


def test_a_hidden_coroutine_is_explained_and_closed() -> None:
    """If a sync function returns a coroutine, the error says to pass the async function."""
    with pytest.raises(ProviderUnavailable, match="async function itself"):
        fetch(CallableProvider(lambda: aplain(context()), key="k"))


@pytest.mark.parametrize("function", [lambda one, two: TOKEN, lambda *, named: TOKEN], ids=["two", "named"])
def test_a_function_that_takes_more_is_refused(function: Callable[..., Token]) -> None:
    """A function that requires other arguments than a context is a mistake of configuration."""
    with pytest.raises(ConfigurationError, match="FetchContext"):
        CallableProvider(function, key="k")


def test_a_key_is_needed() -> None:
    """Without a key two functions would share their tokens by accident (INV-10)."""
    with pytest.raises(ConfigurationError, match="key="):
        CallableProvider(lambda: TOKEN, key="")


def test_the_repr_shows_nothing_of_the_function() -> None:
    """A function may hold a secret in its bound arguments; the repr does not show them."""
    provider = CallableProvider(functools.partial(lambda secret: TOKEN, "planted-secret"), key="k")
    assert "planted-secret" not in repr(provider)
