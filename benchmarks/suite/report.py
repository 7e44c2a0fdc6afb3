"""The report: ``benchmarks.md`` with its pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from suite import boundary, cached, fleet, footprint, outages, shared
from suite import cells as by_backend
from suite.claims import number, table

if TYPE_CHECKING:
    from pathlib import Path

    from suite.results import Results

WORDS = frozenset({"way", "", "note", "claim", "beside"})
"""The table columns with text; columns with figures are right-aligned."""

METHOD = """\
All ways are measured in one run, on one machine, in repeated turns, so that a busy moment affects all ways equally. \
A ratio is the median of the ratios within a turn. Only ratios are judged, because times depend on the machine. A peer \
is called as its documents show. If its way to a token takes several calls, the timing loop holds them all, without a \
wrapper of ours. All log in at the same provider, which takes 250 ms in the scenarios where that matters. Scenarios of \
many processes start real ones, with their own Redis and memcached on loopback.

The limit is the least code for the task. For a cached get it is a closure or coroutine that reads the same clock and \
compares. For a shared get it is the client library's own GET. For a stampede it is a single flight, a lock and a \
message, written by hand without failure handling.

A figure within a fifth of its limit may be on the other side of the limit in the next run.

A peer has one turn if only counts decide (boundary, kill, outages), and two in the cold stampede. All ways share the \
machine's cores with their servers. Only for a shared get, client and server run on one CPU.

