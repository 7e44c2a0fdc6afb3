"""The Redis backend: records, leases with fences, and wake-ups for a fleet, on Redis 5 or newer and Valkey.

Lease, commit and release are one script each, and one round trip. A waiter blocks in ``XREAD`` from the id of the
lease that it has seen, so no wake-up is lost. Replication is asynchronous: after a failover a lease may be granted
twice, and only the fence decides which record stays.
"""

from __future__ import annotations

import random
import re
import threading
import time
import weakref
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import TimeoutError as RedisTimeoutError

from tokencache._fork import LateLock, Stage, enrol, notice_fork
from tokencache.backends._answers import AnswerReader, AnswerSocket, TooLarge
from tokencache.backends.redis._connect import (
    MOST_CONNECTIONS,
    Target,
    check_library,
    connect,
    is_unverified,
    settings_of,
    target_of,
)
from tokencache.backends.redis._library import Library, UnknownScript
from tokencache.backends.redis._protocol import Command, Protocol, ScriptCall, look_at, stored_of, translated
from tokencache.errors import BackendClosed, ConfigurationError
from tokencache.ports import Stored
from tokencache.shared import Shared

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncGenerator, Callable, Iterable, Iterator

    from tokencache.health import Finding
    from tokencache.ports import Cooldown, LeaseGrant, LeaseReply, Slot
    from tokencache.url import BackendURL

_REDIS_PY: Final = Library.named("redis")
_CHUNK: Final = 1 << 16
_LOOKED: Final = re.compile(rb"\$(\d{1,9})\r\n(.*)\r\n:(-?\d{1,18})\r\n", re.DOTALL)  # a string, a number
_FOREIGN_POLL: Final = 0.05
"""Poll interval in seconds for a holder that sends no wake-up, or when all waiting connections are busy."""
_UNREADABLE: Final = Stored(b"", None)
"""What stands for a value that is too large to be read: the flow warns of it, and replaces it."""


