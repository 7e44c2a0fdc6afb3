"""GitHub Apps: what is signed and requested, what is part of the identity, and what refusals mean."""
# ruff: noqa: ANN401 - keys and settings of any kind

from __future__ import annotations

import asyncio
import json
import time
from email.utils import formatdate
from typing import TYPE_CHECKING, Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tokencache import TokenCache
from tokencache._keys import quick_fingerprint
from tokencache.errors import ConfigurationError, ProviderRejected, ProviderUnavailable
from tokencache.ports import FetchContext
from tokencache.providers.github import GitHubApp
from tokencache.testing.loopback import Asked, LoopbackServer, Reply

if TYPE_CHECKING:
    from collections.abc import Iterator

KEY = rsa.generate_private_key(65537, 2048)
OTHER = rsa.generate_private_key(65537, 2048)
ISO = "%Y-%m-%dT%H:%M:%SZ"


def pem(key: Any) -> str:
    """Return a private key as PEM, in the form that GitHub gives out."""
    text: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    return text.decode()


PEM = pem(KEY)


class GitHub:
    """A fake GitHub on loopback: it issues numbered tokens, or the answer that a test sets."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.reply: Reply | None = None
        self.ahead = 0.0
        self._server = LoopbackServer(self._answer)
        self._server.start()
        self.url = f"http://127.0.0.1:{self._server.port}"
        self.close = self._server.stop

    async def _answer(self, asked: Asked) -> Reply:
        self.asked.append(asked)
        now = time.time() + self.ahead
        body = {
            "token": f"ghs_{len(self.asked)}",
            "expires_at": time.strftime(ISO, time.gmtime(now + 3600)),
            "permissions": {"contents": "read"},
            "repository_selection": "selected",
            "repositories": [{"id": 1, "name": "hello", "private": True}],
        }
        date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(now))
        return self.reply or Reply(201, json.dumps(body).encode(), (("Date", date),))

    def refuse(self, status: int, message: str, **headers: str) -> None:
        """Answer with an error from now on."""
        named = tuple((name.replace("_", "-"), value) for name, value in headers.items())
        self.reply = Reply(status, json.dumps({"message": message, "status": str(status)}).encode(), named)

    @property
    def assertion(self) -> str:
        """Return the app's signature in the last request."""
        return self.asked[-1].headers["authorization"].removeprefix("Bearer ")


@pytest.fixture
def github() -> Iterator[GitHub]:
    """A fake GitHub."""
    running = GitHub()
    yield running
    running.close()


def app(**settings: Any) -> GitHubApp:
    """Return the provider of an installation."""
    complete: dict[str, Any] = {"app_id": "Iv23abc", "installation_id": 42, "private_key": PEM} | settings
    return GitHubApp(**complete)


def context() -> FetchContext:
    """Return the context of a fetch; a warning fails the test."""
    return FetchContext(None, time.monotonic() + 30, "cold", time.monotonic, pytest.fail)


def test_the_app_signs_and_gets_a_token_of_the_installation(github: GitHub) -> None:
    """The JWT is RS256, dated back by a minute, for ten minutes at most; the POST has versioned headers and no body."""
    before = int(time.time())
    token = app(base_url=f"{github.url}/").fetch(context())
    asked = github.asked[-1]
    assert (asked.method, asked.path, asked.body) == ("POST", "/app/installations/42/access_tokens", b"")
    assert asked.headers["accept"] == "application/vnd.github+json"
    assert asked.headers["x-github-api-version"] == "2022-11-28"
    assert asked.headers["user-agent"]
    claims = jwt.decode(github.assertion, KEY.public_key(), algorithms=["RS256"])
    assert set(claims) == {"iss", "iat", "exp"}
    assert claims["iss"] == "Iv23abc"
    assert before - 60 <= claims["iat"] <= time.time() - 60
    assert claims["exp"] - claims["iat"] <= 600
    assert token.authorization == "Bearer ghs_1"
    assert dict(token.extra) == {"permissions": {"contents": "read"}, "repository_selection": "selected"}


@pytest.mark.parametrize("ahead", [0.0, 7200.0, -7200.0])
def test_the_expiry_is_measured_by_githubs_clock(github: GitHub, ahead: float) -> None:
    """INV-1: expires_at is an instant of GitHub's clock, so a wrong local clock does not change the lifetime."""
    github.ahead = ahead
    assert app(base_url=github.url).fetch(context()).lifetime == pytest.approx(3600, abs=3)


