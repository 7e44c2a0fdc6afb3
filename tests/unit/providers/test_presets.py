"""The presets: each with a fake of its documented answer on loopback, its settings, its sources, its page.

`python tests/unit/providers/test_presets.py` writes docs/presets.md anew.
"""

from __future__ import annotations

import json
import time
from base64 import b64encode
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from typer.testing import CliRunner

from tokencache._keys import quick_fingerprint
from tokencache.cli.app import app
from tokencache.errors import ConfigurationError
from tokencache.ports import FetchContext
from tokencache.providers import presets as module
from tokencache.providers.presets import Preset, preset, preset_settings, presets
from tokencache.testing.loopback import Asked, LoopbackServer, Reply

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PAGE = Path(__file__).parents[3] / "docs" / "presets.md"
SECRET = "planted-Secret~1"
KEY = rsa.generate_private_key(65537, 2048)
PEM = KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"
FACTS = {"endpoint", "grant", "client_auth", "lifetime"}
NOTHING_TO_SHARE = {("google_service_account", "private_key_id")}  # the token is the same, whichever key signed


@dataclass(frozen=True)
class Case:
    """An API's documentation: its endpoint, what it expects beside the client's proof, and its answer."""

    url: str
    proof: str
    form: Mapping[str, str]
    answer: Mapping[str, object]
    lifetime: float
    extra: Mapping[str, object] = field(default_factory=dict)
    scope: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    claims: Mapping[str, str] = field(default_factory=dict)


