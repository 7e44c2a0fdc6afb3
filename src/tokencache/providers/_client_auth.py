"""Client authentication at a token endpoint: RFC 6749 section 2.3, RFC 7523 section 2.2, RFC 8705 section 2."""

from __future__ import annotations

import time
from base64 import b64encode
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, get_args
from urllib.parse import quote_plus
from uuid import uuid4

from tokencache._files import content_of
from tokencache.errors import ConfigurationError

if TYPE_CHECKING:
    from tokencache.providers._jose import Signer

Method: TypeAlias = Literal[
    "client_secret_basic",
    "client_secret_post",
    "client_secret_jwt",
    "private_key_jwt",
    "jwt_file",
    "tls_client_auth",
    "self_signed_tls_client_auth",
    "none",
]
METHODS: Final[tuple[str, ...]] = get_args(Method)
ASSERTION_TYPE: Final = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
_ASSERTION_LIFE: Final = 180
_NEEDS: Final = {
    "client_secret_basic": ("client_id", "client_secret"),
    "client_secret_post": ("client_id", "client_secret"),
    "client_secret_jwt": ("client_id", "client_secret"),
    "private_key_jwt": ("client_id", "private_key"),
    "jwt_file": ("client_id", "client_assertion_file"),
    "tls_client_auth": ("client_id", "certificate"),
    "self_signed_tls_client_auth": ("client_id", "certificate"),
    "none": (),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """The settings of a provider for client authentication."""

    client_id: str | None = None
    client_secret: str | None = field(default=None, repr=False)
    private_key: str | None = field(default=None, repr=False)
    key_id: str | None = None
    algorithm: str | None = None
    assertion_audience: str | None = None
    client_assertion_file: str | None = None
    certificate: str | None = None
    certificate_key: str | None = None


@dataclass(frozen=True, slots=True)
class Proof:
    """The client authentication of one request: form fields, headers, and the secrets that a server could echo."""

    fields: dict[str, str] = field(repr=False)
    headers: dict[str, str] = field(repr=False)
    secrets: tuple[str, ...] = field(repr=False)


class ClientAuth:
    """One method of client authentication, by its name in ``token_endpoint_auth_method`` (RFC 7591).

    Without a ``method``, the credentials select it. In this order: a private key signs assertions, a file of assertions
    is read, a secret goes into the ``Authorization`` header, a certificate authenticates the TLS handshake. A client
    with only an id is public.

    Raises ``ConfigurationError`` that names the missing, unknown or unreadable setting.
    """

    def __init__(self, provider: str, method: str | None, credentials: Credentials) -> None:
        self.method = method or _suited(credentials)
        self._provider = provider
        self._credentials = credentials
        self.client_id = credentials.client_id
        if self.method not in METHODS:
            message = f"[{provider}] client_auth={self.method!r} is not known; choose one of {', '.join(METHODS)}"
            raise ConfigurationError(message)
        missing = [name for name in _NEEDS[self.method] if not getattr(credentials, name)]
        if missing:
            message = f"[{provider}] client_auth={self.method!r} needs {' and '.join(missing)}; set what is missing"
            raise ConfigurationError(message)
        self.thumbprint = self._thumbprint()
        self._signer = self._make_signer()

    @property
    def binds(self) -> bool:
        """Whether the client sends a certificate in the TLS handshake; tokens may be bound to it (RFC 8705)."""
        return self._credentials.certificate is not None and (
            self._credentials.certificate_key is not None or self.method.endswith("tls_client_auth")
        )

    @property
    def signs(self) -> bool:
        """Whether each request carries an assertion that is signed here, with the time of this host."""
        return self._signer is not None

    @property
    def secrets(self) -> dict[str, str]:
        """The credentials for the identity: a certificate by its thumbprint, a file by its name."""
        names = ("client_secret", "private_key", "client_assertion_file")
        known = {name: value for name in names if (value := getattr(self._credentials, name))}
        return known | ({"certificate": self.thumbprint} if self.thumbprint else {})

    def prove(self, audience: str, now: float | None = None) -> Proof:
        """Return the client authentication of one request to ``audience``, the issuer or the token endpoint.

        ``now`` is the epoch for a signed assertion, by default the time of this host.
        """
        client_id, secret = self.client_id or "", self._credentials.client_secret or ""
        match self.method:
            case "client_secret_basic":
                pair = b64encode(f"{quote_plus(client_id)}:{quote_plus(secret)}".encode()).decode()
                return Proof({}, {"Authorization": f"Basic {pair}"}, (secret, pair))
            case "client_secret_post":
                return Proof({"client_id": client_id, "client_secret": secret}, {}, (secret,))
            case "client_secret_jwt" | "private_key_jwt" | "jwt_file":
                assertion = self._assertion(audience, time.time() if now is None else now)
                fields = {"client_assertion_type": ASSERTION_TYPE, "client_assertion": assertion}
                return Proof({"client_id": client_id, **fields}, {}, (secret, assertion))
            case _:
                return Proof({"client_id": client_id} if client_id else {}, {}, (secret,))

    def _assertion(self, audience: str, now: float) -> str:
        """Return a fresh assertion: signed here, or read from the file that the platform maintains."""
        if self._signer is None:
            return read_text(self._provider, "client_assertion_file", self._credentials.client_assertion_file or "")
        from tokencache.providers._jose import lifespan

        return self._signer.sign(
            {
                "iss": self.client_id,
                "sub": self.client_id,
                "aud": self._credentials.assertion_audience or audience,
                "jti": uuid4().hex,
                **lifespan(now, _ASSERTION_LIFE),
            }
        )

    def _make_signer(self) -> Signer | None:
        """Return the signer of assertions, ``None`` if this method does not sign."""
        given = self._credentials
        if self.method not in {"client_secret_jwt", "private_key_jwt"}:
            return None
        from tokencache.providers._jose import Signer

        shared = self.method == "client_secret_jwt"
        return Signer(
            self._provider,
            (given.client_secret if shared else given.private_key) or "",
            shared=shared,
            algorithm=given.algorithm,
            key_id=given.key_id,
            thumbprint=self.thumbprint,
        )

    def _thumbprint(self) -> str | None:
        """Return the thumbprint of the certificate, ``None`` without one."""
        if self._credentials.certificate is None:
            return None
        from tokencache.providers._jose import thumbprint_of

        text = read_text(self._provider, "certificate", self._credentials.certificate)
        return thumbprint_of(self._provider, text.encode())


def read_text(provider: str, setting: str, path: str) -> str:
    """Return the stripped text of a file. Raises ``ConfigurationError`` that names the setting."""
    try:
        text = content_of(path).decode().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
    else:
        if text:
            return text
        reason = "it is empty"
    message = f"[{provider}] {setting}: {path} cannot be read ({reason}); check path and permissions"
    raise ConfigurationError(message)


def _suited(credentials: Credentials) -> str:
    """Return the default method for the credentials."""
    if credentials.private_key:
        return "private_key_jwt"
    if credentials.client_assertion_file:
        return "jwt_file"
    if credentials.client_secret:
        return "client_secret_basic"
    return "tls_client_auth" if credentials.certificate else "none"