def test_both_halves_send_the_same_request(github: GitHub) -> None:
    """The async half gets the same token as the sync half."""
    provider = app(base_url=github.url, permissions={"issues": "write"})
    provider.fetch(context())
    asyncio.run(provider.afetch(context()))
    first, second = github.asked
    assert (first.path, first.body) == (second.path, second.body)


def test_a_narrowed_token_is_requested_as_json(github: GitHub) -> None:
    """Permissions and repositories, by name or number, are the body of the request."""
    app(
        base_url=github.url,
        permissions={"contents": "read", "issues": "write"},
        repositories=["hello", "world", "hello"],
        repository_ids=["7", 8],
    ).fetch(context())
    assert github.asked[-1].headers["content-type"] == "application/json"
    assert json.loads(github.asked[-1].body) == {
        "permissions": {"contents": "read", "issues": "write"},
        "repositories": ["hello", "world"],
        "repository_ids": [7, 8],
    }


@pytest.mark.parametrize(
    "other",
    [
        {"app_id": "Iv23other"},
        {"installation_id": 43},
        {"private_key": pem(OTHER)},
        {"permissions": {"contents": "write"}},
        {"permissions": {}},
        {"repositories": ["hello", "moon"]},
        {"repositories": []},
        {"repository_ids": ["8"]},
        {"base_url": "https://github.shop.example/api/v3"},
    ],
    ids=lambda other: "-".join(f"{name}={str(value)[:30].strip('-')}" for name, value in other.items()),
)
def test_every_setting_of_a_token_is_in_the_identity(other: dict[str, Any]) -> None:
    """INV-10: app, installation, key, permissions, repositories and server are part of the identity."""
    settings: dict[str, Any] = {
        "permissions": {"contents": "read"},
        "repositories": ["hello", "world"],
        "repository_ids": ["7"],
    }
    prints = [quick_fingerprint("x", app(**settings | more).identity()) for more in ({}, other)]
    assert prints[0] != prints[1]


def test_the_order_of_repositories_makes_no_difference() -> None:
    """Repositories are a set, and a number may be written as text: the same token is shared."""
    one = app(repositories=["a", "b"], repository_ids=["1", 2], installation_id="42")
    two = app(repositories=["b", "a", "b"], repository_ids=["2", "1"])
    assert quick_fingerprint("x", one.identity()) == quick_fingerprint("x", two.identity())


@pytest.mark.parametrize(
    ("status", "message", "remedy"),
    [
        (401, "A JSON web token could not be decoded", "check app_id, private_key and the clock"),
        (403, "This installation has been suspended", "suspended"),
        (404, "Not Found", "check installation_id"),
        (422, "The permissions requested are not granted to this installation.", "granted"),
    ],
)
def test_a_refusal_is_final_and_names_the_remedy(github: GitHub, status: int, message: str, remedy: str) -> None:
    """INV-7: an error that a retry cannot mend is a rejection, with GitHub's words, the status and a remedy."""
    github.refuse(status, message)
    with pytest.raises(ProviderRejected) as raised:
        app(base_url=github.url).fetch(context())
    assert (raised.value.status, raised.value.error_description) == (status, message)
    assert message in str(raised.value)
    assert remedy in str(raised.value)


@pytest.mark.parametrize(
    ("status", "headers", "wait"),
    [
        (429, {"Retry_After": "30"}, 30),
        (403, {"Retry_After": "30"}, 30),
        (403, {"X_RateLimit_Remaining": "0", "X_RateLimit_Reset": "RESET"}, 120),
        (429, {"X_RateLimit_Remaining": "0", "X_RateLimit_Reset": "soon"}, 60),
        (403, {}, 60),
        (429, {}, 60),
    ],
    ids=["429-after", "403-after", "403-reset", "429-odd-reset", "403-words", "429-bare"],
)
def test_a_rate_limit_is_waited_for(github: GitHub, status: int, headers: dict[str, str], wait: float) -> None:
    """INV-7: a rate limit, also with status 403, is not a rejection, and names the instant when it ends."""
    now = time.time()
    shown = {name: str(int(now + 120)) if value == "RESET" else value for name, value in headers.items()}
    told = "You have exceeded a secondary rate limit." if status == 403 and not headers else "Slow down."
    github.refuse(status, told, **shown)
    with pytest.raises(ProviderUnavailable) as raised:
        app(base_url=github.url).fetch(context())
    assert raised.value.status == status
    assert raised.value.retry_at == pytest.approx(now + wait, abs=5)
    assert "limits how often" in str(raised.value)


