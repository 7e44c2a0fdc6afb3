"""Keys: from the identity of a provider to the name of its record.

Different identities have different encodings: each value has its type and its length, texts count by code points,
sets and mappings by content. A credential enters only as a slow fingerprint (INV-9), salted with the rest of the
identity. So every process of a fleet finds the same key, and the key does not reveal the credential.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, NoReturn, TypeAlias, cast

from tokencache.errors import ConfigurationError
from tokencache.ports import Secret

if TYPE_CHECKING:
    from collections.abc import Iterable
    from collections.abc import Set as AbstractSet

_VERSION: Final = "tokencache identity 1"
_DEEPEST: Final = 16
_MOST_KNOWN: Final = 64
_PROCESS_KEY: Final = os.urandom(32)
_known: dict[bytes, bytes] = {}  # slow fingerprints by a digest that only this process can compute

_Hide: TypeAlias = Callable[[Secret], bytes]


def fingerprint(provider_name: str, identity: Mapping[str, object]) -> str:
    """Return 40 hexadecimal digits that name an identity, the same in all processes of a fleet and after a restart.

    Takes some 50 ms for each credential that is new to this process. Raises ``ConfigurationError`` naming
    the field that holds an unsupported value.
    """
    from hashlib import blake2b

    rest = _encode_identity(provider_name, identity, lambda _: b"")
    salt = blake2b(rest, digest_size=32).digest()
    whole = _encode_identity(provider_name, identity, lambda secret: _slow(secret, salt))
    return blake2b(whole, digest_size=20).hexdigest()


def quick_fingerprint(name: str, identity: Mapping[str, object]) -> bytes:
    """Return bytes that are equal for equal identities, within *this process* only.

    Raises ``ConfigurationError`` as :func:`fingerprint` does.
    """
    return _keyed(_encode_identity(name, identity, lambda secret: _keyed(secret.reveal())))


def stretched(provider_name: str, identity: Mapping[str, object], purpose: bytes) -> bytes:
    """Return key material derived from the credentials of an identity, for ``purpose`` (16 bytes at most).

    It is not part of any record key. Guessing a credential from it is as slow as from the fingerprint.
    Raises ``ConfigurationError`` as :func:`fingerprint` does.
    """
    from hashlib import blake2b

    rest = _encode_identity(provider_name, identity, lambda _: b"")
    salt = blake2b(rest, digest_size=32, person=purpose).digest()
    return _encode_identity(provider_name, identity, lambda secret: _slow(secret, salt))


def has_secret(identity: Mapping[str, object]) -> bool:
    """Return whether an identity holds a credential that is not empty and that only its holders know."""
    found: list[bool] = []

    def hide(secret: Secret) -> bytes:
        found.append(secret.secret and bool(secret.reveal()))
        return b""

    _encode_identity("", identity, hide)
    return any(found)


def record_key(namespace: str, provider: str, fingerprint: str) -> str:
    """Return the key of a record: ``{namespace}{provider}:{identity}``."""
    return f"{namespace}{provider}:{fingerprint}"


def _keyed(data: bytes) -> bytes:
    """Return a digest that only this process can compute."""
    from hashlib import blake2b

    return blake2b(data, key=_PROCESS_KEY, digest_size=32).digest()


def _slow(secret: Secret, salt: bytes) -> bytes:
    """Return the slow fingerprint of a credential; it is computed once per process and then remembered."""
    import hashlib

    place = _keyed(salt + secret.reveal())  # all salts have one length, so the sum is unambiguous
    known = _known.get(place)
    if known is None:
        try:
            known = hashlib.scrypt(secret.reveal(), salt=salt, n=2**14, r=8, p=1, dklen=32)
        except (AttributeError, ValueError):
            known = None
        if known is None:
            message = "this Python has no scrypt, which keeps credentials out of keys; use one whose OpenSSL offers it"
            raise ConfigurationError(message)
        if len(_known) >= _MOST_KNOWN:
            _known.clear()
        _known[place] = known
    return known


def _encode_identity(provider_name: str, identity: Mapping[str, object], hide: _Hide) -> bytes:
    """Return the encoding of a provider's name and identity."""
    encoder = _Encoder(provider_name, hide)
    return b"".join((encoder.encode(_VERSION), encoder.encode(provider_name), encoder.encode_mapping(identity)))


class _Encoder:
    """Encodes values as tag, length and content; tracks the path into the identity, for messages and depth limit."""

    def __init__(self, provider_name: str, hide: _Hide) -> None:
        self._provider_name = provider_name
        self._hide = hide
        self._place: list[object] = []

    def encode(self, value: object) -> bytes:  # noqa: PLR0911  one return per type
        """Return the encoding of ``value``."""
        match value:
            case None:
                return b"0"
            case bool():
                return b"+" if value else b"-"
            case int():
                return _framed(b"i", b"%x" % value)
            case float():
                return _framed(b"f", float.hex(value).encode())
            case str():
                return _framed(b"s", value.encode("utf-8", "surrogatepass"))
            case bytes():
                return _framed(b"b", value)
            case Secret():
                return _framed(b"x", self._hide(value))
            case _:
                return self._encode_many(value)

    def _encode_many(self, value: object) -> bytes:
        """Return the encoding of a collection."""
        if len(self._place) >= _DEEPEST:
            self._refuse(f"is nested more than {_DEEPEST} levels deep")
        if isinstance(value, list | tuple):
            return _framed(b"l", b"".join(self._encode_each(enumerate(cast("Iterable[object]", value)))))
        if isinstance(value, set | frozenset):
            return _framed(b"u", b"".join(sorted(self._encode_each(enumerate(cast("AbstractSet[object]", value))))))
        return self.encode_mapping(value)

    def encode_mapping(self, value: object) -> bytes:
        """Return the encoding of a mapping; raises ``ConfigurationError`` for anything else."""
        if not isinstance(value, Mapping):
            self._refuse(
                f"holds a {type(value).__name__}; use None, bool, int, float, str, bytes, Secret,"
                " or a list, tuple, set or mapping of them"
            )
        table = cast("Mapping[object, object]", value)
        names = [self.encode(name) for name in table]
        pairs = zip(names, self._encode_each(table.items()), strict=True)
        return _framed(b"m", b"".join(name + item for name, item in sorted(pairs)))

    def _encode_each(self, items: Iterable[tuple[object, object]]) -> list[bytes]:
        """Return the encodings of items; the path names the current one."""
        encoded: list[bytes] = []
        for place, item in items:
            self._place.append(place)
            encoded.append(self.encode(item))
            self._place.pop()
        return encoded

    def _refuse(self, why: str) -> NoReturn:
        """Raise ``ConfigurationError`` naming the field."""
        field = f"the field {self._place[0]!r} of its identity" if self._place else "its identity"
        message = f"provider {self._provider_name!r}: {field} {why}"
        raise ConfigurationError(message)


def _framed(tag: bytes, content: bytes) -> bytes:
    """Return content with its tag and length, so that joined items stay unambiguous."""
    return b"%s%d:%s" % (tag, len(content), content)
