"""Every way to cache a token in a process: tokencache, the limits, and each peer with the usual settings."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from datetime import UTC
from typing import TYPE_CHECKING, Any, TypeAlias

from suite import doors
from suite.logins import NAME, SECRET, URL, Logins

if TYPE_CHECKING:
    from collections.abc import Callable

    from suite.results import Kind

Get: TypeAlias = "Callable[[], str]"
GetAsync: TypeAlias = "Callable[[], Any]"


@dataclass(frozen=True, slots=True)
class Way:
    """A way to cache a token: ``make`` returns the function for callers.

    ``distribution`` must be installed. ``client`` marks token clients, as opposed to general caches. ``window`` is the
    constant window before expiry in which it does not return a token, in seconds.
    """

    name: str
    make: Callable[[Logins], Any]
    distribution: str
    kind: Kind = "peer"
    client: bool = False
    window: float = 0.0


def spelled(get: Any, statement: str, **names: object) -> Any:  # noqa: ANN401  (functions take attributes)
    """Return ``get`` with the statement that a caller would write, so that the time has no wrapper of ours."""
    get.spelled = (statement, names)
    return get


def tokencache_source(logins: Logins) -> Any:  # noqa: ANN401  (the real source)
    """Return a source of tokencache."""
    from tokencache import TokenCache

    return TokenCache("memory://").source(logins.response, key="bench")


def tokencache_token(logins: Logins) -> Callable[[], Any]:
    """Return ``source.token``."""
    return tokencache_source(logins).token


def tokencache_atoken(logins: Logins) -> Callable[[], Any]:
    """Return ``source.atoken``."""
    return tokencache_source(logins).atoken


def closure(logins: Logins) -> Get:
    """Return the minimal cached get: the same clock, one comparison."""
    from tokencache._engine.clock import steady_clock

    clock, token = steady_clock(), logins()
    until = clock() + logins.lifetime * 0.9

    def get() -> str:
        if clock() < until:
            return token
        raise AssertionError

    return get


def coroutine(logins: Logins) -> GetAsync:
    """Return the minimal awaited cached get."""
    from tokencache._engine.clock import steady_clock

    clock, token = steady_clock(), logins()
    until = clock() + logins.lifetime * 0.9

    async def get() -> str:
        if clock() < until:
            return token
        raise AssertionError

    return get


def background(logins: Logins) -> Get:
    """Return the minimal get that never blocks: a thread replaces the token after four fifths of its life."""
    held = [logins()]

    def renew() -> None:
        while True:
            time.sleep(logins.lifetime * 0.8 - logins.latency)
            held[0] = logins()

    threading.Thread(target=renew, daemon=True).start()
    return lambda: held[0]


def cachetools_plain(logins: Logins) -> Get:
    """Return a look-up in a TTLCache without a lock, which is not thread-safe."""
    from cachetools import TTLCache

    cache: TTLCache[str, str] = TTLCache(maxsize=8, ttl=logins.lifetime)

    def get() -> str:
        try:
            return cache["token"]
        except KeyError:
            token = cache["token"] = logins()
            return token

    return spelled(get, "cache['token']", cache=cache)


def cachetools_locked(logins: Logins) -> Get:
    """Return a look-up in a TTLCache under a lock."""
    get, lock = cachetools_plain(logins), threading.Lock()

    def locked() -> str:
        with lock:
            return get()

    return spelled(locked, "with lock: cache['token']", lock=lock, **get.spelled[1])


def cachebox_cached(logins: Logins) -> Get:
    """Return a function decorated with cachebox, whose decorator admits one thread."""
    import cachebox

    return cachebox.cached(cachebox.TTLCache(maxsize=8, global_ttl=logins.lifetime))(logins.__call__)


def dogpile_memory(logins: Logins) -> Get:
    """Return ``get_or_create`` of a region in memory."""
    from dogpile.cache import make_region

    region = make_region().configure("dogpile.cache.memory", expiration_time=logins.lifetime)
    return spelled(
        lambda: region.get_or_create("token", logins),
        "region.get_or_create('token', logins)",
        region=region,
        logins=logins,
    )


def authlib_session(logins: Logins) -> Get:
    """Return ``ensure_active_token`` of Authlib's session for requests, without its minute before the end."""
    from authlib.integrations.requests_client import OAuth2Session

    session = OAuth2Session(NAME, SECRET, token_endpoint=URL, grant_type="client_credentials", leeway=0)
    doors.mount(session, logins)
    session.fetch_token(URL, grant_type="client_credentials")

    def get() -> str:
        session.ensure_active_token(session.token)
        return session.token["access_token"]

    return spelled(get, "session.ensure_active_token(session.token)", session=session)


