"""The command line, run as a user or a script runs it, against a fake QPay."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
from importlib import metadata
from typing import TYPE_CHECKING

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from tokencache import (
    BackendClosed,
    BackendConflict,
    BackendNotInstalled,
    BackendUnavailable,
    ConfigurationError,
    DeadlineExceeded,
    ProviderRejected,
    ProviderUnavailable,
    TokenCache,
    TokenCacheError,
    TokenSource,
)
from tokencache.backends.memory import MemoryBackend
from tokencache.cli import main
from tokencache.cli._exit import Exit, code_of, complain
from tokencache.cli._render import duration, installed, lines, table
from tokencache.cli.app import app
from tokencache.ports import Cooldown, Slot
from tokencache.status import Status

if TYPE_CHECKING:
    from pathlib import Path

    from tokencache_qpay.testing import FakeQPay

SECRET = "planted-client-secret-7f3a"
run = CliRunner()


def tokencache(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a new process."""
    return subprocess.run(
        [sys.executable, "-m", "tokencache", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
    )


def test_two_runs_share_one_login(fake: FakeQPay) -> None:
    """Two runs of `token` print the same bare token and make one login: the file backend is the default."""
    first, second = tokencache("token", "qpay"), tokencache("token", "qpay")
    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout == second.stdout
    assert len(first.stdout.splitlines()) == 1
    assert " " not in first.stdout
    assert fake.logins == 1


def test_header_is_a_whole_header_line(fake: FakeQPay) -> None:
    """`--header` prints the line that `curl -H` takes."""
    value = run.invoke(app, ["token", "qpay"]).stdout.strip()
    assert run.invoke(app, ["token", "qpay", "--header"]).stdout == f"Authorization: Bearer {value}\n"


def test_json_holds_the_token_and_its_public_fields(fake: FakeQPay) -> None:
    """`token --json` prints one JSON object with the token, its type, its expiry and its key."""
    document = json.loads(run.invoke(app, ["token", "qpay", "--json"]).stdout)
    assert document["token"] == run.invoke(app, ["token", "qpay"]).stdout.strip()
    assert document["token_type"] == "Bearer"
    assert document["provider"] == "qpay"
    assert document["expires_at"] > document["issued_at"]
    assert "refresh" not in json.dumps(document)


def test_header_and_json_exclude_each_other(fake: FakeQPay) -> None:
    """Two output forms at once are a usage error, and no login is made."""
    assert run.invoke(app, ["token", "qpay", "--header", "--json"]).exit_code == Exit.USAGE
    assert fake.logins == 0


def test_status_shows_no_secret_and_makes_no_login(fake: FakeQPay) -> None:
    """INV-9: `status`, before and after a login, in words and as JSON, holds neither token nor credential."""
    before = run.invoke(app, ["status", "qpay", "--json"])
    assert json.loads(before.stdout)["stored"] == "none"
    assert fake.logins == 0
    value = run.invoke(app, ["token", "qpay"]).stdout.strip()
    words, document = run.invoke(app, ["status", "qpay"]), run.invoke(app, ["status", "qpay", "--json"])
    assert (words.exit_code, document.exit_code) == (0, 0)
    assert json.loads(document.stdout)["stored"] == "ours"
    assert "stored" in words.stdout
    for output in (before.output, words.output, document.output):
        assert value not in output
        assert SECRET not in output


def test_invalidate_drops_the_stored_token_without_a_login(fake: FakeQPay) -> None:
    """`invalidate` empties the record; the next `token` logs in again, and a second `invalidate` finds no record."""
    first = run.invoke(app, ["token", "qpay"]).stdout
    dropped = run.invoke(app, ["invalidate", "qpay"])
    assert (dropped.exit_code, fake.logins) == (0, 1)
    assert "dropped" in dropped.stdout
    assert "nothing to drop" in run.invoke(app, ["invalidate", "qpay"]).stdout
    assert fake.logins == 1
    assert run.invoke(app, ["token", "qpay"]).stdout != first
    assert fake.logins == 2


def test_the_backend_comes_from_the_option_then_the_environment(fake: FakeQPay, tmp_path: Path) -> None:
    """`--backend` overrides `TOKENCACHE_BACKEND`, which overrides `REDIS_DATABASE_URI` and the cache folder."""
    here, there = (tmp_path / "here").as_uri(), (tmp_path / "there").as_uri()
    ran = run.invoke(
        app, ["token", "qpay"], env={"TOKENCACHE_BACKEND": here, "REDIS_DATABASE_URI": "redis://no-such/x"}
    )
    assert ran.exit_code == 0
    assert run.invoke(app, ["token", "qpay"], env={"REDIS_DATABASE_URI": "redis://no-such/x"}).exit_code == 2
    run.invoke(app, ["token", "qpay"], env={"TOKENCACHE_BACKEND": here})
    assert (tmp_path / "here").is_dir()
    run.invoke(app, ["token", "qpay", "--backend", there], env={"TOKENCACHE_BACKEND": here})
    assert (tmp_path / "there").is_dir()
    assert fake.logins == 2


def test_wrong_credentials_exit_3_with_one_paragraph(fake: FakeQPay) -> None:
    """Rejected credentials: exit 3, one paragraph on stderr, nothing on stdout, no traceback, no secret."""
    ran = tokencache("token", "qpay", QPAY_CLIENT_SECRET=f"wrong-{SECRET}")
    assert ran.returncode == Exit.REJECTED
    assert_one_paragraph(ran)
    assert SECRET not in ran.stderr


def test_an_unreachable_provider_exits_4(fake: FakeQPay, unused_port: int) -> None:
    """A provider that refuses the connection: exit 4, one paragraph."""
    ran = tokencache("token", "qpay", "--timeout", "5", QPAY_BASE_URL=f"http://127.0.0.1:{unused_port}")
    assert ran.returncode == Exit.UNAVAILABLE
    assert_one_paragraph(ran)


@pytest.mark.parametrize(
    ("arguments", "environment", "hint"),
    [
        (["token", "qpya"], {}, "qpay"),
        (["token", "qpay", "--backend", "fiel:///tmp"], {}, "file"),
        (["token", "qpay", "--backend", "memory://?colour=red"], {}, "colour"),
        (["token", "qpay"], {"QPAY_CLIENT_SECRET": ""}, "QPAY_CLIENT_SECRET"),
        (["token", "qpay"], {"QPAY_BASE_URL": "http://merchant.example"}, "https"),
        (["status", "qpay", "--backend", "nonsense"], {}, "scheme"),
    ],
)
def test_bad_input_exits_2_with_the_remedy(
    fake: FakeQPay, arguments: list[str], environment: dict[str, str], hint: str
) -> None:
    """Wrong names, URLs, options and settings: exit 2, one paragraph that names the culprit or the remedy."""
    ran = tokencache(*arguments, **environment)
    assert ran.returncode == Exit.USAGE
    assert_one_paragraph(ran)
    assert hint in ran.stderr


def test_usage_errors_exit_2(fake: FakeQPay) -> None:
    """A missing argument and an unknown option or command are usage errors."""
    for arguments in (["token"], ["token", "qpay", "--nonsense"], ["nonsense"]):
        assert run.invoke(app, arguments).exit_code == Exit.USAGE


def assert_one_paragraph(ran: subprocess.CompletedProcess[str]) -> None:
    """Check that an error is one paragraph on stderr and nothing more."""
    assert ran.stdout == ""
    assert ran.stderr.startswith("tokencache: ")
    assert len(ran.stderr.strip().split("\n\n")) == 1
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigurationError("x"), 2),
        (BackendNotInstalled("x"), 2),
        (BackendConflict("x"), 2),
        (ProviderRejected("x"), 3),
        (ProviderUnavailable("x"), 4),
        (BackendUnavailable("x"), 4),
        (DeadlineExceeded("x"), 4),
        (BackendClosed("x"), 1),
        (TokenCacheError("x"), 1),
    ],
)
def test_exit_codes_tell_the_kind_of_error(error: TokenCacheError, code: int) -> None:
    """Each kind of error has the exit code that the help promises."""
    assert code_of(error) == code


