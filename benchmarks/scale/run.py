"""Makes the tables and plots of docs/scale.md: it simulates the fleets and measures the rest. `make scale` runs it."""

from __future__ import annotations

import os
import platform
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

from scale.fleets import DAY, HOUR, simulate
from scale.local import bursts, key_cost, memory
from scale.plots import busiest, days, draw, herds
from scale.store import measure

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from scale.fleets import Case
    from scale.local import Burst, Memory
    from scale.store import Cost, Rates
    from simulator.scale import Figures

DOCUMENT = Path(__file__).parents[2] / "docs" / "scale.md"
NAMES = {HOUR: "1 h", DAY: "24 h"}


def main() -> None:
    """Make all tables and plots."""
    begun = time.perf_counter()
    costs, rates, version = measure()
    local, key, ways = [memory(count) for count in (1, 10, 100, 1000, 10_000)], key_cost(), bursts()
    results = simulate()
    text = DOCUMENT.read_text()
    where = (
        f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, "
        f"Python {platform.python_version()}, Redis {version}"
    )
    tables = {
        "machine": [where],
        "day": _days(results),
        "herd": _herds(results),
        "sources": _sources(results),
        "memory": _memory(local, key),
        "threads": _threads(ways),
        "store": _store(costs),
        "rates": [_rates(rates)],
    }
    for name, lines in tables.items():
        text = _put(text, name, lines)
    DOCUMENT.write_text(text)
    lease = next(cost for cost in costs if cost.name == "lease, a newer record found")
    draw(DOCUMENT.with_suffix(""), results, ways, 1 / lease.measured)
    print(f"docs/scale.md and its plots are made, in {time.perf_counter() - begun:.0f} s")


def _rates(rates: Rates) -> str:
    """Return the rates of one connection."""
    return (
        f"One connection gets through {_n(rates.single)} leases a second one by one, "
        f"and through {_n(rates.pipelined)} when a hundred are sent at a time."
    )


def _put(text: str, name: str, lines: Iterable[str]) -> str:
    """Return the text with new lines between the marks of this name."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    assert pattern.search(text), f"docs/scale.md has no place for {name}"
    return pattern.sub(lambda found: found[1] + "".join(f"{line}\n" for line in lines) + found[2], text)


def _table(head: str, rows: Iterable[Sequence[object]]) -> list[str]:
    """Return a table."""
    lines = [f"| {head} |", "|" + "---:|" * (head.count("|") + 1)]
    return lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows]


def _n(number: float) -> str:
    """Return a number as readable text."""
    if number and abs(number) < 10:
        return f"{number:.2g}"
    return f"{number:,.0f}".replace(",", " ")


def _wait(seconds: float) -> str:
    """Return a wait in milliseconds."""
    return _n(round(seconds * 1000, 1))


def _share(figures: Figures, share: float) -> float:
    """Return the percentile of the waits."""
    waits = sorted(figures.waits)
    return waits[min(len(waits) - 1, int(len(waits) * share))]


def _days(results: Sequence[tuple[Case, Figures]]) -> list[str]:
    """Return the table of steady days."""
    rows: list[Sequence[object]] = []
    for lifetime, name in NAMES.items():
        alone, *others = days(results, lifetime)
        for size, figures, case in others:
            hours = case.fleet.lasts / HOUR
            without = size * sum(at < case.fleet.lasts for at in alone[1].fetched_at)
            rows.append(
                (
                    name,
                    _n(size),
                    f"{hours:.0f}",
                    figures.calls,
                    _n(without),
                    _n(figures.total()),
                    _n(figures.total() / case.fleet.lasts),
                    _n(max(figures.by_second()[: int(case.fleet.starts)])),
                    _n(busiest(figures)),
                    f"{figures.total() / size / figures.calls:.2f}",
                    _n(sum(figures.traffic) / 1e6),
                    _n(max(figures.traffic) / 1e3),
                    _n(len(figures.waits)),
                    _wait(_share(figures, 0.5)),
                    _wait(max(figures.waits)),
                    _n(figures.connections),
                )
            )
    head = (
        "token | instances | hours | provider calls | no cache | commands | mean/s | most/s, start | most/s, renewal | "
        "each and token | MB | most kB/s | waited | median ms | longest ms | connections"
    )
    return _table(head, rows)


def _herds(results: Sequence[tuple[Case, Figures]]) -> list[str]:
    """Return the table of cold starts."""
    head = (
        "instances | provider calls | without a lease | commands | most/s | each | late replies | median ms | "
        "99 of 100, ms | longest ms | all served after s | connections |"
    )
    rows = [
        (
            _n(size),
            _n(figures.calls),
            _n(figures.alone),
            _n(figures.total()),
            _n(max(figures.by_second())),
            f"{figures.total() / size:.1f}",
            _n(figures.late),
            _wait(_share(figures, 0.5)),
            _wait(_share(figures, 0.99)),
            _wait(max(figures.waits)),
            f"{figures.served_at:.1f}",
            _n(figures.connections),
            case.note,
        )
        for size, figures, case in herds(results)
    ]
    return _table(head, rows)


def _sources(results: Sequence[tuple[Case, Figures]]) -> list[str]:
    """Return the table of processes with many sources."""
    found = sorted(
        ((case.fleet.sources, figures) for case, figures in results if case.kind == "sources"),
        key=lambda each: each[0],
    )
    rows = [
        (
            _n(count),
            _n(figures.calls),
            f"{figures.calls / count:.2f}",
            _n(figures.total()),
            _n(max(figures.by_second()[:100])),
            _n(busiest(figures)),
            figures.connections,
            _wait(max(figures.waits)),
        )
        for count, figures in found
    ]
    head = (
        "sources | provider calls | each source | commands | most/s, start | most/s, renewal | connections | longest ms"
    )
    return _table(head, rows)


def _memory(local: Sequence[Memory], key: float) -> list[str]:
    """Return the table of memory."""
    rows = [
        (_n(each.sources), _n(each.made), _n(each.held), _n(each.held * each.sources / 1e3), each.threads)
        for each in local
    ]
    head = "sources | bytes each, made | bytes each, with a token of 1 kB | kB in all | threads at rest"
    return [*_table(head, rows), "", f"The key of a source with a credential took {key * 1000:.0f} ms to derive."]


def _threads(ways: Sequence[Burst]) -> list[str]:
    """Return the table of concurrent renewals."""
    rows = [
        (
            each.name,
            _n(each.sources),
            f"{each.latency:g}",
            _n(each.renewed),
            _n(each.threads),
            _wait(each.slowest),
            f"{each.took:.0f}",
            _n(each.resident),
            each.failed,
        )
        for each in ways
    ]
    head = (
        "renewals | sources | login s | renewed | most threads | slowest call ms | all renewed after s | "
        "process MB | failures"
    )
    return _table(head, rows)


def _store(costs: Sequence[Cost]) -> list[str]:
    """Return the table of costs on one Redis."""
    rows = [
        (
            cost.name,
            _n(cost.measured * 1e6),
            _n(cost.assumed * 1e6),
            _n(1 / cost.measured),
            _n(cost.weight),
            _n(cost.weighed),
        )
        for cost in costs
    ]
    return _table("what | µs measured | µs assumed | a second | bytes measured | bytes assumed", rows)


if __name__ == "__main__":
    main()