def authlib_async(logins: Logins) -> GetAsync:
    """Return ``ensure_active_token`` of Authlib's client for httpx."""
    from authlib.integrations.httpx_client import AsyncOAuth2Client

    token = {**logins.response(), "expires_at": int(time.time() + logins.lifetime)}
    client = AsyncOAuth2Client(NAME, SECRET, token=token, token_endpoint=URL, leeway=0)

    async def get() -> str:
        await client.ensure_active_token(client.token)
        return client.token["access_token"]

    return get


def httpx_auth_get(logins: Logins) -> Get:
    """Return the look-up of httpx-auth, without its half minute before the end."""
    import httpx
    from httpx_auth import OAuth2, OAuth2ClientCredentials

    client = httpx.Client(transport=doors.transport(logins))
    # "early_expiry or 30" ignores a zero
    auth = OAuth2ClientCredentials(URL, NAME, SECRET, client=client, early_expiry=1e-9)
    OAuth2.token_cache.clear()
    return lambda: OAuth2.token_cache.get_token(
        auth.state, early_expiry=auth.early_expiry, on_missing_token=auth.request_new_token
    )


def requests_oauth2client_check(logins: Logins) -> Get:
    """Return the check of requests-oauth2client before each request, without the request."""
    import requests
    from requests_oauth2client import OAuth2Client, OAuth2ClientCredentialsAuth

    session = requests.Session()
    doors.mount(session, logins)
    client = OAuth2Client(URL, (NAME, SECRET), session=session)
    auth = OAuth2ClientCredentialsAuth(client, leeway=0)

    def get() -> str:
        token = auth.token
        if token is None or token.is_expired(auth.leeway):
            auth.renew_token()
            token = auth.token
        return str(token.access_token)

    return spelled(get, "auth.token is None or auth.token.is_expired(auth.leeway)", auth=auth)


def google_credentials(logins: Logins) -> Get:
    """Return ``before_request`` of google-auth, whose window of 3 min 45 s is a constant."""
    from datetime import datetime, timedelta

    from google.auth.credentials import Credentials

    class Ours(Credentials):
        """Credentials that log in at ``logins``, like google-auth's own at Google."""

        def refresh(self, request: object) -> None:
            """Log in."""
            del request
            self.token = logins()
            now = datetime.now(UTC).replace(tzinfo=None)
            self.expiry = now + timedelta(seconds=logins.told)

    credentials = Ours()

    def get() -> str:
        headers: dict[str, str] = {}
        credentials.before_request(None, "GET", "https://api.invalid/", headers)
        return headers["authorization"].removeprefix("Bearer ")

    return spelled(get, "credentials.before_request(None, 'GET', 'https://api.invalid/', {})", credentials=credentials)


def msal_application(logins: Logins) -> Get:
    """Return ``acquire_token_for_client`` of MSAL, whose window of 5 minutes is a constant."""
    from msal import ConfidentialClientApplication

    application = ConfidentialClientApplication(
        NAME,
        client_credential=SECRET,
        authority="https://login.microsoftonline.com/tenant",
        http_client=doors.MicrosoftDoor(logins),
        instance_discovery=False,
    )

    def get() -> str:
        return str(application.acquire_token_for_client(["https://api.invalid/.default"])["access_token"])

    return spelled(
        get, "application.acquire_token_for_client(['https://api.invalid/.default'])", application=application
    )


def azure_credential(logins: Logins) -> Get:
    """Return ``get_token`` of azure-identity's credential for a client secret, which uses MSAL."""
    from azure.core.pipeline.transport import HttpTransport, RequestsTransportResponse
    from azure.identity import ClientSecretCredential
    from requests import Response

    class Transport(HttpTransport):
        """Answers every request with a token or the metadata."""

        def send(self, request: Any, **_options: object) -> Any:  # noqa: ANN401  (as azure-core types it)
            """Log in, or describe the tenant."""
            import io
            import json

            response = Response()
            response.status_code, response.url = 200, request.url
            response.headers.update(doors.JSON_TYPE)
            told = logins.body() if request.method == "POST" else json.dumps(doors.METADATA).encode()
            response.raw = io.BytesIO(told)
            return RequestsTransportResponse(request, response)

        def open(self) -> None:
            """Do nothing: there are no connections."""

        def close(self) -> None:
            """Do nothing: there are no connections."""

        def __enter__(self) -> Any:  # noqa: ANN401
            """Return itself."""
            return self

        def __exit__(self, *_: object) -> None:
            """Do nothing: there are no connections."""

    credential = ClientSecretCredential(
        "tenant", NAME, SECRET, transport=Transport(), disable_instance_discovery=True, retry_total=0
    )
    return spelled(
        lambda: credential.get_token("https://api.invalid/.default").token,
        "credential.get_token('https://api.invalid/.default')",
        credential=credential,
    )


