"""Sealing: records encrypted with AES-256-GCM, so that access to the store does not reveal the tokens.

The sealed form is the first 8 bytes of a hash of the key, 12 random bytes, and the ciphertext with its tag. The
record's key is the associated data: a record that was moved to another key does not open. The hash names the
encryption key, so a fleet with many old keys tries only one.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, TypeAlias

from tokencache import _keys
from tokencache.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    from tokencache._record import Sealing
    from tokencache.ports import TokenProvider

Encrypt: TypeAlias = str | bytes | Sequence[str | bytes]
"""A key, several of them (the first encrypts, all decrypt), or ``"provider"``."""

FROM_PROVIDER: Final = "provider"
MAKE_ONE: Final = "python -c 'import secrets; print(secrets.token_urlsafe(32))'"
"""A command that prints a new random key."""

_SIZE: Final = 32
_ID: Final = 8
_NONCE: Final = 12
_TAG: Final = 16


class RecordSealing:
    """Seals with the first of its keys, and opens records sealed with any of them. No repr shows a key (INV-9)."""

    __slots__ = ("_ciphers", "_first")

    def __init__(self, keys: Sequence[bytes]) -> None:
        kind = _cipher()
        self._ciphers: Mapping[bytes, AESGCM] = {_name_of(key): kind(key) for key in reversed(keys)}
        self._first = _name_of(keys[0])

    def seal(self, key: str, plain: bytes) -> bytes:
        """Return ``plain`` sealed for the record key ``key``."""
        nonce = os.urandom(_NONCE)
        return b"".join((self._first, nonce, self._ciphers[self._first].encrypt(nonce, plain, _bound(key))))

    def open(self, key: str, sealed: bytes) -> bytes:
        """Return the plain bytes; raises ``ValueError``, or the library's own error, for other data."""
        cipher = self._ciphers.get(sealed[:_ID])
        if cipher is None or len(sealed) < _ID + _NONCE + _TAG:
            message = "sealed with another key"
            raise ValueError(message)
        nonce = sealed[_ID : _ID + _NONCE]
        return cipher.decrypt(nonce, sealed[_ID + _NONCE :], _bound(key))

    def __repr__(self) -> str:
        """Return the number of keys."""
        return f"<RecordSealing with {len(self._ciphers)} keys>"


class Sealer:
    """Gives each source the sealing that ``encrypt`` asks for.

    Raises ``ConfigurationError`` for an unusable key, which the message does not quote, and for a missing library.
    """

    __slots__ = ("_sealing",)

    def __init__(self, encrypt: Encrypt) -> None:
        _cipher()
        self._sealing: RecordSealing | None = None  # derived from each provider's own credential
        if isinstance(encrypt, str) and encrypt.strip().lower() == FROM_PROVIDER:
            return
        self._sealing = sealing_of(encrypt)

    def admit(self, provider: TokenProvider) -> None:
        """Raise ``ConfigurationError`` if the key is derived from the credential and the provider has none."""
        if self._sealing is None and not _keys.has_secret(provider.identity()):
            message = (
                f"[{provider.name}] encrypt='provider' derives the key from the provider's own credential, and its"
                " identity holds no Secret that only its holders know (the path of a file, a certificate and claims"
                f" are public); give the fleet a key of its own: {MAKE_ONE}"
            )
            raise ConfigurationError(message)

    def sealing(self, provider: TokenProvider, fingerprint: str) -> Sealing:
        """Return the sealing for the records of a provider whose identity has this fingerprint."""
        if self._sealing is not None:
            return self._sealing
        self.admit(provider)
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF

        # A credential may be a human password, so a guess must cost as much as for the fingerprint.
        stretched = _keys.stretched(provider.name, provider.identity(), b"tokencache seal")
        info = b"tokencache record key 1:" + fingerprint.encode()
        return RecordSealing([HKDF(algorithm=SHA256(), length=_SIZE, salt=None, info=info).derive(stretched)])


def sealing_of(encrypt: str | bytes | Sequence[str | bytes]) -> RecordSealing:
    """Return a sealing that seals with the first key and opens with all; raises ``ConfigurationError``."""
    given = [encrypt] if isinstance(encrypt, str | bytes) else list(encrypt)
    if not given:
        message = f"encrypt holds no key; leave it out, or give 32 random bytes: {MAKE_ONE}"
        raise ConfigurationError(message)
    return RecordSealing([read_key(key, f"encrypt, key {number}") for number, key in enumerate(given, 1)])


def read_key(given: object, place: str) -> bytes:
    """Return the 32 bytes of a key, given as bytes or as hexadecimal, base64 or base64url text."""
    if isinstance(given, bytes) and len(given) == _SIZE:
        return given
    key = _decoded(given)
    if key is not None and len(key) == _SIZE:
        return key
    if key is None:
        kind = "text" if isinstance(given, str | bytes) else type(given).__name__
        seen = f"this {kind} is neither hexadecimal nor base64"
    else:
        seen = f"this one has {len(key)}"
    message = f"{place}: a key has 32 bytes, as bytes, hexadecimal or base64 text, and {seen}; make one: {MAKE_ONE}"
    raise ConfigurationError(message)


def _cipher() -> type[AESGCM]:
    """Return the cipher; raises ``ConfigurationError`` with the line that installs it."""
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError:
        message = (
            "encryption needs the module 'cryptography', which could not be imported: pip install 'tokencache[crypto]'"
        )
        raise ConfigurationError(message) from None
    return AESGCM


def _decoded(given: object) -> bytes | None:
    """Return the bytes of a hexadecimal, base64 or base64url text, ``None`` for any other value."""
    import binascii
    import re

    if isinstance(given, bytes):
        given = given.decode("ascii", "replace")
    if not isinstance(given, str):
        return None
    text = given.strip()
    if re.fullmatch(r"[0-9A-Fa-f]{64}", text):
        return bytes.fromhex(text)
    plain = text.translate(str.maketrans("-_", "+/")).rstrip("=")
    if not plain or not re.fullmatch(r"[A-Za-z0-9+/]+", plain):
        return None
    try:
        return binascii.a2b_base64(plain + "=" * (-len(plain) % 4))
    except binascii.Error:
        return None


def _name_of(key: bytes) -> bytes:
    """Return the bytes that name a key without revealing it."""
    from hashlib import sha256

    return sha256(b"tokencache key name 1:" + key).digest()[:_ID]


def _bound(key: str) -> bytes:
    """Return the associated data of a record key."""
    return b"tokencache record 1:" + key.encode("utf-8", "surrogatepass")
