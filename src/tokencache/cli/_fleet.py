"""A fleet: worker processes that start together, and the sum of their reports."""

from __future__ import annotations

import json
import queue
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final, Self

from tokencache.errors import TokenCacheError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from types import TracebackType

    from tokencache.cli._worker_load import WorkerLoad

PATIENCE: Final = 60.0
"""How long a command waits for its processes, in seconds, before it fails."""


@dataclass
class FleetReport:
    """The sum of all processes. ``fetches`` are the times of the logins that they simulated."""

    calls: int = 0
    waited: int = 0
    late: int = 0
    slowest: float = 0.0
    times: list[float] = field(default_factory=list[float])
    fetches: list[float] = field(default_factory=list[float])
    tokens: set[str] = field(default_factory=set[str])
    errors: list[str] = field(default_factory=list[str])

    def add(self, message: dict[str, Any]) -> None:
        """Add the last message of one process."""
        self.calls += message["calls"]
        self.waited += message["waited"]
        self.late += message["late"]
        self.slowest = max(self.slowest, message["slowest"])
        self.times += message.get("times", [])
        self.fetches += message.get("fetches", [])
        self.tokens |= set(message["tokens"])
        self.errors += message["errors"]


FAREWELL: Final = 5.0
"""How long a process may take to end after its work, in seconds, before it is killed."""


class Fleet:
    """Processes that run the module ``worker``; the end of the block ends those still running."""

    def __init__(
        self,
        worker: str,
        orders: WorkerLoad,
        processes: int,
        patience: float = PATIENCE,
    ) -> None:
        self._messages: queue.Queue[tuple[int, dict[str, Any] | None]] = queue.Queue()
        self._ends = time.monotonic() + patience + orders.seconds
        self._workers: list[subprocess.Popen[str]] = []
        try:
            with _uninterrupted():
                for _ in range(processes):
                    command = [sys.executable, "-P", "-m", worker]  # no module of the working folder is imported
                    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
                    self._workers.append(process)
            for number, process in enumerate(self._workers):
                self._tell(process, json.dumps(asdict(orders)))
                threading.Thread(target=self._listen, args=(number, process), daemon=True).start()
        except BaseException:  # the block was not entered, so its end cannot end them
            self._end(kill=True)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end(kill=kind is not None)

    def _end(self, *, kill: bool) -> None:
        """Wait until every process has ended; kill each that takes too long, or with ``kill`` all at once."""
        for worker in self._workers:
            if kill:
                worker.kill()
            if worker.stdin is not None:
                with suppress(BrokenPipeError):  # it has ended, and a line was not yet flushed
                    worker.stdin.close()
        for worker in self._workers:
            try:
                worker.wait(timeout=FAREWELL)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
            if worker.stdout is not None:
                worker.stdout.close()

    def muster(self, ready: Callable[[int], None]) -> None:
        """Wait until every process is ready."""
        for count in range(1, len(self._workers) + 1):
            self._next()
            ready(count)

    def run(self, progress: Callable[[int], None]) -> FleetReport:
        """Start all at once and return their sum; ``progress`` is called with the number of calls so far."""
        for worker in self._workers:
            self._tell(worker, "go")
        report, waiting, calls = FleetReport(), len(self._workers), dict.fromkeys(range(len(self._workers)), 0)
        while waiting:
            number, message = self._next()
            calls[number] = message["calls"]
            progress(sum(calls.values()))
            if "done" in message:
                report.add(message)
                waiting -= 1
        return report

    def _next(self) -> tuple[int, dict[str, Any]]:
        """Return the next message of any process."""
        while True:
            left = self._ends - time.monotonic()
            try:
                number, message = self._messages.get(timeout=min(0.2, max(left, 0.01)))
            except queue.Empty:  # a short time-out, so that Ctrl-C is handled
                if left <= 0:
                    text = "the fleet's processes did not report in time; the machine may be overloaded, so try again"
                    raise TokenCacheError(text) from None
                continue
            if message is None:
                text = f"process {number + 1} of the fleet ended early; its own message is above"
                raise TokenCacheError(text)
            return number, message

    def _listen(self, number: int, worker: subprocess.Popen[str]) -> None:
        """Pass on the messages of one process, and ``None`` if it ends without its last report."""
        if worker.stdout is None:
            return
        try:
            for line in worker.stdout:
                message = json.loads(line)
                self._messages.put((number, message))
                if "done" in message:
                    return
        except ValueError:  # the pipe was closed meanwhile, or the line was cut
            pass
        self._messages.put((number, None))

    @staticmethod
    def _tell(worker: subprocess.Popen[str], line: str) -> None:
        """Send one line to a process. An ended one is noticed later, by its missing report."""
        if worker.stdin is None:
            return
        try:
            worker.stdin.write(line + "\n")
            worker.stdin.flush()
        except BrokenPipeError:
            pass


@contextmanager
def _uninterrupted() -> Generator[None]:
    """Delay Ctrl-C to the end of the block; processes started in it never get the signal.

    They inherit the blocked signal. In this process a handler is needed too, because another thread may take the
    signal: an interrupt between start and registration would leave a process running.
    """
    came: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, _frame: came.append(number))
    unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
        signal.signal(signal.SIGINT, handler)
        if came:
            signal.raise_signal(signal.SIGINT)
