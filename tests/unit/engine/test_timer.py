"""The timer: one thread per process that runs the beats of all leases."""

from __future__ import annotations

import _thread
import functools
import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from tokencache._engine import timer
from tokencache._engine.timer import Heartbeat

if TYPE_CHECKING:
    from pathlib import Path


PATIENCE = 30.0


def test_the_timer_thread_ends_when_idle_and_starts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that fetches once an hour keeps no thread for it."""
    monkeypatch.setattr("tokencache._engine.timer._IDLE", 0.01)
    heart = Heartbeat()
    for _ in range(2):
        ran = threading.Event()
        heart.start(0.001, lambda _beat, ran=ran: ran.set() or False)  # type: ignore[misc]
        assert ran.wait(PATIENCE)
        while heart._running:
            threading.Event().wait(0.001)


def test_the_timer_thread_is_not_started_under_the_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where threads are greenlets, others run until a thread has started; they would meet the held lock."""
    heart = Heartbeat()
    held: list[bool] = []
    start = threading.Thread.start

    def noted(thread: threading.Thread) -> None:
        held.append(heart._changed._is_owned())  # type: ignore[attr-defined]
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", noted)
    heart.start(0.001, lambda _beat: False)
    assert held == [False]


def test_a_patched_process_gets_another_timer_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that was started before gevent patched must not share connections with greenlets."""
    before = timer._heartbeat
    monkeypatch.setattr(timer, "_heartbeat", before)
    timer.beat(3600, lambda _beat: False).stop()
    assert timer._heartbeat is before
    monkeypatch.setattr(_thread, "start_new_thread", functools.partial(_thread.start_new_thread))
    timer.beat(3600, lambda _beat: False).stop()
    assert timer._heartbeat is not before


def test_the_earliest_beat_runs_first() -> None:
    """A short beat does not wait for a longer one that started before; a stopped beat never runs."""
    heart = Heartbeat()
    order: list[str] = []
    done = threading.Event()
    long = heart.start(3600, lambda _beat: order.append("long") or False)  # type: ignore[func-returns-value]
    while not heart._changed._waiters:  # type: ignore[attr-defined]  # the thread sleeps until the long one is due
        threading.Event().wait(0.001)
    with heart._changed:  # it cannot run before it is stopped
        heart.start(0.0, lambda _beat: order.append("stopped") or False).stop()  # type: ignore[func-returns-value]
    heart.start(0.001, lambda _beat: order.append("short") or done.set() or False)  # type: ignore[func-returns-value]
    assert done.wait(PATIENCE)
    long.stop()
    assert order == ["short"]


def test_an_action_that_raises_does_not_end_the_thread() -> None:
    """If the action of one beat raises, the timer thread goes on with the other beats."""
    heartbeat, after = Heartbeat(), threading.Event()

    def defective(beat: object) -> bool:
        raise ValueError

    def sound(beat: object) -> bool:
        after.set()
        return False

    heartbeat.start(0.01, defective)
    heartbeat.start(0.05, sound)
    assert after.wait(PATIENCE)


FORKED = """
import os, threading
from tokencache._engine.timer import beat

def beats():
    ran = threading.Event()
    beat(0.001, lambda _beat: ran.set())
    return ran.wait({patience})

assert beats()
child = os.fork()
if not child:
    os._exit(0 if beats() else 3)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="systems that cannot fork have no such children")
def test_the_child_of_a_fork_has_a_heartbeat(tmp_path: Path) -> None:
    """INV-2: a slow fetch in a child keeps its lease, also if the parent's timer thread ran at the fork."""
    script = tmp_path / "forked.py"
    script.write_text(FORKED.format(patience=PATIENCE))
    command = [sys.executable, "-W", "ignore::DeprecationWarning", str(script)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=3 * PATIENCE, check=False)
    assert ran.stdout.split() == ["0"], ran.stderr
