"""The breaker: while a backend is down, one call per interval probes it."""

from __future__ import annotations

from tokencache import (
    BackendUnavailable,
)
from tokencache._engine.breaker import Breaker
from tokencache.testing.fakes import FakeClock


def test_the_breaker_allows_one_caller_per_probe() -> None:
    """INV-5: the states are closed, open, one probe, open again, closed again."""
    clock = FakeClock()
    breaker = Breaker(clock, 1.0)
    error = BackendUnavailable("down")
    assert breaker.refuse() is None
    assert breaker.failed(error)
    assert not breaker.failed(error)
    assert breaker.refuse() is error
    clock.advance(1.0)
    assert breaker.refuse() is None, "the probe"
    assert breaker.refuse() is error, "every other caller"
    assert breaker.error is error
    assert breaker.answered()
    assert not breaker.answered()
    assert breaker.refuse() is None
