"""Clients that authenticate by a certificate (RFC 8705) to an authorization server that binds tokens to it."""

from __future__ import annotations

import asyncio
import ssl
from base64 import b64encode, urlsafe_b64encode
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from jwt.algorithms import ECAlgorithm

from tokencache import ProviderRejected, TokenCache
from tokencache.providers._jose import claims_of
from tokencache.providers.oauth2 import ClientCredentials

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import AuthorizationServer

pytestmark = pytest.mark.live

METHODS = ["tls_client_auth", "self_signed_tls_client_auth"]


@dataclass(frozen=True)
class Shown:
    """A client's part of the handshake: paths, and the thumbprint of RFC 8705 section 3.1."""

    certificate: str
    key: str
    thumbprint: str
    jwk: dict[str, object]


def shown(issued: trustme.LeafCert, folder: Path, name: str) -> Shown:
    """Put a certificate and its key into files."""
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    issued.cert_chain_pems[0].write_to_path(certificate)
    issued.private_key_pem.write_to_path(key)
    der = ssl.PEM_cert_to_DER_cert(certificate.read_text())
    thumbprint = urlsafe_b64encode(sha256(der).digest()).rstrip(b"=").decode()
    public = load_pem_private_key(key.read_bytes(), None).public_key()
    jwk = {**ECAlgorithm.to_jwk(public, as_dict=True), "x5c": [b64encode(der).decode()], "use": "sig"}
    return Shown(str(certificate), str(key), thumbprint, jwk)


@dataclass(frozen=True)
class Setting:
    """A server that asks for certificates, its authority's file, and two clients' certificates."""

    server: AuthorizationServer
    ca_file: str
    one: Shown
    other: Shown

    def provider(self, method: str, certificate: Shown) -> ClientCredentials:
        """Return the provider of a client with this certificate."""
        return ClientCredentials(
            issuer=self.server.issuer,
            client_id=method,
            client_auth=method,
            certificate=certificate.certificate,
            certificate_key=certificate.key,
            ca_file=self.ca_file,
            scope="read",
            resource="https://api.example/",
        )


@pytest.fixture
def setting(secure_server: Callable[..., AuthorizationServer], tmp_path: Path) -> Setting:
    """A server with a client for each method, both registered with the first certificate."""
    authority = trustme.CA()
    one, other = (shown(authority.issue_cert(f"{name}.example"), tmp_path, name) for name in ("one", "other"))
    ca_file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(ca_file)
    own = shown(authority.issue_cert("127.0.0.1"), tmp_path, "server")
    server = secure_server(
        {"key": own.key, "cert": own.certificate, "ca": str(ca_file)},
        {
            "tls_client_auth": {"tls_client_auth_san_dns": "one.example"},
            "self_signed_tls_client_auth": {"jwks": {"keys": [one.jwk]}},
        },
    )
    return Setting(server, str(ca_file), one, other)


@pytest.mark.parametrize("colour", ["threads", "event loop"])
@pytest.mark.parametrize("method", METHODS)
def test_a_certificate_gets_a_bound_token(setting: Setting, method: str, colour: str) -> None:
    """The client sends the certificate in the handshake, and the token names it."""
    with TokenCache("memory://") as cache:
        source = cache.source(setting.provider(method, setting.one))
        token = source.token() if colour == "threads" else asyncio.run(source.atoken())
    assert claims_of(token.value)["cnf"] == {"x5t#S256": setting.one.thumbprint}
    assert [each["error"] for each in setting.server.asked()] == [None]


@pytest.mark.parametrize("method", METHODS)
def test_another_certificate_is_refused(setting: Setting, method: str) -> None:
    """INV-10: an unregistered certificate of the same authority is refused, and gets no other client's token."""
    with TokenCache("memory://") as cache:
        cache.source(setting.provider(method, setting.one)).token()
        with pytest.raises(ProviderRejected) as caught:
            cache.source(setting.provider(method, setting.other)).token()
    assert caught.value.error == "invalid_client"
    assert [each["error"] for each in setting.server.asked()] == [None, "invalid_client"]


@pytest.mark.parametrize("method", METHODS)
def test_without_a_certificate_there_is_no_token(setting: Setting, method: str) -> None:
    """A client without a certificate is refused with the RFC's error name."""
    provider = ClientCredentials(issuer=setting.server.issuer, client_id=method, ca_file=setting.ca_file)
    with TokenCache("memory://") as cache, pytest.raises(ProviderRejected) as caught:
        cache.source(provider).token()
    assert caught.value.error == "invalid_client"
