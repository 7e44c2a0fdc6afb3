"""The grants of OAuth 2.0: the request, the identity, and how answers are read."""
# ruff: noqa: ANN401 - settings and answers of any kind

from __future__ import annotations

import json
import os
import time
from base64 import b64decode
from email.utils import formatdate
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from trustme import CA

from tokencache import Token
from tokencache._keys import fingerprint
from tokencache.errors import ConfigurationError, ProviderRejected, ProviderUnavailable
from tokencache.ports import FetchContext, Secret
from tokencache.providers._jose import lifespan
from tokencache.providers.oauth2 import (
    ClientCredentials,
    CustomGrant,
    JWTBearer,
    OAuth2Provider,
    Password,
    RefreshToken,
    TokenExchange,
)

if TYPE_CHECKING:
    from pathlib import Path

URL = "https://id.example/token"
SECRET = "s3cret:+ /ü-planted"
ANSWER = {"access_token": "tok", "expires_in": 3600, "token_type": "bearer"}


class Server:
    """A token endpoint in memory: it records requests and answers from a list; the last answer is repeated."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers or [ANSWER])
        self.requests: list[httpx.Request] = []
        self.client = httpx.Client(transport=httpx.MockTransport(self.answer))

    def answer(self, request: httpx.Request) -> httpx.Response:
        """Keep the request and give the next answer: a mapping, or a status with one."""
        self.requests.append(request)
        given = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        status, body, *headers = given if isinstance(given, tuple) else (200, given)
        return httpx.Response(status, json=body, headers=headers[0] if headers else None)

    @property
    def form(self) -> dict[str, list[str]]:
        """Return the form of the last request."""
        return parse_qs(self.requests[-1].content.decode())


def context(previous: Token | None = None, reason: Any = "cold", warnings: list[str] | None = None) -> FetchContext:
    """Return the context of a fetch."""
    warn = warnings.append if warnings is not None else (lambda _: None)
    return FetchContext(previous, time.monotonic() + 30, reason, time.monotonic, warn)


def fetch(kind: type[OAuth2Provider], server: Server, previous: Token | None = None, **options: Any) -> Token:
    """Fetch once with a provider of this kind."""
    options.setdefault("token_url", URL)
    return kind(client=server.client, **options).fetch(context(previous))


def held(refresh_token: str | None, ends: float | None = None) -> Token:
    """Return a token that came with a refresh token."""
    now = time.time()
    return Token("old", expires_at=now + 60, issued_at=now, refresh_token=refresh_token, refresh_expires_at=ends)


def pem(key: Any) -> str:
    """Return a private key as PEM."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


RSA = rsa.generate_private_key(65537, 2048)


# --- grants -----------------------------------------------------------------------------------------------------


def test_client_credentials_send_scope_audience_resources_and_parameters() -> None:
    """Every setting is in the form, at every fetch (RFC 6749 section 4.4, RFC 8707)."""
    server = Server()
    provider = ClientCredentials(
        token_url=URL,
        client_id="abc",
        client_secret=SECRET,
        scope="read write",
        audience="https://api.example",
        resource=["urn:a", "urn:b"],
        parameters={"tenant": "7"},
        headers={"X-Tenant": "7"},
        client=server.client,
    )
    for _ in range(2):
        token = provider.fetch(context())
        assert server.form == {
            "grant_type": ["client_credentials"],
            "scope": ["read write"],
            "audience": ["https://api.example"],
            "resource": ["urn:a", "urn:b"],
            "tenant": ["7"],
        }
        assert server.requests[-1].headers["X-Tenant"] == "7"
    assert token.scope == "read write"  # RFC 6749 section 5.1: the scope may be left out if it is the requested one


def test_json_can_replace_the_form() -> None:
    """``encoding="json"`` sends the same fields as an object."""
    server = Server()
    fetch(
        ClientCredentials, server, client_id="abc", client_secret="s", encoding="json", client_auth="client_secret_post"
    )
    assert json.loads(server.requests[-1].content) == {
        "grant_type": "client_credentials",
        "client_id": "abc",
        "client_secret": "s",
    }


def test_a_password_is_sent_with_its_user() -> None:
    """The grant is RFC 6749 section 4.3."""
    server = Server()
    fetch(Password, server, client_id="abc", username="u", password="p")
    assert server.form == {"grant_type": ["password"], "username": ["u"], "password": ["p"], "client_id": ["abc"]}


