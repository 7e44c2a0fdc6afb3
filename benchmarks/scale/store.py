"""The cost of each operation on one Redis, measured, and as the simulation assumes it."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from redis import Redis
from redis.connection import Connection

from simulator._resp import KEY, record, weights
from simulator._server import COSTS
from tokencache.backends.redis import _protocol as _redis_protocol
from tokencache.backends.redis._protocol import Protocol
from tokencache.ports import LeaseGrant
from tokencache.testing.servers import RedisServer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

CONNECTIONS = 500
ROUNDS = 20
OWNER, IDENTITY = 24 * "0", 40 * "0"


@dataclass(frozen=True, slots=True)
class Cost:
    """One operation: seconds of server CPU time, and bytes, each measured and assumed."""

    name: str
    measured: float
    assumed: float
    weight: float
    weighed: int


@dataclass(frozen=True, slots=True)
class Rates:
    """`lease` scripts per second on one connection, one by one and a hundred at a time."""

    single: float
    pipelined: float


def measure() -> tuple[list[Cost], Rates, str]:
    """Return the costs, the rates, and the server's version."""
    with RedisServer() as server, closing(Redis(port=server.port)) as admin:
        return _Bench(server.port, admin).measure()


class _Bench:
    """A server and its client connections."""

    def __init__(self, port: int, admin: Redis) -> None:
        self._port = port
        self._admin = admin
        self._connections: list[Connection] = []

    def measure(self) -> tuple[list[Cost], Rates, str]:
        """Measure all operations."""
        admin, protocol, data, weigh = self._admin, Protocol(cluster=False), record(), weights()
        for script in (_redis_protocol.LEASE, _redis_protocol.COMMIT):
            admin.script_load(script.text)
        lease = protocol.lease(KEY, OWNER, IDENTITY, None, 3.0).evalsha()
        costs = [self._cost("connect", self._connect, CONNECTIONS, 0)]
        costs.append(self._each("load (nothing there)", "load", [["GET", KEY], ["PTTL", KEY]], weigh["load NoneType"]))
        admin.set(f"{KEY}:lock", f"1800000000000000:{OWNER}", px=1_000_000)
        other = protocol.lease(KEY, OWNER[1:] + "1", IDENTITY, None, 3.0).evalsha()
        costs.append(self._each("lease, held by another", "lease", [other], weigh["lease Held"]))
        admin.set(KEY, data, px=1_000_000)
        costs.append(self._each("lease, a newer record found", "lease", [lease], weigh["lease Found"]))
        costs.append(self._wakes(data))
        admin.delete(f"{KEY}:lock")
        costs.append(self._commit(protocol, data, weigh["commit"] + weigh["commit bool"]))
        rates = Rates(self._rate(lease, 1), self._rate(lease, 100))
        for connection in self._connections:
            connection.disconnect()
        return costs, rates, str(admin.info("server")["redis_version"])

    def _busy(self) -> tuple[float, int]:
        """Return the CPU time and the bytes of the server so far."""
        info = self._admin.info()
        return info["used_cpu_sys"] + info["used_cpu_user"], info["total_net_input_bytes"] + info[
            "total_net_output_bytes"
        ]

    def _cost(self, name: str, act: Callable[[], None], count: int, weighed: int, kind: str | None = None) -> Cost:
        """Return the cost of an operation that runs ``count`` times, without the cost of the measurement itself."""
        (_, before), (used, at) = self._busy(), self._busy()
        asking = at - before
        act()
        later, then = self._busy()
        return Cost(name, (later - used) / count, COSTS[kind or name], (then - at - asking) / count, weighed)

    def _connect(self) -> None:
        """Open the connections."""
        for _ in range(CONNECTIONS):
            connection = Connection(port=self._port, protocol=2, socket_timeout=30.0, driver_info=None)
            connection.connect()
            self._connections.append(connection)

    def _each(self, name: str, kind: str, commands: Sequence[Sequence[Any]], reply: int) -> Cost:
        """Send the commands repeatedly on all connections at once."""
        weighed = weights()[kind] + reply

        def act() -> None:
            for _ in range(ROUNDS):
                for connection in self._connections:
                    connection.send_packed_command(connection.pack_commands(commands))
                for connection in self._connections:
                    for _ in commands:
                        connection.read_response()

        return self._cost(name, act, ROUNDS * CONNECTIONS, weighed, kind)

    def _wakes(self, data: bytes) -> Cost:
        """Block on each connection, and wake all of them."""
        for connection in self._connections:
            connection.send_command("XREAD", "COUNT", 1, "BLOCK", 20_000, "STREAMS", f"{KEY}:ready", "1-0")
        while self._admin.info("clients")["blocked_clients"] < CONNECTIONS:
            time.sleep(0.01)

        def act() -> None:
            self._admin.xadd(f"{KEY}:ready", {"record": data, "ttl": "3480000"}, id="2-1")
            for connection in self._connections:
                connection.read_response()

        return self._cost("wake", act, CONNECTIONS, weights()["wait Stored"])

    def _commit(self, protocol: Protocol, data: bytes, weighed: int) -> Cost:
        """Commit repeatedly, each time with a newer fence."""

        def act() -> None:
            for fence in range(ROUNDS * CONNECTIONS // 10):
                lease = LeaseGrant(KEY, OWNER, 1_900_000_000_000_000 + fence, 3.0)
                self._connections[fence % CONNECTIONS].send_command(*protocol.commit(lease, data, 3480.0).evalsha())
                self._connections[fence % CONNECTIONS].read_response()

        return self._cost("commit", act, ROUNDS * CONNECTIONS // 10, weighed)

    def _rate(self, command: Sequence[Any], at_once: int, seconds: float = 2.0) -> float:
        """Return the commands per second of one connection."""
        connection, done, begun = self._connections[0], 0, time.perf_counter()
        packed = connection.pack_commands([command] * at_once)
        while time.perf_counter() - begun < seconds:
            connection.send_packed_command(packed)
            for _ in range(at_once):
                connection.read_response()
            done += at_once
        return done / (time.perf_counter() - begun)
