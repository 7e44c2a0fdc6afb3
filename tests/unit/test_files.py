"""Files that a user names: reading one ends, whatever lies at the path, and each failure is an ``OSError``."""

from __future__ import annotations

import os
import pwd
import socket
import threading
from pathlib import Path

import pytest

from tokencache import _files
from tokencache._files import content_of, expanded


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    """Return a pipe with a name."""
    os.mkfifo(tmp_path / "fifo")
    return tmp_path / "fifo"


def test_a_regular_file_is_read_to_its_limit(tmp_path: Path) -> None:
    """A file of 1 MiB is read, a larger one is an error, and so is a device without an end."""
    path = tmp_path / "file"
    path.write_bytes(b"a" * (1 << 20))
    assert content_of(path, pipes=True) == content_of(str(path)) == b"a" * (1 << 20)
    path.write_bytes(b"a" * ((1 << 20) + 1))
    with pytest.raises(OSError, match="it is larger than 1048576 bytes"):
        content_of(path)


@pytest.mark.parametrize("pipes", [False, True])
def test_other_things_than_files_are_errors(pipes: bool, tmp_path: Path) -> None:
    """A folder, a device, a socket, a missing file and an impossible name each have their own reason."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "socket"))
    for path, reason in (
        (tmp_path, "Is a directory"),
        (Path("/dev/zero"), "it is not a regular file"),
        (tmp_path / "socket", "No such device or address"),
        (tmp_path / "nowhere", "No such file"),
        (Path("a\0b"), "a path cannot hold a NUL character"),
    ):
        with pytest.raises(OSError, match=reason):
            content_of(path, pipes=pipes)
    listener.close()


def test_a_pipe_is_read_only_where_that_makes_sense(fifo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a writer, a pipe is given up after a while; where a file is read again and again, at once."""
    monkeypatch.setattr(_files, "_PATIENCE", 0.05)
    with pytest.raises(OSError, match="it is not a regular file"):
        content_of(fifo)
    with pytest.raises(TimeoutError, match=r"the other end of this pipe did not finish within 0\.05 s"):
        content_of(fifo, pipes=True)


def test_a_silent_writer_is_given_up(fifo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that writes a part and keeps the pipe open is as bad as none."""
    monkeypatch.setattr(_files, "_PATIENCE", 0.05)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(fifo, os.O_WRONLY)
    os.write(writer, b"part")
    with pytest.raises(TimeoutError):
        content_of(fifo, pipes=True)
    os.close(writer)
    os.close(reader)


def test_what_a_program_writes_to_a_pipe_is_read(fifo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The content of a shell's ``<(command)`` or of a password manager's FIFO is complete, also if it is long."""
    monkeypatch.setattr(_files, "_PATIENCE", 60.0)
    content = b"secret" * 50_000
    thread = threading.Thread(target=fifo.write_bytes, args=(content,))
    thread.start()
    assert content_of(fifo, pipes=True) == content
    thread.join()


@pytest.mark.parametrize("home", ["relative", ""])
def test_a_home_that_is_not_absolute_counts_as_unset(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the system's entry of the user counts, and the working folder never does."""
    monkeypatch.setenv("HOME", home)
    assert expanded("~/tokens") == Path(pwd.getpwuid(os.getuid()).pw_dir) / "tokens"


def test_an_absolute_home_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """``~`` is expanded at the beginning only."""
    monkeypatch.setenv("HOME", "/home/u")
    assert expanded("~/tokens") == Path("/home/u/tokens")
    assert expanded("a/~/b") == Path("a/~/b")


def test_an_unknown_user_has_no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """``~user`` of an unknown user is a missing file, and so is ``~`` for a user whom the system does not know."""
    for path in ("~no-such-user/x", "~no-such-user"):
        with pytest.raises(FileNotFoundError, match="there is no such home folder"):
            content_of(path)

    def unknown(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setenv("HOME", "relative")
    with pytest.raises(FileNotFoundError):
        expanded("~/x")
