"""Fixtures for all tests: servers of our own on free loopback ports."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import pytest

from tokencache.testing.servers import RedisServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Interrupt: TypeAlias = Callable[[Sequence[str], Callable[[], object]], None]

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job, whose children would ignore it too
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--reliability`: the fault matrix writes docs/reliability.md instead of being held against it."""
    parser.addoption("--reliability", action="store_true", help="write docs/reliability.md from the fault matrix")


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """The URL of a Redis of our own; skipped where there is none, unless CI promises one."""
    with RedisServer() as server:
        yield server.url


@pytest.fixture
def count_sockets() -> Callable[[], int]:
    """Give what tells how many sockets this process has, as far as the system tells."""

    def count() -> int:
        found = 0
        for descriptor in Path("/proc/self/fd").glob("*"):
            with suppress(OSError):  # the one that lists them
                found += str(descriptor.readlink()).startswith("socket:")
        return found

    return count


@pytest.fixture
def interrupt() -> Interrupt:
    """Give what runs the command line, interrupts it and its processes when it is time, and sees all of them end."""
    return _interrupt


def _interrupt(arguments: Sequence[str], when: Callable[[], object]) -> None:
    """Run it in a group of its own, interrupt the group, and wait until all of it has ended with 130."""
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
