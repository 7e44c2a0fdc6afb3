"""A server as a child process: its port, its folder, its start and its end."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, ClassVar, Final

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

HOST: Final = "127.0.0.1"
PATIENCE: Final = 60.0
"""How long, in seconds, a server may take to answer before its start has failed."""

_PAUSE: Final = 0.01
_ATTEMPTS: Final = 5
_PORTS: Final = range(12_000, 22_000)  # below the ephemeral ports: a client could occupy one
_BUS: Final = 10_000  # a node of a Redis Cluster also listens on its port plus this
_USUAL: Final = {6379 + _BUS}

# It reads the process id from its standard input. When the process that writes there ends, it kills the server.
_GUARD: Final = 'pid=; while read -r line; do pid=$line; done; [ -z "$pid" ] || kill -9 "$pid"; rm -rf -- "$1"'


class ServerFailed(Exception):
    """A server did not start, ended by itself, or did not reach the expected state in time."""


class ServerNotInstalled(ServerFailed):
    """A server's program is not on PATH."""

    def __init__(self, program: str) -> None:
        super().__init__(f"{program} is not installed")
        self.program = program


def require(program: str) -> str:
    """Return the path of a program. If it is missing, skip the test, or fail it where ``CI`` is set."""
    import pytest

    found = shutil.which(program)
    if found is not None:
        return found
    message = f"{program} is not installed"
    if os.environ.get("CI", "").lower() not in {"", "0", "false"}:
        pytest.fail(f"{message}, and CI promises it", pytrace=False)
    return pytest.skip(message)


def free_port() -> int:
    """Return a free port of loopback; the port 10,000 above it is free too."""
    choice = random.SystemRandom()  # a seeded one would give parallel tests the same ports
    while True:
        port = choice.choice(_PORTS)
        if port not in _USUAL and _is_free(port) and _is_free(port + _BUS):
            return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def wait_until(reached: Callable[[], bool], what: str, timeout: float = PATIENCE) -> None:
    """Poll until the condition holds; a server that does not answer counts as "not yet".

    Raises ``ServerFailed`` after the time-out.
    """
    deadline = time.monotonic() + timeout
    while True:
        with suppress(OSError):
            if reached():
                return
        if time.monotonic() > deadline:
            message = f"{what}: not within {timeout:g} s"
            raise ServerFailed(message)
        time.sleep(_PAUSE)


class ServerProcess:
    """One server on a port of loopback that it keeps over restarts, in a temporary folder.

    The base of the servers here: ``command_line`` of a subclass returns the command, and ``answering`` the id of the
    process that answers on the port.
    """

    program: ClassVar[str]

    def __init__(self, *arguments: str) -> None:
        self.arguments = arguments
        self.port = 0
        self.folder = Path()
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None

    def command_line(self) -> list[str]:
        """Return the arguments of the program."""
        raise NotImplementedError

    def answering(self) -> int | None:
        """Return the process id that the server on the port reports, or ``None`` if it does not report one."""
        raise NotImplementedError

    @property
    def pid(self) -> int:
        """The process id. Raises ``ServerFailed`` while the server does not run."""
        return self._running().pid

    @property
    def running(self) -> bool:
        """Whether the process exists, paused or not."""
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        """What the server wrote so far."""
        return (self.folder / "log").read_text(errors="replace")

    def start(self) -> Self:
        """Start on a free port and wait until the server answers. Raises ``ServerFailed``, ``ServerNotInstalled``."""
        if shutil.which(self.program) is None:
            raise ServerNotInstalled(self.program)
        self.folder = Path(tempfile.mkdtemp(prefix="tokencache-server-"))
        try:
            self._guard = subprocess.Popen(  # noqa: S603  (a constant script)
                ["/bin/sh", "-c", _GUARD, "sh", str(self.folder)],
                stdin=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            for attempt in range(_ATTEMPTS):
                self.port = free_port()
                try:
                    self._launch()
                    break
                except ServerFailed:
                    if attempt == _ATTEMPTS - 1 or "in use" not in self.log.lower():
                        raise
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End the server and remove its folder. May be called twice."""
        self.kill()
        guard, self._guard = self._guard, None
        if guard is None:
            return
        guard.kill()  # else it waits for children of a fork, which also have its input open
        guard.communicate()
        shutil.rmtree(self.folder, ignore_errors=True)

    def kill(self) -> None:
        """Kill the process, paused or not (SIGKILL). Does nothing after its end."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            self._tell_guard(None)

    def pause(self) -> None:
        """Stop the process (SIGSTOP): its connections get no answers. Returns when it has stopped."""
        pid = self.pid
        os.kill(pid, signal.SIGSTOP)
        os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """Continue a paused process (SIGCONT). Returns when it answers."""
        process = self._running()
        os.kill(process.pid, signal.SIGCONT)
        self._await(process)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        """Return kind and port; the arguments may hold a password."""
        return f"<{type(self).__name__} port={self.port}>"

    def _launch(self) -> None:
        """Run the program on the chosen port."""
        log: IO[bytes]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603  (the program of the subclass)
                [self.program, *self.command_line()],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C on the terminal goes only to the tests
            )
        self._tell_guard(self._process.pid)
        self._await(self._process)

    def _await(self, process: subprocess.Popen[bytes]) -> None:
        """Wait until this process answers on the port: another process may have taken it."""
        deadline = time.monotonic() + PATIENCE
        while not self._answers(process.pid):
            try:
                process.wait(_PAUSE)
            except subprocess.TimeoutExpired:
                if time.monotonic() < deadline:
                    continue
            state = "gave no answer" if process.poll() is None else "ended"
            self.kill()
            message = f"{self.program} {state} on port {self.port}; it wrote:\n{self.log[-2000:]}"
            raise ServerFailed(message)

    def _answers(self, pid: int) -> bool:
        try:
            return self.answering() in {pid, None}
        except (OSError, ValueError):
            return False

    def _running(self) -> subprocess.Popen[bytes]:
        process = self._process
        if process is None or process.poll() is not None:
            message = f"{self.program} is not running"
            raise ServerFailed(message)
        return process

    def _tell_guard(self, pid: int | None) -> None:
        if self._guard is not None and self._guard.stdin is not None:
            self._guard.stdin.write(b"%d\n" % pid if pid is not None else b"\n")
            self._guard.stdin.flush()
