"""Mutants: the real code with one broken rule each, to prove that the simulation detects it.

A mutant is an edit of a module's text. The code of its functions temporarily replaces that of the real functions.
Classes and state stay, so the rest of the program is not affected.
"""

from __future__ import annotations

import importlib
import inspect
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping
    from types import CodeType


@dataclass(frozen=True, slots=True)
class Mutant:
    """One broken rule: in ``module``, each text of ``edits`` is replaced by its second half."""

    name: str
    breaks: str
    module: str
    edits: tuple[tuple[str, str], ...]


def _mutant(name: str, breaks: str, module: str, *edits: tuple[str, str]) -> Mutant:
    """Return a mutant of a module of tokencache."""
    return Mutant(name, breaks, f"tokencache.{module}", edits)


MUTANTS: Mapping[str, Mutant] = {
    mutant.name: mutant
    for mutant in (
        _mutant(
            "no-second-look",
            "INV-2: the record that comes with the answer to a lease is ignored",
            "_engine.flow",
            (
                (
                    "copy = yield from _read(job, stored, at)\n"
                    "                if copy is not None and (yield from _acceptable(job, copy)):\n"
                    "                    return (yield from _take(job, copy))\n"
                    "                # Not for us"
                ),
                "copy = yield from _read(job, stored, at)\n                # Not for us",
            ),
        ),
        _mutant(
            "held-is-down",
            "INV-2: a lease that another process holds is treated as an outage of the store",
            "_engine.flow",
            ("woken = yield from wait(job.key, seen, pause)", "return (yield from _without_backend(job))"),
        ),
        _mutant(
            "wait-too-short",
            "INV-2: a process that waited once in vain fetches without the lease",
            "_engine.flow",
            (
                "if isinstance(woken, Stored):",
                (
                    "if woken is None:\n                    return (yield from _without_backend(job))\n"
                    "                if isinstance(woken, Stored):"
                ),
            ),
        ),
        _mutant(
            "release-before-commit",
            "INV-2: the lease is given back before the token is stored",
            "_engine.flow",
            (
                "    reply = yield from commit(grant, data,",
                "    yield from release(grant)\n    reply = yield from commit(grant, data,",
            ),
        ),
        _mutant(
            "no-heartbeat",
            "INV-2: the lease of a slow fetch ends before the fetch",
            "_engine.heartbeat",
            ("kept = world.backend.extend(lease, lease.ttl)", "kept = True"),
        ),
        _mutant(
            "no-jitter",
            "INV-2: all processes renew at the same instant",
            "policy",
            ("(1 + policy.jitter * spread)", "1"),
        ),
        _mutant(
            "unchanged-untold",
            "INV-2: the record does not state that the provider had no newer token",
            "_engine.flow",
            (
                "    outcome = yield from _commit(job, grant, current, at, took=None, again_at=again_at)\n    copy =",
                "    outcome = None\n    copy =",
            ),
        ),
        _mutant(
            "unchanged-unpaused",
            "INV-2: a provider that has no newer token is asked again at once",
            "policy",
            ("return max(30.0, remaining / 4)", "return 0.0"),
        ),
        _mutant(
            "unchanged-forgotten",
            "INV-2: processes that start after the provider had no newer token do not know that, and ask it at once",
            "_engine.flow",
            ("        again_at=again_at,\n    )\n    reply", "    )\n    reply"),
        ),
        _mutant(
            "unchanged-unheard",
            "INV-2: a process that finds its own token in the store ignores the time of the next request",
            "_engine.flow",
            (", refresh_at=max(current.refresh_at, min(copy.again_at, current.usable_at))", ""),
        ),
        _mutant(
            "unchanged-herd",
            "INV-2: processes that start after the provider had no newer token ask again at the same instant",
            "_engine.flow",
            ("pause * (1 + job.policy.jitter * (1 + job.spread) / 2)", "pause"),
        ),
        _mutant(
            "unfenced-commit",
            "INV-3: a late commit replaces a newer record",
            "_engine.effects",
            (
                "yield Commit(grant.key, grant, data, ttl)",
                "yield Commit(grant.key, type(grant)(grant.key, grant.owner, 2**60, grant.ttl), data, ttl)",
            ),
        ),
        _mutant(
            "refused-comes-back",
            "INV-6: a token that was refused while its flight was under way is kept",
            "_engine.local",
            ("if copy.token.value not in self._refused and not self._outranked", "if not self._outranked"),
        ),
        _mutant(
            "late-result-kept",
            "INV-3: a late flight replaces a newer token of its process",
            "_engine.local",
            (" and not self._outranked(copy, now):", ":"),
        ),
        _mutant(
            "late-failure-kept",
            "INV-3: a late flight without a token restores an older token",
            "_engine.local",
            (" and not overtaken:", ":"),
        ),
        _mutant(
            "old-refresh-token",
            "INV-3: the record keeps the refresh token that was just used",
            "_engine.flow",
            (
                "        copy.token,\n        fence=",
                (
                    "        copy.token if job.current is None else type(copy.token)(copy.token.value,"
                    " expires_at=copy.token.expires_at, issued_at=copy.token.issued_at,"
                    " refresh_token=job.current.token.refresh_token),\n        fence="
                ),
            ),
        ),
        _mutant(
            "failure-takes-token",
            "INV-4: a failed renewal drops the token that is still good",
            "_engine.local",
            (
                (
                    "                    if self._copy is not None:\n"
                    "                        self._fresh_until = min(next_at,"
                ),
                (
                    "                    self._copy = None\n                    if self._copy is not None:\n"
                    "                        self._fresh_until = min(next_at,"
                ),
            ),
        ),
        _mutant(
            "alone-at-will",
            "INV-5: without the store the number of provider calls has no limit",
            "_engine.flow",
            ("    if at.clock < job.unleased_fetch_at:", "    if at.clock < -job.deadline:"),
        ),
        _mutant(
            "alone-for-good",
            "INV-5: a token fetched without the store is not shared when the store is back",
            "_engine.local",
            ("min(copy.refresh_at, now + self._policy.probe)", "copy.refresh_at"),
        ),
        _mutant(
            "breaker-stuck",
            "INV-5: the breaker stays open for a store that answers again",
            "_engine.breaker",
            ("error, self._error = self._error, None", "error = self._error"),
        ),
        _mutant(
            "blind-invalidate",
            "INV-6: the stored token is dropped, even if it is not the refused one",
            "_engine.flow",
            ("if record.token.value != value:", "if not value:"),
        ),
        _mutant(
            "unsettled",
            "INV-6: a replacement that is refused as well is replaced, in a loop",
            "_engine.local",
            ("return self._clock() - copy.fetched_at < settle_of(self._policy, token.lifetime)", "return False"),
        ),
        _mutant(
            "refused-taken",
            "INV-6: a token that was refused is taken from the store again",
            "_engine.flow",
            (
                "if not usable(copy, at.clock) or copy.token.value in job.refused:",
                "if not usable(copy, at.clock):",
            ),
        ),
        _mutant(
            "no-cooldown",
            "INV-7: a failure leaves no cooldown for the fleet",
            "_engine.flow",
            ("_cooldown(job, error, pause, attempt) if pause > 0 else None", "None"),
        ),
        _mutant(
            "retry-rejected",
            "INV-7: wrong credentials are tried again, like an outage",
            "_engine.flow",
            ("permanent = isinstance(error, ProviderRejected)\n    retry_at", "permanent = False\n    retry_at"),
        ),
        _mutant(
            "deaf-to-retry-after",
            "INV-7: Retry-After is ignored",
            "_engine.flow",
            (
                "retry_at = error.retry_at if isinstance(error, ProviderRejected | ProviderUnavailable) else None",
                "retry_at = None",
            ),
        ),
        _mutant(
            "joiners-cancelled",
            "INV-8: a caller that joined a flight fails with its leader",
            "_engine.flights",
            (
                "        if not self._future.done():\n            self._future.set_result(None)",
                (
                    "        if not self._future.done():\n"
                    '            self._future.set_exception(RuntimeError("the leader is gone"))'
                ),
            ),
        ),
        _mutant(
            "no-deadline",
            "INV-8: a call goes on past its deadline",
            "source",
            ("        if now >= deadline:\n", "        if now >= deadline + 60:\n"),
        ),
        _mutant(
            "lost-for-good",
            "INV-8: callers wait for ever for a flight without a runner",
            "_engine.flights",
            ("if lost is not None and now < lost.lost_at and", "if lost is not None and"),
        ),
        _mutant(
            "life-from-answer",
            "INV-1: a token's life counts from the answer, not from the request",
            "_engine.flow",
            (
                (
                    "    copy = _copy_of(job, got, before, took=at.clock - before.clock)\n"
                    "    if current is not None and usable(current, at.clock) and not _better(job, copy, current):\n"
                    "        return (yield from _unchanged"
                ),
                (
                    "    copy = _copy_of(job, got, at, took=at.clock - before.clock)\n"
                    "    if current is not None and usable(current, at.clock) and not _better(job, copy, current):\n"
                    "        return (yield from _unchanged"
                ),
            ),
        ),
        _mutant(
            "wall-clock-only",
            "INV-1: a shared token ends by the wall clock alone",
            "_engine.flow",
            ("remaining = min(remaining, record.lifetime)", "remaining += 0"),
            ("    if stored.remaining is not None:\n        last", "    if stored.remaining is False:\n        last"),
        ),
        _mutant(
            "steady-clock-only",
            "INV-1: a shared token gets the lifetime that it had at its fetch",
            "_engine.flow",
            ("    remaining = token.expires_at - at.wall\n", "    remaining = record.lifetime or 0.0\n"),
            ("    if stored.remaining is not None:\n        last", "    if stored.remaining is False:\n        last"),
        ),
        _mutant(
            "no-countdown",
            "INV-1: the store's countdown is ignored",
            "_engine.flow",
            ("    if stored.remaining is not None:\n        last", "    if stored.remaining is False:\n        last"),
        ),
        _mutant(
            "kept-unpaced",
            "INV-5: without the store a provider that has no newer token is asked again at once",
            "_engine.local",
            ("        if outcome.unleased:\n            self._unleased_fetch_at = now + self._policy.probe\n", ""),
        ),
        _mutant(
            "abandoned-unshared",
            "INV-5: after an interrupted attempt a token that is not shared waits for its renewal",
            "source",
            ("self._due(self._copy, self._clock())", "self._copy.refresh_at"),
        ),
        _mutant(
            "kept-unshared",
            "INV-5: a token that was asked for in vain without the store is not shared when it is back",
            "_engine.local",
            (
                "self._keep(copy, min(outcome.next_at, self._due(copy, now)), now)",
                "self._keep(copy, outcome.next_at, now)",
            ),
        ),
        _mutant(
            "stale-refresh-token",
            "INV-3: the refresh token of an older copy is used, not that of the found record",
            "_engine.flow",
            ("previous = job.latest or (job.current.token if", "previous = (job.current.token if"),
        ),
        _mutant(
            "countdown-from-answer",
            "INV-1: a shared token's countdown starts when the answer comes",
            "_engine.flow",
            (
                "            case Found(stored=stored):\n                copy = yield from _read(job, stored, at)",
                (
                    "            case Found(stored=stored):\n"
                    "                copy = yield from _read(job, stored, (yield from now()))"
                ),
            ),
            ("copy = yield from _read(job, woken, at)", "copy = yield from _read(job, woken, (yield from now()))"),
        ),
        _mutant(
            "anybodys-token",
            "INV-10: a record of another identity under the same key is used",
            "_engine.flow",
            ("if record.identity is not None and record.identity != job.identity:", "if record.identity == '':"),
        ),
    )
}


