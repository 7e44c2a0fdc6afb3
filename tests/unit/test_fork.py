"""The child of a fork: each enrolled object is reset once, stage by stage; a failing one does not stop the others."""

from __future__ import annotations

import _thread
import ctypes
import functools
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tokencache import TokenCache
from tokencache._engine.timer import Heartbeat
from tokencache._engine.warmer import Warmer
from tokencache._fork import LateLock, Stage, after_fork, enrol, notice_fork
from tokencache.backends.memory import MemoryBackend
from tokencache.testing.fakes import FakeClock, FakeProvider

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from tokencache.ports import Backend, Stored

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),  # threads of other tests may still run
]
PATIENCE = 30
ORDER = ["LOCKS", "CONNECTIONS", "SOURCES", "TIMERS", "WARMERS"]


class Member:
    """An object that records its name when it is reset."""

    def __init__(self, name: str, seen: list[str]) -> None:
        self.name = name
        self.seen = seen

    def reset(self) -> None:
        """Record it."""
        self.seen.append(self.name)


class Failing(Member):
    """An object whose reset fails."""

    def reset(self) -> None:
        """Fail."""
        super().reset()
        raise OSError(self.name)


def in_child(answer: Callable[[], object], fork: Callable[[], int] = os.fork) -> str:
    """Return the result of a function in the child of a fork, as text."""
    reads, writes = os.pipe()
    child = fork()
    if child == 0:  # pragma: no cover  (another process)
        signal.alarm(2 * PATIENCE)
        try:
            os.write(writes, str(answer()).encode())
        finally:
            os._exit(0)
    os.close(writes)
    with os.fdopen(reads) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said


@contextmanager
def held(*locks: threading.Lock | threading.Condition) -> Generator[None]:
    """Hold locks on another thread; the child of a fork does not have that thread."""
    taken, done = threading.Event(), threading.Event()

    def hold() -> None:
        with ExitStack() as stack:
            for lock in locks:
                stack.enter_context(lock)
            taken.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    taken.wait()
    try:
        yield
    finally:
        done.set()
        thread.join()


def until_quiet() -> None:
    """Wait until no flight's thread is left: one that is just ending may hold a lock of Python's own at the fork."""
    ends_at = time.monotonic() + PATIENCE
    while any(thread.name.startswith("tokencache-fake") for thread in threading.enumerate()):
        assert time.monotonic() < ends_at
        time.sleep(0.001)


def fork_in_c() -> int:
    """Fork as a C library does, without Python's own hooks."""
    return int(ctypes.PyDLL(None).fork())


def test_the_stages_run_in_order_of_stage_not_of_enrolment() -> None:
    """The order is locks, connections, sources, timers, warmers; each stage runs after the reset of those before."""
    seen: list[str] = []
    members = [Member(name, seen) for name in reversed(ORDER)]
    for member in members:
        enrol(Stage[member.name], member.reset)
    assert in_child(lambda: " ".join(seen)).split() == ORDER
    assert seen == []


def test_a_warmer_is_reset_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """INV-8: when a warmer starts in the child, the parent's locks, flights and timers are already gone."""
    clock = FakeClock()
    cache = TokenCache(MemoryBackend(clock=clock), clock=clock, wall=clock.wall)
    source = cache.source(FakeProvider(wall=clock.wall))
    source.token()
    heart, warmer = Heartbeat(), Warmer()
    flight, leads = source._flights.lead_or_join(clock(), clock() + 3600)
    assert leads
    handle, backend = cache._resolver.main, cache._backend
    assert isinstance(backend, MemoryBackend)
    source._fresh_until = float("inf")
    found: list[bool] = []

    def locks() -> list[threading.Lock | threading.Condition]:
        breakers = (handle.reads._lock, handle.writes._lock)
        return [source._lock, cache._lock, handle._lock(), *breakers, backend._changed, heart._changed]

    def look(_warmer: Warmer) -> None:
        found.extend(lock.acquire(blocking=False) for lock in locks())
        found.append(not source._flights.flying)
        found.append(source._fresh_until < float("inf"))

    monkeypatch.setattr(Warmer, "start", look)
    warmer._sources[source] = None
    with held(*locks()):
        assert in_child(lambda: (len(found), all(found))) == "(9, True)"
    assert source._flights.lead_or_join(clock(), clock() + 3600)[0] is flight


def test_one_call_resets_after_a_fork_done_in_c() -> None:
    """``after_fork()`` does the same as Python's hook, once for each process id, and nothing in the parent."""
    seen: list[str] = []
    member = Member("reset", seen)
    enrol(Stage.LOCKS, member.reset)
    after_fork()
    assert seen == []

    def child() -> list[str]:
        before = len(seen)
        after_fork()
        after_fork()
        return [str(before), *seen]

    assert in_child(child, fork_in_c) == "['0', 'reset']"
    assert in_child(child) == "['1', 'reset']"


