"""Rows 1, 2, 3, 25, 27: holders that are killed, stopped or interrupted; forks, many callers, loops, interpreters."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, cast

import pytest

from tokencache import RefreshPolicy, Token, TokenCache, TokenSource
from tokencache.testing.fakes import FakeProvider
from tokencache_qpay import QPayProvider
from tokencache_qpay.testing import FakeQPay

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Outcome, Store
    from tokencache.ports import Backend, FetchContext

pytestmark = [pytest.mark.live, pytest.mark.usefixtures("tidy")]

PATIENCE = 30.0
SHORT = RefreshPolicy(lease=2.0)
STUBBORN = RefreshPolicy(lease=60.0)  # a lease that is not freed outlasts every caller's deadline
EVERY = pytest.mark.parametrize("store", ["memory", "file", "redis", "memcached"], indirect=True)
SHARED = pytest.mark.parametrize("store", ["file", "redis", "memcached"], indirect=True)
# Python's warnings about connections that were not closed before the end of their loop.
ABANDONED = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning", "ignore:loop is closed:ResourceWarning")

AGENT = """
import hashlib, json, logging, sys, threading
from tokencache import RefreshPolicy, TokenCache
from tokencache_qpay import QPayProvider

logging.basicConfig()
logging.getLogger("tokencache").setLevel(logging.DEBUG)
qpay, url, policy = sys.argv[1:]
cache = TokenCache(url)
provider = QPayProvider("TEST_MERCHANT", "123456", base_url=qpay, timeout=300.0)
source = cache.source(provider, policy=RefreshPolicy(**json.loads(policy)))
source.key

def halt(method, after):
    # Stand still for ever at this call of the backend, and say so.
    genuine = getattr(cache._backend, method)
    def halted(*arguments):
        if after:
            genuine(*arguments)
        print('"halted"', flush=True)
        threading.Event().wait()
    setattr(cache._backend, method, halted)

def crowd(call, size):
    got = []
    def ask():
        try:
            got.append(hashlib.sha256(call().value.encode()).hexdigest())
        except Exception as error:
            got.append(type(error).__name__)
    threads = [threading.Thread(target=ask) for _ in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [len(got), sorted(set(got))]

def token(size):
    return crowd(source.token, size)

def replace(size):
    refused = source.token()
    return crowd(lambda: source.replace(refused), size)

print('"ready"', flush=True)
for line in sys.stdin:
    name, *arguments = json.loads(line)
    print(json.dumps(globals()[name](*arguments)), flush=True)
"""


class Agent:
    """A process with a source of its own, which obeys commands from a pipe and logs everything."""

    def __init__(self, qpay: FakeQPay, store: Store, policy: dict[str, float]) -> None:
        arguments = [qpay.url, store.url, json.dumps(policy)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            [sys.executable, "-c", AGENT, *arguments], stdin=pipe, stdout=pipe, stderr=pipe, text=True
        )

    def tell(self, *command: object) -> None:
        """Send the process a command."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()

    def hear(self) -> object:
        """Return the next line of the process, within the test's patience."""
        assert self.process.stdout is not None
        watchdog = threading.Timer(PATIENCE, self.process.kill)
        watchdog.start()
        line = self.process.stdout.readline()
        watchdog.cancel()
        watchdog.join()
        assert line, "the process said nothing more"
        return json.loads(line)

    def crowd(self) -> tuple[int, list[str]]:
        """Return how many of the started callers have an answer, and the distinct digests."""
        count, distinct = cast("tuple[int, list[str]]", self.hear())
        return count, distinct

    def end(self) -> str:
        """Let the process end by itself; return what it wrote to stderr."""
        _, said = self.process.communicate(timeout=PATIENCE)
        assert self.process.returncode == 0, said
        assert "123456" not in said  # INV-9
        assert "eyJ" not in said
        return said

    def kill(self) -> None:
        """Kill the process."""
        self.process.kill()
        self.process.communicate()

    def stop(self) -> None:
        """Stop the process, and return when it has stopped."""
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WNOWAIT)


@pytest.fixture
def qpay() -> Iterator[FakeQPay]:
    """A QPay that answers at once, and whose tokens last an hour."""
    with FakeQPay(lifetime=3600) as fake:
        yield fake