CREDENTIALS = {"grant_type": "client_credentials"}
SALESFORCE = {
    "signature": "s1gn",
    "instance_url": "https://shop.my.salesforce.com",
    "id": "https://login.salesforce.com/id/00D/005",
    "issued_at": "1700000000000",
}
BEARER = {"access_token": "tok", "token_type": "Bearer"}
CASES = {
    "amadeus": Case(
        "https://test.api.amadeus.com/v1/security/oauth2/token",
        "post",
        CREDENTIALS,
        BEARER | {"type": "amadeusOAuth2Token", "username": "u", "expires_in": 1799, "state": "approved", "scope": ""},
        1799,
        {"type": "amadeusOAuth2Token", "username": "u", "state": "approved"},
    ),
    "auth0": Case(
        "https://shop.eu.auth0.com/oauth/token",
        "post",
        CREDENTIALS | {"audience": "https://api.shop.example"},
        BEARER | {"expires_in": 86400},
        86400,
    ),
    "cognito": Case(
        "https://shop.auth.eu-central-1.amazoncognito.com/oauth2/token",
        "basic",
        CREDENTIALS | {"scope": "orders/read"},
        BEARER | {"expires_in": 3600},
        3600,
        scope="orders/read",
    ),
    "entra": Case(
        "https://login.microsoftonline.com/contoso.onmicrosoft.com/oauth2/v2.0/token",
        "post",
        CREDENTIALS | {"scope": "https://graph.microsoft.com/.default"},
        BEARER | {"expires_in": 3599, "ext_expires_in": 3599},
        3599,
        {"ext_expires_in": 3599},
        "https://graph.microsoft.com/.default",
    ),
    "fedex": Case(
        "https://apis-sandbox.fedex.com/oauth/token",
        "post",
        CREDENTIALS,
        {"access_token": "tok", "token_type": "bearer", "expires_in": 3599, "scope": "CXS-TP"},
        3599,
        scope="CXS-TP",
    ),
    "github_app": Case(
        "https://api.github.com/app/installations/12345678/access_tokens",
        "app",
        {},
        {"token": "tok", "expires_at": "", "permissions": {"contents": "read"}, "repository_selection": "all"},
        3600,
        {"permissions": {"contents": "read"}, "repository_selection": "all"},
        headers={"accept": "application/vnd.github+json", "x-github-api-version": "2022-11-28"},
    ),
    "google_service_account": Case(
        "https://oauth2.googleapis.com/token",
        "assertion",
        {"grant_type": JWT_BEARER},
        BEARER | {"expires_in": 3599, "scope": "https://www.googleapis.com/auth/devstorage.read_only"},
        3599,
        scope="https://www.googleapis.com/auth/devstorage.read_only",
        claims={
            "iss": "client_email@shop.example",
            "aud": "https://oauth2.googleapis.com/token",
            "scope": "https://www.googleapis.com/auth/devstorage.read_only",
        },
    ),
    "keycloak": Case(
        "https://sso.shop.example/realms/shop/protocol/openid-connect/token",
        "basic",
        CREDENTIALS,
        BEARER | {"expires_in": 300, "refresh_expires_in": 0, "not-before-policy": 0, "scope": "email profile"},
        300,
        {"not-before-policy": 0},
        "email profile",
    ),
    "okta": Case(
        "https://shop.okta.com/oauth2/default/v1/token",
        "basic",
        CREDENTIALS | {"scope": "orders.read"},
        BEARER | {"expires_in": 3600, "scope": "orders.read"},
        3600,
        scope="orders.read",
    ),
    "okta_org": Case(
        "https://shop.okta.com/oauth2/v1/token",
        "jwt",
        CREDENTIALS | {"scope": "okta.users.read"},
        BEARER | {"expires_in": 3600, "scope": "okta.users.read"},
        3600,
        scope="okta.users.read",
        claims={"iss": "abc", "sub": "abc", "aud": "https://shop.okta.com/oauth2/v1/token"},
    ),
    "paypal": Case(
        "https://api-m.sandbox.paypal.com/v1/oauth2/token",
        "basic",
        CREDENTIALS,
        BEARER | {"scope": "https://uri.paypal.com/services/a", "app_id": "APP-1", "expires_in": 31668, "nonce": "n"},
        31668,
        {"app_id": "APP-1", "nonce": "n"},
        "https://uri.paypal.com/services/a",
    ),
    "reddit": Case(
        "https://www.reddit.com/api/v1/access_token",
        "basic",
        CREDENTIALS,
        {"access_token": "tok", "token_type": "bearer", "expires_in": 86400, "scope": "*"},
        86400,
        scope="*",
        headers={"user-agent": "linux:shop-trends:1.0 (by /u/shop)"},
    ),
    "salesforce": Case(
        "https://shop.my.salesforce.com/services/oauth2/token",
        "post",
        CREDENTIALS,
        BEARER | SALESFORCE | {"scope": "api"},
        900,
        SALESFORCE,
        "api",
    ),
    "salesforce_jwt": Case(
        "https://test.salesforce.com/services/oauth2/token",
        "assertion",
        {"grant_type": JWT_BEARER},
        BEARER | SALESFORCE | {"scope": "api"},
        900,
        SALESFORCE,
        "api",
        claims={"iss": "abc", "sub": "robot@shop.example", "aud": "https://test.salesforce.com"},
    ),
    "spotify": Case(
        "https://accounts.spotify.com/api/token", "basic", CREDENTIALS, BEARER | {"expires_in": 3600}, 3600
    ),
    "twitch": Case(
        "https://id.twitch.tv/oauth2/token",
        "post",
        CREDENTIALS,
        {"access_token": "tok", "token_type": "bearer", "expires_in": 5011271, "scope": ["bits:read", "clips:edit"]},
        5011271,
        scope="bits:read clips:edit",
    ),
    "ups": Case(
        "https://wwwcie.ups.com/security/v1/oauth/token",
        "basic",
        CREDENTIALS,
        BEARER | {"issued_at": "1700000000000", "client_id": "abc", "expires_in": "14399", "status": "approved"},
        14399,
        {"issued_at": "1700000000000", "client_id": "abc", "status": "approved"},
    ),
    "zoom": Case(
        "https://zoom.us/oauth/token",
        "basic",
        {"grant_type": "account_credentials", "account_id": "AbCdEf"},
        {"access_token": "tok", "token_type": "bearer", "expires_in": 3600, "scope": "meeting:read:admin"},
        3600,
        scope="meeting:read:admin",
    ),
}


