"""The picture of `tokencache bench`: a self-contained SVG for a light and a dark background."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final
from xml.sax.saxutils import escape

from tokencache.cli._bench_figures import machine, told
from tokencache.cli._render import spell
from tokencache.errors import ConfigurationError, TokenCacheError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokencache.cli._bench_figures import BenchReport, Figures, Percentiles

WIDTH: Final = 880
LEFT: Final = 110
RIGHT: Final = 630
"""The right end of the scale; the text of a row begins after it."""

ROW: Final = 30
HEAD: Final = 64
FOOT: Final = 60
SHORTEST: Final = -8
LONGEST: Final = 1
"""The scale goes from 10 ns to 10 s, in powers of ten of a second."""

UNITS: Final = {0: "s", -3: "ms", -6: "µs", -9: "ns"}

STYLE: Final = """
text { font: 13px system-ui, sans-serif; fill: #1c1c1c; }
.dim { fill: #5a5a5a; font-size: 12px; } .title { font-size: 16px; font-weight: 600; } .where { font-weight: 600; }
.note { fill: #5a5a5a; font-size: 12px; paint-order: stroke; stroke: #ffffff; stroke-width: 5px; }
.paper { fill: #ffffff; } .grid { stroke: #d8d8d8; }
.span { stroke: #1f5fa8; stroke-width: 3; } .mark { fill: #1f5fa8; } .login { fill: #b3541e; }
@media (prefers-color-scheme: dark) {
  text { fill: #ececec; } .dim { fill: #a8adb3; } .note { fill: #a8adb3; stroke: #15181c; }
  .paper { fill: #15181c; } .grid { stroke: #3a4048; }
  .span { stroke: #7db4f0; } .mark { fill: #7db4f0; } .login { fill: #f0a070; }
}
"""


def picture_place(text: str) -> Path:
    """Return the path of the picture; raises ``ConfigurationError`` early if the folder is missing."""
    place = Path(text)
    if place.is_dir() or not place.absolute().parent.is_dir():
        message = f"--picture {text}: name a file in a folder that exists"
        raise ConfigurationError(message)
    return place


def save(report: BenchReport, place: Path) -> None:
    """Write the SVG; raises ``TokenCacheError`` if it cannot be written."""
    try:
        place.write_text(draw(report), encoding="utf-8")
    except OSError as error:
        message = f"--picture {place} cannot be written: {error.strerror or type(error).__name__}"
        raise TokenCacheError(message) from None


def draw(report: BenchReport) -> str:
    """Return the SVG: for each backend the first call, and the percentiles from p50 to p99.9, on one scale."""
    body = list(_heading(report))
    y: float = HEAD
    parts: list[str] = []
    for figures in report.backends:
        drawn, y = _backend(figures, y)
        parts += drawn
    body += [*_scale(y), *parts, *_legend(y)]
    height = y + FOOT
    return "\n".join(
        (
            (
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}"'
                f' height="{height}" role="img" aria-labelledby="title">'
            ),
            f"<style>{STYLE}</style>",
            f'<rect class="paper" width="{WIDTH}" height="{height}"/>',
            *body,
            "</svg>",
            "",
        )
    )


def _heading(report: BenchReport) -> Iterator[str]:
    """Yield the title, the provider and the machine."""
    yield '<title id="title">tokencache bench</title>'
    yield _text(16, 26, "What a token costs", "title")
    yield _text(16, 46, f"{report.provider}; {machine()}, {os.cpu_count()} cores", "dim")


def _scale(bottom: float) -> Iterator[str]:
    """Yield a line for each power of ten, named below."""
    for power in range(SHORTEST, LONGEST + 1):
        x = _x(10.0**power)
        yield f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{HEAD}" y2="{bottom}"/>'
        if power % 3 == 0 or power in {SHORTEST, LONGEST}:
            yield _text(x, bottom + 18, _unit(power), "dim", "middle")


def _legend(bottom: float) -> Iterator[str]:
    """Yield the legend."""
    words = "time of a call, logarithmic: circle p50, ticks p90, p99, p99.9; stampede: the wait beyond the fetch"
    yield _text(16, bottom + 44, words, "dim")


def _backend(figures: Figures, y: float) -> tuple[list[str], float]:
    """Return the drawing of one backend from ``y`` on, and the ``y`` of the next."""
    y += ROW
    drawn = [_text(16, y - 8, _short(figures.backend), "where")]
    x = _x(figures.first)
    y += ROW
    drawn += [
        _text(LEFT - 12, y - 10, "first", anchor="end"),
        f'<circle class="login" cx="{x:.1f}" cy="{y - 14}" r="6"/>',
        _text(RIGHT + 16, y - 10, f"{spell(figures.first)}, {figures.speedup:,.0f} times cached", "dim"),
    ]
    for name, _, found in figures.rows():
        y += ROW
        drawn += [_text(LEFT - 12, y - 10, name, anchor="end"), *_span(found, y - 14)]
        drawn.append(_text(RIGHT + 16, y - 10, f"p50 {spell(found.at['p50'])}, p99 {spell(found.at['p99'])}", "dim"))
    for words in (None if figures.stampede is None else told(figures.stampede), figures.note):
        if words is not None:
            y += ROW - 8
            drawn.append(_text(LEFT, y - 8, words, "note"))
    return drawn, y + 8


def _span(found: Percentiles, y: float) -> Iterator[str]:
    """Yield a line from p50 to p99.9, a circle at p50, and ticks at the others."""
    begins, ends = _x(found.at["p50"]), _x(found.at["p99.9"])
    yield f'<line class="span" x1="{begins:.1f}" x2="{ends:.1f}" y1="{y}" y2="{y}"/>'
    yield f'<circle class="mark" cx="{begins:.1f}" cy="{y}" r="6"/>'
    for name in ("p90", "p99", "p99.9"):
        x = _x(found.at[name])
        yield (
            f'<rect class="mark" x="{x - 1.5:.1f}" y="{y - 6}" width="3" height="12">'
            f"<title>{name} {escape(spell(found.at[name]))}</title></rect>"
        )


def _x(seconds: float) -> float:
    """Return the x of a time; a time beyond the scale is drawn at its end."""
    power = math.log10(max(seconds, 10.0**SHORTEST))
    return LEFT + (RIGHT - LEFT) * min(1.0, (power - SHORTEST) / (LONGEST - SHORTEST))


def _unit(power: int) -> str:
    """Return a power of ten of a second in words."""
    size = next(size for size in UNITS if power >= size)
    return f"{10 ** (power - size)} {UNITS[size]}"


def _short(text: str, longest: int = 100) -> str:
    """Return a text, shortened to fit into the picture."""
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    """Return a text element."""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'