@pytest.fixture
def start(qpay: FakeQPay, store: Store) -> Iterator[Callable[..., list[Agent]]]:
    """Yield a function that starts agents, several at once; each is killed at the end."""
    agents: list[Agent] = []

    def begin(count: int = 1, **policy: float) -> list[Agent]:
        begun = [Agent(qpay, store, {"lease": SHORT.lease, **policy}) for _ in range(count)]
        agents.extend(begun)
        for agent in begun:
            assert agent.hear() == "ready"
        return begun

    yield begin
    for agent in agents:
        agent.kill()


def source_on(backend: Backend, qpay: FakeQPay) -> TokenSource:
    """Return a source like those of the agents."""
    provider = QPayProvider("TEST_MERCHANT", "123456", base_url=qpay.url)
    return TokenCache(backend).source(provider, policy=SHORT)


@contextmanager
def asking(*calls: Callable[[], Token | None]) -> Iterator[list[Token | None]]:
    """Make each call on its own thread; at the end of the block all have answered, into the list."""
    got: list[Token | None] = []
    threads = [threading.Thread(target=lambda call=call: got.append(call())) for call in calls]
    for thread in threads:
        thread.start()
    yield got
    for thread in threads:
        thread.join(PATIENCE)
    assert len(got) == len(calls)


def digest(token: Token | None) -> str:
    """Return the digest that an agent reports for a token."""
    assert token is not None
    return hashlib.sha256(token.value.encode()).hexdigest()


# --- row 1


@SHARED
@pytest.mark.parametrize("moment", ["before the fetch", "in the fetch", "after the fetch, before commit"])
@pytest.mark.fault(1)
def test_another_process_takes_over_from_a_killed_holder(
    store: Store, outcome: Outcome, qpay: FakeQPay, start: Callable[..., list[Agent]], moment: str
) -> None:
    """INV-2, INV-8: at whatever step the kill happens, exactly one waiter takes over within the lease."""
    outcome.case = f"killed {moment}"
    # The system frees a dead holder's file lock at once, so there the lease may be long. Elsewhere the lease is long
    # enough to be read before it ends: outside of its fetch, a stopped holder's lease is not extended.
    lease, when = (60.0, "at once") if store.kind == "file" else (3.0, "when the lease had ended")
    (holder,), crowd = start(lease=lease), [source_on(store.open(), qpay) for _ in range(2)]
    if moment.startswith("in"):
        gate = qpay.hold()
    else:
        gate = nullcontext()
        holder.tell("halt", *(("lease", True) if moment.startswith("before") else ("commit", False)))
        assert holder.hear() is None
    with gate:
        holder.tell("token", 1)
        if moment.startswith("in"):
            qpay.wait_for_logins(1)
        else:
            assert holder.hear() == "halted"
        before = qpay.logins
        slot = store.open().inspect(crowd[0].key)
        assert slot.stored is None
        assert slot.owner is not None
        assert slot.remaining is not None
        assert slot.remaining <= lease
        holder.kill()
        with outcome.healing(), asking(*(source.token for source in crowd for _ in range(8))) as got:
            qpay.wait_for_logins(before + 1)
            if moment.startswith("in"):
                qpay._on_loop(qpay._gate.set)
    assert len(set(got)) == 1
    assert qpay.logins == before + 1
    assert store.open().inspect(crowd[0].key).owner is None
    fence = store.fence(crowd[0].key)
    crowd[0].renew()
    assert store.fence(crowd[0].key) > fence > 0
    outcome.record(f"the token, {when}", calls=before + 1)


# --- row 2


