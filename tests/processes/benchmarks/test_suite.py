"""The suite: it takes fair turns, computes promises from figures, drops no peer, and reports our losses."""

from __future__ import annotations

import ast
import os
import re
import socket
import sys
from dataclasses import replace
from graphlib import TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from suite.results import Results, Row

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
MODULES = {".".join(path.relative_to(BENCHMARKS).with_suffix("").parts): path for path in BENCHMARKS.rglob("*.py")}


def test_every_way_has_its_turn_before_any_has_the_next() -> None:
    """Turns are A B A B, so that a busy moment slows all ways alike."""
    from suite.measure import in_turns
    from suite.plan import Plan

    order: list[str] = []

    def way(name: str) -> object:
        def run(calls: int) -> float:
            order.append(name)
            return calls * 1e-4

        return run

    turns = in_turns({"a": way("a"), "b": way("b")}, Plan(quick=True))
    rounds = Plan(quick=True).rounds
    assert order[-2 * rounds :] == ["a", "b"] * rounds
    assert turns["a"] == [pytest.approx(1e-4)] * rounds


def test_a_ratio_is_the_median_within_turns() -> None:
    """One turn on a busy machine does not change the ratio."""
    from suite.measure import ratio

    assert ratio({"ours": [2.0, 20.0, 2.0], "limit": [1.0, 1.0, 1.0]}, "ours", "limit") == 2


def test_a_token_is_late_from_the_instant_of_its_end() -> None:
    """The provider's own note of each token's end decides INV-1, not the client's expiry."""
    import time

    from suite.logins import Logins

    logins = Logins(lifetime=100.0)
    logins.told = 1e6
    before = time.monotonic()
    token = logins()
    after = time.monotonic()
    assert not logins.late(token, before + 99.9)
    assert logins.late(token, after + 100.0)


def test_a_peer_that_cannot_be_made_is_reported() -> None:
    """A peer whose import fails has a row with the reason, and the others are measured."""
    from suite.cached import made
    from suite.peers import Way

    def absent(_: object) -> object:
        message = "No module named 'nothing_of_that_name'"
        raise ModuleNotFoundError(message)

    rows: list[Row] = []
    ways = (Way("absent", absent, "nothing"), Way("there", lambda logins: logins, "something"))
    assert list(made("cached get, threads", ways, rows, lambda get: get())) == ["there"]
    assert [(row.way, "nothing_of_that_name" in row.note) for row in rows] == [("absent", True)]


def test_a_promise_without_a_figure_is_neither_met_nor_missed(results: Results) -> None:
    """A promise without a figure never counts as kept."""
    from suite.claims import claims, table

    verdicts = {row[0]: row[-1] for row in table(results.claims)[1:]}
    assert verdicts["import"] == "not measured"
    assert verdicts["best token client over cached get"] == "MISSED"
    assert verdicts["cached get from a thread"] == "met"
    assert {claim.met for claim in claims(replace(results, rows=[]))} == {None}


def test_the_promises_read_the_figures_that_the_scenarios_write(results: Results) -> None:
    """Each promise of a cached get is computed from its rows: the names of scenarios, ways and figures agree."""
    from suite.claims import claims

    found = {claim.name: claim for claim in claims(results)}
    assert found["cached get from a thread"].measured == 1.2
    assert found["login over cached get"].measured == pytest.approx(0.25e9 / 80)
    assert found["holder killed, Redis: recovery"].measured == 2.5


def test_a_saved_run_is_loaded_unchanged(results: Results, tmp_path: Path) -> None:
    """Loading returns the saved run."""
    from suite.results import Results

    results.save(tmp_path / "run.json")
    assert Results.load(tmp_path / "run.json") == results


