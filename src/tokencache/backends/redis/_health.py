"""The checks of `tokencache doctor` for Redis: version, role, rights, wake-ups, eviction, clock. It only reads."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from tokencache.errors import BackendUnavailable
from tokencache.health import Finding, compare_clocks, failed, ok, skipped, warning

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tokencache.backends.redis._protocol import Command, Names

    Ask: TypeAlias = Callable[[Command], Any]

_OLDEST: Final = 5
_FULL: Final = 0.9

RIGHTS: Final = """
if not redis.acl_check_cmd then return 'unknown' end
local record, lock, ready, cooldown = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local calls = {
  {'GET', record}, {'PTTL', record}, {'SET', record, '', 'PX', '1'}, {'DEL', record},
  {'GET', lock}, {'PTTL', lock}, {'SET', lock, '', 'PX', '1'}, {'DEL', lock}, {'PEXPIRE', lock, '1'},
  {'GET', cooldown}, {'PTTL', cooldown}, {'SET', cooldown, '', 'PX', '1'}, {'DEL', cooldown},
  {'XADD', ready, 'MAXLEN', '1', '*', 'record', ''}, {'PEXPIRE', ready, '1'}, {'XREAD', 'STREAMS', ready, '0-0'},
  {'TIME'}, {'EVALSHA', '', '0'}
}
local missing = {}
for _, call in ipairs(calls) do
  if not redis.acl_check_cmd(unpack(call)) then
    local key = (call[1] == 'XREAD') and ready or call[2]
    table.insert(missing, call[1] .. ((#call > 1 and key ~= '') and (' ' .. key) or ''))
  end
end
return missing
"""
"""Asks which commands the ACL allows on the keys, and runs none of them (Redis 7 or newer)."""


def examine(names: Names, where: str, library: str, ask: Ask) -> Iterator[Finding]:
    """Yield the findings; ``ask`` sends one command to the server that has ``names``: the four names of a key."""
    try:
        about = _fields(ask(["INFO"]))
    except BackendUnavailable as error:
        if not _forbidden(error):
            yield failed("server", str(error), "see the finding on the backend above")
            return
        about = {}
        remedy = "allow INFO to this user (ACL SETUSER … +info) for the time of the check"
        yield skipped("server", f"{where}: its ACL forbids INFO, so version, role and eviction are unknown", remedy)
    if about:
        yield _server(about, where, library)
        yield _role(about, where)
        yield _eviction(about)
    yield _rights(names, ask)
    yield _wake_ups(names[2], ask)
    yield _clock(where, ask)


def unverified(where: str) -> Finding:
    """Return the warning that TLS accepts any certificate."""
    seen = f"{where}: its certificate is not verified (ssl_cert_reqs=none), so a server in between can read the tokens"
    return warning("TLS", seen, "give the authority of its certificate: ssl_ca_certs=…, or ssl_ca_data=…")


def _server(about: dict[str, str], where: str, library: str) -> Finding:
    """Return the version of this server."""
    valkey = about.get("valkey_version")
    version = valkey or about.get("redis_version", "?")
    seen = f"{'Valkey' if valkey else 'Redis'} {version} at {where}, {library}"
    major = version.partition(".")[0]
    if not valkey and major.isdigit() and int(major) < _OLDEST:
        return failed("server", seen, f"upgrade the server to Redis {_OLDEST} or newer: it has no streams")
    return ok("server", seen)


def _role(about: dict[str, str], where: str) -> Finding:
    """Return whether this server takes writes."""
    if about.get("role") == "slave":
        remedy = "point the URL at the master, or use redis+sentinel:// or redis+cluster://"
        return failed("role", f"{where} is a read-only replica", remedy)
    return ok("role", f"master with {about.get('connected_slaves', '0')} replicas")


def _eviction(about: dict[str, str]) -> Finding:
    """Return whether the server may evict records and leases, or is full."""
    policy, most = about.get("maxmemory_policy", "noeviction"), int(about.get("maxmemory", "0"))
    used, evicted = int(about.get("used_memory", "0")), about.get("evicted_keys", "0")
    if not most:
        return ok("eviction", f"maxmemory-policy {policy}, and no maxmemory: nothing is evicted")
    seen = (
        f"maxmemory-policy {policy}, {used / 2**20:.1f} of {most / 2**20:.1f} MiB used, {evicted} keys evicted so far"
    )
    if policy != "noeviction":
        remedy = (
            "CONFIG SET maxmemory-policy noeviction, or give tokens a Redis of their own: a lost lease costs a login"
        )
        return warning("eviction", seen, remedy)
    if used > _FULL * most:
        return warning("eviction", seen, "raise maxmemory, or free room: a full server refuses to store tokens")
    return ok("eviction", seen)


def _rights(names: Names, ask: Ask) -> Finding:
    """Return whether the ACL allows this user the commands of the scripts."""
    keys = " ".join(f"~{name}" for name in names)
    remedy = (
        f"ACL SETUSER … {keys} +get +pttl +set +del +pexpire +time +eval +evalsha +xadd +xread"
        " (docs/backends.md, Rights)"
    )
    try:
        missing = ask(["EVAL", RIGHTS, len(names), *names])
    except BackendUnavailable as error:
        return failed("rights", f"scripts cannot be run: {error}", remedy)
    if isinstance(missing, bytes):
        return skipped("rights", "this server cannot tell (Redis 7 can); see the round trip above")
    if missing:
        lacking = ", ".join(entry.decode("utf-8", "replace") for entry in missing)
        return failed("rights", f"the ACL forbids this user {lacking}", remedy)
    return ok("rights", f"scripts, streams and the keys {', '.join(names)} may be used")


def _wake_ups(stream: str, ask: Ask) -> Finding:
    """Return whether waiters can read the stream that wakes them."""
    try:
        ask(["XREAD", "COUNT", 1, "STREAMS", stream, "0-0"])
    except BackendUnavailable as error:
        remedy = f"allow XREAD on {stream}; if it holds another type than a stream: redis-cli DEL '{stream}'"
        return failed("wake-ups", f"XREAD on {stream} fails, so waiters sleep until time is up: {error}", remedy)
    return ok("wake-ups", f"XREAD on {stream} works")


def _clock(where: str, ask: Ask) -> Finding:
    """Return how this machine's clock compares with the server's."""
    before, started = time.time(), time.monotonic()
    try:
        seconds, microseconds = ask(["TIME"])
    except BackendUnavailable as error:
        return skipped("clock", f"TIME fails: {error}")
    at = int(seconds) + int(microseconds) / 1e6
    return compare_clocks(where, theirs=(at, at), ours=(before, before + time.monotonic() - started))


def _fields(info: bytes) -> dict[str, str]:
    """Return the fields of INFO."""
    lines = info.decode("utf-8", "replace").splitlines()
    return {name: value for name, colon, value in (line.partition(":") for line in lines) if colon}


def _forbidden(error: BackendUnavailable) -> bool:
    """Return whether the ACL refused the command."""
    return "ACL" in str(error)
