"""A folder that only this user can write to, and the files in it, opened without following symbolic links.

All access goes through a descriptor of the folder, which is checked each time it is opened. So the folder cannot be
exchanged after the check. Files are replaced by rename: a reader sees the whole old content or the whole new content.
Files are not synced to the disk: a record lost in a power cut costs one fetch, and a sync would slow every commit.
"""

from __future__ import annotations

import errno
import logging
import os
import random
import shlex
import stat
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final, Self

from tokencache.backends.file import _flock
from tokencache.errors import BackendUnavailable, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path
    from types import TracebackType

LIMIT: Final = 1 << 20
_LOG: Final = logging.getLogger("tokencache.backends.file")
_PATIENCE: Final = 2.0
_LONGEST_PAUSE: Final = 0.005
_NOT_A_FILE: Final = frozenset({errno.ELOOP, errno.EMLINK, errno.EACCES, errno.ENXIO})
_FULL: Final = "make room on the disk"
_LOCKED_OUT: Final = "make the folder writable for this user (chmod 700), or name another one"
_ADVICE: Final = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: _FULL,
    errno.EACCES: _LOCKED_OUT,
    errno.EPERM: _LOCKED_OUT,
    errno.EROFS: _LOCKED_OUT,
    errno.ELOOP: "a file of the backend is a symbolic link: delete it",
    errno.EMFILE: "this process has too many files open",
    errno.ENFILE: "the machine has too many files open",
}


@contextmanager
def unavailable(what: str, key: str, path: Path) -> Generator[None]:
    """Turn an ``OSError`` into ``BackendUnavailable`` that names the action, the key and the remedy."""
    try:
        yield
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0, "check the folder")
        reason = error.strerror or type(error).__name__
        message = f"file backend: cannot {what} of {key[:80]!a} in {path}: {reason}; {advice}"
        raise BackendUnavailable(message) from error