def test_a_custom_grant_has_its_own_type_and_parameters() -> None:
    """Zoom's account credentials consist of a grant type and an account."""
    server = Server()
    fetch(
        CustomGrant,
        server,
        grant_type="account_credentials",
        client_id="abc",
        client_secret="s",
        parameters={"account_id": "9"},
    )
    assert server.form == {"grant_type": ["account_credentials"], "account_id": ["9"]}


def test_an_assertion_names_issuer_subject_and_audience() -> None:
    """RFC 7523 section 3: signed by the key, for this endpoint, new each time; Google wants the scope inside."""
    server = Server()
    options: dict[str, Any] = {
        "private_key": pem(RSA),
        "key_id": "k1",
        "assertion_issuer": "robot@example",
        "subject": "user@example",
        "scope": "a b",
        "scope_in_assertion": True,
        "claims": {"extra": "1"},
    }
    seen = []
    for _ in range(2):
        fetch(JWTBearer, server, **options)
        assertion = server.form["assertion"][0]
        claims = jwt.decode(assertion, RSA.public_key(), algorithms=["RS256"], audience=URL)
        assert claims["iss"] == "robot@example"
        assert claims["sub"] == "user@example"
        assert claims["scope"] == "a b"
        assert claims["extra"] == "1"
        assert jwt.get_unverified_header(assertion)["kid"] == "k1"
        seen.append(claims["jti"])
    assert seen[0] != seen[1]
    assert server.form["grant_type"] == ["urn:ietf:params:oauth:grant-type:jwt-bearer"]


def test_tokens_are_exchanged(tmp_path: Path) -> None:
    """RFC 8693: subject and actor have types; a file is read at each fetch, since platforms replace it."""
    server = Server()
    file = tmp_path / "token"
    file.write_text("first\n")
    provider = TokenExchange(
        token_url=URL,
        client_id="abc",
        subject_token_file=str(file),
        actor_token="act",
        requested_token_type="urn:x",
        client=server.client,
    )
    provider.fetch(context())
    assert server.form["subject_token"] == ["first"]
    assert server.form["subject_token_type"] == ["urn:ietf:params:oauth:token-type:jwt"]
    assert server.form["actor_token"] == ["act"]
    assert server.form["actor_token_type"] == ["urn:ietf:params:oauth:token-type:access_token"]
    assert server.form["requested_token_type"] == ["urn:x"]
    file.write_text("second")
    provider.fetch(context())
    assert server.form["subject_token"] == ["second"]


def test_a_renewed_file_of_the_same_subject_keeps_the_identity(tmp_path: Path) -> None:
    """INV-10: another subject in the file is another identity; a renewed token of the same subject is not."""
    file = tmp_path / "token"

    def identity(**claims: object) -> object:
        file.write_text(jwt.encode(claims, "x" * 32, algorithm="HS256"))
        return TokenExchange(token_url=URL, subject_token_file=str(file)).identity()["credentials"]

    first = identity(iss="i", sub="a", aud="x", iat=1)
    assert identity(iss="i", sub="a", aud="x", iat=2) == first
    assert identity(iss="i", sub="b", aud="x", iat=2) != first
    forged = tmp_path / "forged"
    forged.write_text(jwt.encode({"iss": "i", "sub": "a", "aud": "x"}, "y" * 32, algorithm="HS256"))
    assert TokenExchange(token_url=URL, subject_token_file=str(forged)).identity()["credentials"] != first


@pytest.mark.parametrize("tokens", [{}, {"subject_token": "a", "subject_token_file": "b"}], ids=["none", "both"])
def test_an_exchange_needs_exactly_one_subject(tokens: Any) -> None:
    """Neither or both of the settings is a mistake, and the error names them."""
    with pytest.raises(ConfigurationError, match="subject_token_file"):
        TokenExchange(token_url=URL, **tokens)


# --- refresh tokens ---------------------------------------------------------------------------------------------


