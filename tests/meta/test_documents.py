"""The documents: README's promise and examples, the changelog, the invariants, and texts that no file may contain."""

from __future__ import annotations

import ast
import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.version import Version

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"^```python\n(.*?)^```", README + (ROOT / "docs/qpay.md").read_text(), re.DOTALL | re.MULTILINE)
INVARIANTS = [f"INV-{number}" for number in range(1, 11)]
SYNONYMS = {"margin", "leeway", "skew", "buffer", "threshold"}
SKIPPED = {".git", ".hypothesis", ".benchmarks", "dist", "build", "htmlcov"}


def texts() -> list[Path]:
    """Return every text file of the project."""
    found: list[Path] = []
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [
            name
            for name in folders
            if name not in SKIPPED and not name.startswith(".venv") and not name.endswith(("cache__", "_cache"))
        ]
        kinds = {".py", ".md", ".toml", ".txt", ".yaml", ".yml", ".json", ".cfg", ".mjs", ".svg", ".tmpl", ""}
        found += [
            Path(folder, name) for name in names if Path(name).suffix in kinds and not name.startswith(".coverage")
        ]
    assert len(found) > 20
    return found


def test_the_first_thirty_lines_have_promise_example_and_limits() -> None:
    """README opens with a promise, an example of at most twelve lines, the guarantees, and what it does not do."""
    head = "\n".join(README.splitlines()[:30])
    assert re.search(r"^One valid access token .*\.$", head, re.MULTILINE)
    assert len([line for line in EXAMPLES[0].splitlines() if line.strip()]) <= 12
    assert EXAMPLES[0] in head
    assert "| guarantee |" in head
    assert re.search(r"^It does not ", head, re.MULTILINE)


@pytest.mark.parametrize("code", EXAMPLES, ids=range(len(EXAMPLES)))
def test_each_example_runs_as_it_stands(code: str, tmp_path: Path) -> None:
    """Each Python example of README and docs/qpay.md runs to its end, with warnings as errors."""
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "HOME": str(tmp_path)}
    environment.pop("TOKENCACHE_BACKEND", None)
    environment.pop("REDIS_DATABASE_URI", None)
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        cwd=tmp_path,
    )
    assert (ran.returncode, ran.stderr) == (0, "")


def test_the_changelog_has_a_place_for_the_next_change() -> None:
    """CHANGELOG keeps its form: `[Unreleased]` first, then releases, newest first, with known headings."""
    text = (ROOT / "CHANGELOG.md").read_text()
    releases = re.findall(r"^## \[(.+?)\]", text, re.MULTILINE)
    assert releases[0] == "Unreleased"
    versions = [Version(release) for release in releases[1:]]
    assert versions == sorted(set(versions), reverse=True)
    kinds = set(re.findall(r"^### (.+)$", text, re.MULTILINE))
    assert kinds
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


@pytest.mark.parametrize("invariant", INVARIANTS)
def test_each_invariant_is_stated_cited_and_tested(invariant: str) -> None:
    """Each invariant has its sentence in ARCHITECTURE, a place in the code, and a test that names it."""
    word = re.compile(rf"\b{invariant}\b")
    assert word.search((ROOT / "ARCHITECTURE.md").read_text())
    assert any(word.search(path.read_text()) for path in (ROOT / "src").rglob("*.py"))
    tests = [path for path in (ROOT / "tests").rglob("test_*.py") if path.parent.name != "meta"]
    named = [
        function.name
        for path in tests
        for function in functions(path)
        if word.search(ast.get_docstring(function) or "") or word.search(ast.unparse(function))
    ]
    assert named, f"no test names {invariant}"


STEPS = re.findall(r"^\| \d+ \| `([\w/.]+)` \| `(\w+)` \|", (ROOT / "ARCHITECTURE.md").read_text(), re.MULTILINE)