def test_an_unforeseen_error_shows_its_kind_and_not_its_message(
    fake: FakeQPay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """INV-9: a bug of ours gives one paragraph without the exception's message; `--verbose` adds the frames."""

    def broken(*_: object) -> None:
        raise RuntimeError(SECRET)

    monkeypatch.setattr("tokencache.cli.app._open", broken)
    for extra in ([], ["--verbose"]):
        ran = run.invoke(app, ["token", "qpay", *extra])
        assert ran.exit_code == Exit.FAILED
        assert "RuntimeError" in ran.stderr
        assert ("in broken" in ran.stderr) == bool(extra)
        assert SECRET not in ran.output


def test_ctrl_c_exits_130(fake: FakeQPay, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt ends a command with 130 and a short message, without a traceback."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tokencache.cli.app._open", interrupted)
    ran = run.invoke(app, ["token", "qpay"])
    assert ran.exit_code == Exit.INTERRUPTED
    assert "interrupted" in ran.stderr


def test_a_reader_that_leaves_ends_the_command_quietly(fake: FakeQPay) -> None:
    """If the reader of stdout has gone, the command ends with 141 and no output, also at Python's shutdown."""
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stdout:
        ran = subprocess.run(
            [sys.executable, "-m", "tokencache", "plugins"],
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            env=buffered,
        )
    assert (ran.returncode, ran.stderr) == (Exit.BROKEN_PIPE, "")


def test_verbose_logs_to_stderr_without_secrets(fake: FakeQPay) -> None:
    """INV-9: `--verbose` reports on stderr that a token was fetched; stdout holds only the token."""
    ran = tokencache("token", "qpay", "--verbose")
    assert ran.returncode == 0
    assert "token fetched" in ran.stderr
    assert ran.stdout.strip() not in ran.stderr
    assert SECRET not in ran.stderr


def test_plugins_lists_what_is_installed() -> None:
    """`plugins` lists our backends as URL schemes and our provider by name, and opens a backend on request."""
    ran = run.invoke(app, ["plugins", "--backend", "memory://"])
    assert ran.exit_code == 0
    for name in ("file://", "memory://", "qpay"):
        assert name in ran.stdout
    document = json.loads(run.invoke(app, ["plugins", "--json"]).stdout)
    assert {("provider", "qpay"), ("backend", "file")} <= {(row["kind"], row["name"]) for row in document["plugins"]}
    assert run.invoke(app, ["plugins", "--backend", "nonsense://"]).exit_code == Exit.USAGE


def test_a_name_that_two_distributions_claim_is_marked() -> None:
    """The table of plugins warns of a conflict, and writes a dotted name as the URL scheme that users type."""
    row = {
        "kind": "backend",
        "name": "redis.sentinel",
        "distribution": "d",
        "version": "1",
        "target": "t",
        "conflict": True,
    }
    text = "\n".join(table([row]))
    assert "redis+sentinel://" in text
    assert "CONFLICT" in text
    assert not any(entry["conflict"] for entry in installed())


def test_help_lists_every_command_and_every_exit_code() -> None:
    """`--help` shows all commands, examples, and what each exit code means; each command has its own."""
    wide = {"COLUMNS": "200", "NO_COLOR": "1"}
    found = get_command(app).commands  # type: ignore[attr-defined]
    ran = run.invoke(app, ["--help"], env=wide)
    assert ran.exit_code == 0
    for word in ("Examples:", *(f"{code.value} " for code in Exit)):
        assert word in ran.stdout
    listed = {line.split()[1] for line in ran.stdout.splitlines() if line.startswith("│ ")}
    assert {"token", "status", "invalidate", "doctor", "verify", "tail", "bench", "plugins", "demo"} <= set(found)
    assert set(found) <= listed
    for name, command in found.items():
        ran = run.invoke(app, [name, "--help"], env=wide)
        assert ran.exit_code == 0
        assert str(command.help).partition(".")[0].split(":")[0] in " ".join(ran.stdout.split())
        assert ("--backend" in ran.stdout) == (name not in {"config", "new"})


def test_version_is_that_of_the_distribution() -> None:
    """`--version` prints name and version."""
    assert run.invoke(app, ["--version"]).stdout == f"tokencache {metadata.version('tokencache')}\n"


def test_without_the_extra_the_install_line_is_printed() -> None:
    """Without typer the command exits 2 and prints the pip line."""
    ran = subprocess.run(
        [sys.executable, "-c", "import sys; sys.modules['typer'] = None; from tokencache.cli import main; main()"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == Exit.USAGE
    assert "pip install 'tokencache[cli]'" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_status_is_readable_for_any_content() -> None:
    """Lease, cooldown, past and missing instants are shown in words; the cooldown's reason is shown."""
    held = Status(
        provider="qpay",
        key="k",
        identity="i",
        backend="file",
        healthy=False,
        problem="gone",
        round_trip=None,
        local=False,
        stored="unknown",
        expires_at=1.0,
        usable_until=None,
        refresh_at=4e9,
        fence=None,
        lease_owner="me",
        lease_remaining=2.5,
        cooldown=Cooldown(identity="i", remaining=61, permanent=False, attempt=2, message="busy"),
    )
    text = "\n".join(lines(held))
    for words in ("does not answer", " ago)", "(in ", "held by me, for 2.5 s", "1 min 1 s more (failure 2): busy"):
        assert words in text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59.9, "59 s"), (3600, "1 h"), (3661, "1 h 1 min"), (90061, "1 d 1 h")]
)
def test_durations_show_their_two_largest_units(seconds: float, text: str) -> None:
    """A duration is shown in at most two units."""
    assert duration(seconds) == text


