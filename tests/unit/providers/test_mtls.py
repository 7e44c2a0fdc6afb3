"""Clients that authenticate with a certificate (RFC 8705), by real handshakes with a server that requires one."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import shutil
import socket
import ssl
import threading
from base64 import urlsafe_b64encode
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from tokencache import ConfigurationError, ProviderRejected, ProviderUnavailable, TokenCache
from tokencache.backends.memory import MemoryBackend
from tokencache.providers._jose import claims_of
from tokencache.providers.oauth2 import ClientCredentials

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tokencache import Token, TokenSource

METHODS = ["tls_client_auth", "self_signed_tls_client_auth"]
both_colours = pytest.mark.parametrize("colour", ["threads", "event loop"])


@dataclass(frozen=True)
class Shown:
    """A client's certificate: paths of PEM files, and the thumbprint of RFC 8705 section 3.1."""

    certificate: Path
    key: Path

    @property
    def thumbprint(self) -> str:
        """Return the ``x5t#S256`` of the certificate."""
        return thumbprint(ssl.PEM_cert_to_DER_cert(self.certificate.read_text()))

    @property
    def settings(self) -> dict[str, Any]:
        """Return the provider's settings."""
        return {"certificate": str(self.certificate), "certificate_key": str(self.key)}


def thumbprint(der: bytes) -> str:
    """Return the ``x5t#S256`` of a certificate."""
    return urlsafe_b64encode(sha256(der).digest()).rstrip(b"=").decode()


def self_signed(folder: Path, name: str) -> Shown:
    """Make a self-signed certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(tz=dt.UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - dt.timedelta(days=1)).not_valid_after(now + dt.timedelta(days=1))
    shown = Shown(folder / f"{name}.pem", folder / f"{name}.key")
    shown.certificate.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))
    shown.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return shown


def issued(authority: trustme.CA, folder: Path, name: str) -> Shown:
    """Issue a certificate."""
    shown = Shown(folder / f"{name}.pem", folder / f"{name}.key")
    certificate = authority.issue_cert(name)
    certificate.cert_chain_pems[0].write_to_path(shown.certificate)
    certificate.private_key_pem.write_to_path(shown.key)
    return shown


@dataclass
class Server:
    """A token endpoint that requires a known certificate, and binds each token to it."""

    url: str = ""
    authority: trustme.CA = field(default_factory=trustme.CA)
    ca_file: str = ""
    plain_url: str = ""
    binds_to: str | None = None
    asked: list[tuple[str, dict[str, list[str]]]] = field(default_factory=list)

    def provider(self, method: str | None = None, **settings: Any) -> ClientCredentials:  # noqa: ANN401
        """Return the provider of a client."""
        given: dict[str, Any] = {"token_url": f"{self.url}/token", "client_id": "abc", "ca_file": self.ca_file}
        return ClientCredentials(**given | ({"client_auth": method} if method else {}) | settings)

    def token(self, shown: str, form: dict[str, list[str]]) -> dict[str, object]:
        """Return a token that is bound to the client's certificate."""
        self.asked.append((shown, form))
        claims = {"number": len(self.asked), "cnf": {"x5t#S256": self.binds_to or shown}}
        parts = [
            urlsafe_b64encode(json.dumps(each).encode()).rstrip(b"=").decode() for each in ({"alg": "none"}, claims)
        ]
        return {"access_token": f"{parts[0]}.{parts[1]}.x", "token_type": "Bearer", "expires_in": 3600}


