"""QPayProvider with a fake QPay over real sockets: the token section of QPay's V2 API."""

from __future__ import annotations

import asyncio
import logging
import time
from email.utils import formatdate
from typing import TYPE_CHECKING

import httpx
import pytest

from tokencache.errors import ConfigurationError, ProviderRejected, ProviderUnavailable
from tokencache.ports import FetchContext, Secret, TokenProvider
from tokencache.token import Token
from tokencache_qpay import QPayProvider
from tokencache_qpay.provider import PRODUCTION, from_env
from tokencache_qpay.testing import fake_qpay

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokencache.ports import Reason
    from tokencache_qpay.testing import FakeQPay

__all__ = ["fake_qpay"]

HALVES = pytest.mark.parametrize("half", ["fetch", "afetch"])


def provider(fake: FakeQPay, **options: object) -> QPayProvider:
    """Return a provider for the fake."""
    user, password = next(iter(fake.credentials.items()))
    return QPayProvider(user, password, base_url=fake.url, **options)  # type: ignore[arg-type]


def context(
    previous: Token | None = None,
    reason: Reason = "cold",
    *,
    timeout: float = 10.0,
    warn: Callable[[str], None] = print,
) -> FetchContext:
    """Return the context of a fetch."""
    return FetchContext(previous, time.monotonic() + timeout, reason, time.monotonic, warn)


def get(known: QPayProvider, half: str = "fetch", told: FetchContext | None = None) -> Token:
    """Fetch by either half."""
    told = told or context()
    return known.fetch(told) if half == "fetch" else asyncio.run(known.afetch(told))


def accepted(fake: FakeQPay, token: Token) -> bool:
    """Return whether the shop accepts a token."""
    answer = httpx.get(f"{fake.url}/v2/invoice/x", headers={"Authorization": token.authorization})
    return answer.status_code == 422


# --- logging in ---------------------------------------------------------------------------------------------------


@HALVES
def test_a_login_gives_a_token_that_the_shop_accepts(fake_qpay: FakeQPay, half: str) -> None:
    """One Basic request without a cookie gives a Bearer token for a day, with the useful fields."""
    token = get(provider(fake_qpay), half)
    assert token.authorization.startswith("Bearer eyJ")
    assert token.lifetime == pytest.approx(86_400, abs=2)
    assert token.scope == "get_token"
    assert token.extra == {"session_state": "sandbox", "not-before-policy": "0"}
    assert token.refresh_token is not None
    assert token.refresh_expires_at == pytest.approx(token.expires_at, abs=2)
    assert accepted(fake_qpay, token)
    assert (fake_qpay.logins, fake_qpay.cookies_received) == (1, 0)


@HALVES
def test_a_reused_client_sends_no_cookie(fake_qpay: FakeQPay, half: str) -> None:
    """QPay's session cookie is neither sent back nor kept in the jar of a passed-in client."""

    async def scenario() -> dict[str, str]:
        async with httpx.AsyncClient() as client:
            known = provider(fake_qpay, async_client=client)
            await known.afetch(context())
            await known.afetch(context())
            return dict(client.cookies)

    if half == "afetch":
        assert asyncio.run(scenario()) == {}
    else:
        with httpx.Client() as client:
            known = provider(fake_qpay, client=client)
            known.fetch(context())
            known.fetch(context())
            assert dict(client.cookies) == {}
    assert (fake_qpay.logins, fake_qpay.cookies_received) == (2, 0)


def test_the_request_is_as_qpay_documents() -> None:
    """The request is POST /v2/auth/token, Basic, with an empty body and no other parameters."""
    seen: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json={"access_token": "t", "expires_in": 3600})

    client = httpx.Client(transport=httpx.MockTransport(handle))
    QPayProvider("merchant", "пароль", client=client).fetch(context())
    (request,) = seen
    assert (request.method, str(request.url), request.content) == ("POST", f"{PRODUCTION}/v2/auth/token", b"")
    assert request.headers["Authorization"] == "Basic bWVyY2hhbnQ60L/QsNGA0L7Qu9GM"
    assert request.headers["Content-Length"] == "0"


def test_only_known_fields_are_kept(fake_qpay: FakeQPay) -> None:
    """A new field of QPay does not enlarge every record."""
    body = {"access_token": "t", "expires_in": 3600, "session_state": "prod", "not-before-policy": 0, "new": "x" * 999}
    fake_qpay.fail_next(status=200, body=body)
    assert get(provider(fake_qpay)).extra == {"session_state": "prod", "not-before-policy": 0}


