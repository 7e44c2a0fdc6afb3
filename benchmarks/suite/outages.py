"""Outages of the provider and of the store: errors with a good token, extra logins, time to recover."""

from __future__ import annotations

import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from suite import boundary, fleet, peers, stores
from suite.child import Child
from suite.logins import Logins
from suite.results import Row

if TYPE_CHECKING:
    from collections.abc import Callable

    from suite.plan import Plan

PROVIDER, STORE = "provider down", "store down"
THREADS, PAUSE = 4, 0.01


def ask(get: Callable[[], Any], until: float) -> list[tuple[float, float, str | None, object]]:
    """Ask from four threads until then; return the start, duration, error and token of each call."""
    calls: list[tuple[float, float, str | None, object]] = []

    def work() -> None:
        while (began := time.monotonic()) < until:
            try:
                token: Any = get()
            except Exception as error:  # noqa: BLE001  counted
                calls.append((began, time.monotonic() - began, repr(error), None))
            else:
                calls.append((began, time.monotonic() - began, None, getattr(token, "value", token)))
            time.sleep(PAUSE)

    crowd = [threading.Thread(target=work, daemon=True) for _ in range(THREADS)]
    for thread in crowd:
        thread.start()
    for thread in crowd:
        thread.join(max(0.0, until - time.monotonic()) + 10)
    return calls


def without_provider(way: str, outage: float) -> dict[str, float | None]:
    """Return the figures of an outage of the provider in which the token ends. Runs in a child.

    The outage lasts as long as a token lives, and begins in the middle of that life.
    """
    chosen = boundary.way_of(way)
    logins = Logins(latency=0.05, lifetime=outage)
    logins.told = outage + chosen.window
    get = chosen.make(logins)
    get()
    gone = time.monotonic() + outage / 2
    back = gone + outage
    asked: dict[str, int] = {}

    def change() -> None:
        time.sleep(max(0.0, gone - time.monotonic()))
        logins.down, asked["before"] = True, logins.calls
        time.sleep(max(0.0, back - time.monotonic()))
        logins.down, asked["after"] = False, logins.calls

    changes = threading.Thread(target=change)
    changes.start()
    calls = ask(get, back + 2 + outage * 0.8)
    changes.join()
    good_until = gone + outage / 2
    early = [call for call in calls if call[2] is not None and call[0] + call[1] < good_until]
    served = [call for call in calls if call[3] is not None]
    again = [call[0] + call[1] for call in served if call[0] + call[1] >= back]
    return {
        "errors while good": float(len(early)),
        "late": float(sum(logins.late(str(token), at + took) for at, took, _, token in served)),
        "logins tried": float(asked["after"] - asked["before"]),
        "back after s": min(again) - back if again else None,
    }


def provider(plan: Plan) -> list[Row]:
    """Stop the providers of all ways at once; each way has its own process and provider."""
    ways = [way for way in peers.THREADS if way.kind != "limit"]
    chosen = [ways[0], *ways[4:6]] if plan.quick else ways
    rows: list[Row] = []
    children = [(way, Child("outages", "without_provider", way=way.name, outage=plan.outage)) for way in chosen]
    for way, child in children:
        note = f"told that tokens live {way.window:g} s longer" if way.window else ""
        if way.kind == "ours":
            note = "its errors while good are of the last tenth of the life, in which a token is not handed out"
        try:
            rows.append(Row(PROVIDER, way.name, way.kind, child.result(plan.outage * 4 + 60), note))
        except RuntimeError as error:
            rows.append(Row(PROVIDER, way.name, way.kind, note=f"not measured: {error}"[:160]))
    return rows


def without_store(way: str, setting: dict[str, Any], gone: float, back: float, until: float) -> dict[str, float | None]:
    """Return the figures of an outage of the store from ``gone`` to ``back`` (epoch seconds). Runs in a child."""
    chosen = next(each for each in stores.WAYS if each.name == way)
    get = chosen.make(stores.Setting(**setting))
    get()
    shift = time.monotonic() - time.time()
    calls = ask(get, until + shift)
    during = [call for call in calls if gone + shift <= call[0] < back + shift]
    after = [call[0] + call[1] for call in calls if call[2] is None and call[0] >= back + shift]
    return {
        "calls": float(len(during)),
        "errors": float(sum(call[2] is not None for call in during)),
        "longest ms": max((call[1] for call in during), default=0.0) * 1e3,
        "back after s": min(after) - shift - back if after else None,
    }


def store(plan: Plan) -> list[Row]:
    """Stop Redis and memcached for all ways at once. Each way has its own counted login."""
    from tokencache.testing.servers import MemcachedServer, RedisServer
    from tokencache_qpay.testing import FakeQPay

    ways = [way for way in stores.WAYS if not way.loop and way.kind != "limit" and way.store != "file"]
    chosen = [way for way in ways if not plan.quick or way.name in fleet.QUICK]
    rows: list[Row] = []
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        children = []
        for way in chosen:
            qpay = stack.enter_context(FakeQPay(latency=0.05))
            redis, memcached = stack.enter_context(RedisServer()), stack.enter_context(MemcachedServer())
            gone = time.time() + 4 + len(chosen)
            where = {"login": qpay.url, "redis": redis.url, "memcached": memcached.url, "folder": folder}
            children.append((way, qpay, redis if way.store == "redis" else memcached, where, gone))
        gone = max(each[-1] for each in children)
        back = gone + plan.outage
        times = {"gone": gone, "back": back, "until": back + 2 + plan.outage / 10}
        running = [
            (way, qpay, server, Child("outages", "without_store", way=way.name, setting=where, **times))
            for way, qpay, server, where, _ in children
        ]
        time.sleep(max(0.0, gone - time.time()))
        before = {way.name: qpay.logins for way, qpay, _, _ in running}
        for _, _, server, _ in running:
            server.kill()
        time.sleep(max(0.0, back - time.time()))
        for _, _, server, _ in running:
            server.restart()
        for way, qpay, _, child in running:
            try:
                figures = child.result(plan.outage + 60)
                figures["logins"] = float(qpay.logins - before[way.name])
                rows.append(Row(STORE, way.name, way.kind, figures))
            except RuntimeError as error:
                rows.append(Row(STORE, way.name, way.kind, note=f"not measured: {error}"[:160]))
    return rows


def both(plan: Plan) -> list[Row]:
    """Stop both at the same time, in separate processes: the counts do not depend on the load."""
    with ThreadPoolExecutor(2) as pool:
        found = [pool.submit(provider, plan), pool.submit(store, plan)]
        return [row for future in found for row in future.result()]
