"""The file backend: ``file:///path`` or ``file://``, for the processes of one host, without a server.

Each key has at most these files in the folder, named after it:

- ``.json``: the record. Another program that knows the format may read it or put one there.
- ``.state``: the last fence, the lease, the cooldown, and when the record's countdown ends.
- ``.mutex``: locked for the few system calls that change the other files. It holds a copy of the last fence and is
  never deleted.
- ``.holder``: exists during a lease. Its holder keeps it locked, so the death of the holder is noticed at once. A
  holder that is stopped or hangs loses the lease when its ``ttl`` ends.
- ``….new``: a new version of one of these files. It remains only if a process was killed while writing.

Reads take no lock and also work in a read-only folder. Files are not synced to the disk.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tokencache._engine.clock import steady_clock
from tokencache._files import expanded
from tokencache._fork import Stage, enrol, notice_fork
from tokencache._record import LARGEST_FENCE, is_another, is_late, next_fence
from tokencache.backends._polling import PollPacer
from tokencache.backends.file import _flock
from tokencache.backends.file._folder import LIMIT, Folder, unavailable
from tokencache.backends.file._key_files import KeyFiles, stem_of
from tokencache.backends.file._state import Countdown, Lease, Pause, Term, digest
from tokencache.errors import BackendClosed, BackendUnavailable, ConfigurationError
from tokencache.health import failed, ok
from tokencache.ports import Found, Granted, Held, LeaseGrant, Slot
from tokencache.shared import Shared

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from tokencache.backends.file._folder import OpenFolder
    from tokencache.backends.file._state import State
    from tokencache.health import Finding
    from tokencache.ports import Clock, Cooldown, LeaseReply, Stored
    from tokencache.url import BackendURL

_POLL: Final = 0.05
_TRIES: Final = 4


def from_url(url: BackendURL) -> FileBackend:
    """Return the backend of a ``file:`` URL; its one option is ``poll``, the longest poll interval."""
    if url.username or url.password or url.path == "/" or [host for host in url.hosts if host != ("localhost", None)]:
        message = (
            "a file: URL names a folder, as in file:///path/to/folder, or none for the user's cache folder: file://"
        )
        raise ConfigurationError(message)
    poll = url.typed_options({"poll": "duration"}).get("poll", _POLL)
    return FileBackend(url.path or None, poll=float(poll))


class FileBackend(Shared):
    """Records and leases as files in ``folder``; without one, in the user's cache folder.

    The first write makes the folder, with mode 700. ``ConfigurationError`` is raised if another user owns the folder
    or can write to it. ``poll`` is the longest poll interval of :meth:`wait`, in seconds. ``clock`` must be a steady
    clock of the whole machine, and ``wall`` gives epoch seconds; both are for tests.
    """

    name = "file"

    def __init__(
        self,
        folder: str | os.PathLike[str] | None = None,
        *,
        clock: Clock | None = None,
        wall: Callable[[], float] = time.time,
        poll: float = _POLL,
    ) -> None:
        _flock.require()
        if not 0 < poll <= 10:  # noqa: PLR2004
            message = f"the poll of a file backend is a pause between 0 and 10 seconds, not {poll!r}"
            raise ConfigurationError(message)
        self._folder = Folder(_cache_folder() if folder is None else _named_folder(folder))
        self._clock = clock or steady_clock()
        self._wall = wall
        self._pacer = PollPacer(poll / 10, poll)
        self._held: dict[tuple[str, str], tuple[int, int]] = {}
        self._mutexes: set[int] = set()
        self._highest = 0
        self._guard = threading.Lock()  # guards _held, _highest
        self._closing = threading.Event()
        enrol(Stage.CONNECTIONS, self.after_fork)

    def __repr__(self) -> str:
        """Return the folder."""
        return f"FileBackend({str(self._folder.path)!r})"

    def record_path(self, key: str) -> Path:
        """Return the path of the record of ``key``, for another program that reads or stores it."""
        return self._folder.path / f"{stem_of(key)}.json"

    def load(self, key: str) -> Stored | None:
        """Return the record, or ``None``."""
        with self._reading("read the record", key) as files:
            return files.stored(self._clock()) if files else None

    def lease(self, key: str, owner: str, identity: str, seen: bytes | None, ttl: float) -> LeaseReply:
        """Ask for the lease."""
        for _ in range(_TRIES):
            with self._writing("take the lease", key) as files:
                reply = self._ask(files, LeaseGrant(key, owner, 0, ttl), identity, seen)
                if files.mutex_stands():
                    return reply
        message = f"file backend: another program keeps deleting {stem_of(key)}.mutex in {self._folder.path}; stop it"
        raise BackendUnavailable(message)

    def commit(self, lease: LeaseGrant, data: bytes, ttl: float) -> bool:
        """Store the record and free the lease; waiters see it at their next poll."""
        if len(data) > LIMIT:
            message = f"file backend: a record of {len(data)} bytes is not stored; the limit is {LIMIT}"
            raise BackendUnavailable(message)
        with self._writing("store the record", lease.key) as files:
            now = self._clock()
            state = files.state()
            stored, own = files.stored(now), _is_live(lease, state, now)
            late = is_late(lease.fence, None if stored is None else stored.data, held=own)
            if late or (files.record_fence() or 0) > lease.fence:  # INV-3, also against a record that has ended
                return False
            files.write_record(data)
            files.write_state(
                replace(
                    state,
                    fence=max(state.fence, lease.fence),
                    lease=None if own else state.lease,
                    countdown=Countdown(digest(data), Term(now + ttl, ttl)),
                )
            )
            if own:
                files.remove_holder()
        self._let_go(lease)
        return True

    def release(self, lease: LeaseGrant, cooldown: Cooldown | None = None) -> None:
        """Free the lease if it is still the caller's, and store ``cooldown``; after ``close`` the lease is free."""
        if self._closing.is_set():
            return
        try:
            with self._writing("free the lease", lease.key) as files:
                now = self._clock()
                state = files.state()
                if _is_live(lease, state, now):
                    pause = Pause(cooldown, Term(now + cooldown.remaining, cooldown.remaining)) if cooldown else None
                    if files.stored(now) is None:
                        files.remove_record()  # an ended token does not stay on the disk
                    files.write_state(replace(state, lease=None, pause=pause))
                    files.remove_holder()
        finally:
            self._let_go(lease)  # also if a write failed: otherwise others wait until the lease ends

    def extend(self, lease: LeaseGrant, ttl: float) -> bool:
        """Make the lease last ``ttl`` seconds from now."""
        with self._writing("extend the lease", lease.key) as files:
            now = self._clock()
            state = files.state()
            if not _is_live(lease, state, now):
                return False
            files.write_state(replace(state, lease=Lease(lease.owner, Term(now + ttl, ttl))))
            return True

    def wait(self, key: str, seen: bytes | None, timeout: float) -> None:
        """Poll every few milliseconds until the record changes, the lease is free or its holder is dead."""
        give_up = time.monotonic() + timeout
        last: _Look | None = None
        with self._pacer:
            while True:
                with self._reading("wait for the lease", key) as files:
                    last = self._look(files, seen, last) if files else None
                left = give_up - time.monotonic()
                if last is None or left <= 0:
                    return
                if self._closing.wait(min(self._pacer.pause(), left, max(last.lease_left, 0.001))):
                    return

    def discard(self, key: str, seen: bytes) -> bool:
        """Delete the record if its bytes are ``seen``."""
        with self._writing("delete the record", key) as files:
            stored = files.stored(self._clock())
            if stored is None or stored.data != seen:
                return False
            files.remove_record()
            return True

    def inspect(self, key: str) -> Slot:
        """Report record, lease and cooldown."""
        with self._reading("read the state", key) as files:
            if files is None:
                return Slot(None)
            now = self._clock()
            state = files.state()
            stored = files.stored(now)
            lease = state.live_lease(now)
            if lease is not None and not files.holder_is_dead():
                return Slot(stored, lease.owner, lease.term.remaining(now))
            cooldown = state.live_cooldown(now)
            return Slot(stored, remaining=cooldown.remaining if cooldown else None, cooldown=cooldown)

    def findings(self, key: str) -> Iterator[Finding]:
        """Check access to the folder and free disk space (:mod:`tokencache.health`)."""
        del key
        path = self._folder.path
        there = next(place for place in (path, *path.parents) if place.exists())
        made = "" if there == path else ", which is made when it is first written to"
        yield ok("sharing", f"by the processes of this host and user that use {path}{made}")
        room = os.statvfs(there)
        left = room.f_bavail * room.f_frsize
        if left < LIMIT:
            yield failed("room", f"{left} bytes are left on the disk of {there}", "make room, or name another folder")
        else:
            yield ok("room", f"{left / 2**20:,.0f} MiB are left on the disk")

    def close(self) -> None:
        """Free all leases; from then on, every call but ``release`` and ``close`` raises ``BackendClosed``."""
        self._closing.set()
        with self._guard:
            descriptors = [fd for _, fd in self._held.values()]
            self._held.clear()
        for fd in descriptors:
            _flock.free(fd)

    def after_fork(self) -> None:
        """Forget the parent's leases in the child, without unlocking them: they end with the parent."""
        for fd in [*self._mutexes, *(fd for _, fd in self._held.values())]:
            os.close(fd)
        self._mutexes, self._held = set(), {}
        self._guard = threading.Lock()
        self._pacer.after_fork()
        closed, self._closing = self._closing.is_set(), threading.Event()
        if closed:
            self._closing.set()

    def _ask(self, files: KeyFiles, wanted: LeaseGrant, identity: str, seen: bytes | None) -> LeaseReply:
        """Answer ``lease`` while the mutex is held."""
        now = self._clock()
        state = files.state()
        stored = files.stored(now)
        if stored is not None and is_another(stored.data, seen):
            return Found(stored)

        lease = state.live_lease(now)
        if lease is not None and lease.owner == wanted.owner:
            return Granted(self._grant(files, state, replace(wanted, fence=state.fence), now))
        if lease is not None and not files.holder_is_dead():
            return Held(lease.term.remaining(now))

        cooldown = state.live_cooldown(now)
        if cooldown is not None and cooldown.identity == identity:
            return Held(cooldown.remaining, cooldown)
        earlier = (state.fence, files.mutex_fence(), self._highest)
        fence = next_fence(self._wall(), files.record_fence(), *earlier)
        return Granted(self._grant(files, state, replace(wanted, fence=fence), now))

    def _grant(self, files: KeyFiles, state: State, grant: LeaseGrant, now: float) -> LeaseGrant:
        """Write a grant: a new one, or the one that its owner asks for again."""
        term = Term(now + grant.ttl, grant.ttl)
        written = replace(state, fence=grant.fence, lease=Lease(grant.owner, term), pause=None)
        again = grant.fence == state.fence
        if again and (self._keeps(grant) or not files.holder_is_dead()):
            files.write_state(written)
            return grant

        fd = files.place_holder()
        try:
            # The mutex file first: a granted fence must stay known even if the state file is lost (INV-3).
            files.write_mutex_fence(grant.fence)
            files.write_state(written)
        except BaseException:
            _flock.free(fd)
            raise
        self._keep(grant, fd)
        return grant

    def _keeps(self, grant: LeaseGrant) -> bool:
        with self._guard:
            fence, _ = self._held.get((grant.key, grant.owner), (0, 0))
            return fence == grant.fence

    def _keep(self, grant: LeaseGrant, fd: int) -> None:
        """Keep the lock of a lease; unlock an earlier one of the same owner, and any lock after ``close``."""
        done: int | None = fd
        with self._guard:
            if not self._closing.is_set():
                _, done = self._held.pop((grant.key, grant.owner), (0, None))
                self._held[grant.key, grant.owner] = grant.fence, fd
            self._highest = max(self._highest, grant.fence)
        if done is not None:
            _flock.free(done)

    def _let_go(self, lease: LeaseGrant) -> None:
        with self._guard:
            fence, fd = self._held.get((lease.key, lease.owner), (0, 0))
            if fence != lease.fence:
                return
            del self._held[lease.key, lease.owner]
        _flock.free(fd)

    def _look(self, files: KeyFiles, seen: bytes | None, last: _Look | None) -> _Look | None:
        """Poll once; return ``None`` when the wait is over. Only files that changed since ``last`` are read again."""
        now = self._clock()
        raw, signature = files.raw_state(), files.record_signature()
        if last is not None and (last.raw, last.signature) == (raw, signature):
            state = last.state
        else:
            state = files.parsed(raw)
            stored = files.stored(now)
            if stored is not None and is_another(stored.data, seen):
                return None
        lease = state.live_lease(now)
        if lease is None or files.holder_is_dead():
            return None
        return _Look(raw, signature, state, lease.term.remaining(now))

    @contextmanager
    def _reading(self, what: str, key: str) -> Generator[KeyFiles | None]:
        """Yield the files of a key, ``None`` when the folder is missing; an ``OSError`` is translated."""
        self._require_open()
        with unavailable(what, key, self._folder.path):
            try:
                folder = self._folder.open(make=False)
            except FileNotFoundError:
                folder = None
            if folder is None:
                yield None
                return
            with folder:
                yield KeyFiles(folder, stem_of(key))

    @contextmanager
    def _writing(self, what: str, key: str) -> Generator[KeyFiles]:
        """Yield the files of a key while the mutex is held; an ``OSError`` is translated."""
        self._require_open()
        stem = stem_of(key)
        with unavailable(what, key, self._folder.path):
            folder, mutex = self._locked(f"{stem}.mutex")
            self._mutexes.add(mutex)
            try:
                yield KeyFiles(folder, stem, mutex)
            finally:
                self._mutexes.discard(mutex)
                _flock.free(mutex)
                folder.close()

    def _locked(self, name: str) -> tuple[OpenFolder, int]:
        for _ in range(_TRIES - 1):
            folder = self._folder.open(make=True)
            try:
                return folder, folder.lock(name)
            except FileNotFoundError:  # the folder was removed a moment ago
                folder.close()
            except BaseException:
                folder.close()
                raise
        raise FileNotFoundError(self._folder.path)

    def _require_open(self) -> None:
        notice_fork()
        if self._closing.is_set():
            message = f"the file backend in {self._folder.path} was closed; make another one"
            raise BackendClosed(message)


