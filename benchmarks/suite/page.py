"""The report as one HTML page: its plots are inside, nothing is loaded from elsewhere."""

from __future__ import annotations

import html
import re
from typing import TYPE_CHECKING

from suite.claims import table
from suite.report import METHOD, SECTIONS, cells, html_table, losses, machine, summary

if TYPE_CHECKING:
    from pathlib import Path

    from suite.results import Results

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 60rem; margin: 0 auto;
  padding: 1rem; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.5rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 0.9rem; }
th, td { padding: 0.25rem 0.75rem; border-bottom: 1px solid #ddd; text-align: left; }
td { font-variant-numeric: tabular-nums; vertical-align: top; }
.n { text-align: right; white-space: nowrap; }
figure { margin: 1.5rem 0; } figure svg { max-width: 100%; height: auto; }
.MISSED { color: #a11; font-weight: bold; } .met { color: #2e8540; }
"""


def page(results: Results, pictures: dict[str, str], folder: Path) -> str:
    """Return the whole page."""
    promised = re.sub(r"<td>(met|MISSED)</td>", r'<td class="\1">\1</td>', html_table(table(results.claims)))
    parts = ["<h1>Benchmarks</h1>", f"<p>{html.escape(summary(results))}</p>"]
    parts += ["<h2>What was promised</h2>", promised, "<h2>Where we lose</h2><ul>"]
    parts += [f"<li>{html.escape(line)}</li>" for line in losses(results)]
    parts += ["</ul>", *(picture(folder / f"{name}.svg", name, title) for name, title in pictures.items())]
    parts += ["<h2>Method</h2>", *(f"<p>{prose(text)}</p>" for text in METHOD.split("\n\n"))]
    parts += ["<h2>Machine</h2>", f"<p>{html.escape(machine(results))}</p>"]
    for scenario, words, figures in SECTIONS:
        if results.of(scenario):
            title = html.escape(scenario[0].upper() + scenario[1:])
            parts += [f"<h2>{title}</h2>", f"<p>{prose(words)}</p>", html_table(cells(results, scenario, figures))]
    body = "\n".join(parts)
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    head += f"<title>Benchmarks</title><style>{STYLE}</style>"
    return f"<!doctype html>\n<html lang=en><head>{head}</head>\n<body>\n{body}\n</body></html>\n"


def prose(text: str) -> str:
    """Return a paragraph with its code marked."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))


def picture(path: Path, name: str, title: str) -> str:
    """Return a plot as part of the page. Its ids get the plot's name, as those of two plots would be the same."""
    text = path.read_text()
    text = text[text.index("<svg") :]
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r"url\(#", f"url(#{name}-", text)
    text = re.sub(r'href="#', f'href="#{name}-', text)
    return f'<figure role="img" aria-label="{html.escape(title)}">{text}</figure>'
