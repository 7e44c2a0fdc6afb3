"""The words that no text of the project uses: five rules for sentences are in CONTRIBUTING.md, "House rules"."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WORST = {
    "name the actor": r"whoever|nobody",
    "no archaic verbs": r"is to be|to be had|asks? apart|befalls?|minds",
    "is not X": r"is (?-i:none)|(?<!there\s)is no(?! longer)",  # in code, `is None` is another thing
}
WORD = re.compile(rf"\b({'|'.join(WORST.values())})\b".replace(" ", r"\s+"), re.IGNORECASE)

# What is held: files, folders with all that is in them, or patterns. Add a file or a folder when it is clean. When a
# whole folder is, its one line replaces those of its files.
HELD = (
    "*.md",
    "benchmarks",
    "docs/**/*.md",
    "examples/*/README.md",
    "src/tokencache/*.py",
    "src/tokencache/_engine",
    "src/tokencache/providers/presets.toml",
    "examples",
    "src/tokencache/backends",
    "src/tokencache/cli",
    "src/tokencache/config",
    "src/tokencache/health.py",
    "src/tokencache/integrations",
    "src/tokencache/providers",
    "src/tokencache/status.py",
    "src/tokencache/testing",
    "src/tokencache/token.py",
    "src/tokencache/url.py",
    "src/tokencache_qpay",
    "tests/browsers",
    "tests/conftest.py",
    "tests/contract",
    "tests/integrations",
    "tests/npm",
    "tests/processes/benchmarks",
    "tests/processes/test_[!c]*.py",
    "tests/processes/test_cli*.py",
    "tests/security",
    "tests/servers",
    "tests/simulation",
    "tests/support",
    "tests/unit/backends",
    "tests/unit/cli",
    "tests/unit/engine",
    "tests/unit/integrations",
    "tests/unit/providers",
    "tests/unit/qpay",
    "tests/unit/test_[!p]*.py",
    "tests/unit/testing",
)


def held(pattern: str) -> list[Path]:
    """Return the text files of one line of HELD."""
    found = [path for start in ROOT.glob(pattern) for path in (start.rglob("*") if start.is_dir() else [start])]
    return [path for path in found if path.is_file() and path.suffix in {".md", ".py", ".toml", ".tmpl"}]


def worst_words(text: str) -> list[str]:
    """Return the words that no text may use, each as it stands there."""
    return [" ".join(word.split()) for word in WORD.findall(text)]


@pytest.mark.parametrize("pattern", HELD)
def test_no_held_text_uses_the_worst_words(pattern: str) -> None:
    """Each line of HELD has files, and none of them uses one of the words."""
    files = held(pattern)
    assert files
    found = {str(path.relative_to(ROOT)): worst_words(path.read_text()) for path in files}
    assert {path: words for path, words in found.items() if words} == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Whoever holds it may go on.", ["Whoever"]),
        ("it hangs nobody", ["nobody"]),
        ("The token is to be renewed.", ["is to be"]),
        ("a thread was to be\n    had", ["to be had"]),
        ("a text that is none", ["is none"]),
        ("This is no number, and that is  no text.", ["is no", "is no"]),
        ("who starts together is to ask apart", ["ask apart"]),
        ("it asks\napart", ["asks apart"]),
        ("what befalls them", ["befalls"]),
        ("one timer minds all", ["minds"]),
    ],
)
def test_the_check_finds_each_word(text: str, words: list[str]) -> None:
    """Each word is found in any case and over the end of a line."""
    assert worst_words(text) == words


@pytest.mark.parametrize(
    "text",
    [
        "it is no longer good",
        "if it is None",
        "is nothing stored?",
        "there is no file",
        "there is no such file",
        "reminds",
        "a mind",
        "is not to blame",
    ],
)
def test_the_check_leaves_other_words(text: str) -> None:
    """A word that only looks like one of them is left."""
    assert worst_words(text) == []
