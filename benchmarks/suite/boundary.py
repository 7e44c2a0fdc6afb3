"""The expiry boundary: tokens of two seconds, eight threads that ask constantly, and the callers that wait."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

from suite import peers
from suite.child import Child
from suite.logins import Logins
from suite.results import Row, middle, share

if TYPE_CHECKING:
    from suite.peers import Way
    from suite.plan import Plan

BOUNDARY = "expiry boundary"
LIFETIME, LATENCY, THREADS, PAUSE = 2.0, 0.25, 8, 0.001
BLOCKED = LATENCY / 2
LONG = "tokencache, tokens that do not expire"


def way_of(name: str) -> Way:
    """Return the named way."""
    return next(way for way in (*peers.THREADS, peers.BACKGROUND) if way.name == name)


def ask(way: str, duration: float, lifetime: float) -> dict[str, float]:
    """Return the figures of eight threads that ask every millisecond for ``duration`` seconds. Runs in a child."""
    chosen = way_of(way)
    logins = Logins(latency=LATENCY, lifetime=lifetime)
    logins.told = lifetime + chosen.window
    get = chosen.make(logins)
    get()
    before = logins.calls
    waits: list[float] = []
    late: list[bool] = []
    errors: list[str] = []
    end = time.monotonic() + duration

    def work() -> None:
        while (began := time.monotonic()) < end:
            try:
                token: Any = get()
            except Exception as error:  # noqa: BLE001  counted
                errors.append(repr(error))
                continue
            after = time.monotonic()
            waits.append(after - began)
            late.append(logins.late(getattr(token, "value", token), after))
            time.sleep(PAUSE)

    crowd = [threading.Thread(target=work) for _ in range(THREADS)]
    for thread in crowd:
        thread.start()
    for thread in crowd:
        thread.join()
    parts = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999), ("longest", 1.0))
    figures = {f"{name} us": share(waits, part) * 1e6 for name, part in parts}
    blocked = float(sum(wait >= BLOCKED for wait in waits))
    return {
        "calls": float(len(waits)),
        **figures,
        "blocked": blocked,
        "late": float(sum(late)),
        "logins": float(logins.calls - before),
        "errors": float(len(errors)),
    }


def boundary(plan: Plan) -> list[Row]:
    """Run every way over expiries; run tokencache also without expiries, in turns, for comparison."""
    found: dict[str, list[dict[str, float]]] = {"tokencache": [], LONG: []}
    for _ in range(1 if plan.quick else 3):
        found["tokencache"].append(_child("tokencache", plan.boundary, LIFETIME))
        found[LONG].append(_child("tokencache", plan.boundary, 3600.0))
    pairs = zip(found["tokencache"], found[LONG], strict=True)
    ratios = [with_them["p99.9 us"] / without["p99.9 us"] for with_them, without in pairs]
    rows = [
        Row(BOUNDARY, "tokencache", "ours", worst(found["tokencache"]) | {"p99.9 to no expiry": middle(ratios)}),
        Row(BOUNDARY, LONG, "ours", worst(found[LONG])),
    ]
    asked = [peers.BACKGROUND, *(way for way in peers.THREADS if way.kind == "peer")]
    for way in asked if not plan.quick else asked[4:5]:
        note = f"told that tokens live {way.window:g} s longer" if way.window else ""
        try:
            rows.append(Row(BOUNDARY, way.name, way.kind, dict(_child(way.name, plan.boundary, LIFETIME)), note))
        except RuntimeError as error:
            rows.append(Row(BOUNDARY, way.name, way.kind, note=f"not measured: {error}"[:160]))
    return rows


def worst(runs: list[dict[str, float]]) -> dict[str, float | None]:
    """Return the medians of the times, and the maxima of the counts that should be zero."""
    counted = {"blocked", "late", "errors"}
    return {name: (max if name in counted else middle)(run[name] for run in runs) for name in runs[0]}


def _child(way: str, duration: float, lifetime: float) -> dict[str, float]:
    """Run ``ask`` in its own process."""
    return Child("boundary", "ask", way=way, duration=duration, lifetime=lifetime).result(duration * 3 + 30)
