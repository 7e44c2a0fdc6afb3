"""The drivers: what a caller gets when a provider or a backend answers wrongly, fails or hangs."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import pytest

from tokencache import (
    ProviderUnavailable,
    RefreshPolicy,
    Token,
    TokenCache,
)
from tokencache.backends._threaded import ThreadedBackend
from tokencache.backends.memory import MemoryBackend
from tokencache.errors import ConfigurationError
from tokencache.events import ProviderWarning
from tokencache.testing.fakes import FakeProvider, Recorder

if TYPE_CHECKING:
    from collections.abc import Callable


PLANTED = "planted"


def test_a_provider_warning_becomes_an_event() -> None:
    """An unreadable expiry is reported as an event, and the token is used."""
    seen = Recorder()
    cache = TokenCache("memory://", observers=[seen])
    assert cache.source(lambda: {"access_token": "x", "expires_in": "soon"}, key="k").token()
    assert len(seen.of(ProviderWarning)) == 1


@pytest.mark.parametrize("wrong", ["a string", None, 42, object()])
def test_a_result_that_is_not_a_token_is_an_error(wrong: object) -> None:
    """If a provider returns something else, the error says so."""
    provider = FakeProvider()
    provider._answer = lambda: wrong  # type: ignore[method-assign,assignment,return-value]
    with pytest.raises(ProviderUnavailable, match="not a Token"):
        TokenCache("memory://").source(provider).token()


def test_a_hung_async_fetch_ends_at_the_fetch_timeout() -> None:
    """INV-8: the policy's ``fetch_timeout`` ends an async fetch that would never end."""
    provider = FakeProvider()
    provider.gate.clear()
    source = TokenCache("memory://", policy=RefreshPolicy(fetch_timeout=0.05)).source(provider)
    with pytest.raises(ProviderUnavailable, match="did not answer within"):
        asyncio.run(source.atoken())


def test_a_late_configuration_error_reaches_callers_and_is_not_kept() -> None:
    """If a backend finds a mistake in the settings at a call, that call fails; the source works once it is mended."""

    class Broken(MemoryBackend):
        """A backend whose ``load`` raises while ``fault`` is set."""

        fault: Callable[[], None] | None = None

        def load(self, key: str) -> None:  # type: ignore[override]
            """Raise the fault, or return None."""
            if self.fault is not None:
                self.fault()

    def fault() -> None:
        message = "a wrong setting"
        raise ConfigurationError(message)

    backend = Broken()
    backend.fault = fault
    source = TokenCache(backend).source(FakeProvider())
    with pytest.raises(ConfigurationError):
        source.token()
    with pytest.raises(ConfigurationError):
        asyncio.run(source.atoken())
    backend.fault = None
    assert source.token()


@pytest.mark.parametrize("half", ["sync", "async"])
def test_a_configuration_error_after_a_401_is_raised(half: str) -> None:
    """After a 401 a wrong setting is raised; the result ``None`` would hide it behind the 401."""

    class Wrong(MemoryBackend):
        """A backend whose ``load`` finds a wrong setting."""

        def load(self, key: str) -> None:  # type: ignore[override]
            """Fail."""
            message = "a wrong setting"
            raise ConfigurationError(message)

    source = TokenCache(Wrong()).source(FakeProvider())
    refused = Token("refused", expires_at=2e9, issued_at=1e9)
    with pytest.raises(ConfigurationError, match="a wrong setting"):
        source.replace(refused) if half == "sync" else asyncio.run(source.areplace(refused))


class Odd(MemoryBackend):
    """A memory backend with a defect: the named operations raise an error that no backend may raise."""

    def __init__(self, *operations: str) -> None:
        self.operations = operations
        self.raised = threading.Event()
        super().__init__()

    def __getattribute__(self, name: str) -> object:
        """Return the method, or one that raises."""
        if name in object.__getattribute__(self, "operations"):

            def fail(*arguments: object) -> None:
                self.raised.set()
                raise ValueError(PLANTED)

            return fail
        return object.__getattribute__(self, name)


@pytest.mark.parametrize("half", ["sync", "async"])
@pytest.mark.parametrize("operations", [("load",), ("lease",), ("commit", "release"), ("load", "lease")], ids=str)
def test_any_error_of_a_backend_counts_as_an_outage(half: str, operations: tuple[str, ...]) -> None:
    """INV-5: a caller still gets its token after any backend error; the event names the error's type, not its text."""
    recorder = Recorder()
    backend = Odd(*operations)
    with TokenCache(backend, observers=[recorder]) as cache:
        source = cache.source(FakeProvider("one"))
        token = source.token() if half == "sync" else asyncio.run(source.atoken())
    assert token.value == "one-token-1"
    assert backend.raised.is_set()
    said = repr(recorder.events)
    assert "ValueError" in said
    assert "planted" not in said


def test_a_flight_collected_with_its_closed_loop_does_not_await() -> None:
    """INV-8: a closed coroutine must not await, not even to release its lease."""
    backend, provider, seen = MemoryBackend(), FakeProvider(), Recorder()
    backend.aio = lambda: ThreadedBackend(backend)  # type: ignore[method-assign]
    source = TokenCache(backend, observers=[seen]).source(provider)
    provider.gate.clear()

    async def main() -> None:
        while not provider.started.is_set():
            await asyncio.sleep(0)

    loop = asyncio.new_event_loop()
    caller = loop.create_task(source.atoken())
    loop.run_until_complete(main())
    loop.close()
    (flight,) = source._tasks
    flight.get_coro().close()
    caller.get_coro().close()
    assert not seen.events
    assert backend.inspect(source.key).owner is not None
