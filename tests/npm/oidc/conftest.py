"""A third-party authorization server, oidc-provider in a node process, and a user who signs in to it.

`make oidc` installs it and sets OIDC_PROVIDER to its folder; elsewhere the tests that need it are skipped.
"""

from __future__ import annotations

import json
import os
from base64 import urlsafe_b64encode
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import parse_qs, urljoin, urlsplit

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from jwt.algorithms import ECAlgorithm

from tokencache.testing.servers import ServerProcess, require

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

LIBRARY = os.environ.get("OIDC_PROVIDER")
REDIRECT = "https://client.example/signed-in"
SECRET = "a-secret/of more than+thirty-two:characters"
VERIFIER = "v" * 43  # RFC 7636 section 4.1
LONG = 3600
SHORT = 6


class AuthorizationServer(ServerProcess):
    """oidc-provider on a free port of loopback, with the given clients.

    ``tls`` names the files of its certificate, ``metadata`` the well-known path of its metadata.
    """

    program: ClassVar[str] = "node"

    def __init__(
        self, clients: list[dict[str, Any]], tls: dict[str, str] | None = None, metadata: str = "openid-configuration"
    ) -> None:
        super().__init__()
        self._clients = clients
        self._tls = tls
        self._metadata = metadata

    @property
    def issuer(self) -> str:
        """The server's issuer name, which is its address."""
        return f"http{'s' if self._tls else ''}://127.0.0.1:{self.port}"

    def command_line(self) -> list[str]:
        """Return the script, and its settings file."""
        settings = {"library": str(Path(str(LIBRARY)).resolve()), "port": self.port, "clients": self._clients}
        settings["metadata"] = self._metadata
        path = self.folder / "settings.json"
        path.write_text(json.dumps(settings | ({"tls": self._tls} if self._tls else {})))
        return [str(Path(__file__).with_name("server.mjs")), str(path)]

    def answering(self) -> int | None:
        """Return the id of the answering process."""
        try:
            with self.browser() as browser:
                return int(browser.get("/test/pid").text)
        except httpx.TransportError as error:
            raise ConnectionError(str(error)) from None

    def browser(self) -> httpx.Client:
        """Return a plain client, which trusts the server's authority."""
        trust = httpx.create_ssl_context()
        if self._tls:
            trust.load_verify_locations(self._tls["ca"])
        return httpx.Client(base_url=self.issuer, verify=trust, timeout=30.0)

    def asked(self) -> list[dict[str, Any]]:
        """Return the token endpoint's requests so far: client, grant, error, and the position in the chain."""
        with self.browser() as browser:
            asked: list[dict[str, Any]] = browser.get("/test/log").json()
        return asked

    def sign_in(self, client_id: str, user: str) -> str:
        """Return a refresh token: the user signs in and agrees (RFC 6749 section 4.1, RFC 7636)."""
        challenge = urlsafe_b64encode(sha256(VERIFIER.encode()).digest()).rstrip(b"=").decode()
        request = {
            "client_id": client_id,
            "response_type": "code",
            "redirect_uri": REDIRECT,
            "scope": "openid offline_access read write",
            "prompt": "consent",
            "code_challenge": challenge,
            "code_challenge_method": "S256",
        }
        with self.browser() as browser:
            response = browser.get("/auth", params=request)
            while not response.headers.get("location", "").startswith(REDIRECT):
                if response.is_redirect:
                    response = browser.get(urljoin(str(response.url), response.headers["location"]))
                else:
                    assert response.status_code == 200, response.text
                    prompt = "login" if 'value="login"' in response.text else "consent"
                    form = {"prompt": prompt, "login": user, "password": "any"}
                    response = browser.post(response.url, data=form)
            code = parse_qs(urlsplit(response.headers["location"]).query)["code"][0]
            form = {"grant_type": "authorization_code", "code": code, "redirect_uri": REDIRECT}
            form |= {"code_verifier": VERIFIER, "client_id": client_id, "client_secret": SECRET}
            answer = browser.post("/token", data=form)
            assert answer.status_code == 200, answer.text
            return str(answer.json()["refresh_token"])

    def judge(self, endpoint: str, token: str, client_id: str = "post") -> dict[str, Any]:
        """Ask for a token's state (``introspection``, RFC 7662) or revoke a token (``revocation``, RFC 7009)."""
        form = {"token": token, "client_id": client_id, "client_secret": SECRET}
        with self.browser() as browser:
            answer = browser.post(f"/token/{endpoint}", data=form)
        assert answer.status_code == 200, answer.text
        judged: dict[str, Any] = answer.json() if answer.content else {}
        return judged


