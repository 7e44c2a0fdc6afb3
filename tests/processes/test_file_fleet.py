"""The file backend under real processes: killed, stopped, forked, and many at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, cast

import pytest

from tokencache.testing.probes import record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.live

PATIENCE = 60.0
LONG = 600.0
KEY = "qpay:access_token"

AGENT = """
import json, os, subprocess, sys
from tokencache.backends.file import FileBackend
from tokencache.ports import Cooldown, Found, Granted, LeaseGrant

KEY = "qpay:access_token"
backend = FileBackend(sys.argv[1])
leases = {}

def lease(owner, seen, ttl):
    reply = backend.lease(KEY, owner, "identity", seen and seen.encode(), ttl)
    if isinstance(reply, Granted):
        leases[owner] = reply.lease
        return ["granted", reply.lease.fence]
    return ["found", reply.stored.data.decode()] if isinstance(reply, Found) else ["held", reply.remaining]

def commit(owner, data):
    return backend.commit(leases[owner], data.encode(), 60.0)

def release(owner):
    backend.release(leases[owner])

def extend(owner, ttl):
    return backend.extend(leases[owner], ttl)

def wait(timeout):
    backend.wait(KEY, None, timeout)

def fork(stays):
    # The child says when it has let go of what it inherited, then ends, or stays until its standard input does.
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        backend.after_fork()
        os.write(tell, b".")
        if stays:
            os.read(int(sys.argv[2]), 1)
        os._exit(0)
    os.read(told, 1)
    if not stays:
        os.waitpid(child, 0)
    return child

def spawn():
    # A program that keeps every descriptor it is given, until ours ends.
    script = "import os, sys; os.read(int(sys.argv[1]), 1)"
    child = subprocess.Popen([sys.executable, "-c", script, sys.argv[2]], close_fds=False)
    return child.pid

def churn():
    seen = None
    while True:
        reply = backend.lease(KEY, "churner", "identity", seen, 60.0)
        if isinstance(reply, Granted):
            backend.extend(reply.lease, 60.0)
            seen = json.dumps({"accessToken": "x" * 5000, "expiresAt": 1, "fence": reply.lease.fence}).encode()
            backend.commit(reply.lease, seen, 60.0)
            print(flush=True)
        elif isinstance(reply, Found):
            seen = reply.stored.data

def descriptors():
    return len(os.listdir("/proc/self/fd"))

print("ready", flush=True)
for line in sys.stdin:
    name, *arguments = json.loads(line)
    print(json.dumps(globals()[name](*arguments)), flush=True)
"""

CONTENDER = """
import json, os, sys
from tokencache.backends.file import FileBackend
from tokencache.ports import Found, Granted

# Renews the token until it was renewed so many times, with a fetch that must never meet another one.
folder, marker, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
backend = FileBackend(folder)
owner = str(os.getpid())
seen, renewals, fetches = None, 0, 0
print("ready", flush=True)
sys.stdin.readline()
while renewals < rounds:
    reply = backend.lease("key", owner, "identity", seen, 30.0)
    if isinstance(reply, Found):
        seen = reply.stored.data
        renewals = json.loads(seen)["accessToken"]
    elif isinstance(reply, Granted):
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL))  # fails when another fetch is going on
        fetches += 1
        renewals += 1
        os.sched_yield()
        data = json.dumps({"accessToken": renewals, "expiresAt": 4102444800, "fence": reply.lease.fence}).encode()
        os.unlink(marker)
        assert backend.commit(reply.lease, data, 60.0)
        seen = data
    else:
        backend.wait("key", seen, 30.0)
