"""Signed assertions (RFC 7515, RFC 7519) by PyJWT, the extra ``jose``; loaded when a provider needs one."""

from __future__ import annotations

import binascii
import json
import warnings
from base64 import urlsafe_b64decode, urlsafe_b64encode
from contextlib import suppress
from hashlib import sha256
from importlib import import_module
from typing import TYPE_CHECKING, Final, NoReturn, cast

from tokencache.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import ModuleType

_LONGEST: Final = 1 << 16
_CURVES: Final = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}


class Signer:
    """Signs claims with one key: a shared secret (HMAC) or a private key in PEM.

    ``algorithm`` is a name of RFC 7518 (``RS256``, ``PS256``, ``ES256``, ``HS256``) or ``EdDSA``; by default it is
    selected by the key. ``key_id`` and ``thumbprint`` (SHA-256 of a DER certificate) go into the header.

    Raises ``ConfigurationError`` if the key is unreadable or does not fit the algorithm, or if PyJWT is not installed.
    The message never holds the key.
    """

    def __init__(
        self,
        provider: str,
        key: str,
        *,
        shared: bool = False,
        algorithm: str | None = None,
        key_id: str | None = None,
        thumbprint: str | None = None,
    ) -> None:
        self._jwt = _library(provider)
        self._key: object = key if shared else _private_key(provider, key)
        self._algorithm = algorithm or ("HS256" if shared else _suited(self._key))
        self._headers = {name: value for name, value in (("kid", key_id), ("x5t#S256", thumbprint)) if value}
        self._provider = provider
        if shared != self._algorithm.startswith("HS"):
            self._refuse()
        self.sign({})  # a key of the wrong kind fails now, not at the first fetch

    def sign(self, claims: Mapping[str, object]) -> str:
        """Return the claims as a compact signed JWT."""
        signed: str | None = None
        with suppress(Exception), warnings.catch_warnings():  # the library's text may hold a part of the key
            warnings.simplefilter("ignore")  # a short shared secret is the server's choice
            signed = self._jwt.encode(dict(claims), self._key, algorithm=self._algorithm, headers=self._headers)
        if signed is None:
            self._refuse()
        return signed

    def _refuse(self) -> NoReturn:
        """Raise for a key that does not fit the algorithm."""
        message = f"[{self._provider}] algorithm={self._algorithm!r} does not fit the key; set the algorithm of the key"
        raise ConfigurationError(message)


def lifespan(now: float, lifetime: int) -> dict[str, int]:
    """Return ``iat``, ``nbf`` and ``exp`` of an assertion that may live for ``lifetime`` seconds (RFC 7519).

    It begins up to a minute ago, so that a server whose clock is behind accepts it. It ends so much earlier, so that a
    server's limit of the lifetime holds by its clock, too.
    """
    begin = int(now) - min(60, lifetime // 2)
    return {"iat": begin, "nbf": begin, "exp": begin + lifetime}


def claims_of(token: str) -> dict[str, object]:
    """Return the unverified claims of a JWT: for names, never for trust. Empty if the token is not a JWT."""
    parts = token.split(".")
    if len(token) > _LONGEST or len(parts) != 3:  # noqa: PLR2004
        return {}
    with suppress(ValueError, RecursionError, binascii.Error):
        claims: object = json.loads(urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
        if isinstance(claims, dict):
            return cast("dict[str, object]", claims)
    return {}


def thumbprint_of(provider: str, certificate: bytes) -> str:
    """Return the ``x5t#S256`` of the first certificate in a PEM text (RFC 8705 section 3.1)."""
    import ssl

    begin, end = certificate.find(b"-----BEGIN CERTIFICATE-----"), certificate.find(b"-----END CERTIFICATE-----")
    with suppress(ValueError, binascii.Error):
        der = ssl.PEM_cert_to_DER_cert(certificate[begin : end + len(b"-----END CERTIFICATE-----")].decode("ascii"))
        return urlsafe_b64encode(sha256(der).digest()).rstrip(b"=").decode()
    message = f"[{provider}] the certificate file holds no PEM certificate; it begins with -----BEGIN CERTIFICATE"
    raise ConfigurationError(message)


def _library(provider: str) -> ModuleType:
    """Return the module of PyJWT."""
    try:
        import_module("cryptography")
        return import_module("jwt")
    except ImportError as error:
        message = f"[{provider}] signed assertions need PyJWT: pip install 'tokencache[jose]'"
        raise ConfigurationError(message) from error


def _private_key(provider: str, pem: str) -> object:
    r"""Return the private key of a PEM text; a text from an environment variable may hold ``\n`` for line ends."""
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    text = pem.replace("\\n", "\n") if "\n" not in pem.strip() else pem
    with suppress(Exception):  # the library's text may hold a part of the key
        return load_pem_private_key(text.strip().encode(), password=None)
    message = f"[{provider}] private_key is not a PEM private key without a password; give the text of its .pem file"
    raise ConfigurationError(message)


def _suited(key: object) -> str:
    """Return the default algorithm for a private key."""
    curve = getattr(getattr(key, "curve", None), "name", None)
    if curve is not None:
        return _CURVES.get(cast("str", curve), "ES256")
    return "RS256" if hasattr(key, "private_numbers") else "EdDSA"