class RedisBackend(Shared):
    """Shares records and leases over Redis.

    Made from a URL by :func:`from_url`, or around a client of your own, of redis-py or valkey-py:
    ``RedisBackend(client=redis.Redis(…))``. The backend never closes your client and uses its time-outs and retries.
    The client must not decode replies. It is a client for threads; event loops call it through threads, up to 32 at
    once.
    """

    name = "redis"

    def __init__(self, target: Target | None = None, *, client: Any = None, waiters: int = 32) -> None:
        check_library()
        if (target is None) == (client is None):
            message = "RedisBackend: give either a target or client=…"
            raise ConfigurationError(message)
        if client is not None and "asyncio" in type(client).__module__:
            message = "RedisBackend(client=…): this client is for event loops; give a redis.Redis, which serves both"
            raise ConfigurationError(message)
        self._library = _REDIS_PY if client is None else Library.of(client)
        if client is not None and client.get_encoder().decode_responses:
            message = (
                "RedisBackend(client=…): the client has decode_responses=True; records are bytes, so give one without"
            )
            raise ConfigurationError(message)

        self._target = target
        self._own = client
        self._where = target.where if target is not None else "the given client's server"
        cluster = target.cluster if target is not None else hasattr(client, "get_node_from_key")
        self._cluster = cluster
        self._protocol = Protocol(cluster=cluster)
        self._limit = target.waiters if target is not None else waiters
        self._closed = False
        self._start_afresh()
        enrol(Stage.CONNECTIONS, self.after_fork)

    def _start_afresh(self) -> None:
        """Set the attributes that the child of a fork must not inherit."""
        self._lock = LateLock()  # guards the making of clients; a cluster's asks its nodes
        self._client: Any = None
        self._waiting: Any = None
        self._waiters = threading.Semaphore(self._limit)
        self._idle = _Idle(self._library)
        self._halves: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncRedisBackend] = (
            weakref.WeakKeyDictionary()
        )

    def load(self, key: str) -> Stored | None:
        """Return the record, or ``None``: two plain reads in one round trip."""
        record = self._protocol.names(key)[0]
        try:
            data, life = self._exchange(record, lambda connection: _look(connection, record), _looked)
        except TooLarge:
            return _UNREADABLE
        return stored_of(data, life)

    def lease(self, key: str, owner: str, identity: str, seen: bytes | None, ttl: float) -> LeaseReply:
        """Ask for the lease."""
        return self._protocol.leased(key, owner, ttl, self._call(self._protocol.lease(key, owner, identity, seen, ttl)))

    def commit(self, lease: LeaseGrant, data: bytes, ttl: float) -> bool:
        """Store, free the lease, wake the waiters."""
        return bool(self._call(self._protocol.commit(lease, data, ttl)))

    def release(self, lease: LeaseGrant, cooldown: Cooldown | None = None) -> None:
        """Free the lease if it is still the caller's."""
        self._call(self._protocol.release(lease, cooldown))

    def extend(self, lease: LeaseGrant, ttl: float) -> bool:
        """Prolong the lease if it is still the caller's."""
        return bool(self._call(self._protocol.extend(lease, ttl)))

    def wait(self, key: str, seen: bytes | None, timeout: float) -> Stored | None:  # noqa: ARG002  (see the stream)
        """Wait until the lease that was seen ends in a record or a release."""
        notice_fork()
        command = self._protocol.wait(key, timeout)
        if command is None or not self._waiters.acquire(blocking=False):
            time.sleep(min(timeout, random.uniform(_FOREIGN_POLL / 2, _FOREIGN_POLL)))  # noqa: S311  (jitter)
            return None
        try:
            return self._protocol.woken(self._execute(self._protocol.names(key)[0], command, waiting=True)[0])
        finally:
            self._waiters.release()

    def discard(self, key: str, seen: bytes) -> bool:
        """Delete the record if its bytes are ``seen``."""
        return bool(self._call(self._protocol.discard(key, seen)))

    def inspect(self, key: str) -> Slot:
        """Report record, lease and cooldown: plain reads in one round trip."""
        return self._protocol.slot(self._execute(self._protocol.names(key)[0], *self._protocol.inspect(key)))

    def findings(self, key: str) -> Iterator[Finding]:
        """Check version, rights, role, eviction, wake-ups and clock (:mod:`tokencache.health`)."""
        from tokencache.backends.redis._health import examine, unverified

        names = self._protocol.names(key)
        if is_unverified(settings_of(self._own) if self._target is None else self._target.settings):
            yield unverified(self._where)
        yield from examine(
            names, self._where, self._library.version, lambda command: self._execute(names[0], command)[0]
        )

    def close(self) -> None:
        """Close the connections that were made here."""
        self._closed = True
        self._forget()
        self._idle.close()

    def aio(self) -> AsyncRedisBackend | Any:
        """Return the half for the running event loop, with connections of its own."""
        import asyncio

        notice_fork()
        loop = asyncio.get_running_loop()
        half = self._halves.get(loop)
        if half is None:
            for reference in self._halves.keyrefs():  # a copy: other threads change it
                other = reference()
                if other is not None and other.is_closed():
                    self._halves.pop(other, None)
            if self._target is None:
                from tokencache.backends._threaded import ThreadedBackend

                return ThreadedBackend(self)
            half = self._halves[loop] = AsyncRedisBackend(self._target, self._protocol, self)
        return half

    def after_fork(self) -> None:
        """Start with fresh connections in the child of a fork."""
        self._protocol.after_fork()
        self._start_afresh()

    # --- connections --------------------------------------------------------------------------------------------

    def _call(self, call: ScriptCall) -> Any:
        """Call a script by its name, or by its text where the server does not know it."""
        try:
            return self._execute(call.keys[0], call.evalsha())[0]
        except UnknownScript:
            return self._execute(call.keys[0], call.eval())[0]

    def _execute(self, key: str, *commands: Command, waiting: bool = False) -> list[Any]:
        """Send commands in one go and return the replies."""
        return self._exchange(
            key,
            lambda connection: connection.pack_commands(commands),
            lambda connection, library: [_reply(connection, library) for _ in commands],
            waiting=waiting,
        )

    def _exchange(
        self,
        key: str,
        packed: Callable[[Any], Iterable[bytes]],
        replies: Callable[[Any, Library], list[Any]],
        *,
        waiting: bool = False,
    ) -> list[Any]:
        """Send commands and return what ``replies`` reads; an interrupted call closes its connection."""
        notice_fork()
        if self._closed:
            raise closed()
        try:
            idle = self._idle  # _forget may replace it meanwhile: a connection returns to its own pool
            pool = self._pool(key, waiting=waiting)
            connection = idle.take(pool)
            try:
                connection.send_packed_command(packed(connection))
                received = replies(connection, self._library)
            except BaseException:
                connection.disconnect()  # else the next command would read the unread reply
                raise
            idle.put(pool, connection)
            return self._library.checked(received)
        except self._library.failures as error:
            if self._cluster and self._library.is_of_topology(error):
                self._forget()
            raise translated(error, self._where) from None

    def _forget(self) -> None:
        """Close the clients; the next call connects anew and asks a cluster where nodes and slots are."""
        with self._lock():
            clients, self._client, self._waiting = (self._client, self._waiting), None, None
            idle, self._idle = self._idle, _Idle(self._library)
        idle.close()
        for client in clients:
            if client is not None:
                client.close()
                for sentinel in _sentinels(client):
                    sentinel.close()

    def _pool(self, key: str, *, waiting: bool) -> Any:
        """Return the pool of the server that has ``key``."""
        return self._library.pool(self._connected(waiting=waiting), key, cluster=self._cluster)

    def _connected(self, *, waiting: bool) -> Any:
        """Return the client for commands, or the one for blocking reads."""
        if self._target is None:
            return self._own
        made = self._waiting if waiting else self._client
        if made is not None:
            return made
        with self._lock():
            client = self._waiting if waiting else self._client
            if client is None:
                client = connect(self._target, "redis", waiting=waiting)
                if waiting:
                    self._waiting = client
                else:
                    self._client = client
            return client


