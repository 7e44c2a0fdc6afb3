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
"""The columns of a table that hold words; those of figures stand to the right."""

METHOD = """\
All ways are measured in one run, on one machine, in turns: each has its turn, then each again, so that a busy moment \
harms all alike. A ratio is the median of the ratios within a turn, and only ratios are judged: times depend on the \
machine. A peer is called as its documents show it. If its way to a token takes several calls, the timing loop holds \
them all, so a wrapper is not counted as the peer's. All log in at the same provider, which takes 250 ms in the \
scenarios where that matters. Scenarios of many processes start real ones, with a Redis and a memcached of their own \
on loopback.

The limit is the least code for the task. For a cached get it is a closure or coroutine that reads the same clock and \
compares. For a shared get it is the client library's own GET. For a stampede it is a flight, a lock and a message, \
written by hand without failure handling.

A figure within a fifth of its limit may be on the other side of it in the next run.

Where counts decide (boundary, kill, outages), a peer has one turn, and two in the cold stampede. All share the \
machine's cores with their servers; only for a shared get are client and server on one CPU.

Peers are set kindly. Early windows are set to zero where that is possible. Clients with a constant window get tokens \
that live longer by just that, or they would fetch at every call. What a peer cannot do, or fails to do here, is in \
its row."""

SECTIONS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (
        by_backend.CELLS,
        (
            "Microseconds a call, by pytest-benchmark. `hot` is the local copy; `shared` another process's token, by a "
            "source that was just made; `miss`, `renewal` and `401 heal` fetch from a provider that answers at once, "
            "so what is counted is ours: a real one adds its login once, for the whole fleet."
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
            "One source, many asked in turn, and one while many are held. `to one` compares with the same way with "
            "one; closures lose as well, to the processor's caches."
        ),
        ("ns", "to one"),
    ),
    (
        cached.CROWD,
        (
            "So many threads at once, all on one source; nanoseconds of wall time a get. A closure meets the same "
            "lock of the interpreter."
        ),
        ("ns", "to one"),
    ),
    (
        shared.REDIS,
        (
            "Another process's token, loaded and decoded, without a local copy; client and server on one CPU; a token "
            "of 1,000 characters. `to limit` compares with the client library's GET of the same kind. `login / get` is "
            "how many fit into a login of 250 ms."
        ),
        ("us", "to limit", "login / get"),
    ),
    (shared.MEMCACHED, "As above; the limit is pymemcache's `get`.", ("us", "to limit", "login / get")),
    (shared.FILE, "As above; the limit reads the file and looks at nothing.", ("us", "to limit", "login / get")),
    (shared.SIZES, "By the token's length in characters.", ("us", "to limit")),
    (
        fleet.STAMPEDE,
        (
            "Eight processes of sixteen threads ask at once, without a token. Times are of the wait beyond the login; "
            "a negative one belongs to callers that came during the login."
        ),
        ("logins", "p50 ms", "p99 ms", "to limit", "commands", "errors"),
    ),
    (
        fleet.TASKS,
        "A thousand tasks of one loop ask at once. The limit is one task that all others await.",
        ("logins", "p50 ms", "p99 ms", "to limit", "commands", "errors"),
    ),
    (
        boundary.BOUNDARY,
        (
            "Tokens of 2 s, a login of 250 ms, eight threads that ask every millisecond. A caller is blocked if a call "
            "takes 125 ms or more; a token is late if it was no longer good when it was handed out."
        ),
        ("calls", "p50 us", "p99 us", "p99.9 us", "longest us", "blocked", "late", "logins", "errors"),
    ),
    (
        fleet.KILLED,
        (
            "The process that is logging in is killed; how long until the last caller of two other processes has a "
            "token. For us the longest of all turns. Two logins are right, the killed one and another; with more, the "
            "others had not waited for the first."
        ),
        ("recovery s", "logins"),
    ),
    (
        outages.PROVIDER,
        (
            "The provider fails for as long as a token lives, beginning in the middle of that life. Callers ask all "
            "the time from four threads."
        ),
        ("errors while good", "late", "logins tried", "back after s"),
    ),
    (
        outages.STORE,
        "The store is killed, and comes back empty. Every process holds a token that is good for an hour.",
        ("calls", "errors", "longest ms", "logins", "back after s"),
    ),
    (footprint.IMPORT, "The start of Python with the import, less the start without.", ("ms beyond Python",)),
    (
        footprint.MEMORY,
        "By tracemalloc, of a source as made, and of one that holds a token, beyond that token.",
        ("bytes, idle", "bytes, beyond its token", "bytes, token"),
    ),
    (footprint.FREE, "Threads without the interpreter's lock.", ()),
)