class Endpoint:
    """A fake API on loopback: it records requests and gives one answer."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.answer: Mapping[str, object] = {}
        self._server = LoopbackServer(self._reply)
        self._server.start()
        self.url = f"http://127.0.0.1:{self._server.port}"
        self.close = self._server.stop

    async def _reply(self, asked: Asked) -> Reply:
        self.asked.append(asked)
        return Reply(200, json.dumps(self.answer).encode(), (("Content-Type", "application/json"),))


@pytest.fixture(scope="module")
def api() -> Iterator[Endpoint]:
    """A fake API."""
    running = Endpoint()
    yield running
    running.close()


def context() -> FetchContext:
    """Return the context of a fetch; a warning fails the test, since a documented answer is not odd."""
    return FetchContext(None, time.monotonic() + 30, "cold", time.monotonic, pytest.fail)


def settings_of(found: Preset, **more: object) -> dict[str, Any]:
    """Return the settings of a preset's own example, with its references resolved."""

    def resolved(name: str, value: object) -> object:
        if not isinstance(value, dict) or not {"env", "file"} & set(value):
            return value
        return {"private_key": PEM, "client_secret": SECRET}.get(name, f"{name}@shop.example")

    return {name: resolved(name, value) for name, value in found.example.items()} | more


def at(found: Preset, url: str) -> dict[str, str]:
    """Return the setting that sends a preset's request to another host, with the same path."""
    if found.type == "github_app":
        return {"base_url": url}
    return {"token_url": url + urlsplit(CASES[found.name].url).path}


def verified(token: str, case: Case, longest: float) -> dict[str, Any]:
    """Return the claims of an assertion that our key signed and that is valid for at most this long."""
    claims: dict[str, Any] = jwt.decode(
        token, KEY.public_key(), algorithms=["RS256"], audience=case.claims.get("aud"), options={"verify_iat": False}
    )
    assert claims["exp"] - claims["iat"] <= longest
    return claims


def test_each_preset_has_a_case() -> None:
    """Each preset has a fake of a documented answer, and there are at least fourteen presets."""
    assert set(CASES) == set(presets())
    assert len(CASES) >= 14


