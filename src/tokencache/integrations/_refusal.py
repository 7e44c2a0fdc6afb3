"""Common decisions of all HTTP clients of a source: which origin may get the token, and which answer refuses it.

Pure functions, without a client library or a socket. A client describes its response as an :class:`Answer`;
:func:`heals` decides whether to retry with another token. :class:`Origins` decides which origins may get the token.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol
from urllib.parse import urlsplit

from tokencache.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from tokencache.token import Token

REFUSED: Final = frozenset({401})
"""The statuses by which a resource server refuses a token; RFC 6750 section 3.1 names 401."""
_CLIENT_ERRORS: Final = range(400, 500)
_PORTS: Final = {"http": 80, "https": 443}
_BAD_TOKEN: Final = re.compile(r'\berror\s*=\s*"?invalid_token\b', re.IGNORECASE)
_BAD_GRANT: Final = re.compile(r'\berror\s*=\s*"?insufficient_(?:scope|user_authentication)\b', re.IGNORECASE)
"""A valid token without the needed rights (RFC 6750 section 3.1, RFC 9470 section 3): a new one would not help."""


class TokenSupply(Protocol):
    """The methods of a source that the integrations need; :class:`tokencache.TokenSource` has them."""

    def token(self) -> Token:
        """Return a valid token."""
        ...

    async def atoken(self) -> Token:
        """Return a valid token."""
        ...

    def replace(self, token: Token) -> Token | None:
        """Return another token after ``token`` was refused with a 401, ``None`` if the source has no other one."""
        ...

    async def areplace(self, token: Token) -> Token | None:
        """Return another token after ``token`` was refused with a 401, ``None`` if the source has no other one."""
        ...


class Origin(NamedTuple):
    """Scheme, host and port of a URL (RFC 6454): a token is safe with all URLs of one origin."""

    scheme: str
    host: str
    port: int | None

    @classmethod
    def of(cls, scheme: str, host: str, port: int | None) -> Origin:
        """Return the normalized origin: lower case, with the scheme's default port if no port is given."""
        scheme = scheme.lower()
        return cls(scheme, host.lower(), _PORTS.get(scheme) if port is None else port)

    @classmethod
    def parse(cls, url: str) -> Origin:
        """Return the origin of a URL. Raises ``ValueError`` for an invalid port."""
        parts = urlsplit(url)
        return cls.of(parts.scheme, parts.hostname or "", parts.port)


class Origins:
    """The origins that may get the token of a source: the named ones, or without names any.

    ``named`` are URLs such as ``https://api.example``; path and query are ignored. Raises ``ConfigurationError`` for a
    URL without an origin.
    """

    def __init__(self, named: str | Iterable[str]) -> None:
        self._named = frozenset(_named(url) for url in ([named] if isinstance(named, str) else named))

    def __bool__(self) -> bool:
        """Return whether any origin was named."""
        return bool(self._named)

    def allow(self, origin: Origin) -> bool:
        """Return whether ``origin`` may get the token."""
        return not self._named or origin in self._named


class FirstOrigin:
    """The origin of the first request, for clients that do not distinguish redirects from the caller's requests."""

    def __init__(self, named: str | Iterable[str]) -> None:
        self._origins = Origins(named)
        self._first: Origin | None = None

    def allow(self, origin: Origin) -> bool:
        """Return whether ``origin`` may get the token: if it is named, or without names if it is the first."""
        if self._origins:
            return self._origins.allow(origin)
        if self._first is None:
            self._first = origin
        return origin == self._first


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP response and its request, as far as :func:`heals` needs them.

    ``asked`` is the origin of the caller's request, ``answered`` that of this answer, after redirects. ``carried`` is
    the ``Authorization`` header of the answered request. ``repeatable`` says whether that request's body can be sent
    again unchanged. ``challenge`` holds the ``WWW-Authenticate`` headers, joined by commas.
    """

    status: int
    challenge: str
    asked: Origin
    answered: Origin
    carried: object = field(repr=False)
    repeatable: bool


def heals(answer: Answer, token: Token, refused: Collection[int]) -> bool:
    """Return whether the answer refuses ``token``, and the client should send the request with another one (INV-6).

    ``refused`` are the statuses that mean a refusal. The request must have carried the token to the origin of the
    caller's request, and its body must be repeatable. Insufficient rights do not make a token bad (INV-7).
    """
    if answer.carried != token.authorization or answer.answered != answer.asked:
        return False
    return answer.repeatable and says_bad_token(answer.status, answer.challenge, refused)


def checked_statuses(refused: Collection[int]) -> frozenset[int]:
    """Return the statuses that mean a refused token; raises ``ConfigurationError`` unless they are 400 to 499."""
    with suppress(TypeError):  # one number instead of a set
        if all(each in _CLIENT_ERRORS for each in refused):
            return frozenset(refused)
    message = f"refused={refused!r}: give statuses from 400 to 499, such as {{401, 403}}"
    raise ConfigurationError(message)


def says_bad_token(status: int, challenge: str, refused: Collection[int] = REFUSED) -> bool:
    """Return whether a server refused the token itself: by a 401, or by ``invalid_token`` (RFC 6750 section 3.1)."""
    if status not in _CLIENT_ERRORS or _BAD_GRANT.search(challenge):
        return False
    return status in refused or _BAD_TOKEN.search(challenge) is not None


def _named(url: str) -> Origin:
    """Return the origin of a caller's URL."""
    try:
        origin = Origin.parse(url)
    except ValueError:
        origin = Origin("", "", None)
    if not origin.host or origin.scheme not in _PORTS:
        message = f"origins={url!r}: give scheme and host, such as 'https://api.example' or 'https://api.example:8443'"
        raise ConfigurationError(message)
    if not origin.host.isascii():  # clients compare the wire form
        origin = origin._replace(host=origin.host.encode("idna").decode())
    return origin
