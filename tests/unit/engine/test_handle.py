"""The handle of a backend: it outlives its cache, and calls the backend's fork hook."""

from __future__ import annotations

import gc
import os

import pytest

from tokencache import TokenCache
from tokencache._engine.handle import BackendHandle
from tokencache.backends.memory import MemoryBackend
from tokencache.testing.fakes import FakeClock, FakeProvider


class CountsForks(MemoryBackend):
    """A backend that counts the calls of its fork hook."""

    forks = 0

    def after_fork(self) -> None:
        """Count."""
        self.forks += 1


class ThirdParty:
    """A third party's backend that supports neither hashing nor weak references."""

    __slots__ = ("forks",)
    __hash__ = None  # type: ignore[assignment]
    name = "third party"

    def __init__(self) -> None:
        self.forks = 0

    def after_fork(self) -> None:
        """Count."""
        self.forks += 1


@pytest.mark.parametrize("kept", [True, False], ids=["cache kept", "cache dropped"])
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")  # other tests' threads may live on
def test_a_source_without_its_cache_survives_a_fork(*, kept: bool) -> None:
    """``TokenCache(url).source(…)`` does not keep the cache; still the child drops the parent's connections, once."""
    backend = CountsForks()
    cache = TokenCache(backend)
    source = cache.source(FakeProvider())
    if not kept:
        del cache
        gc.collect()
    child = os.fork()
    if child == 0:
        os._exit(backend.forks)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    assert backend.forks == 0
    assert source.token().value == "fake-token-1"


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_third_partys_fork_hook_is_called() -> None:
    """The handle calls the hook of a backend that has not enrolled itself, whatever its class allows."""
    backend = ThirdParty()
    handle = BackendHandle(backend, FakeClock(), 1.0)  # type: ignore[arg-type]
    child = os.fork()
    if child == 0:
        os._exit(backend.forks)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    assert handle.name == "third party"