def test_the_newest_refresh_token_is_spent() -> None:
    """The configured one is used only at first; an answer without one leaves the last in use (RFC 6749 section 6)."""
    server = Server({**ANSWER, "refresh_token": "r2"}, ANSWER)
    first = fetch(RefreshToken, server, client_id="abc", refresh_token="r1")
    assert server.form["refresh_token"] == ["r1"]
    assert first.refresh_token == "r2"
    second = fetch(RefreshToken, server, first, client_id="abc", refresh_token="r1")
    assert server.form["refresh_token"] == ["r2"]
    assert second.refresh_token == "r2"


def test_an_expired_refresh_token_is_not_sent() -> None:
    """After ``refresh_expires_in`` no request is sent, and the error says what to do."""
    server = Server()
    with pytest.raises(ProviderRejected, match="sign in again"):
        fetch(RefreshToken, server, held("r2", time.time() - 1), client_id="abc", refresh_token="r1")
    assert not server.requests


def test_an_invalid_refresh_token_is_final_without_a_grant() -> None:
    """Without another grant ``invalid_grant`` is final, after one request."""
    server = Server((400, {"error": "invalid_grant"}))
    with pytest.raises(ProviderRejected) as caught:
        fetch(RefreshToken, server, held("r2"), client_id="abc", refresh_token="r1")
    assert caught.value.error == "invalid_grant"
    assert len(server.requests) == 1


def test_an_invalid_refresh_token_falls_back_to_the_grant() -> None:
    """With ``use_refresh`` one fetch tries the refresh token, then the grant, and warns."""
    server = Server((400, {"error": "invalid_grant"}), ANSWER)
    provider = Password(
        token_url=URL, client_id="abc", username="u", password="p", use_refresh=True, client=server.client
    )
    warnings: list[str] = []
    provider.fetch(context(held("r2"), warnings=warnings))
    assert [parse_qs(each.content.decode())["grant_type"] for each in server.requests] == [
        ["refresh_token"],
        ["password"],
    ]
    assert len(warnings) == 1
    assert "r2" not in warnings[0]


def test_wrong_credentials_do_not_fall_back() -> None:
    """``invalid_client`` would fail again, so one request is sent."""
    server = Server((401, {"error": "invalid_client"}))
    with pytest.raises(ProviderRejected):
        fetch(Password, server, held("r2"), client_id="abc", username="u", password="p", use_refresh=True)
    assert len(server.requests) == 1


def test_a_refresh_token_is_not_used_by_default() -> None:
    """Client credentials do not need one (RFC 6749 section 4.4.3)."""
    server = Server()
    fetch(ClientCredentials, server, held("r2"), client_id="abc", client_secret="s")
    assert server.form["grant_type"] == ["client_credentials"]


# --- client authentication --------------------------------------------------------------------------------------


def test_a_secret_is_encoded_in_the_header() -> None:
    """RFC 6749 section 2.3.1: both parts are form-encoded, then joined for Basic."""
    server = Server()
    fetch(ClientCredentials, server, client_id="a:b", client_secret=SECRET)
    pair = b64decode(server.requests[-1].headers["Authorization"].removeprefix("Basic ")).decode()
    assert pair == "a%3Ab:s3cret%3A%2B+%2F%C3%BC-planted"
    assert "client_id" not in server.form


@pytest.mark.parametrize(
    ("key", "algorithm"),
    [
        pytest.param(RSA, "RS256", id="rsa"),
        pytest.param(ec.generate_private_key(ec.SECP256R1()), "ES256", id="p256"),
        pytest.param(ec.generate_private_key(ec.SECP384R1()), "ES384", id="p384"),
        pytest.param(ed25519.Ed25519PrivateKey.generate(), "EdDSA", id="ed25519"),
    ],
)
def test_a_private_key_signs_the_assertion(key: Any, algorithm: str) -> None:
    """RFC 7523 section 2.2: the algorithm suits the key; a variable may hold line ends as escaped text."""
    server = Server()
    for text in (pem(key), pem(key).strip().replace("\n", "\\n")):
        fetch(ClientCredentials, server, client_id="abc", private_key=text)
        assertion = server.form["client_assertion"][0]
        claims = jwt.decode(assertion, key.public_key(), algorithms=[algorithm], audience=URL)
        assert claims["iss"] == claims["sub"] == "abc"
        assert claims["exp"] - claims["iat"] <= 300
        assert server.form["client_assertion_type"] == ["urn:ietf:params:oauth:client-assertion-type:jwt-bearer"]