# --- expiry -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0, -3_600, 3_600, 600 * 86_400])
def test_an_epoch_is_measured_by_the_servers_date(fake_qpay: FakeQPay, offset: float) -> None:
    """A day's token lives a day, whatever the two clocks say."""
    fake_qpay.clock_offset = offset
    assert get(provider(fake_qpay)).lifetime == pytest.approx(86_400, abs=2)


@pytest.mark.parametrize("seconds", [600, 3_600, 86_400])
def test_a_duration_is_read_as_a_duration(fake_qpay: FakeQPay, seconds: int) -> None:
    """The durations of the unofficial documents work too."""
    fake_qpay.expires, fake_qpay.lifetime = "duration", seconds
    assert get(provider(fake_qpay)).lifetime == seconds


@pytest.mark.parametrize(
    ("says", "lifetime"),
    [
        (lambda now, life: int(now + life) * 1_000, 86_400),
        (lambda now, life: str(int(now + life)), 86_400),
        (lambda now, life: "3600", 3_600),
        (lambda now, life: int(now + 30 * 86_400), 90_000),
        (lambda now, life: 10 * 86_400, 90_000),
        (lambda now, life: int(now) - 5, 300),
        (lambda now, life: None, 300),
        (lambda now, life: True, 300),
        (lambda now, life: {"x": 1}, 300),
    ],
    ids=["ms", "text epoch", "text", "30 days", "10 days", "past", "null", "true", "object"],
)
def test_other_forms_are_read_or_ignored(
    fake_qpay: FakeQPay, says: Callable[[float, float], object], lifetime: float
) -> None:
    """Milliseconds and strings are read, more than 25 hours is refused, and nonsense gives the default."""
    fake_qpay.expires = says
    warnings: list[str] = []
    token = get(provider(fake_qpay), told=context(warn=warnings.append))
    assert token.lifetime == pytest.approx(lifetime, abs=2)
    assert len(warnings) == (lifetime == 300)


def test_the_exp_of_the_jwt_is_never_read(fake_qpay: FakeQPay) -> None:
    """QPay signs an ``exp`` decades ahead; without a usable field the default counts."""
    fake_qpay.expires = lambda now, life: "whenever"
    assert get(provider(fake_qpay)).lifetime == 300


# --- refusals and failures (FAULTS row 22) ------------------------------------------------------------------------


@HALVES
def test_wrong_credentials_are_permanent(fake_qpay: FakeQPay, half: str) -> None:
    """AUTHENTICATION_FAILED is a rejection with QPay's own words, also in Mongolian."""
    known = QPayProvider("TEST_MERCHANT", "wrong-planted", base_url=fake_qpay.url)
    with pytest.raises(ProviderRejected, match=r"\[qpay\] .*AUTHENTICATION_FAILED, Нэвтрэх") as caught:
        get(known, half)
    assert (caught.value.error, caught.value.status) == ("AUTHENTICATION_FAILED", 401)
    assert caught.value.error_description is not None
    assert "wrong-planted" not in str(caught.value)


@HALVES
def test_a_busy_system_is_transient(fake_qpay: FakeQPay, half: str) -> None:
    """A 500 SYSTEM_BUSY without a message is transient."""
    fake_qpay.fail_next()
    with pytest.raises(ProviderUnavailable, match="SYSTEM_BUSY") as caught:
        get(provider(fake_qpay), half)
    assert (caught.value.error, caught.value.status) == ("SYSTEM_BUSY", 500)
    assert get(provider(fake_qpay), half).value


