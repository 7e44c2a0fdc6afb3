"""Answers of a store's server: one time-out for a whole answer, and a limit for its size.

The time-out of a socket counts for one piece of an answer, so a server that sends byte after byte outlasts it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final, TypeVar

from tokencache._record import LARGEST
from tokencache.errors import BackendUnavailable

if TYPE_CHECKING:
    import socket
    from asyncio import StreamReader
    from collections.abc import Callable

T = TypeVar("T")

_now: Final = time.monotonic

LARGEST_ANSWER: Final = 16 * LARGEST
"""Bytes of the largest answer that is read. A larger value than a record is read up to here, for a warning."""


class TooLarge(BackendUnavailable):
    """The server announced or sent more than the largest answer; the connection is out of step."""


class AnswerSocket:
    """A socket on which the time-out counts from the request to the end of its answer.

    ``timeout`` counts for a socket that has no time-out of its own, because the kernel has it.
    """

    __slots__ = (
        "_asked_at",
        "_room",
        "_sock",
        "_timeout",
        "_unread",
        "fileno",
        "gettimeout",
        "settimeout",
    )

    def __init__(self, sock: socket.socket, timeout: float | None = None) -> None:
        self._sock = sock
        self.fileno, self.gettimeout, self.settimeout = sock.fileno, sock.gettimeout, sock.settimeout
        self._timeout = timeout
        self._unread = b""
        self._asked_at = _now()
        self._room = LARGEST_ANSWER

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  (whatever it is there)
        """Return anything else of the socket."""
        return getattr(self._sock, name)

    def sendall(self, data: bytes) -> None:
        """Send a request; its answer begins."""
        self._asked_at = _now()
        self._room = LARGEST_ANSWER
        self._sock.sendall(data)

    def ask(self, data: bytes, size: int) -> bytes:
        """Send a request and return the first piece of its answer: both calls in one, for the hot path."""
        self._asked_at = _now()
        self._sock.sendall(data)
        piece = self._sock.recv(size)
        self._room = LARGEST_ANSWER - len(piece)
        return piece

    def recv(self, size: int, *flags: int) -> bytes:
        """Return a piece of the answer."""
        if self._room == LARGEST_ANSWER:
            piece = self._sock.recv(size, *flags)
            self._room -= len(piece)
        elif self._unread:
            piece, self._unread = self._unread[:size], self._unread[size:]
        else:
            piece = self._rest(self._sock.recv, size, *flags)
            self._room = left_of(self._room, len(piece))
        return piece

    def recv_into(self, space: bytearray, *sizes: int) -> int:
        """Read a piece of the answer into ``space`` and return its size."""
        piece = self.recv(*sizes or (len(space),))
        space[: len(piece)] = piece
        return len(piece)

    def unread(self, piece: bytes) -> None:
        """Let the next call read ``piece`` again."""
        self._unread = piece

    def _rest(self, call: Callable[..., T], *arguments: object) -> T:
        """Call for a later piece, with the time that is left for the answer."""
        own = self._sock.gettimeout()
        limit = self._timeout if own is None else own
        if not limit:  # no time-out at all, or a look that does not wait
            return call(*arguments)
        left = self._asked_at + limit - _now()
        if left <= 0:
            raise TimeoutError
        self._sock.settimeout(left)
        try:
            return call(*arguments)
        finally:
            self._sock.settimeout(own)


class AnswerReader:
    """A stream of an event loop that reads no larger answer; its time-out is redis-py's, for a whole answer."""

    __slots__ = ("_reader", "_room")

    def __init__(self, reader: StreamReader) -> None:
        self._reader = reader
        self._room = LARGEST_ANSWER

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  (whatever it is there)
        """Return anything else of the stream."""
        return getattr(self._reader, name)

    def begin(self) -> None:
        """Expect the answer to a new request."""
        self._room = LARGEST_ANSWER

    async def readexactly(self, size: int) -> bytes:
        """Return ``size`` bytes of the answer."""
        self._room = left_of(self._room, size)
        return await self._reader.readexactly(size)

    async def read(self, size: int) -> bytes:
        """Return a piece of the answer."""
        piece = await self._reader.read(size)
        self._room = left_of(self._room, len(piece))
        return piece


def left_of(room: int, size: int) -> int:
    """Return the room after ``size`` bytes; raises ``TooLarge`` if they do not fit."""
    if size > room:
        message = f"the answer has more than {LARGEST_ANSWER} bytes; delete the value, which is not a record"
        raise TooLarge(message)
    return room - size
