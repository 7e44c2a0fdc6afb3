"""The promises about speed, and whether this run meets them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from suite import boundary, cached, fleet, footprint, shared
from suite.results import Claim

if TYPE_CHECKING:
    from suite.results import Results

LOGIN = 0.25


def claims(results: Results) -> list[Claim]:
    """Return every promise with its measured value, ``None`` if this run did not measure it."""
    return [*_cached(results), *_many(results), *_shared(results), *_fleets(results), *_costs(results)]


def _over(above: float | None, below: float | None) -> float | None:
    """Return the ratio of two figures, ``None`` if one is missing."""
    return above / below if above is not None and below else None


def _cached(results: Results) -> list[Claim]:
    """Return the promises for a cached get."""
    ours = results.figure(cached.THREADS, "tokencache", "ns")
    clients = [row for row in results.of(cached.THREADS) if row.figures.get("client")]
    best = min(clients, key=lambda row: row.figures["ns"] or 0.0, default=None)
    name = best.way if best else "the best token client"
    limit = results.figure(cached.THREADS, "tokencache", "to limit")
    loop = results.figure(cached.LOOPS, "tokencache", "to limit")
    return [
        Claim("cached get from a thread", "bare closure", 1.25, limit),
        Claim("cached get from an event loop", "bare coroutine", 1.25, loop),
        Claim(
            "best token client over cached get",
            name,
            2.5,
            _over(best.figures["to limit"] if best else None, limit),
            True,
        ),
        Claim("MSAL over cached get", "MSAL", 100, _over(results.figure(cached.THREADS, "MSAL", "ns"), ours), True),
        Claim("login over cached get", "250 ms", 1e6, _over(LOGIN * 1e9, ours), True),
    ]


def _many(results: Results) -> list[Claim]:
    """Return the promises for many sources and many threads."""

    def to_one(scenario: str, way: str) -> float | None:
        return results.figure(scenario, way, "to one")

    among = to_one(cached.SOURCES, "tokencache, one of 10000")
    in_turn = _over(to_one(cached.SOURCES, "tokencache, 10000"), to_one(cached.SOURCES, "bare closure, 10000"))
    crowd = int(results.machine.get("cores", "1")) * 16
    held = _over(
        results.figure(cached.CROWD, f"tokencache, {crowd}", "ns"),
        results.figure(cached.CROWD, f"bare closure, {crowd}", "ns"),
    )
    alone = _over(
        results.figure(cached.CROWD, "tokencache, 1", "ns"), results.figure(cached.CROWD, "bare closure, 1", "ns")
    )
    return [
        Claim("one source among 10,000", "a source alone", 1.2, among),
        Claim("10,000 sources in turn, slower than one", "what 10,000 closures lose", 1.2, in_turn),
        Claim("16 threads per core, slower than one", "what a closure loses", 1.2, _over(held, alone)),
    ]


def _shared(results: Results) -> list[Claim]:
    """Return the promises for a shared get."""
    return [
        Claim("shared get, Redis", "redis-py GET", 1.5, results.figure(shared.REDIS, "tokencache", "to limit")),
        Claim(
            "shared get, memcached", "pymemcache get", 1.5, results.figure(shared.MEMCACHED, "tokencache", "to limit")
        ),
        Claim(
            "login over shared get, Redis, no local copy",
            "250 ms",
            2_000,
            results.figure(shared.REDIS, "tokencache", "login / get"),
            True,
        ),
    ]


def _fleets(results: Results) -> list[Claim]:
    """Return the promises for many processes, for expiries, and for a killed holder."""
    ours, limit = "tokencache, Redis", "by hand"
    best = results.best(fleet.STAMPEDE, "p99 ms")
    p99 = results.figure(fleet.STAMPEDE, ours, "p99 ms")
    rows = [
        Claim("cold stampede: logins", "calls", 1, results.figure(fleet.STAMPEDE, ours, "logins")),
        Claim("cold stampede: p99 beyond the login", limit, 1.2, results.figure(fleet.STAMPEDE, ours, "to limit")),
        Claim(
            "cold stampede: p99 beyond the login",
            best.way if best else "the best peer",
            1,
            _over(p99, best.figures["p99 ms"] if best else None),
        ),
        Claim("cold stampede: Redis commands", "commands", 80, results.figure(fleet.STAMPEDE, ours, "commands")),
        Claim("1,000 tasks: logins", "calls", 1, results.figure(fleet.TASKS, ours, "logins")),
        Claim("1,000 tasks: p99 beyond the login", limit, 1.2, results.figure(fleet.TASKS, ours, "to limit")),
    ]
    at = boundary.BOUNDARY
    rows += [
        Claim("expiry boundary: blocked callers", "calls", 0, results.figure(at, "tokencache", "blocked")),
        Claim("expiry boundary: late tokens", "tokens", 0, results.figure(at, "tokencache", "late")),
        Claim("expiry boundary: p99.9", "no expiry", 2, results.figure(at, "tokencache", "p99.9 to no expiry")),
    ]
    for store in ("Redis", "memcached", "file"):
        recovery = results.figure(fleet.KILLED, f"tokencache, {store}", "recovery s")
        rows.append(Claim(f"holder killed, {store}: recovery", "seconds", 3.3, recovery))
    return rows


def _costs(results: Results) -> list[Claim]:
    """Return the promises for import and memory."""
    return [
        Claim("import", "ms beyond Python", 50, results.figure(footprint.IMPORT, "tokencache", "ms beyond Python")),
        Claim("idle source", "bytes", 2_048, results.figure(footprint.MEMORY, "tokencache", "bytes, idle")),
        Claim(
            "source with a token",
            "bytes beyond it",
            2_048,
            results.figure(footprint.MEMORY, "tokencache", "bytes, beyond its token"),
        ),
    ]


def table(found: list[Claim]) -> list[list[str]]:
    """Return the claims as rows of text: claim, base, limit, measured value, met or MISSED."""
    rows = [["claim", "beside", "limit", "measured", ""]]
    for claim in found:
        sign = "≥" if claim.at_least else "≤"
        verdict = {True: "met", False: "MISSED", None: "not measured"}[claim.met]
        measured = "-" if claim.measured is None else number(claim.measured)
        rows.append([claim.name, claim.base, f"{sign} {number(claim.limit)}", measured, verdict])
    return rows


def number(value: float) -> str:
    """Return a figure as text: three digits, thousands separated."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}".replace(",", " ")
    return f"{value:.3g}"