@pytest.mark.parametrize(
    ("status", "kind"), [(502, ProviderUnavailable), (403, ProviderUnavailable), (200, ProviderUnavailable)]
)
def test_a_proxys_page_is_read_by_its_status(fake_qpay: FakeQPay, status: int, kind: type[Exception]) -> None:
    """The proxy answers in HTML: the status decides, and a 200 with HTML is not a token."""
    fake_qpay.html_next(status=status)
    with pytest.raises(kind, match=f"status {status}") as caught:
        get(provider(fake_qpay))
    assert "nginx" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "body", "error", "description"),
    [
        (400, {"error": "MERCHANT_INACTIVE", "message": "Мерчант идэвхгүй"}, "MERCHANT_INACTIVE", "Мерчант идэвхгүй"),
        (403, {"error": "PERMISSION_DENIED"}, "PERMISSION_DENIED", None),
        (422, {"error": "CLIENT_NOTFOUND", "message": ""}, "CLIENT_NOTFOUND", None),
        (401, {"error": "NO_CREDENDIALS", "message": {"a": ["b", 1]}}, "NO_CREDENDIALS", "a: b, 1"),
        (
            400,
            {
                "error": {"client_id": {"type": "REQUIRED", "message": "Required!"}},
                "message": {"client_id": {"type": "REQUIRED", "message": "Required!"}},
            },
            None,
            "client_id: REQUIRED, Required!",
        ),
    ],
)
def test_refusals_keep_qpays_words(
    fake_qpay: FakeQPay, status: int, body: object, error: str | None, description: str | None
) -> None:
    """Codes may be unknown, messages absent or objects; all are rejections with readable text."""
    fake_qpay.fail_next(status=status, body=body)
    with pytest.raises(ProviderRejected) as caught:
        get(provider(fake_qpay))
    found = caught.value
    assert (found.status, found.error, found.error_description) == (status, error, description)


@HALVES
@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(("ahead", "slack"), [(None, 0), (0, 1), (-7_200, 1), (7_200, 1)])
def test_retry_after_is_kept(fake_qpay: FakeQPay, half: str, status: int, ahead: float | None, slack: float) -> None:
    """A Retry-After, in seconds or as a date of a skewed server, becomes a local instant."""
    before = time.time()
    fake_qpay.clock_offset = ahead or 0.0
    named = "60" if ahead is None else formatdate(before + ahead + 60, usegmt=True)
    fake_qpay.fail_next(status=status, headers={"Retry-After": named})
    with pytest.raises(ProviderUnavailable) as caught:
        get(provider(fake_qpay), half)
    assert caught.value.retry_at is not None
    took = time.time() - before
    assert before + 60 - slack * (1 + took) <= caught.value.retry_at <= before + 60 + slack + took


@HALVES
def test_a_cut_connection_is_transient(fake_qpay: FakeQPay, half: str) -> None:
    """A reset during the answer is ProviderUnavailable, and the next fetch works."""
    fake_qpay.reset_next()
    with pytest.raises(ProviderUnavailable, match="broke"):
        get(provider(fake_qpay), half)
    assert get(provider(fake_qpay), half).value


@HALVES
def test_a_hanging_login_ends_at_the_deadline(fake_qpay: FakeQPay, half: str) -> None:
    """A login without an answer ends at the context's deadline (INV-8)."""
    fake_qpay.hang_next()
    with pytest.raises(ProviderUnavailable, match="gave no complete answer"):
        get(provider(fake_qpay), half, FetchContext(None, 0.2, "cold", lambda: 0.0))  # start-up costs no time


@pytest.mark.parametrize("body", [{"token_type": "bearer"}, {"access_token": ""}, {"access_token": "two words"}, []])
def test_an_answer_without_a_token_is_transient(fake_qpay: FakeQPay, body: object) -> None:
    """A 200 without a usable token is an error."""
    fake_qpay.fail_next(status=200, body=body)
    with pytest.raises(ProviderUnavailable):
        get(provider(fake_qpay))


# --- refresh ------------------------------------------------------------------------------------------------------


def test_refresh_is_off_by_default(fake_qpay: FakeQPay) -> None:
    """By default a renewal logs in again."""
    known = provider(fake_qpay)
    first = get(known)
    get(known, told=context(first, "refresh"))
    assert (fake_qpay.logins, fake_qpay.refreshes) == (2, 0)


@HALVES
def test_a_renewal_may_use_the_refresh_token(fake_qpay: FakeQPay, half: str) -> None:
    """With ``use_refresh`` a renewal is one refresh request, and its token works."""
    known = provider(fake_qpay, use_refresh=True)
    first = get(known, half)
    second = get(known, half, context(first, "refresh"))
    assert (fake_qpay.logins, fake_qpay.refreshes) == (1, 1)
    assert second.refresh_token != first.refresh_token
    assert accepted(fake_qpay, second)
    third = get(known, half, context(second, "renew"))
    assert (fake_qpay.logins, fake_qpay.refreshes) == (1, 2)
    assert accepted(fake_qpay, third)


def test_a_refused_token_is_not_refreshed(fake_qpay: FakeQPay) -> None:
    """After a 401 the session is over, so its refresh token is not tried."""
    known = provider(fake_qpay, use_refresh=True)
    get(known, told=context(get(known), "rejected"))
    assert (fake_qpay.logins, fake_qpay.refreshes) == (2, 0)


