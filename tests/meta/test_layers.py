"""The layers of ARCHITECTURE.md: which module may import which, and what `import tokencache` loads.

An import in a function, in a `TYPE_CHECKING` block, or by a name in a string counts like any other: a module that
needs another for its types depends on it, too.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).parents[2] / "src"
ROOT = "tokencache"

# Each layer, from the bottom up: its modules, and the layers that they may import beside their own. A package stands
# for all its modules except those with their own line.
LAYERS: dict[str, tuple[str, str]] = {
    "values": ("errors events health policy ports shared steps token", ""),
    "decisions": ("_keys _record expiry records", "values"),
    "flow": ("_engine.effects _engine.flow", "values decisions"),
    "system": ("_engine.clock _engine.launcher _files _fork _log_safe", "values"),
    "encryption": ("_crypto", "values decisions"),
    "plugins": ("_default_backend plugins url", "values"),
    "threads": ("backends._threaded", "values"),
    "drivers": ("_engine status", "values decisions flow system encryption"),
    "handle": ("_engine.handle", "values system threads drivers"),
    "source": ("_engine.warmer source", "values flow system drivers"),
    "backends": ("backends", "values decisions system plugins threads"),
    "providers": ("providers", "values decisions system"),
    "function": ("providers.callable", "values providers"),
    "settings": ("config._factory config._place config._references config._types", "values system"),
    "presets": ("providers.presets", "values providers settings"),
    "config": (
        "config",
        "values system encryption plugins handle settings presets",
    ),
    "resolver": ("_resolver", "values system encryption plugins handle function config"),
    "cache": ("cache", "values decisions system encryption drivers source config resolver"),
    "surface": ("tokencache", "values drivers source cache"),
    "integrations": ("integrations", "values decisions system encryption plugins"),
    "cli": ("__main__ cli", "values decisions plugins drivers settings config resolver surface integrations"),
    "fakes": ("testing.fakes", "values backends"),
    "testing": ("testing", "values decisions threads drivers"),
}
PURE = ("values", "decisions", "flow")
# Modules of other layers whose docstring says that they are pure or do no I/O.
PURE_TOO = (
    "tokencache.backends.memcached._form",
    "tokencache.backends.redis._protocol",
    "tokencache.integrations._refusal",
)
WORLD = {"asyncio", "concurrent", "httpx", "multiprocessing", "os", "random", "secrets", "socket", "threading", "time"}
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


def sources(package: str) -> dict[str, ast.Module]:
    """Return the modules of a package by their dotted names."""
    found = {
        ".".join(path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__"): ast.parse(path.read_text())
        for path in sorted((SRC / package).rglob("*.py"))
    }
    assert found
    return found


MODULES = sources(ROOT)
PLUGIN = sources("tokencache_qpay")
PACKAGES = {name.rpartition(".")[0] for name in MODULES}
ROWS = {name: layer for layer, (names, _) in LAYERS.items() for name in names.split()}


def imports(tree: ast.AST) -> set[str]:
    """Return everything that is imported, at any depth, as dotted names, each `from` import with its name."""
    found: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=aliases):
                found |= {alias.name for alias in aliases}
            case ast.ImportFrom(module=module, names=aliases, level=level):
                assert not level, "a relative import hides its layer"
                found |= {f"{module}.{alias.name}" for alias in aliases}
            case ast.Constant(value=str(text)) if text in MODULES and text not in PACKAGES:
                found.add(text)
    return found


def modules_of(names: set[str]) -> set[str]:
    """Return the modules of tokencache that hold these names."""
    found: set[str] = set()
    for name in names:
        while name not in MODULES and "." in name:
            name = name.rpartition(".")[0]  # noqa: PLW2901
        if name in MODULES:
            found.add(name)
    return found


def layer_of(module: str) -> str | None:
    """Return the layer of a module: that of the longest line of the table that names it or a package around it."""
    name = module.removeprefix(f"{ROOT}.")
    while name not in ROWS and "." in name:
        name = name.rpartition(".")[0]
    return ROWS.get(name)


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module: str) -> None:
    """Each module has a layer, and imports only from that layer and those that its line names."""
    layer = layer_of(module)
    assert layer, f"no line of LAYERS holds {module}"
    allowed = {layer, *LAYERS[layer][1].split()}
    used = {other: layer_of(other) for other in modules_of(imports(MODULES[module]))}
    assert {other: found for other, found in used.items() if found not in allowed} == {}


@pytest.mark.parametrize("layer", LAYERS)
def test_each_line_of_the_table_is_in_order_and_in_use(layer: str) -> None:
    """Each layer holds modules, allows only layers above its own line in the table, and none that it does not use."""
    names, allowed = LAYERS[layer]
    members = [module for module in MODULES if layer_of(module) == layer]
    assert not [name for name in names.split() if not {name, f"{ROOT}.{name}"} & MODULES.keys()]
    assert members
    used = {layer_of(other) for module in members for other in modules_of(imports(MODULES[module]))} - {layer}
    assert used == set(allowed.split()), "the line must name what its modules import"
    assert set(allowed.split()) <= set(list(LAYERS)[: list(LAYERS).index(layer)])


@pytest.mark.parametrize("module", PLUGIN)
def test_the_plugin_uses_only_the_public_interface(module: str) -> None:
    """The QPay plugin imports nothing private of tokencache, so another distribution could be written like it."""
    assert not [name for name in imports(PLUGIN[module]) if is_private(name)]


def is_private(name: str) -> bool:
    """Return whether a dotted name is of tokencache, and a part of it begins with an underscore."""
    first, *parts = name.split(".")
    return first == ROOT and any(part.startswith("_") for part in parts)


def test_only_the_demo_knows_qpay() -> None:
    """The framework has only the name of the QPay plugin, in a table; the demo is the one module that imports it."""
    knowing = {
        name for name, tree in MODULES.items() if any(used.startswith("tokencache_qpay") for used in imports(tree))
    }
    assert knowing == {"tokencache.cli.demo", "tokencache.cli._demo_worker"}


@pytest.mark.parametrize("module", [*(name for name in MODULES if layer_of(name) in PURE), *PURE_TOO])
def test_pure_modules_import_no_effects(module: str) -> None:
    """Modules that decide import no clock, random source, thread, event loop or socket: those are effects."""
    allowed = {
        "tokencache._keys": {"os"},  # one salt per process, drawn at import
        "tokencache.backends.redis._protocol": {"threading"},  # a lock of its cache
    }
    used = {name.split(".")[0] for name in imports(MODULES[module])}
    assert used & WORLD == allowed.get(module, set())


def test_import_tokencache_loads_nothing_heavy() -> None:
    """`import tokencache` loads no client library, no asyncio and no metadata reader, so it stays quick."""
    code = (
        "import sys; before = set(sys.modules); import tokencache; print(*sorted(set(sys.modules) - before), sep='\\n')"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(ran.stdout.split())
    assert "tokencache" in loaded
    assert not loaded & HEAVY


@pytest.mark.parametrize(
    ("code", "module"),
    [
        ("from tokencache.source import TokenSource", "tokencache.source"),
        ("from tokencache import TokenCache", "tokencache"),
        ("from tokencache import source", "tokencache.source"),
        ("import tokencache.backends.redis as backend", "tokencache.backends.redis"),
        ("def f():\n    from tokencache.cli import app", "tokencache.cli.app"),
        ("if TYPE_CHECKING:\n    import tokencache.source", "tokencache.source"),
        ("import_module('tokencache.cli.app')", "tokencache.cli.app"),
    ],
)
def test_the_checker_sees_each_form_of_import(code: str, module: str) -> None:
    """The layer test also finds imports in functions, type-checking blocks and strings."""
    assert modules_of(imports(ast.parse(code))) == {module}
    assert layer_of(module) not in {None, *LAYERS["flow"][1].split(), "flow"}


@pytest.mark.parametrize(
    ("name", "private"),
    [
        ("tokencache._engine.flow.obtain", True),
        ("tokencache.providers._exchange.TimedRequest", True),
        ("tokencache.providers.http._token_of", True),
        ("tokencache.providers.http.TokenFlow", False),
        ("tokencache_qpay._calls.Call", False),
        ("__future__.annotations", False),
    ],
)
def test_each_part_of_a_name_can_make_it_private(name: str, private: bool) -> None:
    """A package's private module is as private as one at the top, and as a private name of a public module."""
    assert is_private(name) == private


