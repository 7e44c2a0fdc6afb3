"""`tokencache tail`: each change of a key by the fleet is one line, without secrets and without taking part."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from tokencache import BackendUnavailable, ProviderUnavailable, TokenCache
from tokencache.backends.memory import MemoryBackend
from tokencache.cli._exit import Exit
from tokencache.cli.app import app
from tokencache.cli.tail import View, changes, follow, look, view_of
from tokencache.ports import Cooldown, Granted, Slot, Stored
from tokencache.testing.fakes import FakeProvider

if TYPE_CHECKING:
    from tokencache_qpay.testing import FakeQPay

SECRET = "planted-client-secret-7f3a"
KEY = "fake-key"
PATIENCE = 30.0
NOW = 1_800_000_000.0
AWAY = BackendUnavailable("it is away")
run = CliRunner()


def record(fence: int, reason: str | None = "cold", *, left: float = 3600.0) -> Stored:
    """Return a record as a backend has it."""
    fields = {"accessToken": SECRET, "expiresAt": NOW + left, "fence": fence, "reason": reason, "lifetime": 3600.0}
    return Stored(json.dumps(fields).encode(), left - 60)


def cooldown(attempt: int, *, permanent: bool = False) -> Cooldown:
    """Return a cooldown."""
    return Cooldown("identity", 4.0, permanent, attempt, "it said\x1b[2J no")


EMPTY = Slot(None)
FULL = Slot(record(5))


@pytest.mark.parametrize(
    ("before", "after", "passed", "told"),
    [
        (None, EMPTY, 0.0, [("empty", "no token")]),
        (None, FULL, 0.0, [("present", "fence 5, expires in 1 h")]),
        (None, Slot(None, "abc", 3.0), 0.0, [("empty", ""), ("fetching", "abc holds the lease, for 3.0 s at most")]),
        (FULL, FULL, 0.2, []),
        (EMPTY, Slot(None, "abc", 3.0), 0.2, [("fetching", "abc")]),
        (Slot(None, "abc", 2.0), Slot(None, "abc", 1.8), 0.2, []),
        (Slot(None, "abc", 2.0), Slot(None, "abc", 3.0), 0.2, [("prolonged", "abc is still fetching")]),
        (Slot(None, "another program", 1.0), Slot(None, "another program", 1.0), 5.0, []),
        (Slot(None, "abc", 2.0), Slot(record(6, "cold")), 0.2, [("stored", "by abc: none was stored; fence 6")]),
        (FULL, Slot(record(6, "refresh")), 0.2, [("stored", "renewed ahead of expiry; fence 6")]),
        (FULL, Slot(record(6, "rejected")), 0.2, [("stored", "replaced after a 401")]),
        (FULL, Slot(record(6, "renew")), 0.2, [("stored", "as a caller asked")]),
        (FULL, Slot(Stored(b'{"accessToken": "x"}', None)), 0.2, [("stored", "no fence")]),
        (FULL, Slot(Stored(b"\x00 no JSON", None)), 0.2, [("stored", "no fence")]),
        (FULL, EMPTY, 0.2, [("dropped", "58 min 59 s before its end: refused with a 401")]),
        (Slot(record(5, left=60.1)), EMPTY, 0.2, [("ended", "at its end")]),
        (Slot(None, "abc", 2.0), EMPTY, 2.0, [("freed", "lease of abc ended, with no newer token")]),
        (Slot(None, "abc", 0.1), Slot(None, "def", 3.0), 0.2, [("freed", "abc"), ("fetching", "def")]),
        (Slot(None, "abc", 2.0), Slot(record(6), "def", 3.0), 0.2, [("stored", "by abc"), ("fetching", "def")]),
        (
            Slot(None, "abc", 2.0),
            Slot(None, None, 4.0, cooldown(2)),
            0.2,
            [("cooldown", "failure 2, no login for 4 s: it said [2J no")],
        ),
        (
            Slot(None, None, 4.0, cooldown(2)),
            Slot(None, None, 4.0, cooldown(1, permanent=True)),
            0.2,
            [("cooldown", "rejected")],
        ),
        (Slot(None, None, 4.0, cooldown(2)), Slot(None, None, 3.8, cooldown(2)), 0.2, []),
        (Slot(None, None, 0.1, cooldown(2)), EMPTY, 0.2, [("over", "asks again")]),
        (Slot(FULL.stored, None, 0.1, cooldown(2)), FULL, 0.2, [("over", "asks again")]),
        (Slot(None, None, 0.1, cooldown(2)), Slot(None, "abc", 3.0), 0.2, [("fetching", "abc")]),
        (Slot(None, None, 0.1, cooldown(2)), Slot(record(6)), 0.2, [("stored", "fence 6")]),
    ],
)
def test_each_change_has_its_line(before: Slot | None, after: Slot, passed: float, told: list[tuple[str, str]]) -> None:
    """Two reads of a key, and the line for their difference, with neither the token nor a control character."""
    then = None if before is None else view_of(before, NOW)
    found = list(changes(then, view_of(after, NOW + passed)))
    assert [change.event for change in found] == [event for event, _ in told]
    for change, (_, text) in zip(found, told, strict=True):
        assert text in change.text
        assert SECRET not in change.line() + json.dumps(change.as_dict())
        assert "\x1b" not in change.line()


def test_an_outage_is_reported_once_and_so_is_its_end() -> None:
    """An outage is one line, its end another, with the state at that time."""
    away = View(NOW, problem="redis at host: it did not answer in time")
    here = view_of(FULL, NOW)
    told = [[change.event for change in changes(a, b)] for a, b in ((here, away), (away, away), (away, here))]
    assert told == [["unreachable"], [], ["reachable", "present"]]


def test_a_records_end_is_computed_without_a_countdown() -> None:
    """A store without a countdown (memcached) still lets a dropped record differ from one that ended."""
    for left, event in ((3600.0, "dropped"), (60.5, "ended"), (30.0, "ended")):
        stored = Stored(record(5, left=left).data, None)
        (change,) = changes(view_of(Slot(stored), NOW), view_of(EMPTY, NOW + 0.2))
        assert change.event == event


def test_no_part_of_a_view_shows_the_token() -> None:
    """INV-9: the repr of a view, which a traceback might show, contains no token."""
    assert SECRET not in repr(view_of(FULL, NOW))


class Watched(MemoryBackend):
    """A backend that reports when it is read, and counts all calls that are not reads."""

    def __init__(self) -> None:
        super().__init__()
        self.looks = 0
        self.waits = 0
        self.looked = threading.Condition()
        self.away = self.unwilling = False

    def inspect(self, key: str) -> Slot:
        """Count, and report."""
        with self.looked:
            self.looks += 1
            self.looked.notify_all()
        if self.away:
            raise AWAY
        return super().inspect(key)

    def wait(self, key: str, seen: bytes | None, timeout: float) -> None:
        """Count, and fail during an outage."""
        self.waits += 1
        if self.away or self.unwilling:
            raise AWAY
        super().wait(key, seen, timeout)

    def seen(self) -> None:
        """Return when the key has been read twice after this call."""
        with self.looked:
            enough = self.looks + 2
            assert self.looked.wait_for(lambda: self.looks >= enough, PATIENCE)


class Over(Exception):
    """Ends the following of a key."""


class Follower:
    """A thread that follows a key and keeps its events."""

    def __init__(self, backend: Watched) -> None:
        self.told: list[str] = []
        self._over = threading.Event()
        self._backend = backend
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> list[str]:
        """Start, and return when the key has been read."""
        self._thread.start()
        self._backend.seen()
        return self.told

    def __exit__(self, *_: object) -> None:
        """Stop after one more read."""
        self._backend.seen()
        self._over.set()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()

    def _follow(self) -> None:
        with suppress(Over):
            for change in follow(self._backend, KEY, pause=0.005, sleep=self._sleep):
                self.told.append(change.event)

    def _sleep(self, pause: float) -> None:
        if self._over.wait(pause):
            raise Over


def test_the_life_of_a_token_is_shown_in_order() -> None:
    """Fetch, renewal, a 401 and its replacement, a failure: each has its line when it happens, and no other line."""
    backend, provider = Watched(), FakeProvider("fake")
    with TokenCache(backend) as cache, Follower(backend) as told:
        source = cache.source(provider, key=KEY)
        provider.gate.clear()
        thread = threading.Thread(target=source.token)
        thread.start()
        assert provider.started.wait(PATIENCE)
        backend.seen()
        assert told[:2] == ["empty", "fetching"]
        provider.gate.set()
        thread.join()
        backend.seen()
        token = source.token()
        source.invalidate(token)
        backend.seen()
        source.token()
        backend.seen()
        provider.failure = ProviderUnavailable("busy", retry_at=time.time() + 60)
        source.invalidate(source.token())
        backend.seen()
        with suppress(ProviderUnavailable):
            source.token()
    without_leases = [event for event in told[2:] if event not in {"fetching", "prolonged", "freed"}]
    assert without_leases == ["stored", "dropped", "stored", "dropped", "cooldown"]


def test_an_outage_does_not_end_tail() -> None:
    """During an outage of the backend, also in the middle of a wait, tail goes on reading."""
    backend = Watched()
    held = backend.lease(KEY, "somebody", "i", None, 3600.0)
    assert isinstance(held, Granted)
    with Follower(backend) as told:
        assert backend.waits
        backend.away = True
        backend.seen()
        backend.away = False
        backend.seen()
        backend.release(held.lease)
    assert told == ["empty", "fetching", "unreachable", "reachable", "empty", "fetching", "freed"]


def test_tail_takes_no_part() -> None:
    """Only reads reach the backend: a held lease and a free one stay as they are."""

    class ReadOnly(Watched):
        def lease(self, *_: object) -> object:  # type: ignore[override]
            raise AssertionError

        commit = release = extend = discard = lease  # type: ignore[assignment]

    backend = ReadOnly()
    held = MemoryBackend.lease(backend, KEY, "somebody", "i", None, 3600.0)
    assert isinstance(held, Granted)
    with Follower(backend) as told:
        pass
    assert told == ["empty", "fetching"]
    assert look(backend, KEY).owner == "somebody"


def test_the_command_ends_by_itself_and_prints_lines(fake: FakeQPay) -> None:
    """`--for 0` reads once and exits 0: a line of text, or of JSON, with neither token nor credential."""
    value = run.invoke(app, ["token", "qpay"]).stdout.strip()
    words, document = (run.invoke(app, ["tail", "qpay", "--for", "0", *more]) for more in ([], ["--json"]))
    assert (words.exit_code, document.exit_code) == (Exit.OK, Exit.OK)
    (told,) = words.stdout.splitlines()
    assert "  present     a token is stored: none was stored; fence " in told
    entry = json.loads(document.stdout)
    assert entry["event"] == "present"
    assert entry["reason"] == "cold"
    for secret in (value, SECRET):
        assert secret not in words.output + document.output
    assert fake.logins == 1


def test_tail_runs_for_the_given_time() -> None:
    """`--for` is a duration: on the test's clock it reads until then, every `--every` seconds, and ends."""
    clock = [0.0]
    backend = Watched()

    def sleep(pause: float) -> None:
        clock[0] += pause

    told = list(follow(backend, KEY, pause=0.25, lasting=1.0, clock=lambda: clock[0], sleep=sleep))
    assert [change.event for change in told] == ["empty"]
    assert (backend.looks, clock[0]) == (5, 1.0)