@pytest.mark.parametrize("ends_at", [None, 1.0])
def test_an_expired_refresh_token_is_not_tried(fake_qpay: FakeQPay, ends_at: float | None) -> None:
    """A refresh token past its end, or with an unknown end, is not sent."""
    known = provider(fake_qpay, use_refresh=True)
    previous = Token("t", expires_at=2e9, issued_at=1e9, refresh_token="again", refresh_expires_at=ends_at)
    get(known, told=context(previous, "refresh"))
    get(known, told=context(Token("t", expires_at=2e9, issued_at=1e9, refresh_expires_at=4e9), "refresh"))
    assert (fake_qpay.logins, fake_qpay.refreshes) == (2, 0)


@HALVES
@pytest.mark.parametrize("fault", ["reset", "hang", "html", "busy", "refused", "empty"])
def test_any_failure_of_a_refresh_falls_back_to_the_login(fake_qpay: FakeQPay, half: str, fault: str) -> None:
    """After any failure of the refresh, the same fetch logs in, and warns without secrets."""
    known = provider(fake_qpay, use_refresh=True)
    first = get(known, half)
    match fault:
        case "reset":
            fake_qpay.reset_next()
        case "hang":
            fake_qpay.hang_next()
        case "html":
            fake_qpay.html_next()
        case "busy":
            fake_qpay.fail_next()
        case "refused":
            fake_qpay.revoke()
        case _:
            fake_qpay.fail_next(status=200, body={})
    warnings: list[str] = []
    second = get(known, half, FetchContext(first, 3.0, "refresh", lambda: 0.0, warnings.append))
    assert accepted(fake_qpay, second)
    assert (fake_qpay.logins, fake_qpay.refreshes) == (2, 1)
    assert len(warnings) == 1
    assert first.refresh_token is not None
    assert first.refresh_token not in warnings[0]


def test_a_refresh_leaves_half_of_the_time_for_the_login() -> None:
    """A refresh may take half of the remaining time, so that the login after it has time too."""
    previous = Token("t", expires_at=4e9, issued_at=1e9, refresh_token="again", refresh_expires_at=4e9)
    flow = QPayProvider("merchant", "planted", use_refresh=True).token_flow(
        FetchContext(previous, 106.0, "refresh", lambda: 100.0)
    )
    assert next(flow).extensions["timeout"]["read"] == 3.0
    login = flow.throw(ProviderUnavailable("lost"))
    assert login.url.path == "/v2/auth/token"
    assert "timeout" not in login.extensions
    flow.close()


def test_a_refresh_token_is_sent_once(fake_qpay: FakeQPay) -> None:
    """If the answer of a refresh was lost, the same refresh token is not sent again."""
    known = provider(fake_qpay, use_refresh=True)
    first = get(known)
    with fake_qpay.fail_while(), pytest.raises(ProviderUnavailable):
        get(known, told=context(first, "refresh"))
    get(known, told=context(first, "refresh"))
    assert fake_qpay.refreshes == 1


# --- settings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("https://merchant.qpay.mn", "https://merchant.qpay.mn"),
        ("https://merchant.qpay.mn/", "https://merchant.qpay.mn"),
        ("https://merchant.qpay.mn/v2", "https://merchant.qpay.mn"),
        ("https://merchant.qpay.mn/v2/", "https://merchant.qpay.mn"),
        ("HTTPS://Merchant.QPay.MN:443/v2/", "https://merchant.qpay.mn"),
        ("https://gateway.example/qpay/v2", "https://gateway.example/qpay"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("http://[::1]:8080", "http://[::1]:8080"),
        ("http://localhost/v2", "http://localhost"),
    ],
)
def test_spellings_of_a_base_url_are_one_issuer(given: str, used: str) -> None:
    """With or without /v2 and slashes, in any case, the issuer and so the key are the same."""
    known = QPayProvider("merchant", "planted", base_url=given)
    assert known.base_url == used
    assert known.identity()["issuer"] == used