Peers get favorable settings. Early windows are zero if possible. Clients with a constant window get tokens that live \
longer by that window, because otherwise they would fetch at every call. The row of a peer notes its limits and \
failures."""

SECTIONS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (
        by_backend.CELLS,
        (
            "Microseconds per call, by pytest-benchmark. `hot` is the local copy. `shared` is another process's token, "
            "read by a new source. `miss`, `renewal` and `after a 401` fetch from a provider that answers at once, so "
            "only our own time is counted. A real provider adds its login once for the whole fleet."
        ),
        tuple(by_backend.COLUMNS.values()),
    ),
    (
        cached.THREADS,
        "`to limit` compares with the bare closure.",
        ("ns", "to limit"),
    ),
    (cached.LOOPS, "`to limit` compares with the bare coroutine.", ("ns", "to limit")),
    (
        cached.SOURCES,
        (
            "One source, many sources in turn, and one of many. `to one` compares with the same way with one source. "
            "Closures get slower too, because of the processor's caches."
        ),
        ("ns", "to one"),
    ),
    (
        cached.CROWD,
        (
            "Many threads at once, all on one source; nanoseconds of wall time per get. The interpreter lock slows a "
            "closure too."
        ),
        ("ns", "to one"),
    ),
    (
        shared.REDIS,
        (
            "Another process's token of 1,000 characters, loaded and decoded, without a local copy; client and server "
            "run on one CPU. `to limit` compares with the client library's GET of the same kind. `login / get` is the "
            "number of gets in the time of a login of 250 ms."
        ),
        ("us", "to limit", "login / get"),
    ),
    (shared.MEMCACHED, "As above; the limit is pymemcache's `get`.", ("us", "to limit", "login / get")),
    (shared.FILE, "As above; the limit reads the file without any check.", ("us", "to limit", "login / get")),
    (shared.SIZES, "By the token's length in characters.", ("us", "to limit")),
    (
        fleet.STAMPEDE,
        (
            "Eight processes of sixteen threads ask at once, without a token. Times are waits beyond the login; they "
            "are negative for callers that came during the login."
        ),
        ("logins", "p50 ms", "p99 ms", "to limit", "commands", "errors"),
    ),
    (
        fleet.TASKS,
        "A thousand tasks of one loop ask at once. The limit is one task that the others await.",
        ("logins", "p50 ms", "p99 ms", "to limit", "commands", "errors"),
    ),
    (
        boundary.BOUNDARY,
        (
            "Tokens of 2 s, a login of 250 ms, eight threads that ask every millisecond. A caller is blocked if a call "
            "takes 125 ms or more. A token is late if it had expired when it was returned."
        ),
        ("calls", "p50 us", "p99 us", "p99.9 us", "longest us", "blocked", "late", "logins", "errors"),
    ),
    (
        fleet.KILLED,
        (
            "The process that is logging in is killed. The time is that until the last caller of two other processes "
            "has a token; for tokencache it is the longest of all turns. Two logins are correct: the killed one and "
            "another. With more, the others had not waited for the first."
        ),
        ("recovery s", "logins"),
    ),
    (
        outages.PROVIDER,
        (
            "The provider fails for as long as a token lives, and the outage begins in the middle of that life. Four "
            "threads ask constantly."
        ),
        ("errors while good", "late", "logins tried", "back after s"),
    ),
    (
        outages.STORE,
        "The store is killed, and restarts empty. Every process holds a token that lives for an hour.",
        ("calls", "errors", "longest ms", "logins", "back after s"),
    ),
    (footprint.IMPORT, "The start of Python with the import, minus the start without it.", ("ms beyond Python",)),
    (
        footprint.MEMORY,
        "By tracemalloc: a source without a token, and a source with a token, without the token's own bytes.",
        ("bytes, idle", "bytes, beyond its token", "bytes, token"),
    ),
    (footprint.FREE, "Threads without the interpreter's lock.", ()),
)


def write(results: Results, folder: Path) -> None:
    """Write ``benchmarks.md`` and ``benchmarks/*.svg`` into ``folder``."""
    from suite import plots  # imports matplotlib, which only a report needs

    pictures = plots.draw(results, folder / "benchmarks")
    (folder / "benchmarks.md").write_text(markdown(results, pictures))


def markdown(results: Results, pictures: dict[str, str]) -> str:
    """Return the report."""
    parts = ["# Benchmarks", summary(results), "`make bench` makes this page.", "## What was promised"]
    parts.append(grid(table(results.claims)))
    parts += ["## Where we lose", *(f"- {line}" for line in losses(results))]
    parts += ["## Method", METHOD, "## Machine", machine(results)]
    parts += [f"![{title}](benchmarks/{name}.svg)" for name, title in pictures.items()]
    for scenario, words, figures in SECTIONS:
        if results.of(scenario):
            parts += [f"## {scenario[0].upper()}{scenario[1:]}", words, grid(cells(results, scenario, figures))]
    return _joined(parts)


def _joined(parts: list[str]) -> str:
    """Return the parts with an empty line between them, except within a list."""
    text = "\n\n".join(parts) + "\n"
    while "\n\n- " in text.partition("\n- ")[2]:
        head, _, rest = text.partition("\n- ")
        text = f"{head}\n- " + rest.replace("\n\n- ", "\n- ")
    return text


def summary(results: Results) -> str:
    """Return one sentence on the whole run."""
    known = [claim for claim in results.claims if claim.met is not None]
    met = sum(bool(claim.met) for claim in known)
    kind = "a quick run with medians of few turns" if results.quick else "one whole run"
    return f"{met} of {len(known)} promises are met in {kind}."


def machine(results: Results) -> str:
    """Return machine and versions, and the distributions that are not installed."""
    told = ", ".join(f"{name}: {value}" for name, value in results.machine.items())
    there = ", ".join(f"{name} {version}" for name, version in results.versions.items() if version)
    absent = ", ".join(name for name, version in results.versions.items() if not version) or "nothing"
    return f"{told}. Versions: {there}. Not installed: {absent}."


def losses(results: Results) -> list[str]:
    """Return a line for every missed promise, and for every scenario in which a peer is better."""
    lines = [
        f"{claim.name}: {number(claim.measured or 0)} beside {claim.base}, promised was {number(claim.limit)}."
        for claim in results.claims
        if claim.met is False
    ]
    for scenario, _, figures in SECTIONS[1:]:  # the first section compares our own backends
        ours = [row for row in results.of(scenario) if row.kind == "ours"]
        for figure in figures:
            if figure in {"to limit", "to one", "calls", "login / get", "logins", "p50 us", "p99 us"} or not ours:
                continue
            mine, best = ours[0].figures.get(figure), results.best(scenario, figure)
            if best is None:
                continue
            other = best.figures[figure] or 0.0
            if mine is None and ours[0].figures:
                lines.append(f"{scenario}, {figure}: none for us, {number(other)} for {best.way}.")
            elif mine is not None and mine > other:
                lines.append(f"{scenario}, {figure}: {number(mine)} for us, {number(other)} for {best.way}.")
    return lines or ["Nowhere in this run."]


def cells(results: Results, scenario: str, figures: tuple[str, ...]) -> list[list[str]]:
    """Return the rows of a scenario as text."""
    noted = any(row.note for row in results.of(scenario))
    rows = [["way", "", *figures, *(["note"] if noted else [])]]
    for row in results.of(scenario):
        values = [row.figures.get(figure) for figure in figures]
        told = ["-" if value is None else number(value) for value in values]
        rows.append([row.way, "" if row.kind == "peer" else row.kind, *told, *([row.note] if noted else [])])
    return rows


def grid(rows: list[list[str]]) -> str:
    """Return rows as a table of Markdown, with figures right-aligned."""
    head, *body = rows
    lines = [head, ["---" if name in WORDS else "---:" for name in head], *body]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
