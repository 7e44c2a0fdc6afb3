"""Fixtures for all tests: our own servers on free loopback ports, and a fake QPay that the environment names.

A folder says what its tests need. `unit`, `contract`, `integrations`, `security` and `meta` need only this process.
`processes` and `simulation` start others, `servers` needs Redis and memcached, `browsers` a Chromium, `npm` packages of
Node. ``tests/meta`` checks this.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import pytest

from tokencache.testing.servers import RedisServer, ServerNotInstalled, require
from tokencache_qpay.testing import FakeQPay

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Interrupt: TypeAlias = Callable[[Sequence[str], Callable[[], object]], None]

if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # a shell's background job; its children would ignore the signal too
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The system's Redis comes first on the path. Without one, `make test` has linked Valkey beside this Python as Redis.
os.environ["PATH"] = os.pathsep.join((os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Iterator[None]:
    """Skip a test whose fixture starts a server that is not installed; fail it where CI promises the server."""
    with _skipped_without_server():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    """Skip a test that starts a server that is not installed; fail it where CI promises the server."""
    with _skipped_without_server():
        return (yield)


@contextmanager
def _skipped_without_server() -> Iterator[None]:
    try:
        yield
    except ServerNotInstalled as missing:
        require(missing.program)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print one line for each reason of skipped tests, with their number."""
    reports = terminalreporter.getreports("skipped")
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in reports)
    for reason, count in sorted(reasons.items()):
        remedy = "; `make servers` installs it" if reason.startswith(("redis-server", "memcached")) else ""
        terminalreporter.write_line(f"skipped {count}: {reason}{remedy}")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--reliability`: the fault matrix writes docs/reliability.md instead of comparing it."""
    parser.addoption("--reliability", action="store_true", help="write docs/reliability.md from the fault matrix")


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """The URL of our own Redis; without redis-server the test is skipped, unless CI promises it."""
    with RedisServer() as server:
        yield server.url


@pytest.fixture
def fake(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeQPay]:
    """A fake QPay that the environment names, with the module's SECRET, and a cache folder of the test's own."""
    with FakeQPay(credentials={"merchant": request.module.SECRET}) as server:
        for name, value in server.environ.items():
            monkeypatch.setenv(name, value)
        for name in ("QPAY_CACHE_KEY", "TOKENCACHE_BACKEND", "REDIS_DATABASE_URI", "NO_COLOR"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        yield server


@pytest.fixture
def unused_port() -> Iterator[int]:
    """A bound port of loopback on which no server listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@pytest.fixture
def count_sockets() -> Callable[[], int]:
    """Return a function that counts this process's sockets, as far as the system lists them."""

    def count() -> int:
        found = 0
        for descriptor in Path("/proc/self/fd").glob("*"):
            with suppress(OSError):  # the descriptor of the listing itself
                found += str(descriptor.readlink()).startswith("socket:")
        return found

    return count


@pytest.fixture
def interrupt() -> Interrupt:
    """Return a function that runs the command line, and interrupts it and its processes at a given moment."""
    return _interrupt


def _interrupt(arguments: Sequence[str], when: Callable[[], object]) -> None:
    """Run the command in a new process group, interrupt the group, and wait until it has ended with 130."""
    patience = 60.0
    process = subprocess.Popen(
        [sys.executable, "-m", "tokencache", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={name: value for name, value in os.environ.items() if not name.startswith("COV")},
    )
    watchdog = threading.Timer(patience, process.kill)
    watchdog.start()
    try:
        ends = time.monotonic() + patience
        while not when():
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < ends
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate()
    finally:
        watchdog.cancel()
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert "Traceback" not in errors
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
