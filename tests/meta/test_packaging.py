"""The packaging: plugins and scripts exist, extras bring the libraries in use, and the pins fit the requirements."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import sys
import tomllib
from importlib import metadata, resources
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tokencache.plugins import BACKENDS, PROVIDERS, known

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS: dict[str, list[str]] = PROJECT["project"]["optional-dependencies"]
PINNED = [
    dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "requirements" / name).read_text(), re.MULTILINE))
    for name in ("dev.txt", "bench.txt")
]
PINS = {canonicalize_name(name): version for pins in PINNED for name, version in pins.items()}
OURS = [plugin for group in (BACKENDS, PROVIDERS) for plugin in known(group) if plugin.distribution == "tokencache"]
TARGETS = {*(plugin.value for plugin in OURS), *PROJECT["project"]["scripts"].values()}


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_each_plugin_and_script_leads_to_something_callable(target: str) -> None:
    """Each plugin and script of ours names a callable."""
    module, _, name = target.partition(" ")[0].partition(":")
    assert callable(getattr(importlib.import_module(module), name))


def test_the_extra_all_contains_a_services_extras() -> None:
    """`tokencache[all]` brings every extra but `testing` (pytest) and `bench` (our peers)."""
    (everything,) = EXTRAS["all"]
    assert Requirement(everything).extras == set(EXTRAS) - {"all", "testing", "bench"}


def loaded_by(tree: ast.AST) -> set[str]:
    """Return the top-level modules that a module loads, by statement or by `import_module("…")`."""
    guards = [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    unloaded = {node for guard in guards for child in guard.body for node in ast.walk(child)}
    names: list[object] = []
    for node in set(ast.walk(tree)) - unloaded:
        match node:
            case ast.Import(names=aliases):
                names += [alias.name for alias in aliases]
            case ast.ImportFrom(module=str(name), level=0):
                names.append(name)
            case ast.Call(func=ast.Name(id="import_module"), args=[ast.Constant(value=name)]):
                names.append(name)
    return {str(name).partition(".")[0] for name in names}


def test_each_installed_library_is_loaded() -> None:
    """A module of `src` loads each dependency and each library of an extra, except `bench`."""
    asked = [text for extra in set(EXTRAS) - {"bench"} for text in EXTRAS[extra]] + PROJECT["project"]["dependencies"]
    libraries = {canonicalize_name(Requirement(text).name) for text in asked} - {"tokencache"}
    modules = {name for path in (ROOT / "src").rglob("*.py") for name in loaded_by(ast.parse(path.read_text()))}
    homes = metadata.packages_distributions()
    assert len(libraries) > len(PROJECT["project"]["dependencies"])
    assert libraries <= {canonicalize_name(library) for module in modules for library in homes.get(module, ())}


def test_no_library_is_pinned_to_two_versions() -> None:
    """The peers' pins go on top of the others, so that both can be constraints of one installation."""
    dev, bench = ({canonicalize_name(name) for name in pins} for pins in PINNED)
    assert not dev & bench


def test_every_library_in_the_report_is_installed_by_the_extra() -> None:
    """The libraries whose versions the report states are those of `tokencache[bench]`."""
    spec = importlib.util.spec_from_file_location("suite_results", ROOT / "benchmarks" / "suite" / "results.py")
    assert spec is not None
    assert spec.loader is not None
    results = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = results  # a dataclass looks its module up
    spec.loader.exec_module(results)
    asked = {canonicalize_name(Requirement(text).name) for text in EXTRAS["bench"]}
    asked |= {canonicalize_name(Requirement(text).name) for text in PROJECT["project"]["dependencies"]}
    assert {canonicalize_name(name) for name in (*results.PEERS, *results.OURS)} - {"tokencache"} <= asked


def test_every_requirement_is_pinned_within_its_bounds() -> None:
    """Each required library is pinned for CI, to a version within the bounds."""
    named = [Requirement(text) for texts in EXTRAS.values() for text in texts]
    named += [Requirement(text) for text in PROJECT["project"]["dependencies"]]
    named += [
        Requirement(text) for group in PROJECT["dependency-groups"].values() for text in group if isinstance(text, str)
    ]
    for requirement in named:
        name = canonicalize_name(requirement.name)
        if name != "tokencache":
            assert name in PINS, f"{name} is not pinned in requirements/dev.txt or bench.txt"
            assert requirement.specifier.contains(Version(PINS[name])), f"{requirement} does not allow {PINS[name]}"


def test_the_wheel_contains_no_simulator() -> None:
    """The wheel is made of the two packages of `src`, and neither holds a module of the simulator."""
    packages = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert packages == ["src/tokencache", "src/tokencache_qpay"]
    simulator = {path.name for path in (ROOT / "tests" / "simulation" / "simulator").glob("*.py")} - {"__init__.py"}
    shipped = [path for package in packages for path in (ROOT / package).rglob("*.py")]
    assert {"_world.py", "_referee.py", "mutants.py"} <= simulator
    assert not [path for path in shipped if "simul" in str(path.relative_to(ROOT)) or path.name == "mutants.py"]


@pytest.mark.parametrize("package", ["tokencache", "tokencache_qpay"])
def test_both_packages_are_typed(package: str) -> None:
    """Both packages carry `py.typed`, so that type checkers read them."""
    assert resources.files(package).joinpath("py.typed").is_file()
