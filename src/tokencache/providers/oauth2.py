"""The grants of OAuth 2.0; they differ in their form fields.

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

    def grant_fields(self, audience: str, now: float) -> dict[str, str]:
        """Return no fields: the client authentication is enough."""
        del audience, now
        return {}


class RefreshToken(OAuth2Provider):
    """A token for a user who consented once: a fetch spends ``refresh_token`` (RFC 6749 section 6).

    If the server rotates refresh tokens, the record holds the newest one and outlives its token. The one given here is
    used only without a record, so the backend must be durable. Such servers revoke all tokens if a refresh token is
    spent twice. So it is spent under the lease only: never without the backend, or beside an unusable record.
    """

    grant_type = "refresh_token"
    refreshing = True
    _default_name = "refresh_token"

    def __init__(self, *, refresh_token: SecretText, **options: Unpack[Options]) -> None:
        super().__init__(**options)
        self._given = required(self.name, "refresh_token", refresh_token)

    def grant_fields(self, audience: str, now: float) -> dict[str, str]:
        """Return the configured refresh token."""
        del audience, now
        return {"refresh_token": self._given}

    def grant_identity(self) -> Mapping[str, str]:
        """Return the configured refresh token, which identifies the user."""
        return {"refresh_token": self._given}

    def grant_is_secret(self) -> bool:
        """Return whether the grant holds a secret: the refresh token."""
        return True

    def token_flow(self, context: FetchContext) -> TokenFlow:
        """Spend the newest refresh token, or the configured one if no record has one."""
        known = context.previous
        if known is not None and known.refresh_token is not None and self._refresh_token(context) is None:
            message = f"[{self.name}] the refresh token has expired; sign in again and set refresh_token to the new one"
            raise ProviderRejected(message, error="invalid_grant")
        return (yield from super().token_flow(context))


class Password(OAuth2Provider):
    """A token for a user by password (RFC 6749 section 4.3); for servers without a better grant."""

    grant_type = "password"
    _default_name = "password"

    def __init__(self, *, username: str, password: SecretText, **options: Unpack[Options]) -> None:
        super().__init__(**options)
        self._username = required(self.name, "username", username)
        self._password = required(self.name, "password", password)

    def grant_fields(self, audience: str, now: float) -> dict[str, str]:
        """Return user and password."""
        del audience, now
        return {"username": self._username, "password": self._password}

    def grant_identity(self) -> Mapping[str, str]:
        """Return user and password."""
        return self.grant_fields("", 0.0)

    def grant_is_secret(self) -> bool:
        """Return whether the grant holds a secret: the password."""
        return True


class JWTBearer(OAuth2Provider):
    """A token for the subject of a signed assertion (RFC 7523 section 2.1), for example a Google service account.

    ``private_key`` signs the assertion. ``assertion_issuer`` is its ``iss`` (by default ``client_id``), ``subject`` its
    ``sub`` (by default the issuer; an empty text omits it). ``scope_in_assertion`` puts the scope into the assertion
    instead of the form. ``claims`` are added. ``assertion_lifetime`` is in seconds. The client does not authenticate
    otherwise, unless ``client_auth`` is set.
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

    def grant_fields(self, audience: str, now: float) -> dict[str, str]:
        """Return a fresh assertion."""
        from tokencache.providers._jose import lifespan

        claims: dict[str, object] = {
            "iss": self._issuer,
            "sub": self._subject,
            "aud": self._options.get("assertion_audience", audience),
            "jti": uuid4().hex,
            **lifespan(now, self._assertion_lifetime),
        }
        if not self._subject:
            del claims["sub"]
        if not self._scope_in_form:
            claims["scope"] = " ".join(self._scope)
        return {"assertion": self._signer.sign(claims | self._claims)}

    def grant_identity(self) -> Mapping[str, str]:
        """Return the assertion's issuer, subject and key."""
        named = {"iss": self._issuer, "sub": self._subject, "private_key": self._private_key}
        named["scope"] = "in the assertion" if not self._scope_in_form else "in the form"
        return named | {f"claim {name}": value for name, value in self._claims.items()}


class TokenExchange(OAuth2Provider):
    """A token in exchange for another token (RFC 8693), for example for that of a workload.

    Give ``subject_token``, or ``subject_token_file``, which the platform keeps fresh and each fetch reads; likewise for
    the actor's. The types are URNs; the default is that of a JWT for a file, and of an access token otherwise.
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
            message = f"[{self.name}] set either subject_token or subject_token_file"
            raise ConfigurationError(message)
        self._subject = _Presented(self.name, "subject_token", subject_token, subject_token_file, subject_token_type)
        self._actor = _Presented(self.name, "actor_token", actor_token, actor_token_file, actor_token_type)
        self._requested = requested_token_type

    def grant_fields(self, audience: str, now: float) -> dict[str, str]:
        """Return the tokens to exchange, and the requested type."""
        del audience, now
        wanted = {} if self._requested is None else {"requested_token_type": self._requested}
        return {**self._subject.fields(), **self._actor.fields(), **wanted}

    def grant_identity(self) -> Mapping[str, str]:
        """Return the identities of the exchanged tokens, and the requested type."""
        return {**self._subject.identity(), **self._actor.identity(), "requested": self._requested or ""}

    def grant_is_secret(self) -> bool:
        """Return whether the grant holds a secret: a token given as text."""
        return self._subject.given or self._actor.given


class CustomGrant(OAuth2Provider):
    """Any other grant: ``grant_type`` with its ``parameters``, for example Zoom's ``account_credentials``.

    With an empty ``grant_type`` the field is not sent, for APIs that only resemble OAuth.
    """

    _default_name = "custom_grant"

    def __init__(self, *, grant_type: str, **options: Unpack[Options]) -> None:
        self.grant_type = grant_type
        super().__init__(**options)

    def grant_fields(self, audience: str, now: float) -> dict[str, str]:
        """Return no fields: the parameters are enough."""
        del audience, now
        return {}


class _Presented:
    """A token to exchange: a text, or a file that each fetch reads."""

    def __init__(self, provider: str, role: str, text: str | None, path: str | None, kind: str | None) -> None:
        self._provider, self._role, self._text, self._path = provider, role, text, path
        self._kind = kind or f"urn:ietf:params:oauth:token-type:{'access_token' if path is None else 'jwt'}"

    def fields(self) -> dict[str, str]:
        """Return its form fields, empty without such a token."""
        text = self._read()
        return {} if text is None else {self._role: text, f"{self._role}_type": self._kind}

    def identity(self) -> dict[str, str]:
        """Return the identity of the token. The JWT in a file changes, so its path, issuer and subject count.

        The claims are not verified. The path keeps a forged JWT in another file from the holder's record.
        """
        text = self._read()
        if text is None:
            return {}
        from tokencache.providers._jose import claims_of

        claims = claims_of(text) if self._path is not None else {}
        named = {name: claims[name] for name in ("iss", "sub", "aud") if name in claims}
        return {
            self._role: json.dumps(named, sort_keys=True) if "sub" in named else text,
            f"{self._role}_type": self._kind,
            **({} if self._path is None else {f"{self._role}_file": self._path}),
        }

    @property
    def given(self) -> bool:
        """Whether the token is a text. The claims of a token in a file are no secret."""
        return self._text is not None

    def _read(self) -> str | None:
        """Return the current token."""
        return self._text if self._path is None else read_text(self._provider, f"{self._role}_file", self._path)