@SHARED
@pytest.mark.fault(2, case="stopped in the fetch")
def test_the_commit_of_a_stopped_holder_is_refused(
    store: Store, outcome: Outcome, qpay: FakeQPay, start: Callable[..., list[Agent]]
) -> None:
    """INV-3: another process takes over the ended lease. The late commit is refused; the late release is ignored."""
    (holder,), source = start(), source_on(store.open(), qpay)
    with qpay.hold():
        holder.tell("token", 1)
        qpay.wait_for_logins(1)
        holder.stop()
        with outcome.healing(), asking(source.token) as got:
            qpay.wait_for_logins(2)
            qpay._on_loop(qpay._gate.set)
    fence, logins = store.fence(source.key), qpay.logins
    held = ExitStack()
    held.enter_context(qpay.hold())  # the login does not answer before this block ends
    with asking(source.renew) as newer, held:
        qpay.wait_for_logins(3)
        owner = store.open().inspect(source.key).owner
        assert owner is not None
        holder.process.send_signal(signal.SIGCONT)
        assert holder.crowd() == (1, [digest(got[0])])  # the token in the store, not its own
        assert store.fence(source.key) == fence
        assert store.open().inspect(source.key).owner == owner
    assert newer != got
    assert store.fence(source.key) > fence
    assert "newer token was stored" in holder.end()
    outcome.record("the newer token, the late holder too", calls=logins)


# --- row 3


@EVERY
@pytest.mark.fault(3, case="its task is cancelled")
def test_a_cancelled_caller_leaves_its_flight_to_the_others(store: Store, outcome: Outcome) -> None:
    """INV-8: the leader of a flight is cancelled; the fetch goes on for the others, here and in another process."""
    provider = FakeProvider()
    caches = [TokenCache(store.open() if store.kind == "memory" else store.url, policy=STUBBORN) for _ in range(2)]
    one, two = (cache.source(provider) for cache in caches)
    provider.gate.clear()

    async def main() -> list[Token]:
        leader = asyncio.create_task(one.atoken())
        while not provider.started.is_set():
            await asyncio.sleep(0)
        others = [asyncio.create_task(source.atoken()) for source in (one, two)]
        await asyncio.sleep(0)
        leader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leader
        provider.gate.set()
        tokens = [*await asyncio.gather(*others), await one.atoken()]
        for cache in caches:
            await cache.aclose()
        return tokens

    tokens = asyncio.run(main())
    assert len(set(tokens)) == 1
    assert provider.calls == 1
    assert store.open().inspect(one.key).owner is None
    outcome.record("the token; the cancelled caller alone is cancelled", calls=provider.calls)


class TornProvider(FakeProvider):
    """A provider whose first fetch is interrupted in its thread when the gate opens."""

    def fetch(self, context: FetchContext) -> Token:
        """Raise an exception that no driver treats as an answer."""
        token = super().fetch(context)
        if self.calls == 1:
            raise SystemExit
        return token


@EVERY
@pytest.mark.fault(3, case="its generator is closed")
def test_an_interrupted_fetch_frees_its_lease(store: Store, outcome: Outcome) -> None:
    """INV-8: a flow that is closed in mid-fetch gives its lease back; the waiters make one more fetch."""
    provider = TornProvider()
    sources = [TokenCache(store.open(), policy=STUBBORN).source(provider) for _ in range(2)]
    provider.gate.clear()
    with asking(*(source.token for source in sources * 4)) as got:
        assert provider.started.wait(PATIENCE)
        provider.gate.set()
    assert len(set(got)) == 1
    assert provider.together == 1
    assert store.open().inspect(sources[0].key).owner is None
    outcome.record("the token, after a second fetch", calls=provider.calls)


INTERRUPTED = """
import linecache, random, signal, sys, time
from tokencache import TokenCache
from tokencache.ports import Granted
from tokencache.testing.fakes import FakeProvider
from tokencache.testing.probes import record

cache, provider, draw = TokenCache(sys.argv[1], observers=[]), FakeProvider(), random.Random(3)
backend, source = cache._backend, cache.source(provider)
grant = backend.lease("other", "owner", "identity", None, 60.0).lease
planted = record(grant.fence, "another's")
backend.commit(grant, planted, 60.0)
fired = False

def interrupt(*_):
    global fired
    if not fired:
        fired = True
        raise KeyboardInterrupt

def right():
    return source.token() and source.status().stored == "ours" and backend.load("other").data == planted

signal.signal(signal.SIGALRM, interrupt)
token = source.token()
wrong = 0
for turn in range(50):
    fired = False
    try:
        signal.setitimer(signal.ITIMER_REAL, draw.uniform(1e-5, 1.5e-3))
        source.invalidate(token) if turn % 2 else source.renew()
        while not fired:
            time.sleep(0.0001)
    except (KeyboardInterrupt, RuntimeError):  # Python's own locks make the latter of an interrupt that falls into them
        assert fired
    token = source.token()
    wrong += not right()

left = 0

def trace(frame, event, _):
    # As if a signal came at one line, each time at another one. It cannot come between a lock and its release.
    global left
    if "tokencache" in frame.f_code.co_filename:
        line = linecache.getline(frame.f_code.co_filename, frame.f_lineno).lstrip()
        left -= event == "line" and not line.startswith("with ")
        if left < 0:
            raise KeyboardInterrupt
    return trace

def stumbles(call):
    # Signals come to the main thread alone: interrupt it at each of its lines in turn; return at how many.
    global left, wrong
    for lines in range(1000):
        left, through = lines, False
        try:
            sys.settrace(trace)
            call()
            through = True
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)
        if through:
            return lines
        wrong += not right()

lines = stumbles(lambda: source.invalidate(source.token())), stumbles(source.renew)
print(wrong, provider.together, provider.calls <= 52 + sum(lines), *lines)
"""


