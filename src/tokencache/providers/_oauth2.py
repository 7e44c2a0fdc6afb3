"""The base of the OAuth 2.0 grants: the token request, its client authentication, its answer, the common settings."""

from __future__ import annotations

import json
import ssl  # noqa: TC003
import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence  # noqa: TC003
from typing import TYPE_CHECKING, ClassVar, Final, Literal, TypedDict, Unpack

import httpx

from tokencache._files import content_of
from tokencache.errors import ConfigurationError, ProviderRejected
from tokencache.expiry import TEN_YEARS
from tokencache.ports import Secret, SecretText
from tokencache.providers._client_auth import ClientAuth, Credentials, Method
from tokencache.providers._discovery import Endpoints, discover
from tokencache.providers._exchange import nearest
from tokencache.providers.http import HTTPTokenProvider
from tokencache.providers.oauth_response import (
    DEFAULT_LIFETIME,
    clock_refusal,
    date_of,
    raise_for_error,
    read_json,
    table_of,
    token_from_mapping,
)
from tokencache.providers.transport import secure_url

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from tokencache.health import Finding
    from tokencache.ports import FetchContext
    from tokencache.providers._client_auth import Proof
    from tokencache.providers.http import TokenFlow
    from tokencache.token import Token

# TC: the configuration reads the types of the settings at run time, so they are imported here.

_DEAD: Final = frozenset({"invalid_grant", "invalid_token", "unauthorized_client", "unsupported_grant_type"})
_PUBLIC: Final = frozenset({"grant_type", "username", "subject_token_type", "actor_token_type", "requested_token_type"})
_SHORTEST_SECRET: Final = 8


class Options(TypedDict, total=False):
    """The settings of every grant: keywords in code, the same names in a provider's table of a configuration.

    Server: ``token_url``, or ``issuer``, whose metadata name it (RFC 8414, OpenID Connect Discovery 1.0). If both are
    set, the issuer is the audience of assertions. Addresses are https, or http on loopback; ``allow_http`` accepts
    http anywhere, for a network that encrypts by other means.

    Client: ``client_id`` with ``client_secret``, ``private_key`` (PEM; ``key_id``, ``algorithm``), ``certificate`` and
    ``certificate_key`` (paths of PEM files, for mutual TLS), or ``client_assertion_file`` (a path that the platform
    keeps fresh). ``client_auth`` is the registered name of the method; by default the credentials select it. Use
    ``client_secret_post`` if the server does not decode the id and secret of Basic (RFC 6749 section 2.3.1).
    ``assertion_audience`` replaces the audience of a signed assertion. ``ca_file`` is the PEM file of a private CA.

    Request: ``scope`` (a text or a list in any order), ``audience``, ``resource`` (RFC 8707), further form
    ``parameters`` and ``headers``. All of them are sent at every fetch and are part of the identity. ``encoding`` is
    ``form`` by default, or ``json``.

    Answer: ``token_field`` names the token, ``expiry_fields`` further fields of its expiry; dots lead into objects
    (``data.token``). ``token_type`` replaces the scheme that the answer names. ``default_lifetime`` applies if the
    answer has no expiry; ``longest_lifetime`` is the upper limit (both in seconds). Set it for an API that counts
    milliseconds: such a number looks like a long lifetime in seconds.
    ``trust_jwt`` makes the ``exp`` in the token count.

    With ``use_refresh``, a renewal spends the token's refresh token before it uses the grant again. ``name`` is for
    keys, events and messages. :class:`~tokencache.providers.http.HTTPTokenProvider` explains ``client``,
    ``async_client``, ``timeout`` and ``verify``.
    """

    name: str
    token_url: str
    issuer: str
    allow_http: bool
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
    token_type: str
    default_lifetime: float
    longest_lifetime: float
    trust_jwt: bool
    use_refresh: bool
    timeout: float
    client: httpx.Client
    async_client: httpx.AsyncClient
    verify: ssl.SSLContext