@contextmanager
def listening(server: Server, trust: ssl.SSLContext | None = None) -> Iterator[str]:
    """Run the server on a free port; yield its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self._answer(server.token(thumbprint(self.connection.getpeercert(binary_form=True)), form))

        def do_GET(self) -> None:
            plain = server.plain_url
            aliases = {"mtls_endpoint_aliases": {"token_endpoint": f"{server.url}/token"}}
            self._answer({"issuer": plain, "token_endpoint": f"{plain}/token"} | aliases)

        def _answer(self, answer: dict[str, object]) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Do not log."""

    class Listener(ThreadingHTTPServer):
        def finish_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
            if trust is None:
                super().finish_request(request, client_address)
                return
            with trust.wrap_socket(request, server_side=True, do_handshake_on_connect=False) as secured:
                try:
                    secured.do_handshake()
                except ssl.SSLError:
                    while socket.socket.recv(secured, 4096):
                        """Let the client read why, before the connection goes."""
                else:
                    super().finish_request(secured, client_address)

        def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
            """Do not report a client that has left."""

    with Listener(("127.0.0.1", 0), Handler) as listener:
        thread = threading.Thread(target=listener.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http{'s' if trust else ''}://127.0.0.1:{listener.server_port}"
        finally:
            listener.shutdown()
            thread.join()


@pytest.fixture
def shown(tmp_path: Path) -> dict[str, list[Shown]]:
    """Give two clients' certificates for each method."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "clients.pem")
    return {
        "tls_client_auth": [issued(authority, tmp_path, f"{name}.example") for name in ("one", "two")],
        "self_signed_tls_client_auth": [self_signed(tmp_path, name) for name in ("one", "two")],
    }


@pytest.fixture
def server(shown: dict[str, list[Shown]], tmp_path: Path) -> Iterator[Server]:
    """Run a server that knows both clients, by their authority or by their certificates."""
    server = Server(ca_file=str(tmp_path / "server.pem"))
    server.authority.cert_pem.write_to_path(server.ca_file)
    trust = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.authority.issue_cert("127.0.0.1").configure_cert(trust)
    trust.verify_mode = ssl.CERT_REQUIRED
    trust.load_verify_locations(tmp_path / "clients.pem")
    for each in shown["self_signed_tls_client_auth"]:
        trust.load_verify_locations(each.certificate)
    with listening(server, trust) as server.url, listening(server) as server.plain_url:
        yield server


def ask(source: TokenSource, colour: str) -> Token:
    """Return a token of the source, by a thread or by an event loop."""
    return source.token() if colour == "threads" else asyncio.run(source.atoken())


@both_colours
@pytest.mark.parametrize("method", METHODS)
def test_the_certificate_is_shown_and_the_token_is_bound_to_it(
    server: Server, shown: dict[str, list[Shown]], method: str, colour: str
) -> None:
    """RFC 8705 sections 2 and 3: the handshake holds the proof; the form has the client's id and no secret."""
    mine = shown[method][0]
    with TokenCache("memory://") as cache:
        token = ask(cache.source(server.provider(method, **mine.settings)), colour)
    assert claims_of(token.value)["cnf"] == {"x5t#S256": mine.thumbprint}
    assert server.asked == [(mine.thumbprint, {"grant_type": ["client_credentials"], "client_id": ["abc"]})]


@both_colours
def test_without_a_certificate_the_error_says_so(server: Server, colour: str) -> None:
    """The handshake refuses a client without a certificate, and the error says so."""
    with TokenCache("memory://") as cache, pytest.raises(ProviderUnavailable) as caught:
        ask(cache.source(server.provider()), colour)
    assert "requires a client certificate that it trusts" in str(caught.value)
    assert "set certificate and certificate_key" in str(caught.value)
    assert server.asked == []


@pytest.mark.parametrize("method", METHODS)
def test_a_method_without_its_certificate_is_a_configuration_error(server: Server, method: str) -> None:
    """The error comes before any request."""
    with pytest.raises(ConfigurationError, match="certificate"):
        server.provider(method)


@both_colours
@pytest.mark.parametrize("method", METHODS)
def test_an_unknown_certificate_is_refused(server: Server, tmp_path: Path, method: str, colour: str) -> None:
    """A certificate of an unknown authority gets the same error."""
    stranger = self_signed(tmp_path, "stranger")
    with TokenCache("memory://") as cache, pytest.raises(ProviderUnavailable) as caught:
        ask(cache.source(server.provider(method, **stranger.settings)), colour)
    assert "requires a client certificate that it trusts" in str(caught.value)
    assert server.asked == []


@both_colours
@pytest.mark.parametrize("key", [None, "given"], ids=["own keys", "one key by hand"])
@pytest.mark.parametrize("method", METHODS)
def test_two_certificates_never_share_a_token(
    server: Server, shown: dict[str, list[Shown]], method: str, key: str | None, colour: str
) -> None:
    """INV-10: with two certificates of one client, each process gets a token bound to its own certificate."""
    backend = MemoryBackend()
    for _ in range(2):
        for each in shown[method]:
            with TokenCache(backend) as cache:
                token = ask(cache.source(server.provider(method, **each.settings), key=key), colour)
            assert claims_of(token.value)["cnf"] == {"x5t#S256": each.thumbprint}
    logins = [thumb for thumb, _ in server.asked]
    mine = [each.thumbprint for each in shown[method]]
    assert logins == mine * (2 if key else 1)  # under one key each replaces the other's record


def test_one_certificate_in_two_places_shares_a_token(
    server: Server, shown: dict[str, list[Shown]], tmp_path: Path
) -> None:
    """INV-2: the certificate counts, not its path on each host."""
    mine = shown["tls_client_auth"][0]
    copy = Shown(tmp_path / "copy.pem", tmp_path / "copy.key")
    shutil.copy(mine.certificate, copy.certificate)
    shutil.copy(mine.key, copy.key)
    with TokenCache("memory://") as cache:
        tokens = {cache.source(server.provider("tls_client_auth", **each.settings)).token() for each in (mine, copy)}
    assert len(tokens) == len(server.asked) == 1


@both_colours
def test_a_token_bound_to_another_certificate_is_refused(
    server: Server, shown: dict[str, list[Shown]], colour: str
) -> None:
    """RFC 8705 section 3: a token that the server bound to another certificate is neither used nor stored."""
    mine, other = shown["tls_client_auth"]
    server.binds_to = other.thumbprint
    with TokenCache("memory://") as cache:
        source = cache.source(server.provider("tls_client_auth", **mine.settings))
        with pytest.raises(ProviderRejected, match="bound to an unknown certificate"):
            ask(source, colour)
        assert source.status().expires_at is None


def test_a_secret_may_be_used_with_a_certificate(server: Server, shown: dict[str, list[Shown]]) -> None:
    """A client may authenticate by its secret, and still have its tokens bound to a certificate."""
    mine = shown["tls_client_auth"][0]
    with TokenCache("memory://") as cache:
        token = cache.source(server.provider("client_secret_post", client_secret="s", **mine.settings)).token()
    assert claims_of(token.value)["cnf"] == {"x5t#S256": mine.thumbprint}
    assert server.asked[0][1]["client_secret"] == ["s"]


@both_colours
def test_metadata_may_name_another_endpoint_for_mtls(
    server: Server, shown: dict[str, list[Shown]], colour: str
) -> None:
    """RFC 8705 section 5: a client with a certificate asks the alias that the server publishes for it."""
    mine = shown["tls_client_auth"][0]
    provider = ClientCredentials(
        issuer=server.plain_url, client_id="abc", client_auth="tls_client_auth", ca_file=server.ca_file, **mine.settings
    )
    with TokenCache("memory://") as cache:
        token = ask(cache.source(provider), colour)
    assert claims_of(token.value)["cnf"] == {"x5t#S256": mine.thumbprint}


def test_an_untrusted_server_gets_no_certificate(server: Server, shown: dict[str, list[Shown]], tmp_path: Path) -> None:
    """INV-9: nothing is sent to a server of an unknown authority."""
    trustme.CA().cert_pem.write_to_path(tmp_path / "another.pem")
    mine = shown["tls_client_auth"][0]
    provider = server.provider("tls_client_auth", **mine.settings, ca_file=str(tmp_path / "another.pem"))
    with TokenCache("memory://") as cache, pytest.raises(ProviderUnavailable, match="certificate refused"):
        cache.source(provider).token()
    assert server.asked == []