# --- the diagram --------------------------------------------------------------------------------------------------

ARCHITECTURE = Path(__file__).parents[2] / "ARCHITECTURE.md"
DIAGRAM = re.compile(r"(?<=^<!-- layers: ).*?(?=^<!-- end of layers -->$)", re.DOTALL | re.MULTILINE)


def below(layer: str) -> set[str]:
    """Return all layers that a layer reaches."""
    direct = set(LAYERS[layer][1].split())
    return direct.union(*map(below, direct))


def diagram() -> str:
    """Return the layers as a Mermaid graph, from the top; an arrow that follows from two others is left out."""
    lines: list[str] = []
    for layer, (modules, names) in reversed(LAYERS.items()):
        lines.append(f'  {layer}["<b>{layer}</b><br>{modules}"]')
        direct = names.split()
        lines += [f"  {layer} --> {name}" for name in direct if not any(name in below(other) for other in direct)]
    return "\n".join(["```mermaid", "graph TD", *lines, "```"])


def with_diagram(text: str) -> str:
    """Return ARCHITECTURE.md with the current diagram."""
    assert DIAGRAM.search(text)
    return DIAGRAM.sub(lambda found: found[0].splitlines()[0] + "\n" + diagram() + "\n", text)


def test_architecture_shows_the_layers() -> None:
    """The diagram is made from LAYERS; renew it with `python tests/meta/test_layers.py`."""
    text = ARCHITECTURE.read_text()
    assert text == with_diagram(text)


def test_the_diagram_shows_each_layer_and_leaves_out_what_follows() -> None:
    """Each layer has its line, an arrow between neighbours is drawn, and one that two others imply is not."""
    lines = diagram().splitlines()
    assert [line.split("[")[0].strip() for line in lines if "[" in line] == list(reversed(LAYERS))
    assert "  flow --> decisions" in lines
    assert "  flow --> values" not in lines


if __name__ == "__main__":
    ARCHITECTURE.write_text(with_diagram(ARCHITECTURE.read_text()))
