"""A small Redis client for tests: one connection, its commands, their replies."""

from __future__ import annotations

import socket
import ssl
from contextlib import ExitStack
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence
    from io import BufferedReader
    from pathlib import Path

Reply: TypeAlias = "bytes | int | list[Reply] | None"
"""A reply; strings of both kinds are bytes."""

Part: TypeAlias = "str | bytes | int | float"


class CommandRefused(Exception):
    """The server's error reply; the message is the server's."""


def ask(
    port: int, commands: Sequence[Sequence[Part]], *, timeout: float, host: str, authority: Path | None = None
) -> list[Reply | CommandRefused]:
    """Connect, send the commands in one go, return the replies. Raises ``OSError`` without a server.

    With an ``authority``, over TLS.
    """
    with ExitStack() as stack:
        connection = stack.enter_context(socket.create_connection((host, port), timeout))
        if authority is not None:
            context = ssl.create_default_context(cafile=authority)
            connection = stack.enter_context(context.wrap_socket(connection, server_hostname=host))
        connection.sendall(b"".join(_packed(command) for command in commands))
        stream = stack.enter_context(connection.makefile("rb"))
        return [_outcome(stream) for _ in commands]


def text_of(reply: Reply) -> str:
    """Return a string reply as text."""
    return reply.decode() if isinstance(reply, bytes) else str(reply)


def _packed(command: Sequence[Part]) -> bytes:
    parts = [part if isinstance(part, bytes) else str(part).encode() for part in command]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)


def _outcome(stream: BufferedReader) -> Reply | CommandRefused:
    try:
        return _read(stream)
    except CommandRefused as refused:
        return refused


def _read(stream: BufferedReader) -> Reply:
    line = stream.readline()
    if not line.endswith(b"\r\n"):
        message = "the server closed the connection"
        raise ConnectionError(message)
    kind, rest = line[:1], line[1:-2]
    match kind:
        case b"+":
            return rest
        case b"-":
            raise CommandRefused(rest.decode(errors="replace"))
        case b":":
            return int(rest)
        case b"$":
            size = int(rest)
            return None if size < 0 else stream.read(size + 2)[:-2]
        case b"*":
            return None if int(rest) < 0 else [_read(stream) for _ in range(int(rest))]
        case _:
            message = f"no reply of Redis begins with {kind!r}"
            raise ConnectionError(message)