def test_a_shared_secret_signs_the_assertion() -> None:
    """``client_secret_jwt`` sends an HMAC and not the secret."""
    server = Server()
    fetch(ClientCredentials, server, client_id="abc", client_secret="x" * 40, client_auth="client_secret_jwt")
    jwt.decode(server.form["client_assertion"][0], "x" * 40, algorithms=["HS256"], audience=URL)
    assert b"x" * 40 not in server.requests[-1].content


def test_an_assertion_may_be_read_from_a_file(tmp_path: Path) -> None:
    """A platform's assertion is read at each fetch."""
    server, file = Server(), tmp_path / "assertion"
    file.write_text("eyJ.a.b\n")
    fetch(ClientCredentials, server, client_id="abc", client_assertion_file=str(file))
    assert server.form["client_assertion"] == ["eyJ.a.b"]
    file.write_text("")
    with pytest.raises(ConfigurationError, match="empty"):
        fetch(ClientCredentials, server, client_id="abc", client_assertion_file=str(file))


@pytest.mark.parametrize("setting", ["client_assertion_file", "certificate", "certificate_key", "ca_file"])
def test_a_pipe_in_place_of_a_file_is_refused(setting: str, tmp_path: Path) -> None:
    """Nothing waits for a writer of a FIFO, neither at the start nor at a fetch (INV-8)."""
    issued = CA().issue_cert("client.example")
    good = {"certificate": tmp_path / "cert.pem", "certificate_key": tmp_path / "key.pem"}
    issued.cert_chain_pems[0].write_to_path(good["certificate"])
    issued.private_key_pem.write_to_path(good["certificate_key"])
    options: dict[str, Any] = {} if setting == "client_assertion_file" else {k: str(v) for k, v in good.items()}
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ConfigurationError, match=r"not a regular file|cannot be used"):
        fetch(ClientCredentials, Server(), **options | {"client_id": "abc", setting: str(tmp_path / "fifo")})


def test_a_certificate_is_part_of_the_identity(tmp_path: Path) -> None:
    """RFC 8705: the form has only the id; another certificate is another identity (INV-10)."""
    prints = []
    for name in ("one", "two"):
        issued = CA().issue_cert("client.example")
        cert, key = tmp_path / f"{name}.pem", tmp_path / f"{name}.key"
        issued.cert_chain_pems[0].write_to_path(cert)
        issued.private_key_pem.write_to_path(key)
        server = Server()
        options: dict[str, Any] = {"client_id": "abc", "certificate": str(cert), "certificate_key": str(key)}
        fetch(ClientCredentials, server, **options)
        assert server.form == {"grant_type": ["client_credentials"], "client_id": ["abc"]}
        provider = ClientCredentials(token_url=URL, **options)
        prints.append(fingerprint(provider.name, provider.identity()))
    assert prints[0] != prints[1]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        pytest.param({"client_auth": "magic"}, "client_secret_basic", id="method"),
        pytest.param({"client_id": "a", "client_auth": "client_secret_post"}, "client_secret", id="no secret"),
        pytest.param({"client_id": "a", "private_key": "planted-key"}, "private_key", id="no key"),
        pytest.param(
            {"client_id": "a", "private_key": pem(RSA), "algorithm": "ES256"}, "algorithm", id="other algorithm"
        ),
        pytest.param({"client_id": "a", "private_key": pem(RSA), "algorithm": "HS256"}, "algorithm", id="hmac"),
        pytest.param({"client_id": "a", "certificate": "/nonexistent.pem"}, "certificate", id="no file"),
        pytest.param(
            {"client_id": "a", "client_secret": "s", "ca_file": "/nonexistent.pem"}, "ca_file", id="no authority"
        ),
        pytest.param({"client_secrt": "s"}, "did you mean 'client_secret'", id="typing error"),
        pytest.param({"token_url": "http://id.example/token"}, "https://", id="in the clear"),
        pytest.param({"token_url": "https://u:planted-key@id.example"}, "without user", id="userinfo"),
        pytest.param({"token_url": "nonsense"}, "token_url", id="no address"),
    ],
)
def test_settings_that_cannot_work_are_named(options: Any, says: str) -> None:
    """An error for a wrong setting names the setting, and holds no secret."""
    with pytest.raises(ConfigurationError, match=says) as caught:
        ClientCredentials(**{"token_url": URL, **options})
    assert "planted-key" not in str(caught.value)


