"""Every command with a broken standard stream: the exit code is right, and no traceback is shown."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import typer.main
from typer.core import TyperGroup

from tokencache.cli import app
from tokencache.cli._exit import Exit
from tokencache.cli._streams import Stream

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tokencache_qpay.testing import FakeQPay

SECRET = "planted-client-secret-7f3a"
TOKENCACHE = (sys.executable, "-m", "tokencache")
SCRIPT = (str(Path(sys.executable).with_name("tokencache")),)
FORKS = str(Path(__file__).with_name("fork_commands.py"))
REASONS = {"full": "No space left on device", "closed": "Bad file descriptor"}

RESULTS = {
    "token qpay": 0,
    "token qpay --json": 0,
    "status qpay": 0,
    "status qpay --json": 0,
    "doctor qpay": 0,
    "doctor qpay --json": 0,
    "verify qpay -p 1": 0,
    "verify qpay -p 1 --json": 0,
    "tail qpay --for 0": 0,
    "tail qpay --for 0 --json": 0,
    "bench -b memory://": 0,
    "bench -b memory:// --json": 0,
    "invalidate qpay": 0,
    "plugins": 0,
    "plugins --json": 0,
    "config check tokencache.toml": 0,
    "config check tokencache.toml --json": 0,
    "config check nowhere.toml": 2,
    "config schema": 0,
    "new backend acme": 0,
    "new provider acme --into other": 0,
    "--version": 0,
    "--help": 0,
    "token --help": 0,
    "config": 2,
    "": 2,
}
"""What writes a result and nothing else, with its exit code."""

COMPLAINTS = {
    "token": 2,
    "token qpay --nonsense": 2,
    "token qpay --header --json": 2,
    "nonsense": 2,
    "token nonsense": 2,
    "doctor qpay --timeout never": 2,
    "verify nonsense": 2,
    "tail nonsense": 2,
    "bench nonsense": 2,
    "invalidate qpay -b redis://127.0.0.1:1": 4,
    "demo -b memory://": 2,
    "config schema --nonsense": 2,
    "new backend NONSENSE": 2,
}
"""What writes to stderr and nothing else."""

BOTH = {
    "token qpay --verbose": 0,
    "status qpay -b redis://127.0.0.1:1": 4,
    "plugins -b memory://": 0,
}
"""What writes a result, and a word on stderr."""


@pytest.fixture(autouse=True)
def place(fake: FakeQPay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder with a configuration, and a fake QPay."""
    (tmp_path / "tokencache.toml").write_text("")
    monkeypatch.chdir(tmp_path)