def test_other_threads_wait_until_all_is_reset() -> None:
    """A thread of the child uses nothing while another one resets it; a reset may itself ask for a reset."""
    seen: list[str] = []
    began, done = threading.Event(), threading.Event()

    class Slow(Member):
        def reset(self) -> None:
            notice_fork()
            began.set()
            done.wait(PATIENCE)
            super().reset()

    member = Slow("reset", seen)
    enrol(Stage.LOCKS, member.reset)

    def child() -> list[str]:
        first = threading.Thread(target=notice_fork)
        second = threading.Thread(target=lambda: (began.wait(PATIENCE), notice_fork(), seen.append("second")))
        first.start()
        second.start()
        began.wait(PATIENCE)
        done.set()
        first.join()
        second.join()
        return seen

    assert in_child(child, fork_in_c) == "['reset', 'second']"


def test_a_failure_to_reset_stops_no_caller(caplog: pytest.LogCaptureFixture) -> None:
    """A third party's hook may raise: the caller of a token goes on, and the log says why."""
    member = Failing("bad", [])
    enrol(Stage.LOCKS, member.reset)

    def child() -> list[str]:
        notice_fork()
        notice_fork()
        return [record.message for record in caplog.records]

    assert in_child(child, fork_in_c) == "['an object could not be reset after a fork']"


def test_a_fork_that_may_be_patched_starts_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gunicorn patches after the fork: a thread that ran before would share connections with greenlets.

    The warmer goes on with the first flight of the child.
    """
    provider = FakeProvider()
    cache = TokenCache("memory://", observers=[])
    source = cache.source(provider, keep_warm=True)
    source.token()
    monkeypatch.setitem(sys.modules, "gevent", sys)
    until_quiet()

    def child() -> list[bool]:
        before = cache._warmer._thread is None  # type: ignore[union-attr]
        source.renew()
        return [before, cache._warmer._thread is not None]  # type: ignore[union-attr]

    try:
        assert in_child(child) == "[True, True]"
    finally:
        cache.close()


FLIGHT = """
import ctypes, os, signal, threading
from tokencache import TokenCache
from tokencache.testing.fakes import FakeProvider

login = FakeProvider()
login.gate.clear()
cache = TokenCache("memory://", observers=[])
source = cache.source(login)
caller = threading.Thread(target=source.token)
caller.start()
assert login.started.wait(30)
locks = [source._lock, source._flights._lock, cache._lock, cache._backend._changed]
for lock in locks:
    lock.acquire()
child = ctypes.PyDLL(None).fork()
if child == 0:
    signal.alarm(30)
    login.gate = threading.Event()
    login.gate.set()
    other = cache.source(lambda: {"access_token": "other", "expires_in": 60}, key="other")
    print(login.calls, source.token().value == "fake-token-1", other.token().value, flush=True)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
for lock in locks:
    lock.release()
login.gate.set()
caller.join()
print(login.calls)
"""

WARM = """
import contextlib, ctypes, os, signal, threading
from pathlib import Path
from tokencache import TokenCache
from tokencache._engine.timer import beat
from tokencache.testing.fakes import FakeProvider

login = FakeProvider(lifetime=20)
source = TokenCache("memory://", observers=[]).source(login, keep_warm=True)
source.token()
beat(0.001, lambda _beat: False)

def switches():
    found = {}
    for task in Path("/proc/self/task").glob("*"):
        with contextlib.suppress(FileNotFoundError):  # the thread has ended
            lines = (task / "status").read_text().splitlines()
            if task.name != str(os.getpid()):
                found[task.name] = [line for line in lines if "ctxt_switches" in line]
    return found

# A thread that waits for the GIL at a fork in C would be waited for in the child for ever, by the C library.
before = None
while (now := switches()) != before:
    before = now
    threading.Event().wait(0.2)
child = ctypes.PyDLL(None).fork()
if child == 0:
    signal.alarm(30)
    ran = threading.Event()
    login.lifetime = 1.0
    source.renew()
    while login.calls < 5:
        threading.Event().wait(0.01)
    beat(0.001, lambda _beat: bool(ran.set()))
    print(ran.wait(30), flush=True)
    os._exit(0)
