"""The base of the OAuth 2.0 grants: one token request, its proof, its answer; the settings that all grants take."""

from __future__ import annotations

import json
import ssl  # noqa: TC003
import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence  # noqa: TC003
from typing import TYPE_CHECKING, ClassVar, Final, Literal, TypedDict, Unpack

import httpx

from tokencache.errors import ConfigurationError, ProviderRejected
from tokencache.expiry import TEN_YEARS
from tokencache.ports import Secret, SecretText
from tokencache.providers._client_auth import ClientAuth, Credentials, Method
from tokencache.providers._discovery import Endpoints, discover
from tokencache.providers._exchange import nearest
from tokencache.providers.http import HTTPTokenProvider
from tokencache.providers.oauth_response import (
    DEFAULT_LIFETIME,
    date_of,
    raise_for_error,
    read_json,
    table_of,
    token_from_mapping,
)
from tokencache.providers.transport import secure_url

if TYPE_CHECKING:
    from collections.abc import Generator

    from tokencache.ports import FetchContext
    from tokencache.providers._client_auth import Proof
    from tokencache.providers.http import TokenFlow
    from tokencache.token import Token

# TC: configuration reads the types of the settings, so what they name is imported for good.

_DEAD: Final = frozenset({"invalid_grant", "invalid_token", "unauthorized_client", "unsupported_grant_type"})
_PUBLIC: Final = frozenset({"grant_type", "username", "subject_token_type", "actor_token_type", "requested_token_type"})
_SHORTEST_SECRET: Final = 8


class Options(TypedDict, total=False):
    """The settings that every grant takes by keyword, and a provider's table in a configuration by the same names.

    Where: ``token_url``, or ``issuer``, whose metadata names it (RFC 8414, OpenID Connect Discovery 1.0); with both,
    the issuer is the audience of assertions. Addresses are https, or http on loopback.

    Who: ``client_id`` with ``client_secret``, ``private_key`` (PEM; ``key_id``, ``algorithm``), ``certificate`` and
    ``certificate_key`` (paths of PEM files, for mutual TLS), or ``client_assertion_file`` (a path that the platform
    keeps fresh). ``client_auth`` is the method by its registered name, by default what the credentials call for.
    ``assertion_audience`` replaces the audience of a signed assertion. ``ca_file`` is a private authority's PEM file.

    What: ``scope`` (a text or a list; its order does not matter), ``audience``, ``resource`` (RFC 8707), further form
    ``parameters`` and ``headers``. All of them are sent at every fetch and are part of the identity. ``encoding`` is
    how the fields travel, ``form`` unless the API wants ``json``.

    The answer: ``token_field`` names the token (dots lead into objects), ``expiry_fields`` further names of its
    expiry, ``default_lifetime`` its life where the answer names none, ``longest_lifetime`` what is believed at most
    (seconds), ``trust_jwt`` whether the ``exp`` in the token counts.

    ``use_refresh`` spends a refresh token that came with the token before the grant is used again. ``name`` is for
    keys, events and messages. ``client``, ``async_client``, ``timeout`` and ``verify`` are those of
    :class:`~tokencache.providers.http.HTTPTokenProvider`.
    """

    name: str
    token_url: str
    issuer: str
    client_id: str
    client_secret: SecretText
    client_auth: Method
    private_key: SecretText
    key_id: str
    algorithm: str
    assertion_audience: str
    client_assertion_file: str
    certificate: str
    certificate_key: str
    ca_file: str
    scope: str | Sequence[str]
    audience: str
    resource: str | Sequence[str]
    parameters: Mapping[str, str]
    headers: Mapping[str, str]
    encoding: Literal["form", "json"]
    token_field: str
    expiry_fields: Sequence[str]
    default_lifetime: float
    longest_lifetime: float
    trust_jwt: bool
    use_refresh: bool
    timeout: float
    client: httpx.Client
    async_client: httpx.AsyncClient
    verify: ssl.SSLContext