class OAuth2Provider(HTTPTokenProvider):
    """The base class of the grants; a subclass gives the form fields. ``options`` are :class:`Options`.

    Raises ``ConfigurationError`` for invalid settings.
    """

    grant_type: str
    refreshing: bool = False
    """Whether the next token needs the refresh token of the last record, so that it must not be lost."""
    _default_name: ClassVar[str] = "oauth2"
    _scope_in_form: bool = True

    def __init__(self, **options: Unpack[Options]) -> None:
        self.name = options.get("name") or self._default_name
        _require_known(self.name, options)
        self._options = options
        self._auth = ClientAuth(self.name, options.get("client_auth"), _credentials(options))
        self._allow_http = options.get("allow_http", False)
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
    def grant_fields(self, audience: str, now: float) -> dict[str, str]:
        """Return the form fields of the grant for one request; ``audience`` and ``now`` (epoch) are an assertion's."""

    def grant_identity(self) -> Mapping[str, str]:
        """Return what the grant adds to the identity, with its credentials; all of it enters as a slow fingerprint."""
        return {}

    def grant_is_secret(self) -> bool:
        """Return whether :meth:`grant_identity` holds a secret that only its holders know."""
        return False

    def identity(self) -> Mapping[str, object]:
        """Return the identity of its tokens; everything that may be secret enters as one slow fingerprint."""
        options = self._options
        hidden: dict[str, Mapping[str, str]] = {
            "client": self._auth.secrets,
            "grant": self.grant_identity(),
            "parameters": options.get("parameters", {}),
            "headers": {name.lower(): value for name, value in options.get("headers", {}).items()},
        }
        given = {part: dict(values) for part, values in hidden.items() if values}
        known = bool(options.get("client_secret") or options.get("private_key")) or self.grant_is_secret()
        return {
            "issuer": options.get("issuer") or options.get("token_url"),
            "token_url": options.get("token_url"),
            "grant_type": self.grant_type,
            "client_id": self._auth.client_id,
            "client_auth": self._auth.method,
            **({"assertion_audience": options["assertion_audience"]} if "assertion_audience" in options else {}),
            "scope": set(self._scope),
            "audience": options.get("audience"),
            "resource": set(self._resource),
            "token_field": options.get("token_field", "access_token"),
            **({"token_type": options["token_type"]} if "token_type" in options else {}),
            "credentials": Secret(json.dumps(given, sort_keys=True), secret=known) if given else None,
        }

    def token_flow(self, context: FetchContext) -> TokenFlow:
        """Spend the refresh token if it is enabled and known, else use the grant."""
        endpoints = yield from self._find_endpoints(context)
        spare = self._refresh_token(context)
        if spare is not None:
            try:
                return (yield from self._ask(context, endpoints, spare))
            except ProviderRejected as error:
                if self.refreshing or error.error not in _DEAD:
                    raise
                context.warn(f"the server refused the refresh token ({error.error}); using the grant {self.grant_type}")
        return (yield from self._ask(context, endpoints, None))

    def findings(self) -> Iterator[Finding]:
        """Check the way to the server, for `tokencache doctor`; no token request."""
        from tokencache.providers.reach import reach

        return reach(self._options.get("token_url") or self._options.get("issuer", ""), verify=self._verify)

    def __repr__(self) -> str:
        """Return server and client, never a credential."""
        where = self._options.get("issuer") or self._options.get("token_url")
        return f"{type(self).__name__}(name={self.name!r}, client_id={self._auth.client_id!r}, at={where!r})"

    # --- one request ------------------------------------------------------------------------------------------------

    def _ask(self, context: FetchContext, endpoints: Endpoints, spare: str | None) -> TokenFlow:
        """Spend the refresh token ``spare``, or without one use the grant; read the answer."""
        fields, proof = self._form(endpoints, spare, time.time())
        spare = fields.get("refresh_token")

        before_wall = time.time()
        response = yield self._request(endpoints.token_url, fields, proof)
        hidden = self._secrets(context, fields, proof)
        signed = self._auth.signs or "assertion" in fields
        server_time = clock_refusal(response, hidden, now=before_wall) if signed else None
        if server_time is not None:
            context.warn("the server refused the time of the assertion; asking once more with the server's Date")
            fields, proof = self._form(endpoints, spare, server_time)
            before_wall = time.time()
            response = yield self._request(endpoints.token_url, fields, proof)
            hidden = (*hidden, *self._secrets(context, fields, proof))
        self._raise_for_error(response, hidden)

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
            token_type=options.get("token_type"),
            secrets=hidden,
        )

        # A configured default is expected to be used, so it is not a reason to warn.
        if expiry.warning and not (expiry.field is None and "default_lifetime" in options and not expiry.unusable):
            context.warn(expiry.warning)
        self._require_ours(token)
        return self._completed(token, spare, context)

    def _form(self, endpoints: Endpoints, spare: str | None, now: float) -> tuple[dict[str, str], Proof]:
        """Return the grant's form fields and the client authentication, as of ``now`` (epoch)."""
        grant, fields = "refresh_token", {"refresh_token": spare or ""}
        if spare is None:
            grant, fields = self.grant_type, self.grant_fields(endpoints.audience, now)
        return {**({"grant_type": grant} if grant else {}), **fields}, self._auth.prove(endpoints.audience, now)

    def _raise_for_error(self, response: httpx.Response, hidden: tuple[str, ...]) -> None:
        """Raise the error of a refusal; with Basic, the message names the other way to send the secret."""
        remedies: dict[str, str] = {}
        if self._auth.method == "client_secret_basic":
            other = 'if they are right, set client_auth = "client_secret_post": some servers do not accept Basic'
            remedies["invalid_client"] = f"check the client id and secret; {other}"
        raise_for_error(response, provider=self.name, secrets=hidden, remedies=remedies)

    def _request(self, url: str, fields: dict[str, str], proof: Proof) -> httpx.Request:
        """Return the token request: fields of the grant, common fields, client authentication."""
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
        """Return every secret that a server could echo."""
        known = context.previous
        old = () if known is None else (known.value, known.refresh_token or "")
        own = [value for name, value in fields.items() if name not in _PUBLIC]
        extra = [*self._options.get("parameters", {}).values(), *self._options.get("headers", {}).values()]
        return (*proof.secrets, *own, *old, *(value for value in extra if len(value) >= _SHORTEST_SECRET))

    def _placed(self, answer: dict[str, object]) -> dict[str, object]:
        """Return the object that holds the token, with the token and its expiry under their usual names."""
        inner, name = _inside(answer, self._options.get("token_field", "access_token"))
        if name not in inner:  # an error, or an unknown answer
            return {key: value for key, value in answer.items() if key != "access_token"}

        expiries: dict[str, object] = {}
        for path in self._options.get("expiry_fields", ()):
            for start in (answer, inner):  # a path may begin beside the token, or at the top
                holder, field = _inside(start, path)
                if field in holder:
                    expiries[path] = holder[field]
        return {**inner, **expiries, "access_token": inner[name]}

    def _completed(self, token: Token, spare: str | None, context: FetchContext) -> Token:
        """Return the token with the fields that an answer may omit: the requested scope, the spent refresh token."""
        scope = token.scope or " ".join(self._scope) or None
        if token.refresh_token is not None or spare is None:
            return token.replace(scope=scope)
        known = context.previous  # RFC 6749 section 6: the spent refresh token stays valid
        ends = known.refresh_expires_at if known and known.refresh_token == spare else None
        return token.replace(scope=scope, refresh_token=spare, refresh_expires_at=ends)

    def _require_ours(self, token: Token) -> None:
        """Raise for a token bound to a key that is not part of the identity (RFC 8705 section 3, RFC 9449)."""
        from tokencache.providers._jose import claims_of

        by = table_of(claims_of(token.value).get("cnf") or token.extra.get("cnf"))
        if token.token_type.lower() == "dpop" or "jkt" in by:
            message = f"[{self.name}] the token is bound to a DPoP key and cannot be shared; request bearer tokens"
            raise ProviderRejected(message, error="unsupported_token_type")
        if by and not (self._auth.binds and by.get("x5t#S256", self._auth.thumbprint) == self._auth.thumbprint):
            message = (
                f"[{self.name}] the token is bound to an unknown certificate; set certificate and certificate_key,"
                " so that only processes with that certificate share it"
            )
            raise ProviderRejected(message, error="unsupported_token_type")

    # --- refresh tokens -----------------------------------------------------------------------------------------

    def _refresh_token(self, context: FetchContext) -> str | None:
        """Return the refresh token to spend; ``None`` if it is unknown, disabled or expired."""
        known = context.previous
        if known is None or known.refresh_token is None or not self._options.get("use_refresh", self.refreshing):
            return None
        ends = known.refresh_expires_at
        return None if ends is not None and ends <= time.time() else known.refresh_token

    # --- endpoints ------------------------------------------------------------------------------------------------

    def _fixed_endpoints(self) -> Endpoints | None:
        """Return the endpoints that the settings name, or ``None`` if the issuer must be asked."""
        url, issuer = self._options.get("token_url"), self._options.get("issuer")
        if issuer is not None:
            secure_url(self.name, "issuer", issuer, allow_http=self._allow_http)
        if url is not None:
            return Endpoints(secure_url(self.name, "token_url", url, allow_http=self._allow_http), issuer or url)
        if issuer is None:
            message = f"[{self.name}] set token_url, or issuer if the server publishes its metadata (RFC 8414)"
            raise ConfigurationError(message)
        return None

    def _find_endpoints(self, context: FetchContext) -> Generator[httpx.Request, httpx.Response, Endpoints]:
        """Return the endpoints; ask the issuer at the first fetch."""
        if self._endpoints is None:
            issuer = self._options.get("issuer", "")
            self._endpoints = yield from discover(
                self.name, issuer, context.timeout / 2, mutual_tls=self._auth.binds, allow_http=self._allow_http
            )
        return self._endpoints

    def _trust(self) -> ssl.SSLContext | None:
        """Return the TLS settings, with the client's certificate if it has one."""
        options = self._options
        context, ca_file = options.get("verify"), options.get("ca_file")
        if ca_file is None and not self._auth.binds:
            return context
        try:
            for name in ("ca_file", "certificate", "certificate_key"):
                if path := options.get(name):
                    content_of(str(path))  # the TLS library would wait for ever for a FIFO
            context = context or httpx.create_ssl_context()
            if ca_file is not None:
                context.load_verify_locations(ca_file)
            if self._auth.binds:
                context.load_cert_chain(options.get("certificate", ""), options.get("certificate_key"))
        except OSError as error:  # includes ssl.SSLError
            reason = type(error).__name__
        else:
            return context
        message = (
            f"[{self.name}] certificate, certificate_key or ca_file cannot be used ({reason}); give paths of PEM"
            " files; the key must belong to the certificate and have no password"
        )
        raise ConfigurationError(message)


def _credentials(options: Options) -> Credentials:
    """Return the settings for client authentication."""
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
    """Return the words of a text or list, each once, in their order."""
    words = value.split() if isinstance(value, str) else [word for each in value for word in each.split()]
    return tuple(dict.fromkeys(words))


def _inside(fields: Mapping[str, object], path: str) -> tuple[Mapping[str, object], str]:
    """Return the object that a path with dots leads to, and the name of the field in it."""
    *way, name = path.split(".")
    for step in way:
        fields = table_of(fields.get(step))
    return fields, name


def required(provider: str, setting: str, value: str) -> str:
    """Return a setting that must not be empty."""
    if not value:
        message = f"[{provider}] {setting} must not be empty; set it"
        raise ConfigurationError(message)
    return value


def _require_known(provider: str, options: Mapping[str, object]) -> None:
    """Raise ``ConfigurationError`` for an unknown setting, with the closest known one."""
    known = Options.__annotations__
    for name in options:
        if name not in known:
            message = f"[{provider}] there is no setting {name!r}; {nearest(name, known)}"
            raise ConfigurationError(message)
