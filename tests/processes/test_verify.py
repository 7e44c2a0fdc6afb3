"""`tokencache verify`: processes share the token or it names the reason, and it makes at most the promised logins."""

from __future__ import annotations

import asyncio
import io
import json
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from tokencache import (
    BackendUnavailable,
    FetchContext,
    ProviderUnavailable,
    RefreshPolicy,
    Token,
    TokenCache,
    TokenSource,
)
from tokencache.backends.file import FileBackend
from tokencache.backends.memory import MemoryBackend
from tokencache.cli import _verify_worker as worker
from tokencache.cli import verify
from tokencache.cli._counted import CountedProvider
from tokencache.cli._exit import Exit
from tokencache.cli._read_only import ReadOnlyBackend
from tokencache.cli._setup import quiet
from tokencache.cli.app import app
from tokencache.ports import Granted
from tokencache.testing.fakes import FakeProvider

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tokencache_qpay.testing import FakeQPay

SECRET = "planted-client-secret-7f3a"
KEY = "qpay:access_token"
run = CliRunner()


def verified(*arguments: str) -> tuple[int, dict[str, object], str]:
    """Run `verify --json` and return exit code, document and stderr."""
    ran = run.invoke(app, ["verify", "qpay", "--json", *arguments])
    return ran.exit_code, json.loads(ran.stdout), ran.stderr


def test_processes_that_share_pass_with_one_login(fake: FakeQPay) -> None:
    """INV-2: a cold run makes one login; two fresh processes get its token by the backend, with times and speed-up."""
    code, found, complaint = verified("-p", "2")
    assert (code, complaint, fake.logins) == (Exit.OK, "", 1)
    assert (found["shared"], found["logins"], found["first"]["by"]) == (True, 1, "login")  # type: ignore[index]
    processes = found["processes"]
    assert isinstance(processes, list)
    assert len(processes) == 2
    assert all(entry["seconds"] > 0 and entry["speedup"] > 0 for entry in processes)


def test_a_stored_token_needs_no_login_unless_requested(fake: FakeQPay) -> None:
    """With a stored token no login is made, and the output says so; `--login` makes one more, once."""
    run.invoke(app, ["token", "qpay"])
    ran = run.invoke(app, ["verify", "qpay", "-p", "1"])
    assert (ran.exit_code, fake.logins) == (0, 1)
    assert "0 logins, because a token was stored" in ran.stdout
    assert "first, from the backend" in ran.stdout
    code, found, _ = verified("-p", "1", "--login")
    assert (code, found["logins"], fake.logins) == (0, 1, 2)


def test_a_cold_run_logs_in_once_also_with_login(fake: FakeQPay) -> None:
    """Without a stored token, the first call is the login that `--login` wants; a second one is not made."""
    code, found, _ = verified("-p", "1", "--login")
    assert (code, found["logins"], fake.logins) == (0, 1, 1)


def test_the_table_shows_times_and_the_speed_up(fake: FakeQPay) -> None:
    """The text is a small table: the login, the copy in this process, the fresh processes; and the verdict."""
    ran = run.invoke(app, ["verify", "qpay", "-p", "1"])
    assert ran.exit_code == 0
    rows = [row for row in ran.stdout.splitlines() if row.startswith(("first", "again"))]
    assert [row.split("  ")[0] for row in rows] == [
        "first, by a login",
        "again, in this process",
        "again, in 1 fresh process",
    ]
    assert rows[1].endswith(" times")
    assert "1 login\nProcesses share the token." in ran.stdout
    assert SECRET not in ran.output


def test_processes_that_do_not_share_fail_with_the_reason(fake: FakeQPay) -> None:
    """memory:// is not shared: exit 1, the reason, the remedy, and still one login, none by the processes."""
    code, found, complaint = verified("--backend", "memory://", "-p", "3")
    assert (code, found["shared"], found["logins"], fake.logins) == (Exit.FAILED, False, 1, 1)
    assert "memory:// is not" in str(found["reason"])
    assert complaint.startswith("tokencache: processes do not share the token: a fresh process finds no usable record")
    assert "`tokencache doctor qpay`" in complaint


def test_an_unreachable_backend_fails_with_the_reason(fake: FakeQPay) -> None:
    """If the backend does not answer, a token is still obtained (INV-5), and the verdict is that it is not shared."""
    code, found, complaint = verified("--backend", "redis://user:planted-password-3c@127.0.0.1:1/0")
    assert (code, found["logins"], found["processes"]) == (Exit.FAILED, 1, [])
    assert "the backend failed" in str(found["reason"])
    assert "planted-password-3c" not in complaint + json.dumps(found)