def test_a_distant_reset_is_retried_within_five_minutes(github: GitHub) -> None:
    """A reset in an hour is asked about again within five minutes; a past reset causes no wait."""
    for reset, wait in ((3600, 300), (-3600, 0)):
        at = str(int(time.time() + reset))
        github.refuse(403, "API rate limit exceeded", X_RateLimit_Remaining="0", X_RateLimit_Reset=at)
        with pytest.raises(ProviderUnavailable) as raised:
            app(base_url=github.url).fetch(context())
        assert raised.value.retry_at == pytest.approx(time.time() + wait, abs=5)


@pytest.mark.parametrize(
    "reply",
    [Reply(502, b"<html>"), Reply(201, b"{}"), Reply(201, b"[]"), Reply(200, b'{"token": 5}'), Reply(418, b"")],
    ids=["gateway", "no-token", "no-object", "odd-token", "odd-status"],
)
def test_an_invalid_answer_is_tried_again(github: GitHub, reply: Reply) -> None:
    """A gateway's page and an answer without a token are not rejections."""
    github.reply = reply
    with pytest.raises(ProviderUnavailable):
        app(base_url=github.url).fetch(context())


def test_a_refusal_without_json_is_a_rejection(github: GitHub) -> None:
    """A 404 without JSON, as from a wrong base_url, is a rejection with its remedy."""
    github.reply = Reply(404, b"<html>nothing here</html>")
    with pytest.raises(ProviderRejected, match="check installation_id") as raised:
        app(base_url=github.url).fetch(context())
    assert raised.value.error_description is None


def test_an_echoed_signature_is_hidden(github: GitHub) -> None:
    """INV-9: neither the app's signature nor its key appears in a message or a repr."""
    provider = app(base_url=github.url)
    provider.fetch(context())
    assert PEM.splitlines()[1] not in repr(provider)
    answer = github._answer

    async def echo(asked: Asked) -> Reply:
        await answer(asked)
        github.refuse(401, f"bad {github.assertion}")
        assert github.reply is not None
        return github.reply

    github._server._handler = echo
    with pytest.raises(ProviderRejected) as raised:
        provider.fetch(context())
    assert github.assertion not in str(raised.value)
    assert "<hidden>" in str(raised.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"app_id": " "}, "app_id must not be empty"),
        ({"private_key": ""}, "private_key must not be empty"),
        ({"private_key": "secret-planted"}, "private_key is not a PEM private key"),
        ({"private_key": pem(ec.generate_private_key(ec.SECP256R1()))}, "does not fit the key"),
        ({"installation_id": "../1"}, "installation_id must be a whole number"),
        ({"repository_ids": ["hello"]}, "repository_ids must be a whole number"),
        ({"repositories": ["octocat/hello"]}, "names without their owner"),
        ({"base_url": "http://github.shop.example"}, "base_url must begin with https://"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], said: str) -> None:
    """The message names the setting, and does not show the key."""
    with pytest.raises(ConfigurationError) as raised:
        app(**settings)
    assert said in str(raised.value)
    assert "planted" not in str(raised.value)


def test_a_source_shares_one_login(github: GitHub) -> None:
    """INV-2: a cache gives all callers one token; another set of permissions has its own."""
    with TokenCache("memory://") as cache:
        reader = cache.source(app(base_url=github.url, permissions={"contents": "read"}))
        again = cache.source(app(base_url=github.url, permissions={"contents": "read"}))
        writer = cache.source(app(base_url=github.url, permissions={"contents": "write"}))
        assert reader.token().value == again.token().value == "ghs_1"
        assert writer.token().value == "ghs_2"
        assert reader.issuer == github.url


def test_a_refused_time_is_tried_once_with_the_date_of_github(github: GitHub) -> None:
    """A host whose clock is wrong by hours still gets a token, with a warning."""
    date, warnings = formatdate(time.time() + 7200, usegmt=True), list[str]()
    github.refuse(401, "'Expiration time' claim ('exp') is too far in the future", Date=date)
    told = FetchContext(None, time.monotonic() + 30, "cold", time.monotonic, warnings.append)
    with pytest.raises(ProviderRejected):
        app(base_url=github.url).fetch(told)
    claims = [
        jwt.decode(asked.headers["authorization"][7:], options={"verify_signature": False}) for asked in github.asked
    ]
    assert [round((each["iat"] - time.time()) / 60) for each in claims] == [-1, 119]
    assert warnings == ["GitHub refused the time of the assertion; asking once more with GitHub's Date"]


def test_http_is_for_loopback_unless_it_is_allowed() -> None:
    """An Enterprise Server inside a mesh may be reached by http."""
    with pytest.raises(ConfigurationError, match="allow_http"):
        app(base_url="http://ghe.mesh/api/v3")
    assert app(base_url="http://ghe.mesh/api/v3", allow_http=True)