def test_an_endpoint_is_needed() -> None:
    """Without address and issuer the settings are refused."""
    with pytest.raises(ConfigurationError, match="token_url, or issuer"):
        ClientCredentials(client_id="a", client_secret="s")


# --- identity ---------------------------------------------------------------------------------------------------

BASE: dict[str, Any] = {"token_url": URL, "client_id": "abc", "client_secret": "s", "scope": "a b"}


def key_of(provider: OAuth2Provider) -> str:
    """Return the fingerprint of a provider."""
    return fingerprint(provider.name, provider.identity())


@pytest.mark.parametrize(
    "change",
    [
        {"scope": "a"},
        {"scope": "a b c"},
        {"audience": "x"},
        {"resource": "urn:x"},
        {"parameters": {"tenant": "x"}},
        {"headers": {"X-Tenant": "x"}},
        {"token_url": "https://id.example/other/token"},
        {"issuer": "https://id.example"},
        {"client_id": "other"},
        {"client_secret": "other"},
        {"client_auth": "client_secret_post"},
        {"token_field": "id_token"},
    ],
    ids=str,
)
def test_sources_of_different_requests_never_share(change: Any) -> None:
    """INV-10: scope, audience, resource, parameter, tenant, client and its authentication are in the identity."""
    assert key_of(ClientCredentials(**BASE)) != key_of(ClientCredentials(**{**BASE, **change}))


def test_the_order_of_scopes_does_not_matter() -> None:
    """A scope is a set (RFC 6749 section 3.3)."""
    keys = {key_of(ClientCredentials(**{**BASE, "scope": scope})) for scope in ("a b", "b  a", ["b", "a"], "a b a")}
    assert len(keys) == 1


def test_different_users_never_share() -> None:
    """INV-10: another user, password, refresh token or subject is another identity."""
    who: dict[str, Any] = {"token_url": URL, "client_id": "abc"}
    providers: list[OAuth2Provider] = [
        Password(username="u", password="p", **who),
        Password(username="v", password="p", **who),
        Password(username="u", password="q", **who),
        RefreshToken(refresh_token="r1", **who),
        RefreshToken(refresh_token="r2", **who),
        TokenExchange(subject_token="a", **who),
        TokenExchange(subject_token="b", **who),
        JWTBearer(private_key=pem(RSA), subject="a", **who),
        JWTBearer(private_key=pem(RSA), subject="b", **who),
        CustomGrant(grant_type="a", **who),
        CustomGrant(grant_type="b", **who),
    ]
    assert len({key_of(each) for each in providers}) == len(providers)


def test_no_credential_is_plain_in_the_identity() -> None:
    """INV-9: each value that may be secret is inside one ``Secret``; a public client has none."""
    provider = Password(token_url=URL, client_id="abc", client_secret="s1-planted", username="u", password="p1-planted")
    identity = provider.identity()
    assert isinstance(identity["credentials"], Secret)
    assert "planted" not in repr(identity)
    assert "planted" not in repr(provider)
    assert ClientCredentials(token_url=URL, client_id="abc").identity()["credentials"] is None


# --- answers ----------------------------------------------------------------------------------------------------


def test_the_token_may_be_nested() -> None:
    """``token_field`` leads into objects; the expiry is read beside the token, by the declared names."""
    server = Server({"data": {"token": "deep", "validUntil": int(time.time()) + 500}})
    token = fetch(ClientCredentials, server, client_id="a", token_field="data.token", expiry_fields=["validUntil"])
    assert token.value == "deep"
    assert 400 < token.lifetime <= 501


@pytest.mark.parametrize("field", ["data.token", "id_token"])
def test_the_declared_token_field_is_required(field: str) -> None:
    """A token in another field is not taken instead."""
    with pytest.raises(ProviderUnavailable, match="access_token"):
        fetch(ClientCredentials, Server(ANSWER), client_id="a", token_field=field)