print(os.waitpid(child, 0)[1])
"""


@pytest.mark.parametrize(
    ("program", "said"),
    [pytest.param(FLIGHT, "1 True other\n1\n", id="flight"), pytest.param(WARM, "True\n0\n", id="heartbeat, warmer")],
)
def test_a_child_forked_in_c_does_what_the_hook_does(tmp_path: Path, program: str, said: str) -> None:
    """INV-8: it joins no flight of its parent, waits for no lock, and has a timer and a warmer, as uWSGI's workers."""
    script = tmp_path / "forked.py"
    script.write_text(program)
    ran = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=2 * PATIENCE, check=False
    )
    assert ran.stdout == said, ran.stderr


def test_a_fork_waits_for_the_fetch_of_a_warmer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program does not choose when its warmers fetch; a module in mid-import could never be imported in the child."""
    provider = FakeProvider()
    provider.gate.clear()
    sleep = time.sleep

    def asleep(duration: float) -> None:
        provider.gate.set()
        sleep(duration)

    with TokenCache("memory://", observers=[]) as cache:
        source = cache.source(provider, keep_warm=True)
        assert provider.started.wait(PATIENCE)
        monkeypatch.setattr("tokencache._engine.warmer._LONGEST_WAIT", PATIENCE)
        monkeypatch.setattr("tokencache._engine.warmer._patient_at", 0.0)  # another test may have waited in vain
        monkeypatch.setattr("tokencache._engine.warmer.time.sleep", asleep)
        assert in_child(lambda: source._token.value) == "fake-token-1"


def test_a_fork_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """A provider that hangs holds one fork for some seconds, and the next ones not at all."""
    provider = FakeProvider()
    provider.gate.clear()
    monkeypatch.setattr("tokencache._engine.warmer._LONGEST_WAIT", 0.01)
    monkeypatch.setattr("tokencache._engine.warmer._patient_at", 0.0)
    with TokenCache("memory://", observers=[]) as cache:
        cache.source(provider, keep_warm=True)
        assert provider.started.wait(PATIENCE)
        assert in_child(lambda: "forked") == "forked"
        monkeypatch.setattr("tokencache._engine.warmer._is_fetching", lambda: pytest.fail("it waits again"))
        assert in_child(lambda: "forked") == "forked"
        provider.gate.set()


def test_a_late_lock_is_one_for_each_kind_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock that is held during a wait must be a greenlet's where threads are greenlets."""
    late, again = LateLock(), LateLock("RLock")
    lock = late()
    assert late() is lock
    assert isinstance(again(), type(threading.RLock()))
    monkeypatch.setattr(_thread, "start_new_thread", functools.partial(_thread.start_new_thread))
    assert late() is not lock
    assert late() is late()


def test_a_child_may_fork_again() -> None:
    """The child of a child is also reset."""
    seen: list[str] = []
    member = Member("reset", seen)
    enrol(Stage.LOCKS, member.reset)
    assert in_child(lambda: in_child(lambda: seen)) == "['reset', 'reset']"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_object_that_fails_does_not_stop_the_others() -> None:
    """If a third party's backend raises in its hook, sources and warmers are still reset."""
    seen: list[str] = []
    members = [Failing(name, seen) for name in ORDER]
    for member in members:
        enrol(Stage[member.name], member.reset)
    assert in_child(lambda: " ".join(seen)).split() == ORDER

    def child() -> str:
        try:
            after_fork()
        except OSError as error:
            return f"{error}: {len(seen)}"
        return "no error"

    assert in_child(child, fork_in_c) == "WARMERS: 5"


def test_enrolling_does_not_keep_an_object_alive() -> None:
    """An enrolled object is collected when its owner drops it."""
    member = Member("gone", [])
    enrol(Stage.LOCKS, member.reset)
    gone = weakref.ref(member)
    del member
    gc.collect()
    assert gone() is None


class Wrapper:
    """A backend that wraps another one and has no fork hook."""

    name = "wrapper"

    def __init__(self, inner: Backend) -> None:
        self._inner = inner

    def load(self, key: str) -> Stored | None:
        """Pass the call on."""
        return self._inner.load(key)


def test_a_wrapped_backend_is_reset() -> None:
    """A built-in backend enrols itself, so it is reset although its wrapper has no hook."""
    inner = MemoryBackend()
    wrapper = Wrapper(inner)
    with held(inner._changed):
        assert in_child(lambda: inner._changed.acquire(blocking=False) and wrapper.load("k")) == "None"


def test_one_module_registers_with_the_interpreter() -> None:
    """``os.register_at_fork`` is called once in all of src; otherwise the order would depend on imports."""
    src = Path(__file__).parents[2] / "src"
    found = [path for path in src.rglob("*.py") for _ in range(path.read_text().count("register_at_fork("))]
    assert found == [src / "tokencache" / "_fork.py"]
