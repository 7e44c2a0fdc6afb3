"""The folder of the file backend: which owners and modes it trusts, and what happens if the disk fails."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tokencache.backends.file import FileBackend
from tokencache.errors import BackendUnavailable, ConfigurationError
from tokencache.testing.probes import granted, record

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokencache.backends.file._folder import OpenFolder
    from tokencache.ports import LeaseReply

KEY = "qpay:access_token"
OTHER_USER = 65534


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Give the path of a folder that does not exist yet."""
    return tmp_path / "cache" / "tokens"


@pytest.fixture
def backend(folder: Path) -> Iterator[FileBackend]:
    """Give a backend in that folder."""
    made = FileBackend(folder)
    yield made
    made.close()


def ask(backend: FileBackend, owner: str = "a", seen: bytes | None = None, ttl: float = 3.0) -> LeaseReply:
    """Ask for the lease of the one key."""
    return backend.lease(KEY, owner, "identity", seen, ttl)


def store(backend: FileBackend, value: str = "one", ttl: float = 60.0) -> bytes:
    """Store a record through the public methods and return it."""
    last = backend.load(KEY)
    lease = granted(ask(backend, "gardener", last.data if last else None))
    data = record(lease.fence, value)
    assert backend.commit(lease, data, ttl)
    return data