class OAuth2Provider(HTTPTokenProvider):
    """What the grants have in common; a subclass says what goes into the form. ``options`` are :class:`Options`.

    Raises ``ConfigurationError`` for settings that cannot work.
    """

    grant_type: str
    refreshing: bool = False
    """Whether only the refresh token of the last record leads to the next token, so that it must not be lost."""
    _default_name: ClassVar[str] = "oauth2"
    _scope_in_form: bool = True

    def __init__(self, **options: Unpack[Options]) -> None:
        self.name = options.get("name") or self._default_name
        _require_known(self.name, options)
        self._options = options
        self._auth = ClientAuth(self.name, options.get("client_auth"), _credentials(options))
        self._endpoints = self._fixed_endpoints()
        self._discovered = self._endpoints is not None
        self._scope = _words(options.get("scope", ()))
        self._resource = _words(options.get("resource", ()))
        super().__init__(
            client=options.get("client"),
            async_client=options.get("async_client"),
            timeout=options.get("timeout", 10.0),
            verify=self._trust(),
        )

    @abstractmethod
    def grant_fields(self, audience: str) -> dict[str, str]:
        """Return the fields of the grant, made anew for each fetch; ``audience`` is whom an assertion addresses."""

    def grant_identity(self) -> Mapping[str, str]:
        """Return what the grant adds to the identity, credentials included: it enters as a slow fingerprint."""
        return {}

    def identity(self) -> Mapping[str, object]:
        """Return everything that makes its tokens its own; whatever may be secret enters as one slow fingerprint."""
        options = self._options
        hidden: dict[str, Mapping[str, str]] = {
            "client": self._auth.secrets,
            "grant": self.grant_identity(),
            "parameters": options.get("parameters", {}),
            "headers": {name.lower(): value for name, value in options.get("headers", {}).items()},
        }
        given = {part: dict(values) for part, values in hidden.items() if values}
        return {
            "issuer": options.get("issuer") or options.get("token_url"),
            "token_url": options.get("token_url"),
            "grant_type": self.grant_type,
            "client_id": self._auth.client_id,
            "client_auth": self._auth.method,
            "scope": set(self._scope),
            "audience": options.get("audience"),
            "resource": set(self._resource),
            "token_field": options.get("token_field", "access_token"),
            "credentials": Secret(json.dumps(given, sort_keys=True)) if given else None,
        }

    def token_flow(self, context: FetchContext) -> TokenFlow:
        """Spend the refresh token where that is wanted and possible, else use the grant."""
        endpoints = yield from self._find_endpoints(context)
        spare = self._refresh_token(context)
        if spare is not None:
            try:
                form = {"grant_type": "refresh_token", "refresh_token": spare}
                return (yield from self._ask(context, endpoints, form, spare))
            except ProviderRejected as error:
                if self.refreshing or error.error not in _DEAD:
                    raise
                context.warn(f"the refresh token was not taken ({error.error}); using the grant {self.grant_type}")
        fields = self.grant_fields(endpoints.audience)
        form = {"grant_type": self.grant_type, **fields}
        return (yield from self._ask(context, endpoints, form, fields.get("refresh_token")))

    def __repr__(self) -> str:
        """Return where and for whom, never a credential."""
        where = self._options.get("issuer") or self._options.get("token_url")
        return f"{type(self).__name__}(name={self.name!r}, client_id={self._auth.client_id!r}, at={where!r})"

    # --- one request ------------------------------------------------------------------------------------------------

    def _ask(self, context: FetchContext, endpoints: Endpoints, fields: dict[str, str], spare: str | None) -> TokenFlow:
        """Send one token request and read its answer; ``spare`` is the refresh token that it spends."""
        proof = self._auth.prove(endpoints.audience)
        request = self._request(endpoints.token_url, fields, proof)
        hidden = self._secrets(context, fields, proof)
        before_wall = time.time()
        response = yield request
        raise_for_error(response, provider=self.name, secrets=hidden)
        options = self._options
        answer = self._placed(read_json(response, provider=self.name, secrets=hidden))
        token, expiry = token_from_mapping(
            answer,
            provider=self.name,
            date=date_of(response),
            before_wall=before_wall,
            names=tuple(options.get("expiry_fields", ())),
            default_lifetime=options.get("default_lifetime", DEFAULT_LIFETIME),
            cap=options.get("longest_lifetime", TEN_YEARS),
            trust_jwt=options.get("trust_jwt", False),
            secrets=hidden,
        )
        if expiry.warning and not (expiry.field is None and "default_lifetime" in options and not expiry.unusable):
            context.warn(expiry.warning)
        self._require_ours(token)
        return self._completed(token, spare, context)

    def _request(self, url: str, fields: dict[str, str], proof: Proof) -> httpx.Request:
        """Return the token request: the grant's fields, ours, the client's proof."""
        options = self._options
        form: dict[str, str | list[str]] = {**options.get("parameters", {}), **fields}
        scope = " ".join(self._scope) if self._scope_in_form else None
        for name, value in (("scope", scope), ("audience", options.get("audience"))):
            if value:
                form.setdefault(name, value)
        if self._resource:
            form["resource"] = list(self._resource)
        form |= proof.fields
        headers = {**options.get("headers", {}), **proof.headers}
        if options.get("encoding") == "json":
            return httpx.Request("POST", url, json=form, headers=headers)
        return httpx.Request("POST", url, data=form, headers=headers)

    def _secrets(self, context: FetchContext, fields: Mapping[str, str], proof: Proof) -> tuple[str, ...]:
        """Return whatever a server could echo."""
        known = context.previous
        old = () if known is None else (known.value, known.refresh_token or "")
        own = [value for name, value in fields.items() if name not in _PUBLIC]
        extra = [*self._options.get("parameters", {}).values(), *self._options.get("headers", {}).values()]
        return (*proof.secrets, *own, *old, *(value for value in extra if len(value) >= _SHORTEST_SECRET))

    def _placed(self, answer: dict[str, object]) -> dict[str, object]:
        """Return the object that holds the token, with the token under its usual name."""
        *way, name = self._options.get("token_field", "access_token").split(".")
        inner = answer
        for step in way:
            inner = table_of(inner.get(step))
        if name not in inner:  # an error, or nothing of ours
            return {key: value for key, value in answer.items() if key != "access_token"}
        return {**inner, "access_token": inner[name]}

    def _completed(self, token: Token, spare: str | None, context: FetchContext) -> Token:
        """Return the token with what an answer may leave out: the scope asked for, the refresh token just used."""
        scope = token.scope or " ".join(self._scope) or None
        if token.refresh_token is not None or spare is None:
            return token.replace(scope=scope)
        known = context.previous  # RFC 6749 section 6: the one that was spent stays in use
        ends = known.refresh_expires_at if known and known.refresh_token == spare else None
        return token.replace(scope=scope, refresh_token=spare, refresh_expires_at=ends)

    def _require_ours(self, token: Token) -> None:
        """Raise for a token that is bound to a key (RFC 8705 section 3, RFC 9449) that is not part of the identity."""
        from tokencache.providers._jose import claims_of

        by = table_of(claims_of(token.value).get("cnf") or token.extra.get("cnf"))
        if token.token_type.lower() == "dpop" or "jkt" in by:
            message = (
                f"[{self.name}] the token is bound to a DPoP key, which cannot be shared; have bearer tokens issued"
            )
            raise ProviderRejected(message, error="unsupported_token_type")
        if by and not (self._auth.binds and by.get("x5t#S256", self._auth.thumbprint) == self._auth.thumbprint):
            message = (
                f"[{self.name}] the token is bound to a certificate that the source does not know; set certificate and"
                " certificate_key, so that it is shared among its holders only"
            )
            raise ProviderRejected(message, error="unsupported_token_type")

    # --- refresh tokens -----------------------------------------------------------------------------------------

    def _refresh_token(self, context: FetchContext) -> str | None:
        """Return the refresh token to spend, or ``None``: unknown, not wanted, or at its end."""
        known = context.previous
        if known is None or known.refresh_token is None or not self._options.get("use_refresh", self.refreshing):
            return None
        ends = known.refresh_expires_at
        return None if ends is not None and ends <= time.time() else known.refresh_token

    # --- endpoints ------------------------------------------------------------------------------------------------

    def _fixed_endpoints(self) -> Endpoints | None:
        """Return the endpoints that the settings name, or ``None`` where an issuer is to be asked."""
        url, issuer = self._options.get("token_url"), self._options.get("issuer")
        if issuer is not None:
            secure_url(self.name, "issuer", issuer)
        if url is not None:
            return Endpoints(secure_url(self.name, "token_url", url), issuer or url)
        if issuer is None:
            message = f"[{self.name}] set token_url, or issuer where the server publishes its metadata (RFC 8414)"
            raise ConfigurationError(message)
        return None

    def _find_endpoints(self, context: FetchContext) -> Generator[httpx.Request, httpx.Response, Endpoints]:
        """Return the endpoints, asking the issuer once."""
        if self._endpoints is None:
            issuer = self._options.get("issuer", "")
            self._endpoints = yield from discover(self.name, issuer, context.timeout / 2, mutual_tls=self._auth.binds)
        return self._endpoints

    def _trust(self) -> ssl.SSLContext | None:
        """Return the TLS settings, with the client's certificate in them where there is one."""
        options = self._options
        context, ca_file = options.get("verify"), options.get("ca_file")
        if ca_file is None and not self._auth.binds:
            return context
        try:
            context = context or httpx.create_ssl_context()
            if ca_file is not None:
                context.load_verify_locations(ca_file)
            if self._auth.binds:
                context.load_cert_chain(options.get("certificate", ""), options.get("certificate_key"))
        except OSError as error:  # ssl.SSLError is one
            reason = type(error).__name__
        else:
            return context
        message = (
            f"[{self.name}] certificate, certificate_key or ca_file cannot be used ({reason}); they are paths of PEM"
            " files, and the key belongs to the certificate and has no password"
        )
        raise ConfigurationError(message)


