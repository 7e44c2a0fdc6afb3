"""MSAL's token cache on a backend, with the real MSAL, which calls a fake Entra ID through our HTTP client."""

from __future__ import annotations

import base64
import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import msal
import pytest
from redis import Redis

from tokencache.backends.memory import MemoryBackend
from tokencache.errors import BackendUnavailable, ConfigurationError
from tokencache.integrations.msal import SharedTokenCache
from tokencache.ports import Found, Granted, Stored
from tokencache.records import fence_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

AUTHORITY = "https://login.microsoftonline.com/tenant"
SCOPES = ["https://graph.microsoft.com/.default"]
KEY = "msal:app"
TYPES = msal.TokenCache.CredentialType
PATIENCE = 30.0


class Answer:
    """The members of an HTTP answer that MSAL reads."""

    def __init__(self, body: object) -> None:
        self.status_code = 200
        self.text = json.dumps(body)
        self.headers: dict[str, str] = {}

    def raise_for_status(self) -> None:
        """Accept every status."""


class Entra:
    """A fake Entra ID: discovery, and numbered tokens."""

    def __init__(self) -> None:
        self.logins = 0
        self._lock = threading.Lock()  # guards logins

    def get(self, url: str, **_: object) -> Answer:
        """Answer a discovery request."""
        if "openid-configuration" not in url:
            return Answer({"tenant_discovery_endpoint": f"{AUTHORITY}/v2.0/.well-known/openid-configuration"})
        return Answer(
            {
                "issuer": f"{AUTHORITY}/v2.0",
                "token_endpoint": f"{AUTHORITY}/oauth2/v2.0/token",
                "authorization_endpoint": f"{AUTHORITY}/oauth2/v2.0/authorize",
            }
        )

    def post(self, url: str, data: dict[str, Any], **_: object) -> Answer:
        """Answer a request for a token."""
        with self._lock:
            self.logins += 1
        answer = {"access_token": f"access-{self.logins}", "expires_in": 3600, "token_type": "Bearer"}
        if data["grant_type"] != "client_credentials":
            ids = json.dumps({"uid": data.get("username", "user"), "utid": "tenant"}).encode()
            answer |= {"refresh_token": f"refresh-{self.logins}", "client_info": base64.urlsafe_b64encode(ids).decode()}
        return Answer(answer)

    def close(self) -> None:
        """Do nothing."""


@pytest.fixture
def entra() -> Entra:
    """A fake Entra ID."""
    return Entra()


@pytest.fixture
def backend() -> MemoryBackend:
    """A backend that two caches share."""
    return MemoryBackend()


def service(cache: SharedTokenCache, entra: Entra) -> msal.ConfidentialClientApplication:
    """Return a service on the cache."""
    return msal.ConfidentialClientApplication(
        "client", "secret", authority=AUTHORITY, token_cache=cache, http_client=entra, instance_discovery=False
    )


def refresh_tokens(cache: SharedTokenCache) -> list[dict[str, Any]]:
    """Return the refresh tokens that a cache finds."""
    return list(cache.search(TYPES.REFRESH_TOKEN))


def user(number: int, secret: str | None = None) -> dict[str, Any]:
    """Return the data that MSAL hands its cache after a user has signed in."""
    ids = base64.urlsafe_b64encode(json.dumps({"uid": f"user-{number}", "utid": "t"}).encode()).decode()
    tokens = {"access_token": f"a-{number}", "refresh_token": secret or f"r-{number}", "client_info": ids}
    return {
        "client_id": "client",
        "scope": SCOPES,
        "token_endpoint": f"{AUTHORITY}/oauth2/v2.0/token",
        "response": tokens | {"expires_in": 3600},
    }


def test_a_token_of_one_process_serves_the_others(entra: Entra, backend: MemoryBackend) -> None:
    """A second application with a cache of its own on the same key finds the token: one login."""
    first, second = SharedTokenCache(backend, key=KEY), SharedTokenCache(backend, key=KEY)
    given = [service(cache, entra).acquire_token_for_client(SCOPES)["access_token"] for cache in (first, second)]
    assert given == ["access-1", "access-1"]
    assert entra.logins == 1
    assert not list(SharedTokenCache(backend, key="msal:other").search(TYPES.ACCESS_TOKEN))


