"""The handle of a backend: it outlives its cache, and tells the backend of a fork."""

from __future__ import annotations

import gc
import os

import pytest

from tokencache import TokenCache
from tokencache._engine.handle import BackendHandle
from tokencache.backends.memory import MemoryBackend
from tokencache.testing.fakes import FakeClock, FakeProvider


class Told(MemoryBackend):
    """A backend that counts the forks that it is told of."""

    forks = 0

    def after_fork(self) -> None:
        """Count."""
        self.forks += 1


class Foreign:
    """A third party's backend, which can be neither hashed nor referred to weakly."""

    __slots__ = ("forks",)
    __hash__ = None  # type: ignore[assignment]
    name = "foreign"

    def __init__(self) -> None:
        self.forks = 0

    def after_fork(self) -> None:
        """Count."""
        self.forks += 1


@pytest.mark.parametrize("kept", [True, False], ids=["cache kept", "cache dropped"])
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")  # other tests' threads may live on
def test_a_source_alone_is_good_after_a_fork(*, kept: bool) -> None:
    """``TokenCache(url).source(…)`` keeps no cache: its backend still lets go of the parent's connections, once."""
    backend = Told()
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
def test_the_hook_of_a_third_party_is_called() -> None:
    """A backend that has not enrolled itself is told of a fork by its handle, whatever its class allows."""
    backend = Foreign()
    handle = BackendHandle(backend, FakeClock(), 1.0)  # type: ignore[arg-type]
    child = os.fork()
    if child == 0:
        os._exit(backend.forks)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    assert handle.name == "foreign"
