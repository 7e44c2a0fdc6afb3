"""A Redis server for live tests: standalone, replica, cluster node or sentinel."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final
from urllib.parse import quote

from tokencache.testing._resp import CommandRefused, Reply, ask, text_of
from tokencache.testing._server_process import HOST, ServerProcess, wait_until

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Self

    from tokencache.testing._resp import Part

_TIMEOUT: Final = 20.0


@dataclass(frozen=True, slots=True)
class Certificates:
    """PEM files for TLS: the authority, the server's certificate for ``127.0.0.1``, and its key."""

    authority: Path
    certificate: Path
    key: Path


class RedisServer(ServerProcess):
    """Redis on a free port of loopback, without persistence.

    ``arguments`` go to the program, as in ``RedisServer("--maxmemory", "2mb")``. With ``unix`` it also listens on a
    socket in its folder, and ``url`` names that socket. With ``tls`` it accepts only TLS. A replica of ``replicaof``
    counts as started when it is linked to its master.
    """

    program: ClassVar[str] = "redis-server"

    def __init__(
        self,
        *arguments: str,
        password: str | None = None,
        unix: bool = False,
        tls: Certificates | None = None,
        replicaof: RedisServer | None = None,
    ) -> None:
        super().__init__(*arguments)
        self.password = password
        self._unix = unix
        self._tls = tls
        self._master = replicaof
        self._asked = 0

    @property
    def url(self) -> str:
        """The URL for a backend, with the password and the certificate authority."""
        login = f":{quote(self.password, safe='')}@" if self.password else ""
        if self._unix:
            return f"unix://{login}{self.folder}/redis.sock?db=0"
        if self._tls is not None:
            return f"rediss://{login}{HOST}:{self.port}/0?ssl_ca_certs={quote(str(self._tls.authority))}"
        return f"redis://{login}{HOST}:{self.port}/0"

    def start(self) -> Self:
        """Start on a free port; wait until the server answers and, for a replica, until it is linked."""
        super().start()
        if self._master is not None:
            try:
                wait_until(lambda: self.info("replication").get("master_link_status") == "up", "linking a replica")
            except BaseException:
                self.stop()
                raise
        return self

    def restart(self, *, keep: bool = False) -> None:
        """End the server, if it runs, and start it again on its port.

        With ``keep`` it saves its data first; after a ``kill`` it loads the last saved data. Without ``keep`` it is
        empty after the restart; a node of a cluster keeps its slots.
        """
        if keep and self.running:
            self.command("SAVE")
        self.kill()
        if not keep:
            (self.folder / "dump.rdb").unlink(missing_ok=True)
            (self.folder / "appendonly.aof").unlink(missing_ok=True)
            shutil.rmtree(self.folder / "appendonlydir", ignore_errors=True)
        self._launch()

    def command(self, *parts: Part, timeout: float = _TIMEOUT) -> Reply:
        """Send one command on a connection of its own and return the reply.

        Raises ``CommandRefused`` for an error reply, ``OSError`` for a server that does not answer.
        """
        login = [("AUTH", self.password)] if self.password else []
        authority = self._tls.authority if self._tls is not None else None
        replies = ask(self.port, [*login, parts], timeout=timeout, host=HOST, authority=authority)
        self._asked += sum(not isinstance(reply, CommandRefused) for reply in replies)
        for reply in replies:
            if isinstance(reply, CommandRefused):
                raise reply
        last = replies[-1]
        assert not isinstance(last, CommandRefused)  # noqa: S101
        return last

    def info(self, section: str) -> dict[str, str]:
        """Return the fields of a section of ``INFO``."""
        lines = text_of(self.command("INFO", section)).splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)

    def calls(self) -> dict[str, int]:
        """Return the number of calls of each command since the start, also in scripts and through ``command``."""
        found: dict[str, int] = {}
        for name, figures in self.info("commandstats").items():
            fields = dict(field.split("=", 1) for field in figures.split(","))
            found[name.removeprefix("cmdstat_")] = int(fields["calls"])
        return found

    def commands(self) -> int:
        """Return the number of commands since the start, also in scripts, without the calls of ``command``.

        Use the difference of two figures.
        """
        asked = self._asked  # read first: the answer does not count its own command
        login = 1 if self.password else 0
        return sum(self.calls().values()) - asked - login

    def command_line(self) -> list[str]:
        """Return the port, the settings for tests, then the caller's arguments."""
        line = ["--bind", HOST, "--dir", str(self.folder), "--daemonize", "no", "--logfile", ""]
        line += ["--save", "", "--appendonly", "no", "--repl-diskless-sync-delay", "0"]
        if self._tls is None:
            line += ["--port", str(self.port)]
        else:
            line += ["--port", "0", "--tls-port", str(self.port), "--tls-auth-clients", "no"]
            line += ["--tls-cert-file", str(self._tls.certificate), "--tls-key-file", str(self._tls.key)]
            line += ["--tls-ca-cert-file", str(self._tls.authority)]
        if self._unix:
            line += ["--unixsocket", str(self.folder / "redis.sock")]
        if self.password:
            line += ["--requirepass", self.password, "--masterauth", self.password]
        if self._master is not None:
            line += ["--replicaof", HOST, str(self._master.port)]
        return [*line, *self.arguments]

    def answering(self) -> int | None:
        """Return the process id from ``INFO``; unknown if INFO is not allowed, 0 while the data are loaded."""
        try:
            state = self.info("default")
        except CommandRefused:
            return None
        return 0 if state.get("loading") == "1" else int(state["process_id"])

    def _launch(self) -> None:
        self._asked = 0
        super()._launch()


class RedisSentinel(RedisServer):
    """A sentinel that watches ``master`` under the name ``service``; two that find the master down fail over."""

    def __init__(self, master: RedisServer, service: str, down_after: float = 0.5) -> None:
        super().__init__()
        self.service = service
        self._watched = master
        self._down_after = down_after

    def address(self) -> tuple[str, int] | None:
        """Return the address of the master, as this sentinel reports it."""
        reply = self.command("SENTINEL", "get-master-addr-by-name", self.service)
        if not isinstance(reply, list):
            return None
        host, port = (text_of(part) for part in reply)
        return host, int(port)

    def state(self) -> dict[str, str]:
        """Return what this sentinel reports: the master's flags, the numbers of replicas and of other sentinels."""
        reply = self.command("SENTINEL", "master", self.service)
        fields = [text_of(field) for field in reply] if isinstance(reply, list) else []
        return dict(zip(fields[::2], fields[1::2], strict=True))

    def restart(self, *, keep: bool = True) -> None:
        """End the sentinel, if it runs, and start it again on its port; without ``keep``, in its first state."""
        self.kill()
        if not keep:
            self._configuration.unlink(missing_ok=True)
        self._launch()

    def command_line(self) -> list[str]:
        """Write the configuration, unless the sentinel has changed it already, and return its path."""
        if not self._configuration.exists() or f"port {self.port}\n" not in self._configuration.read_text():
            name, watched = self.service, self._watched
            lines = [
                f"port {self.port}",
                f"bind {HOST}",
                f"dir {self.folder}",
                f"sentinel monitor {name} {HOST} {watched.port} 2",
                f"sentinel down-after-milliseconds {name} {round(self._down_after * 1000)}",
                f"sentinel failover-timeout {name} 5000",
            ]
            if watched.password:
                lines.append(f"sentinel auth-pass {name} {watched.password}")
            self._configuration.write_text("\n".join(lines) + "\n")
        return [str(self._configuration), "--sentinel"]

    @property
    def _configuration(self) -> Path:
        return self.folder / "sentinel.conf"
