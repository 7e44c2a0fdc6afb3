"""The file backend beyond the contract: names, countdowns, fences, lost leases, cleaning up, set-up."""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import subprocess
import sys
import threading
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokencache.backends._polling import PollPacer
from tokencache.backends.file import FileBackend, _flock, _folder, _key_files, from_url
from tokencache.backends.file import _state as _file_state
from tokencache.backends.file._key_files import stem_of
from tokencache.errors import BackendClosed, BackendUnavailable, ConfigurationError
from tokencache.testing.probes import HOSTILE_KEYS, cooldown, found, granted, held, record
from tokencache.url import BackendURL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tokencache.backends.file._state import State
    from tokencache.ports import LeaseGrant, LeaseReply

KEY = "qpay:access_token"
GIANT = b'{"v": 1, "boot": "", "fence": 1, "%b": ' + b"9" * 4_300 + b"}"
OTHER_USER = 65534


class World:
    """Clocks that the test moves: ``clock`` is the machine's steady clock, ``wall`` its wall clock."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.epoch = 1.7e9

    def clock(self) -> float:
        """Read the steady clock."""
        return self.now

    def wall(self) -> float:
        """Read the wall clock."""
        return self.epoch


@pytest.fixture
def world() -> World:
    """Give clocks that stand still."""
    return World()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Give the path of a folder that does not exist yet."""
    return tmp_path / "cache" / "tokens"


@pytest.fixture
def another(folder: Path, world: World) -> Iterator[Callable[[], FileBackend]]:
    """Give a function that makes backends on one folder, each for one process; all are closed at the end."""
    with ExitStack() as stack:

        def make() -> FileBackend:
            backend = FileBackend(folder, clock=world.clock, wall=world.wall)
            stack.callback(backend.close)
            return backend

        yield make


@pytest.fixture
def backend(another: Callable[[], FileBackend]) -> FileBackend:
    """Give a backend with the test's clocks."""
    return another()


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


def path_of(backend: FileBackend, kind: str) -> Path:
    """Return the path of one of the key's files."""
    return backend.record_path(KEY).with_suffix(f".{kind}")


def descriptors(folder: Path) -> list[str]:
    """Return which files in a folder this process has open, and whether the folder itself."""
    listed = []
    for number in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            listed.append(str(number.readlink()))
    return sorted(name for name in listed if name.startswith(str(folder)))


def full(fd: int, data: bytes) -> int:
    """Fail as a write on a full disk does."""
    raise OSError(28, os.strerror(28))


# --- names


@given(st.lists(st.text(min_size=1) | st.text("aA-/.\\é\u0301\ud800", min_size=1), unique=True, max_size=20))
def test_names_are_short_safe_and_unique(keys: list[str]) -> None:
    """Any key makes a plain file name; two keys never share one, also on a disk that ignores case."""
    names = [stem_of(key) for key in keys]
    assert all(re.fullmatch(r"[a-z0-9_]+(-[a-z0-9_]+)*-[0-9a-f]{40}", name) and len(name) <= 100 for name in names)
    assert len({name.casefold() for name in names}) == len(keys)


def test_hostile_keys_stay_inside_the_folder(backend: FileBackend, tmp_path: Path, folder: Path) -> None:
    """No key makes a file outside the folder."""
    for key in HOSTILE_KEYS:
        granted(backend.lease(key, "a", "identity", None, 3.0))
    outside = [path for path in tmp_path.rglob("*") if path.is_file() and path.parent != folder]
    assert outside == []
    assert len(list(folder.glob("*.state"))) == len(HOSTILE_KEYS)


def test_a_file_name_begins_like_its_key(backend: FileBackend) -> None:
    """A person who lists the folder recognises a key."""
    assert backend.record_path(KEY).name.startswith("qpay-access_token-")


# --- countdowns and states


def test_the_countdown_of_a_record_follows_the_steady_clock(
    backend: FileBackend, world: World, another: Callable[[], FileBackend]
) -> None:
    """Another process counts the rest by the steady clock, whatever the wall clock does; at its end it is a miss."""
    data = store(backend, ttl=60.0)
    other = another()
    world.now += 45.0
    world.epoch -= 3600.0
    stored = other.load(KEY)
    assert stored is not None
    assert stored.remaining == pytest.approx(15.0)
    world.now += 15.0
    assert other.load(KEY) is None
    assert other.inspect(KEY).stored is None
    assert granted(ask(other)).fence > json.loads(data)["fence"]