def test_a_declared_lifetime_needs_no_expiry() -> None:
    """If the settings declare a lifetime, an answer without expiry causes no warning."""
    server = Server({"access_token": "t"})
    warnings: list[str] = []
    for options, count in (({}, 1), ({"default_lifetime": 900.0}, 1)):
        provider = ClientCredentials(token_url=URL, client_id="a", client=server.client, **options)  # type: ignore[arg-type]
        token = provider.fetch(context(warnings=warnings))
        assert len(warnings) == count
    assert token.lifetime == pytest.approx(900)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param({**ANSWER, "token_type": "DPoP"}, id="type"),
        pytest.param({**ANSWER, "access_token": jwt.encode({"cnf": {"jkt": "k"}}, "x" * 32)}, id="key"),
        pytest.param({**ANSWER, "access_token": jwt.encode({"cnf": {"x5t#S256": "k"}}, "x" * 32)}, id="certificate"),
    ],
)
def test_a_token_that_is_bound_to_an_unknown_key_is_refused(answer: Any) -> None:
    """INV-10: a process without the key cannot use the token (RFC 8705, RFC 9449)."""
    with pytest.raises(ProviderRejected, match="bound to"):
        fetch(ClientCredentials, Server(answer), client_id="a")


def test_an_echoed_secret_is_hidden() -> None:
    """INV-9: if a server repeats the request, no secret gets into an error."""
    said = f"client abc with {SECRET} and pa-planted-1 and u-planted-22"
    server = Server((401, {"error": "invalid_client", "error_description": said}))
    with pytest.raises(ProviderRejected) as caught:
        fetch(
            Password,
            server,
            client_id="abc",
            client_secret=SECRET,
            username="u",
            password="pa-planted-1",
            parameters={"p": "u-planted-22"},
        )
    assert "planted" not in str(caught.value)
    assert caught.value.error == "invalid_client"


# --- discovery --------------------------------------------------------------------------------------------------

ISSUER = "https://id.example/tenant"
METADATA = {"issuer": ISSUER, "token_endpoint": "https://tokens.example/t"}


def asked(server: Server) -> list[str]:
    """Return the requested addresses."""
    return [str(each.url) for each in server.requests]


def test_an_issuers_metadata_is_read_once() -> None:
    """The endpoint comes from OpenID Connect Discovery; the issuer is the audience of assertions."""
    server = Server(METADATA, ANSWER)
    provider = ClientCredentials(issuer=ISSUER, client_id="abc", private_key=pem(RSA), client=server.client)
    provider.fetch(context())
    jwt.decode(server.form["client_assertion"][0], RSA.public_key(), algorithms=["RS256"], audience=ISSUER)
    provider.fetch(context())
    token_url = METADATA["token_endpoint"]
    assert asked(server) == [f"{ISSUER}/.well-known/openid-configuration", token_url, token_url]


def test_the_other_well_known_address_is_tried() -> None:
    """RFC 8414 section 3.1 puts the path after the well-known name."""
    server = Server((404, {}), METADATA, ANSWER)
    fetch(ClientCredentials, server, token_url=None, issuer=ISSUER, client_id="abc")
    assert asked(server)[1] == "https://id.example/.well-known/oauth-authorization-server/tenant"


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        pytest.param([{**METADATA, "issuer": "https://evil.example"}], "another issuer", id="issuer"),
        pytest.param([{**METADATA, "token_endpoint": "http://id.example/t"}], "https://", id="in the clear"),
        pytest.param([{"issuer": ISSUER}], "token_endpoint", id="no endpoint"),
        pytest.param([(404, {})], "set token_url", id="none"),
        pytest.param([(503, {})], "503", id="busy"),
    ],
)
def test_unusable_metadata_is_reported(answers: Any, says: str) -> None:
    """The check is RFC 8414 section 3.3; the server may be mended, so the error is not permanent."""
    with pytest.raises(ProviderUnavailable, match=says):
        fetch(ClientCredentials, Server(*answers), token_url=None, issuer=ISSUER, client_id="abc")


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error holds the install command."""
    monkeypatch.setitem(__import__("sys").modules, "jwt", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'tokencache\[jose\]'"):
        ClientCredentials(token_url=URL, client_id="abc", private_key=pem(RSA))


# --- the time of assertions -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("lifetime", "begin", "end"), [(3600, -60, 3540), (180, -60, 120), (60, -30, 30), (1, 0, 1)])
def test_an_assertion_begins_up_to_a_minute_ago(lifetime: int, begin: int, end: int) -> None:
    """A clock that is fast by some seconds does no harm, and the server's limit of the lifetime holds by its clock."""
    assert lifespan(1000.7, lifetime) == {"iat": 1000 + begin, "nbf": 1000 + begin, "exp": 1000 + end}


