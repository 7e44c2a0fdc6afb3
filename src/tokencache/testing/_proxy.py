"""A TCP proxy on loopback that injects faults: it delays, cuts, discards and refuses."""

from __future__ import annotations

import asyncio
import socket
import threading
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Final

from tokencache.testing._server_process import HOST, free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from types import TracebackType
    from typing import Self

_READ: Final = 65_536
_BACKLOG: Final = 1_024
_PATIENCE: Final = 30.0
_ATTEMPTS: Final = 5


class _Mode(Enum):
    """How a proxy treats its connections."""

    OPEN = "open"
    REFUSING = "refusing"
    SWALLOWING = "swallowing"


class _Cut:
    """A planned cut: after so many bytes of the reply to a request that contains ``to``."""

    def __init__(self, after_bytes: int, to: bytes) -> None:
        self.to = to
        self.done = threading.Event()
        self._left = after_bytes

    def passed(self, data: bytes) -> bytes:
        """Return the bytes of the reply that may still pass."""
        data = data[: self._left]
        self._left -= len(data)
        return data

    @property
    def reached(self) -> bool:
        """Whether all bytes that may pass have passed."""
        return self._left == 0


@dataclass(slots=True)
class _Faults:
    """The current faults of a proxy."""

    mode: _Mode = _Mode.OPEN
    delay: float = 0.0
    drip: float | None = None
    cuts: list[_Cut] = field(default_factory=list["_Cut"])

    def taken_cut(self, request: bytes) -> _Cut | None:
        """Remove and return the first planned cut that matches this request."""
        found = next((cut for cut in self.cuts if cut.to in request), None)
        if found is not None:
            self.cuts.remove(found)
        return found

    def heal(self) -> None:
        """Remove all faults."""
        self.mode, self.delay, self.drip = _Mode.OPEN, 0.0, None
        self.cuts.clear()


class Proxy:
    """Passes connections from ``port`` on to ``target_port`` of loopback, between ``start`` and ``stop``.

    Each fault affects open and new connections, is active when the method returns, and lasts until ``heal``. The faults
    of one reply happen once, and set the event that their method returns.
    """

    def __init__(self, target_port: int) -> None:
        self.target_port = target_port
        self.port = 0
        self._faults = _Faults()
        self._accepted = 0
        self._open: set[_Connection] = set()
        self._listener: socket.socket | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._thread: threading.Thread | None = None

    @property
    def connections(self) -> int:
        """How many connections of clients are open now."""
        return len(self._open)

    @property
    def accepted(self) -> int:
        """How many connections of clients there have been."""
        return self._accepted

    def delay(self, seconds: float) -> None:
        """Pass on each piece of a reply ``seconds`` after it came, like a link with this round-trip time."""
        self._faults.delay = seconds

    def trickle(self, pause: float = 0.001) -> None:
        """Pass on replies one byte at a time, with a pause in seconds after each."""
        self._faults.drip = pause

    def cut(self) -> None:
        """Close all connections now. New ones are let through."""
        self._do(self._cut_all())

    def refuse(self) -> None:
        """Close all connections, and refuse new ones, as if the server's process had ended."""
        self._do(self._refuse())

    def black_hole(self) -> None:
        """Accept connections, discard their requests and do not answer; the server does not get the requests."""
        self._do(self._set_mode(_Mode.SWALLOWING))

    def drop_next_reply(self, to: bytes = b"") -> threading.Event:
        """Pass on the next request, and close the connection instead of passing on the reply.

        With ``to``, the next request that has these bytes in one piece. Returns the event that is set by the loss.
        """
        return self.cut_next_reply(0, to)

    def cut_next_reply(self, after_bytes: int, to: bytes = b"") -> threading.Event:
        """Pass on the next request and the first ``after_bytes`` of its reply; then close the connection.

        With ``to``, the next request that has these bytes in one piece. Returns the event that is set by the cut.
        """
        cut = _Cut(after_bytes, to)
        self._faults.cuts.append(cut)
        return cut.done

    def heal(self) -> None:
        """Remove all faults. Connections that lost bytes are closed, because their protocol state is wrong."""
        self._do(self._heal())

    def start(self) -> Self:
        """Listen. Raises the error that prevented it."""
        ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(ready,), name="proxy", daemon=True)
        self._thread.start()
        ready.result(_PATIENCE)
        return self

    def stop(self) -> None:
        """Close all sockets and wait for the thread. May be called twice."""
        thread, loop, stopping = self._thread, self._loop, self._stopping
        if thread is None:
            return
        if loop is not None and stopping is not None:
            with suppress(RuntimeError):  # the loop ended by itself
                loop.call_soon_threadsafe(stopping.set)
        thread.join()
        self._thread = self._loop = self._stopping = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _do(self, work: Coroutine[object, object, None]) -> None:
        """Run it on the loop and wait for it."""
        if self._loop is None:
            work.close()
            message = "the proxy is not running"
            raise RuntimeError(message)
        asyncio.run_coroutine_threadsafe(work, self._loop).result(_PATIENCE)

    def _run(self, ready: Future[None]) -> None:
        try:
            asyncio.run(self._serve(ready))
        except BaseException as error:
            if ready.done():
                raise
            ready.set_exception(error)

    async def _serve(self, ready: Future[None]) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        self._faults.heal()
        for attempt in range(_ATTEMPTS):
            self.port = free_port()
            try:
                self._listen()
                break
            except OSError:
                if attempt == _ATTEMPTS - 1:
                    raise
        ready.set_result(None)
        try:
            await self._stopping.wait()
        finally:
            await self._refuse()

    def _listen(self) -> None:
        self._listener = socket.create_server((HOST, self.port), backlog=_BACKLOG)
        self._listener.setblocking(False)
        asyncio.get_running_loop().add_reader(self._listener, self._accept, self._listener)

    def _accept(self, listener: socket.socket) -> None:
        """Accept without an await, so that a cut finds every connection."""
        with suppress(OSError):  # the client has left
            client, _ = listener.accept()
            self._accepted += 1
            connection = _Connection(self.target_port, self._faults, client)
            self._open.add(connection)
            connection.start(self._open.discard)

    async def _cut_all(self) -> None:
        for connection in list(self._open):
            await connection.end()

    async def _refuse(self) -> None:
        self._faults.mode = _Mode.REFUSING
        listener, self._listener = self._listener, None
        if listener is not None:
            asyncio.get_running_loop().remove_reader(listener)
            _shut(listener)
            listener.close()
        await self._cut_all()

    async def _set_mode(self, mode: _Mode) -> None:
        self._faults.mode = mode
        if self._listener is None:
            self._listen()

    async def _heal(self) -> None:
        self._faults.heal()
        for connection in list(self._open):
            if connection.swallowed:
                await connection.end()
        await self._set_mode(_Mode.OPEN)