def qpay_client_get(logins: Logins) -> Get:
    """Return ``get_token`` of qpay-client, without its minute before the end."""
    import httpx
    from qpay_client.v2 import QPayClient, QPaySettings

    settings = QPaySettings.sandbox(token_leeway=0.0, client_retries=0)
    client = httpx.Client(transport=doors.transport(logins, qpay=True), base_url="https://login.invalid/v2")
    return QPayClient(settings, client=client).get_token


def qpay_python_get(logins: Logins) -> Get:
    """Return the check of qpay-python before each request."""
    from datetime import datetime, timedelta

    from qpay.auth import AccessToken, QPayAuth, RefreshToken

    class Ours(QPayAuth):
        """Logs in at ``logins`` instead of by a request."""

        def _fetch_token(self, refresh_token: object = None) -> Any:  # noqa: ANN401  (as qpay-python has it)
            """Log in."""
            del refresh_token
            end = datetime.now() + timedelta(seconds=logins.told)  # noqa: DTZ005  (as qpay-python has it)
            return AccessToken(token=logins(), expires=end), RefreshToken(token="r", expires=end)

    auth = Ours("https://login.invalid/v2/", NAME, SECRET)
    get = lambda: auth._get_token().token  # noqa: E731, SLF001  (its only way without a request)
    return spelled(get, "auth._get_token()", auth=auth)


def cashews_memory(logins: Logins) -> GetAsync:
    """Return a coroutine decorated with cashews, in memory, with its lock."""
    from cashews import Cache

    cache = Cache()
    cache.setup("mem://")

    @cache(ttl=logins.lifetime, key="token", lock=True)
    async def get() -> str:
        return str((await logins.aresponse())["access_token"])

    return get


def aiocache_memory(logins: Logins) -> GetAsync:
    """Return a coroutine decorated with aiocache, in memory, with its protection."""
    from aiocache import SimpleMemoryCache, cached_stampede

    @cached_stampede(ttl=logins.lifetime, key="token", cache=SimpleMemoryCache, lease=2)
    async def get() -> str:
        return str((await logins.aresponse())["access_token"])

    return get


THREADS = (
    Way("tokencache", tokencache_token, "tokencache", "ours"),
    Way("bare closure", closure, "tokencache", "limit"),
    Way("cachetools TTLCache", cachetools_plain, "cachetools"),
    Way("cachetools TTLCache, locked", cachetools_locked, "cachetools"),
    Way("cachebox", cachebox_cached, "cachebox"),
    Way("dogpile.cache, memory", dogpile_memory, "dogpile.cache"),
    Way("Authlib, requests", authlib_session, "Authlib", client=True),
    Way("httpx-auth", httpx_auth_get, "httpx-auth", client=True),
    Way("requests-oauth2client", requests_oauth2client_check, "requests-oauth2client", client=True),
    Way("google-auth", google_credentials, "google-auth", client=True, window=225.0),
    Way("MSAL", msal_application, "msal", client=True, window=300.0),
    Way("azure-identity", azure_credential, "azure-identity", client=True, window=300.0),
    Way("qpay-client", qpay_client_get, "qpay-client", client=True),
    Way("qpay-python", qpay_python_get, "qpay-python", client=True),
)
LOOPS = (
    Way("tokencache", tokencache_atoken, "tokencache", "ours"),
    Way("bare coroutine", coroutine, "tokencache", "limit"),
    Way("Authlib, httpx", authlib_async, "Authlib", client=True),
    Way("cashews, memory", cashews_memory, "cashews"),
    Way("aiocache, memory", aiocache_memory, "aiocache"),
)
BACKGROUND = Way("thread in the background", background, "tokencache", "limit")
