"""docs/reliability.md: every line names a test that exists."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/reliability.md").read_text()
LINES = re.findall(r"^\| (\d+) \|.*\| `([\w.]+)::(\w+)` \|$", PAGE, re.MULTILINE)


def test_every_line_names_a_test_that_exists() -> None:
    """Every line names its test, and the test exists."""
    assert len(LINES) == len(re.findall(r"^\| \d+ \|", PAGE, re.MULTILINE))
    for _, file, name in LINES:
        assert f"def {name}(" in (ROOT / "tests/servers/faults" / file).read_text()


def test_every_row_of_the_matrix_is_in_the_table() -> None:
    """Each of the thirty faults has at least one line."""
    assert {int(number) for number, _, _ in LINES} == set(range(1, 31))
