"""The grants of OAuth 2.0, each written once as a token flow: what differs is what goes into the form.

============================  =================================  =====================================
class                         grant                              source
============================  =================================  =====================================
:class:`ClientCredentials`    ``client_credentials``             RFC 6749 section 4.4
:class:`RefreshToken`         ``refresh_token``, rotating        RFC 6749 section 6, RFC 9700 section 4.14
:class:`Password`             ``password``                       RFC 6749 section 4.3
:class:`JWTBearer`            ``…:grant-type:jwt-bearer``        RFC 7523 section 2.1
:class:`TokenExchange`        ``…:grant-type:token-exchange``    RFC 8693
:class:`CustomGrant`          any other                          the provider's documents
============================  =================================  =====================================
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping  # noqa: TC003  configuration reads the types of the settings
from typing import TYPE_CHECKING, Final, Unpack
from uuid import uuid4

from tokencache.errors import ConfigurationError, ProviderRejected
from tokencache.ports import SecretText  # noqa: TC001
from tokencache.providers._client_auth import read_text
from tokencache.providers._oauth2 import OAuth2Provider, Options, required

if TYPE_CHECKING:
    from tokencache.ports import FetchContext
    from tokencache.providers.http import TokenFlow

__all__ = [
    "ClientCredentials",
    "CustomGrant",
    "JWTBearer",
    "OAuth2Provider",
    "Options",
    "Password",
    "RefreshToken",
    "TokenExchange",
]

_LONGEST_ASSERTION: Final = 3600


class ClientCredentials(OAuth2Provider):
    """A token for the client itself (RFC 6749 section 4.4)."""

    grant_type = "client_credentials"
    _default_name = "client_credentials"

    def grant_fields(self, audience: str) -> dict[str, str]:
        """Return nothing: the client's proof is all."""
        del audience
        return {}


class RefreshToken(OAuth2Provider):
    """A token for a user who agreed once: ``refresh_token`` is spent for it (RFC 6749 section 6).

    Where the server rotates refresh tokens, the newest one is in the record, which therefore outlives its token, and
    the one given here is used only when there is no record. So the backend must keep what it is given over restarts.
    Spending one twice makes such servers revoke them all: it is spent under the lease only, never without the backend.
    """

    grant_type = "refresh_token"
    refreshing = True
    _default_name = "refresh_token"

    def __init__(self, *, refresh_token: SecretText, **options: Unpack[Options]) -> None:
        super().__init__(**options)
        self._given = required(self.name, "refresh_token", refresh_token)

    def grant_fields(self, audience: str) -> dict[str, str]:
        """Return the refresh token that was given."""
        del audience
        return {"refresh_token": self._given}

    def grant_identity(self) -> Mapping[str, str]:
        """Return the refresh token that was given: it stands for the user."""
        return {"refresh_token": self._given}

    def token_flow(self, context: FetchContext) -> TokenFlow:
        """Spend the newest refresh token, the given one where none is known."""
        known = context.previous
        if known is not None and known.refresh_token is not None and self._refresh_token(context) is None:
            message = f"[{self.name}] the refresh token has expired; sign in again and set refresh_token to the new one"
            raise ProviderRejected(message, error="invalid_grant")
        return (yield from super().token_flow(context))


class Password(OAuth2Provider):
    """A token for a user whose password is known (RFC 6749 section 4.3); for servers that offer nothing better."""

    grant_type = "password"
    _default_name = "password"

    def __init__(self, *, username: str, password: SecretText, **options: Unpack[Options]) -> None:
        super().__init__(**options)
        self._username = required(self.name, "username", username)
        self._password = required(self.name, "password", password)

    def grant_fields(self, audience: str) -> dict[str, str]:
        """Return user and password."""
        del audience
        return {"username": self._username, "password": self._password}

    def grant_identity(self) -> Mapping[str, str]:
        """Return user and password."""
        return self.grant_fields("")