def write(results: Results, folder: Path) -> None:
    """Write ``benchmarks.md`` and ``benchmarks/*.svg`` into ``folder``."""
    from suite import plots  # draws with matplotlib, which only a report needs

    pictures = plots.draw(results, folder / "benchmarks")
    (folder / "benchmarks.md").write_text(markdown(results, pictures))


def markdown(results: Results, pictures: dict[str, str]) -> str:
    """Return the report."""
    parts = ["# Benchmarks", summary(results), "`make bench` makes this page anew.", "## What was promised"]
    parts.append(grid(table(results.claims)))
    parts += ["## Where we lose", *(f"- {line}" for line in losses(results))]
    parts += ["## Method", METHOD, "## Machine", machine(results)]
    parts += [f"![{title}](benchmarks/{name}.svg)" for name, title in pictures.items()]
    for scenario, words, figures in SECTIONS:
        if results.of(scenario):
            parts += [f"## {scenario[0].upper()}{scenario[1:]}", words, grid(cells(results, scenario, figures))]
    return _joined(parts)


def _joined(parts: list[str]) -> str:
    """Return the parts with an empty line between them, but none within a list."""
    text = "\n\n".join(parts) + "\n"
    while "\n\n- " in text.partition("\n- ")[2]:
        head, _, rest = text.partition("\n- ")
        text = f"{head}\n- " + rest.replace("\n\n- ", "\n- ")
    return text


def summary(results: Results) -> str:
    """Return one sentence on the whole."""
    known = [claim for claim in results.claims if claim.met is not None]
    met = sum(bool(claim.met) for claim in known)
    kind = "a quick run, whose medians are of few turns" if results.quick else "one whole run"
    return f"{met} of {len(known)} promises are met in {kind}."


def machine(results: Results) -> str:
    """Return what the figures depend on, and what was not installed."""
    told = ", ".join(f"{name}: {value}" for name, value in results.machine.items())
    there = ", ".join(f"{name} {version}" for name, version in results.versions.items() if version)
    absent = ", ".join(name for name, version in results.versions.items() if not version) or "nothing"
    return f"{told}. Versions: {there}. Not installed: {absent}."


def losses(results: Results) -> list[str]:
    """Return a line for every promise that is missed and every scenario in which a peer is ahead of us."""
    lines = [
        f"{claim.name}: {number(claim.measured or 0)} beside {claim.base}, promised was {number(claim.limit)}."
        for claim in results.claims
        if claim.met is False
    ]
    for scenario, _, figures in SECTIONS[1:]:  # the first compares our backends with each other
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
    """Return the rows of a scenario as words."""
    noted = any(row.note for row in results.of(scenario))
    rows = [["way", "", *figures, *(["note"] if noted else [])]]
    for row in results.of(scenario):
        values = [row.figures.get(figure) for figure in figures]
        told = ["-" if value is None else number(value) for value in values]
        rows.append([row.way, "" if row.kind == "peer" else row.kind, *told, *([row.note] if noted else [])])
    return rows


def grid(rows: list[list[str]]) -> str:
    """Return rows of words as a table of Markdown; figures stand to the right."""
    head, *body = rows
    lines = [head, ["---" if name in WORDS else "---:" for name in head], *body]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