class _Idle:
    """The idle connections of each pool.

    A library's own pool takes back every connection, even after an interrupt that left a reply unread. Here only a
    connection that has answered comes back, so no later call reads another call's reply.
    """

    def __init__(self, library: Library) -> None:
        self._failures = library.failures
        self._stacks: weakref.WeakKeyDictionary[Any, list[Any]] = weakref.WeakKeyDictionary()
        self._closed = False

    def take(self, pool: Any) -> Any:
        """Return a connection that is ready for a command."""
        stack = self._stacks.get(pool)
        while stack:
            try:
                connection = stack.pop()
            except IndexError:  # another thread was quicker
                break
            try:
                if not connection.can_read():
                    return connection
            except self._failures:
                pass  # the server has closed it
            connection.disconnect()
        connection = _with_answers(pool.connection_class)(**pool.connection_kwargs)
        connection.connect()
        return connection

    def put(self, pool: Any, connection: Any) -> None:
        """Take back a connection that has answered."""
        self._stacks.setdefault(pool, []).append(connection)
        if self._closed:
            self.close()

    def close(self) -> None:
        """Close all idle connections now, and the others when they come back."""
        self._closed = True
        for stack in list(self._stacks.values()):
            while stack:
                with suppress(IndexError):  # another thread was quicker
                    stack.pop().disconnect()


