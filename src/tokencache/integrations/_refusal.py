"""What every HTTP client of a source decides alike: who may have the token, and what a refusal of it is.

Pure: it knows neither a client library nor a socket. A client describes what it got as an :class:`Answer`; whether that
is a refusal that another token heals is :func:`heals`'s to say. :class:`Origins` says where the token may go.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol
from urllib.parse import urlsplit

from tokencache.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tokencache.token import Token

_UNAUTHORIZED: Final = 401
_CLIENT_ERRORS: Final = range(400, 500)
_PORTS: Final = {"http": 80, "https": 443}
_BAD_TOKEN: Final = re.compile(r'\berror\s*=\s*"?invalid_token\b', re.IGNORECASE)
_BAD_GRANT: Final = re.compile(r'\berror\s*=\s*"?insufficient_(?:scope|user_authentication)\b', re.IGNORECASE)
"""A good token that does not suffice (RFC 6750 section 3.1, RFC 9470 section 3): another like it would not either."""


class TokenSupply(Protocol):
    """What the integrations need of a source; a :class:`tokencache.TokenSource` has it."""

    def token(self) -> Token:
        """Return a good token."""
        ...

    async def atoken(self) -> Token:
        """Return a good token."""
        ...

    def replace(self, token: Token) -> Token | None:
        """Return another token after ``token`` was refused with a 401, or ``None`` when there is none better."""
        ...

    async def areplace(self, token: Token) -> Token | None:
        """Return another token after ``token`` was refused with a 401, or ``None`` when there is none better."""
        ...


class Origin(NamedTuple):
    """Scheme, host and port: what two URLs share when a token for one is safe with the other (RFC 6454)."""

    scheme: str
    host: str
    port: int | None

    @classmethod
    def of(cls, scheme: str, host: str, port: int | None) -> Origin:
        """Return the origin in one form: lower case, and the scheme's own port where none is named."""
        scheme = scheme.lower()
        return cls(scheme, host.lower(), _PORTS.get(scheme) if port is None else port)

    @classmethod
    def parse(cls, url: str) -> Origin:
        """Return the origin of a URL. Raises ``ValueError`` for a port that is none."""
        parts = urlsplit(url)
        return cls.of(parts.scheme, parts.hostname or "", parts.port)


class Origins:
    """Where the token of a source may go: the origins that were named, or anywhere the caller asks.

    ``named`` are URLs such as ``https://api.example``; what follows host and port does not count. Raises
    ``ConfigurationError`` for one that names no origin.
    """

    def __init__(self, named: str | Iterable[str]) -> None:
        self._named = frozenset(_named(url) for url in ([named] if isinstance(named, str) else named))

    def __bool__(self) -> bool:
        """Return whether any was named."""
        return bool(self._named)

    def allow(self, origin: Origin) -> bool:
        """Return whether the token may go to ``origin``."""
        return not self._named or origin in self._named


class FirstOrigin:
    """The origin that was asked first, for clients that do not tell a redirect from a request of the caller."""

    def __init__(self, named: str | Iterable[str]) -> None:
        self._origins = Origins(named)
        self._first: Origin | None = None

    def allow(self, origin: Origin) -> bool:
        """Return whether the token may go to ``origin``: a named one, or, where none was named, the first."""
        if self._origins:
            return self._origins.allow(origin)
        if self._first is None:
            self._first = origin
        return origin == self._first


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client got, and for what.

    ``asked`` is the origin that the caller asked, ``answered`` the one that this answer comes from, after redirects.
    ``carried`` is the ``Authorization`` header of the very request that was answered. ``repeatable`` says whether that
    request's body can be sent once more as it was. ``challenge`` is ``WWW-Authenticate``, several joined by commas.
    """

    status: int
    challenge: str
    asked: Origin
    answered: Origin
    carried: object = field(repr=False)
    repeatable: bool


def heals(answer: Answer, token: Token) -> bool:
    """Return whether the answer is a refusal of ``token`` after which the request is to be sent with another (INV-6).

    The token must have been in that request, at the origin that was asked, and the body must be there to be sent
    again. A token that does not suffice is not a bad one (INV-7).
    """
    if answer.carried != token.authorization or answer.answered != answer.asked:
        return False
    return answer.repeatable and says_bad_token(answer.status, answer.challenge)


def says_bad_token(status: int, challenge: str) -> bool:
    """Return whether a server refused the token itself: by a 401, or by ``invalid_token`` (RFC 6750 section 3.1)."""
    if status not in _CLIENT_ERRORS or _BAD_GRANT.search(challenge):
        return False
    return status == _UNAUTHORIZED or _BAD_TOKEN.search(challenge) is not None


def _named(url: str) -> Origin:
    """Return the origin of a URL that a caller gave."""
    try:
        origin = Origin.parse(url)
    except ValueError:
        origin = Origin("", "", None)
    if not origin.host or origin.scheme not in _PORTS:
        message = f"origins={url!r}: give scheme and host, such as 'https://api.example' or 'https://api.example:8443'"
        raise ConfigurationError(message)
    if not origin.host.isascii():  # clients compare what goes over the wire
        origin = origin._replace(host=origin.host.encode("idna").decode())
    return origin
