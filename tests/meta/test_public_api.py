"""The public surface, compared with a committed snapshot.

After an intended change, and a line in CHANGELOG.md:
`python tests/meta/test_public_api.py > tests/meta/public_api.txt`
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from enum import Enum
from pathlib import Path

ROOT = Path(__file__).parents[2]
SNAPSHOT = Path(__file__).with_name("public_api.txt")
MODULES = [
    "tokencache",
    "tokencache.errors",
    "tokencache.events",
    "tokencache.health",
    "tokencache.integrations.aiohttp",
    "tokencache.integrations.azure",
    "tokencache.integrations.google",
    "tokencache.integrations.httpx",
    "tokencache.integrations.httpx2",
    "tokencache.integrations.msal",
    "tokencache.integrations.requests",
    "tokencache.policy",
    "tokencache.ports",
    "tokencache.providers.github",
    "tokencache.providers.http",
    "tokencache.providers.oauth2",
    "tokencache.providers.oauth_response",
    "tokencache.providers.presets",
    "tokencache.providers.reach",
    "tokencache.providers.transport",
    "tokencache.records",
    "tokencache.status",
    "tokencache.shared",
    "tokencache.steps",
    "tokencache.testing.contract",
    "tokencache.testing.fakes",
    "tokencache.testing.loopback",
    "tokencache.testing.provider_contract",
    "tokencache.testing.token_server",
    "tokencache.token",
    "tokencache.url",
    "tokencache_qpay",
    "tokencache_qpay.callbacks",
    "tokencache_qpay.models",
    "tokencache_qpay.testing",
]


class Named(str):
    """The name of a default that is a function, without the address that its own repr has."""

    __slots__ = ()

    def __repr__(self) -> str:
        """Return the bare name."""
        return str(self)


def signature(thing: object) -> str:
    """Return names, kinds and defaults of the parameters, without annotations."""
    try:
        found = inspect.signature(thing)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return ""
    bare: list[inspect.Parameter] = []
    for parameter in found.parameters.values():
        default = parameter.default
        if callable(default) and default is not inspect.Parameter.empty:
            default = Named(default.__name__)
        bare.append(parameter.replace(annotation=inspect.Parameter.empty, default=default))
    return str(found.replace(parameters=bare, return_annotation=inspect.Signature.empty))


def members(owner: type) -> list[str]:
    """Return the public methods and properties that a class defines itself or takes from another class of ours.

    The laws of a contract are not called by name, so they are left out.
    """
    lines: list[str] = []
    for name in dir(owner):
        home = next((base for base in owner.__mro__ if name in vars(base)), None)
        if name.startswith(("_", "test_")) or home is None or not home.__module__.startswith("tokencache"):
            continue
        thing = inspect.getattr_static(owner, name)
        if isinstance(thing, staticmethod | classmethod):
            thing = thing.__func__
        if inspect.isfunction(thing):
            lines.append(f"{'async ' * inspect.iscoroutinefunction(thing)}{name}{signature(thing)}")
        else:
            lines.append(name)
    return lines


def surface() -> str:
    """Return one line for each public name, and one, indented, for each member of a class."""
    lines: list[str] = []
    for module_name in MODULES:
        module = importlib.import_module(module_name)
        names = getattr(module, "__all__", None) or [
            name
            for name, thing in vars(module).items()
            if not name.startswith("_") and getattr(thing, "__module__", None) == module_name
        ]
        for name in sorted(names):
            thing = getattr(module, name)
            if inspect.isclass(thing):
                plain = issubclass(thing, BaseException | Enum)  # their constructors differ between Pythons
                lines.append(f"{module_name}.{name}{'' if plain else signature(thing)}")
                lines += [f"    {line}" for line in members(thing)]
            elif inspect.isfunction(thing):
                lines.append(f"{module_name}.{name}{signature(thing)}")
            else:
                lines.append(f"{module_name}.{name}")
    return "\n".join(lines) + "\n"


def test_the_public_surface_is_the_committed_one() -> None:
    """No public name, parameter or default changes unless its snapshot changes with it."""
    assert surface() == SNAPSHOT.read_text()


def test_each_module_that_others_import_is_listed() -> None:
    """All that the documents, the templates, the examples and the plugin import of us is in the snapshot."""
    folders = ("docs", "examples", "src/tokencache/cli/templates")
    texts = [*ROOT.glob("*.md"), *(path for folder in folders for path in (ROOT / folder).rglob("*.*"))]
    texts = [path for path in texts if path.suffix in {".md", ".py", ".tmpl"}]
    form = r"^\s*(?:from|import) (tokencache(?:_qpay)?(?:\.\w+)*)(?= |$)"
    told = {name for path in texts for name in re.findall(form, path.read_text(), re.MULTILINE)}
    plugin = [path.read_text() for path in (ROOT / "src/tokencache_qpay").rglob("*.py")]
    told |= {name for text in plugin for name in re.findall(form.replace("(?:_qpay)?", ""), text, re.MULTILINE)}
    assert {"tokencache.ports", "tokencache.records", "tokencache.testing.loopback"} <= told
    assert told <= set(MODULES)


def test_public_names_are_sorted_and_exist() -> None:
    """`__all__` of each package is sorted, without duplicates, and every name in it exists."""
    for name in ("tokencache", "tokencache_qpay"):
        package = importlib.import_module(name)
        assert list(package.__all__) == sorted(set(package.__all__))
        assert all(hasattr(package, public) for public in package.__all__)


if __name__ == "__main__":
    sys.stdout.write(surface())