@contextmanager
def broken(mutant: Mutant) -> Generator[None]:
    """Break the rule for as long as this block lasts. Raises ``ValueError`` when the module's text has changed."""
    module = importlib.import_module(mutant.module)
    text = inspect.getsource(module)
    for old, new in mutant.edits:
        if text.count(old) != 1:
            message = f"mutant {mutant.name}: {old!r} is {text.count(old)} times in {mutant.module}, not once"
            raise ValueError(message)
        text = text.replace(old, new)
    namespace: dict[str, object] = {**vars(module)}
    exec(compile(text, module.__file__ or mutant.module, "exec"), namespace)
    real, edited = _functions(vars(module), mutant.module), _functions(namespace, mutant.module)
    changed: dict[FunctionType, CodeType] = {}
    try:
        for name, function in real.items():
            code = edited[name].__code__
            if code.co_code != function.__code__.co_code or code.co_consts != function.__code__.co_consts:
                changed[function] = function.__code__
                function.__code__ = code
        yield
    finally:
        for function, code in changed.items():
            function.__code__ = code


def _functions(namespace: Mapping[str, object], module: str) -> dict[str, FunctionType]:
    """Return the functions and methods that a module defines, by their names within it."""
    found: dict[str, FunctionType] = {}
    for value in tuple(namespace.values()):
        if getattr(value, "__module__", None) != module:
            continue
        if isinstance(value, FunctionType):
            found[value.__qualname__] = value
        elif isinstance(value, type):
            members = cast("Mapping[str, object]", vars(value))
            found |= {each.__qualname__: each for each in members.values() if isinstance(each, FunctionType)}
    return found