@pytest.mark.live
@pytest.mark.parametrize("kind", ["file", "redis"])
def test_it_works_on_a_url(kind: str, entra: Entra, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """A Redis cache for MSAL in one line; the record has a fence and a time to live, and outlives `close`."""
    url = tmp_path.as_uri() + "/cache" if kind == "file" else request.getfixturevalue("redis_url")
    if kind == "redis":
        Redis.from_url(url).delete(KEY)
    for _ in range(2):
        cache = SharedTokenCache(url, key=KEY, lifetime=1_000)
        assert service(cache, entra).acquire_token_for_client(SCOPES)["access_token"] == "access-1"
        cache.close()
    assert entra.logins == 1
    if kind == "redis":
        with Redis.from_url(url) as client:
            assert 900 < int(client.ttl(KEY)) <= 1_000  # type: ignore[arg-type]
            assert fence_of(client.get(KEY)) is not None  # type: ignore[arg-type]


def test_writers_do_not_undo_each_other(backend: MemoryBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """INV-3: many users sign in at once through many caches, and every sign-in is stored."""
    for name in ("_LEASE", "_PATIENCE"):
        monkeypatch.setattr(f"tokencache.integrations.msal.{name}", PATIENCE)
    caches = [SharedTokenCache(backend, key=KEY) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: caches[number % 8].add(user(number)), range(32)))
    for cache in (caches[0], SharedTokenCache(backend, key=KEY)):
        assert {entry["secret"] for entry in refresh_tokens(cache)} == {f"r-{number}" for number in range(32)}


def test_one_sign_in_is_one_write(backend: MemoryBackend) -> None:
    """The five entries of a sign-in are stored together, and a search writes nothing."""
    commits: list[bytes] = []
    commit = backend.commit
    backend.commit = lambda lease, data, ttl: commits.append(data) or commit(lease, data, ttl)  # type: ignore[method-assign,func-returns-value]
    cache = SharedTokenCache(backend, key=KEY)
    cache.add(user(1))
    assert refresh_tokens(cache)
    assert len(commits) == 1


def test_a_sign_out_applies_to_all_processes(entra: Entra, backend: MemoryBackend) -> None:
    """The entries that MSAL removes with an account are removed for all processes, and only that account's."""
    cache, other = SharedTokenCache(backend, key=KEY), SharedTokenCache(backend, key=KEY)
    cache.add(user(1))
    other.add(user(2))
    app = service(cache, entra)
    (account,) = (found for found in app.get_accounts() if found["home_account_id"] == "user-1.t")
    app.remove_account(account)
    assert [entry["secret"] for entry in refresh_tokens(other)] == ["r-2"]
    assert [found["home_account_id"] for found in service(other, entra).get_accounts()] == ["user-2.t"]


def test_a_renewed_refresh_token_serves_the_others(entra: Entra, backend: MemoryBackend) -> None:
    """MSAL renews with the refresh token that another process stored, and stores the next one for all."""
    cache, other = SharedTokenCache(backend, key=KEY), SharedTokenCache(backend, key=KEY)
    cache.add(user(1))
    app = service(other, entra)
    (account,) = app.get_accounts()
    answer = app.acquire_token_silent(SCOPES, account, force_refresh=True)
    assert answer["access_token"] == "access-1"
    assert [entry["secret"] for entry in refresh_tokens(cache)] == ["refresh-1"]


def test_a_late_refusal_spares_the_newer_token(backend: MemoryBackend) -> None:
    """A late removal of the old refresh token keeps the one that another process has stored since."""
    cache, other = SharedTokenCache(backend, key=KEY), SharedTokenCache(backend, key=KEY)
    cache.add(user(1))
    (old,) = refresh_tokens(cache)
    other.add(user(1, "r-new"))
    cache.remove_rt(old)
    assert [entry["secret"] for entry in refresh_tokens(cache)] == ["r-new"]
    assert [entry["secret"] for entry in refresh_tokens(other)] == ["r-new"]
    cache.remove_rt(refresh_tokens(cache)[0])
    assert refresh_tokens(other) == []


class Outage(MemoryBackend):
    """A memory backend that can be made to fail."""

    def __init__(self) -> None:
        super().__init__()
        self.out = False
        self.asked = 0

    def load(self, key: str) -> Any:  # noqa: ANN401
        """Fail, or load."""
        self.asked += 1
        if self.out:
            message = "gone"
            raise BackendUnavailable(message)
        return super().load(key)


def test_the_cache_works_without_its_backend(entra: Entra, monkeypatch: pytest.MonkeyPatch) -> None:
    """INV-5: cached entries still serve, new tokens are kept locally, and are stored when the backend is back."""
    now = [100.0]
    monkeypatch.setattr("tokencache.integrations.msal.time.monotonic", lambda: now[0])
    backend = Outage()
    cache, other = SharedTokenCache(backend, key=KEY), SharedTokenCache(backend, key=KEY)
    cache.add(user(1))
    backend.out = True
    backend.asked = 0
    cache.add(user(2))
    assert {entry["secret"] for entry in refresh_tokens(cache)} == {"r-1", "r-2"}
    assert backend.asked == 1, "a backend that failed is left alone for a while"
    backend.out = False
    other.add(user(3))
    now[0] += 2
    assert {entry["secret"] for entry in refresh_tokens(cache)} == {"r-1", "r-2", "r-3"}
    assert {entry["secret"] for entry in refresh_tokens(other)} == {"r-1", "r-2", "r-3"}


def test_an_emptied_store_loses_no_entries(backend: MemoryBackend) -> None:
    """INV-4: a store that lost the record gets it back with the next change."""
    cache = SharedTokenCache(backend, key=KEY)
    cache.add(user(1))
    stored = backend.load(KEY)
    assert stored is not None
    assert backend.discard(KEY, stored.data)
    assert len(refresh_tokens(cache)) == 1
    cache.add(user(2))
    assert len(refresh_tokens(SharedTokenCache(backend, key=KEY))) == 2


def test_a_writer_waits_for_the_lease(backend: MemoryBackend) -> None:
    """While another owner has the lease a change waits, and is then applied to that owner's record."""
    reply = backend.lease(KEY, "somebody", "msal", None, 30.0)
    assert isinstance(reply, Granted)
    other = SharedTokenCache(MemoryBackend(), key=KEY)
    other.add(user(1))
    cache = SharedTokenCache(backend, key=KEY)
    waits = threading.Event()
    wait = backend.wait

    def announced(*args: Any) -> Any:  # noqa: ANN401
        waits.set()
        return wait(*args)

    backend.wait = announced  # type: ignore[method-assign]
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(cache.add, user(2))
        assert waits.wait(PATIENCE)
        assert backend.commit(reply.lease, other._encode(reply.lease.fence), 60.0)
        done.result(PATIENCE)
    assert {entry["secret"] for entry in refresh_tokens(SharedTokenCache(backend, key=KEY))} == {"r-1", "r-2"}


def test_a_lease_that_never_comes_does_not_hold_the_caller(
    backend: MemoryBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """INV-8: after its patience the change stays local, and is stored with the next one."""
    monkeypatch.setattr("tokencache.integrations.msal._PATIENCE", 0.05)
    reply = backend.lease(KEY, "somebody", "msal", None, 300.0)
    assert isinstance(reply, Granted)
    cache = SharedTokenCache(backend, key=KEY)
    cache.add(user(1))
    assert len(refresh_tokens(cache)) == 1
    assert backend.load(KEY) is None
    backend.release(reply.lease)
    cache.add(user(2))
    assert len(refresh_tokens(SharedTokenCache(backend, key=KEY))) == 2


def test_a_store_that_finds_the_same_record_for_ever_does_not_hold_the_caller(
    backend: MemoryBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """INV-8: each lease is answered by a record that the cache has seen; it asks at a pace, and gives up."""
    monkeypatch.setattr("tokencache.integrations.msal._PATIENCE", 0.2)
    asked: list[object] = []

    def found(*args: object) -> Found:
        asked.append(args)
        return Found(Stored(b"{}", None))

    backend.lease = found  # type: ignore[method-assign]
    cache = SharedTokenCache(backend, key=KEY)
    cache.add(user(1))
    assert 2 <= len(asked) <= 12
    assert len(refresh_tokens(cache)) == 1


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b'{"msal": 1}', b'{"msal": "[]"}', b'{"accessToken": "x"}', b"\xff"]
)
def test_an_invalid_record_counts_as_missing(backend: MemoryBackend, data: bytes) -> None:
    """Another program's bytes raise no error, and the next change replaces them."""
    reply = backend.lease(KEY, "somebody", "other", None, 3.0)
    assert isinstance(reply, Granted)
    assert backend.commit(reply.lease, data, 60.0)
    cache = SharedTokenCache(backend, key=KEY)
    assert refresh_tokens(cache) == []
    cache.add(user(1))
    assert len(refresh_tokens(SharedTokenCache(backend, key=KEY))) == 1


def test_the_stored_cache_can_be_sealed(backend: MemoryBackend) -> None:
    """With ``encrypt`` no secret is readable in the store; keys rotate; without the key no entry is found (INV-9)."""
    old, new = os.urandom(32), os.urandom(32)
    SharedTokenCache(backend, key=KEY, encrypt=old).add(user(1))
    stored = backend.load(KEY)
    assert stored is not None
    assert b"r-1" not in stored.data
    assert fence_of(stored.data) is not None
    assert refresh_tokens(SharedTokenCache(backend, key=KEY)) == []
    assert refresh_tokens(SharedTokenCache(backend, key=KEY, encrypt=new)) == []
    rotated = SharedTokenCache(backend, key=KEY, encrypt=[new, old])
    rotated.add(user(2))
    assert len(refresh_tokens(SharedTokenCache(backend, key=KEY, encrypt=new))) == 2
    with pytest.raises(ConfigurationError, match="32 bytes"):
        SharedTokenCache(backend, key=KEY, encrypt="short")


def test_no_repr_shows_a_token(backend: MemoryBackend) -> None:
    """The repr names key and backend (INV-9)."""
    cache = SharedTokenCache(backend, key=KEY)
    cache.add(user(1))
    assert repr(cache) == f"<SharedTokenCache 'msal:app' on {backend.name!r}>"


@pytest.mark.live
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")  # the case under test
def test_a_child_of_a_fork_has_its_own_lock(tmp_path: Path) -> None:
    """A fork in the middle of another thread's change: the child's cache is not locked, and shares the file."""
    cache = SharedTokenCache((tmp_path / "cache").as_uri(), key=KEY)
    cache.add(user(1))
    held, free = threading.Event(), threading.Event()

    def hold() -> None:
        with cache._lock:
            held.set()
            free.wait(PATIENCE)

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(PATIENCE)
    try:
        assert end_of(fork_and(lambda: cache.add(user(2)))) == 0
    finally:
        free.set()
        holder.join()
    assert len(refresh_tokens(cache)) == 2


def fork_and(act: Callable[[], object]) -> int:
    """Run a function in a child, which exits with 0 if it worked."""
    child = os.fork()
    if child == 0:
        try:
            act()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return child


def end_of(child: int) -> int:
    """Return a child's exit status; kill a child that does not end."""
    ends_at = time.monotonic() + PATIENCE
    try:
        while time.monotonic() < ends_at:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                child = 0
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.01)
    finally:
        if child:
            os.kill(child, 9)
            os.waitpid(child, 0)
    pytest.fail("the child never ended")