def claims_of_last(server: Server, field: str) -> dict[str, Any]:
    """Return the claims of the assertion in the last request."""
    options = {"verify_exp": False, "verify_iat": False, "verify_nbf": False}
    return jwt.decode(server.form[field][0], RSA.public_key(), algorithms=["RS256"], audience=URL, options=options)


@pytest.mark.parametrize(
    ("kind", "options", "field"),
    [
        (ClientCredentials, {"client_id": "abc"}, "client_assertion"),
        (JWTBearer, {"assertion_issuer": "abc"}, "assertion"),
    ],
)
@pytest.mark.parametrize("said", ["exp claim is in the past", "Token used too early", "check your iat and exp values"])
@pytest.mark.parametrize("ahead", [-7200, 7200])
def test_a_refused_time_is_tried_once_with_the_server_s_date(
    kind: type[OAuth2Provider], options: dict[str, Any], field: str, said: str, ahead: int
) -> None:
    """A host whose clock is wrong by hours still gets a token, with a warning."""
    now, warnings = int(time.time()), list[str]()
    date = formatdate(now + ahead, usegmt=True)
    server = Server((400, {"error": "invalid_grant", "error_description": said}, {"Date": date}), (200, ANSWER))
    provider = kind(client=server.client, token_url=URL, private_key=pem(RSA), **options)
    assert provider.fetch(context(warnings=warnings)).value == "tok"
    assert claims_of_last(server, field)["iat"] == now + ahead - 60
    assert [text for text in warnings if "time of the assertion" in text]


@pytest.mark.parametrize(
    ("said", "ahead", "options"),
    [
        ("no such client", 7200, {"private_key": pem(RSA)}),
        ("exp claim is in the past", 0, {"private_key": pem(RSA)}),
        ("the secret has expired", 7200, {"client_secret": SECRET}),
    ],
    ids=["another reason", "clocks agree", "nothing was signed"],
)
def test_other_refusals_are_not_tried_again(said: str, ahead: int, options: dict[str, Any]) -> None:
    """INV-7: a refusal for another reason costs one request."""
    date = formatdate(time.time() + ahead, usegmt=True)
    server = Server((400, {"error": "invalid_client", "error_description": said}, {"Date": date}))
    with pytest.raises(ProviderRejected, match=said):
        fetch(ClientCredentials, server, client_id="abc", **options)
    assert len(server.requests) == 1


def test_a_time_that_is_refused_twice_is_an_error() -> None:
    """There is one more request, not a loop."""
    date = formatdate(time.time() + 7200, usegmt=True)
    server = Server((400, {"error": "invalid_client", "error_description": "exp"}, {"Date": date}))
    with pytest.raises(ProviderRejected):
        fetch(ClientCredentials, server, client_id="abc", private_key=pem(RSA))
    assert len(server.requests) == 2


# --- answers of other shapes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "token_field", "expiry_field"),
    [
        ({"data": {"token": "t", "ttl": {"seconds": 90}}}, "data.token", "data.ttl.seconds"),
        ({"data": {"token": "t", "ttl": 90}}, "data.token", "ttl"),
        ({"data": {"token": "t"}, "meta": {"expires": 90}}, "data.token", "meta.expires"),
        ({"access_token": "t", "session": {"expires": 90}}, "access_token", "session.expires"),
    ],
)
def test_token_and_expiry_may_lie_in_nested_objects(
    answer: dict[str, Any], token_field: str, expiry_field: str
) -> None:
    """Dots lead into objects, for the expiry as for the token, from the top or from beside the token."""
    options = {"client_id": "a", "client_secret": "s", "token_field": token_field, "expiry_fields": [expiry_field]}
    token = fetch(ClientCredentials, Server(answer), **options)
    assert (token.value, token.lifetime) == ("t", pytest.approx(90, abs=1))


def test_longest_lifetime_limits_an_api_that_counts_milliseconds() -> None:
    """3,600,000 "seconds" of an API that counts milliseconds are cut to the setting."""
    options = {"client_id": "a", "client_secret": "s", "longest_lifetime": 3600.0}
    token = fetch(ClientCredentials, Server({**ANSWER, "expires_in": 3_600_000}), **options)
    assert token.lifetime == pytest.approx(3600, abs=1)