def test_ended_records_are_deleted_when_a_lease_is_released(backend: FileBackend, world: World) -> None:
    """INV-9: an ended token does not stay on the disk, and later fences are above its own; a live token stays."""
    data = store(backend, ttl=60.0)
    backend.release(granted(ask(backend, seen=data)))
    assert backend.record_path(KEY).read_bytes() == data
    world.now += 60.0
    lease = granted(ask(backend))
    backend.release(lease)
    assert not backend.record_path(KEY).exists()
    assert granted(ask(backend)).fence > lease.fence > json.loads(data)["fence"]


def test_a_record_placed_by_another_program_has_no_countdown(backend: FileBackend, world: World) -> None:
    """INV-1: another program's record does not get the countdown of the record before it; its own instants count."""
    old = store(backend, ttl=60.0)
    backend.record_path(KEY).write_bytes(record(None, "theirs"))
    world.now += 10_000.0
    stored = backend.load(KEY)
    assert stored is not None
    assert (stored.data, stored.remaining) == (record(None, "theirs"), None)
    assert found(ask(backend, seen=old)).remaining is None


def test_a_record_without_a_state_is_read(folder: Path) -> None:
    """A file with the two fields, at the right place, is a record."""
    folder.mkdir(parents=True, mode=0o700)
    backend = FileBackend(folder)
    backend.record_path(KEY).write_text('{"accessToken": "theirs", "expiresAt": 4102444800}')
    assert backend.load(KEY) is not None
    found(ask(backend))


def test_a_restart_of_the_machine_ends_leases_and_countdowns_but_not_fences(
    backend: FileBackend, world: World, monkeypatch: pytest.MonkeyPatch, another: Callable[[], FileBackend]
) -> None:
    """After a restart the steady clock has another origin, so only the record and the fence are believed."""
    data = store(backend, ttl=60.0)
    lease = granted(ask(backend, seen=data, ttl=60.0))
    monkeypatch.setattr(_key_files, "boot_id", lambda: "another")
    world.now, world.epoch = 5.0, 1.0
    after = another()
    stored = after.load(KEY)
    assert stored is not None
    assert stored.remaining is None
    assert granted(ask(after, "b", seen=data)).fence > lease.fence


def test_the_state_holds_no_secret(backend: FileBackend, folder: Path) -> None:
    """INV-9: only the record's file holds the token; no other file and no repr does."""
    store(backend, "s3cr3t-value")
    granted(ask(backend, seen=record(1 << 52)))
    with_secret = [path.suffix for path in folder.iterdir() if b"s3cr3t" in path.read_bytes()]
    assert with_secret == [".json"]
    assert "s3cr3t" not in repr(backend) + repr(backend.load(KEY)) + repr(backend.inspect(KEY))


@pytest.mark.parametrize(
    "junk", [b"", b"\x00", b"{}", b"[" * 100_000, b'{"v": 1, "fence": NaN}', GIANT % b"fence", GIANT % b"v"]
)
def test_an_unreadable_state_is_replaced(backend: FileBackend, junk: bytes) -> None:
    """With an unreadable state file its content is lost, but the fence still grows."""
    data = store(backend)
    last = granted(ask(backend, seen=data))
    path_of(backend, "state").write_bytes(junk)
    path_of(backend, "holder").unlink()
    assert backend.load(KEY) is not None
    assert granted(ask(backend, "b", seen=data)).fence > last.fence
    held(ask(backend, "c", seen=data))


# --- fences


@pytest.mark.parametrize("lost", [["state"], ["json"], ["state", "json"], ["mutex", "json"], ["mutex", "state"]])
def test_the_fence_grows_after_lost_files(
    backend: FileBackend, world: World, lost: list[str], another: Callable[[], FileBackend]
) -> None:
    """INV-3: with files deleted and the wall clock set back, another process still grants a higher fence."""
    data = store(backend)
    fence = json.loads(data)["fence"]
    for kind in lost:
        path_of(backend, kind).unlink()
    world.epoch -= 86_400.0
    other = another()
    assert granted(ask(other, seen=data)).fence > fence


def test_the_fence_grows_after_the_folder_is_deleted(backend: FileBackend, folder: Path, world: World) -> None:
    """INV-3: a process grants higher fences even after the folder is deleted and the wall clock set back."""
    before = granted(ask(backend))
    shutil.rmtree(folder)
    world.epoch -= 86_400.0
    assert granted(ask(backend, "b")).fence > before.fence


def test_a_mutex_file_with_a_giant_number_has_no_fence(backend: FileBackend) -> None:
    """A number of 63 digits counts as none, so that fences go on at the wall time."""
    backend.release(granted(ask(backend)))
    path_of(backend, "mutex").write_bytes(b"9" * 60 + b"\n")
    path_of(backend, "state").unlink()
    assert granted(ask(backend, "b")).fence == 1_700_000_000_000_001


