"""The demo's machinery: its figures can be bad, and it ends whatever happens to its processes."""

from __future__ import annotations

import io
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing
from typing import TYPE_CHECKING, cast

import pytest
from rich.console import Console

from tokencache import DeadlineExceeded, RefreshPolicy, Token, TokenCache, TokenCacheError, TokenSource
from tokencache.cli import demo
from tokencache.cli._demo_worker import DemoOrders
from tokencache.cli._fleet import Fleet
from tokencache.cli._worker_load import Tally
from tokencache.plugins import open_backend

if TYPE_CHECKING:
    from pathlib import Path


def orders(backend: str, *, threads: int = 1, seconds: float = 0.0) -> DemoOrders:
    """Orders for a provider that cannot be reached."""
    return DemoOrders(
        backend=backend,
        namespace="test:",
        base_url="http://127.0.0.1:9",
        client_id="merchant",
        client_secret="planted-demo-secret",
        threads=threads,
        patience=0.1,
        seconds=seconds,
    )


def stage(backend: str, width: int = 200) -> tuple[demo.Stage, io.StringIO]:
    """A stage whose console is a text in memory."""
    text = io.StringIO()
    return demo.Stage(Console(file=text, width=width), backend), text


class Always:
    """A source that gives one token, or one error."""

    def __init__(self, answer: Token | TokenCacheError, pause: float = 0.0) -> None:
        self.answer = answer
        self.pause = pause

    def token(self) -> Token:
        """Give the answer after the pause."""
        time.sleep(self.pause)
        if isinstance(self.answer, TokenCacheError):
            raise self.answer
        return self.answer


