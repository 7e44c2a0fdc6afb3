"""Shared by the two halves of the Redis backend: key names, arguments and replies of scripts, errors. No I/O."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final, TypeAlias, cast

from cachetools import LRUCache

from tokencache._log_safe import log_safe_text
from tokencache._record import LARGEST
from tokencache.backends.redis import _scripts
from tokencache.errors import BackendUnavailable, ConfigurationError
from tokencache.ports import Cooldown, Found, Granted, Held, LeaseGrant, Slot, Stored

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokencache.ports import LeaseReply

Command: TypeAlias = "Sequence[str | bytes | int]"
_Read: TypeAlias = "tuple[bytes | None, int, bytes | None, int, bytes | None, int]"
_Entries: TypeAlias = "Sequence[tuple[bytes, Sequence[tuple[bytes, Sequence[bytes]]]]]"

LONGEST_BLOCK: Final = 1.0
"""Longest blocking read, in seconds. After it the waiter polls once, in case a wake-up was lost."""

Names: TypeAlias = "tuple[str, str, str, str]"
"""The names of record, lock, stream and cooldown."""

_HASHED: Final = "tokencache:sha256:"
_AMBIGUOUS: Final = re.compile(r"\Atokencache:sha256:|:(?:lock|ready|cooldown)\Z|[\ud800-\udfff]")
_TAG: Final = re.compile(r"[^{]*\{[^}]+\}")


@dataclass(frozen=True, slots=True)
class Script:
    """A script and the name by which the server knows it."""

    text: str
    sha: str

    @classmethod
    def of(cls, text: str) -> Script:
        """Return a script with its SHA-1, the argument of EVALSHA."""
        return cls(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


LEASE: Final = Script.of(_scripts.LEASE)
COMMIT: Final = Script.of(_scripts.COMMIT)
RELEASE: Final = Script.of(_scripts.RELEASE)
EXTEND: Final = Script.of(_scripts.EXTEND)
DISCARD: Final = Script.of(_scripts.DISCARD)


@dataclass(frozen=True, slots=True)
class ScriptCall:
    """One call of a script: its keys and arguments, as EVALSHA or EVAL takes them."""

    script: Script
    keys: Names
    arguments: tuple[str | bytes, ...]

    def evalsha(self) -> list[str | bytes | int]:
        """Return the command by name."""
        return ["EVALSHA", self.script.sha, len(self.keys), *self.keys, *self.arguments]

    def eval(self) -> list[str | bytes | int]:
        """Return the command with the script's text, for a server that does not have it yet."""
        return ["EVAL", self.script.text, len(self.keys), *self.keys, *self.arguments]


@lru_cache(1 << 14)
def look_at(record: str, encoding: str, errors: str) -> tuple[bytes]:
    """Return GET and PTTL of a record, encoded in RESP: the same bytes for each read of it."""
    name = record.encode(encoding, errors)
    return (b"*2\r\n$3\r\nGET\r\n$%d\r\n%b\r\n*2\r\n$4\r\nPTTL\r\n$%d\r\n%b\r\n" % (len(name), name, len(name), name),)


@lru_cache(1 << 14)
def keys_of(key: str, *, cluster: bool) -> Names:
    """Return the names of record, lock, stream and cooldown; in a cluster all hash to one slot.

    A key whose names might be another key's, or are not UTF-8, is hashed. So distinct keys have distinct names.
    """
    tag = _TAG.match(key) if cluster else None
    unsafe = _AMBIGUOUS.search(key) or (cluster and tag is None and ("{" in key or "}" in key))
    if unsafe or (tag and key[0] == "{" and tag.end() == len(key)):  # "{a}:lock" is the lock of "a"
        key, tag = _HASHED + hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest(), None
    slot = key if tag or not cluster else f"{{{key}}}"  # all names share the key's own hash tag
    return key, f"{slot}:lock", f"{slot}:ready", f"{slot}:cooldown"


def milliseconds(duration: float) -> str:
    """Return a duration for PX: whole milliseconds, rounded down, at least one."""
    return str(max(1, int(duration * 1000)))


