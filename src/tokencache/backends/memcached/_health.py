"""The checks of `tokencache doctor` for memcached: versions, cas, room, evictions, clocks. No key is read."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Final

from tokencache.backends._client_library import version_of
from tokencache.errors import BackendUnavailable
from tokencache.health import Finding, compare_clocks, failed, ok, skipped, warning

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokencache.backends.memcached._servers import Server, Servers

_SMALLEST: Final = 1 << 16  # a record is some kilobytes: a JWT and its fields


def examine(servers: Servers, own: Server) -> Iterator[Finding]:
    """Yield the findings of all servers; only ``own``, the server of the record, can fail a check."""
    for server in servers:
        try:
            before, started = time.time(), time.monotonic()
            with server.session() as session:
                figures = session.figures()
                took = time.monotonic() - started
                settings = session.figures("settings")
        except BackendUnavailable as error:
            remedy = "start it, or remove it from the URL of every process of the fleet at once: its keys move then"
            yield (failed if server is own else warning)("server", str(error), remedy)
            continue
        yield _server(server.name, figures)
        yield _cas(server.name, settings)
        yield _evictions(server.name, figures, settings)
        at = float(figures.get("time", "nan"))
        if not math.isnan(at):
            yield compare_clocks(server.name, theirs=(at, at + 1.0), ours=(before, before + took))


def _server(name: str, figures: dict[str, str]) -> Finding:
    """Return the version of this server."""
    library = ".".join(map(str, version_of("pymemcache", extra="memcached")))
    return ok("server", f"memcached {figures.get('version', '?')} at {name}, pymemcache {library}")


def _cas(name: str, settings: dict[str, str]) -> Finding:
    """Return whether items can be compared and swapped."""
    told = settings.get("cas_enabled")
    if told is None:
        return skipped("cas", f"{name} does not tell; the round trip above shows whether it works")
    if told in {"no", "False", "0"}:
        return failed("cas", f"{name} was started with -C, which takes cas away", "start it without -C")
    return ok("cas", "compare-and-swap works")


def _evictions(name: str, figures: dict[str, str], settings: dict[str, str]) -> Finding:
    """Return whether the server evicts records and leases, or has no room for a record."""
    largest, most = int(settings.get("item_size_max", "0")), int(figures.get("limit_maxbytes", "0"))
    evicted = int(figures.get("evictions", "0"))
    seen = (
        f"{name} has {most / 2**20:.0f} MiB, items of at most {largest / 2**10:.0f} KiB, {evicted} items evicted so far"
    )
    if 0 < largest < _SMALLEST:
        return warning("eviction", seen, f"start it with -I {_SMALLEST // 1024}k or more, so that a record fits")
    if evicted:
        remedy = "give it more memory (-m), or tokens a memcached of their own: a lost lease costs a login"
        return warning("eviction", seen, remedy)
    return ok("eviction", seen)