@dataclass(frozen=True, slots=True)
class _Look:
    """The state of the files at a waiter's last poll."""

    raw: bytes | None
    signature: tuple[int, int, int] | None
    state: State
    lease_left: float


def _is_live(lease: LeaseGrant, state: State, now: float) -> bool:
    """Return whether the owner still holds the lease: it has not ended, and no other owner took it."""
    live = state.live_lease(now)
    return live is not None and live.owner == lease.owner and state.fence == min(lease.fence, LARGEST_FENCE)


def _named_folder(folder: str | os.PathLike[str]) -> Path:
    """Return the absolute path of a folder that the caller names."""
    try:
        return expanded(folder).absolute()
    except FileNotFoundError:
        message = f"the folder {os.fspath(folder)!r} names a user without a home folder; name another folder"
        raise ConfigurationError(message) from None


def _cache_folder() -> Path:
    """Return the user's cache folder for tokens, by the convention of the operating system."""
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        if sys.platform == "darwin":
            base = expanded("~/Library/Caches")
        else:  # the XDG specification: relative paths are ignored
            base = named if named.is_absolute() else expanded("~/.cache")
    except FileNotFoundError:
        message = "the user has no home folder for the file backend; name a folder: file:///path/to/folder"
        raise ConfigurationError(message) from None
    return base / "tokencache"