print(json.dumps([fetches, len(os.listdir("/proc/self/fd"))]), flush=True)
"""


class Agent:
    """A process with its own backend that obeys commands from a pipe, and reports when each is done."""

    def __init__(self, script: str, *arguments: str, keep: tuple[int, ...] = ()) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", script, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=keep,
        )
        self.pid = self._process.pid

    def hear(self) -> str:
        """Return the next line of the process, within the test's patience."""
        assert self._process.stdout is not None
        watchdog = threading.Timer(PATIENCE, self._process.kill)
        watchdog.start()
        line = self._process.stdout.readline()
        watchdog.cancel()
        watchdog.join()
        assert line, "the process said nothing more"
        return line.strip()

    def tell(self, *command: object) -> None:
        """Send the process a command."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()

    def ask(self, *command: object) -> object:
        """Send the process a command and return its result."""
        self.tell(*command)
        return json.loads(self.hear())

    def lease(self, owner: str, seen: bytes | None = None, ttl: float = LONG) -> tuple[str, int]:
        """Let the process ask for the lease; return the kind of the answer, and its fence or time."""
        kind, detail = cast("list[object]", self.ask("lease", owner, seen and seen.decode(), ttl))
        return str(kind), cast("int", detail)

    def end(self) -> None:
        """Kill the process and wait for its end."""
        self._process.kill()
        self._process.wait(PATIENCE)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def stop(self) -> None:
        """Stop the process, and return when it has stopped."""
        os.kill(self.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOWAIT)

    def resume(self) -> None:
        """Resume the process."""
        os.kill(self.pid, signal.SIGCONT)


@pytest.fixture
def lifeline() -> Iterator[int]:
    """Yield the reading end of a pipe; grandchildren end when it closes."""
    reading, writing = os.pipe()
    yield reading
    os.close(writing)
    os.close(reading)


@pytest.fixture
def start(tmp_path: Path, lifeline: int) -> Iterator[Callable[[], Agent]]:
    """Yield a function that starts agents on one folder; each is killed at the end."""
    agents: list[Agent] = []

    def begin() -> Agent:
        agents.append(Agent(AGENT, str(tmp_path / "tokens"), str(lifeline), keep=(lifeline,)))
        assert agents[-1].hear() == "ready"
        return agents[-1]

    yield begin
    for agent in agents:
        agent.end()


def eventually_granted(agent: Agent, owner: str, seen: bytes | None = None, ttl: float = LONG) -> int:
    """Let an agent ask and wait in turn until it has the lease; return the fence."""
    while True:
        kind, detail = agent.lease(owner, seen, ttl)
        if kind == "granted":
            return detail
        assert kind == "held"
        agent.ask("wait", PATIENCE / 2)


def test_eight_processes_never_fetch_at_once(tmp_path: Path) -> None:
    """INV-2: each renewal is one fetch, by one process of eight, and no two fetches overlap."""
    fleet = [Agent(CONTENDER, str(tmp_path / "tokens"), str(tmp_path / "fetching"), "60") for _ in range(8)]
    try:
        for each in fleet:
            assert each.hear() == "ready"
        for each in fleet:
            each.tell("go")
        reports = [cast("list[int]", json.loads(each.hear())) for each in fleet]
    finally:
        for each in fleet:
            each.end()
    assert sum(fetches for fetches, _ in reports) == 60
    assert {opened for _, opened in reports} == {4}  # the three standard ones, and that of the listing


def test_another_process_takes_over_from_a_killed_holder_at_once(start: Callable[[], Agent]) -> None:
    """A SIGKILL in mid-fetch wakes the waiters, long before the lease would have ended."""
    holder, follower = start(), start()
    _, first = holder.lease("holder")
    assert follower.lease("follower")[0] == "held"
    follower.tell("wait", LONG)
    holder.end()
    follower.hear()
    kind, fence = follower.lease("follower")
    assert kind == "granted"
    assert fence > first


def test_a_stopped_holder_loses_the_lease_and_its_late_commit(start: Callable[[], Agent]) -> None:
    """INV-3: another process takes over the ended lease. The late commit is refused; the late release is ignored."""
    holder, follower, third = start(), start(), start()
    _, late = holder.lease("holder", ttl=0.3)
    holder.stop()
    fence = eventually_granted(follower, "follower")
    assert fence > late
    assert follower.ask("commit", "follower", record(fence, "new").decode()) is True
    seen = record(fence, "new")
    assert third.lease("third", seen)[0] == "granted"
    holder.resume()
    assert holder.ask("commit", "holder", record(late, "old").decode()) is False
    assert holder.ask("extend", "holder", LONG) is False
    holder.ask("release", "holder")
    assert follower.lease("follower", seen)[0] == "held"
    assert third.ask("extend", "third", LONG) is True


def test_a_stopped_waiter_blocks_no_process(start: Callable[[], Agent]) -> None:
    """INV-8: a process that is stopped while it waits holds no lock that others need."""
    holder, bystander, third = start(), start(), start()
    holder.lease("holder")
    bystander.tell("wait", LONG)
    bystander.stop()
    assert third.lease("third")[0] == "held"
    holder.ask("release", "holder")
    assert third.lease("third")[0] == "granted"
    bystander.resume()


def test_a_forked_child_does_not_keep_its_parents_lease(start: Callable[[], Agent]) -> None:
    """A living child has dropped the parent's lock, so the parent's death frees the lease at once."""
    parent, follower = start(), start()
    parent.lease("parent")
    child = parent.ask("fork", True)
    assert follower.lease("follower")[0] == "held"
    follower.tell("wait", LONG)
    parent.end()
    follower.hear()
    assert follower.lease("follower")[0] == "granted"
    os.kill(cast("int", child), 0)


def test_a_forked_child_does_not_end_its_parents_lease(start: Callable[[], Agent]) -> None:
    """A short-lived child changes nothing: the parent's lease holds and can be extended."""
    parent, follower = start(), start()
    parent.lease("parent")
    parent.ask("fork", False)
    assert follower.lease("follower")[0] == "held"
    assert parent.ask("extend", "parent", LONG) is True


