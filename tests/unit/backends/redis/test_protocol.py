"""The Redis backend without a server: URLs, names of keys, meaning of errors."""

from __future__ import annotations

import asyncio
import ssl

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from redis import Connection, Redis
from redis.connection import PythonRespSerializer
from redis.crc import key_slot
from redis.exceptions import AuthenticationError, BusyLoadingError, OutOfMemoryError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeout

from tokencache import BackendClosed, BackendUnavailable, ConfigurationError, TokenCache
from tokencache.backends.redis import RedisBackend
from tokencache.backends.redis._connect import Target, connect, is_unverified, settings_of, target_of
from tokencache.backends.redis._protocol import (
    LONGEST_BLOCK,
    Protocol,
    keys_of,
    look_at,
    milliseconds,
    translated,
)
from tokencache.ports import Cooldown, LeaseGrant
from tokencache.url import BackendURL


@pytest.mark.parametrize("ttl", [b"9" * 400, b"9" * 5_000, b"x", b""], ids=len)
def test_a_wake_up_with_a_giant_number_brings_nothing(ttl: bytes) -> None:
    """INV-5: another program's entry in the stream is not a failure of the server; the waiter looks again."""
    entry = (b"1-1", (b"record", b"{}", b"ttl", ttl))
    assert Protocol(cluster=False).woken(((b"K:ready", (entry,)),)) is None


def read(text: str) -> Target:
    """Read a URL."""
    return target_of(BackendURL.parse(text))


@pytest.mark.parametrize(
    ("text", "hosts", "service", "database"),
    [
        ("redis://", (("localhost", 6379),), "", None),
        ("redis://example/3", (("example", 6379),), "", 3),
        ("redis://example:7000?db=4", (("example", 7000),), "", 4),
        ("rediss://[::1]:7001", (("::1", 7001),), "", None),
        ("redis+sentinel://a,b:7002/mymaster/2", (("a", 26379), ("b", 7002)), "mymaster", 2),
        ("redis+cluster://a:1,b:2", (("a", 1), ("b", 2)), "", None),
    ],
)
def test_urls_name_their_servers(text: str, hosts: object, service: str, database: int | None) -> None:
    """Hosts, ports, the master's name and the database are read from the usual parts of a URL."""
    target = read(text)
    assert (target.hosts, target.service, target.settings.get("db")) == (hosts, service, database)


def test_options_reach_the_connection() -> None:
    """Time-outs, TLS and both logins reach the connection; a waiting connection outlives the longest blocking read."""
    target = read(
        "redis+sentinel://user:pw@a/m?timeout=2&connect_timeout=250ms&ssl_ca_certs=ca.pem&sentinel_password=spw&waiters=3"
    )
    assert (target.timeout, target.connect_timeout, target.waiters) == (2.0, 0.25, 3)
    assert target.settings == {"username": "user", "password": "pw", "ssl": True, "ssl_ca_certs": "ca.pem"}
    assert target.sentinel == {"password": "spw"}
    assert (target.arguments(waiting=False)["socket_timeout"], target.connect_timeout) == (2.0, 0.25)
    assert read("redis://a?timeout=100ms").arguments(waiting=True)["socket_timeout"] > LONGEST_BLOCK
    assert "pw" not in repr(target)
    assert read("unix:///run/redis.sock?db=1").where == "/run/redis.sock"
    assert read("rediss://a").settings["ssl"] is True


@pytest.mark.parametrize(
    ("option", "settings"),
    [
        ("ssl_cert_reqs=none", {"ssl_cert_reqs": "none", "ssl_check_hostname": False}),
        ("ssl_cert_reqs=CERT_NONE", {"ssl_cert_reqs": "none", "ssl_check_hostname": False}),
        ("ssl_cert_reqs=CERT_REQUIRED", {"ssl_cert_reqs": "required"}),
        ("ssl_cert_reqs=none&ssl_check_hostname=true", {"ssl_cert_reqs": "none", "ssl_check_hostname": False}),
        ("ssl_min_version=772", {"ssl_min_version": ssl.TLSVersion.TLSv1_3}),
        ("ssl_ciphers=HIGH&ssl_ca_data=PEM", {"ssl_ciphers": "HIGH", "ssl_ca_data": "PEM"}),
    ],
)
@pytest.mark.parametrize("library", ["redis", "redis.asyncio"])
@pytest.mark.parametrize("server", ["rediss://a", "redis+sentinel://a/m", "redis+cluster://a"])
def test_tls_options_have_the_names_of_redis_py(
    option: str, settings: dict[str, object], library: str, server: str
) -> None:
    """Each option reaches the connections of both halves."""
    if "cluster" in server and library == "redis":
        pytest.skip("this client connects when it is made")
    target = read(f"{server}?{option}")
    assert settings.items() <= target.settings.items()
    assert settings.items() <= settings_of(connect(target, library, waiting=False)).items()
    assert is_unverified(target.settings) == ("NONE" in option.upper())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("redis://a/x", "give the number of a database, as in redis://localhost:6379/0"),
        ("redis://a,b", "several of them take redis\\+sentinel:// or redis\\+cluster://"),
        ("redis://a?dbb=1", "redis:// has no option 'dbb'; .* did you mean 'db'"),
        ("redis://a?timeout=0", "timeout=0.0: give more than 0 seconds"),
        ("redis://a?connect_timeout=0", "connect_timeout=0.0: give more than 0 seconds"),
        ("redis://a?connect_timeout=-1", "'connect_timeout' of redis:// must be a duration"),
        ("redis://a?waiters=-1", "waiters=-1: give the number of connections for waiting, 0 or more"),
        ("redis://a?db=one", "'db' of redis:// must be a whole number"),
        ("redis+sentinel://a", "name the master, as in redis\\+sentinel://"),
        ("redis+cluster://a/1", "a cluster has no databases"),
        ("rediss://a?ssl_cert_reqs=nein", "ssl_cert_reqs='nein': give none, optional or required"),
        ("rediss://a?ssl_min_version=1", "ssl_min_version=1: give 771 for TLS 1.2 or 772 for TLS 1.3"),
        ("unix://", "name the server's socket, as in unix:///"),
    ],
)
def test_bad_urls_are_refused_with_the_remedy(text: str, said: str) -> None:
    """A mistake in the URL is a ConfigurationError with the remedy; nothing is sent."""
    with pytest.raises(ConfigurationError, match=said):
        read(text)