def test_a_later_run_replaces_its_scenarios(results: Results) -> None:
    """Of two runs, the later one's scenarios replace the earlier ones whole and are named; the others stay."""
    from suite.results import Row

    again = Row("holder killed", "tokencache, Redis", "ours", {"recovery s": 1.0})
    merged = results.with_rows_of(replace(results, rows=[again]))
    assert merged.of("holder killed") == [again]
    assert merged.of("cached get, threads") == results.of("cached get, threads")
    assert merged.machine["measured in a later run"] == "holder killed"


def test_cells_are_medians_of_one_call() -> None:
    """pytest-benchmark's times of many calls are given per call, by backend and by half."""
    from suite.cells import rows_of

    told = {
        "test_hot[redis-sync]": 80e-6,
        "test_miss[redis-sync]": 2e-3,
        "test_uncached[async]": 0.25,
        "test_new[x]": 1,
    }
    rows = rows_of([{"name": name, "stats": {"median": median}} for name, median in told.items()])
    assert {row.way: row.figures for row in rows} == {
        "redis, sync": {"hot": pytest.approx(0.08), "miss": pytest.approx(2000)},
        "no cache, a login of 250 ms, async": {"uncached": pytest.approx(250_000)},
    }


def test_nothing_names_the_machine() -> None:
    """The report describes the machine without host name, user or path."""
    from suite.results import machine

    told = " ".join(machine().values())
    assert socket.gethostname() not in told
    assert os.sep not in told


def test_the_report_holds_every_way_and_every_loss(results: Results) -> None:
    """The report has each row with its note; a missed promise and a faster peer are under `Where we lose`."""
    from suite.report import markdown

    text = markdown(results, {})
    for row in results.rows:
        assert f"| {row.way} |" in text
    assert "not measured: ModuleNotFoundError" in text
    assert "not within 15 s" in text
    lost = text.partition("## Where we lose")[2].partition("\n## ")[0]
    assert "best token client over cached get: 0.5" in lost
    assert "cached get, threads, ns: 80 for us, 40 for swift" in lost
    assert "Not installed: msal" in text


def test_the_report_shows_each_picture(results: Results, tmp_path: Path) -> None:
    """`benchmarks.md` names each picture that is drawn beside it, and no other file is written."""
    pytest.importorskip("matplotlib")
    from suite.report import write

    write(results, tmp_path)
    drawn = {path.relative_to(tmp_path).as_posix() for path in (tmp_path / "benchmarks").iterdir()}
    shown = re.findall(r"!\[.+?\]\((.+?)\)", (tmp_path / "benchmarks.md").read_text())
    assert sorted(shown) == sorted(drawn) == ["benchmarks/cached.svg", "benchmarks/killed.svg"]


def imports(path: Path) -> set[str]:
    """Return the benchmark modules that a file imports, also in functions and for types."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & MODULES.keys()


def test_no_benchmark_imports_in_a_circle() -> None:
    """Imports point one way, also between the folders: the suite uses the cells, and no other folder uses another."""
    TopologicalSorter({name: imports(path) for name, path in MODULES.items()}).prepare()  # raises for a circle
    crossing = {
        (name.partition(".")[0], other.partition(".")[0]) for name, path in MODULES.items() for other in imports(path)
    }
    assert {pair for pair in crossing if pair[0] != pair[1]} == {("suite", "cells")}


@pytest.mark.parametrize(("options", "code"), [([], 0), (["--strict"], 1)])
def test_a_missed_promise_fails_only_a_strict_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[str], code: int
) -> None:
    """A run prints MISSED and exits with 0; with `--strict` it exits with 1."""
    import logging

    from suite import run
    from suite.results import Row

    monkeypatch.setattr(
        run, "SCENARIOS", {"imports": lambda _: [Row("import", "tokencache", "ours", {"ms beyond Python": 60.0})]}
    )
    monkeypatch.setattr(sys, "argv", ["run", "--quick", *options])
    monkeypatch.setattr(logging, "disable", lambda _: None)
    assert run.main() == code
    assert re.search(r"^import .* MISSED$", capsys.readouterr().out, re.MULTILINE)
