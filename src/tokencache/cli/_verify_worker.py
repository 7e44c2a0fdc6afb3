"""One fresh process of `tokencache verify`: it reads the token from the backend, or reports the problem.

Its orders come as a line of JSON over a pipe, so that process lists show no password of a URL. It never logs in and
never takes a lease, so its failure causes no cooldown for the fleet.
"""

from __future__ import annotations

import json
import logging
import signal
import sys
import time

from tokencache.cli._counted import CountedProvider
from tokencache.cli._read_only import ReadOnlyBackend
from tokencache.cli._setup import Setup
from tokencache.cli._worker_load import first_line
from tokencache.errors import TokenCacheError


def main() -> None:
    """Read the orders, carry them out, and print one line of JSON."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C also goes to the parent, which ends this process
    orders = json.loads(first_line())
    logging.getLogger("tokencache").addHandler(logging.NullHandler())  # errors are reported, not logged
    try:
        report = look(orders["provider"], Setup(orders.get("config"), orders["backend"]), orders["timeout"])
    except TokenCacheError as error:
        report = {"problem": str(error)}
    sys.stdout.write(json.dumps(report) + "\n")


def look(provider: str, setup: Setup, timeout: float | None) -> dict[str, object]:
    """Return the seconds until the token was read, or the problem; only the key if no usable record is stored."""
    from tokencache import TokenCache
    from tokencache.plugins import open_backend

    configured = setup.provider(provider)
    backend = open_backend(setup.url(configured))
    counted = CountedProvider(configured.provider, most=0)
    with TokenCache.from_config(setup.plan, backend=ReadOnlyBackend(backend), observers=()) as cache:
        source = cache.source(counted, policy=setup.quiet_policy(configured), key=configured.key)
        key = source.key  # derived before, so that the figure is of the backend only
        began = time.perf_counter()
        try:
            source.token(timeout)
        except TokenCacheError as error:
            status = source.status()
            unknown = status.problem if status.stored == "unknown" else None
            return {"key": key, "problem": unknown if counted.refused else str(error)}
        finally:
            backend.close()
        took = time.perf_counter() - began
    return {"key": key, "seconds": took}


if __name__ == "__main__":
    main()
