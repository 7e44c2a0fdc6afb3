"""Fixtures for all tests: servers of our own on free loopback ports."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from tokencache.testing.servers import RedisServer

if TYPE_CHECKING:
    from collections.abc import Iterator

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