def test_the_scheme_may_be_set() -> None:
    """A server names one scheme, its API wants another; the setting decides and is part of the identity."""
    options = {"client_id": "a", "client_secret": "s"}
    token = fetch(ClientCredentials, Server({**ANSWER, "token_type": "jwt"}), token_type="Token", **options)
    assert token.authorization == "Token tok"
    plain, named = (ClientCredentials(token_url=URL, **options, **more) for more in ({}, {"token_type": "Token"}))
    assert plain.identity() != named.identity()


@pytest.mark.parametrize("method", ["client_secret_basic", "client_secret_post"])
def test_a_refused_client_learns_of_the_other_way_to_send_the_secret(method: str) -> None:
    """Some servers do not accept Basic, and say invalid_client."""
    server = Server((401, {"error": "invalid_client"}))
    with pytest.raises(ProviderRejected) as caught:
        fetch(ClientCredentials, server, client_id="a", client_secret="s", client_auth=method)
    assert ("client_secret_post" in str(caught.value)) is (method == "client_secret_basic")


def test_an_empty_grant_type_is_not_sent() -> None:
    """An API that only resembles OAuth gets no grant_type field."""
    server = Server()
    fetch(CustomGrant, server, grant_type="", client_id="a", parameters={"api_key": "k"})
    assert server.form == {"api_key": ["k"], "client_id": ["a"]}


# --- http:// ----------------------------------------------------------------------------------------------------


def test_http_is_refused_unless_it_is_allowed() -> None:
    """Inside a mesh the network encrypts; then a named switch accepts http."""
    options = {"token_url": "http://id.mesh:8080/token", "client_id": "a", "client_secret": "s"}
    with pytest.raises(ConfigurationError, match="set allow_http=true"):
        ClientCredentials(**options)
    server = Server()
    assert ClientCredentials(**options, allow_http=True, client=server.client).fetch(context()).value == "tok"
    assert str(server.requests[0].url) == "http://id.mesh:8080/token"


@pytest.mark.parametrize("allowed", [True, False])
def test_the_metadata_s_endpoint_follows_the_same_rule(allowed: bool) -> None:
    """An https issuer that names an http endpoint is refused, unless http is allowed."""
    metadata = {"issuer": "https://id.example", "token_endpoint": "http://id.mesh/token"}
    server = Server(metadata, ANSWER)
    provider = ClientCredentials(
        issuer="https://id.example", client_id="a", client_secret="s", allow_http=allowed, client=server.client
    )
    if allowed:
        assert provider.fetch(context()).value == "tok"
        return
    with pytest.raises(ProviderUnavailable, match="token_endpoint must begin with https"):
        provider.fetch(context())


@pytest.mark.parametrize("host", ["localhost", "id.localhost", "127.0.0.1", "[::1]"])
def test_names_under_localhost_are_loopback(host: str) -> None:
    """RFC 6761 section 6.3: each name under localhost is this machine."""
    assert ClientCredentials(token_url=f"http://{host}:9/token", client_id="a", client_secret="s").name


def test_a_name_that_only_ends_like_localhost_is_not_loopback() -> None:
    """evil-localhost is another host."""
    with pytest.raises(ConfigurationError, match="https"):
        ClientCredentials(token_url="http://evil-localhost/token", client_id="a", client_secret="s")


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9/steal", "http://localhost/steal"])
def test_an_https_issuer_cannot_name_an_http_endpoint_on_loopback(endpoint: str) -> None:
    """Another program on this host may listen there; https was asked for."""
    server = Server({"issuer": "https://id.example", "token_endpoint": endpoint})
    provider = ClientCredentials(issuer="https://id.example", client_id="a", client_secret="s", client=server.client)
    with pytest.raises(ProviderUnavailable, match="token_endpoint must begin with https"):
        provider.fetch(context())


def test_a_throttled_assertion_is_not_tried_again_at_once() -> None:
    """INV-7: a 429 may speak of time, too; it is not a refusal of the assertion."""
    date = formatdate(time.time() + 7200, usegmt=True)
    server = Server((429, {"error": "slow_down", "error_description": "try again some time later"}, {"Date": date}))
    with pytest.raises(ProviderUnavailable):
        fetch(ClientCredentials, server, client_id="abc", private_key=pem(RSA))
    assert len(server.requests) == 1