def test_a_backend_may_have_no_waiters() -> None:
    """With ``waiters=0`` each wait for a holder is polling."""
    assert read("redis://a?waiters=0").waiters == 0


@pytest.mark.parametrize("library", ["redis", "redis.asyncio"])
@pytest.mark.parametrize("text", ["redis://localhost:1", "unix:///nowhere", "redis+sentinel://localhost:1/m"])
def test_clients_are_made_without_a_connection(library: str, text: str) -> None:
    """A backend is made at once, even if its server does not answer."""
    assert connect(read(text), library, waiting=False).connection_pool is not None


@given(st.text(min_size=1))
def test_in_a_cluster_the_keys_of_a_record_share_a_slot(key: str) -> None:
    """A script does not fail with CROSSSLOT, whatever braces a key holds."""
    slots = {key_slot(name.encode()) for name in keys_of(key, cluster=True)}
    assert len(slots) == 1


PARTS = st.sampled_from(
    [
        *("a", "b", "{", "}", "%", "%7B", "%7D", "%25", ":lock", ":ready", ":cooldown"),
        *("\ud800", "\\ud800", "tokencache:sha256:"),
    ]
)


@given(st.lists(st.lists(PARTS | st.text(), min_size=1).map("".join), min_size=2, max_size=2, unique=True))
@example(["a", "a:lock"])
@example(["a", "a:ready"])
@example(["a", "{a}"])
@example(["a", "{a}:lock"])
@example(["{a", "%7Ba"])
@example(["\ud800", "\\ud800"])
def test_distinct_keys_have_distinct_names(keys: list[str]) -> None:
    """INV-10: no two keys share record, lock or stream, and none has the name of another's."""
    for cluster in (False, True):
        names = [name for key in filter(None, keys) for name in keys_of(key, cluster=cluster)]
        assert len(set(names)) == len(names)


def test_the_names_of_keys_are_the_documented_ones() -> None:
    """A plain key is the record's name, and the lock is beside it."""
    assert keys_of("qpay:access_token", cluster=False)[:2] == ("qpay:access_token", "qpay:access_token:lock")
    assert keys_of("a", cluster=True) == ("a", "{a}:lock", "{a}:ready", "{a}:cooldown")
    for key in ("{t}a", "a{t}"):
        assert keys_of(key, cluster=True) == (key, f"{key}:lock", f"{key}:ready", f"{key}:cooldown")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ResponseError("WRONGTYPE Operation against a key"), "another type"),
        (ResponseError("READONLY You can't write"), "read-only replica"),
        (ResponseError("MASTERDOWN Link"), "lost its master"),
        (ResponseError("NOPERM no permissions"), "ACL"),
        (ResponseError("NOAUTH Authentication required."), "password"),
        (ResponseError("CROSSSLOT Keys"), "redis\\+cluster"),
        (ResponseError("BUSY Redis is busy"), "busy"),
        (AuthenticationError("Authentication required."), "put user and password into the URL"),
        (AuthenticationError("planted-secret"), "refused user or password"),
        (OutOfMemoryError("planted-secret"), "out of memory"),
        (BusyLoadingError("planted-secret"), "loading"),
        (RedisTimeout("planted-secret"), "in time"),
        (OSError("planted-secret"), "cannot be reached"),
    ],
    ids=lambda value: type(value).__name__ + str(value)[:8] if isinstance(value, Exception) else None,
)
def test_errors_name_the_remedy(error: Exception, text: str) -> None:
    """INV-9: each failure is explained, without the server's own text."""
    came = translated(error, "host:1")
    assert isinstance(came, BackendUnavailable)
    with pytest.raises(BackendUnavailable, match=text):
        raise came
    assert "planted-secret" not in str(came)