class AsyncRedisBackend(Shared):
    """The half of the Redis backend for one event loop."""

    def __init__(self, target: Target, protocol: Protocol, parent: RedisBackend) -> None:
        import asyncio

        self._target = target
        self._protocol = protocol
        self._parent = parent
        self._client: Any = None
        self._waiting: Any = None
        self._free = target.waiters
        self._turns = asyncio.Semaphore(MOST_CONNECTIONS)
        self._time_outs = 0
        self._farewell: AsyncGenerator[None] | None = None

    async def load(self, key: str) -> Stored | None:
        """Return the record, or ``None``."""
        record = self._protocol.names(key)[0]
        try:
            data, life = await self._execute(record, ["GET", record], ["PTTL", record])
        except TooLarge:
            return _UNREADABLE
        return stored_of(data, life)

    async def lease(self, key: str, owner: str, identity: str, seen: bytes | None, ttl: float) -> LeaseReply:
        """Ask for the lease."""
        reply = await self._call(self._protocol.lease(key, owner, identity, seen, ttl))
        return self._protocol.leased(key, owner, ttl, reply)

    async def commit(self, lease: LeaseGrant, data: bytes, ttl: float) -> bool:
        """Store, free the lease, wake the waiters."""
        return bool(await self._call(self._protocol.commit(lease, data, ttl)))

    async def release(self, lease: LeaseGrant, cooldown: Cooldown | None = None) -> None:
        """Free the lease if it is still the caller's."""
        await self._call(self._protocol.release(lease, cooldown))

    async def extend(self, lease: LeaseGrant, ttl: float) -> bool:
        """Prolong the lease if it is still the caller's."""
        return bool(await self._call(self._protocol.extend(lease, ttl)))

    async def wait(self, key: str, seen: bytes | None, timeout: float) -> Stored | None:  # noqa: ARG002, ASYNC109
        """Wait until the lease that was seen ends in a record or a release."""
        command = self._protocol.wait(key, timeout)
        if command is None or self._free <= 0:
            import asyncio

            await asyncio.sleep(min(timeout, random.uniform(_FOREIGN_POLL / 2, _FOREIGN_POLL)))  # noqa: S311  (jitter)
            return None
        self._free -= 1
        try:
            return self._protocol.woken((await self._execute(self._protocol.names(key)[0], command, waiting=True))[0])
        finally:
            self._free += 1

    async def discard(self, key: str, seen: bytes) -> bool:
        """Delete the record if its bytes are ``seen``."""
        return bool(await self._call(self._protocol.discard(key, seen)))

    async def inspect(self, key: str) -> Slot:
        """Report record, lease and cooldown."""
        return self._protocol.slot(await self._execute(self._protocol.names(key)[0], *self._protocol.inspect(key)))

    async def close(self) -> None:
        """Close this loop's connections, and the backend for all threads and loops."""
        self._parent.close()  # first, so that no call opens a new connection meanwhile
        await self._disconnect()

    async def _until_the_loop_ends(self) -> AsyncGenerator[None]:
        """Close the connections when ``asyncio.run`` ends: it closes all generators, and so this one."""
        try:
            yield
        finally:
            self._farewell = None
            await self._disconnect()

    async def _disconnect(self) -> None:
        """Close this loop's connections; the next call opens others."""
        clients, self._client, self._waiting = (self._client, self._waiting), None, None
        for client in clients:
            if client is not None:
                await _let_go(client)
                for sentinel in _sentinels(client):
                    await _let_go(sentinel)

    async def _call(self, call: ScriptCall) -> Any:
        """Call a script by its name, or by its text where the server does not know it."""
        try:
            return (await self._execute(call.keys[0], call.evalsha()))[0]
        except UnknownScript:
            return (await self._execute(call.keys[0], call.eval()))[0]

    async def _execute(self, key: str, *commands: Command, waiting: bool = False) -> list[Any]:
        """Send commands in one go and return the replies; a cancelled call closes its connection."""
        self._require_open()

        if self._farewell is None:
            self._farewell = self._until_the_loop_ends()
            await anext(self._farewell)

        if self._client is None:
            self._client = connect(self._target, "redis.asyncio", waiting=False)
        if waiting and self._waiting is None:
            self._waiting = connect(self._target, "redis.asyncio", waiting=True)

        if waiting:
            return await self._exchange(self._waiting, key, commands)
        before = self._time_outs
        async with self._turns:  # above its limit redis-py raises, which looks like an outage
            if self._time_outs != before:
                raise translated(TimeoutError(), self._target.where)  # earlier calls in the queue timed out
            self._require_open()
            return await self._exchange(self._client, key, commands)

    async def _exchange(self, client: Any, key: str, commands: tuple[Command, ...]) -> list[Any]:
        """Send commands to the server that has ``key`` and return the replies."""
        try:
            lender, connection = await self._borrowed(client, key)
            try:
                await connection.connect()
                _bound(connection)
                await connection.send_packed_command(connection.pack_commands(commands))
                replies = [await _areply(connection) for _ in commands]
            except BaseException:
                await connection.disconnect(nowait=True)
                raise
            finally:
                returned = lender.release(connection)
                if returned is not None:
                    await returned
            return _REDIS_PY.checked(replies)
        except _REDIS_PY.failures as error:
            self._time_outs += isinstance(error, TimeoutError | RedisTimeoutError)
            if self._target.cluster and _REDIS_PY.is_of_topology(error):
                await _let_go(client)  # the next call asks where nodes and slots are
            raise translated(error, self._target.where) from None
        finally:
            if self._parent._closed:  # noqa: SLF001  (its other half)
                await _let_go(client)  # once more: this call may have connected meanwhile

    def _require_open(self) -> None:
        """Raise ``BackendClosed`` after ``close()``."""
        if self._parent._closed:  # noqa: SLF001  (its other half)
            raise closed()

    async def _borrowed(self, client: Any, key: str) -> tuple[Any, Any]:
        """Return the pool or node that lends a connection to the server of ``key``, and the connection."""
        if self._target.cluster:
            await client.initialize()
            node = client.get_node_from_key(key)
            return node, node.acquire_connection()
        pool = client.connection_pool
        return pool, await pool.get_connection()


