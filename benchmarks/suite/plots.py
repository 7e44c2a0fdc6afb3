"""The pictures of the report, as SVG; equal figures give an equal file."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import matplotlib as mpl

mpl.use("svg")
mpl.rcParams.update(
    {
        "svg.hashsalt": "benchmarks",
        "svg.fonttype": "none",
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": "#dddddd",
        "legend.frameon": False,
        "figure.constrained_layout.use": True,
        "savefig.facecolor": "white",
    }
)

import matplotlib.pyplot as plt  # noqa: E402  (after the choice of the backend)

from suite import boundary, cached, fleet, footprint, shared  # noqa: E402
from suite.claims import number  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from matplotlib.axes import Axes

    from suite.results import Results, Row

COLORS = {"ours": "#1f5fa8", "limit": "#2e8540", "peer": "#b0b0b0"}
NAMES = {"ours": "tokencache", "limit": "limit", "peer": "peers"}
WIDTH, BAR, REST = 7.6, 0.3, 1.1


def draw(results: Results, folder: Path) -> dict[str, str]:
    """Draw the results into a folder; return file names with titles."""
    folder.mkdir(parents=True, exist_ok=True)
    bars = (
        ("cached", cached.THREADS, "ns", "A cached get from a thread, ns", True),
        ("loops", cached.LOOPS, "ns", "A cached get from an event loop, ns", True),
        ("redis", shared.REDIS, "us", "A shared get from Redis, µs, one CPU", False),
        ("stampede", fleet.STAMPEDE, "p99 ms", "Cold stampede: p99 beyond the login, ms", True),
        ("boundary", boundary.BOUNDARY, "blocked", "Callers blocked at the boundary", False),
        ("killed", fleet.KILLED, "recovery s", "Seconds until the others have a token", False),
        ("imports", footprint.IMPORT, "ms beyond Python", "Import, ms beyond Python", False),
    )
    shown: dict[str, str] = {}
    for name, scenario, figure, title, logarithmic in bars:
        rows = [row for row in results.of(scenario) if figure in row.figures]
        if rows:
            shown[name] = title
            _save(folder / f"{name}.svg", _bars, rows, figure, title, logarithmic)
    if results.of(cached.CROWD):
        shown["threads"] = "A cached get by the number of threads"
        _save(folder / "threads.svg", _lines, results.of(cached.CROWD), "threads", "threads", "ns a get")
    return shown


def _save(path: Path, draw_on: Callable[..., None], *what: Any) -> None:  # noqa: ANN401  (the data of the picture)
    """Draw one picture; lines have no trailing spaces."""
    rows = what[0]
    height = len(rows) * BAR + REST if draw_on is _bars else 3.4
    figure, axes = plt.subplots(figsize=(WIDTH, height))
    draw_on(axes, *what)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    path.write_text("\n".join(line.rstrip() for line in path.read_text().splitlines()) + "\n")


def _bars(axes: Axes, rows: list[Row], figure: str, title: str, logarithmic: bool) -> None:
    """Draw a bar for each way, the smallest on top, with its figure beside it; without a figure, its note."""
    ordered = sorted(rows, key=lambda row: _length(row, figure, math.inf), reverse=True)
    values = [max(_length(row, figure, 0.0), 0.0) for row in ordered]
    names = [row.way for row in ordered]
    drawn = axes.barh(names, values, color=[COLORS[row.kind] for row in ordered], height=0.7)
    told = [row.note if row.figures[figure] is None else number(_length(row, figure, 0.0)) for row in ordered]
    axes.bar_label(drawn, told, padding=4)
    if logarithmic:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: number(value))
    axes.margins(x=0.16)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(title + (", logarithmic" if logarithmic else ""), loc="left")
    kinds = {row.kind for row in rows}
    handles = [plt.Rectangle((0, 0), 1, 1, color=COLORS[kind]) for kind in NAMES if kind in kinds]
    labels = [NAMES[kind] for kind in NAMES if kind in kinds]
    axes.legend(handles, labels, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=3)


def _length(row: Row, figure: str, without: float) -> float:
    """Return the figure of a row, or ``without`` if it is missing."""
    value = row.figures[figure]
    return without if value is None else value


def _lines(axes: Axes, rows: list[Row], by: str, below: str, beside: str) -> None:
    """Draw a line for tokencache and one for the limit."""
    for kind, name in (("ours", "tokencache"), ("limit", "bare closure")):
        points = [(row.figures[by], row.figures["ns"]) for row in rows if row.kind == kind]
        axes.plot(*zip(*points, strict=True), "o-", color=COLORS[kind], label=name)
    axes.set(xscale="log", xlabel=below, ylabel=beside)
    ticks = sorted({row.figures[by] for row in rows})
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(0, 1.1 * max(row.figures["ns"] for row in rows))
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2)
