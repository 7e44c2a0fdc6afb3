"""``QPayProvider``: the token of QPay's V2 merchant API."""

from __future__ import annotations

import os
import time
from base64 import b64encode
from hashlib import sha256
from typing import TYPE_CHECKING, Final, Self, TypedDict, Unpack

import httpx

from tokencache.errors import ConfigurationError, ProviderError
from tokencache.ports import Secret, SecretText
from tokencache.providers.http import HTTPTokenProvider
from tokencache.providers.oauth_response import date_of, raise_for_error, read_json, token_from_mapping
from tokencache.providers.transport import is_loopback

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tokencache.health import Finding
    from tokencache.policy import RefreshPolicy
    from tokencache.ports import FetchContext
    from tokencache.providers.http import TokenFlow
    from tokencache.token import Token

__all__ = ["PRODUCTION", "SANDBOX", "QPayProvider", "from_env"]

PRODUCTION: Final = "https://merchant.qpay.mn"
SANDBOX: Final = "https://merchant-sandbox.qpay.mn"
DEFAULT_KEY: Final = "qpay:access_token"

LONGEST_LIFETIME: Final = 25 * 3600.0  # a token is a server-side session of 24 hours
_KEPT: Final = ("session_state", "not-before-policy")
_REJECTING: Final = frozenset({400, 401, 403, 422})  # 422 is QPay's "not found": the merchant is unknown


class Settings(TypedDict, total=False):
    """Settings that override the environment; a provider's table in a configuration has the same names."""

    client_id: str | None
    client_secret: SecretText | None
    base_url: str | None
    allow_http: bool
    key: str | None
    use_refresh: bool
    timeout: float
    name: str


class QPayProvider(HTTPTokenProvider):
    """A provider that logs in to QPay with the merchant's user and password.

    ``base_url`` is the host, with or without ``/v2``. It is https, or http on loopback; with ``allow_http`` it may be
    http anywhere, for a network that encrypts by other means. ``key`` is the record key, used unchanged.
    ``name`` is for keys, events and messages. The other arguments are those of
    :class:`~tokencache.providers.http.HTTPTokenProvider`.

    QPay's ``expires_in`` is an epoch in practice and a duration in some documents. Both are read, by the server's own
    ``Date``, and limited to 25 hours. The ``exp`` of its JWT is wrong and never read. No cookie is sent.

    With ``use_refresh`` a renewal first spends the refresh token: once per token, and never after a 401. After any
    failure the same fetch uses the password. It is off by default, because the refresh token ends with the token.

    Raises ``ConfigurationError`` for invalid settings.
    """

    name: str = "qpay"
    key: str | None

    def __init__(
        self,
        client_id: str,
        client_secret: str,
        *,
        base_url: str = PRODUCTION,
        allow_http: bool = False,
        key: str | None = None,
        use_refresh: bool = False,
        client: httpx.Client | None = None,
        async_client: httpx.AsyncClient | None = None,
        timeout: float = 10.0,
        name: str = "qpay",
    ) -> None:
        self.name = name
        super().__init__(client=client, async_client=async_client, timeout=timeout)
        if not client_id or not client_secret:
            message = f"[{self.name}] client_id and client_secret must not be empty; {_WHERE_FROM}"
            raise ConfigurationError(message)
        if ":" in client_id:
            message = f"[{self.name}] client_id must not hold a colon (RFC 7617)"
            raise ConfigurationError(message)
        self.base_url = base_url_of(base_url, allow_http=allow_http)
        self.key = key
        self._client_id = client_id
        self._client_secret = client_secret
        self._use_refresh = use_refresh
        self._basic = b64encode(f"{client_id}:{client_secret}".encode()).decode()
        self._spent: bytes | None = None

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, **settings: Unpack[Settings]) -> Self:
        """Return a provider with the settings of the environment; a keyword overrides its variable.

        ``QPAY_CLIENT_ID`` and ``QPAY_CLIENT_SECRET`` must be set, ``QPAY_BASE_URL`` and ``QPAY_CACHE_KEY`` may be.
        The key is ``qpay:access_token`` by default, so that a service in another language can share the token. If the
        keywords give another merchant's credentials, its key comes from the identity, not from ``QPAY_CACHE_KEY``.
        """
        environ = os.environ if environ is None else environ
        client_id, client_secret = settings.get("client_id"), settings.get("client_secret")
        given = bool(client_id or client_secret)
        client_id = client_id or environ.get("QPAY_CLIENT_ID", "").strip()
        client_secret = client_secret or environ.get("QPAY_CLIENT_SECRET", "").strip("\r\n")
        if not client_id or not client_secret:
            raise ConfigurationError(_missing(client_id, client_secret))
        own_key = None if given else environ.get("QPAY_CACHE_KEY", "").strip() or DEFAULT_KEY
        return cls(
            client_id,
            client_secret,
            base_url=settings.get("base_url") or environ.get("QPAY_BASE_URL", "").strip() or PRODUCTION,
            allow_http=settings.get("allow_http", False),
            key=settings.get("key") or own_key,
            use_refresh=settings.get("use_refresh", False),
            timeout=settings.get("timeout", 10.0),
            name=settings.get("name", "qpay"),
        )

    @property
    def policy(self) -> RefreshPolicy:
        """Renewal ten minutes before the end of a one-day token: QPay forbids unnecessary logins."""
        from tokencache.policy import RefreshPolicy

        return RefreshPolicy(window=600.0)

    def identity(self) -> Mapping[str, object]:
        """Return host, user and (hidden) password: the identity of one merchant's token."""
        return {"issuer": self.base_url, "client_id": self._client_id, "client_secret": Secret(self._client_secret)}

    def token_flow(self, context: FetchContext) -> TokenFlow:
        """Spend the refresh token if it is enabled and known, else log in."""
        refresh_token = self._to_spend(context)
        if refresh_token is not None:
            try:
                return (yield from self._ask(context, "refresh", f"Bearer {refresh_token}"))
            except ProviderError as error:
                status = getattr(error, "status", None)
                context.warn(f"the server refused the refresh token (status {status}); logging in with the password")
        return (yield from self._ask(context, "token", f"Basic {self._basic}"))

    def findings(self) -> Iterator[Finding]:
        """Check settings, form of the credentials and the way to the server, for `tokencache doctor`; no login."""
        from tokencache_qpay.health import examine

        return examine(
            base_url=self.base_url,
            client_id=self._client_id,
            client_secret=self._client_secret,
            hosts=(PRODUCTION, SANDBOX),
            verify=self._verify,
        )

    def __repr__(self) -> str:
        """Return host and user, never the password."""
        return f"QPayProvider({self._client_id!r}, <hidden>, base_url={self.base_url!r})"

    def _ask(self, context: FetchContext, what: str, authorization: str) -> TokenFlow:
        """Make one call under ``/v2/auth`` and read its answer."""
        request = httpx.Request("POST", f"{self.base_url}/v2/auth/{what}", headers={"Authorization": authorization})
        if what == "refresh":  # keep half of the time for the login
            request.extensions = {"timeout": {"read": context.timeout / 2}}

        before_wall = time.time()
        response = yield request

        hidden = self._secrets(context.previous)
        raise_for_error(response, provider=self.name, secrets=hidden, rejecting=_REJECTING)
        token, expiry = token_from_mapping(
            read_json(response, provider=self.name, secrets=hidden),
            provider=self.name,
            date=date_of(response),
            before_wall=before_wall,
            cap=LONGEST_LIFETIME,
            keep=_KEPT,
            secrets=hidden,
        )
        if expiry.warning:
            context.warn(expiry.warning)
        return token

    def _secrets(self, previous: Token | None) -> tuple[str, ...]:
        """Return every secret that a server could echo: those of this request and of the last token."""
        old = () if previous is None else (previous.value, previous.refresh_token or "")
        return (self._client_secret, self._basic, *old)

    def _to_spend(self, context: FetchContext) -> str | None:
        """Return the refresh token to use, or ``None``; each is returned only once, because QPay rotates it."""
        previous: Token | None = context.previous
        if not self._use_refresh or context.reason == "rejected" or previous is None or previous.refresh_token is None:
            return None
        if previous.refresh_expires_at is None or previous.refresh_expires_at <= time.time():
            return None
        spent = sha256(previous.refresh_token.encode()).digest()
        if spent == self._spent:
            return None
        self._spent = spent
        return previous.refresh_token