def test_a_failed_login_exits_as_in_any_command(fake: FakeQPay, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rejected credentials exit 3, as with `token`, after one login."""
    monkeypatch.setenv("QPAY_CLIENT_SECRET", "wrong-secret")
    ran = run.invoke(app, ["verify", "qpay"])
    assert (ran.exit_code, ran.stdout, fake.logins) == (Exit.REJECTED, "", 1)


def ordered(url: str, provider: str = "qpay") -> dict[str, object]:
    """Run one fresh process and return its report."""
    ran = subprocess.run(
        [sys.executable, "-m", "tokencache.cli._verify_worker"],
        input=json.dumps({"provider": provider, "backend": url, "timeout": None}) + "\n",
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stderr == ""
    report: dict[str, object] = json.loads(ran.stdout)
    return report


def test_a_fresh_process_never_logs_in_and_leaves_nothing(fake: FakeQPay, tmp_path: Path) -> None:
    """INV-7: without a record a process reports that; it makes no login and leaves neither lease nor cooldown."""
    folder = tmp_path / "tokencache"
    report = ordered("file://")
    assert report == {"key": KEY, "problem": None}
    assert fake.requests == 0
    assert not folder.exists()
    run.invoke(app, ["token", "qpay"])
    assert "seconds" in ordered("file://")
    slot = FileBackend(folder).inspect(KEY)
    assert (slot.owner, slot.cooldown, fake.logins) == (None, None, 1)


@pytest.mark.parametrize(
    ("url", "provider", "word"),
    [
        ("redis://127.0.0.1:1/0", "qpay", "redis at 127.0.0.1:1"),
        ("fiel://", "qpay", "did you mean"),
        ("file://", "qpya", "did you mean"),
    ],
)
def test_a_fresh_process_reports_its_problem(fake: FakeQPay, url: str, provider: str, word: str) -> None:
    """A store that is unreachable and settings that are wrong there are reported as the process's problem."""
    assert word in str(ordered(url, provider)["problem"])


def test_a_fresh_process_cannot_write() -> None:
    """The fresh process's backend refuses every write, and allows reads."""
    backend = ReadOnlyBackend(MemoryBackend())
    assert backend.load(KEY) is None
    assert backend.inspect(KEY).owner is None
    calls: list[Callable[[], object]] = [
        lambda: backend.lease(KEY, "o", "i", None, 1.0),
        lambda: backend.commit(None, b"", 1.0),  # type: ignore[arg-type]
        lambda: backend.release(None),  # type: ignore[arg-type]
        lambda: backend.extend(None, 1.0),  # type: ignore[arg-type]
        lambda: backend.wait(KEY, None, 1.0),
        lambda: backend.discard(KEY, b""),
    ]
    for call in calls:
        with pytest.raises(BackendUnavailable):
            call()
    backend.close()


@pytest.mark.parametrize(
    ("report", "word"),
    [
        ({"key": "another", "seconds": 1.0}, "another key"),
        ({"key": KEY, "problem": "it is away"}, "could not use the backend: it is away"),
        ({"problem": "it ended with code 1"}, "ended with code 1"),
        ({"key": KEY, "problem": None}, "no usable record"),
    ],
)
def test_each_way_not_to_share_has_its_reason(
    fake: FakeQPay, monkeypatch: pytest.MonkeyPatch, report: dict[str, object], word: str
) -> None:
    """A process's report becomes the reason of the verdict, and no further process is started."""
    started: list[object] = []

    def reported(orders: dict[str, object]) -> dict[str, object]:
        started.append(orders)
        return report

    monkeypatch.setattr(verify, "_report", reported)
    code, found, _ = verified()
    assert (code, len(started)) == (Exit.FAILED, 1)
    assert word in str(found["reason"])


@pytest.mark.parametrize(
    ("script", "patience", "word"),
    [
        ("import sys; sys.stdin.readline(); sys.exit(7)", 30.0, "code 7"),
        ("import time; time.sleep(60)", 0.2, "did not end"),
        ("print('no JSON')", 30.0, "without a report"),
    ],
)
def test_a_process_that_dies_or_hangs_is_ended_and_reported(
    monkeypatch: pytest.MonkeyPatch, script: str, patience: float, word: str
) -> None:
    """INV-8: a fresh process that hangs is killed, and one without a report is reported by its exit code."""
    popen = subprocess.Popen
    started: list[subprocess.Popen[str]] = []

    def other(_line: object, **more: Any) -> subprocess.Popen[str]:  # noqa: ANN401  (any setting)
        started.append(popen([sys.executable, "-S", "-c", script], **more))
        return started[-1]

    monkeypatch.setattr(verify, "PATIENCE", patience)
    monkeypatch.setattr(subprocess, "Popen", other)
    assert word in str(verify._report({})["problem"])
    assert started[0].returncode == {"code 7": 7, "did not end": -signal.SIGKILL, "without a report": 0}[word]


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(2.5, "2.5 s"), (0.3124, "312.4 ms"), (0.0000015, "1.5 µs"), (8.5e-8, "85 ns"), (0.0, "0 ns")],
)
def test_a_time_is_shown_in_a_suitable_unit(seconds: float, shown: str) -> None:
    """Seconds, milliseconds, microseconds and nanoseconds, whichever reads best."""
    assert verify.spell(seconds) == shown


