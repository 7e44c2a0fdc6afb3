"""Groups of Redis servers: a master with replicas and sentinels, and a cluster."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from tokencache.testing._redis_server import RedisSentinel, RedisServer
from tokencache.testing._resp import CommandRefused, text_of
from tokencache.testing._server_process import HOST, ServerFailed, wait_until

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import Self

_SENTINELS: Final = 3
_NODES: Final = 3
_SLOTS: Final = 16_384
_SERVICE: Final = "mymaster"
_PATIENT: Final = 10.0
_HURRY: Final = ("info-period", "100", "publish-period", "100")
# A replica that was not seen for three info periods is not promoted. A promotion that was not heard of for four publish
# periods is undone.
_EASE: Final = ("info-period", "1000", "publish-period", "500")


class _Fleet:
    """Several servers that start and stop together."""

    def __init__(self) -> None:
        self._stack = ExitStack()

    def _build(self) -> None:
        raise NotImplementedError

    def start(self) -> Self:
        """Start all servers and wait until they are connected. Raises ``ServerFailed``."""
        with ExitStack() as stack:
            self._stack = stack
            self._build()
            self._stack = stack.pop_all()
        return self

    def stop(self) -> None:
        """End all servers. May be called twice."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class RedisSentinels(_Fleet):
    """One master, its replicas, and three sentinels.

    The sentinels notice a master that ``failover`` killed after ``down_after`` seconds. At other times their time-out
    is long, so that a loaded machine does not cause a failover.
    """

    def __init__(self, *, replicas: int = 1, password: str | None = None, down_after: float = 0.5) -> None:
        super().__init__()
        self.servers: list[RedisServer] = []
        self.sentinels: list[RedisSentinel] = []
        self._replicas = replicas
        self._password = password
        self._down_after = down_after

    @property
    def url(self) -> str:
        """The URL for a backend: the three sentinels and the name of the master."""
        login = self.servers[0].url.removeprefix("redis://").rpartition("@")
        return f"redis+sentinel://{login[0]}{login[1]}{_hosts(self.sentinels)}/{_SERVICE}"

    @property
    def master(self) -> RedisServer:
        """The master, as the first running sentinel reports it."""
        port = next(self._named(sentinel) for sentinel in self.sentinels if sentinel.running)
        return next(server for server in self.servers if server.port == port)

    @property
    def replicas(self) -> list[RedisServer]:
        """The other servers."""
        master = self.master
        return [server for server in self.servers if server is not master]

    def failover(self, *, kill: bool = False) -> RedisServer:
        """Promote a replica, by a command or by killing the master (SIGKILL), and return the new master.

        Returns when all running sentinels and the new master itself report it. The old master may not know yet.
        """
        old = self.master
        if kill:
            self._set_down_after(self._down_after)
            old.kill()
        else:
            wait_until(self._ordered, "a replica that may be promoted")
        return self.promoted(old)

    def promoted(self, old: RedisServer) -> RedisServer:
        """Wait until a server other than ``old`` is the master, and return it."""
        living = [sentinel for sentinel in self.sentinels if sentinel.running]

        def agreed() -> bool:
            ports = {self._named(sentinel) for sentinel in living}
            if len(ports) != 1 or old.port in ports:
                return False
            return self.master.info("replication")["role"] == "master"

        wait_until(agreed, "promoting a replica")
        self._set_down_after(_PATIENT)
        return self.master

    def wait(self) -> None:
        """Wait until the sentinels see the master with all its replicas, and each other."""
        wait_until(lambda: all(self._sees_all(sentinel) for sentinel in self.sentinels), "the sentinels' view")

    def _build(self) -> None:
        master = self._stack.enter_context(RedisServer(password=self._password))
        self.servers = [master]
        for _ in range(self._replicas):
            replica = RedisServer(password=self._password, replicaof=master)
            self.servers.append(self._stack.enter_context(replica))
        self.sentinels = []
        for _ in range(_SENTINELS):
            sentinel = RedisSentinel(master, _SERVICE, self._down_after)
            self.sentinels.append(self._stack.enter_context(sentinel))
        self._set_pace(_HURRY)
        self.wait()
        self._set_pace(_EASE)
        self._set_down_after(_PATIENT)

    def _set_down_after(self, seconds: float) -> None:
        """Set after how many seconds without an answer the running sentinels consider the master down."""
        for sentinel in self.sentinels:
            if sentinel.running:
                sentinel.command("SENTINEL", "SET", _SERVICE, "down-after-milliseconds", f"{seconds * 1000:.0f}")

    def _set_pace(self, periods: tuple[str, ...]) -> None:
        for sentinel in self.sentinels:
            with suppress(CommandRefused):  # Redis before 7: the discovery takes a few seconds more
                sentinel.command("SENTINEL", "DEBUG", *periods)

    def _sees_all(self, sentinel: RedisSentinel) -> bool:
        state = sentinel.state()
        others, replicas = int(state["num-other-sentinels"]), int(state["num-slaves"])
        return state["flags"] == "master" and others == _SENTINELS - 1 and replicas >= self._replicas

    def _ordered(self) -> bool:
        try:
            self.sentinels[0].command("SENTINEL", "FAILOVER", _SERVICE)
        except CommandRefused as refused:
            if not str(refused).startswith(("NOGOODSLAVE", "INPROG")):
                raise
            return False
        return True

    @staticmethod
    def _named(sentinel: RedisSentinel) -> int:
        address = sentinel.address()
        if address is None:
            message = "the sentinel knows no master"
            raise ServerFailed(message)
        return address[1]


