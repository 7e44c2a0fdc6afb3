"""The sizes of the messages between the Redis backend and its server, with a record of usual size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

from tokencache import _record
from tokencache.backends.redis._protocol import Protocol
from tokencache.ports import LeaseGrant
from tokencache.token import Token

if TYPE_CHECKING:
    from collections.abc import Sequence

VALUE: Final = 1000
"""How long the token is, in characters: a JWT as QPay and others give it."""

KEY: Final = "simulated:" + 40 * "0"
_IDENTITY: Final = 40 * "0"
_LEASE: Final = LeaseGrant(KEY, 24 * "0", 1_800_000_000_000_000, 3.0)
_LIFE: Final = 3_480_000


def record() -> bytes:
    """Return a record of usual size."""
    token = Token(VALUE * "x", expires_at=1_800_003_600.25, issued_at=1_800_000_000.25)
    return _record.encode(token, fence=_LEASE.fence, identity=_IDENTITY, reason="refresh", key=KEY)


def weights() -> dict[str, int]:
    """Return the bytes of each message: of a command by its name, of a reply by command and type of the reply."""
    protocol, data = Protocol(cluster=False), record()
    protocol.leased(KEY, _LEASE.owner, _LEASE.ttl, [b"held", 3000, str(_LEASE.fence).encode()])
    wait = protocol.wait(KEY, _LEASE.ttl)
    assert wait is not None
    fence = str(_LEASE.fence)
    wakes = [[f"{KEY}:ready", [[f"{fence}-1", ["record", data, "ttl", str(_LIFE)]]]]]
    return {
        "load": _weigh(["GET", KEY]) + _weigh(["PTTL", KEY]),
        "load Stored": _weigh(data) + _weigh(_LIFE),
        "load NoneType": _weigh(None) + _weigh(-2),
        "lease": _weigh(protocol.lease(KEY, _LEASE.owner, _IDENTITY, data, _LEASE.ttl).evalsha()),
        "lease Found": _weigh(["found", data, _LIFE]),
        "lease Granted": _weigh(["granted", fence]),
        "lease Held": _weigh(["held", 3000, fence]),
        "wait": _weigh([str(each) for each in wait]),
        "wait Stored": _weigh(wakes),
        "wait NoneType": _weigh(None),
        "commit": _weigh(protocol.commit(_LEASE, data, _LIFE / 1000).evalsha()),
        "commit bool": _weigh(1),
        "release": _weigh(protocol.release(_LEASE, None).evalsha()),
        "release NoneType": _weigh(1),
        "extend": _weigh(protocol.extend(_LEASE, _LEASE.ttl).evalsha()) + _weigh(1),
    }


def _weigh(message: object) -> int:
    """Return the size of a value in RESP; a number among a command's words is sent as text."""
    match message:
        case None:
            return len(b"$-1\r\n")
        case int():
            return len(f":{message}\r\n")
        case bytes() | str():
            return len(f"${len(message)}\r\n") + len(message) + 2
        case _:
            parts = cast("Sequence[object]", message)
            return len(f"*{len(parts)}\r\n") + sum(map(_weigh, parts))
