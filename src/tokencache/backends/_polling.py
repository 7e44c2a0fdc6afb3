"""The pauses of threads that poll a store for a change."""

from __future__ import annotations

import random
import threading
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from types import TracebackType

_FEW: Final = 16


class PollPacer:
    """Limits the poll rate of one process: from 16 threads on, each pauses longer, and the total rate stays the same.

    Otherwise hundreds of polling threads starve the thread that wakes them. A thread polls inside ``with pacer:``.
    """

    def __init__(self, shortest: float, longest: float) -> None:
        self._shortest = shortest
        self._longest = longest
        self._threads: set[int] = set()

    def __enter__(self) -> Self:
        """Count this thread in."""
        self._threads.add(threading.get_ident())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Count this thread out."""
        self._threads.discard(threading.get_ident())

    def pause(self) -> float:
        """Return the seconds until the next poll, with jitter, so that the threads do not poll at the same moment."""
        return max(1.0, len(self._threads) / _FEW) * random.uniform(self._shortest, self._longest)  # noqa: S311

    def after_fork(self) -> None:
        """Forget the parent's threads in the child."""
        self._threads = set()
