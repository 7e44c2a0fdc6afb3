"""The steady clock of a process: the best one that the system has."""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tokencache.ports import Clock

COUNTS_SLEEP: Final = hasattr(time, "CLOCK_BOOTTIME")
"""Whether the steady clock counts the time that the machine sleeps; without it, a token looks too young afterwards."""


def steady_clock() -> Clock:
    """Return a clock that never steps: ``CLOCK_BOOTTIME`` if the system has it, else the monotonic clock."""
    if COUNTS_SLEEP:
        return functools.partial(time.clock_gettime, time.CLOCK_BOOTTIME)
    return time.monotonic  # pragma: no cover  (systems without CLOCK_BOOTTIME)