class Protocol:
    """Builds the calls and reads the replies; remembers which lease a waiter has seen."""

    def __init__(self, *, cluster: bool) -> None:
        self._cluster = cluster
        self._lock = threading.Lock()  # guards _held
        self._held: LRUCache[str, str] = LRUCache(10_000)

    def after_fork(self) -> None:
        """Start with a fresh lock in the child of a fork."""
        self._lock = threading.Lock()

    def names(self, key: str) -> Names:
        """Return the names of record, lock, stream and cooldown."""
        return keys_of(key, cluster=self._cluster)

    def lease(self, key: str, owner: str, identity: str, seen: bytes | None, ttl: float) -> ScriptCall:
        """Ask for the lease."""
        known = b"" if seen is None or len(seen) > LARGEST else seen  # the script takes larger data for none
        arguments = (owner, identity, milliseconds(ttl), known, "0" if seen is None else "1")
        return ScriptCall(LEASE, self.names(key), arguments)

    def leased(self, key: str, owner: str, ttl: float, reply: object) -> LeaseReply:
        """Read the answer to ``lease``."""
        kind, *rest = cast("Sequence[bytes | int]", reply)
        match kind:
            case b"found":
                return Found(cast("Stored", stored_of(rest[0], rest[1])))
            case b"granted":
                return Granted(LeaseGrant(key, owner, int(rest[0]), ttl))
            case b"cooldown":
                remaining = remaining_of(rest[0]) or 0.0
                cooldown = _cooldown(cast("bytes", rest[1]), remaining)
                return Held(remaining if cooldown else _held(rest[0]), cooldown)
            case _:
                with self._lock:
                    self._held[key] = cast("bytes", rest[1]).decode()
                return Held(_held(rest[0]))

    def commit(self, lease: LeaseGrant, data: bytes, ttl: float) -> ScriptCall:
        """Store, free the lease, wake the waiters."""
        return ScriptCall(COMMIT, self.names(lease.key), (str(lease.fence), lease.owner, data, milliseconds(ttl)))

    def release(self, lease: LeaseGrant, cooldown: Cooldown | None) -> ScriptCall:
        """Free the lease, and store a cooldown if one is given."""
        left, ttl = b"", "1"
        if cooldown is not None and cooldown.remaining > 0:
            table = {
                "permanent": cooldown.permanent,
                "attempt": cooldown.attempt,
                "message": cooldown.message,
                "error": cooldown.error,
                "status": cooldown.status,
                "identity": cooldown.identity,
            }
            left = cooldown.identity.encode() + b":" + json.dumps(table).encode()
            ttl = milliseconds(cooldown.remaining)
        return ScriptCall(RELEASE, self.names(lease.key), (str(lease.fence), lease.owner, left, ttl))

    def extend(self, lease: LeaseGrant, ttl: float) -> ScriptCall:
        """Prolong the lease."""
        return ScriptCall(EXTEND, self.names(lease.key), (str(lease.fence), lease.owner, milliseconds(ttl)))

    def discard(self, key: str, seen: bytes) -> ScriptCall:
        """Compare and delete."""
        return ScriptCall(DISCARD, self.names(key), (seen,))

    def wait(self, key: str, timeout: float) -> list[str | bytes | int] | None:
        """Return the blocking read for the lease that was seen; ``None`` for a holder that sends no wake-up."""
        with self._lock:
            fence = self._held.get(key)
        if not fence:
            return None
        block = max(1, int(min(timeout, LONGEST_BLOCK) * 1000))
        return ["XREAD", "COUNT", 1, "BLOCK", block, "STREAMS", self.names(key)[2], f"{fence}-0"]

    def woken(self, reply: object) -> Stored | None:
        """Read the reply of the blocking read: the record in the wake-up, if it has one."""
        if not reply:
            return None
        streams = reply
        if isinstance(reply, dict):  # RESP3, from a client of the user
            streams = tuple(cast("dict[bytes, object]", reply).items())
        try:
            ((_, ((_, fields),)),) = cast("_Entries", streams)
            _, data, _, ttl = fields
            return Stored(data, int(ttl) / 1000) if data else None
        except (TypeError, ValueError, OverflowError):
            return None  # another program wrote into the stream: poll again

    def inspect(self, key: str) -> list[Command]:
        """Return the plain reads of record, lock and cooldown, each with its countdown."""
        record, lock, _, cooldown = self.names(key)
        return [[command, name] for name in (record, lock, cooldown) for command in ("GET", "PTTL")]

    def slot(self, replies: Sequence[object]) -> Slot:
        """Read the answers to ``inspect``."""
        record, life, lock, left, told, rest = cast("_Read", replies)
        stored, cooldown = stored_of(record, life), None
        if told is not None:
            _, brace, text = told.partition(b"{")
            cooldown = _cooldown(brace + text, remaining_of(rest) or 0.0)
        if lock is None:
            return Slot(stored, remaining=cooldown.remaining if cooldown else None, cooldown=cooldown)
        _, colon, owner = lock.partition(b":")
        name = owner if colon else b"another program"
        return Slot(stored, name.decode("utf-8", "replace"), remaining_of(left), cooldown)


