"""Objects that a process has once: a copy is the object itself, and a pickle is refused with the remedy."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from typing import TYPE_CHECKING

import pytest

from tokencache import TokenCache
from tokencache.integrations.httpx import TokenAuth
from tokencache.plugins import open_backend
from tokencache.testing.fakes import FakeProvider
from tokencache_qpay import AsyncQPayClient, QPayClient

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokencache import TokenSource


@pytest.fixture
def source() -> Iterator[TokenSource]:
    """Return a source that holds a token."""
    with TokenCache("memory://") as cache:
        source = cache.source(FakeProvider())
        source.token()
        yield source


@pytest.fixture(params=["cache", "source", "client", "async client", "memory", "file", "redis", "memcached"])
def shared(request: pytest.FixtureRequest, source: TokenSource) -> object:
    """Return one object of each kind."""
    match request.param:
        case "cache":
            return TokenCache("memory://")
        case "source":
            return source
        case "client":
            return QPayClient(source, base_url="https://qpay.example")
        case "async client":
            return AsyncQPayClient(source, base_url="https://qpay.example")
        case scheme:
            return open_backend(f"{scheme}://{'/tmp/tokens' if scheme == 'file' else 'h' * (scheme != 'memory')}")


@pytest.mark.parametrize("twin_of", [copy.copy, copy.deepcopy, lambda each: copy.deepcopy({"a": [each]})["a"][0]])
def test_a_copy_is_the_object_itself(shared: object, twin_of: object) -> None:
    """Settings that hold a cache, a source, a backend or a client can be copied, and go on sharing it."""
    assert twin_of(shared) is shared  # type: ignore[operator]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_names_the_class_and_the_remedy(shared: object, protocol: int) -> None:
    """No other process can use it, and the error says what to do instead, under each protocol."""
    name = type(shared).__name__
    with pytest.raises(TypeError, match=rf"^cannot pickle {name}: .* pass the settings, and make a TokenCache of them"):
        pickle.dumps(shared, protocol)


def test_settings_that_hold_a_source_are_copied(source: TokenSource) -> None:
    """A deep copy of what holds a source, as `dataclasses.asdict` makes it, shares the token of the first."""

    @dataclasses.dataclass
    class Settings:
        source: TokenSource
        auth: TokenAuth

    copied = dataclasses.asdict(Settings(source, TokenAuth(source)))
    assert copied["source"].token() is source.token()
    assert isinstance(copied["auth"], TokenAuth)