def _credentials(options: Options) -> Credentials:
    """Return the settings that prove who the client is."""
    return Credentials(
        client_id=options.get("client_id"),
        client_secret=options.get("client_secret"),
        private_key=options.get("private_key"),
        key_id=options.get("key_id"),
        algorithm=options.get("algorithm"),
        assertion_audience=options.get("assertion_audience"),
        client_assertion_file=options.get("client_assertion_file"),
        certificate=options.get("certificate"),
        certificate_key=options.get("certificate_key"),
    )


def _words(value: str | Sequence[str]) -> tuple[str, ...]:
    """Return a text of words, or a list, as the words of it, each once, in the order that was given."""
    words = value.split() if isinstance(value, str) else [word for each in value for word in each.split()]
    return tuple(dict.fromkeys(words))


def required(provider: str, setting: str, value: str) -> str:
    """Return a setting that must not be empty."""
    if not value:
        message = f"[{provider}] {setting} must not be empty; set it"
        raise ConfigurationError(message)
    return value


def _require_known(provider: str, options: Mapping[str, object]) -> None:
    """Raise ``ConfigurationError`` for a setting that does not exist, with the closest one that does."""
    known = Options.__annotations__
    for name in options:
        if name not in known:
            message = f"[{provider}] there is no setting {name!r}; {nearest(name, known)}"
            raise ConfigurationError(message)