def test_the_demo_reports_a_backend_that_does_not_answer() -> None:
    """Bad input: no fleet starts on an unreachable backend; exit code 4, and the reason."""
    ran = run.invoke(app, ["demo", "--backend", "redis://127.0.0.1:1"])
    assert ran.exit_code == Exit.UNAVAILABLE
    assert "redis at 127.0.0.1:1: it cannot be reached" in " ".join(ran.stderr.split())


def test_the_demo_refuses_a_backend_that_processes_do_not_share() -> None:
    """`demo --backend memory://` is a configuration error, reported before any process starts."""
    ran = run.invoke(app, ["demo", "--backend", "memory://"])
    assert ran.exit_code == Exit.USAGE
    assert "not shared" in ran.stderr


class Unreachable(MemoryBackend):
    """A backend that does not answer."""

    def inspect(self, key: str) -> Slot:
        """Fail."""
        message = "the store is gone"
        raise BackendUnavailable(message)


@pytest.mark.parametrize("command", ["status", "invalidate"])
def test_a_backend_that_does_not_answer_exits_4(fake: FakeQPay, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    """`status` and `invalidate` exit 4 and name the problem when the backend does not answer."""
    monkeypatch.setattr("tokencache.cli.app._open", lambda *_: TokenCache(Unreachable()))
    ran = run.invoke(app, [command, "qpay"])
    assert ran.exit_code == Exit.UNAVAILABLE
    assert "the store is gone" in ran.stderr


def test_invalidate_leaves_a_replacement(fake: FakeQPay, monkeypatch: pytest.MonkeyPatch) -> None:
    """INV-3: `invalidate` keeps a token that replaced the read one in the meantime, and reports it."""
    run.invoke(app, ["token", "qpay"])
    monkeypatch.setattr(TokenSource, "invalidate", lambda _source, _token: False)
    ran = run.invoke(app, ["invalidate", "qpay"])
    assert (ran.exit_code, "has replaced the token" in ran.stdout) == (0, True)


def test_an_error_is_wrapped_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal a long paragraph is wrapped at 100 columns; in a pipe it stays on one line."""

    class Terminal(io.StringIO):
        """A text that reports itself as a terminal."""

        def isatty(self) -> bool:
            """Return `True`."""
            return True

    for kind, count in ((Terminal, 3), (io.StringIO, 1)):
        text = kind()
        monkeypatch.setattr(sys, "stderr", text)
        complain("word " * 50)
        assert len(text.getvalue().splitlines()) == count


def test_an_unrelated_missing_module_is_not_attributed_to_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing module of our own is a bug and is reported as one."""
    monkeypatch.setitem(sys.modules, "tokencache.cli.app", None)
    for stream in ("stdout", "stderr"):  # the command line replaces them
        monkeypatch.setattr(sys, stream, getattr(sys, stream))
    with pytest.raises(ModuleNotFoundError, match=r"tokencache\.cli\.app"):
        main()


def test_a_broken_promise_exits_1(monkeypatch: pytest.MonkeyPatch) -> None:
    """`demo` exits 1 when a figure breaks a promise, and 0 when all are kept."""
    for kept, code in ((False, Exit.FAILED), (True, Exit.OK)):
        monkeypatch.setattr("tokencache.cli.demo.show", lambda _backend, kept=kept: kept)
        assert run.invoke(app, ["demo"]).exit_code == code


@pytest.mark.slow
def test_the_demo_keeps_every_promise_it_shows(tmp_path: Path) -> None:
    """INV-1, INV-2, INV-6: the demo, as a user runs it, exits 0, shows each figure, and leaves no record behind."""
    folder = tmp_path / "tokens"
    ran = tokencache("demo", "--backend", folder.as_uri())
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stderr == ""
    assert "BROKEN" not in ran.stdout
    for words in (
        "first token",
        "speed-up",
        "128 served, 1 token, 1 login",
        "0 late",
        "50 of 50 calls good, 1 new login",
    ):
        assert words in ran.stdout
    assert not [path for path in folder.rglob("*") if path.is_file() and b"accessToken" in path.read_bytes()]


@pytest.mark.slow
def test_ctrl_c_ends_the_demo_and_its_processes(tmp_path: Path) -> None:
    """INV-8: an interrupt in the middle of the demo ends it with 130, and all processes of its fleet end."""
    demo = subprocess.Popen(
        [sys.executable, "-u", "-m", "tokencache", "demo"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    watchdog = threading.Timer(60, demo.kill)
    watchdog.start()
    try:
        assert demo.stdout is not None
        for line in demo.stdout:
            if line.startswith("2/4"):
                os.killpg(demo.pid, signal.SIGINT)
                break
        _, errors = demo.communicate()
    finally:
        watchdog.cancel()
        demo.kill()
        demo.wait()
    assert demo.returncode == Exit.INTERRUPTED
    assert "Traceback" not in errors
    with pytest.raises(ProcessLookupError):
        os.killpg(demo.pid, 0)
    assert list(tmp_path.iterdir()) == []


def test_a_token_that_could_not_be_shared_is_reported(fake: FakeQPay, tmp_path: Path) -> None:
    """An unusable folder costs a login at every run, which QPay forbids: the token is printed with a warning."""
    (tmp_path / "file").write_text("not a folder")
    ran = run.invoke(app, ["token", "qpay", "--backend", (tmp_path / "file" / "tokens").as_uri()])
    assert ran.exit_code == 0
    assert len(ran.stdout.split()) == 1
    assert "not shared" in ran.stderr
