"""INV-10: each setting that changes the token that comes back is part of the identity.

Each setting of each built-in provider is changed, one by one. The identity must change with it, unless UNCHANGED states
why the token stays the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trustme
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tokencache._keys import fingerprint
from tokencache.config._factory import schema_of
from tokencache.providers.github import GitHubApp
from tokencache.providers.oauth2 import (
    ClientCredentials,
    CustomGrant,
    JWTBearer,
    Password,
    RefreshToken,
    TokenExchange,
)
from tokencache.providers.presets import preset, presets
from tokencache_qpay import QPayProvider

if TYPE_CHECKING:
    from pathlib import Path

UNCHANGED = {
    "allow_http": "the address is part of the identity, with its scheme",
    "ca_file": "it decides whom to trust, not what is asked",
    "client": "how the request travels",
    "async_client": "how the request travels",
    "timeout": "how long the request may take",
    "verify": "how the request travels",
    "key_id": "it names the key that signs; the key itself is part of the identity",
    "algorithm": "it fits the key, which is part of the identity",
    "certificate_key": "it belongs to the certificate, whose thumbprint is part of the identity",
    "encoding": "the same fields in another form",
    "expiry_fields": "how the answer is read, not the token",
    "default_lifetime": "how the answer is read, not the token",
    "longest_lifetime": "how the answer is read, not the token",
    "trust_jwt": "how the answer is read, not the token",
    "use_refresh": "another way to the same token",
    "assertion_lifetime": "how long the proof may be used, not the token",
}
URL = "https://id.example/token"


def pem(kind: str) -> str:
    """Return a new private key."""
    key: Any = rsa.generate_private_key(65537, 2048) if kind == "rsa" else ec.generate_private_key(ec.SECP256R1())
    return str(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode())


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Any]]:
    """Return two values for each setting."""
    folder: Path = tmp_path_factory.mktemp("files")
    for number in (1, 2):
        certified = trustme.CA().issue_cert(f"client{number}.example")
        certified.cert_chain_pems[0].write_to_path(folder / f"cert{number}.pem")
        certified.private_key_pem.write_to_path(folder / f"key{number}.pem")
        (folder / f"jwt{number}").write_text(f"token-{number}")
    ec_keys, rsa_keys = (pem("ec"), pem("ec")), (pem("rsa"), pem("rsa"))
    files = {name: tuple(str(folder / f"{stem}{n}") for n in (1, 2)) for name, stem in (("jwt", "jwt"),)}
    texts = "issuer scope audience resource client_id client_secret assertion_audience username password refresh_token"
    texts += " assertion_issuer subject subject_token actor_token subject_token_type actor_token_type"
    texts += " requested_token_type grant_type token_field token_type base_url_text"
    pairs: dict[str, tuple[Any, Any]] = {name: (f"{name}-1", f"{name}-2") for name in texts.split()}
    return pairs | {
        "token_url": (URL, "https://other.example/token"),
        "issuer": ("https://id.example", "https://other.example"),
        "base_url": ("https://a.example", "https://b.example"),
        "client_auth": ("client_secret_basic", "client_secret_post"),
        "private_key": ec_keys,
        "rsa": rsa_keys,
        "certificate": (str(folder / "cert1.pem"), str(folder / "cert2.pem")),
        "client_assertion_file": files["jwt"],
        "subject_token_file": files["jwt"],
        "actor_token_file": files["jwt"],
        "parameters": ({"a": "1"}, {"a": "2"}),
        "headers": ({"X-A": "1"}, {"X-A": "2"}),
        "claims": ({"a": "1"}, {"a": "2"}),
        "scope_in_assertion": (False, True),
        "app_id": ("1", "2"),
        "installation_id": ("1", "2"),
        "permissions": ({"issues": "read"}, {"issues": "write"}),
        "repositories": (["a"], ["b"]),
        "repository_ids": (["1"], ["2"]),
    }


BASES: dict[type, dict[str, Any]] = {
    ClientCredentials: {"token_url": URL, "client_id": "c", "client_secret": "s"},
    RefreshToken: {"token_url": URL, "client_id": "c", "refresh_token": "r"},
    Password: {"token_url": URL, "client_id": "c", "username": "u", "password": "p"},
    JWTBearer: {"token_url": URL, "client_id": "c", "private_key": ...},
    TokenExchange: {"token_url": URL, "client_id": "c", "subject_token": "t", "actor_token": "a"},
    CustomGrant: {"token_url": URL, "client_id": "c", "grant_type": "g"},
    GitHubApp: {"app_id": "1", "installation_id": "1", "private_key": ...},
    QPayProvider: {"client_id": "c", "client_secret": "s"},
}
CASES = [(kind, setting) for kind in BASES for setting in schema_of(kind).settings if setting not in UNCHANGED]


@pytest.mark.parametrize(("kind", "setting"), CASES, ids=[f"{kind.__name__}-{name}" for kind, name in CASES])
def test_another_value_is_another_identity(kind: type, setting: str, values: dict[str, tuple[Any, Any]]) -> None:
    """Two values of the setting never share a record; UNCHANGED holds the settings that cannot change the token."""
    keys = values["rsa"] if kind is GitHubApp else values["private_key"]
    base = {name: keys[0] if value is ... else value for name, value in BASES[kind].items()}
    pair = keys if setting == "private_key" else values[setting]
    if setting.endswith("_file") and setting.removesuffix("_file") in base:
        del base[setting.removesuffix("_file")]
    if setting == "client_auth":
        base["client_secret"] = "s"
    if setting == "certificate":
        pair = tuple({"certificate": path, "certificate_key": path.replace("cert", "key")} for path in pair)
    made = [kind(**base | (value if setting == "certificate" else {setting: value})) for value in pair]
    first, second = (fingerprint("p", provider.identity()) for provider in made)
    assert first != second, f"{setting} does not reach the identity"
    again = kind(**base | (pair[0] if setting == "certificate" else {setting: pair[0]}))
    assert fingerprint("p", again.identity()) == first


OWN = [(name, each) for name, found in presets().items() for each in found.settings if each != "private_key_id"]


@pytest.mark.parametrize(("name", "setting"), OWN, ids=[f"{name}-{setting}" for name, setting in OWN])
def test_each_setting_of_a_preset_reaches_the_identity(
    name: str, setting: str, values: dict[str, tuple[Any, Any]]
) -> None:
    """A tenant, a region or an organization that differs never shares a token."""
    found = presets()[name]
    keys = values["rsa"]
    base = {key: keys[0] if key == "private_key" else value for key, value in found.example.items()}
    base = {
        key: "planted" if isinstance(value, dict) and key not in {"parameters", "headers"} else value
        for key, value in base.items()
    }
    known = found.settings[setting]
    pair = tuple(known.choices)[:2] if known.choices else ("one.example", "two.example")
    pair = ("https://one.example", "https://two.example") if known.form == "url" else pair
    first, second = (fingerprint("p", preset(name, **base | {setting: each}).identity()) for each in pair)
    assert first != second


def test_each_reason_is_that_of_a_setting() -> None:
    """A reason for a setting that is gone would hide its successor."""
    known = {name for kind in BASES for name in schema_of(kind).settings} | {"client", "async_client", "verify"}
    assert set(UNCHANGED) <= known