def test_a_failed_wait_does_not_end_tail() -> None:
    """While a lease is held it waits at the backend; if the wait fails it reads again after the usual pause."""
    clock = [0.0]
    backend = Watched()
    assert isinstance(backend.lease(KEY, "somebody", "i", None, 3600.0), Granted)
    backend.unwilling = True

    def sleep(pause: float) -> None:
        clock[0] += pause

    told = list(follow(backend, KEY, pause=0.25, lasting=1.0, clock=lambda: clock[0], sleep=sleep))
    assert [change.event for change in told] == ["empty", "fetching"]
    assert (backend.waits, backend.looks) == (4, 5)


def test_ctrl_c_ends_tail_with_0(fake: FakeQPay) -> None:
    """Ctrl-C is the normal end: exit code 0, and no output on stderr."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tokencache", "tail", "qpay", "--every", "0.01"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={name: value for name, value in os.environ.items() if not name.startswith("COV")},
    )
    assert process.stdout is not None
    assert "empty" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, complaint = process.communicate(timeout=PATIENCE)
    assert (process.returncode, complaint) == (0, "")


def test_an_owner_is_shown_short_and_printable() -> None:
    """Another program's text in a lock is cut, and printed without a line break, as the owner."""
    assert view_of(Slot(None, "x" * 40 + "\n", 3.0), NOW).owner == "x" * 12
    assert view_of(Slot(None, "a\nb", 3.0), NOW).owner == "a b"