@pytest.mark.parametrize("worker", ["_demo_worker", "_bench_worker", "_verify_worker"])
def test_a_process_without_orders_ends_quietly(worker: str) -> None:
    """If its parent ended before it wrote the orders, after Ctrl-C, a process ends with 1 and no traceback."""
    ran = subprocess.run(
        [sys.executable, "-m", f"tokencache.cli.{worker}"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (1, "", "")


def test_a_tally_counts_a_late_token_a_wait_and_an_error() -> None:
    """INV-1: a token whose usable end had passed before the call counts as late; waits and errors are counted too."""
    tally, policy, now = Tally(), RefreshPolicy(), time.time()
    good = Token("good", issued_at=now, expires_at=now + 100)
    ending = Token("ending", issued_at=now - 100, expires_at=now + 5)
    for answer in (good, ending, DeadlineExceeded("no time")):
        tally.ask(cast("TokenSource", Always(answer)), policy, patience=60.0)
    assert (tally.calls, tally.waited, tally.late, tally.errors) == (2, 0, 1, ["no time"])
    assert len(tally.tokens) == 2
    tally.ask(cast("TokenSource", Always(good, pause=0.02)), policy, patience=0.01)
    assert (tally.waited, tally.slowest >= 0.02) == (1, True)


def test_a_tally_and_orders_show_no_secret() -> None:
    """INV-9: the demo neither keeps nor shows the credential in the orders or a token's value."""
    tally = Tally()
    value = "planted-token-value"
    token = Token(value, issued_at=time.time(), expires_at=time.time() + 100)
    tally.ask(cast("TokenSource", Always(token)), RefreshPolicy(), 1.0)
    assert value not in repr(tally)
    assert "planted-demo-secret" not in repr(orders("memory://"))


@pytest.mark.slow
def test_processes_that_share_nothing_break_the_promise_of_one_login(monkeypatch: pytest.MonkeyPatch) -> None:
    """INV-2: on memory://, which is not shared, the scene counts a login per process and reports it."""
    monkeypatch.setattr(demo, "PROCESSES", 2)
    set_up, text = stage("memory://")
    demo.cold_fleet(set_up)
    (promise,) = set_up.promises
    assert not promise.kept
    assert "2 logins" in promise.figure
    demo._close(set_up, 1.0)
    assert "BROKEN" in text.getvalue()


@pytest.mark.slow
def test_a_caller_that_waits_breaks_the_promise(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """If every call counts as a wait, the scene reports it: its zero is a measured figure."""
    monkeypatch.setattr(demo, "PATIENCE", -1.0)
    monkeypatch.setattr(demo, "LOAD", 2.5)
    set_up, _ = stage((tmp_path / "tokens").as_uri())
    demo.expiry_under_load(set_up)
    verdicts = {promise.text: promise.kept for promise in set_up.promises}
    assert verdicts == {"no wait at renewal": False, "never a late token": True, "one login per renewal": True}


@pytest.mark.slow
def test_callers_without_a_token_end_the_demo_with_their_error(tmp_path: Path) -> None:
    """The demo reports the first error of the fleet, with the number of callers without a token."""
    with Fleet(demo.WORKER, orders((tmp_path / "tokens").as_uri(), threads=2), 1) as fleet:
        fleet.muster(lambda _: None)
        report = fleet.run(lambda _: None)
    assert report.calls == 0
    with pytest.raises(TokenCacheError, match=r"2 callers of the demo got no token. The first said: \[qpay\]"):
        demo._fail_loudly(report.errors)
    demo._fail_loudly([])


def test_a_process_that_ends_early_is_noticed(capfd: pytest.CaptureFixture[str]) -> None:
    """INV-8: a process that cannot start ends the demo with an error; its own one line is on stderr."""
    with pytest.raises(TokenCacheError, match="ended early"), Fleet(demo.WORKER, orders("nonsense"), 1) as fleet:
        fleet.muster(lambda _: None)
    errors = capfd.readouterr().err
    assert errors.startswith("a process of the demo: ")
    assert "Traceback" not in errors


def test_processes_that_do_not_report_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """INV-8: the demo stops waiting for silent processes when its patience ends, and kills them."""
    started: list[subprocess.Popen[str]] = []
    popen = subprocess.Popen

    def silent(*_: object, **settings: object) -> subprocess.Popen[str]:
        started.append(popen([sys.executable, "-c", "import time; time.sleep(600)"], **settings))  # type: ignore[call-overload]
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", silent)
    with (
        pytest.raises(TokenCacheError, match="in time"),
        Fleet(demo.WORKER, orders("memory://"), 1, patience=0.0) as fleet,
    ):
        fleet.muster(lambda _: None)
    assert started[0].poll() is not None


def test_a_process_that_stays_after_its_work_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """INV-8: a process that does not end after its work is killed later, and its reports still count."""
    report = '{"calls": 1, "waited": 0, "late": 0, "slowest": 0, "tokens": ["t"], "errors": [], "done": "all"}'
    code = f"import time\nprint('{{\"ready\": true}}', flush=True)\nprint('{report}', flush=True)\ntime.sleep(600)"
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda _, **settings: popen([sys.executable, "-c", code], **settings))
    monkeypatch.setattr("tokencache.cli._fleet.FAREWELL", 0.1)
    with Fleet(demo.WORKER, orders("memory://"), 1) as fleet:
        fleet.muster(lambda _: None)
        assert fleet.run(lambda _: None).calls == 1
    assert fleet._workers[0].returncode is not None


def test_processes_of_the_fleet_ignore_interrupts_from_their_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """INV-8: Ctrl-C reaches all of the terminal's processes; those of the fleet ignore it, also while they load."""
    masks: list[set[signal.Signals]] = []

    def refuse(*_: object, **__: object) -> None:
        masks.append({signal.Signals(each) for each in signal.pthread_sigmask(signal.SIG_BLOCK, ())})
        message = "no more processes"
        raise OSError(message)

    monkeypatch.setattr(subprocess, "Popen", refuse)
    with pytest.raises(OSError, match="no more"):
        Fleet(demo.WORKER, orders("memory://"), 1)
    assert signal.SIGINT in masks[0]
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


@pytest.mark.parametrize("stopped_by", ["an interrupt", "a limit of processes"])
def test_a_fleet_that_cannot_be_made_leaves_no_process(monkeypatch: pytest.MonkeyPatch, stopped_by: str) -> None:
    """INV-8: if the fleet cannot be completed, for any reason, the started processes end."""
    started: list[subprocess.Popen[str]] = []
    popen = subprocess.Popen

    def silent(*_: object, **settings: object) -> subprocess.Popen[str]:
        if stopped_by == "a limit of processes" and len(started) == 2:
            raise BlockingIOError
        started.append(popen([sys.executable, "-c", "import time; time.sleep(600)"], **settings))  # type: ignore[call-overload]
        return started[-1]

    def interrupted(process: subprocess.Popen[str], line: str) -> None:
        assert process.stdin is not None
        process.stdin.write(line)
        process.kill()
        process.wait()
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", silent)
    if stopped_by == "an interrupt":
        monkeypatch.setattr(Fleet, "_tell", staticmethod(interrupted))
    try:
        with pytest.raises(KeyboardInterrupt if stopped_by == "an interrupt" else BlockingIOError):
            Fleet(demo.WORKER, orders("memory://"), 3)
        assert len(started) == (3 if stopped_by == "an interrupt" else 2)
        assert all(process.returncode is not None for process in started)
    finally:
        for process in started:
            process.kill()


def test_an_interrupt_during_the_start_loses_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """INV-8: an interrupt is delayed until all processes are known, whichever thread the system delivers it to."""
    started: list[subprocess.Popen[str]] = []
    popen, over = subprocess.Popen, threading.Event()
    other = threading.Thread(target=over.wait)
    other.start()
    arrived, told = socket.socketpair()
    told.setblocking(False)

    def interrupted(*_: object, **settings: object) -> subprocess.Popen[str]:
        started.append(popen([sys.executable, "-c", "import time; time.sleep(600)"], **settings))  # type: ignore[call-overload]
        if len(started) == 1:
            assert other.ident is not None
            signal.pthread_kill(other.ident, signal.SIGINT)
            arrived.recv(1)
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", interrupted)
    before = signal.set_wakeup_fd(told.fileno())
    try:
        with pytest.raises(KeyboardInterrupt):
            Fleet(demo.WORKER, orders("memory://"), 2)
    finally:
        signal.set_wakeup_fd(before)
        over.set()
        other.join()
        arrived.close()
        told.close()
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [-signal.SIGKILL] * 2


@pytest.mark.parametrize("worker", ["_demo_worker", "_bench_worker", "_verify_worker"])
@pytest.mark.parametrize("sent", ["", '{"threads": 1, "pati'], ids=["nothing", "half a line"])
def test_a_process_whose_parent_was_killed_ends_quietly(worker: str, sent: str) -> None:
    """INV-8: a parent that was killed before it sent its orders leaves neither a process nor a traceback."""
    command = [sys.executable, "-m", f"tokencache.cli.{worker}"]
    ran = subprocess.run(command, input=sent, capture_output=True, text=True, check=False, timeout=60)
    assert (ran.returncode, ran.stdout, ran.stderr) == (1, "", "")


def test_deleting_a_scenes_record_fetches_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record is deleted without reading its token, which may be due, or have ended, and cost a login."""
    scene, _ = stage(tmp_path.as_uri())

    def refuse(*_: object) -> None:
        raise AssertionError

    with scene.fake() as (fake, provider):
        with TokenCache(scene.backend, namespace="test:") as cache:
            key = cache.source(provider).key
            cache.source(provider).token()
        with closing(open_backend(scene.backend)) as backend:
            assert backend.load(key) is not None
            monkeypatch.setattr(TokenSource, "token", refuse)
            demo._forget(scene, provider, "test:")
            assert backend.load(key) is None
        assert fake.logins == 1