def test_a_started_program_inherits_no_lease(start: Callable[[], Agent]) -> None:
    """No descriptor reaches another program; it would keep the lease after its starter is killed."""
    parent, follower = start(), start()
    parent.lease("parent")
    program = parent.ask("spawn")
    parent.end()
    assert follower.lease("follower")[0] == "granted"
    os.kill(cast("int", program), 0)


def test_holders_killed_one_after_another_leave_no_files(start: Callable[[], Agent], tmp_path: Path) -> None:
    """INV-2: after each of several kills exactly one process gets the lease, and the folder does not grow."""
    survivor = start()
    fences = []
    for number in range(4):
        holder = start()
        fences.append(eventually_granted(holder, f"holder-{number}"))
        assert survivor.lease("survivor")[0] == "held"
        holder.end()
    assert fences == sorted(set(fences))
    assert survivor.lease("survivor")[0] == "granted"
    assert len(list((tmp_path / "tokens").iterdir())) <= 4
    before = survivor.ask("descriptors")
    survivor.ask("release", "survivor")
    assert cast("int", survivor.ask("descriptors")) == cast("int", before) - 1


def test_kills_at_any_moment_leave_a_working_folder(start: Callable[[], Agent], tmp_path: Path) -> None:
    """INV-3: whenever a SIGKILL comes, the record is whole, the fence has grown, and the next lease is granted."""
    survivor = start()
    last = 0
    for turn in range(8):
        doomed = start()
        doomed.tell("churn")
        for _ in range(5 + turn):
            doomed.hear()
        doomed.end()
        kind, data = survivor.lease("survivor")
        assert kind == "found"
        table = json.loads(cast("str", data))
        assert table["accessToken"] == "x" * 5000
        fence = eventually_granted(survivor, "survivor", cast("str", data).encode())
        assert fence > table["fence"] > last
        last = fence
        survivor.ask("release", "survivor")
    assert len(list((tmp_path / "tokens").iterdir())) <= 7