def stored_of(data: object, life: object) -> Stored | None:
    """Return a record that was read, with its countdown. Raises ``TypeError`` for a reply of another type."""
    if data is None:
        return None
    if not isinstance(data, bytes):
        message = f"the reply to GET is a {type(data).__name__}"
        raise TypeError(message)
    return Stored(data, remaining_of(life))


def remaining_of(milliseconds_left: object) -> float | None:
    """Return the seconds that PTTL reports; ``None`` if the key has no countdown."""
    left = cast("int", milliseconds_left)
    return left / 1000 if left >= 0 else None


def _held(left: object) -> float:
    """Return the remaining seconds of a lock; one second for a lock without an expiry."""
    return remaining_of(left) or LONGEST_BLOCK


def _cooldown(text: bytes, remaining: float) -> Cooldown | None:
    """Parse the cooldown in a lock, ``None`` for any other lock."""
    try:
        table: object = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(table, dict):
        return None
    fields = cast("dict[str, object]", table)
    attempt, error, status = fields.get("attempt"), fields.get("error"), fields.get("status")
    return Cooldown(
        identity=str(fields.get("identity", "")),
        remaining=remaining,
        permanent=bool(fields.get("permanent")),
        attempt=attempt if isinstance(attempt, int) else 1,
        message=str(fields.get("message", "")),
        error=error if isinstance(error, str) else None,
        status=status if isinstance(status, int) else None,
    )


_LOUD: Final = {
    "NOAUTH": "the server wants a password: put user and password into the URL",
    "WRONGPASS": "the server refused user or password",
    "NOPERM": "the server's ACL forbids a command: see docs/backends.md for those that are needed",
    "CROSSSLOT": "the keys lie in different slots: use redis+cluster:// for a cluster",
}
_PASSING: Final = {
    "WRONGTYPE": "the key holds another type than a string: delete it, or choose another key",
    "READONLY": "the server is a read-only replica: point the URL at the master, or use redis+sentinel://",
    "MASTERDOWN": "the replica has lost its master",
    "LOADING": "the server is loading its data",
    "BUSY": "the server is busy with a long script",
    "OOM": "the server is out of memory: raise maxmemory",
    "CLUSTERDOWN": "the cluster is down",
    "TRYAGAIN": "the cluster is moving the key",
    "MOVED": "the server belongs to a cluster: use redis+cluster://",
    "NOREPLICAS": "the server has too few replicas to write",
}


def translated(error: Exception, where: str) -> BackendUnavailable:
    """Return our error for the client library's error, without its text, which may hold a secret (INV-9)."""
    text = str(error)
    for table in (_LOUD, _PASSING):
        for code, meaning in table.items():
            if text.upper().startswith(code) or code in type(error).__name__.upper():
                return BackendUnavailable(f"redis at {where}: {meaning}")
    if text.upper().startswith("AUTHENTICATION REQUIRED"):  # redis-py removes the error code
        return BackendUnavailable(f"redis at {where}: {_LOUD['NOAUTH']}")
    if "NOPERM" in text or "NO PERMISSIONS" in text.upper():  # inside a script the code is not the first word
        return BackendUnavailable(f"redis at {where}: {_LOUD['NOPERM']}")
    if "DB INDEX IS OUT OF RANGE" in text.upper():
        return BackendUnavailable(f"redis at {where}: the server has no database of this number: correct the URL")
    name = type(error).__name__
    known = {
        "AuthenticationError": _LOUD["WRONGPASS"],
        "OutOfMemoryError": _PASSING["OOM"],
        "ReadOnlyError": _PASSING["READONLY"],
        "BusyLoadingError": _PASSING["LOADING"],
        "NoPermissionError": _LOUD["NOPERM"],
        "TimeoutError": "it did not answer in time",
    }
    words = log_safe_text(error)
    return BackendUnavailable(
        f"redis at {where}: {known.get(name, f'it cannot be reached, or failed ({name})')}{words}"
    )


def misused(*, option: str, value: object, remedy: str) -> ConfigurationError:
    """Return the error for a bad option of the URL."""
    return ConfigurationError(f"redis: {option}={value!r}: {remedy}")
