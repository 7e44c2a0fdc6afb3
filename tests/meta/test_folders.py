"""The folders of tests: each states what its tests need; `make check` runs those that need no installed program."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NEEDS = {
    "servers": re.compile(r"testing\.servers|\bredis_url\b"),
    "browsers": re.compile(r"chromium", re.IGNORECASE),
    "npm": re.compile(r"PRISM|OIDC_PROVIDER"),
    "processes": re.compile(r'"-m", "tokencache|\binterrupt\(|\bgunicorn\b'),
}
MAY_NEED = {
    **dict.fromkeys(("unit", "contract", "integrations", "security"), frozenset[str]()),
    "processes": {"processes"},
    "simulation": {"processes"},
    "servers": {"processes", "servers"},
    "browsers": {"processes", "browsers"},
    "npm": {"processes", "servers", "npm"},
    "support": {"processes"},
    "meta": NEEDS.keys(),  # it reads all other tests
}


def folders() -> list[str]:
    """Return the folders that hold Python files."""
    return sorted({path.relative_to(ROOT / "tests").parts[0] for path in (ROOT / "tests").glob("*/**/*.py")})


@pytest.mark.parametrize("folder", folders())
def test_a_folder_needs_only_what_it_states(folder: str) -> None:
    """No test needs a server, a browser, npm or other processes unless its folder states it; each folder has a rule."""
    wrong = {
        f"{path.relative_to(ROOT)}: {need}"
        for path in (ROOT / "tests" / folder).rglob("*.py")
        for need in NEEDS.keys() - MAY_NEED[folder]
        if NEEDS[need].search(path.read_text())
    }
    assert not wrong


@pytest.mark.parametrize("need", NEEDS)
def test_each_need_is_recognised(need: str) -> None:
    """The folder of a need holds tests that have it, so the pattern recognises it."""
    assert any(NEEDS[need].search(path.read_text()) for path in (ROOT / "tests" / need).rglob("test_*.py"))


def test_make_check_runs_the_folders_without_a_need() -> None:
    """The Makefile's PURE folders are those without a need, and `meta`."""
    found = re.search(r"^PURE := (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert found is not None
    assert found[1].split() == [f"tests/{folder}" for folder in MAY_NEED if not MAY_NEED[folder]] + ["tests/meta"]