# --- the provider that counts -----------------------------------------------------------------------------------


def context() -> FetchContext:
    """Return a provider's fetch context."""
    return FetchContext(None, time.monotonic() + 30, "cold", time.monotonic)


def test_a_counted_provider_is_called_within_its_limit() -> None:
    """The limit of "at most two logins" is enforced: the third is refused, and the provider gets no request."""
    inner = FakeProvider("fake")
    counted = CountedProvider(inner, most=2)
    counted.fetch(context())  # type: ignore[operator]
    asyncio.run(counted.afetch(context()))  # type: ignore[operator]
    for refused in (lambda: counted.fetch(context()), lambda: asyncio.run(counted.afetch(context()))):  # type: ignore[operator]
        with pytest.raises(ProviderUnavailable, match="2 login"):
            refused()
    assert (inner.calls, counted.logins, counted.refused) == (2, 2, True)


def test_a_counted_provider_otherwise_equals_the_wrapped_one() -> None:
    """Name, identity, policy and key are those of the wrapped provider; a half that it lacks is missing too."""

    class OneHalf:
        name = "one-half"
        key = "its-key"

        def identity(self) -> dict[str, object]:
            return {"client": "c"}

        def fetch(self, asked: FetchContext) -> Token:
            return Token("t", expires_at=time.time() + 3600, issued_at=time.time())

    counted = CountedProvider(OneHalf(), most=1)
    assert not hasattr(counted, "afetch")
    assert not hasattr(counted, "policy")
    with TokenCache("memory://") as cache:
        source = cache.source(counted)
        assert (source.provider, source.key, source.token().value) == ("one-half", "its-key", "t")


@pytest.mark.parametrize(("calm", "reasons"), [(True, ["cold"]), (False, ["cold", "refresh"])])
def test_reading_a_token_starts_no_renewal(monkeypatch: pytest.MonkeyPatch, calm: bool, reasons: list[str]) -> None:
    """Near a token's end, when any other caller would start its renewal, the commands do not."""
    flown: list[str] = []
    launch = TokenSource._launch_thread

    def noted(source: TokenSource, flight: object, reason: str) -> None:
        flown.append(reason)
        launch(source, flight, reason)  # type: ignore[arg-type]

    monkeypatch.setattr(TokenSource, "_launch_thread", noted)
    provider, backend = FakeProvider("fake"), MemoryBackend()
    granted = backend.lease("k", "o", "i", None, 3.0)
    assert isinstance(granted, Granted)
    near = {"accessToken": "old", "expiresAt": int(time.time() + 300), "fence": granted.lease.fence, "lifetime": 3600.0}
    backend.commit(granted.lease, json.dumps(near).encode(), 240.0)
    provider.gate.clear()  # a renewal changes nothing before it has been noted
    with TokenCache(backend) as cache:
        source = cache.source(provider, key="k", policy=quiet(RefreshPolicy()) if calm else None)
        assert [source.token().value for _ in range(3)] == ["old"] * 3
    provider.gate.set()
    assert flown == reasons


def test_the_worker_reads_its_orders_from_stdin(
    fake: FakeQPay, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """INV-9: the URL, which may contain a password, comes over the pipe; no part of it is in the answer."""
    run.invoke(app, ["token", "qpay"])
    monkeypatch.setattr(worker.signal, "signal", lambda *_: None)
    monkeypatch.setattr(
        sys, "stdin", io.StringIO(json.dumps({"provider": "qpay", "backend": "file://", "timeout": 5.0}) + "\n")
    )
    worker.main()
    report = json.loads(capsys.readouterr().out)
    assert set(report) == {"key", "seconds"}


@pytest.mark.parametrize(
    "command",
    [["verify", "qpay", "-p", "2"], ["bench", "-p", "2", "-t", "2"]],
    ids=lambda c: c[0],
)
def test_no_module_of_the_working_folder_is_run(
    command: list[str], fake: FakeQPay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`python -m` puts the working folder first on the path; a `random.py` there would run with the credentials."""
    assert fake.url
    for name in ("random", "json", "httpx", "tokencache"):
        (tmp_path / f"{name}.py").write_text("open('ran-it', 'w').close()")
    monkeypatch.chdir(tmp_path)
    ran = run.invoke(app, [*command, "-b", (tmp_path / "tokens").as_uri()])
    assert ran.exit_code == Exit.OK, ran.output
    assert not (tmp_path / "ran-it").exists()
