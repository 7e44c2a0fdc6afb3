"""``keep_warm``: a token is renewed without callers, and the renewals end when the cache is closed."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from tokencache import RefreshPolicy, Token, TokenCache
from tokencache._engine.warmer import Warmer
from tokencache.errors import ProviderUnavailable
from tokencache.testing.fakes import FakeProvider

if TYPE_CHECKING:
    from pathlib import Path

    from tokencache.ports import FetchContext

PATIENCE = 30.0
QUICK = RefreshPolicy(backoff=0.05, backoff_limit=0.1)


class Counted(FakeProvider):
    """A provider that sets ``asked`` after enough fetches."""

    def __init__(self, name: str = "counted", *, enough: int = 3, lifetime: float = 1.0) -> None:
        super().__init__(name, lifetime=lifetime)
        self.enough = enough
        self.asked = threading.Event()

    def fetch(self, context: FetchContext) -> Token:
        """Count, and give the next token."""
        if self.calls + 1 >= self.enough:
            self.asked.set()
        return super().fetch(context)


def warmers() -> list[threading.Thread]:
    """Return the threads that keep sources warm."""
    return [thread for thread in threading.enumerate() if thread.name == "tokencache-warm"]


def test_a_token_is_renewed_without_callers() -> None:
    """The first fetch and the renewals run without a caller; a later caller finds a usable token."""
    provider = Counted()
    with TokenCache("memory://") as cache:
        source = cache.source(provider, policy=QUICK, keep_warm=True)
        assert provider.asked.wait(PATIENCE)
        assert source.token().lifetime == pytest.approx(1.0)
        assert cache.source(provider, policy=QUICK, keep_warm=True) is source
        assert len(warmers()) == 1
    assert not warmers()


def test_a_configuration_can_set_keep_warm() -> None:
    """``keep_warm = true`` in a provider's table does the same."""
    table = {"type": "client_credentials", "token_url": "http://127.0.0.1:9/", "client_id": "a", "keep_warm": True}
    with TokenCache.from_config({"backend": "memory://", "providers": {"acme": table}}, observers=[]) as cache:
        cache.source("acme")
        assert len(warmers()) == 1
    assert not warmers()


def test_a_source_is_not_kept_warm_by_default() -> None:
    """Without ``keep_warm`` the cache starts neither a thread nor a fetch."""
    provider = Counted(enough=1)
    with TokenCache("memory://") as cache:
        cache.source(provider)
        assert not warmers()
    assert provider.calls == 0


def test_a_slow_provider_does_not_stall_another() -> None:
    """A hung provider blocks neither other renewals nor the closing of the cache."""
    slow, quick = Counted("slow"), Counted("quick")
    slow.gate.clear()
    cache = TokenCache("memory://")
    cache.source(slow, policy=QUICK, keep_warm=True)
    assert slow.started.wait(PATIENCE)
    cache.source(quick, policy=QUICK, keep_warm=True)
    assert quick.asked.wait(PATIENCE)
    cache.close()
    assert not warmers()
    slow.gate.set()


def test_a_failed_renewal_is_tried_again() -> None:
    """A provider that fails is asked again after its cooldown, without a caller."""
    provider = Counted(enough=4)
    provider.failure = ProviderUnavailable("not now")
    with TokenCache("memory://") as cache:
        cache.source(provider, policy=RefreshPolicy(backoff=0.05, backoff_limit=0.1, probe=0.05), keep_warm=True)
        assert provider.asked.wait(PATIENCE)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_the_child_of_a_fork_keeps_warm_too() -> None:
    """A worker that was forked after the source was made renews its token."""
    provider = Counted(enough=10**9)
    cache = TokenCache("memory://")
    cache.source(provider, policy=QUICK, keep_warm=True)
    assert provider.started.wait(PATIENCE)

    def child() -> None:
        provider.enough = provider.calls + 2
        provider.asked.clear()
        os._exit(0 if provider.asked.wait(PATIENCE) else 1)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(PATIENCE * 2)
    cache.close()
    assert process.exitcode == 0


def test_the_interpreter_exits_during_renewals(tmp_path: Path) -> None:
    """The interpreter does not wait for a renewal at exit, and prints nothing."""
    script = tmp_path / "script.py"
    script.write_text(
        "from tokencache import TokenCache\n"
        "from tokencache.testing.fakes import FakeProvider\n"
        "provider = FakeProvider('one', lifetime=1.0)\n"
        "TokenCache('memory://').source(provider, keep_warm=True)\n"
        "assert provider.started.wait(30)\n"
    )
    ran = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_the_thread_is_not_started_under_the_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where threads are greenlets, others run until a thread has started; they would meet the held lock."""
    held: list[bool] = []
    start = threading.Thread.start
    warmer = Warmer()

    def noted(thread: threading.Thread) -> None:
        if thread.name == "tokencache-warm":
            held.append(warmer._changed._is_owned())  # type: ignore[attr-defined]
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", noted)
    warmer.add(TokenCache("memory://", observers=[]).source(FakeProvider()))
    warmer.stop()
    assert held == [False]


def test_a_thread_that_could_not_be_started_is_started_with_the_next_flight(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the limit of threads, ``keep_warm`` is not an error."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError(thread.name)

    with TokenCache("memory://", observers=[]) as cache:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            source = cache.source(FakeProvider(), keep_warm=True)
        assert not warmers()
        source.token()
        assert len(warmers()) == 1
