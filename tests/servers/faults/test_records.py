"""Rows 26 and 28: bytes in the store that are not our record, and keys that look like commands or paths."""

from __future__ import annotations

import json
import logging
import time
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pymemcache.client.base import Client

from tokencache import TokenCache
from tokencache._record import encode, fence_of
from tokencache.backends.memcached._form import names_of
from tokencache.backends.redis._protocol import keys_of
from tokencache.events import RecordIgnored
from tokencache.ports import LeaseGrant
from tokencache.testing.fakes import FakeProvider, Recorder
from tokencache.testing.probes import HOSTILE_KEYS
from tokencache.testing.servers import MemcachedServer
from tokencache.token import Token
from tokencache.url import BackendURL

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import Outcome, Store
    from tokencache.backends.file import FileBackend
    from tokencache.testing.servers import RedisServer

pytestmark = [pytest.mark.live, pytest.mark.usefixtures("tidy")]

KEY = "orders:token"
HIGHEST = 2**53 - 1
STORES = ("memory", "file", "redis", "memcached")
EVERY = pytest.mark.parametrize("store", STORES, indirect=True)


def plant(store: Store, data: bytes, request: pytest.FixtureRequest) -> None:
    """Put bytes where the record of ``KEY`` is stored, past the backend wherever possible."""
    backend = store.open()
    match store.kind:
        case "redis":
            server: RedisServer = request.getfixturevalue("redis_server")
            assert server.command("SET", keys_of(KEY, cluster=False)[0], data) == b"OK"
        case "memcached":
            client = Client(BackendURL.parse(store.url).hosts[0], default_noreply=False)
            assert client.set(names_of(KEY)[0], data)
            client.close()
        case "file":
            path = cast("FileBackend", backend).record_path(KEY)
            path.parent.mkdir(mode=0o700)
            path.write_bytes(data)
        case _:
            assert backend.commit(LeaseGrant(KEY, "another program", 2**53, 3.0), data, 3600.0)


def fields(**changed: object) -> bytes:
    """Return a record that would be good, with fields changed, or left out if they are ``None``."""
    table: dict[str, object] = {"v": 1, "accessToken": "planted-token", "expiresAt": time.time() + 3600, "fence": 7}
    return json.dumps({name: value for name, value in (table | changed).items() if value is not None}).encode()


def of_others(fence: int) -> bytes:
    """Return a good record that was fetched with other credentials."""
    now = time.time()
    token = Token("planted-token", expires_at=now + 3600, issued_at=now)
    return encode(token, fence=fence, identity="another", reason="cold", key="another:key")


BYTES = {
    "no JSON": b"\xff\xfe\x00 planted-token",
    "empty": b"",
    "cut off": of_others(7)[:-20],
    "a list": b'["planted-token"]',
    "nested 100,000 deep": b'{"accessToken": "planted-token", "extra": ' + b"[" * 100_000,
    "no token": fields(accessToken=None),
    "no end": fields(expiresAt=None),
    "an older version": fields(v=0),
    "a newer version": fields(v=2),
    "another key's": of_others(7),
    "another key's, with the highest fence": of_others(HIGHEST),
    "another key's, with a fence beyond all": of_others(HIGHEST + 2),
    "sealed with an unknown key": fields(accessToken=None, sealed="cGxhbnRlZC10b2tlbg=="),
    "10 MB": fields(extra={"filler": "x" * 10_000_000}),
}


def planted() -> Iterator[object]:
    """Yield each of the bytes with each of the stores."""
    for case in BYTES:
        for store in STORES:
            yield pytest.param(store, case, marks=pytest.mark.fault(26, case=case), id=f"{case}, {store}")