@pytest.mark.parametrize("fence", [2**53 - 2, 2**53 - 1])
def test_one_record_with_the_largest_fence_spoils_no_other(backend: FileBackend, fence: int) -> None:
    """INV-3: the lease above it is held, and the leases of other keys, and the one after, have usual fences."""
    path = backend.record_path(KEY)
    path.parent.mkdir(mode=0o700, parents=True)
    path.write_bytes(record(fence))
    lease = granted(ask(backend, seen=record(fence)))
    assert lease.fence == fence + 1
    held(ask(backend, "b", seen=record(fence)))
    assert backend.extend(lease, 60.0) is True
    assert granted(backend.lease("other", "a", "me", None, 60.0)).fence < 2**52
    assert backend.commit(lease, record(None, "good"), 60.0) is True
    assert granted(ask(backend, "b", seen=record(None, "good"))).fence < 2**52


def test_the_fence_is_the_wall_time_if_that_is_higher(backend: FileBackend, world: World) -> None:
    """A fence is wall time in microseconds, so a fence of a folder that was made later is higher."""
    assert granted(ask(backend)).fence == 1_700_000_000_000_000
    world.now, world.epoch = world.now + 10.0, world.epoch + 10.0
    assert granted(ask(backend, "b")).fence == 1_700_000_010_000_000


# --- leases that are lost


def test_a_lease_past_its_end_is_granted_though_its_holder_lives(
    backend: FileBackend, world: World, another: Callable[[], FileBackend]
) -> None:
    """INV-2, INV-3: after its lease, the lock of a hung holder blocks no process; its late calls do no harm."""
    hung = granted(ask(backend, "hung", ttl=3.0))
    other = another()
    held(ask(other, "next"))
    world.now += 3.0
    taken = granted(ask(other, "next", ttl=3.0))
    assert backend.extend(hung, 3.0) is False
    backend.release(hung, cooldown())
    held(ask(backend, "third"))
    assert other.commit(taken, record(taken.fence), 60.0) is True
    assert backend.commit(hung, record(hung.fence), 60.0) is False


def test_a_dead_holder_is_noticed_at_once(backend: FileBackend, another: Callable[[], FileBackend]) -> None:
    """A holder whose locks are gone has lost its lease: it is not reported, and the next process gets the lease."""
    holder = another()
    lease = granted(ask(holder, "dead"))
    assert backend.inspect(KEY).owner == "dead"
    holder.close()
    assert backend.inspect(KEY).owner is None
    backend.wait(KEY, None, 60.0)
    assert granted(ask(backend, "next")).fence > lease.fence


def test_the_same_owner_gets_its_lock_again(backend: FileBackend, another: Callable[[], FileBackend]) -> None:
    """An owner that lost its lock but not its lease gets both back, and other processes are kept out again."""
    first = another()
    lease = granted(ask(first))
    first.close()
    assert granted(ask(backend)).fence == lease.fence
    held(ask(another(), "b"))


def test_a_deleted_holder_file_does_not_end_the_lease(
    backend: FileBackend, world: World, another: Callable[[], FileBackend]
) -> None:
    """INV-2: if a clean-up deletes the holder's lock file, no other process gets the lease before it ends."""
    lease = granted(ask(backend))
    path_of(backend, "holder").unlink()
    other = another()
    held(ask(other, "b"))
    assert backend.extend(lease, 3.0) is True
    world.now += 3.0
    granted(ask(other, "b"))


def test_a_deleted_mutex_does_not_let_two_holders_in(
    backend: FileBackend, monkeypatch: pytest.MonkeyPatch, another: Callable[[], FileBackend]
) -> None:
    """INV-2: a process whose mutex is deleted looks again, so only one of two gets the lease."""
    other = another()
    inside = backend._ask
    replies: list[LeaseReply] = []

    def interrupted(*args: object) -> LeaseReply:
        monkeypatch.setattr(backend, "_ask", inside)
        state = path_of(backend, "state")
        reply = inside(*args)  # type: ignore[arg-type]
        path_of(backend, "mutex").unlink()
        state.unlink()  # as if the other process had come between
        replies.append(ask(other, "b"))
        return reply

    monkeypatch.setattr(backend, "_ask", interrupted)
    held(ask(backend, "a"))
    granted(replies[0])


