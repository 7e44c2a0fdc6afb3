"""Row 29: the file backend's folder is full, read-only, removed, has planted links, or has lost its lock files."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tokencache import ConfigurationError, DeadlineExceeded, RefreshPolicy, TokenCache
from tokencache._record import fence_of
from tokencache.backends.file import FileBackend
from tokencache.events import BackendFailed, BackendRecovered, CommitRefused, LeaseLost
from tokencache.testing.fakes import FakeProvider, Recorder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Outcome
    from tokencache import TokenSource

pytestmark = [pytest.mark.live, pytest.mark.usefixtures("tidy")]

PATIENCE = 30.0
KEY = "orders:token"
UNPRIVILEGED = 65_534
QUICK = RefreshPolicy(probe=0.2)


class Fleet:
    """Processes of one provider on one folder; each has its own backend and cache."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.provider = FakeProvider()
        self.seen = Recorder()

    def process(self, provider: FakeProvider | None = None) -> TokenSource:
        """Return the source of another process."""
        cache = TokenCache(FileBackend(self.folder), policy=QUICK, observers=[self.seen])
        return cache.source(provider or self.provider, key=KEY)

    def path(self, kind: str) -> Path:
        """Return the path of a file of the key: ``json``, ``state``, ``mutex``, ``holder``, or a temporary file."""
        return FileBackend(self.folder).record_path(KEY).with_suffix(f".{kind}")

    @property
    def stored(self) -> str | None:
        """The value of the token in the folder, ``None`` without a record."""
        with suppress(FileNotFoundError):
            value: str = json.loads(self.path("json").read_bytes())["accessToken"]
            return value
        return None

    @property
    def fence(self) -> int:
        """The fence of the record in the folder."""
        return fence_of(self.path("json").read_bytes()) or 0

    @property
    def failures(self) -> str:
        """The backend failures among the events."""
        return "\n".join(map(str, self.seen.of(BackendFailed)))


def until(reached: Callable[[], bool]) -> None:
    """Check again and again until the condition holds."""
    give_up = time.monotonic() + PATIENCE
    while not reached():
        assert time.monotonic() < give_up
        time.sleep(0.002)


# --- folders that cannot be written to


@pytest.fixture
def full(tmp_path: Path) -> Iterator[tuple[Path, Callable[[], None], Callable[[], None]]]:
    """A small disk, and functions that fill and empty it; where none can be mounted, files that may not grow."""
    disk = tmp_path / "disk"
    disk.mkdir(mode=0o700)
    options = ["-t", "tmpfs", "-o", "size=256k,mode=700", "tmpfs", str(disk)]
    mount = shutil.which("mount")
    mounted = mount is not None and subprocess.run([mount, *options], capture_output=True, check=False).returncode == 0
    filler = disk / "filler"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill() -> None:
        if not mounted:
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
            return
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass

    def free() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        filler.unlink(missing_ok=True)

    yield disk / "tokens", fill, free
    free()
    if mounted:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.fixture
def sealed() -> Iterator[tuple[Path, Callable[[], None], Callable[[], None]]]:
    """A folder, and functions that make it read-only and writable. The user is one whom modes bind, unlike root."""
    path = Path(tempfile.mkdtemp(dir="/tmp", prefix="tokencache-test-"))
    folder = path / "tokens"
    was = os.geteuid()
    if was == 0:
        os.chown(path, UNPRIVILEGED, UNPRIVILEGED)
        os.seteuid(UNPRIVILEGED)
    try:
        yield folder, lambda: folder.chmod(0o500), lambda: folder.chmod(0o700)
    finally:
        os.seteuid(was)
        if folder.exists():
            folder.chmod(0o700)
        shutil.rmtree(path)


