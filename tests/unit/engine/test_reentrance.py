"""A token asked for from inside its own fetch, or by an observer: answered at once, never after the whole time-out."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from typing import TYPE_CHECKING

import pytest

from tokencache import ProviderUnavailable, RefreshPolicy, Token, TokenCache
from tokencache.errors import ConfigurationError, TokenCacheError
from tokencache.events import FetchFailed, LeaseLost, ProviderWarning, TokenFetched
from tokencache.ports import FetchContext
from tokencache.testing.fakes import FakeProvider, FlakyBackend, Recorder

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tokencache import TokenSource
    from tokencache.events import Event
    from tokencache.ports import LeaseGrant

HOUR = 3600.0  # no test waits so long: a call that waits for itself fails by the suite's time-out
PATIENT = RefreshPolicy(timeout=HOUR)
ANSWER = {"access_token": "t", "expires_in": 3600}


def sync(source: TokenSource) -> Token:
    """Ask on this thread."""
    return source.token()


def on_a_loop(source: TokenSource) -> Token:
    """Ask on an event loop."""
    return asyncio.run(source.atoken())


both = pytest.mark.parametrize("ask", [sync, on_a_loop])


@both
def test_a_plain_login_that_needs_its_own_token_fails_at_once(ask: Callable[[TokenSource], Token]) -> None:
    """INV-8: the error names the token and says what is wrong; the callers get it, not a time-out."""
    cache = TokenCache("memory://", observers=[])

    def login() -> dict[str, object]:
        source.token()
        return ANSWER

    source = cache.source(login, key="k", policy=PATIENT)
    with pytest.raises(ConfigurationError, match=r"^\[k\] 'k': the fetch of this token asks for this token"):
        ask(source)


@both
@pytest.mark.parametrize("inner", ["atoken", "arenew", "token"])
def test_an_async_login_that_needs_its_own_token_fails_at_once(ask: Callable[[TokenSource], Token], inner: str) -> None:
    """The same for a coroutine, whichever half it asks and whichever half asked for it."""
    cache = TokenCache("memory://", observers=[])

    async def login() -> dict[str, object]:
        asked: Awaitable[Token] | Token = getattr(source, inner)()
        if not isinstance(asked, Token):
            await asked
        return ANSWER

    source = cache.source(login, key="k", policy=PATIENT)
    with pytest.raises(ConfigurationError, match="asks for this token"):
        ask(source)


@both
def test_two_logins_that_need_each_other_fail_at_once(ask: Callable[[TokenSource], Token]) -> None:
    """A login that needs another token is fine, until that one needs the first."""
    cache = TokenCache("memory://", observers=[])

    def of_a() -> dict[str, object]:
        return {"access_token": b.token().value, "expires_in": 60}

    def of_b() -> dict[str, object]:
        return {"access_token": a.token().value if circle else "b", "expires_in": 60}

    a = cache.source(of_a, key="a", policy=PATIENT)
    b = cache.source(of_b, key="b", policy=PATIENT)
    circle = True
    with pytest.raises(ConfigurationError, match=r"^\[a\] 'a': the fetch of this token asks for this token"):
        ask(a)
    circle = False
    assert ask(a).value == "b"


def test_a_renewal_may_use_the_token_that_it_renews() -> None:
    """While the current token is usable it is given, also to its own renewal; the next login needs none."""
    cache = TokenCache("memory://", observers=[])
    used: list[str] = []

    def login() -> dict[str, object]:
        if source._copy is not None:
            used.append(source.token().value)
        return ANSWER | {"access_token": f"t{len(used)}"}

    source = cache.source(login, key="k", policy=PATIENT)
    assert source.token().value == "t0"
    assert source.renew().value == "t1"
    assert used == ["t0"]


def test_what_a_login_started_may_ask_when_the_login_is_over() -> None:
    """A task or thread that a login leaves behind has its context; it waits for later flights as everybody."""
    cache = TokenCache("memory://", observers=[])
    contexts: list[contextvars.Context] = []

    def login() -> dict[str, object]:
        contexts.append(contextvars.copy_context())
        return ANSWER | {"access_token": f"t{len(contexts)}"}

    source = cache.source(login, key="k", policy=PATIENT)
    source.token()
    assert contexts[0].run(source.renew).value == "t2"
    assert source._flights._open is None


class Asking(Recorder):
    """An observer that asks for the token on each event, as a log handler that ships lines to the API."""

    source: TokenSource

    def __init__(self) -> None:
        super().__init__()
        self.answers: list[str] = []

    def __call__(self, event: Event) -> None:
        """Ask, and keep the answer."""
        super().__call__(event)
        try:
            self.answers.append(self.source.token().value)
        except TokenCacheError as error:
            self.answers.append(type(error).__name__)


@both
def test_an_observer_gets_the_token_that_it_is_told_of(ask: Callable[[TokenSource], Token]) -> None:
    """Observers are told when the token is there, and before the callers have it."""
    seen = Asking()
    seen.source = TokenCache("memory://", observers=[seen]).source(FakeProvider(), policy=PATIENT)
    assert ask(seen.source).value == "fake-token-1"
    assert [type(event) for event in seen.events] == [TokenFetched]
    assert seen.answers == ["fake-token-1"]


@both
def test_an_observer_gets_the_failure_that_it_is_told_of(ask: Callable[[TokenSource], Token]) -> None:
    """INV-7: the cooldown is known when an observer is told of a failure; the provider is not asked again."""
    seen, provider = Asking(), FakeProvider()
    provider.failure = ProviderUnavailable("busy")
    seen.source = TokenCache("memory://", observers=[seen]).source(provider, policy=PATIENT)
    with pytest.raises(ProviderUnavailable, match="busy"):
        ask(seen.source)
    assert [type(event) for event in seen.events] == [FetchFailed]
    assert seen.answers == ["ProviderUnavailable"]
    assert provider.calls == 1


def test_events_of_a_fetch_wait_until_it_is_over() -> None:
    """A warning of the provider, an outage, a lost lease: each would be told in mid-flight."""

    class Losing(FlakyBackend):
        def extend(self, lease: LeaseGrant, ttl: float) -> bool:
            lost.set()
            return False

    lost, seen = threading.Event(), Asking()

    def login(context: FetchContext) -> dict[str, object]:
        context.warn("unusual")
        assert lost.wait(30)
        while len(source._flights._open._later) < 2:  # type: ignore[union-attr]
            threading.Event().wait(0.001)
        assert not seen.events
        return ANSWER

    policy = RefreshPolicy(timeout=HOUR, lease=1.5)
    source = seen.source = TokenCache(Losing(), observers=[seen]).source(login, key="k", policy=policy)
    assert source.token().value == "t"
    assert [type(event) for event in seen.events] == [ProviderWarning, LeaseLost, TokenFetched]
    assert seen.answers == ["t", "t", "t"]


def test_an_event_after_its_flight_is_told_at_once() -> None:
    """A provider may warn late, from a thread that it left behind."""
    seen, contexts = Recorder(), list[FetchContext]()

    def login(context: FetchContext) -> dict[str, object]:
        contexts.append(context)
        here.append(contextvars.copy_context())
        return ANSWER

    here: list[contextvars.Context] = []
    TokenCache("memory://", observers=[seen]).source(login, key="k").token()
    here[0].run(contexts[0].warn, "late")
    assert [type(event) for event in seen.events] == [TokenFetched, ProviderWarning]


def test_an_observer_that_hangs_holds_no_caller_beyond_its_time() -> None:
    """INV-8: callers wait for observers, as the log line comes first, but no longer than they wait for the token."""
    gate = threading.Event()
    source = TokenCache("memory://", observers=[lambda _event: gate.wait(30)]).source(FakeProvider())  # type: ignore[list-item, func-returns-value, return-value]
    assert source.token(timeout=2.0).value == "fake-token-1"
    gate.set()
