"""A real HTTP/1.1 server on a loopback port, in its own thread, on asyncio and h11."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, TypeAlias

import h11

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

_READ: Final = 65_536
_BACKLOG: Final = 1_024
_START_TIMEOUT: Final = 30.0


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as it arrived; header names are in lower case."""

    method: str
    path: str
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer. ``headers`` come on top of the length, which the server adds.

    With ``cut`` the connection is reset after half of the body.
    """

    status: int
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    cut: bool = False


class Reset(Exception):
    """Raised by a handler to reset the connection without an answer."""


Handler: TypeAlias = "Callable[[Asked], Awaitable[Reply]]"


class LoopbackServer:
    """Serves ``handler`` on a free port of 127.0.0.1 between ``start`` and ``stop``.

    ``stop`` closes open connections and waits for the thread: no thread, task or socket remains.
    """

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop of the handlers, while the server is running."""
        return self._loop

    def start(self) -> None:
        """Listen. Raises the error that prevented it."""
        ready: Future[int] = Future()
        self._thread = threading.Thread(target=self._run, args=(ready,), name="loopback-server", daemon=True)
        self._thread.start()
        self.port = ready.result(_START_TIMEOUT)

    def stop(self) -> None:
        """Close all connections and wait for the thread. May be called twice."""
        thread, loop, stopping = self._thread, self._loop, self._stopping
        if thread is None:
            return
        if loop is not None and stopping is not None:
            with suppress(RuntimeError):  # the loop ended by itself
                loop.call_soon_threadsafe(stopping.set)
        thread.join()
        self._thread = self._loop = self._stopping = None

    def _run(self, ready: Future[int]) -> None:
        try:
            asyncio.run(self._serve(ready))
        except BaseException as error:  # noqa: BLE001  raised again in start()
            if not ready.done():
                ready.set_exception(error)

    async def _serve(self, ready: Future[int]) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0, backlog=_BACKLOG)
        ready.set_result(server.sockets[0].getsockname()[1])
        await self._stopping.wait()
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)  # the turn in which aborted transports close their sockets
        await server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._converse(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection until either side closes it."""
        machine = h11.Connection(h11.SERVER)
        try:
            while True:
                asked = await _receive(machine, reader)
                if asked is None:
                    break
                await _send(machine, writer, await self._handler(asked), asked.method)
                if machine.our_state is not h11.DONE or machine.their_state is not h11.DONE:
                    break
                machine.start_next_cycle()
            writer.close()
            await writer.wait_closed()
        except Reset:
            _linger_not(writer)
        except (OSError, h11.ProtocolError):
            pass
        finally:
            writer.transport.abort()


async def _receive(machine: h11.Connection, reader: asyncio.StreamReader) -> Asked | None:
    """Return the next request with its body, or ``None`` after the last."""
    head: h11.Request | None = None
    body: list[bytes] = []
    while True:
        event = machine.next_event()
        if event is h11.NEED_DATA:
            machine.receive_data(await reader.read(_READ))
        elif isinstance(event, h11.Request):
            head = event
        elif isinstance(event, h11.Data):
            body.append(bytes(event.data))
        elif isinstance(event, h11.EndOfMessage) and head is not None:
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in head.headers}
            return Asked(head.method.decode(), head.target.decode("latin-1"), headers, b"".join(body))
        else:
            return None


async def _send(machine: h11.Connection, writer: asyncio.StreamWriter, reply: Reply, method: str) -> None:
    """Write an answer."""
    headers = [*reply.headers, ("Content-Length", str(len(reply.body)))]
    reason = HTTPStatus(reply.status).phrase.encode() if reply.status in set(HTTPStatus) else b""
    parts = [machine.send(h11.Response(status_code=reply.status, headers=headers, reason=reason))]
    body = reply.body[: len(reply.body) // 2] if reply.cut else reply.body
    if method != "HEAD":
        parts.append(machine.send(h11.Data(data=body)))
    if not reply.cut:
        parts.append(machine.send(h11.EndOfMessage()))
    writer.write(b"".join(part for part in parts if part))
    await writer.drain()
    if reply.cut:
        raise Reset


def _linger_not(writer: asyncio.StreamWriter) -> None:
    """Make the connection end with a reset instead of an orderly close."""
    connection: socket.socket | None = writer.get_extra_info("socket")
    if connection is not None:
        with suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