@pytest.mark.parametrize(("store", "case"), list(planted()), indirect=["store"])
def test_bytes_that_are_not_our_record_are_replaced(
    store: Store,
    case: str,
    outcome: Outcome,
    request: pytest.FixtureRequest,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """INV-2, INV-3, INV-9, INV-10: a miss, with a warning that does not quote the bytes; one fetch replaces them."""
    caplog.set_level(logging.DEBUG)
    large = store.kind == "memcached" and case == "10 MB"
    with MemcachedServer("-I", "16m") if large else nullcontext() as server:
        store.url = f"{server.url}?timeout=30s" if server else store.url
        plant(store, BYTES[case], request)
        seen, provider = Recorder(), FakeProvider()
        mine, theirs, later = (TokenCache(store.open(), observers=[seen]).source(provider, key=KEY) for _ in range(3))
        assert mine.token().value == theirs.token().value == "fake-token-1"
        assert mine.status().stored == "ours"
        fence = fence_of(BYTES[case]) or 0
        assert store.fence(KEY) > fence or fence == HIGHEST  # else bytes tell records apart, as for other programs
        warnings = [*map(str, seen.of(RecordIgnored)), *(each.getMessage() for each in caplog.records)]
        assert warnings
        assert "planted" not in "".join(warnings)
        assert theirs.renew().value == mine.renew().value == later.token().value == "fake-token-2"
        assert provider.calls == 2
        store.close()
    outcome.record("the new token, and a warning", calls=1)


@pytest.mark.fault(26, case="the two fields of an older program")
@EVERY
def test_the_record_of_an_older_program_is_used(store: Store, outcome: Outcome, request: pytest.FixtureRequest) -> None:
    """INV-2: `accessToken` and `expiresAt` are a record; a renewal replaces it."""
    plant(store, fields(v=None, fence=None), request)
    seen, provider = Recorder(), FakeProvider()
    mine, theirs = (TokenCache(store.open(), observers=[seen]).source(provider, key=KEY) for _ in range(2))
    assert mine.token().value == theirs.token().value == "planted-token"
    assert provider.calls == 0
    assert not seen.of(RecordIgnored)
    assert mine.renew().value == theirs.renew().value == "fake-token-1"
    assert provider.calls == 1
    outcome.record("the token of that record", calls=0)


# --- row 28

INJECTIONS = [f"x{mark}flush_all{mark}FLUSHALL{mark}" for mark in ("\r\n", "\n", "\r", "\0", " ", "\x85", "\u2028")]
RELATED = ["a:lock", "a:ready", "a:lock:lock", "{a}", "{a}:lock", "{a", "%7Ba", "\\ud800", "a.json", "a.mutex"]
KEYS = [*HOSTILE_KEYS, *INJECTIONS, *RELATED]
NASTY = st.sampled_from(
    ["a", "A", "é", "e\u0301", ":lock", ":ready", "{", "}", "%", "\\", "/", "..", "\r\n", " ", "\0"]
)


@contextmanager
def untouched(store: Store, request: pytest.FixtureRequest, path: Path) -> Iterator[None]:
    """Check that the store still has its data, and has new data only where records belong."""

    def flushes() -> object:
        match store.kind:
            case "redis":
                return cast("RedisServer", request.getfixturevalue("redis_server")).calls().get("flushall")
            case "memcached":
                return cast("MemcachedServer", request.getfixturevalue("memcached_server")).stats()["cmd_flush"]
            case _:
                return [each.name for each in path.iterdir() if each.name != "tokens"]

    before = flushes()
    yield
    assert flushes() == before


@pytest.mark.fault(28)
@EVERY
def test_hostile_keys_are_only_names(
    store: Store, outcome: Outcome, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """INV-10: distinct keys have distinct records and leases; a key runs no command and does not leave the store."""
    provider = FakeProvider()
    mine, theirs = (TokenCache(store.open(), observers=[]) for _ in range(2))
    known: dict[str, str] = {}

    def hold(key: str) -> None:
        """One process fetches, another finds the token, and it is not another key's."""
        value = mine.source(provider, key=key).token().value
        assert value not in {other for name, other in known.items() if name != key}
        assert known.setdefault(key, value) == value
        source = theirs.source(provider, key=key)
        assert source.status().stored == "ours"
        assert source.token().value == value

    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.lists(NASTY | st.text(max_size=3), min_size=1, max_size=5).map("".join).filter(bool))
    def holds(key: str) -> None:
        hold(key)

    with untouched(store, request, tmp_path):
        for key in KEYS:
            hold(key)
        holds()
    assert provider.calls == len(known)
    held = store.open()
    leases = [held.lease(key, "owner", "identity", held.load(key).data, 30.0) for key in KEYS]  # type: ignore[union-attr]
    assert {type(each).__name__ for each in leases} == {"Granted"}
    assert not any(held.discard(key, b"somebody else's") for key in KEYS)
    survivors = TokenCache(store.open(), observers=[])
    assert {key: survivors.source(provider, key=key).token().value for key in known} == known
    if store.kind == "file":
        assert all(each.is_file() for each in (tmp_path / "tokens").iterdir())
    outcome.record("each key its own token", calls="1 a key")
