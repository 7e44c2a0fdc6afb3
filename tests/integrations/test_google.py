"""The credentials for Google clients, in google-auth's own session, against a server on loopback."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from google.auth.exceptions import RefreshError
from google.auth.transport.requests import AuthorizedSession

from tokencache import TokenCache
from tokencache.errors import ProviderRejected, ProviderUnavailable
from tokencache.integrations.google import SourceCredentials
from tokencache.testing.fakes import FakeClock, FakeProvider
from tokencache.token import Token

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    from conftest import API, Issuer

    Serve: TypeAlias = Callable[..., API]

CROWD = 8


def test_a_session_sends_the_fleets_token(issuer: Issuer, serve: Serve) -> None:
    """Each request carries the source's token, and a new token at once when the source has one."""
    api = serve(1, 2)
    with AuthorizedSession(SourceCredentials(issuer.source)) as session:
        assert [session.get(api.url).status_code for _ in range(3)] == [200] * 3
        issuer.source.renew()
        assert session.get(api.url).status_code == 200
    assert api.tokens == ["Bearer fake-token-1"] * 3 + ["Bearer fake-token-2"]
    assert issuer.calls == 2


def test_refusals_of_one_token_cause_one_renewal(issuer: Issuer, serve: Serve) -> None:
    """Threads share the credentials and are refused with one token at once: one login serves them all (INV-6)."""
    api = serve(2)
    api.crowd = CROWD
    credentials = SourceCredentials(issuer.source)

    def call(_: int) -> int:
        with AuthorizedSession(credentials) as session:
            status: int = session.get(api.url).status_code
            return status

    with ThreadPoolExecutor(CROWD) as pool:
        assert list(pool.map(call, range(CROWD))) == [200] * CROWD
    assert issuer.calls == 2


def test_a_late_report_does_not_drop_the_replacement(issuer: Issuer) -> None:
    """A thread that reports the old token after another thread replaced it gets the new one: no login (INV-6)."""
    credentials = SourceCredentials(issuer.source)
    with ThreadPoolExecutor(1) as pool:
        headers: dict[str, str] = {}
        pool.submit(credentials.before_request, None, "GET", "https://api.example", headers).result()
        credentials.before_request(None, "GET", "https://api.example", {})
        credentials.refresh(None)
        assert credentials.token == "fake-token-2"
        pool.submit(credentials.refresh, None).result()
    assert headers == {"authorization": "Bearer fake-token-1"}
    assert credentials.token == "fake-token-2"
    assert issuer.calls == 2


def test_a_thread_reports_the_token_that_it_sent(issuer: Issuer) -> None:
    """Between a thread's request and its 401, another thread may send a newer token: that one stays (INV-6)."""
    credentials = SourceCredentials(issuer.source)
    credentials.before_request(None, "GET", "https://api.example", {})
    issuer.source.renew()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(credentials.before_request, None, "GET", "https://api.example", {}).result()
    credentials.refresh(None)
    assert credentials.token == "fake-token-2"
    assert issuer.calls == 2


def test_a_token_is_reported_once() -> None:
    """A second ``refresh`` without a request in between is not a second refusal: no login."""
    clock = FakeClock()
    provider = FakeProvider(wall=clock.wall)
    with TokenCache("memory://", clock=clock, wall=clock.wall) as cache:
        credentials = SourceCredentials(cache.source(provider))
        for _ in range(2):
            credentials.before_request(None, "GET", "https://api.example", {})
            credentials.refresh(None)
        clock.advance(900)
        credentials.refresh(None)
    assert credentials.token == "fake-token-2"
    assert provider.calls == 2


def test_a_provider_that_repeats_the_refused_token_is_an_error(issuer: Issuer, serve: Serve) -> None:
    """If the provider gives the refused token again, the error says so."""
    issuer.value = "fake-token-1"
    api = serve()
    with AuthorizedSession(SourceCredentials(issuer.source)) as session, pytest.raises(RefreshError, match="again"):
        session.get(api.url)
    assert api.tokens == ["Bearer fake-token-1"]


def test_a_request_keeps_its_token(issuer: Issuer) -> None:
    """A thread that takes a newer token in the middle does not change the other thread's sent and reported token."""
    headers: dict[str, str] = {}

    class Interrupted(SourceCredentials):
        def apply(self, headers: dict[str, str], token: str | None = None) -> None:
            self.token = "another thread's"
            super().apply(headers, token)

    Interrupted(issuer.source).before_request(None, "GET", "https://api.example", headers)
    assert headers == {"authorization": "Bearer fake-token-1"}


def test_a_second_refusal_reaches_the_caller(issuer: Issuer, serve: Serve) -> None:
    """google-auth sends twice more; the source logs in once more, and the caller gets the 401 (INV-6)."""
    api = serve()
    with AuthorizedSession(SourceCredentials(issuer.source)) as session:
        assert session.get(api.url).status_code == 401
    assert api.tokens == ["Bearer fake-token-1", *["Bearer fake-token-2"] * 2]
    assert issuer.calls == 2


def test_refreshing_without_a_refusal_does_not_log_in(issuer: Issuer) -> None:
    """``if not credentials.valid: credentials.refresh(…)``, a common pattern, gets the source's token."""
    credentials = SourceCredentials(issuer.source)
    assert not credentials.valid
    for _ in range(3):
        credentials.refresh(None)
    assert credentials.valid
    assert credentials.token == "fake-token-1"
    assert issuer.calls == 1


@pytest.mark.parametrize("at", [1_700_000_000.25, 9e13, -5.0])
def test_expiry_is_naive_and_in_utc(at: float) -> None:
    """google-auth compares ``expiry`` with a naive UTC time; an instant outside the calendar raises no error."""

    class Fixed:
        def token(self) -> Token:
            return Token("value", expires_at=at, issued_at=0)

    credentials = SourceCredentials(Fixed())  # type: ignore[arg-type]
    credentials.refresh(None)
    assert credentials.expiry.tzinfo is None
    last = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC).timestamp()
    assert credentials.expiry.replace(tzinfo=UTC).timestamp() == max(0.0, min(at, last))


def test_a_quota_project_is_sent(issuer: Issuer, serve: Serve) -> None:
    """A copy with a quota project names it in each request and shares the source."""
    api = serve(1)
    credentials = SourceCredentials(issuer.source).with_quota_project("billed")
    with AuthorizedSession(credentials) as session:
        session.get(api.url)
    assert api.asked[0].headers["x-goog-user-project"] == "billed"
    assert api.tokens == ["Bearer fake-token-1"]


@pytest.mark.parametrize(
    ("failure", "retryable"),
    [(ProviderRejected("no such client", error="invalid_client"), False), (ProviderUnavailable("busy"), True)],
)
def test_errors_are_google_auths(issuer: Issuer, serve: Serve, failure: Exception, *, retryable: bool) -> None:
    """A rejection is final, an outage may be tried again; the source's own error is the cause (INV-9)."""
    issuer.failure = failure
    api = serve()
    with AuthorizedSession(SourceCredentials(issuer.source)) as session, pytest.raises(RefreshError) as caught:
        session.get(api.url)
    assert caught.value.retryable is retryable
    assert type(caught.value.__cause__) is type(failure)
    assert api.asked == []


def test_no_repr_shows_the_token(issuer: Issuer) -> None:
    """The repr contains only the source (INV-9)."""
    credentials = SourceCredentials(issuer.source)
    credentials.refresh(None)
    assert repr(credentials) == f"SourceCredentials({issuer.source!r})"