@pytest.mark.parametrize("name", CASES)
def test_a_preset_asks_as_documented_and_reads_the_documented_answer(name: str, api: Endpoint) -> None:
    """Method, path, proof, form and headers are as on the API's page; the answer gives lifetime, scope and extra."""
    found, case = presets()[name], CASES[name]
    settings = settings_of(found, default_lifetime=None)  # the example sets its own; this test wants the preset's
    documented: Any = preset(name, **settings)
    if found.type != "github_app":
        assert documented.identity()["token_url"] == case.url

    api.answer = dict(case.answer)
    if "expires_at" in api.answer:
        api.answer |= {"expires_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3600))}
    provider: Any = preset(name, **settings | at(found, api.url))
    token = provider.fetch(context())

    asked = api.asked[-1]
    assert (asked.method, asked.path) == ("POST", urlsplit(case.url).path)
    assert {header: asked.headers[header] for header in case.headers} == case.headers
    if case.proof == "app":
        assert json.loads(asked.body) == {"permissions": {"contents": "read"}}
        assert verified(asked.headers["authorization"].removeprefix("Bearer "), case, 600)["iss"] == "Iv23abc"
    else:
        sent = parse_qs(asked.body.decode(), keep_blank_values=True, strict_parsing=True)
        form = {each: values[0] for each, values in sent.items()}
        shown = {"client_id": settings.get("client_id")}
        pair = b64encode(f"{settings.get('client_id')}:{SECRET}".encode()).decode()
        assert asked.headers.get("authorization") == (f"Basic {pair}" if case.proof == "basic" else None)
        if case.proof in {"assertion", "jwt"}:
            claims = verified(form.pop("assertion" if case.proof == "assertion" else "client_assertion"), case, 3600)
            assert {claim: claims.get(claim) for claim in ("iss", "sub", "scope")} == {
                claim: case.claims.get(claim) for claim in ("iss", "sub", "scope")
            }
            assert claims["exp"] - claims["iat"] <= (3600 if name.startswith("google") else 180)
        if case.proof == "jwt":
            assert form.pop("client_assertion_type").endswith(":jwt-bearer")
        proof = {"post": shown | {"client_secret": SECRET}, "jwt": shown}.get(case.proof, {})
        assert form == {**case.form, **proof}

    assert (token.value, token.authorization) == ("tok", "Bearer tok")
    assert token.lifetime == pytest.approx(case.lifetime, abs=2)
    assert (token.scope, dict(token.extra)) == (case.scope, case.extra)


@pytest.mark.parametrize("name", CASES)
def test_each_fact_of_a_preset_has_a_source(name: str) -> None:
    """Endpoint, grant, client authentication, lifetime and every quirk name a page; each setting has a description."""
    found = presets()[name]
    assert set(found.sources) == FACTS
    assert all(quirk.text for quirk in found.quirks)
    for source in (*found.sources.values(), *(quirk.source for quirk in found.quirks)):
        assert urlsplit(source).scheme == "https"
        assert urlsplit(source).path.strip("/")
    assert found.title
    assert found.lifetime
    assert all(setting.about.endswith(".") for setting in found.settings.values())
    assert found.quirks
    assert {*found.required, *found.any_of} <= set(preset_settings(name))


@pytest.mark.parametrize("name", CASES)
def test_a_configuration_can_fill_a_presets_settings(name: str) -> None:
    """A file can hold the type of each setting, secrets are marked, and the example has all required settings."""
    known, found = preset_settings(name), presets()[name]
    assert all(each.kind is not None for each in known.values())
    required = {each.name for each in known.values() if each.required}
    assert required <= set(found.example) <= set(known)
    assert not {"name", "type", "preset", "backend", "key", "policy", "keep_warm"} & set(known)
    references = {each for each, value in found.example.items() if isinstance(value, dict) and "env" in value}
    assert all(known[each].secret for each in references)


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        (name, setting)
        for name, found in presets().items()
        for setting in dict.fromkeys((*found.settings, "app_id" if found.type == "github_app" else "client_id"))
        if (name, setting) not in NOTHING_TO_SHARE and setting in preset_settings(name)
    ],
)
def test_tokens_of_another_tenant_are_not_shared(name: str, setting: str) -> None:
    """INV-10: presets that differ in a single setting have different identities."""
    found = presets()[name]
    own = found.settings.get(setting)
    settings = settings_of(found)
    if own is not None and own.choices:
        before = settings.get(setting, own.default)
        other = next(choice for choice in own.choices if choice != before)
    else:
        other = "https://other.example" if own is not None and own.form == "url" else "other.example"
    identities = [
        quick_fingerprint("x", preset(name, **each).identity()) for each in (settings, settings | {setting: other})
    ]
    assert identities[0] != identities[1]


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("okt", {}, "unknown preset 'okt'; did you mean 'okta'?"),
        ("nothing-like-it", {}, "known: amadeus, auth0, "),
        ("zoom", {}, "[zoom] the preset 'zoom' needs account_id, client_id, client_secret; set what is missing"),
        ("zoom", {"name": "calls"}, "[calls] the preset 'zoom' needs account_id"),
        ("zoom", {"acount_id": "x"}, "has no setting 'acount_id'; did you mean 'account_id'?"),
        ("zoom", {"zzzzzz": "x"}, "has no setting 'zzzzzz'; known: account_id, "),
        ("entra", {"tenant": "a/../b"}, "tenant must be a name without slashes and spaces"),
        ("entra", {"tenant": ".."}, "tenant must be a name without slashes and spaces"),
        ("entra", {"client_secret": None}, "needs one of client_secret, private_key, client_assertion_file"),
        (
            "auth0",
            {"domain": "https://shop.eu.auth0.com"},
            "domain must be a host name alone, without https:// and path",
        ),
        ("auth0", {"domain": "evil.example/?"}, "domain must be a host name alone"),
        ("auth0", {"domain": "user@evil.example"}, "domain must be a host name alone"),
        ("auth0", {"domain": 5}, "domain must be a host name alone"),
        ("keycloak", {"base_url": "sso.shop.example"}, "base_url must be an address that begins with https://"),
        ("keycloak", {"base_url": "http://sso.shop.example"}, "token_url must begin with https://"),
        ("reddit", {"user_agent": "a\r\nb: c"}, "user_agent must be a text of one line"),
        ("paypal", {"environment": "prod"}, "environment must be one of live, sandbox"),
        ("paypal", {"client_auth": "magic"}, "client_auth='magic' is not known"),
        ("salesforce_jwt", {"assertion_lifetime": 7200}, "assertion_lifetime=7200 must be from 1 to 3600 seconds"),
        ("google_service_account", {"private_key": "no key"}, "private_key is not a PEM private key"),
        ("github_app", {"installation_id": "mine"}, "installation_id must be a whole number"),
    ],
)
def test_wrong_settings_of_a_preset_are_reported(name: str, settings: dict[str, Any], said: str) -> None:
    """The message names preset, setting and remedy; a setting cannot change the host of an address."""
    known = presets().get(name)
    complete = settings_of(known) if known is not None and set(settings) - {"name"} else {}
    with pytest.raises(ConfigurationError) as raised:
        preset(name, **complete | settings)
    assert said in str(raised.value)
    assert SECRET not in str(raised.value)


