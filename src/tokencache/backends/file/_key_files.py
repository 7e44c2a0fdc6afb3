"""The files of one key of the file backend: their names and their contents."""

from __future__ import annotations

import os
import re
from hashlib import blake2b
from typing import TYPE_CHECKING, Final

from tokencache._record import LARGEST_FENCE, fence_of
from tokencache.backends.file._state import boot_id, dump, parse
from tokencache.ports import Stored

if TYPE_CHECKING:
    from tokencache.backends.file._folder import OpenFolder
    from tokencache.backends.file._state import State

_UNSAFE: Final = re.compile(r"[^a-z0-9_]+")


def stem_of(key: str) -> str:
    """Return the name that the files of ``key`` begin with: a readable part and a fingerprint of the key.

    Every text is a valid key. The name is lower case, so keys stay distinct on file systems that ignore case.
    """
    whole = key.encode("utf-8", "surrogatepass")
    readable = _UNSAFE.sub("-", key[:40].lower()).strip("-")
    return f"{readable or 'key'}-{blake2b(whole, digest_size=20).hexdigest()}"


class KeyFiles:
    """The files of one key in an open folder. A writer holds the lock of ``mutex``."""

    def __init__(self, folder: OpenFolder, stem: str, mutex: int = -1) -> None:
        self._folder = folder
        self._record = f"{stem}.json"
        self._state = f"{stem}.state"
        self._mutex_name = f"{stem}.mutex"
        self._holder = f"{stem}.holder"
        self._mutex = mutex

    def stored(self, now: float) -> Stored | None:
        """Return the record with its remaining countdown, ``None`` when it is missing or ended."""
        data = self._folder.read(self._record)
        if data is None:
            return None
        remaining = self.state().remaining(data, now)
        return None if remaining == 0 else Stored(data, remaining)

    def record_fence(self) -> int | None:
        """Return the fence of the record file, ended or not."""
        data = self._folder.read(self._record)
        return None if data is None else fence_of(data)

    def record_signature(self) -> tuple[int, int, int] | None:
        """Return a value that changes whenever the record file is replaced."""
        return self._folder.signature(self._record)

    def write_record(self, data: bytes) -> None:
        """Replace the record."""
        self._folder.write(self._record, data)

    def remove_record(self) -> None:
        """Delete the record."""
        self._folder.remove(self._record)

    def raw_state(self) -> bytes | None:
        """Return the bytes of the state file."""
        return self._folder.read(self._state)

    def state(self) -> State:
        """Return the state."""
        return self.parsed(self.raw_state())

    def parsed(self, raw: bytes | None) -> State:
        """Return the state that the bytes of the state file encode."""
        return parse(raw, boot_id())

    def write_state(self, state: State) -> None:
        """Replace the state."""
        self._folder.write(self._state, dump(state, boot_id()))

    def holder_is_dead(self) -> bool:
        """Return whether the lease's holder died. Without a holder file the lease counts as held."""
        return self._folder.unlocked(self._holder)

    def place_holder(self) -> int:
        """Make a new holder file, which the caller keeps locked by the returned descriptor."""
        return self._folder.place_locked(self._holder)

    def remove_holder(self) -> None:
        """Delete the holder file."""
        self._folder.remove(self._holder)

    def mutex_stands(self) -> bool:
        """Return whether the mutex file is still the one that was locked, not a new file of that name."""
        return self._folder.is_still(self._mutex_name, self._mutex)

    def mutex_fence(self) -> int:
        """Return the last fence granted, as the mutex file has it."""
        digits, end, _ = os.pread(self._mutex, 64, 0).partition(b"\n")
        fence = int(digits) if end and digits.isdigit() else 0
        return fence if fence <= LARGEST_FENCE else 0

    def write_mutex_fence(self, fence: int) -> None:
        """Write the last fence granted, so that it outlives the state file."""
        os.pwrite(self._mutex, b"%d\n" % min(fence, LARGEST_FENCE), 0)
