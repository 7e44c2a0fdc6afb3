"""The local copy: one process's copy of a token, with its last failure and the refused tokens."""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING, Final, cast

from tokencache._engine.clock import COUNTS_SLEEP
from tokencache._engine.flow import Failed, Kept, Obtained
from tokencache.errors import DeadlineExceeded
from tokencache.policy import settle_of

if TYPE_CHECKING:
    from tokencache._engine.context import SourceContext
    from tokencache._engine.flow import Copy, Outcome
    from tokencache.policy import RefreshPolicy
    from tokencache.token import Token

LATE_LOOK: Final = 30.0
"""The longest hot path, in seconds, if the steady clock stops during sleep; then the wall clock is checked."""

_REMEMBERED: Final = 8  # refused tokens


class LocalCopy:
    """The state of a source in this process, and the rules by which an outcome changes it."""

    __slots__ = (
        "_attempt",
        "_clock",
        "_copy",
        "_failure",
        "_fresh_until",
        "_last_refused",
        "_lock",
        "_policy",
        "_recheck_at",
        "_refused",
        "_token",
        "_unleased_fetch_at",
        "_world",
    )

    def __init__(self, world: SourceContext, policy: RefreshPolicy) -> None:
        self._world = world
        self._clock = world.clock
        self._policy = policy
        self._refused: tuple[str, ...] = ()
        self._attempt = 0
        self._copy: Copy | None = None
        self._last_refused: Token | None = None  # its refresh token is still good
        # The hot path reads only these two: until _fresh_until, it returns _token.
        self._fresh_until = -math.inf
        self._token: Token = cast("Token", None)
        self._start_afresh()

    def _start_afresh(self) -> None:
        """Reset what a fork must not inherit: the lock and the failure; reschedule a renewal lost in the fork."""
        self._lock = threading.Lock()  # guards all fields; only the hot path reads its two without it
        self._failure: Failed | None = None
        self._recheck_at = -math.inf
        self._unleased_fetch_at = -math.inf
        if self._copy is not None:
            self._fresh_until = min(self._fresh_until, self._due(self._copy, self._clock()))

    def _apply(self, outcome: Outcome) -> None:
        """Change the local state by the outcome of a flight."""
        now = self._clock()
        with self._lock:
            match outcome:
                case Obtained(copy=copy):
                    self._failure = None
                    self._attempt = 0
                    if copy.data is None:
                        self._unleased_fetch_at = now + self._policy.probe
                    if copy.token.value not in self._refused and not self._outranked(copy, now):
                        self._keep(copy, self._due(copy, now), now)
                case Kept():
                    self._stay(outcome, now)
                case Failed(error=DeadlineExceeded()):  # says nothing about the provider, so there is no cooldown
                    if self._copy is not None:
                        self._fresh_until = min(now + self._policy.probe, self._copy.usable_at)
                case Failed(next_at=next_at, attempt=attempt, unleased=unleased):
                    self._attempt = attempt
                    self._failure = outcome
                    # Another process may end the cooldown early; an unreachable backend cannot tell.
                    self._recheck_at = next_at if unleased else min(next_at, now + self._policy.probe)
                    if unleased:
                        self._unleased_fetch_at = next_at
                    if self._copy is not None:
                        self._fresh_until = min(next_at, self._copy.usable_at)

    def _stay(self, outcome: Kept, now: float) -> None:
        """Keep the copy that the flight began with, unless a newer one came meanwhile. The caller holds the lock."""
        copy, mine = outcome.copy, self._copy
        if outcome.asked:
            self._failure = None
            self._attempt = 0
        if outcome.unleased:
            self._unleased_fetch_at = now + self._policy.probe
        other = mine is not None and now < mine.usable_at and mine.token.value != copy.token.value
        overtaken = other or self._outranked(copy, now)  # INV-3
        if copy.token.value not in self._refused and not overtaken:
            self._keep(copy, min(outcome.next_at, self._due(copy, now)), now)

    def _due(self, copy: Copy, now: float) -> float:
        """Return when the copy needs a flight: at its renewal, or after ``probe`` if it is not shared (INV-5)."""
        return copy.refresh_at if copy.data is not None else min(copy.refresh_at, now + self._policy.probe)

    def _outranked(self, copy: Copy, now: float) -> bool:
        """Return whether the local copy is usable and newer than ``copy`` by its fence (INV-3)."""
        mine = self._copy
        if mine is None or now >= mine.usable_at or mine.fence is None or copy.fence is None:
            return False
        return mine.fence > copy.fence

    def _keep(self, copy: Copy, due: float, now: float) -> None:
        """Make ``copy`` the local one, fresh until ``due``. The caller holds the lock."""
        if not COUNTS_SLEEP:  # pragma: no cover  (systems without CLOCK_BOOTTIME)
            due = min(due, now + LATE_LOOK)
        self._copy = copy
        self._last_refused = None
        self._token = copy.token
        self._fresh_until = min(due, copy.usable_at)

    def _usable(self, now: float) -> Copy | None:
        """Return the local copy if its token may be handed out (INV-1)."""
        copy = self._copy
        if copy is None or now >= copy.usable_at:
            return None
        if not COUNTS_SLEEP:  # pragma: no cover  (systems without CLOCK_BOOTTIME)
            slept = (self._world.wall() - copy.got_wall_at) - (now - copy.got_at)
            if slept > 1 and now + slept >= copy.usable_at:
                return None
        return copy

    def _refuse(self, token: Token) -> bool:
        """Drop ``token`` here, and never accept it again; return whether it was the local one."""
        with self._lock:
            if token.value not in self._refused:
                self._refused = (*self._refused, token.value)[-_REMEMBERED:]
            if self._copy is None or self._copy.token.value != token.value:
                return False
            self._fresh_until = -math.inf  # first: a signal may interrupt after any line, and the hot path must stop
            self._last_refused = self._copy.token if self._copy.token.refresh_token else None
            self._copy = None
            return True

    def _is_young_replacement(self, token: Token) -> bool:
        """Return whether ``token`` is the young replacement of a refused one (INV-6)."""
        copy = self._copy
        if copy is None or copy.token.value != token.value or not copy.replaces_refused:
            return False
        return self._clock() - copy.fetched_at < settle_of(self._policy, token.lifetime)

    def _stop_while_cooling(self, now: float) -> None:
        """Raise the last failure while its cooldown lasts (INV-7), but let a call check the backend after ``probe``."""
        failure = self._failure
        if failure is not None and now < min(failure.next_at, self._recheck_at):
            raise failure.error.replica() from failure.error.__cause__

    def _value(self) -> str | None:
        """Return the value of the local token, usable or not."""
        copy = self._copy
        return None if copy is None else copy.token.value