@contextmanager
def as_another_user(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make every file on the disk look as if another user owned it."""
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: OTHER_USER - 1)
        yield


@pytest.fixture
def powerless() -> Iterator[Path]:
    """Give a new folder, and run as a user whom file modes bind; they do not bind root."""
    path = Path(tempfile.mkdtemp(dir="/tmp", prefix="tokencache-test-"))
    was = os.geteuid()
    if was == 0:
        os.chown(path, OTHER_USER, OTHER_USER)
        os.seteuid(OTHER_USER)
    try:
        yield path / "tokens"
    finally:
        os.seteuid(was)
        if (path / "tokens").exists():
            (path / "tokens").chmod(0o700)
        shutil.rmtree(path)


# --- owners and modes


@pytest.mark.parametrize("umask", [0, 0o077, 0o177, 0o277, 0o777])
def test_folder_and_files_are_private(umask: int, powerless: Path) -> None:
    """Missing parents and the folder get mode 700, each file 600, whatever the umask is."""
    backend = FileBackend(powerless / "b" / "tokens")
    was = os.umask(umask)
    try:
        store(backend)
        granted(ask(backend, "b", store(backend)))
    finally:
        os.umask(was)
    folder = powerless / "b" / "tokens"
    assert {path.stat().st_mode & 0o777 for path in (folder, folder.parent, folder.parent.parent)} == {0o700}
    files = list(folder.iterdir())
    assert {path.suffix for path in files} == {".json", ".state", ".mutex", ".holder"}
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    assert FileBackend(folder).load(KEY) is not None
    backend.close()


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777, 0o720, 0o1777])
def test_a_folder_that_others_can_write_to_is_refused(backend: FileBackend, folder: Path, mode: int) -> None:
    """In a folder where others could plant a token, none is read or stored; the message names the remedy."""
    data = store(backend)
    folder.chmod(mode)
    for call in (lambda: backend.load(KEY), lambda: ask(backend), lambda: backend.inspect(KEY)):
        with pytest.raises(ConfigurationError, match="others can write to it; run: chmod 700 ") as caught:
            call()
        assert "\n" not in str(caught.value)
    folder.chmod(0o755)
    stored = backend.load(KEY)
    assert stored is not None
    assert stored.data == data


def test_a_folder_of_another_user_is_refused(backend: FileBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of another user may hold tokens which that user planted."""
    store(backend)
    with as_another_user(monkeypatch), pytest.raises(ConfigurationError, match=r"belongs to another user.*chmod 700"):
        backend.load(KEY)


def test_a_link_made_by_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link that another user put in place of the folder is not followed, wherever it leads."""
    (tmp_path / "mine").mkdir(mode=0o700)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "mine")
    if os.geteuid() == 0:
        os.lchown(link, OTHER_USER, OTHER_USER)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: OTHER_USER - 1)
    backend = FileBackend(link)
    for call in (lambda: backend.load(KEY), lambda: ask(backend)):
        with pytest.raises(ConfigurationError, match="symbolic link made by another user"):
            call()
    assert list((tmp_path / "mine").iterdir()) == []


def test_a_link_of_ones_own_is_followed(tmp_path: Path) -> None:
    """Users may link the folder to another place."""
    (tmp_path / "mine").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    backend = FileBackend(tmp_path / "link")
    store(backend)
    assert (tmp_path / "mine" / backend.record_path(KEY).name).exists()


def test_a_file_instead_of_the_folder_is_refused(tmp_path: Path) -> None:
    """If the path is not a folder, the error is a ConfigurationError that says so."""
    (tmp_path / "tokens").write_text("")
    with pytest.raises(ConfigurationError, match="it is not a folder; name a folder"):
        FileBackend(tmp_path / "tokens").load(KEY)


def test_a_record_that_is_a_link_is_a_miss(
    backend: FileBackend, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A planted link is neither read nor written through: the next commit replaces the link."""
    store(backend)
    target = tmp_path / "target"
    target.write_bytes(record(None, "planted"))
    backend.record_path(KEY).unlink()
    backend.record_path(KEY).symlink_to(target)
    assert backend.load(KEY) is None
    assert "is ignored" in caplog.text
    store(backend, "two")
    assert target.read_bytes() == record(None, "planted")
    assert not backend.record_path(KEY).is_symlink()
    assert backend.load(KEY) is not None


@pytest.mark.parametrize("kind", ["pipe", "folder", "large", "writable"])
def test_a_record_that_is_not_a_small_private_file_is_a_miss(
    backend: FileBackend, folder: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A pipe does not hang the reader; a huge file is not read; a file that others can write is not trusted."""
    store(backend)
    path = backend.record_path(KEY)
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path, 0o600)
    elif kind == "folder":
        path.mkdir()
    elif kind == "large":
        path.write_bytes(record(None).ljust((1 << 20) + 1))
    else:
        path.write_bytes(record(None))
        path.chmod(0o666)
        folder.chmod(0o755)
    assert backend.load(KEY) is None
    assert [each.levelno for each in caplog.records] == [logging.WARNING]
    assert caplog.records[0].name == "tokencache.backends.file"
    assert "access" not in caplog.text.replace(path.name, "")
    granted(ask(backend))


def test_a_record_of_the_largest_size_is_read(backend: FileBackend) -> None:
    """One mebibyte is the limit, inclusive."""
    store(backend)
    data = record(None).ljust(1 << 20)
    backend.record_path(KEY).write_bytes(data)
    stored = backend.load(KEY)
    assert stored is not None
    assert stored.data == data


def test_a_record_over_the_limit_is_not_stored(backend: FileBackend) -> None:
    """A record that could not be read back is refused, and the record before it stays."""
    data = store(backend)
    lease = granted(ask(backend, seen=data))
    with pytest.raises(BackendUnavailable, match="the limit is 1048576"):
        backend.commit(lease, record(lease.fence).ljust((1 << 20) + 1), 60.0)
    stored = backend.load(KEY)
    assert stored is not None
    assert stored.data == data


# --- folders and disks that fail


def test_a_read_only_folder_is_still_read(powerless: Path) -> None:
    """INV-4: records in a read-only folder are read, and a write raises with the reason."""
    backend = FileBackend(powerless)
    data = store(backend)
    lease = granted(ask(backend, seen=data))
    powerless.chmod(0o500)
    stored = backend.load(KEY)
    assert stored is not None
    assert stored.data == data
    assert backend.inspect(KEY).owner == "a"
    for call in (
        lambda: backend.commit(lease, record(lease.fence), 60.0),
        lambda: backend.extend(lease, 3.0),
        lambda: backend.lease("another key", "a", "identity", None, 3.0),
        lambda: backend.discard(KEY, data),
    ):
        with pytest.raises(BackendUnavailable, match=r"Permission denied; make the folder writable .*chmod 700"):
            call()
    backend.close()


def test_a_folder_that_cannot_be_made_is_an_outage(powerless: Path) -> None:
    """If the parent is not writable, the backend is unavailable, with the reason; a load is a miss."""
    powerless.mkdir(mode=0o500)
    backend = FileBackend(powerless / "deeper")
    assert backend.load(KEY) is None
    with pytest.raises(
        BackendUnavailable, match=r"cannot take the lease of 'qpay:access_token' in .*Permission denied"
    ):
        ask(backend)


def test_a_full_disk_refuses_writes_only(backend: FileBackend, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """INV-4: the record stays complete and readable; no half-written file and no lease is left."""
    data = store(backend)
    lease = granted(ask(backend, seen=data))
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        for call in (
            lambda: backend.commit(lease, record(lease.fence), 60.0),
            lambda: backend.release(lease),
            lambda: ask(backend, "b", seen=data),
        ):
            with pytest.raises(BackendUnavailable, match="No space left on device; make room on the disk"):
                call()
        stored = backend.load(KEY)
        assert stored is not None
        assert stored.data == data
        assert not list(folder.glob("*.new"))
    granted(ask(backend, "b", seen=data))


def full(fd: int, data: bytes) -> int:
    """Fail as a write on a full disk does."""
    raise OSError(28, os.strerror(28))


def test_a_deleted_folder_is_made_again(backend: FileBackend, folder: Path) -> None:
    """After the whole folder was deleted, tokens are stored and leased again; the fence does not fall."""
    before = granted(ask(backend, seen=store(backend)))
    shutil.rmtree(folder)
    assert backend.load(KEY) is None
    backend.wait(KEY, None, 10.0)
    assert backend.extend(before, 3.0) is False
    after = granted(ask(backend, "b"))
    assert after.fence > before.fence
    assert backend.commit(after, record(after.fence), 60.0) is True
    assert backend.load(KEY) is not None


def test_a_folder_deleted_during_a_call_is_made_again(
    backend: FileBackend, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deletion between opening the folder and its first file causes no error."""
    store(backend)
    opened = backend._folder.open

    def swept(*, make: bool) -> OpenFolder:
        monkeypatch.setattr(backend._folder, "open", opened)
        found = opened(make=make)
        shutil.rmtree(folder)
        return found

    monkeypatch.setattr(backend._folder, "open", swept)
    granted(ask(backend))
