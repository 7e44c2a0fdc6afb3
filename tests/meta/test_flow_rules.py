"""Rules for flows: a generator that is closed must not yield further effects."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SRC = Path(__file__).parents[2] / "src" / "tokencache"
MODULES = sorted(SRC.rglob("*.py"))
BROAD = {"BaseException", "GeneratorExit", "KeyboardInterrupt", "CancelledError"}


def late_yields(tree: ast.AST) -> list[int]:
    """Return the lines of each `yield` inside a `finally`, or inside a handler of what ends a flow."""
    late: list[int] = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Try | ast.TryStar):
            continue
        blocks: list[ast.stmt] = list(node.finalbody)
        for handler in node.handlers:
            kinds = {getattr(kind, "id", getattr(kind, "attr", "")) for kind in ast.walk(handler.type or ast.Pass())}
            if handler.type is None or kinds & BROAD:
                blocks += handler.body
        late += [
            inner.lineno
            for block in blocks
            for inner in ast.walk(block)
            if isinstance(inner, ast.Yield | ast.YieldFrom)
        ]
    return late


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SRC)))
def test_no_effect_is_yielded_while_a_flow_is_ended(path: Path) -> None:
    """INV-8: no `yield` in `finally` or `except BaseException`: the driver, not the flow, frees what was granted."""
    assert late_yields(ast.parse(path.read_text())) == []


@pytest.mark.parametrize(
    "code",
    [
        "def f():\n try:\n  pass\n finally:\n  yield 1",
        "def f():\n try:\n  pass\n except BaseException:\n  x = yield 1",
        "def f():\n try:\n  pass\n except:\n  yield from g()",
        "def f():\n try:\n  pass\n except (OSError, asyncio.CancelledError):\n  yield 1",
    ],
)
def test_the_checker_sees_each_forbidden_form(code: str) -> None:
    """The check finds every form that it forbids."""
    assert late_yields(ast.parse(code))


def test_the_checker_allows_a_narrow_handler() -> None:
    """A `yield` in a handler of an ordinary error is allowed."""
    assert not late_yields(ast.parse("def f():\n try:\n  yield 1\n except ValueError:\n  yield 2"))
