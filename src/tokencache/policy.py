"""The refresh policy: when to renew a token, when to stop using it, how long to back off. Pure functions."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Final

from tokencache.errors import ConfigurationError

LONGEST_COOLDOWN: Final = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RefreshPolicy:
    """Settings of renewal and backoff. All durations are seconds; the defaults suit tokens from 1 s to 30 days.

    ``early``              callers no longer get a token this long before its expiry, at most ``early_fraction`` of
                           its lifetime
    ``window``             renewal begins this long before the usable end, but never more than ``window_fraction`` of
                           the lifetime, unless that is less than ``least_window`` and less than half the lifetime. It
                           begins earlier if the last fetch took long, or if the provider says so (``refresh_in``)
    ``jitter``             the window of each process differs by up to this fraction of itself, either way
    ``timeout``            how long a call may take if the caller gives no timeout
    ``fetch_timeout``      how long one fetch may take
    ``lease``              life of a lease; a living holder prolongs it every third of that, so a killed one costs the
                           fleet at most this long
    ``backoff``            the first pause after a transient failure; it doubles with each one, up to
                           ``backoff_limit``, and is drawn at random below that, but never under a tenth of ``backoff``
    ``rejected_cooldown``  how long no process repeats a request that the provider rejected permanently
    ``settle``             how long the replacement of a refused token is not replaced again, at most a tenth of its
                           lifetime
    ``probe``              the interval between probes of a failed backend, and between fetches without a backend
    """

    early: float = 60.0
    early_fraction: float = 0.1
    window: float = 3600.0
    window_fraction: float = 0.2
    least_window: float = 2.0
    jitter: float = 0.1
    timeout: float = 30.0
    fetch_timeout: float = 20.0
    lease: float = 3.0
    backoff: float = 1.0
    backoff_limit: float = 15.0
    rejected_cooldown: float = 300.0
    settle: float = 5.0
    probe: float = 1.0

    def __post_init__(self) -> None:
        """Raise ``ConfigurationError`` for a value outside its range."""
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
                message = f"RefreshPolicy({field.name}={value!r}): give a finite number of seconds, 0 or more"
                raise ConfigurationError(message)
        for name in ("early_fraction", "window_fraction", "jitter"):
            if getattr(self, name) >= 1:
                message = f"RefreshPolicy({name}={getattr(self, name)!r}): give a fraction below 1"
                raise ConfigurationError(message)
        for name in ("timeout", "fetch_timeout", "lease", "backoff", "probe"):
            if getattr(self, name) <= 0:
                message = f"RefreshPolicy({name}={getattr(self, name)!r}): give more than 0 seconds"
                raise ConfigurationError(message)


@dataclass(frozen=True, slots=True)
class Schedule:
    """When to renew a token and when to stop using it, in seconds from now."""

    refresh: float
    usable: float


def early_of(policy: RefreshPolicy, lifetime: float) -> float:
    """Return how long before its expiry callers no longer get a token of this lifetime."""
    return min(policy.early, policy.early_fraction * lifetime)


def schedule(
    policy: RefreshPolicy,
    *,
    lifetime: float,
    remaining: float,
    spread: float,
    took: float = 0.0,
    renew_after: float | None = None,
) -> Schedule:
    """Return when to renew and when to stop using a token with ``remaining`` seconds left of its ``lifetime``.

    ``spread``, from -1 to 1, is the jitter of this process. ``took`` is how long the last fetch took. ``renew_after``
    is the age, in seconds, at which the provider wants the token renewed. Both moments may lie in the past.
    """
    early = early_of(policy, lifetime)
    usable = remaining - early
    # A fifth of a very short lifetime is too short for a fetch, so the window grows up to half of it.
    least = min(policy.least_window, lifetime / 2)
    window = min(policy.window, max(policy.window_fraction * lifetime, least))

    # A window shorter than a fetch would make callers wait at each renewal.
    window = max(window, min(2 * took, lifetime / 2))
    if renew_after is not None:  # never in the first tenth of the life, whatever the provider says
        window = max(window, lifetime - early - max(renew_after, lifetime / 10))
    return Schedule(refresh=usable - window * (1 + policy.jitter * spread), usable=usable)


def unchanged_pause(remaining: float) -> float:
    """Return how long to wait after the provider gave no newer token than the current one."""
    return max(30.0, remaining / 4)


def backoff(policy: RefreshPolicy, attempt: int, draw: float) -> float:
    """Return the pause after the ``attempt``-th failure in a row (from 1); ``draw`` is uniform in [0, 1)."""
    ceiling = min(policy.backoff_limit, policy.backoff * 2.0 ** min(attempt - 1, 32))
    return max(policy.backoff / 10, draw * ceiling)


def settle_of(policy: RefreshPolicy, lifetime: float) -> float:
    """Return how long the replacement of a refused token is not replaced again."""
    return min(policy.settle, 0.1 * lifetime)