class _Connection:
    """A client's connection and the one to the server that belongs to it."""

    def __init__(self, target_port: int, faults: _Faults, client: socket.socket) -> None:
        self.swallowed = False
        self._target_port = target_port
        self._faults = faults
        self._client = client
        self._cut: _Cut | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self, ended: Callable[[_Connection], None]) -> None:
        """Pass on in a task until either side closes; then call ``ended``."""

        def report(task: asyncio.Task[None]) -> None:
            ended(self)
            if not task.cancelled():
                task.result()

        self._task = asyncio.get_running_loop().create_task(self._pass())
        self._task.add_done_callback(report)

    async def end(self) -> None:
        """Close both sides."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._close()  # a task that had not begun has closed nothing

    def _close(self) -> None:
        _shut(self._client)
        self._client.close()

    async def _pass(self) -> None:
        try:
            reader, writer = await asyncio.open_connection(sock=self._client)
            try:
                if self._faults.mode is _Mode.SWALLOWING:
                    self.swallowed = True
                    while await reader.read(_READ):
                        pass
                else:
                    await self._pass_on(reader, writer)
            finally:
                writer.transport.abort()  # the socket itself is closed below
        except OSError:
            pass  # one side closed or reset the connection
        finally:
            self._close()
            if self._cut is not None and self._cut.reached:
                self._cut.done.set()

    async def _pass_on(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        server, to_server = await asyncio.open_connection(HOST, self._target_port)
        pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        works = self._requests(client, to_server), self._replies(server, pieces), self._deliver(pieces, to_client)
        tasks = [asyncio.create_task(work) for work in works]
        try:
            # The server's end of file is passed on after the bytes before it; a client's ends the connection at once.
            await asyncio.wait([tasks[0], tasks[2]], return_when=asyncio.FIRST_COMPLETED)
        finally:
            to_server.transport.abort()  # before the next await, which a cut may cancel
            for task in tasks:
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome

    async def _requests(self, client: asyncio.StreamReader, to_server: asyncio.StreamWriter) -> None:
        while data := await client.read(_READ):
            if self._faults.mode is _Mode.SWALLOWING:
                self.swallowed = True
                continue
            if self._cut is None:
                self._cut = self._faults.taken_cut(data)
            to_server.write(data)
            await to_server.drain()

    async def _replies(self, server: asyncio.StreamReader, pieces: asyncio.Queue[tuple[float, bytes]]) -> None:
        loop = asyncio.get_running_loop()
        data = b"more"
        while data:
            try:
                data = await server.read(_READ)
            except OSError:
                data = b""
            pieces.put_nowait((loop.time() + self._faults.delay, data))

    async def _deliver(self, pieces: asyncio.Queue[tuple[float, bytes]], to_client: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due, data = await pieces.get()
            if (rest := due - loop.time()) > 0:
                await asyncio.sleep(rest)
            if not data:
                return
            if self._faults.mode is _Mode.SWALLOWING:
                self.swallowed = True
                continue
            if self._cut is not None:
                data = self._cut.passed(data)
            await self._write(data, to_client)
            if self._cut is not None and self._cut.reached:
                return

    async def _write(self, data: bytes, to_client: asyncio.StreamWriter) -> None:
        pause = self._faults.drip
        if pause is None:
            to_client.write(data)
            await to_client.drain()
            return
        for number in range(len(data)):
            to_client.write(data[number : number + 1])
            await to_client.drain()
            await asyncio.sleep(pause)


def _shut(connection: socket.socket) -> None:
    """Shut down a connection or a listener, even if children of a fork also have it open."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