@EVERY
@pytest.mark.fault(3, case="KeyboardInterrupt at any moment")
def test_interrupted_callers_leave_the_source_usable(store: Store, outcome: Outcome) -> None:
    """INV-8: after interruptions at random, and at each line that a caller runs, the next answers are right."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("COV")}  # tracing is too slow
    command = [sys.executable, "-c", INTERRUPTED, store.url]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=2 * PATIENCE, check=False, env=plain)
    *answers, invalidating, renewing = ran.stdout.split()
    assert answers == ["0", "1", "True"], ran.stderr[-2000:]
    assert int(invalidating) > 20
    assert int(renewing) > 20
    assert "fake-token" not in ran.stderr
    outcome.record("KeyboardInterrupt, and the right token at the next call", calls="at most one an interruption")


# --- row 25


@SHARED
@pytest.mark.fault(25, case="threads of several processes")
def test_five_hundred_callers_report_one_token(
    store: Store, outcome: Outcome, qpay: FakeQPay, start: Callable[..., list[Agent]]
) -> None:
    """INV-6: 500 callers in 4 processes report the same token as refused and get the same new one from one fetch."""
    agents = start(4)
    for agent in agents:
        agent.tell("token", 1)
    ((_, refused),) = {(count, *distinct) for count, distinct in (agent.crowd() for agent in agents)}
    fence = store.fence(source_on(store.open(), qpay).key)
    for agent in agents:
        agent.tell("replace", 125)
    answers = [agent.crowd() for agent in agents]
    assert [count for count, _ in answers] == [125] * 4
    ((replacement,),) = {tuple(distinct) for _, distinct in answers}
    assert replacement != refused
    assert qpay.logins == 2
    assert store.fence(source_on(store.open(), qpay).key) > fence
    for agent in agents:
        agent.end()
    outcome.record("the same other token, all 500", calls=qpay.logins - 1)


@pytest.mark.parametrize("store", ["memory"], indirect=True)
@pytest.mark.fault(25, case="threads")
def test_five_hundred_threads_report_one_token(store: Store, outcome: Outcome) -> None:
    """INV-6: the same in one process."""
    provider = FakeProvider()
    source = TokenCache(store.open()).source(provider)
    refused = source.token()
    with asking(*[lambda: source.replace(refused)] * 500) as got:
        pass
    assert len(set(got)) == 1
    assert got[0] not in {None, refused}
    assert provider.calls == 2
    outcome.record("the same other token, all 500", calls=provider.calls - 1)


# --- row 27


@EVERY
@pytest.mark.fault(27, case="fork after use, in mid-flight")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_parent_and_child_both_work_after_a_fork(store: Store, outcome: Outcome, qpay: FakeQPay) -> None:
    """INV-8: a flight is under way at the fork; child and parent then ask and renew, independently of each other."""
    source = source_on(store.open(), qpay)
    first = source.token()
    with qpay.hold(), asking(source.renew) as renewed:
        qpay.wait_for_logins(2)
        child = os.fork()
        if child == 0:
            good = False
            try:
                asked = all(source.status().stored == "ours" for _ in range(50)) and source.token() == first
                good = asked and source.renew(20) != first
            finally:
                os._exit(0 if good else 1)
        assert all(source.status().stored == "ours" for _ in range(50))
        assert source.token() == first
        qpay._on_loop(qpay._gate.set)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert renewed[0] != first
    assert source.token() in renewed
    outcome.record("the token, parent and child, and both renew", calls=qpay.logins)


@EVERY
@ABANDONED
@pytest.mark.fault(27, case="storm of threads and loops")
def test_two_hundred_threads_and_tasks_on_three_loops_fetch_once(store: Store, outcome: Outcome) -> None:
    """INV-2: 200 threads and 200 tasks on 3 event loops, one cold source, one fetch."""
    provider = FakeProvider()
    source = TokenCache(store.open()).source(provider)
    together = threading.Barrier(203)
    got: list[Token] = []

    def ask() -> None:
        together.wait(PATIENCE)
        got.append(source.token())

    def loop(tasks: int) -> None:
        async def main() -> None:
            together.wait(PATIENCE)
            got.extend(await asyncio.gather(*(source.atoken() for _ in range(tasks))))

        asyncio.run(main())

    threads = [threading.Thread(target=ask) for _ in range(200)]
    threads += [threading.Thread(target=loop, args=(tasks,)) for tasks in (67, 67, 66)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert len(got) == 400
    assert len(set(got)) == 1
    outcome.record("the same token, all 400", calls=provider.calls)
    assert provider.calls == 1


@EVERY
@ABANDONED
@pytest.mark.fault(27, case="event loop ends in mid-flight")
def test_a_loop_that_ends_gives_its_lease_back(store: Store, outcome: Outcome) -> None:
    """INV-8: the end of a loop cancels its flight; the lease is free at once, and a thread fetches."""
    provider = FakeProvider()
    source = TokenCache(store.open(), policy=STUBBORN).source(provider)
    provider.gate.clear()

    async def main() -> None:
        task = asyncio.create_task(source.atoken())
        while not provider.started.is_set():
            await asyncio.sleep(0)
        assert not task.done()

    asyncio.run(main())
    assert store.open().inspect(source.key).owner is None
    provider.gate.set()
    with outcome.healing():
        assert source.token().value == "fake-token-1"
    assert provider.calls == 2
    outcome.record("the token, after a second fetch", calls=provider.calls)


@EVERY
@ABANDONED
@pytest.mark.fault(27, case="event loop closed in mid-flight")
def test_a_closed_loop_leaves_no_caller_stuck(store: Store, outcome: Outcome) -> None:
    """INV-8: a loop is closed while its flight runs and is not cancelled; a thread takes over when the lease ends."""
    provider = FakeProvider()
    source = TokenCache(store.open(), policy=SHORT).source(provider)
    provider.gate.clear()

    async def main() -> None:
        while not provider.started.is_set():
            await asyncio.sleep(0)

    loop = asyncio.new_event_loop()
    task = loop.create_task(source.atoken())
    loop.run_until_complete(main())
    loop.close()
    provider.gate.set()
    with outcome.healing():
        assert source.token().value == "fake-token-1"
    assert not task.done()
    assert provider.calls == 2
    outcome.record("the token, when the lease had ended", calls=provider.calls)


@SHARED
@pytest.mark.fault(27, case="interpreter exits during a background refresh")
def test_an_interpreter_exits_in_mid_refresh(
    store: Store, outcome: Outcome, qpay: FakeQPay, start: Callable[..., list[Agent]]
) -> None:
    """INV-8: a process ends at once and cleanly during a background renewal; the next process renews instead."""
    patient = 4 * PATIENCE  # a wait for the fetch would show
    (agent,) = start(window=1e6, window_fraction=0.99, jitter=0.0, timeout=patient, fetch_timeout=patient)
    source = source_on(store.open(), qpay)
    agent.tell("token", 1)
    _, first = agent.crowd()
    with qpay.hold():
        agent.tell("token", 1)
        assert agent.crowd() == (1, first)
        qpay.wait_for_logins(2)
        said = agent.end()
        assert "Error" not in said
        assert "Traceback" not in said
    assert [digest(source.token())] == first
    fence = store.fence(source.key)
    with outcome.healing():
        assert [digest(source.renew())] != first
    assert store.fence(source.key) > fence
    assert qpay.logins == 3
    outcome.record("the current token; the exit waits for nothing", calls=qpay.logins)