@pytest.mark.parametrize(
    "url",
    [
        "http://merchant.qpay.mn",
        "http://10.0.0.7",
        "https://user:planted@merchant.qpay.mn",
        "https://@merchant.qpay.mn",
        "https://merchant.qpay.mn/?a=planted",
        "https://merchant.qpay.mn/#planted",
        "merchant.qpay.mn",
        "ftp://merchant.qpay.mn",
        "https://",
        "https://merchant.qpay.mn:planted",
        "",
    ],
)
def test_an_unsafe_base_url_is_refused(url: str) -> None:
    """Clear text beyond loopback, userinfo, and a text that is not an address are mistakes of configuration."""
    with pytest.raises(ConfigurationError, match=r"\[qpay\] the base URL") as caught:
        QPayProvider("merchant", "password", base_url=url)
    assert "planted" not in str(caught.value)


@pytest.mark.parametrize(("user", "password"), [("", "x"), ("x", ""), ("", ""), ("a:b", "x")])
def test_credentials_are_required(user: str, password: str) -> None:
    """Without a user and a password nothing is sent."""
    with pytest.raises(ConfigurationError, match="client_id"):
        QPayProvider(user, password)


def test_the_environment_configures_a_provider(fake_qpay: FakeQPay, monkeypatch: pytest.MonkeyPatch) -> None:
    """The four variables are read, with the plain key of other programs; a line break after a secret is dropped."""
    known = QPayProvider.from_env(fake_qpay.environ)
    assert (known.key, known.base_url, known.name) == ("qpay:access_token", fake_qpay.url, "qpay")
    environ = fake_qpay.environ | {"QPAY_CACHE_KEY": "shop:qpay"}
    environ["QPAY_CLIENT_SECRET"] += "\n"
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    known = from_env()
    assert known.key == "shop:qpay"
    assert accepted(fake_qpay, get(known))
    monkeypatch.delenv("QPAY_BASE_URL")
    assert from_env().base_url == PRODUCTION


def test_a_table_overrides_the_environment(fake_qpay: FakeQPay, monkeypatch: pytest.MonkeyPatch) -> None:
    """A configured setting overrides its variable; another merchant gets neither that key nor those credentials."""
    for name, value in fake_qpay.environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("QPAY_CACHE_KEY", "their:key")
    same = from_env(name="shop", timeout=3.0, use_refresh=True)
    assert (same.name, same.key, same.base_url) == ("shop", "their:key", fake_qpay.url)
    assert from_env(key="mine").key == "mine"
    other = from_env(client_id="other", client_secret="secret", base_url="https://qpay.example")
    assert (other.key, other.base_url, other.identity()["client_id"]) == (None, "https://qpay.example", "other")
    assert from_env(client_secret="rotated").key is None


@pytest.mark.parametrize("environ", [{}, {"QPAY_CLIENT_ID": "planted"}, {"QPAY_CLIENT_SECRET": "planted"}])
def test_missing_credentials_are_reported_in_one_paragraph(environ: dict[str, str]) -> None:
    """The message names both variables and the sandbox's merchant, and shows no value."""
    with pytest.raises(ConfigurationError) as caught:
        QPayProvider.from_env(environ)
    text = str(caught.value)
    for part in ("QPAY_CLIENT_ID", "QPAY_CLIENT_SECRET", "TEST_MERCHANT", "merchant-sandbox.qpay.mn"):
        assert part in text
    assert "planted" not in text
    assert "\n" not in text


def test_the_identity_separates_merchants_and_passwords() -> None:
    """Host, user and password make the identity; the password is a Secret."""
    identity = QPayProvider("merchant", "planted").identity()
    assert identity == {"issuer": PRODUCTION, "client_id": "merchant", "client_secret": Secret("planted")}
    assert "planted" not in repr(identity)


def test_it_satisfies_the_protocol_and_renews_late() -> None:
    """It satisfies the protocol, sets no key, and renews ten minutes before the end."""
    known = QPayProvider("merchant", "planted")
    assert isinstance(known, TokenProvider)
    assert known.key is None
    assert known.policy.window == 600.0


def test_logged_urls_hold_no_credential(fake_qpay: FakeQPay, caplog: pytest.LogCaptureFixture) -> None:
    """The HTTP client logs its requests: no password, Basic text or token is in the log (INV-9)."""
    caplog.set_level(logging.DEBUG)
    known = QPayProvider("TEST_MERCHANT", "123456", base_url=fake_qpay.url, use_refresh=True)
    token = get(known, told=context(get(known), "refresh"))
    assert caplog.records
    for secret in ("123456", "VEVTVF9NRVJDSEFOVDoxMjM0NTY=", token.value, token.refresh_token):
        assert secret is not None
        assert secret not in caplog.text