@pytest.mark.parametrize(
    ("disk", "advice"),
    [
        pytest.param("full", "make room on the disk", marks=pytest.mark.fault(29, backend="file", case="disk full")),
        pytest.param(
            "sealed", "make the folder writable", marks=pytest.mark.fault(29, backend="file", case="read-only")
        ),
    ],
)
def test_a_folder_that_cannot_be_written_to(
    disk: str, advice: str, outcome: Outcome, request: pytest.FixtureRequest
) -> None:
    """INV-4, INV-5: the stored token is read; a new one is served unshared, and shared once there is room."""
    folder, fail, mend = request.getfixturevalue(disk)
    fleet = Fleet(folder)
    mine, theirs = fleet.process(), fleet.process()
    first = mine.token()
    assert theirs.token() == first
    fence = fleet.fence
    fail()
    second = mine.renew()
    assert second != first
    assert mine.token() == second
    assert theirs.token().value == fleet.process().token().value == fleet.stored == first.value
    assert fleet.fence == fence
    assert advice in fleet.failures
    assert not list(folder.glob("*.new"))
    assert len(fleet.seen.of(BackendFailed)) == 1
    mend()
    with outcome.healing():
        until(lambda: mine.token() == second and fleet.stored == second.value)
        assert theirs.renew() == fleet.process().token() == second
    assert fleet.fence > fence
    assert fleet.seen.of(BackendRecovered)
    assert fleet.provider.calls == 2
    outcome.record("the stored token; a new one is served, and shared when that is possible again", calls=1)


# --- a folder that is swept away


@pytest.mark.fault(29, backend="file", case="folder removed")
def test_a_removed_folder_is_made_again(tmp_path: Path, outcome: Outcome) -> None:
    """INV-3, INV-4: a process with a token keeps it; the next process fetches, and the rest of the fleet follows."""
    fleet = Fleet(tmp_path / "tokens")
    mine, theirs = fleet.process(), fleet.process()
    first = mine.token()
    assert theirs.token() == first
    fence = fleet.fence
    shutil.rmtree(fleet.folder)
    assert mine.token() == theirs.token() == first
    with outcome.healing():
        second = fleet.process().token()
        assert mine.renew() == theirs.renew() == second != first
    assert fleet.folder.stat().st_mode & 0o777 == 0o700
    assert fleet.fence > fence
    assert fleet.provider.calls == 2
    assert not fleet.seen.of(BackendFailed)
    outcome.record("their token; a cold process a new one, which all share", calls=1)


class Fetching:
    """A process in the middle of its fetch, which continues at ``go_on``."""

    def __init__(self, fleet: Fleet, provider: FakeProvider | None = None) -> None:
        self.provider = provider or fleet.provider
        self.source = fleet.process(self.provider)
        self.got: list[str] = []
        self.provider.gate.clear()
        self._thread = threading.Thread(target=lambda: self.got.append(self.source.token().value))
        self._thread.start()
        assert self.provider.started.wait(PATIENCE)

    def go_on(self) -> str:
        """Let the fetch end and return its token."""
        self.provider.gate.set()
        self._thread.join(PATIENCE)
        (value,) = self.got
        return value


@pytest.mark.fault(29, backend="file", case="folder removed in mid-fetch")
def test_a_folder_removed_in_mid_fetch_costs_one_more_fetch(tmp_path: Path, outcome: Outcome) -> None:
    """INV-2, INV-3, INV-8: a lost lease costs one extra call, and the late commit of its former holder is refused."""
    fleet = Fleet(tmp_path / "tokens")
    late, quick = FakeProvider(), FakeProvider()
    late.value, quick.value = "late-token", "quick-token"
    first = Fetching(fleet, late)
    shutil.rmtree(fleet.folder)
    second = Fetching(fleet, quick)
    with outcome.healing():
        assert second.go_on() == "quick-token"
    fence = fleet.fence
    assert first.go_on() == "quick-token"
    assert (fleet.stored, fleet.fence) == ("quick-token", fence)
    assert fleet.process().token().value == "quick-token"
    assert fleet.seen.of(CommitRefused)
    assert (late.calls, quick.calls, fleet.provider.calls) == (1, 1, 0)
    outcome.record("the token of the second fetch", calls=2)


# --- planted links