def test_settings_override_the_preset_and_tables_are_merged(api: Endpoint) -> None:
    """A provider's setting replaces the preset's, a table is merged into it, and the preset is unchanged."""
    found, api.answer = presets()["zoom"], CASES["zoom"].answer
    settings = settings_of(found, parameters={"more": "1"}, client_auth="client_secret_post", **at(found, api.url))
    provider: Any
    for _ in range(2):
        provider = preset("zoom", name="calls", **settings)
        provider.fetch(context())
        assert parse_qs(api.asked[-1].body.decode()) == {
            "grant_type": ["account_credentials"],
            "account_id": ["AbCdEf"],
            "more": ["1"],
            "client_id": ["abc"],
            "client_secret": [SECRET],
        }
        assert provider.name == "calls"
    assert presets()["zoom"].values["parameters"] == {"account_id": "{account_id}"}


def test_an_optional_setting_is_left_out_or_sent(api: Endpoint) -> None:
    """A template without its setting is not sent; with it, it is."""
    found, api.answer = presets()["auth0"], CASES["auth0"].answer
    for organization in (None, "org_1"):
        provider: Any = preset("auth0", **settings_of(found, organization=organization, **at(found, api.url)))
        provider.fetch(context())
        sent = parse_qs(api.asked[-1].body.decode(), keep_blank_values=True).get("organization")
        assert sent == (None if organization is None else [organization])


def test_a_private_key_takes_the_place_of_the_secret(api: Endpoint) -> None:
    """If an API also takes a signed assertion, the key alone is enough, and the secret is not sent beside it."""
    found, api.answer = presets()["auth0"], CASES["auth0"].answer
    provider: Any = preset("auth0", **settings_of(found, private_key=PEM, **at(found, api.url)))
    provider.fetch(context())
    form = parse_qs(api.asked[-1].body.decode())
    assert "client_assertion" in form
    assert "client_secret" not in form