def test_a_mutex_that_stays_locked_is_an_outage(backend: FileBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """INV-5: if a process stops inside the mutex, the backend is unavailable for writers; it is not "held"."""
    data = store(backend)
    monkeypatch.setattr(_folder, "_PATIENCE", 0.05)
    with path_of(backend, "mutex").open("rb") as stuck:
        assert _flock.seize(stuck.fileno())
        with pytest.raises(BackendUnavailable, match="is it stopped"):
            ask(backend, seen=data)
        assert backend.load(KEY) is not None
        assert backend.inspect(KEY).stored is not None
    granted(ask(backend, seen=data))


def test_a_mutex_that_is_a_link_is_not_followed(backend: FileBackend, tmp_path: Path) -> None:
    """The error names a link in place of the mutex, and its target is not touched."""
    store(backend)
    path_of(backend, "mutex").unlink()
    path_of(backend, "mutex").symlink_to(tmp_path / "target")
    with pytest.raises(BackendUnavailable, match="is a symbolic link: delete it"):
        ask(backend)
    assert not (tmp_path / "target").exists()


def test_a_mutex_that_is_a_pipe_is_named(backend: FileBackend) -> None:
    """Another kind of file in place of the mutex makes a clear error."""
    store(backend)
    path_of(backend, "mutex").unlink()
    os.mkfifo(path_of(backend, "mutex"), 0o600)
    with pytest.raises(BackendUnavailable, match="it is not a regular file"):
        ask(backend)


# --- files and descriptors that stay


def test_files_stay_few(backend: FileBackend, folder: Path, another: Callable[[], FileBackend]) -> None:
    """After renewals, failures and dead holders a key has three files, all complete, and no temporary file."""
    for step in range(20):
        crashed = another()
        last = backend.load(KEY)
        granted(ask(crashed, f"crashed-{step}", last.data if last else None))
        crashed.close()
        for kind in ("state", "json", "holder"):
            (folder / f"{path_of(backend, kind).name}.new").write_text("left by a writer that was killed" * 100)
        store(backend)
        backend.release(granted(ask(backend, seen=record(1 << 52))), cooldown(0.0))
    assert sorted(path.suffix for path in folder.iterdir()) == [".json", ".mutex", ".state"]
    stored = backend.load(KEY)
    assert stored is not None
    assert stored.remaining is not None, "the state is whole"


def test_descriptors_and_threads_are_given_back(backend: FileBackend, folder: Path, world: World) -> None:
    """After each way to end, no file is open and no thread is left."""
    threads = set(threading.enumerate())  # a thread of another test may end meanwhile

    def turn() -> None:
        data = store(backend)
        lease = granted(ask(backend, seen=data))
        backend.release(lease)
        backend.release(lease)
        lost = granted(ask(backend, "lost", seen=data))
        world.now += 4.0
        taken = granted(ask(backend, "taken", seen=data))
        backend.release(lost)
        backend.wait(KEY, data, 0.001)
        backend.inspect(KEY)
        backend.load("unknown")
        granted(ask(backend, "taken", seen=data))
        assert backend.commit(taken, record(taken.fence), 60.0)

    for _ in range(10):
        turn()
    assert descriptors(folder) == []
    granted(ask(backend, "kept", seen=record(1 << 52)))
    assert len(descriptors(folder)) == 1
    backend.close()
    assert descriptors(folder) == []
    assert set(threading.enumerate()) <= threads


def test_a_refused_folder_leaks_no_descriptor(backend: FileBackend, folder: Path) -> None:
    """An error closes the files that were opened before it."""
    store(backend)
    folder.chmod(0o777)
    for _ in range(3):
        with pytest.raises(ConfigurationError):
            ask(backend)
    assert descriptors(folder) == []


# --- closing


def test_closing_releases_the_leases(another: Callable[[], FileBackend]) -> None:
    """Other processes need not wait for the lease of a closed backend; later calls on it raise."""
    closed = another()
    lease = granted(ask(closed))
    closed.close()
    closed.release(lease)
    other = another()
    granted(ask(other, "b"))
    for call in (lambda: closed.load(KEY), lambda: ask(closed), lambda: closed.wait(KEY, None, 1.0)):
        with pytest.raises(BackendClosed, match="was closed"):
            call()


def test_closing_wakes_the_waiters(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """INV-8: a waiter in another thread returns when its backend is closed, and does not wait for its timeout."""
    monkeypatch.setattr(PollPacer, "pause", lambda _: 1000.0)
    holder = FileBackend(folder)
    granted(ask(holder, ttl=1000.0))
    waiting = FileBackend(folder)
    thread = threading.Thread(target=waiting.wait, args=(KEY, None, 1000.0), daemon=True)
    begun = threading.Event()
    look = waiting._look

    def first_look(*args: object) -> object:
        begun.set()
        return look(*args)  # type: ignore[arg-type]

    waiting._look = first_look  # type: ignore[method-assign, assignment]
    thread.start()
    assert begun.wait(30.0)
    waiting.close()
    thread.join(30.0)
    assert not thread.is_alive()
    holder.close()


def test_a_waiter_reads_only_changed_files(backend: FileBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """If nothing changed, a look neither reads the record nor parses the state."""
    lease = granted(ask(backend, seen=store(backend)))
    parsed = 0
    parse_state = _file_state.parse

    def counted(data: bytes | None, boot: str) -> State:
        nonlocal parsed
        parsed += 1
        return parse_state(data, boot)

    monkeypatch.setattr(_key_files, "parse", counted)
    looks = iter(range(20))
    monkeypatch.setattr(backend._closing, "wait", lambda pause: next(looks, None) is None)
    backend.wait(KEY, record(1 << 52), 60.0)
    assert next(looks, None) is None
    assert parsed <= 2
    backend.release(lease)


# --- how it is set up


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("file:///var/tokens", "/var/tokens"),
        ("file:///var/my%20tokens?poll=10ms", "/var/my tokens"),
        ("file://localhost/var/tokens", "/var/tokens"),
        ("file://", "/home/u/.cache/tokencache"),
    ],
)
def test_a_url_names_the_folder(url: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path of the URL is the folder; without one it is the user's cache folder."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("HOME", "/home/u")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert from_url(BackendURL.parse(url)).record_path(KEY).parent == Path(path)


@pytest.mark.parametrize(
    "url",
    ["file://var/tokens", "file:///", "file://u@/tokens", "file:///t?poll=0", "file:///t?size=1", "file:///t?poll=x"],
)
def test_a_url_that_does_not_name_a_folder_is_refused(url: str) -> None:
    """A missing slash does not turn a folder into a host, and an unknown option is an error."""
    with pytest.raises(ConfigurationError):
        from_url(BackendURL.parse(url))


@pytest.mark.parametrize(
    ("platform", "cache", "expected"),
    [
        ("linux", None, "/home/u/.cache/tokencache"),
        ("linux", "/var/cache/u", "/var/cache/u/tokencache"),
        ("linux", "relative", "/home/u/.cache/tokencache"),
        ("darwin", "/var/cache/u", "/home/u/Library/Caches/tokencache"),
    ],
)
def test_the_default_folder_is_the_systems_cache_folder(
    platform: str, cache: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It follows each system's custom; a relative XDG_CACHE_HOME is ignored, as its specification says."""
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setenv("HOME", "/home/u")
    if cache is None:
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", cache)
    assert FileBackend().record_path(KEY).parent == Path(expected)


@pytest.mark.parametrize("home", ["relative", ""])
def test_a_relative_home_puts_no_tokens_into_the_working_folder(
    home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The default folder is then in the home folder that the system has for this user."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", home)
    known = Path(pwd.getpwuid(os.getuid()).pw_dir)
    assert FileBackend().record_path(KEY).parent == known / ".cache" / "tokencache"
    assert FileBackend("~/tokens").record_path(KEY).parent == known / "tokens"


def test_a_folder_of_an_unknown_user_is_refused() -> None:
    """The error names the path."""
    with pytest.raises(ConfigurationError, match="'~no-such-user/x' names a user without a home folder"):
        FileBackend("~no-such-user/x")


def test_a_relative_folder_does_not_move_with_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the working folder changes later, the processes still share one folder."""
    monkeypatch.chdir(tmp_path)
    backend = FileBackend("tokens")
    monkeypatch.chdir("/")
    store(backend)
    assert (tmp_path / "tokens").is_dir()


def test_a_system_without_locks_is_refused(tmp_path: Path) -> None:
    """The module can be imported on any system; making the backend there raises, and names another backend."""
    script = """
import sys
sys.modules["fcntl"] = None
from tokencache.backends.file import FileBackend
from tokencache.errors import ConfigurationError
try:
    FileBackend(sys.argv[1])
except ConfigurationError as error:
    print(error)
"""
    ran = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True, timeout=60
    )
    assert "use another backend" in ran.stdout


def test_a_grant_that_cannot_be_written_releases_its_lock(
    backend: FileBackend, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lease that was not recorded leaves no open file and does not block the next request."""
    data = store(backend)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(BackendUnavailable):
            ask(backend, seen=data)
    assert descriptors(folder) == []
    lease: LeaseGrant = granted(ask(backend, "b", seen=data))
    assert lease.owner == "b"