class JWTBearer(OAuth2Provider):
    """A token for whom a signed assertion names (RFC 7523 section 2.1), as Google's service accounts use it.

    ``private_key`` signs the assertion, ``assertion_issuer`` is its ``iss`` (by default ``client_id``), ``subject``
    its ``sub`` (by default the issuer; an empty text leaves it out). ``scope_in_assertion`` puts the scope into the
    assertion rather than into the form. ``claims`` are added. ``assertion_lifetime`` is how long the assertion holds,
    in seconds. The client proves nothing else unless ``client_auth`` says so.
    """

    grant_type = "urn:ietf:params:oauth:grant-type:jwt-bearer"
    _default_name = "jwt_bearer"

    def __init__(
        self,
        *,
        assertion_issuer: str | None = None,
        subject: str | None = None,
        scope_in_assertion: bool = False,
        claims: Mapping[str, str] | None = None,
        assertion_lifetime: float = 3600.0,
        **options: Unpack[Options],
    ) -> None:
        options.setdefault("client_auth", "client_secret_basic" if options.get("client_secret") else "none")
        super().__init__(**options)
        self._issuer = required(self.name, "assertion_issuer", assertion_issuer or options.get("client_id", ""))
        self._subject = self._issuer if subject is None else subject
        self._scope_in_form = not scope_in_assertion
        self._claims = dict(claims or {})
        if not 1 <= assertion_lifetime <= _LONGEST_ASSERTION:
            message = f"[{self.name}] assertion_lifetime={assertion_lifetime!r} must be from 1 to 3600 seconds"
            raise ConfigurationError(message)
        self._assertion_lifetime = int(assertion_lifetime)
        self._private_key = required(self.name, "private_key", options.get("private_key", ""))
        from tokencache.providers._jose import Signer

        self._signer = Signer(
            self.name, self._private_key, algorithm=options.get("algorithm"), key_id=options.get("key_id")
        )

    def grant_fields(self, audience: str) -> dict[str, str]:
        """Return a fresh assertion."""
        now = int(time.time())
        claims: dict[str, object] = {
            "iss": self._issuer,
            "sub": self._subject,
            "aud": self._options.get("assertion_audience", audience),
            "iat": now,
            "exp": now + self._assertion_lifetime,
            "jti": uuid4().hex,
        }
        if not self._subject:
            del claims["sub"]
        if not self._scope_in_form:
            claims["scope"] = " ".join(self._scope)
        return {"assertion": self._signer.sign(claims | self._claims)}

    def grant_identity(self) -> Mapping[str, str]:
        """Return whom the assertion names, and the key."""
        named = {"iss": self._issuer, "sub": self._subject, "private_key": self._private_key}
        return named | {f"claim {name}": value for name, value in self._claims.items()}


class TokenExchange(OAuth2Provider):
    """A token in exchange for another one (RFC 8693), for example a workload's.

    ``subject_token`` is given, or read at each fetch from ``subject_token_file``, which the platform keeps fresh; so
    is the actor's. The types are URNs, by default that of a JWT for a file and of an access token otherwise.
    """

    grant_type = "urn:ietf:params:oauth:grant-type:token-exchange"
    _default_name = "token_exchange"

    def __init__(
        self,
        *,
        subject_token: SecretText | None = None,
        subject_token_file: str | None = None,
        subject_token_type: str | None = None,
        actor_token: SecretText | None = None,
        actor_token_file: str | None = None,
        actor_token_type: str | None = None,
        requested_token_type: str | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(**options)
        if (subject_token is None) == (subject_token_file is None):
            message = f"[{self.name}] set subject_token, or subject_token_file, and not both"
            raise ConfigurationError(message)
        self._subject = _Presented(self.name, "subject_token", subject_token, subject_token_file, subject_token_type)
        self._actor = _Presented(self.name, "actor_token", actor_token, actor_token_file, actor_token_type)
        self._requested = requested_token_type

    def grant_fields(self, audience: str) -> dict[str, str]:
        """Return the tokens that are given in exchange, and the type that is wanted."""
        del audience
        wanted = {} if self._requested is None else {"requested_token_type": self._requested}
        return {**self._subject.fields(), **self._actor.fields(), **wanted}

    def grant_identity(self) -> Mapping[str, str]:
        """Return whose tokens are exchanged, and for what."""
        return {**self._subject.identity(), **self._actor.identity(), "requested": self._requested or ""}


class CustomGrant(OAuth2Provider):
    """Any other grant: ``grant_type`` and whatever ``parameters`` it takes, for example Zoom's ``account_credentials``.

    An empty ``grant_type`` sends none, for APIs that only look like OAuth.
    """

    _default_name = "custom_grant"

    def __init__(self, *, grant_type: str, **options: Unpack[Options]) -> None:
        self.grant_type = grant_type
        super().__init__(**options)

    def grant_fields(self, audience: str) -> dict[str, str]:
        """Return nothing: the parameters are all."""
        del audience
        return {}


class _Presented:
    """A token that is presented: given as a text, or read from a file at each fetch."""

    def __init__(self, provider: str, role: str, text: str | None, path: str | None, kind: str | None) -> None:
        self._provider, self._role, self._text, self._path = provider, role, text, path
        self._kind = kind or f"urn:ietf:params:oauth:token-type:{'access_token' if path is None else 'jwt'}"

    def fields(self) -> dict[str, str]:
        """Return the fields of the form; none where there is no such token."""
        text = self._read()
        return {} if text is None else {self._role: text, f"{self._role}_type": self._kind}

    def identity(self) -> dict[str, str]:
        """Return whose token it is: a file's changes, so its issuer and subject count where it is a JWT."""
        text = self._read()
        if text is None:
            return {}
        from tokencache.providers._jose import claims_of

        claims = claims_of(text) if self._path is not None else {}
        named = {name: claims[name] for name in ("iss", "sub", "aud") if name in claims}
        return {
            self._role: json.dumps(named, sort_keys=True) if "sub" in named else text,
            f"{self._role}_type": self._kind,
        }

    def _read(self) -> str | None:
        """Return the token as it is now."""
        return self._text if self._path is None else read_text(self._provider, f"{self._role}_file", self._path)
