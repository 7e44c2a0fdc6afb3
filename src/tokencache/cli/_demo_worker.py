"""One process of the demo's fleet: its threads ask for tokens of a fake QPay."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import dataclass, field

from tokencache.cli._streams import replace_streams
from tokencache.cli._worker_load import WorkerLoad, first_line, run, say, total
from tokencache.errors import TokenCacheError
from tokencache.policy import RefreshPolicy


@dataclass(frozen=True, kw_only=True)
class DemoOrders(WorkerLoad):
    """The orders of one process of the demo."""

    backend: str = field(repr=False)
    namespace: str
    base_url: str
    client_id: str
    client_secret: str = field(repr=False)


def main() -> None:
    """Read the orders and carry them out."""
    orders = DemoOrders(**json.loads(first_line()))

    from tokencache import TokenCache
    from tokencache_qpay import QPayProvider

    logging.getLogger("tokencache").addHandler(logging.NullHandler())  # errors are reported, not logged
    try:
        with TokenCache(orders.backend, namespace=orders.namespace) as cache:
            provider = QPayProvider(orders.client_id, orders.client_secret, base_url=orders.base_url)
            policy = RefreshPolicy()
            source = cache.source(provider, policy=policy)
            _ = source.key  # derived before the start, so that the figures are of the fetch only
            tallies = run(orders, source, policy)
    except TokenCacheError as error:
        sys.exit(f"a process of the demo: {error}")
    say({"done": "all", **total(tallies), "times": []})  # the parent does not use them


if __name__ == "__main__":
    replace_streams()  # no traceback when the parent was killed
    main()