def test_one_call_is_followed_in_at_most_fifteen_steps() -> None:
    """ARCHITECTURE follows a call from the HTTP client to its header in few steps."""
    assert 10 <= len(STEPS) <= 15
    assert STEPS[0][0].startswith("integrations/")


@pytest.mark.parametrize(("file", "function"), sorted(set(STEPS)))
def test_each_step_of_the_call_is_in_its_file(file: str, function: str) -> None:
    """Each function of "Follow one call" is defined in the file of its line."""
    tree = ast.parse((ROOT / "src/tokencache" / file).read_text())
    assert function in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


VOCABULARY = (ROOT / "ARCHITECTURE.md").read_text().partition("\n## Vocabulary\n")[2].partition("\n## ")[0]


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`([A-Z][a-z]\w+)`", VOCABULARY))))
def test_each_class_of_the_vocabulary_exists(name: str) -> None:
    """Each class that the vocabulary names is defined in the source, by that name."""
    assert any(re.search(rf"^class {name}\b", path.read_text(), re.MULTILINE) for path in (ROOT / "src").rglob("*.py"))


NAMED = [
    (document, name)
    for document in ("ARCHITECTURE.md", "CONTRIBUTING.md", "docs/decisions.md")
    for name in sorted(set(re.findall(r"`([\w./-]+\.(?:py|toml|txt)|\w+/)`", (ROOT / document).read_text())))
]
YOURS = {"tokencache.toml", "src/tokencache/backends/NAME.py", "NAME/"}


@pytest.mark.parametrize(("document", "name"), NAMED)
def test_each_file_that_a_document_names_exists(document: str, name: str) -> None:
    """Each file or folder between backticks is one of the project's, by the end of its path."""
    found = [path for path in places() if path.endswith(f"/{name}")]
    assert found or name in YOURS, f"{document} names {name}, which is not there"


@functools.cache
def places() -> list[str]:
    """Return the paths of all files and folders, folders with a slash at their end."""
    files = texts()
    return [str(path) for path in files] + [f"{folder}/" for folder in {path.parent for path in files}]


def functions(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Return the test functions of a file."""
    return [
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    ]


def python_files() -> list[Path]:
    """Return the Python files of source, tests, benchmarks and examples."""
    return [
        path for folder in ("src", "tests", "benchmarks", "examples") for path in sorted((ROOT / folder).rglob("*.py"))
    ]


@pytest.mark.parametrize("path", python_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_and_test_has_a_docstring(path: Path) -> None:
    """Every module and every test has a docstring."""
    assert ast.get_docstring(ast.parse(path.read_text())), f"{path.name} has no docstring"
    assert not [test.name for test in functions(path) if not ast.get_docstring(test)]


@pytest.mark.parametrize("path", sorted((ROOT / "src").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_vocabulary_has_no_synonyms(path: Path) -> None:
    """No name in the source uses a synonym of `early`; ARCHITECTURE lists the words."""
    tree = ast.parse(path.read_text())
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    names |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    names |= {
        node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    }
    words = {word for name in names for word in re.findall(r"[a-z]+", name.lower())}
    assert sorted(words & SYNONYMS) == []


@pytest.mark.parametrize(
    ("what", "pattern"),
    [
        ("a path of somebody's machine", r"(?<![\w./~-])/(?:root|work|home/(?!u/)\w+|Users/\w+)/"),
        ("a download address", r"https?://[^\s)>\"']*/(?:simple|packages)/"),
        ("a private key", r"-----BEGIN [A-Z ]*PRIVATE " + "KEY"),
        ("a real-looking token", r"\beyJ[\w-]{30,}\.eyJ[\w-]{30,}\.[\w-]{20,}"),
    ],
)
def test_no_file_holds(what: str, pattern: str) -> None:
    """No file of the project contains a machine's path, a download address, a private key or a real token."""
    found = [
        str(path.relative_to(ROOT))
        for path in texts()
        if path != Path(__file__) and re.search(pattern, path.read_text(errors="replace"))
    ]
    assert not found, f"{what} in {found}"