@pytest.mark.fault(29, backend="file")
@pytest.mark.parametrize("kind", ["json", "state", "holder", "json.new", "state.new", "holder.new", "mutex"])
def test_a_planted_link_is_not_followed(tmp_path: Path, outcome: Outcome, kind: str) -> None:
    """INV-10: no link is read or written through, wherever it is; one in place of the mutex is a reported outage."""
    fleet = Fleet(tmp_path / "tokens")
    there = tmp_path / "elsewhere"
    now = int(time.time())
    planted = {"accessToken": "planted-token", "expiresAt": now + 3600, "fence": 1, "v": 1, "boot": ""}
    there.write_text(json.dumps(planted))
    before = there.read_bytes(), there.stat()
    fleet.folder.mkdir(mode=0o700)
    fleet.path(kind).symlink_to(there)
    mine, theirs = fleet.process(), fleet.process()
    shared = kind != "mutex"
    values = [mine.token().value, theirs.token().value]
    assert values == ["fake-token-1", "fake-token-1" if shared else "fake-token-2"]
    assert ("symbolic link: delete it" in fleet.failures) is not shared
    if not shared:
        fleet.path(kind).unlink()
        with outcome.healing():
            until(lambda: mine.token().value == fleet.stored or theirs.token().value == fleet.stored)
    until(lambda: fleet.process().token().value == fleet.stored)  # the other one may share its own token first
    assert fleet.provider.calls == (1 if shared else 2)
    assert (there.read_bytes(), there.stat().st_mtime_ns, there.stat().st_nlink) == (
        before[0],
        before[1].st_mtime_ns,
        before[1].st_nlink,
    )
    assert not [each for each in fleet.folder.iterdir() if each.is_symlink()]
    outcome.case = f"a link in place of `.{kind}`"
    outcome.record("the token" if shared else "a token for each process, until it is deleted", calls=1 if shared else 2)


@pytest.mark.fault(29, backend="file", case="another user's link in place of the folder")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a link that is another user's")
def test_a_folder_that_is_a_link_of_another_user_is_refused(tmp_path: Path, outcome: Outcome) -> None:
    """INV-10: an error is raised, nothing is fetched, and nothing is written where the link leads."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    fleet = Fleet(tmp_path / "tokens")
    fleet.folder.symlink_to(elsewhere)
    os.lchown(fleet.folder, UNPRIVILEGED, UNPRIVILEGED)
    source = fleet.process()
    with pytest.raises(ConfigurationError, match=r"symbolic link made by another user .*remove the link"):
        source.token()
    assert not list(elsewhere.iterdir())
    fleet.folder.unlink()
    with outcome.healing():
        assert source.token().value == "fake-token-1"
    assert fleet.provider.calls == 1
    outcome.record("ConfigurationError that says what to do", calls=0)


# --- lock files that are deleted


@pytest.mark.fault(29, backend="file")
@pytest.mark.parametrize("kinds", [("holder",), ("mutex",), ("holder", "mutex"), ("state",)], ids="+".join)
def test_a_lock_file_deleted_under_the_holder(tmp_path: Path, outcome: Outcome, kinds: tuple[str, ...]) -> None:
    """INV-2, INV-3: the state records the lease, so there is only one fetch; without the state there is one more."""
    fleet = Fleet(tmp_path / "tokens")
    fetching = Fetching(fleet)
    for kind in kinds:
        fleet.path(kind).unlink()
    other = fleet.process()
    lost = "state" in kinds
    with pytest.raises(DeadlineExceeded):
        other.token(timeout=0.3)
    until(lambda: fleet.provider.calls == 1 + lost)  # on a slow machine, a background fetch may follow
    with outcome.healing():
        values = {fetching.go_on(), other.token().value, fleet.process().token().value}
    assert fleet.stored in values
    assert len(values) <= 1 + lost
    assert fleet.provider.calls == 1 + lost
    assert fleet.provider.together == 1 + lost
    assert bool(fleet.seen.of(LeaseLost)) <= lost
    outcome.case = f"`.{'` and `.'.join(kinds)}` deleted under the holder"
    outcome.record("a token" if lost else "the token", calls=1 + lost)
