"""The layers of ARCHITECTURE.md: who may import whom, and what `import tokencache` loads."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).parents[2] / "src"
VALUES = {"errors", "token", "ports", "events", "policy"}
PURE = VALUES | {"expiry", "_keys", "_record", "_effects", "_flow", "_crypto"}
ENGINE = {"_flow", "_effects", "_drivers", "_flights", "_heartbeat", "_breaker", "_source", "_cache", "status"}
EDGES = {"backends", "providers", "integrations", "cli", "testing"}
HEAVY = {
    "asyncio",
    "cryptography",
    "httpx",
    "importlib.metadata",
    "msgspec",
    "pymemcache",
    "redis",
    "rich",
    "socket",
    "ssl",
    "typer",
    "tokencache_qpay",
}
WORLD = {"asyncio", "concurrent", "httpx", "multiprocessing", "os", "random", "secrets", "socket", "threading", "time"}


def modules(package: str = "tokencache") -> list[Path]:
    """Return the source files of a package."""
    found = sorted((SRC / package).rglob("*.py"))
    assert found
    return found


def name_of(path: Path) -> str:
    """Return the dotted name of a source file."""
    return ".".join(path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__")


def imports(tree: ast.AST) -> set[str]:
    """Return everything that is imported, at any depth, as dotted names."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def part(name: str) -> str | None:
    """Return the first part under `tokencache`, or `None` for what is not ours."""
    pieces = name.split(".")
    return pieces[1] if pieces[0] == "tokencache" and len(pieces) > 1 else None


def forbidden(module: str) -> set[str]:
    """Return the parts of tokencache that this module may not import."""
    own = part(module)
    if own in PURE:
        return (ENGINE - PURE) | EDGES | {"plugins", "url"}
    if own in {"backends", "providers"}:
        return (ENGINE | EDGES) - {own}
    if own == "integrations":
        return (ENGINE - {"_source"}) | (EDGES - {"integrations"})
    if own == "cli":
        return ENGINE - {"status"}
    if own in ENGINE:
        # The cache lifts a backend, and a plain function, on first use.
        return EDGES - ({"backends", "providers"} if own in {"_cache", "_drivers"} else set())
    return set()


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_imports_point_one_way(path: Path) -> None:
    """No module imports from a layer above its own."""
    module = name_of(path)
    used = {piece for name in imports(ast.parse(path.read_text())) if (piece := part(name))}
    assert not used & forbidden(module)


@pytest.mark.parametrize("path", modules("tokencache_qpay"), ids=name_of)
def test_the_plugin_uses_only_what_any_plugin_may(path: Path) -> None:
    """The QPay plugin imports nothing private of tokencache, so another distribution could be written like it."""
    used = imports(ast.parse(path.read_text()))
    assert not {name for name in used if name.startswith("tokencache._") or ".".join(name.split(".")[:1]) == "rich"}


def test_only_the_demo_knows_qpay() -> None:
    """The framework finds the QPay plugin through entry points alone; the demo is its one visitor."""
    knowing = {
        name_of(path)
        for path in modules()
        if any(name.split(".")[0] == "tokencache_qpay" for name in imports(ast.parse(path.read_text())))
    }
    assert knowing <= {"tokencache.cli.demo", "tokencache.cli._demo_worker"}


@pytest.mark.parametrize("module", ["_flow", "_effects", "policy", "expiry", "_record", "_keys", "token", "errors"])
def test_pure_modules_touch_no_world(module: str) -> None:
    """What decides imports no clock, random source, thread, event loop or socket: those are effects."""
    tree = ast.parse((SRC / "tokencache" / f"{module}.py").read_text())
    allowed = {"os"} if module == "_keys" else set()  # one salt per process, drawn at import
    assert not {name.split(".")[0] for name in imports(tree)} & (WORLD - allowed)


def test_import_tokencache_loads_nothing_heavy() -> None:
    """`import tokencache` loads no client library, no asyncio and no metadata reader, so that it stays quick."""
    code = (
        "import sys; before = set(sys.modules); import tokencache; print(*sorted(set(sys.modules) - before), sep='\\n')"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(ran.stdout.split())
    assert "tokencache" in loaded
    assert not loaded & HEAVY


def test_the_checker_sees_an_import_in_a_function() -> None:
    """The layer test looks into functions and type-checking blocks, so a lazy import is no way round it."""
    tree = ast.parse("def f():\n    from tokencache.cli import app\nif TYPE_CHECKING:\n    import tokencache._source\n")
    assert {part(name) for name in imports(tree)} == {"cli", "_source"}
    assert "cli" in forbidden("tokencache._flow")
