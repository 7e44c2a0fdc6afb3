"""memcached for live tests."""

from __future__ import annotations

import os
import socket
from typing import ClassVar, Final

from tokencache.testing._server_process import HOST, ServerProcess

_TIMEOUT: Final = 20.0
_LISTS: Final = ("STAT ", "VALUE ")  # an answer with one of these prefixes goes on until END
_COUNTED: Final = ("cmd_get", "cmd_set", "cmd_touch", "cmd_flush", "cmd_meta", "delete_", "incr_", "decr_")


class MemcachedServer(ServerProcess):
    """memcached on a free port of loopback: ``MemcachedServer("-m", "16")``."""

    program: ClassVar[str] = "memcached"

    @property
    def url(self) -> str:
        """The URL for a backend."""
        return f"memcached://{HOST}:{self.port}"

    def restart(self) -> None:
        """End the server, if it runs, and start it again on its port, empty."""
        self.kill()
        self._launch()

    def command(self, line: str) -> list[str]:
        """Send one line and return the lines of the answer up to its end; for ``stats``, ``get``, ``flush_all``."""
        with socket.create_connection((HOST, self.port), _TIMEOUT) as connection:
            connection.sendall(f"{line}\r\n".encode())
            with connection.makefile("r", newline="\r\n", encoding="utf-8", errors="replace") as stream:
                lines: list[str] = []
                for answer in stream:
                    lines.append(answer.removesuffix("\r\n"))
                    if lines[-1] == "END" or not lines[0].startswith(_LISTS):
                        return lines
        message = "memcached closed the connection"
        raise ConnectionError(message)

    def stats(self) -> dict[str, str]:
        """Return the general statistics."""
        lines = self.command("stats")
        return {name: value for _, name, value in (line.split(" ", 2) for line in lines if line.startswith("STAT "))}

    def commands(self) -> int:
        """Return the number of commands on keys since the server started. Use the difference of two figures."""
        return sum(int(value) for name, value in self.stats().items() if name.startswith(_COUNTED))

    def command_line(self) -> list[str]:
        """Return the port, the settings for tests, then the caller's arguments."""
        user = ["-u", "root"] if os.geteuid() == 0 else []  # memcached starts as root only with this option
        return ["-l", HOST, "-p", str(self.port), "-U", "0", *user, *self.arguments]

    def answering(self) -> int | None:
        """Return the process id from the statistics."""
        return int(self.stats().get("pid", 0))