def test_a_delegated_subject_is_named(api: Endpoint) -> None:
    """Google's assertion names a user only if one is set."""
    found, api.answer = presets()["google_service_account"], CASES["google_service_account"].answer
    provider: Any = preset(found.name, **settings_of(found, subject="user@shop.example", **at(found, api.url)))
    provider.fetch(context())
    assertion = parse_qs(api.asked[-1].body.decode())["assertion"][0]
    assert verified(assertion, CASES[found.name], 3600)["sub"] == "user@shop.example"


# --- configuration ------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give an empty working folder, and the secret in a variable."""
    for variable in ("TOKENCACHE_CONFIG", "TOKENCACHE_BACKEND", "REDIS_DATABASE_URI"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("SECRET", SECRET)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["zoom", "twitch", "keycloak"])
def test_the_command_line_prints_a_token_of_a_preset(name: str, folder: Path, api: Endpoint) -> None:
    """`tokencache token` needs only `preset = …` and its settings; two runs share one login."""
    found, api.answer = presets()[name], CASES[name].answer
    lines = toml_of(found.name, settings_of(found, client_secret={"env": "SECRET"}, **at(found, api.url)))
    file = folder / "here.toml"
    file.write_text(lines)
    before = len(api.asked)
    for _ in range(2):
        ran = CliRunner().invoke(app, ["token", name, "--config", str(file)])
        assert (ran.exit_code, ran.stdout.strip()) == (0, "tok"), ran.output
    assert len(api.asked) == before + 1
    assert "token_url" in lines


def test_the_check_names_a_presets_missing_settings(folder: Path) -> None:
    """`config check` reports each missing setting of a preset by its key, with the line to add."""
    (folder / "tokencache.toml").write_text('[providers.calls]\npreset = "zoom"\nclient_id = "abc"\nacount_id = "x"\n')
    ran = CliRunner().invoke(app, ["config", "check"], env={"COLUMNS": "500"})
    assert ran.exit_code == 2
    assert "providers.calls.account_id" in ran.output
    assert "add account_id = … (The account's ID, from the app's credentials)" in ran.output
    assert 'add client_secret = { env = "CALLS_CLIENT_SECRET" }' in ran.output
    assert "did you mean 'account_id'?" in ran.output


def test_the_check_knows_presets_and_their_choices(folder: Path) -> None:
    """An unknown preset, a wrong choice and a missing credential are found without a network."""
    (folder / "tokencache.toml").write_text(
        '[providers.a]\npreset = "okt"\n[providers.b]\npreset = "paypal"\nclient_id = "i"\nenvironment = "sandbx"\n'
        'client_secret = { env = "SECRET" }\n[providers.c]\npreset = "auth0"\nclient_id = "i"\naudience = "u"\n'
        'domain = "shop.eu.auth0.com"\n[providers.d]\ntype = "zoom"\n[providers.e]\ntype = "unknown"\n'
    )
    ran = CliRunner().invoke(app, ["config", "check"], env={"COLUMNS": "500"})
    assert "did you mean 'okta'?" in ran.output
    assert "did you mean 'sandbox'?" in ran.output
    assert "needs one of client_secret, private_key" in ran.output
    assert 'write preset = "zoom"' in ran.output
    assert 'write preset = "unknown"' not in ran.output


def test_each_name_in_the_data_is_used() -> None:
    """Every value of a preset is a setting of its provider, and every template has its setting."""
    for name, found in presets().items():
        made_of = preset_settings(name)
        texts = json.dumps(found.values)
        assert set(found.values) <= {*made_of, "token_url", "grant_type"}
        assert all("{" + setting + "}" in texts for setting in found.settings)
        assert found.type in module._MADE_BY


# --- the page -----------------------------------------------------------------------------------------------------