@pytest.fixture(params=["1", ""], ids=["unbuffered", "buffered"])
def unbuffered(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable that controls the interpreter's buffering; an empty value counts as unset."""
    monkeypatch.setenv("PYTHONUNBUFFERED", request.param)


def started(
    command: Sequence[str], stream: int, kind: str, *, said: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program whose stdout (1) or stderr (2) is full, closed, or a pipe without reader; ``said`` is its stdin."""
    with ExitStack() as opened:
        streams = {1: subprocess.PIPE, 2: subprocess.PIPE}
        if kind == "full":
            streams[stream] = opened.enter_context(Path("/dev/full").open("w")).fileno()
        elif kind == "pipe":
            reading, streams[stream] = os.pipe()
            os.close(reading)
            opened.callback(os.close, streams[stream])
        else:
            streams[stream] = subprocess.DEVNULL
            command = ["sh", "-c", f'exec "$@" {stream}>&-', "sh", *command]
        return subprocess.run(
            command,
            input=said or "",
            stdout=streams[1],
            stderr=streams[2],
            text=True,
            check=False,
        )


def forked(commands: Mapping[str, int], stream: int, kind: str, folder: Path) -> dict[str, tuple[int, str]]:
    """Run each command with that stream broken; return its exit code and its output on the other one."""
    folder.mkdir()
    arguments = (str(3 - stream), str(folder), json.dumps(list(commands)))
    started((sys.executable, FORKS, *arguments), stream, kind)
    codes = json.loads((folder / "codes").read_text())
    texts = [(folder / str(number)).read_text(encoding="utf-8") for number in range(len(commands))]
    return dict(zip(commands, zip(codes, texts, strict=True), strict=True))


def message(kind: str) -> str:
    """Return the message for a result that cannot be written: one line, or none if the reader left."""
    return "" if kind == "pipe" else f"tokencache: the result could not be written: {REASONS[kind]}\n"


def code(kind: str) -> Exit:
    """Return the exit code of a result that cannot be written."""
    return Exit.BROKEN_PIPE if kind == "pipe" else Exit.FAILED


def leaves(command: object, *words: str) -> Iterator[str]:
    """Yield every command of the command line, as it is typed."""
    if not isinstance(command, TyperGroup):
        yield " ".join(words)
        return
    for name, inner in command.commands.items():
        yield from leaves(inner, *words, name)


def test_every_command_is_in_the_table() -> None:
    """The tests below run every command, and compare the demo's first line."""
    known = [*RESULTS, "demo"]
    commands = list(leaves(typer.main.get_command(app.app)))
    assert len(commands) > 10
    assert not [command for command in commands if not any(line.startswith(command) for line in known)]


@pytest.mark.parametrize("kind", ["full", "closed", "pipe"])
@pytest.mark.usefixtures("unbuffered")
def test_a_result_that_cannot_be_written_is_reported(kind: str, tmp_path: Path) -> None:
    """Each command exits 1 with one line, or 141 without a line if the reader left. A usage error has no result."""
    untouched = {"token": 2, "token nonsense": 2}
    found = forked(RESULTS | {"demo": 0} | untouched, 1, kind, tmp_path / "found")
    for command, exit_code in untouched.items():
        ended, text = found.pop(command)
        assert (ended, "could not be written" in text, "Traceback" in text) == (exit_code, False, False)
        assert text
    assert found == dict.fromkeys(found, (code(kind), message(kind)))


@pytest.mark.parametrize("kind", ["full", "closed", "pipe"])
@pytest.mark.usefixtures("unbuffered")
def test_a_stderr_that_cannot_be_written_changes_nothing(kind: str, tmp_path: Path) -> None:
    """Each command has the same exit code as with a good stderr, and its result is there."""
    results = {command: exit_code for command, exit_code in RESULTS.items() if not command.endswith("--json")}
    commands = results | COMPLAINTS | BOTH
    found = forked(commands, 2, kind, tmp_path / "found")
    assert {command: exit_code for command, (exit_code, _) in found.items()} == commands
    assert {command for command, (_, text) in found.items() if not text} == set(COMPLAINTS)


@pytest.mark.parametrize("kind", ["full", "closed", "pipe"])
@pytest.mark.parametrize("start", [TOKENCACHE, SCRIPT], ids=["module", "script"])
@pytest.mark.usefixtures("unbuffered")
def test_both_ways_to_start_the_command_line_end_alike(start: Sequence[str], kind: str) -> None:
    """`python -m tokencache` and the script `tokencache` run as real processes."""
    ran = started((*start, "token", "qpay"), 1, kind)
    assert (ran.returncode, ran.stderr) == (code(kind), message(kind))


def test_a_full_pipe_that_does_not_block_is_reported() -> None:
    """A full pipe in non-blocking mode, as Node.js creates it, counts as full and not as a reader that left."""
    reading, writing = os.pipe()
    try:
        os.set_blocking(writing, False)
        with suppress(BlockingIOError):
            while True:
                os.write(writing, bytes(4096))
        ran = subprocess.run([*TOKENCACHE, "plugins"], stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    finally:
        os.close(reading)
        os.close(writing)
    reason = "Resource temporarily unavailable"
    assert (ran.returncode, ran.stderr) == (1, f"tokencache: the result could not be written: {reason}\n")


def test_a_file_at_the_number_of_a_closed_stream_is_left_alone(tmp_path: Path) -> None:
    """A file that was opened as descriptor 1 before the command line started is not used as stdout."""
    program = (
        "import os, sys; number = os.open('file', os.O_RDWR | os.O_CREAT); assert number == 1;"
        "from tokencache.cli import main; sys.argv = ['tokencache', '--version']; main()"
    )
    ran = started((sys.executable, "-c", program), 1, "closed")
    assert (ran.returncode, ran.stderr) == (1, message("closed"))
    assert (tmp_path / "file").read_text() == ""


@pytest.mark.parametrize("kind", ["full", "closed", "pipe"])
def test_without_the_extra_a_stderr_that_cannot_be_written_changes_nothing(kind: str) -> None:
    """Without typer the command exits 2, though its message cannot be written."""
    program = "import sys; sys.modules['typer'] = None; from tokencache.cli import main; main()"
    ran = started((sys.executable, "-c", program), 2, kind)
    assert (ran.returncode, ran.stdout) == (Exit.USAGE, "")


@pytest.mark.parametrize("ends", [True, False])
def test_a_stream_fails_once(ends: bool) -> None:
    """The first failure is kept, and ends the process if it must; later output is dropped."""
    with Path("/dev/full").open("w") as full:
        stream = Stream(full.fileno(), ends=ends)
        with pytest.raises(SystemExit) if ends else nullcontext():
            stream.write(b"first")
        assert (str(stream.failure), stream.write(b"later")) == ("[Errno 28] No space left on device", 5)


def test_each_line_is_written_at_once_on_a_terminal() -> None:
    """Stdout on a terminal, and stderr always, are buffered by line; the encoding is unchanged."""
    program = (
        "import os, sys; from tokencache.cli._streams import replace_streams; replace_streams();"
        "sys.stdout.write('\xe9\\n'); sys.stderr.write('\xe9\\n'); os._exit(0)"
    )
    terminal, side = os.openpty()
    try:
        ran = subprocess.run(
            [sys.executable, "-c", program],
            stdout=side,
            stderr=subprocess.PIPE,
            check=False,
            env=os.environ | {"PYTHONIOENCODING": "latin-1", "PYTHONUNBUFFERED": ""},
        )
        os.set_blocking(terminal, False)
        assert (os.read(terminal, 99).rstrip(), ran.stderr) == (b"\xe9", b"\xe9\n")
    finally:
        os.close(terminal)
        os.close(side)


def test_an_interrupted_command_stays_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C also ends the reader of a pipe: the broken pipe does not hide the interrupt."""
    for ended, found in ((Exit.INTERRUPTED, Exit.INTERRUPTED), (Exit.UNAVAILABLE, Exit.BROKEN_PIPE)):
        stdout = Stream(1, ends=True)
        stdout.failure = BrokenPipeError()
        monkeypatch.setattr(app, "app", lambda prog_name, ended=ended: sys.exit(ended))
        assert app.run(stdout) == found


@pytest.mark.parametrize("worker", ["_demo_worker", "_bench_worker"])
def test_a_process_of_a_fleet_ends_quietly_after_its_parent(worker: str) -> None:
    """After its parent was killed, a process cannot report and ends without a traceback."""
    crowd = {"threads": 1, "patience": 1.0, "seconds": 0.0, "backend": "memory://"}
    orders = {
        "_demo_worker": {"namespace": "", "base_url": "http://127.0.0.1:1", "client_id": "c", "client_secret": SECRET},
        "_bench_worker": {"config": None, "key": "key", "secret": SECRET, "login": 0.0, "size": 1},
    }
    command = (sys.executable, "-m", f"tokencache.cli.{worker}")
    ran = started(command, 1, "pipe", said=json.dumps(crowd | orders[worker]) + "\n")
    assert (ran.returncode, ran.stderr) == (1, "")
