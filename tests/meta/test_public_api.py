"""The public surface, compared with a committed snapshot.

After a change that is meant, and a line in CHANGELOG.md:
`python tests/meta/test_public_api.py > tests/meta/public_api.txt`
"""

from __future__ import annotations

import importlib
import inspect
import sys
from pathlib import Path

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
    "tokencache.providers.presets",
    "tokencache.status",
    "tokencache_qpay",
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
    """Return the public methods and properties that a class defines itself or takes from another class of ours."""
    lines: list[str] = []
    for name in dir(owner):
        home = next((base for base in owner.__mro__ if name in vars(base)), None)
        if name.startswith("_") or home is None or not home.__module__.startswith("tokencache"):
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
                error = issubclass(thing, BaseException)
                lines.append(f"{module_name}.{name}{'' if error else signature(thing)}")
                lines += [f"    {line}" for line in members(thing)]
            elif inspect.isfunction(thing):
                lines.append(f"{module_name}.{name}{signature(thing)}")
            else:
                lines.append(f"{module_name}.{name}")
    return "\n".join(lines) + "\n"


def test_the_public_surface_is_the_committed_one() -> None:
    """No public name, parameter or default changes unless its snapshot changes with it."""
    assert surface() == SNAPSHOT.read_text()


def test_public_names_are_sorted_and_exist() -> None:
    """`__all__` of each package is sorted, without duplicates, and every name in it is there."""
    for name in ("tokencache", "tokencache_qpay"):
        package = importlib.import_module(name)
        assert list(package.__all__) == sorted(set(package.__all__))
        assert all(hasattr(package, public) for public in package.__all__)


if __name__ == "__main__":
    sys.stdout.write(surface())