HEAD = """\
# Presets

A preset holds what is known about an API: its token endpoint, its client authentication, the lifetime of its tokens. So
a provider's table names the preset and your own settings only:

```toml
[providers.calls]
preset = "zoom"
account_id = "AbCdEf"
client_id = "abc"
client_secret = { env = "ZOOM_SECRET" }
```

```console
tokencache token calls --config tokencache.toml
```

In code it is `preset("zoom", account_id=…, client_id=…, client_secret=…)` of `tokencache.providers.presets`, which
returns a provider for `cache.source`. The table may have any setting of the provider's type (`scope`, `timeout`,
`token_url` …, see [configuration.md](configuration.md)). Such a setting overrides the preset; `parameters` and
`headers` are added to the preset's. `tokencache config check` names missing settings.

Presets that sign (`private_key`) need `pip install 'tokencache[jose]'`. This page is made from
`src/tokencache/providers/presets.toml`, by `python tests/unit/providers/test_presets.py`. The tests run each preset
against a fake of the API's documented answer.

| preset | API | grant | client's proof | lifetime |
|---|---|---|---|---|
"""
GRANTS = {
    "client_credentials": "`client_credentials`",
    "github_app": "signed JWT for an installation's token",
    "jwt_bearer": "JWT bearer",
}


def toml_of(name: str, table: Mapping[str, object], preset_name: str | None = None) -> str:
    """Return a provider's table as TOML."""

    def value(it: object) -> str:
        if isinstance(it, dict):
            return "{ " + ", ".join(f"{key} = {value(each)}" for key, each in it.items()) + " }"
        return json.dumps(it)

    lines = [f"[providers.{name}]", f'preset = "{preset_name or name}"']
    return "\n".join([*lines, *(f"{key} = {value(each)}" for key, each in table.items())]) + "\n"


def proof_of(found: Preset) -> str:
    """Return the client's authentication, for the page."""
    if found.client_auth is not None:
        others = [f"`{each}`" for each in found.any_of if each != "client_secret"]
        return f"`{found.client_auth}`" + (f", or by {', '.join(others)}" if others else "")
    method = found.values.get("client_auth")
    return f"`{method}`" if method else "a JWT that the private key signs"


def section_of(found: Preset) -> str:
    """Return the section of a preset on the page."""
    where = found.values.get("token_url", "https://api.github.com/app/installations/{installation_id}/access_tokens")
    lines = [f"## `{found.name}`: {found.title}", "", f"Asks `{where}`.", ""]
    if found.settings:
        lines += ["| setting | is |", "|---|---|"]
        for name, known in found.settings.items():
            hosts = ", ".join(f"`{each}` ({host})" for each, host in known.choices.items())
            choices = f" One of {hosts}." if hosts else ""
            rest = " Optional." if known.optional else f" By default `{known.default}`." if known.default else ""
            lines.append(f"| `{name}` | {known.about}{choices}{rest} |")
        lines.append("")
    needed = [f"`{each}`" for each in found.required]
    needed += [f"one of {', '.join(f'`{each}`' for each in found.any_of)}"] if found.any_of else []
    lines += [f"{'Also needed' if found.settings else 'Needed'}: {', '.join(needed)}.", ""]
    lines += [f"- {quirk.text} [source]({quirk.source})" for quirk in found.quirks]
    facts = " · ".join(f"[{fact.replace('_', ' ')}]({found.sources[fact]})" for fact in sorted(found.sources))
    lines += ["", f"Sources: {facts}", "", "```toml", toml_of(found.name, found.example).rstrip(), "```", ""]
    return "\n".join(lines)


def page() -> str:
    """Return docs/presets.md."""
    rows = [
        f"| [`{each.name}`](#{each.name}) | {each.title} | {GRANTS.get(each.type, '`account_credentials`')}"
        f" | {proof_of(each)} | {each.lifetime} |"
        for each in presets().values()
    ]
    anchors = [f'<a id="{each.name}"></a>\n\n{section_of(each)}' for each in presets().values()]
    return HEAD + "\n".join(rows) + "\n\n" + "\n".join(anchors)


def test_the_page_is_generated_from_the_data() -> None:
    """docs/presets.md matches the presets; renew it with `python tests/unit/providers/test_presets.py`."""
    assert PAGE.read_text() == page()


if __name__ == "__main__":
    PAGE.write_text(page())
