"""The plots of docs/scale.md, as SVG; equal figures give an equal file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib as mpl

mpl.use("svg")
mpl.rcParams.update(
    {
        "svg.hashsalt": "scale",
        "svg.fonttype": "none",
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#dddddd",
        "lines.linewidth": 1.8,
        "legend.frameon": False,
        "figure.constrained_layout.use": True,
        "savefig.facecolor": "white",
    }
)

import matplotlib.pyplot as plt  # noqa: E402  (after the choice of the backend)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from scale.fleets import Case
    from scale.local import Burst
    from simulator.scale import Figures

Results = "Sequence[tuple[Case, Figures]]"
SIZE = (7.2, 3.6)
BLUE, ORANGE, GREEN, GREY = "#1f5fa8", "#d9731a", "#2e8540", "#777777"
HOUR, DAY = 3600.0, 86400.0


def draw(folder: Path, results: Results, bursts: Sequence[Burst], capacity: float) -> None:
    """Draw everything into a folder."""
    folder.mkdir(exist_ok=True)
    _save(folder, "calls", _calls, results)
    _save(folder, "peak", _peak, results, capacity)
    _save(folder, "renewal", _renewal, results)
    _save(folder, "herd", _herd, results)
    _save(folder, "collapse", _collapse, results)
    _save(folder, "threads", _threads, bursts)


def _save(folder: Path, name: str, draw_on: object, *what: object) -> None:
    """Draw one plot."""
    figure, axes = plt.subplots(figsize=SIZE)
    draw_on(axes, *what)  # type: ignore[operator]
    figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
    plt.close(figure)


def days(results: Results, lifetime: float) -> list[tuple[int, Figures, Case]]:
    """Return the steady days with this token lifetime, by size."""
    return sorted(
        (
            (case.fleet.instances, figures, case)
            for case, figures in results
            if case.kind == "day" and case.fleet.lifetime == lifetime
        ),
        key=lambda each: each[0],
    )


def herds(results: Results) -> list[tuple[int, Figures, Case]]:
    """Return the cold starts by size, first those without a remedy."""
    found = [(case.fleet.instances, figures, case) for case, figures in results if case.kind == "herd"]
    return sorted(found, key=lambda each: (bool(each[2].note), each[0], each[2].fleet.starts))


def _explain(axes: Axes) -> None:
    """Put the legend above the plot."""
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2)


def _calls(axes: Axes, results: Results) -> None:
    """Draw the calls to the provider per day, with and without a cache."""
    for lifetime, name, color in ((HOUR, "1 h", BLUE), (DAY, "24 h", ORANGE)):
        rows = days(results, lifetime)
        alone = rows[0][1].calls
        sizes = [size for size, _, _ in rows]
        scaled = [1 + (figures.calls - 1) * DAY / case.fleet.lasts for _, figures, case in rows]
        axes.plot(sizes, [alone * size for size in sizes], "--", color=color, label=f"tokens of {name}, no cache")
        axes.plot(sizes, scaled, "o-", color=color, label=f"tokens of {name}, shared")
    axes.set(xscale="log", yscale="log", xlabel="instances", ylabel="provider calls a day")
    _explain(axes)


def _peak(axes: Axes, results: Results, capacity: float) -> None:
    """Draw the commands in the busiest second."""
    cold = [(size, max(figures.by_second())) for size, figures, case in herds(results) if not case.note]
    axes.plot(*zip(*cold, strict=True), "o-", color=ORANGE, label="all start within one second")
    for lifetime, name, color in ((HOUR, "1 h", BLUE), (DAY, "24 h", GREEN)):
        rows = [(size, busiest(figures)) for size, figures, _ in days(results, lifetime)[1:]]
        axes.plot(*zip(*rows, strict=True), "o-", color=color, label=f"steady day, tokens of {name}")
    axes.axhline(capacity, color=GREY, linestyle="--", label="what one Redis does here")
    axes.set(xscale="log", yscale="log", xlabel="instances", ylabel="commands in the busiest second")
    _explain(axes)


def busiest(figures: Figures, after: int = 1000) -> int:
    """Return the commands in the busiest second after the start."""
    return max(figures.by_second()[after:])


def _renewal(axes: Axes, results: Results) -> None:
    """Draw one renewal, second by second."""
    _, figures, case = days(results, HOUR)[-1]
    commands = figures.by_second()
    fetched = figures.fetched_at[2]
    first = int(fetched) - 20
    shown = range(first, first + 220)
    axes.plot([second - fetched for second in shown], [commands[second] for second in shown], color=BLUE)
    fleet = f"{case.fleet.instances:,} instances".replace(",", " ")
    axes.axvline(0, color=ORANGE, linestyle="--", label=f"the first of {fleet} fetches")
    axes.set(xlabel="seconds since the provider was asked", ylabel="commands in a second")
    axes.set_ylim(bottom=0)
    _explain(axes)


def _herd(axes: Axes, results: Results) -> None:
    """Draw the waits of callers in a cold start."""
    rows = [(size, sorted(figures.waits)) for size, figures, case in herds(results) if not case.note]
    sizes = [size for size, _ in rows]
    for share, name, color in ((0.5, "median", BLUE), (0.99, "99 of 100", GREEN), (1.0, "longest", ORANGE)):
        waits = [each[min(len(each) - 1, int(len(each) * share))] * 1000 for _, each in rows]
        axes.plot(sizes, waits, "o-", color=color, label=name)
    axes.axhline(250, color=GREY, linestyle="--", label="one login")
    axes.set(xscale="log", yscale="log", xlabel="instances that start within one second", ylabel="wait for a token, ms")
    _explain(axes)


def _collapse(axes: Axes, results: Results) -> None:
    """Draw the calls to the provider in a cold start."""
    rows = [(size, figures) for size, figures, case in herds(results) if not case.note]
    sizes = [size for size, _ in rows]
    axes.plot(sizes, [figures.calls for _, figures in rows], "o-", color=BLUE, label="provider calls")
    axes.plot(sizes, sizes, "--", color=GREY, label="no cache")
    axes.set(xscale="log", yscale="log", xlabel="instances that start within one second", ylabel="provider calls")
    _explain(axes)


def _threads(axes: Axes, bursts: Sequence[Burst]) -> None:
    """Draw the threads of a process while its 10,000 sources renew."""
    for burst, color in zip(bursts, (BLUE, ORANGE, GREEN), strict=False):
        most: dict[int, int] = {}
        for at, threads in burst.samples:
            most[int(at)] = max(most.get(int(at), 0), threads)
        axes.plot(list(most), list(most.values()), color=color, label=burst.name)
    axes.set(yscale="log", xlabel="seconds", ylabel="most threads in a second")
    _explain(axes)