def test_durations_are_whole_milliseconds() -> None:
    """PX takes neither a fraction nor zero."""
    assert (milliseconds(0.0001), milliseconds(1.9999), milliseconds(2_592_000)) == ("1", "1999", "2592000000")


def test_a_cooldown_survives_the_lock() -> None:
    """A cooldown that a release stores is the cooldown that the next caller gets."""
    protocol = Protocol(cluster=False)
    cooldown = Cooldown("me", 5.0, permanent=True, attempt=3, message="Хаан банк", error="E", status=401)
    call = protocol.release(LeaseGrant("k", "o", 7, 3.0), cooldown)
    left = call.arguments[2]
    assert isinstance(left, bytes)
    slot = protocol.slot([None, -2, None, -2, left, 4000])
    assert slot.cooldown == Cooldown("me", 4.0, permanent=True, attempt=3, message="Хаан банк", error="E", status=401)
    assert slot.owner is None
    theirs = protocol.slot([None, -2, b"theirs", -1, left, 4000])
    assert (theirs.owner, theirs.remaining, theirs.cooldown) == ("another program", None, slot.cooldown)
    assert protocol.release(LeaseGrant("k", "o", 7, 3.0), None).arguments[2] == b""


def test_a_lock_of_another_program_is_polled() -> None:
    """A lock of another program has no stream to wait on."""
    protocol = Protocol(cluster=False)
    assert protocol.wait("k", 3.0) is None
    protocol.leased("k", "o", 3.0, [b"held", 2000, b"41"])
    command = protocol.wait("k", 3.0)
    assert command is not None
    assert command[-1] == "41-0"
    protocol.leased("k", "o", 3.0, [b"held", -1, b""])
    assert protocol.wait("k", 3.0) is None


def test_a_users_client_must_not_decode() -> None:
    """Records are bytes; a client that decodes them is refused, with the remedy."""
    with pytest.raises(ConfigurationError, match="decode_responses"):
        RedisBackend(client=Redis(decode_responses=True))
    with pytest.raises(ConfigurationError, match="either"):
        RedisBackend()


def test_a_closed_backend_refuses_calls() -> None:
    """Both halves refuse calls after close(); closing twice is harmless."""

    async def main() -> None:
        backend = RedisBackend(read("redis://localhost:1"))
        half = backend.aio()
        await half.close()
        with pytest.raises(BackendClosed):
            await half.load("k")

    asyncio.run(main())
    backend = RedisBackend(read("redis://localhost:1"))
    backend.close()
    backend.close()
    with pytest.raises(BackendClosed):
        backend.load("k")


def test_a_refused_connection_is_an_outage_at_once() -> None:
    """INV-5: the error is BackendUnavailable, and the engine goes on without the backend."""
    backend = RedisBackend(read("redis://localhost:1"))
    with pytest.raises(BackendUnavailable, match="cannot be reached"):
        backend.load("k")
    source = TokenCache(backend).source(lambda: {"access_token": "x", "expires_in": 60}, key="k")
    assert source.token().value == "x"
    assert not source.status().healthy
    asyncio.run(_alone())


async def _alone() -> None:
    """Do the same from an event loop."""
    backend = RedisBackend(read("redis://localhost:1"))
    source = TokenCache(backend).source(lambda: {"access_token": "x", "expires_in": 60}, key="k")
    assert (await source.atoken()).value == "x"
    await backend.aio().close()


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
@pytest.mark.parametrize(
    "record", ["k", "qpay:access_token", "t\N{LATIN SMALL LETTER O WITH DIAERESIS}k", "a\r\nb", "x" * 500]
)
def test_a_load_is_packed_as_the_client_library_packs_it(record: str, encoding: str) -> None:
    """The bytes equal the client library's own, in the encoding of its connection, for any key."""
    connection = Connection(encoding=encoding)
    encoder = connection.encoder
    # With hiredis, redis-py packs every text as UTF-8, whatever the encoding.
    connection._command_packer = PythonRespSerializer(connection._buffer_cutoff, encoder.encode)
    packed = connection.pack_commands([["GET", record], ["PTTL", record]])
    assert b"".join(look_at(record, encoder.encoding, encoder.encoding_errors)) == b"".join(packed)


def test_tls_options_hold_for_the_sentinels_too() -> None:
    """A sentinel that is asked in clear text would see its password, and could name any master."""
    import redis.sentinel

    made: list[dict[str, object]] = []

    class Sentinel(redis.sentinel.Sentinel):
        """Records its arguments."""

        def __init__(self, *args: object, **kwargs: object) -> None:
            made.append(kwargs)
            super().__init__(*args, **kwargs)  # type: ignore[arg-type]

    target = target_of(
        BackendURL.parse("redis+sentinel://:pw@a/m?ssl_ca_certs=ca.pem&ssl_check_hostname=false&sentinel_password=spw")
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(redis.sentinel, "Sentinel", Sentinel)
        connect(target, "redis", waiting=False).close()
    (arguments,) = made
    for settings in (arguments, arguments["sentinel_kwargs"]):
        assert isinstance(settings, dict)
        assert (settings["ssl"], settings["ssl_ca_certs"], settings["ssl_check_hostname"]) == (True, "ca.pem", False)