@cache
def _with_answers(kind: Any) -> Any:
    """Return a kind of connection whose time-out is for whole answers."""

    class Connection(kind):  # type: ignore[misc]
        answers: AnswerSocket | None = None

        def _connect(self) -> Any:
            sock: Any = kind._connect(self)  # noqa: SLF001  (not super(), to keep the type Any)
            if hasattr(sock, "recv"):  # a fake of a user's tests may have none
                sock = self.answers = AnswerSocket(sock)
            return sock

    return Connection


def _bound(connection: Any) -> None:
    """Bound the size of the next answer on an event loop's connection."""
    reader = getattr(connection, "_reader", None)
    if reader is not None and not isinstance(reader, AnswerReader):
        reader = connection._reader = connection._parser._stream = AnswerReader(reader)  # noqa: SLF001  (redis-py's)
    if reader is not None:
        reader.begin()


def _look(connection: Any, record: str) -> tuple[bytes]:
    """Return the commands that read a record, encoded for this connection."""
    encoder = connection.encoder
    return look_at(record, encoder.encoding, encoder.encoding_errors)


def _looked(connection: Any, library: Library) -> list[Any]:
    """Return the replies to the read of a record: the usual answer at once, any other as the library reads it."""
    answers: AnswerSocket | None = connection.answers
    if answers is not None:
        piece = answers.recv(_CHUNK)
        usual = _LOOKED.fullmatch(piece)
        if usual is not None and int(usual[1]) == len(usual[2]):
            return [usual[2], int(usual[3])]
        answers.unread(piece)
    return [_reply(connection, library), _reply(connection, library)]


def _reply(connection: Any, library: Library) -> Any:
    """Read one reply; an error reply is returned, so that the replies after it are read too."""
    try:
        return connection.read_response()
    except library.refusal as error:
        return error


async def _areply(connection: Any) -> Any:
    """Read one reply, from an event loop."""
    try:
        return await connection.read_response()
    except _REDIS_PY.refusal as error:
        return error


async def _let_go(client: Any) -> None:
    """Close a client's connections; a failure to close is ignored."""
    with suppress(*_REDIS_PY.failures):
        await client.aclose()


def _sentinels(client: Any) -> list[Any]:
    """Return the clients by which a client asks the sentinels for its master."""
    pool = getattr(client, "connection_pool", None)  # a cluster's client has no pool
    return getattr(getattr(pool, "sentinel_manager", None), "sentinels", [])


def closed() -> BackendClosed:
    """Return the error of a call after ``close()``."""
    return BackendClosed("the redis backend is closed; make a new TokenCache")


def from_url(url: BackendURL) -> RedisBackend:
    """Make the backend of ``redis://``, ``rediss://``, ``unix://``, ``redis+sentinel://`` or ``redis+cluster://``."""
    return RedisBackend(target_of(url))