def from_env(**settings: Unpack[Settings]) -> QPayProvider:
    """Return QPay's provider, for ``cache.source("qpay")`` and for a table of a configuration.

    Other settings come from the environment; see :meth:`QPayProvider.from_env`.
    """
    return QPayProvider.from_env(**settings)


_WHERE_FROM: Final = (
    f"QPay gives them to its merchants, and publishes a shared merchant for tests (user TEST_MERCHANT, at {SANDBOX})"
)


def _missing(client_id: str, client_secret: str) -> str:
    """Return the message for missing credentials in the environment."""
    names = [
        name for name, value in (("QPAY_CLIENT_ID", client_id), ("QPAY_CLIENT_SECRET", client_secret)) if not value
    ]
    verb = "is" if len(names) == 1 else "are"
    return (
        f"[qpay] {' and '.join(names)} {verb} not set; set QPAY_CLIENT_ID and QPAY_CLIENT_SECRET to the merchant's user"
        f" and password. {_WHERE_FROM[0].upper()}{_WHERE_FROM[1:]}: set QPAY_BASE_URL to that host as well."
    )


def base_url_of(text: str, *, allow_http: bool = False) -> str:
    """Return host and path prefix without ``/v2``. Raises ``ConfigurationError`` for an invalid base URL."""
    if any(char in text for char in "@?#"):
        message = "[qpay] the base URL must not have user, password, query or fragment; give only the address"
        raise ConfigurationError(message)
    try:
        url = httpx.URL(str(httpx.URL(text.strip())))  # twice: the second parse removes the default port of "HTTPS://"
    except httpx.InvalidURL:
        url = None
    if url is None or url.scheme not in {"http", "https"} or not url.host:
        message = f"[qpay] the base URL must look like {PRODUCTION}; check its spelling"
        raise ConfigurationError(message)
    if url.scheme == "http" and not is_loopback(url.host) and not allow_http:
        message = (
            f"[qpay] the base URL must begin with https://: http:// sends the password to {url.host} unencrypted;"
            " inside a network that encrypts by itself, such as a mesh, set allow_http=true"
        )
        raise ConfigurationError(message)
    return str(url).rstrip("/").removesuffix("/v2").rstrip("/")
