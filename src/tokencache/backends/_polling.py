"""The pauses of those who look again and again for a change."""

from __future__ import annotations

import random
import threading
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from types import TracebackType

_FEW: Final = 16


class PollPacer:
    """The threads of one process that poll; from 16 on, each pauses longer, so that all together ask no more often.

    Without that, hundreds of waiting threads take so much of the interpreter that whoever is to wake them gets none.
    """

    def __init__(self, shortest: float, longest: float) -> None:
        self._shortest = shortest
        self._longest = longest
        self._threads: set[int] = set()

    def __enter__(self) -> Self:
        """Join."""
        self._threads.add(threading.get_ident())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Leave."""
        self._threads.discard(threading.get_ident())

    def pause(self) -> float:
        """Return how many seconds to wait before the next look: at random, lest all look at once."""
        return max(1.0, len(self._threads) / _FEW) * random.uniform(self._shortest, self._longest)  # noqa: S311

    def after_fork(self) -> None:
        """Forget the parent's threads in the child."""
        self._threads = set()
