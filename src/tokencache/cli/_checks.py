"""The doctor's own checks, for every backend and provider: versions, a round trip, the state of the key."""

from __future__ import annotations

import json
import platform
import secrets
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from tokencache.cli._render import duration
from tokencache.errors import BackendUnavailable, TokenCacheError
from tokencache.health import Finding, failed, ok, skipped, warning
from tokencache.policy import RefreshPolicy
from tokencache.ports import Found, Granted, Held

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokencache.ports import Backend, LeaseGrant
    from tokencache.status import Status

STUCK: Final = RefreshPolicy().timeout
"""A lease with more remaining seconds is stuck: ours last three and are extended, and callers do not wait so long."""

_TTL: Final = 5.0
_NAMES: Final = 8
_LIBRARIES: Final = ("httpx", "msgspec", "cachetools")
_FOREIGN_REMEDY: Final = (
    'let its writer store {"accessToken": …, "expiresAt": <epoch seconds>} and use the same credentials,'
    " or give this provider a key of its own"
)
_PLAIN_REMEDY: Final = (
    "nothing, if all programs at this key have the same credentials; else give each credential a key of its own"
)
_STUCK_REMEDY: Final = "if no process of yours took it, delete the lock: docs/troubleshooting.md, A lock that is stuck"


def versions(distribution: str | None) -> Finding:
    """Return the versions in use; ``distribution`` is the provider's, if it is not tokencache itself."""
    from importlib.metadata import PackageNotFoundError, version

    shown = [f"{platform.python_implementation()} {platform.python_version()}"]
    for name in dict.fromkeys(("tokencache", *filter(None, [distribution]), *_LIBRARIES)):
        with suppress(PackageNotFoundError):
            shown.append(f"{name} {version(name)}")
    return ok("versions", ", ".join(shown))


def scratch_key(backend: Backend, key: str) -> str:
    """Return the doctor's own key for the round trip: of a few names, the first whose server answers."""
    names = [f"{key}:doctor{number or ''}" for number in range(_NAMES)]
    for name in names:
        with suppress(BackendUnavailable):
            backend.inspect(name)
            return name
    return names[0]


def round_trip(backend: Backend, key: str) -> Finding:
    """Take a lease, store, read and delete a record at ``key``, which no other program uses; return the finding."""
    owner = secrets.token_hex(12)
    began = time.perf_counter()
    grant: LeaseGrant | None = None
    try:
        reply = backend.lease(key, owner, "doctor", None, _TTL)
        if isinstance(reply, Found):  # the record of a doctor that was killed
            backend.discard(key, reply.stored.data)
            reply = backend.lease(key, owner, "doctor", None, _TTL)
        if not isinstance(reply, Granted):
            return skipped("round trip", "another doctor runs on this backend", f"run it again in {_TTL:.0f} s")
        grant = reply.lease
        wrong = _broken_law(backend, grant)
        took = (time.perf_counter() - began) * 1e3
    except BackendUnavailable as error:
        if "ACL" in str(error):
            return skipped(
                "round trip", f"the ACL does not allow the doctor's own key {key}", f"allow ~{key}* to see it"
            )
        return failed("round trip", str(error), "see docs/troubleshooting.md, Redis connection error")
    finally:
        if grant is not None:
            with suppress(TokenCacheError):
                backend.release(grant)
    if wrong:
        return failed("round trip", wrong, "check for a proxy, or a store that only resembles Redis")
    return ok("round trip", f"lease, store, read, delete took {took:.1f} ms in all")


def _broken_law(backend: Backend, grant: LeaseGrant) -> str | None:
    """Return the law that the backend breaks, ``None`` if it keeps all."""
    key, data = grant.key, json.dumps({"v": 1, "fence": grant.fence, "doctor": True}).encode()
    if not isinstance(backend.lease(key, secrets.token_hex(12), "doctor", None, _TTL), Held):
        return "a lease that was held was given to another owner as well"
    if not backend.extend(grant, _TTL):
        return "a lease was lost at once"
    if not backend.commit(grant, data, _TTL):
        return "a record was not stored"
    stored = backend.load(key)
    if stored is None or stored.data != data:
        return "a record that was stored could not be read"
    if not backend.discard(key, data) or backend.load(key) is not None:
        return "a record could not be deleted"
    return None