SHOWN: pytest.StashKey[AuthorizationServer] = pytest.StashKey()


def required_library() -> None:
    """Skip the test if oidc-provider is not installed."""
    if LIBRARY is None:
        pytest.skip("oidc-provider is not there; `make oidc` gets it")
    require(AuthorizationServer.program)


@pytest.fixture(scope="session")
def private_key() -> tuple[str, dict[str, str]]:
    """A client's key: as PEM for the client, as a public JWK for the server."""
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    return pem, {**ECAlgorithm.to_jwk(key.public_key(), as_dict=True), "use": "sig", "kid": "of-the-test"}


def registered(client_id: str, method: str, **more: object) -> dict[str, Any]:
    """Return the registration of a client (RFC 7591) that requests tokens for itself."""
    secret = {"client_secret": SECRET} if method.startswith("client_secret") else {}
    mine: dict[str, Any] = {"client_id": client_id, "token_endpoint_auth_method": method, "lifetime": LONG, **secret}
    return mine | {"grant_types": ["client_credentials"], "redirect_uris": [], "response_types": []} | more


def for_users(client_id: str, lifetime: float) -> dict[str, Any]:
    """Return the registration of a client that users sign in to."""
    grants = ["authorization_code", "refresh_token"]
    more = {"grant_types": grants, "redirect_uris": [REDIRECT], "response_types": ["code"], "lifetime": lifetime}
    return registered(client_id, "client_secret_post", **more)


@pytest.fixture(scope="session")
def authorization_server(private_key: tuple[str, dict[str, str]]) -> Iterator[AuthorizationServer]:
    """A server with a client for each way of authentication, and two that users sign in to."""
    required_library()
    clients = [
        registered("basic", "client_secret_basic", scope="read write"),
        registered("post", "client_secret_post"),
        registered("secret-jwt", "client_secret_jwt"),
        registered("key-jwt", "private_key_jwt", jwks={"keys": [private_key[1]]}),
        for_users("shop", LONG),
        for_users("hasty", SHORT),
    ]
    with AuthorizationServer(clients) as server:
        yield server


@pytest.fixture
def lone_server() -> Iterator[AuthorizationServer]:
    """A server that publishes its metadata only at the path of RFC 8414."""
    required_library()
    clients = [registered("basic", "client_secret_basic"), registered("post", "client_secret_post")]
    with AuthorizationServer(clients, metadata="oauth-authorization-server") as server:
        yield server


@pytest.fixture
def secure_server(request: pytest.FixtureRequest) -> Iterator[Callable[..., AuthorizationServer]]:
    """Yield a function that starts a server over TLS, with given files, whose clients authenticate by certificates."""
    required_library()
    with ExitStack() as stack:

        def start(tls: dict[str, str], clients: dict[str, dict[str, Any]]) -> AuthorizationServer:
            bound = {"tls_client_certificate_bound_access_tokens": True}
            server = AuthorizationServer([registered(name, name, **bound, **own) for name, own in clients.items()], tls)
            request.node.stash[SHOWN] = server
            return stack.enter_context(server)

        yield start


@pytest.fixture
def server(authorization_server: AuthorizationServer, request: pytest.FixtureRequest) -> AuthorizationServer:
    """The server; its output is shown with a failed test."""
    request.node.stash[SHOWN] = authorization_server
    return authorization_server


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the server's output to the report of a failed test."""
    report = yield
    if report.failed and (shown := item.stash.get(SHOWN, None)) is not None:
        report.sections.append(("authorization server", shown.log[-4000:]))
    return report
