"""The heartbeat keeps the lease of a slow fetch, and stops at the fetch's deadline."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import pytest

from tokencache import (
    BackendUnavailable,
    DeadlineExceeded,
    RefreshPolicy,
    Token,
    TokenCache,
    TokenSource,
)
from tokencache.backends.memory import MemoryBackend
from tokencache.events import LeaseLost
from tokencache.testing.fakes import FakeProvider, Recorder

if TYPE_CHECKING:
    from tokencache.ports import LeaseGrant

PATIENCE = 30.0
PLANTED = "planted"
SHORT = RefreshPolicy(lease=1.5)


class Watched(MemoryBackend):
    """A memory backend that sets ``enough`` when a lease was extended three times. It can also refuse to extend."""

    def __init__(self, *, keeps: bool = True) -> None:
        super().__init__()
        self.keeps = keeps
        self.extended = 0
        self.enough = threading.Event()

    def extend(self, lease: LeaseGrant, ttl: float) -> bool:
        """Count, then extend or refuse."""
        self.extended += 1
        if self.extended >= 3 or not self.keeps:
            self.enough.set()
        return self.keeps and super().extend(lease, ttl)


def ask(source: TokenSource, half: str) -> Token:
    """Get a token from a thread or from an event loop."""
    return source.token() if half == "sync" else asyncio.run(source.atoken())


@pytest.mark.parametrize("half", ["sync", "async"])
def test_a_slow_fetch_keeps_its_lease(half: str) -> None:
    """INV-2: a fetch that takes several leases is one fetch; a caller in another process waits on."""
    backend, provider = Watched(), FakeProvider()
    provider.gate.clear()
    got: list[Token] = []
    sources = [TokenCache(backend, policy=SHORT).source(provider) for _ in range(2)]
    threads = [threading.Thread(target=lambda source=source: got.append(ask(source, half))) for source in sources]
    for thread in threads:
        thread.start()
    assert backend.enough.wait(PATIENCE)
    provider.gate.set()
    for thread in threads:
        thread.join(PATIENCE)
    assert provider.calls == 1
    assert len(set(got)) == 1


@pytest.mark.parametrize("half", ["sync", "async"])
def test_a_refused_extension_is_reported_once(half: str) -> None:
    """INV-2: the fetch goes on, and an event says that another process may fetch too."""
    backend, provider, seen = Watched(keeps=False), FakeProvider(), Recorder()
    provider.gate.clear()
    source = TokenCache(backend, policy=SHORT, observers=[seen]).source(provider)
    got: list[Token] = []
    thread = threading.Thread(target=lambda: got.append(ask(source, half)))
    thread.start()
    assert backend.enough.wait(PATIENCE)
    while not source._flights._open._later:  # type: ignore[union-attr]  # reported when the flight is over
        threading.Event().wait(0.001)
    provider.gate.set()
    thread.join(PATIENCE)
    assert len(got) == 1
    assert len(seen.of(LeaseLost)) == 1


@pytest.mark.parametrize("half", ["sync", "async"])
def test_an_outage_during_a_fetch_does_not_lose_the_lease(half: str) -> None:
    """INV-5: if the backend does not answer a heartbeat, the lease is not lost; the heartbeat tries again."""

    class Mute(Watched):
        """Fails to answer each heartbeat."""

        def extend(self, lease: LeaseGrant, ttl: float) -> bool:
            """Count, then fail."""
            super().extend(lease, ttl)
            message = "no answer"
            raise BackendUnavailable(message)

    backend, provider, seen = Mute(), FakeProvider(), Recorder()
    provider.gate.clear()
    source = TokenCache(backend, policy=SHORT, observers=[seen]).source(provider)
    thread = threading.Thread(target=ask, args=(source, half))
    thread.start()
    assert backend.enough.wait(PATIENCE)
    provider.gate.set()
    thread.join(PATIENCE)
    assert not seen.of(LeaseLost)
    assert source.token()


def test_a_hung_fetch_loses_its_lease_at_its_deadline() -> None:
    """INV-8, INV-2: the heartbeat ends at the fetch's deadline, so that another process can fetch."""
    backend, hung = MemoryBackend(), FakeProvider()
    hung.gate.clear()
    policy = RefreshPolicy(lease=0.1, fetch_timeout=0.2, timeout=0.2)
    stuck = TokenCache(backend, policy=policy).source(hung, key="k")
    release = threading.Event()
    hung.gate.wait = lambda timeout=None: release.wait(PATIENCE)  # type: ignore[method-assign]
    with pytest.raises(DeadlineExceeded):
        stuck.token()
    quick = FakeProvider()
    quick.value = "quick"
    assert TokenCache(backend).source(quick, key="k").token(PATIENCE).value == "quick"
    release.set()


def test_a_backend_that_raises_does_not_stop_other_heartbeats() -> None:
    """INV-2: if one backend's ``extend`` raises, the leases on other backends are still extended."""

    class Defective(Watched):
        """A backend whose ``extend`` has a defect."""

        def extend(self, lease: LeaseGrant, ttl: float) -> bool:
            """Raise what no backend may raise."""
            self.enough.set()
            raise ValueError(PLANTED)

    odd, slow = Defective(), FakeProvider("odd")
    slow.gate.clear()
    caller = threading.Thread(target=TokenCache(odd).source(slow, policy=SHORT).token)
    caller.start()
    assert odd.enough.wait(PATIENCE)
    good, held = Watched(), FakeProvider("good")
    held.gate.clear()
    other = threading.Thread(target=TokenCache(good).source(held, policy=SHORT).token)
    other.start()
    assert good.enough.wait(PATIENCE)
    slow.gate.set()
    held.gate.set()
    caller.join(PATIENCE)
    other.join(PATIENCE)
    assert held.calls == 1
