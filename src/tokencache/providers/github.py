"""``GitHubApp``: tokens of a GitHub App's installation: the app signs an assertion and exchanges it for a token.

The rules come from GitHub's documents "Generating a JSON Web Token (JWT) for a GitHub App", "Create an installation
access token for an app" and "Rate limits for the REST API".
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence  # noqa: TC003  configuration reads the types of the settings
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NoReturn

import httpx

from tokencache.errors import ConfigurationError, ProviderRejected, ProviderUnavailable
from tokencache.ports import Secret, SecretText
from tokencache.providers.http import HTTPTokenProvider
from tokencache.providers.oauth_response import (
    LONGEST_RETRY,
    clock_refusal,
    date_of,
    raise_for_error,
    read_json,
    retry_at_of,
    server_error,
    token_from_mapping,
)
from tokencache.providers.transport import host_of, secure_url

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator

    from tokencache.health import Finding
    from tokencache.ports import FetchContext
    from tokencache.providers.http import TokenFlow

__all__ = ["GitHubApp"]

_ASSERTION_LIFE: Final = 600  # GitHub's limit, on its own clock
_SECONDARY_WAIT: Final = 60.0
_API_VERSION: Final = "2022-11-28"
_KEPT: Final = ("permissions", "repository_selection")
_ADVICE: Final = {
    401: "check app_id, private_key and the clock of this machine: GitHub refused the app's signature",
    403: "check whether the installation is suspended, and whether the app has the permission",
    404: "check installation_id: the app has no such installation, or is no longer installed",
    422: "request only permissions and repositories that the installation grants",
}


class GitHubApp(HTTPTokenProvider):
    """Installation access tokens of a GitHub App, which live for an hour.

    ``app_id`` is the app's client ID or number, ``private_key`` its PEM text from GitHub, ``installation_id`` the
    number of the installation. ``permissions`` (``{"contents": "read"}``), ``repositories`` (names without their owner)
    and ``repository_ids`` narrow the token and are part of the identity. ``base_url`` is the API's address:
    ``https://HOST/api/v3`` for an Enterprise Server. With ``allow_http`` it may be http anywhere.

    ``client``, ``async_client``, ``timeout`` and ``verify`` are those of
    :class:`~tokencache.providers.http.HTTPTokenProvider`. Raises ``ConfigurationError`` for invalid settings.
    """

    def __init__(
        self,
        *,
        app_id: str | int,
        installation_id: str | int,
        private_key: SecretText,
        permissions: Mapping[str, str] | None = None,
        repositories: Sequence[str] = (),
        repository_ids: Sequence[str] = (),
        base_url: str = "https://api.github.com",
        allow_http: bool = False,
        name: str = "github_app",
        timeout: float = 10.0,
        client: httpx.Client | None = None,
        async_client: httpx.AsyncClient | None = None,
        verify: ssl.SSLContext | None = None,
    ) -> None:
        self.name = name
        self._app = str(app_id).strip()
        self._installation = self._number("installation_id", installation_id)
        self._permissions = dict(permissions or {})
        self._repositories = tuple(dict.fromkeys(repositories))
        self._ids = tuple(dict.fromkeys(self._number("repository_ids", each) for each in repository_ids))
        self._base = secure_url(name, "base_url", base_url, allow_http=allow_http).rstrip("/")
        self._private_key = private_key
        for setting, value in (("app_id", self._app), ("private_key", private_key.strip())):
            if not value:
                message = f"[{name}] {setting} must not be empty; set it"
                raise ConfigurationError(message)
        if any("/" in each for each in self._repositories):
            message = f"[{name}] repositories must be names without their owner: 'hello', not 'octocat/hello'"
            raise ConfigurationError(message)
        from tokencache.providers._jose import Signer

        self._signer = Signer(name, private_key, algorithm="RS256")
        super().__init__(client=client, async_client=async_client, timeout=timeout, verify=verify)

    def identity(self) -> Mapping[str, object]:
        """Return app, installation, restrictions, and the key as a slow fingerprint."""
        return {
            "issuer": self._base,
            "client_id": self._app,
            "installation": self._installation,
            "permissions": self._permissions,
            "repositories": set(self._repositories),
            "repository_ids": set(self._ids),
            "credentials": Secret(self._private_key),
        }

    def token_flow(self, context: FetchContext) -> TokenFlow:
        """Sign as the app, and exchange the signature for a token of the installation."""
        before_wall = time.time()
        assertion = self._assertion(before_wall)
        hidden = (assertion, *(() if context.previous is None else (context.previous.value,)))
        response = yield self._request(assertion)
        server_time = clock_refusal(response, hidden, now=before_wall)
        if server_time is not None:
            context.warn("GitHub refused the time of the assertion; asking once more with GitHub's Date")
            before_wall = time.time()
            assertion = self._assertion(server_time)
            hidden = (assertion, *hidden)
            response = yield self._request(assertion)
        self._raise_for_error(response, hidden)

        answer = read_json(response, provider=self.name, secrets=hidden)
        token, expiry = token_from_mapping(
            {**answer, "access_token": answer.get("token")},
            provider=self.name,
            date=date_of(response),
            before_wall=before_wall,
            keep=_KEPT,
            secrets=hidden,
        )
        if expiry.warning:
            context.warn(expiry.warning)
        return token

    def findings(self) -> Iterator[Finding]:
        """Check the way to the API, for `tokencache doctor`; no token request."""
        from tokencache.providers.reach import reach

        return reach(self._base, verify=self._verify)

    def __repr__(self) -> str:
        """Return app and installation, never the key."""
        return f"GitHubApp(name={self.name!r}, app_id={self._app!r}, installation_id={self._installation!r})"

    def _assertion(self, now: float) -> str:
        """Return a fresh signature of the app, as of ``now`` (epoch)."""
        from tokencache.providers._jose import lifespan

        times = lifespan(now, _ASSERTION_LIFE)
        return self._signer.sign({"iss": self._app, "iat": times["iat"], "exp": times["exp"]})

    def _request(self, assertion: str) -> httpx.Request:
        """Return the token request; without restrictions it has no body."""
        narrowed: dict[str, object] = {
            "permissions": self._permissions,
            "repositories": list(self._repositories),
            "repository_ids": [int(each) for each in self._ids],
        }
        body = {name: value for name, value in narrowed.items() if value}
        headers = {
            "Authorization": f"Bearer {assertion}",
            "Accept": "application/vnd.github+json",
            "X-GitHub-Api-Version": _API_VERSION,
        }
        url = f"{self._base}/app/installations/{self._installation}/access_tokens"
        if not body:
            return httpx.Request("POST", url, headers=headers)
        headers["Content-Type"] = "application/json"
        return httpx.Request("POST", url, content=json.dumps(body).encode(), headers=headers)

    def _raise_for_error(self, response: httpx.Response, hidden: tuple[str, ...]) -> None:
        """Raise the error of a refusal; a rate limit may have status 403, but is not a refusal."""
        status = response.status_code
        if response.is_success:
            return
        said = ""
        with suppress(ProviderUnavailable):  # not JSON: a gateway answered
            said = str(server_error(read_json(response, provider=self.name, secrets=hidden), hidden))
        if status in {403, 429} and _is_limited(response, said):
            self._raise_limited(response)
        if status not in _ADVICE:
            raise_for_error(response, provider=self.name, secrets=hidden)
        host = host_of(response.request.url)
        message = f"[{self.name}] {host} refused the token request with status {status}{said}; {_ADVICE[status]}"
        raise ProviderRejected(message, error_description=said.removeprefix(": ") or None, status=status)

    def _raise_limited(self, response: httpx.Response) -> NoReturn:
        """Raise for a rate limit; ``retry_at`` is the instant at which it ends."""
        now = time.time()
        retry_at = retry_at_of(response, now=now)
        if retry_at is None:
            reset = response.headers.get("x-ratelimit-reset", "")
            spent = response.headers.get("x-ratelimit-remaining") == "0" and reset.isascii() and reset.isdigit()
            wait = float(reset[:12]) - (date_of(response) or now) if spent else _SECONDARY_WAIT
            retry_at = now + min(max(wait, 0.0), LONGEST_RETRY)
        message = (
            f"[{self.name}] {host_of(response.request.url)} limits how often the app may ask (status"
            f" {response.status_code}); wait before asking again"
        )
        raise ProviderUnavailable(message, status=response.status_code, retry_at=retry_at)

    def _number(self, setting: str, value: str | int) -> str:
        """Return a number as text for the address."""
        text = str(value).strip()
        if not (text.isascii() and text.isdigit()):
            message = f"[{self.name}] {setting} must be a whole number; GitHub shows it in the installation's address"
            raise ConfigurationError(message)
        return text


def _is_limited(response: httpx.Response, said: str) -> bool:
    """Return whether an answer means a rate limit rather than a missing permission."""
    spent = response.headers.get("x-ratelimit-remaining") == "0"
    return response.status_code == 429 or "retry-after" in response.headers or spent or "rate limit" in said.lower()  # noqa: PLR2004
