"""The fakes that users get for their own tests."""

from __future__ import annotations

import asyncio

import pytest

from tokencache import BackendUnavailable, TokenCache
from tokencache.ports import Granted
from tokencache.testing.fakes import FakeClock, FakeProvider, FlakyBackend

READS, WRITES, EVERYTHING = FlakyBackend.READS, FlakyBackend.WRITES, FlakyBackend.EVERYTHING


@pytest.mark.parametrize("half", ["sync", "async"])
@pytest.mark.parametrize(
    ("down", "failing"), [(READS, {"load"}), (WRITES, {"lease"}), (EVERYTHING, {"load", "lease"}), (frozenset(), set())]
)
def test_a_flaky_backend_fails_only_while_it_is_down(half: str, down: frozenset[str], failing: set[str]) -> None:
    """Reads, writes or both raise while they are down, in both halves; each call is recorded; later all work again."""
    backend = FlakyBackend()

    async def acalls() -> set[str]:
        own = backend.aio()
        failed: set[str] = set()
        for name, call in (("load", own.load("k")), ("lease", own.lease("k", "a", "i", None, 9.0))):
            try:
                await call
            except BackendUnavailable:
                failed.add(name)
        return failed

    def calls() -> set[str]:
        failed: set[str] = set()
        for name, arguments in (("load", ("k",)), ("lease", ("k", "a", "i", None, 9.0))):
            try:
                getattr(backend, name)(*arguments)
            except BackendUnavailable:
                failed.add(name)
        return failed

    backend.down = down
    assert (calls() if half == "sync" else asyncio.run(acalls())) == failing
    assert backend.calls == ["load", "lease"]
    backend.down = frozenset()
    assert isinstance(backend.lease("k", "a", "i", None, 9.0), Granted)


def test_a_flaky_backend_simulates_an_outage() -> None:
    """The documented use: a token is served from the local copy while the whole backend is down."""
    clock = FakeClock()
    backend = FlakyBackend(clock)
    source = TokenCache(backend, clock=clock, wall=clock.wall).source(FakeProvider(wall=clock.wall))
    first = source.token()
    backend.down = EVERYTHING
    clock.advance(3000)
    assert source.token() == first
    assert backend.calls.count("commit") == 1
