"""The folder of the file backend: whom it trusts, and what happens where the disk fails."""

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
NOBODY = 65534


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Give the path of a folder that is not there yet."""
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
    """Store a record by the front door and return it."""
    last = backend.load(KEY)
    lease = granted(ask(backend, "gardener", last.data if last else None))
    data = record(lease.fence, value)
    assert backend.commit(lease, data, ttl)
    return data


@contextmanager
def as_another_user(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let everything that is on the disk belong to somebody else."""
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: NOBODY - 1)
        yield


@pytest.fixture
def powerless() -> Iterator[Path]:
    """Give a new folder of a user whom file modes bind, which they do not for root, and be that user."""
    path = Path(tempfile.mkdtemp(dir="/tmp", prefix="tokencache-test-"))
    was = os.geteuid()
    if was == 0:
        os.chown(path, NOBODY, NOBODY)
        os.seteuid(NOBODY)
    try:
        yield path / "tokens"
    finally:
        os.seteuid(was)
        if (path / "tokens").exists():
            (path / "tokens").chmod(0o700)
        shutil.rmtree(path)


# --- the folder and whom it trusts


def test_folder_and_files_are_private(tmp_path: Path) -> None:
    """Missing parents and the folder get mode 700, each file 600, even where the umask would let everybody in."""
    backend = FileBackend(tmp_path / "a" / "b" / "tokens")
    was = os.umask(0)
    try:
        store(backend)
        granted(ask(backend, "b", store(backend)))
    finally:
        os.umask(was)
    folder = tmp_path / "a" / "b" / "tokens"
    assert {path.stat().st_mode & 0o777 for path in (folder, folder.parent, folder.parent.parent)} == {0o700}
    files = list(folder.iterdir())
    assert {path.suffix for path in files} == {".json", ".state", ".mutex", ".holder"}
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    backend.close()


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777, 0o720, 0o1777])
def test_a_folder_that_others_can_write_to_is_refused(backend: FileBackend, folder: Path, mode: int) -> None:
    """Where others could plant a token none is read and none is stored; the message says what to do."""
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
    """A folder that somebody else made holds what somebody else wants us to send."""
    store(backend)
    with as_another_user(monkeypatch), pytest.raises(ConfigurationError, match=r"belongs to another user.*chmod 700"):
        backend.load(KEY)


def test_a_link_made_by_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link planted in place of the folder is not followed, wherever it leads."""
    (tmp_path / "mine").mkdir(mode=0o700)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "mine")
    if os.geteuid() == 0:
        os.lchown(link, NOBODY, NOBODY)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: NOBODY - 1)
    backend = FileBackend(link)
    for call in (lambda: backend.load(KEY), lambda: ask(backend)):
        with pytest.raises(ConfigurationError, match="symbolic link made by another user"):
            call()
    assert list((tmp_path / "mine").iterdir()) == []


def test_a_link_of_ones_own_is_followed(tmp_path: Path) -> None:
    """Who links the folder to a roomier place may."""
    (tmp_path / "mine").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    backend = FileBackend(tmp_path / "link")
    store(backend)
    assert (tmp_path / "mine" / backend.record_path(KEY).name).exists()


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    """A path that is no folder is a mistake of configuration, said so."""
    (tmp_path / "tokens").write_text("")
    with pytest.raises(ConfigurationError, match="it is not a folder; name a folder"):
        FileBackend(tmp_path / "tokens").load(KEY)


def test_a_record_that_is_a_link_is_a_miss(
    backend: FileBackend, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A planted link is neither read nor written through: the next commit replaces the link itself."""
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
    """A pipe does not hang the reader, a huge file is not read, one that others can write to is not believed."""
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
    """One mebibyte is the limit, and within it."""
    store(backend)
    data = record(None).ljust(1 << 20)
    backend.record_path(KEY).write_bytes(data)
    stored = backend.load(KEY)
    assert stored is not None
    assert stored.data == data


def test_a_record_over_the_limit_is_not_stored(backend: FileBackend) -> None:
    """What could not be read back is refused, and what was there stays."""
    data = store(backend)
    lease = granted(ask(backend, seen=data))
    with pytest.raises(BackendUnavailable, match="the limit is 1048576"):
        backend.commit(lease, record(lease.fence).ljust((1 << 20) + 1), 60.0)
    stored = backend.load(KEY)
    assert stored is not None
    assert stored.data == data


# --- folders and disks that fail


def test_a_read_only_folder_is_still_read(powerless: Path) -> None:
    """INV-4: reading goes on where nothing can be written, and writing says why it cannot."""
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


def test_a_folder_that_cannot_be_made_is_said_so(powerless: Path) -> None:
    """A parent that may not be written to makes the backend unavailable, with the reason; there is no record."""
    powerless.mkdir(mode=0o500)
    backend = FileBackend(powerless / "deeper")
    assert backend.load(KEY) is None
    with pytest.raises(
        BackendUnavailable, match=r"cannot take the lease of 'qpay:access_token' in .*Permission denied"
    ):
        ask(backend)


def test_a_full_disk_refuses_writes_only(backend: FileBackend, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """INV-4: the record stays whole and readable, no half-written file is left, and no lease is kept for nothing."""
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


def test_a_folder_removed_under_us_is_made_again(backend: FileBackend, folder: Path) -> None:
    """A token is stored and leased again after somebody swept the whole folder away; the fence does not fall."""
    before = granted(ask(backend, seen=store(backend)))
    shutil.rmtree(folder)
    assert backend.load(KEY) is None
    backend.wait(KEY, None, 10.0)
    assert backend.extend(before, 3.0) is False
    after = granted(ask(backend, "b"))
    assert after.fence > before.fence
    assert backend.commit(after, record(after.fence), 60.0) is True
    assert backend.load(KEY) is not None


def test_a_folder_removed_in_mid_call_is_made_again(
    backend: FileBackend, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweep between opening the folder and the first file in it costs nothing."""
    store(backend)
    opened = backend._folder.open

    def swept(*, make: bool) -> OpenFolder:
        monkeypatch.setattr(backend._folder, "open", opened)
        found = opened(make=make)
        shutil.rmtree(folder)
        return found

    monkeypatch.setattr(backend._folder, "open", swept)
    granted(ask(backend))