def state(status: Status) -> Iterator[Finding]:
    """Yield one finding each for the record, the lease and the cooldown of the key."""
    yield _record(status)
    yield _lease(status)
    yield _cooldown(status)


def is_usable(status: Status) -> bool:
    """Return whether a usable token is stored."""
    return status.stored == "ours" and status.usable_until is not None


def is_stuck(status: Status) -> bool:
    """Return whether the lease is held for longer than a caller waits."""
    held = status.lease_owner is not None
    return held and (status.lease_remaining is None or status.lease_remaining > STUCK)


def binds(status: Status) -> bool:
    """Return whether a cooldown applies to this identity."""
    return status.cooldown is not None and status.cooldown.identity == status.identity


def _record(status: Status) -> Finding:
    match status.stored:
        case "ours" if status.fence is None and status.usable_until is not None and not status.local:
            seen = f"the token stored at {status.key} is another program's, and does not say whose it is"
            return warning("record", f"{seen}: each process with this key takes it", _PLAIN_REMEDY)
        case "ours" if status.usable_until is not None:
            return ok("record", f"a token is stored at {status.key}, usable for {_left(status.usable_until)}")
        case "ours":
            return ok("record", f"the token stored at {status.key} has expired; the next caller fetches another")
        case "foreign":
            return warning("record", f"the record at {status.key} is not used: {status.ignored}", _FOREIGN_REMEDY)
        case "none":
            return ok("record", f"no token is stored at {status.key} yet; the next caller fetches one")
        case _:
            return skipped("record", "the backend does not answer")


def _lease(status: Status) -> Finding:
    if status.lease_owner is None:
        return ok("lease", "free") if status.stored != "unknown" else skipped("lease", "the backend does not answer")
    left = status.lease_remaining
    until = "with no end" if left is None else f"for {duration(left) if left >= 1 else f'{left:.1f} s'} more at most"
    seen = f"held by {status.lease_owner}, {until}"
    if is_stuck(status):
        return failed("lease", f"{seen}: no other process can fetch", _STUCK_REMEDY)
    return ok("lease", f"{seen}: its holder is fetching")


def _cooldown(status: Status) -> Finding:
    cooldown = status.cooldown
    if cooldown is None:
        return (
            ok("cooldown", "none") if status.stored != "unknown" else skipped("cooldown", "the backend does not answer")
        )
    seen = f"{duration(cooldown.remaining)} more, after failure {cooldown.attempt}: {cooldown.message}"
    if not binds(status):
        return ok("cooldown", f"it belongs to another identity and does not bind this one: {seen}")
    remedy = (
        "correct the credentials: corrected ones are another identity, which is asked for at once"
        if cooldown.permanent
        else "repair the provider; the cooldown ends by itself, and one process asks again"
    )
    return (warning if is_usable(status) else failed)("cooldown", seen, remedy)


def _left(until: float) -> str:
    """Return the time until an instant, as text."""
    return duration(max(0.0, until - time.time()))


def clear(backend: Backend, key: str) -> None:
    """Delete all at our own key, also an ended record that is still on a disk."""
    for _ in range(3):  # a record that is stored meanwhile is deleted in the next round
        slot = backend.inspect(key)
        if slot.stored is not None:
            backend.discard(key, slot.stored.data)
            continue
        # With the holder's name we get the holder's lease; the lease replaces a cooldown of another identity.
        reply = backend.lease(key, slot.owner or secrets.token_hex(12), "clear", None, _TTL)
        if isinstance(reply, Granted):
            with suppress(TokenCacheError):
                backend.release(reply.lease)
            return