class RedisCluster(_Fleet):
    """A Redis Cluster of three masters without replicas."""

    def __init__(self, *arguments: str, node_timeout: float = 2.0) -> None:
        super().__init__()
        self.nodes: list[RedisServer] = []
        self._arguments = arguments
        self._node_timeout = node_timeout

    @property
    def url(self) -> str:
        """The URL for a backend: the three nodes."""
        return f"redis+cluster://{_hosts(self.nodes)}"

    def node_of(self, key: str) -> RedisServer:
        """Return the node that has the slot of ``key``."""
        living = next(node for node in self.nodes if node.running)
        slot = living.command("CLUSTER", "KEYSLOT", key)
        assert isinstance(slot, int)  # noqa: S101
        return next(node for node, slots in zip(self.nodes, _shares(), strict=True) if slot in slots)

    def wait(self) -> None:
        """Wait until every node reports that all slots are served."""
        wait_until(lambda: all(self._is_whole(node) for node in self.nodes), "the cluster")

    def _build(self) -> None:
        milliseconds = str(round(self._node_timeout * 1000))
        settings = ("--cluster-enabled", "yes", "--cluster-node-timeout", milliseconds, *self._arguments)
        self.nodes = [self._stack.enter_context(RedisServer(*settings)) for _ in range(_NODES)]
        for epoch, (node, slots) in enumerate(zip(self.nodes, _shares(), strict=True), start=1):
            node.command("CLUSTER", "SET-CONFIG-EPOCH", epoch)
            node.command("CLUSTER", "ADDSLOTS", *slots)
        for node in self.nodes[1:]:
            self.nodes[0].command("CLUSTER", "MEET", HOST, node.port)
        self.wait()

    @staticmethod
    def _is_whole(node: RedisServer) -> bool:
        """Return whether this node knows all nodes and reports all slots as served."""
        lines = text_of(node.command("CLUSTER", "INFO")).splitlines()
        state = dict(line.split(":", 1) for line in lines if ":" in line)
        expected = {"cluster_state": "ok", "cluster_slots_ok": str(_SLOTS), "cluster_known_nodes": str(_NODES)}
        return expected.items() <= state.items()


def _shares() -> list[range]:
    """Return the slots of each node."""
    bounds = [_SLOTS * number // _NODES for number in range(_NODES + 1)]
    return [range(first, last) for first, last in pairwise(bounds)]


def _hosts(servers: Sequence[RedisServer]) -> str:
    return ",".join(f"{HOST}:{server.port}" for server in servers)
