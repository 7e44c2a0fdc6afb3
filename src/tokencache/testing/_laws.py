"""Shared by the laws of the backend contract: a probe of each half, and functions that ask and wait."""

# ruff: noqa: S101 - a law is an assertion

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, TypeVar

import pytest

from tokencache.ports import Held
from tokencache.testing.probes import KEY, LONG, AsyncProbe, granted

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

    from tokencache.ports import Backend, LeaseGrant, LeaseReply
    from tokencache.testing.probes import Probe

T = TypeVar("T")


class Laws:
    """The base of laws: a subclass makes a backend with an empty store."""

    short: float = 0.3
    """A duration, in seconds, that the store can count and a law can wait for."""
    rounding: float = 0.01
    """How much longer than requested a record or lease may last, in seconds."""
    patience: float = 10.0
    """How long a law waits for an event, in seconds."""

    def make_backend(self, tmp_path: Path) -> Backend:
        """Return a backend whose store is empty. It is closed after the law."""
        raise NotImplementedError

    @pytest.fixture(params=["sync", "async"])
    def probe(self, request: pytest.FixtureRequest, tmp_path: Path) -> Generator[Probe]:
        """Yield one half of a new backend."""
        backend = self.make_backend(tmp_path)
        if request.param == "sync":
            yield backend
        else:
            half = AsyncProbe(backend)
            yield half
            half.stop()
        backend.close()

    def ask(self, probe: Probe, owner: str, seen: bytes | None = None, *, ttl: float = LONG) -> LeaseReply:
        """Ask for the lease of the one key and identity that most laws need."""
        return probe.lease(KEY, owner, "identity", seen, ttl)

    def plant(self, probe: Probe, data: bytes, ttl: float = LONG) -> None:
        """Put a record into the store without leaving a lease."""
        lease = granted(probe.lease(KEY, "gardener", "identity", None, LONG))
        assert probe.commit(lease, data, ttl)

    def eventually(self, look: Callable[[], T | None]) -> T:
        """Call until the result is not ``None``."""
        give_up = time.monotonic() + self.patience
        pause = threading.Event()
        while (sight := look()) is None:
            assert time.monotonic() < give_up, f"it did not happen within {self.patience} s"
            pause.wait(0.01)
        return sight

    def eventually_granted(self, probe: Probe, owner: str, seen: bytes | None = None) -> LeaseGrant:
        """Ask for the lease until it is granted."""

        def look() -> LeaseGrant | None:
            reply = self.ask(probe, owner, seen)
            return None if isinstance(reply, Held) else granted(reply)

        return self.eventually(look)

    def waiter(self, probe: Probe, seen: bytes | None, timeout: float) -> threading.Thread:
        """Start a thread that waits for a change; return it just before it waits."""
        ready = threading.Event()

        def run() -> None:
            ready.set()
            probe.wait(KEY, seen, timeout)

        thread = threading.Thread(target=run, name="contract-waiter", daemon=True)
        thread.start()
        ready.wait()
        return thread

    def ends(self, thread: threading.Thread) -> bool:
        """Return whether the thread ends in time."""
        thread.join(self.patience)
        return not thread.is_alive()