class Folder:
    """A path at which a private folder is, or can be made."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def open(self, *, make: bool) -> OpenFolder:
        """Open and check the folder.

        Raises ``FileNotFoundError`` if it is missing and ``make`` is false, ``ConfigurationError`` if another user
        owns it or can write to it.
        """
        try:
            return self._open()
        except FileNotFoundError:
            if not make:
                raise
        self._make()
        return self._open()

    def _open(self) -> OpenFolder:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        if not self._is_own_link():
            flags |= os.O_NOFOLLOW
        try:
            fd = os.open(self.path, flags)
        except NotADirectoryError:
            why, remedy = "it is not a folder", "name a folder, or remove what is there"
            raise self._refused(why, remedy) from None
        try:
            return OpenFolder(fd, self.path, others_enter=self._others_enter(os.fstat(fd)))
        except BaseException:
            os.close(fd)
            raise

    def _is_own_link(self) -> bool:
        status = os.lstat(self.path)
        if not stat.S_ISLNK(status.st_mode):
            return False
        if status.st_uid not in {os.geteuid(), 0}:
            why = f"it is a symbolic link made by another user (uid {status.st_uid})"
            raise self._refused(why, "name another folder, or remove the link and make a folder there (chmod 700)")
        return True

    def _others_enter(self, status: os.stat_result) -> bool:
        """Return whether other users can read the files; raise for a folder in which they could create some."""
        if status.st_uid != os.geteuid():
            why = f"it belongs to another user (uid {status.st_uid})"
            raise self._refused(why, "name a folder of this user's own, kept private by chmod 700")
        if status.st_mode & 0o022:
            why = "others can write to it"
            raise self._refused(why, f"run: chmod 700 {shlex.quote(str(self.path))}")
        return bool(status.st_mode & 0o011)

    def _make(self) -> None:
        missing = [self.path]
        while not os.path.lexists(parent := missing[-1].parent):
            missing.append(parent)
        for path in reversed(missing):
            with suppress(FileExistsError):  # another process was quicker; _open says so if it is not a folder
                path.mkdir(mode=0o700)
                if path.stat().st_mode & 0o700 != 0o700:  # noqa: PLR2004  (the umask takes rights from their owner)
                    path.chmod(0o700)

    def _refused(self, why: str, remedy: str) -> ConfigurationError:
        return ConfigurationError(f"the file backend does not keep tokens in {self.path}, because {why}; {remedy}")


class OpenFolder:
    """A checked, open folder; names are those of files directly in it."""

    def __init__(self, fd: int, path: Path, *, others_enter: bool) -> None:
        self._fd = fd
        self.path = path
        self._others_enter = others_enter

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the folder."""
        os.close(self._fd)

    def read(self, name: str) -> bytes | None:
        """Return the content of a file, or ``None`` if it is missing; also, with a warning, if it cannot be trusted."""
        try:
            fd = self._descriptor(name, os.O_RDONLY | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno not in _NOT_A_FILE:
                raise
            _warn(name, os.strerror(error.errno))
            return None
        try:
            why = self._distrust(os.fstat(fd))
            data = b"" if why else _read(fd)
        finally:
            os.close(fd)
        if why is None and len(data) > LIMIT:
            why = f"it is larger than {LIMIT} bytes"
        if why:
            _warn(name, why)
            return None
        return data

    def write(self, name: str, data: bytes) -> None:
        """Replace the file by one with this content, atomically. The caller must be the only writer of ``name``."""
        fd = self._create(f"{name}.new")
        try:
            _write(fd, data)
            self._rename(f"{name}.new", name)
        except BaseException:
            self.remove(f"{name}.new")
            raise
        finally:
            os.close(fd)

    def place_locked(self, name: str) -> int:
        """Replace the file by an empty one that is locked before another process can see it; return its descriptor."""
        fd = self._create(f"{name}.new")
        try:
            _flock.seize(fd)
            self._rename(f"{name}.new", name)
        except BaseException:
            os.close(fd)
            self.remove(f"{name}.new")
            raise
        return fd

    def remove(self, name: str) -> None:
        """Delete the file if it is there."""
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._fd)

    def signature(self, name: str) -> tuple[int, int, int] | None:
        """Return a value that changes whenever the file is replaced; ``None`` if the file is missing."""
        try:
            status = os.stat(name, dir_fd=self._fd, follow_symlinks=False)
        except FileNotFoundError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size

    def unlocked(self, name: str) -> bool:
        """Return whether the file exists without a lock, which means that its holder died."""
        try:
            fd = self._descriptor(name, os.O_RDONLY | os.O_NONBLOCK)
        except FileNotFoundError:
            return False
        try:
            return _flock.seize(fd, shared=True)  # shared: two waiters must not mistake each other for the holder
        finally:
            os.close(fd)

    def lock(self, name: str) -> int:
        """Return a locked descriptor of the file, made if missing; wait for the lock up to ``_PATIENCE`` seconds.

        Raises ``BackendUnavailable`` if another process keeps the lock, because it was stopped while holding it.
        """
        give_up = time.monotonic() + _PATIENCE
        pause = _LONGEST_PAUSE / 32
        while True:
            fd = self._descriptor(name, os.O_RDWR | os.O_CREAT)
            try:
                self._require_own(fd, name)
                if _flock.seize(fd) and self.is_still(name, fd):
                    return fd
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)
            if time.monotonic() > give_up:
                message = (
                    f"file backend: another process has kept {name} in {self.path} locked for {_PATIENCE:g} s; "
                    "is it stopped? Continue it or end it"
                )
                raise BackendUnavailable(message)
            time.sleep(random.uniform(pause / 2, pause))  # noqa: S311 (jitter)
            pause = min(pause * 2, _LONGEST_PAUSE)

    def is_still(self, name: str, fd: int) -> bool:
        """Return whether the descriptor is of the file that now has the name, not of a deleted one."""
        mine = os.fstat(fd)
        try:
            theirs = os.stat(name, dir_fd=self._fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return os.path.samestat(mine, theirs)

    def _require_own(self, fd: int, name: str) -> None:
        status = os.fstat(fd)
        if why := self._distrust(status):
            raise OSError(errno.EINVAL, f"{name} is not usable, because {why}", name)
        _grant(fd, status)

    def _descriptor(self, name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self._fd)

    def _create(self, name: str) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        try:
            fd = self._descriptor(name, flags)
        except FileExistsError:  # left behind by a writer that was killed
            self.remove(name)
            fd = self._descriptor(name, flags)
        _grant(fd, os.fstat(fd))
        return fd

    def _rename(self, source: str, target: str) -> None:
        os.replace(source, target, src_dir_fd=self._fd, dst_dir_fd=self._fd)

    def _distrust(self, status: os.stat_result) -> str | None:
        if not stat.S_ISREG(status.st_mode):
            return "it is not a regular file"
        if status.st_uid != os.geteuid():
            return f"it belongs to another user (uid {status.st_uid})"
        if self._others_enter and status.st_mode & 0o022:
            return "others can write to it"
        return None


def _grant(fd: int, status: os.stat_result) -> None:
    """Give the owner the rights that an odd umask took when the file was made."""
    if status.st_mode & 0o600 != 0o600:  # noqa: PLR2004
        os.fchmod(fd, 0o600)


def _read(fd: int) -> bytes:
    data = b""
    while len(data) <= LIMIT and (part := os.read(fd, LIMIT + 1 - len(data))):
        data += part
    return data


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _warn(name: str, why: str) -> None:
    _LOG.warning("file backend: %s is ignored, because %s; delete it", name, why)
