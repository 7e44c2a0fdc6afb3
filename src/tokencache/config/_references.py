"""References: a configuration names where a text is kept, so that the file does not hold secrets.

``{ env = "NAME" }``, ``{ file = "path" }`` (with ``json = "field"`` for a field of a JSON file) and
``{ keyring = "service", user = "name" }``, each with an optional ``default``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeGuard, cast

from tokencache._files import content_of, expanded
from tokencache.config._place import Mistake, Place, unknown

if TYPE_CHECKING:
    from pathlib import Path

KINDS: Final[Mapping[str, tuple[str, ...]]] = {
    "env": ("default",),
    "file": ("default", "json"),
    "keyring": ("default", "user"),
}
"""The kinds of references, and the further keys of each."""


@dataclass(frozen=True, slots=True)
class ReferenceResolver:
    """Resolves references with the variables, and relative to the folder of the file."""

    environ: Mapping[str, str]
    folder: Path

    def resolve(self, value: Mapping[str, object], place: Place) -> str:
        """Return the text of a reference. Raises :class:`Mistake`, whose message never holds the text."""
        kind = next(name for name in KINDS if name in value)
        for name, part in value.items():
            if name != kind and name not in KINDS[kind]:
                raise unknown(place.at(name), f"option of {{ {kind} = … }}", name, (kind, *KINDS[kind]))
            if not isinstance(part, str) or (not part and name != "default"):
                raise Mistake(place.at(name), "this must be a text", f'write {{ {kind} = "…" }}')
        named = cast("Mapping[str, str]", value)
        default = named.get("default")
        try:
            match kind:
                case "env":
                    return _variable(self.environ, named["env"], place)
                case "file":
                    return _content(self.folder, named["file"], named.get("json"), place)
                case _:
                    return _entry(named["keyring"], named.get("user", ""), place)
        except _Missing:
            if default is None:
                raise
            return default


class _Missing(Mistake):
    """The target of a reference is missing; the default is used, if the reference has one."""


def is_reference(value: object) -> TypeGuard[Mapping[str, object]]:
    """Return whether a value is a reference to a text kept elsewhere."""
    return isinstance(value, Mapping) and sum(name in value for name in KINDS) == 1


def _variable(environ: Mapping[str, str], name: str, place: Place) -> str:
    """Return the value of a variable; an empty one counts as not set."""
    value = environ.get(name)
    if not value:
        raise _Missing(place, f"the variable {name} is not set", f"set {name} where this runs, or add a default")
    return value


def _content(folder: Path, name: str, field: str | None, place: Place) -> str:
    """Return the content of a file without its last line break, or one field of it."""
    problem = ""
    missing = False
    text = ""
    path = folder / name
    try:
        path = folder / expanded(name)
        text = content_of(path, pipes=True).decode()
    except FileNotFoundError:
        problem, missing = "there is no such file", True
    except OSError as error:
        problem = error.strerror or "it cannot be read"
    except UnicodeDecodeError:  # its text holds the content
        problem = "it is not UTF-8 text"
    if problem:
        kind = _Missing if missing else Mistake
        raise kind(place, f"the file {path}: {problem}", "correct the path, or mount the secret there")
    if field is not None:
        return _field(text, field, place, path)
    text = text.removesuffix("\n").removesuffix("\r")
    if not text:
        raise _Missing(place, f"the file {path} is empty", "write the secret into it")
    return text


def _field(text: str, field: str, place: Place, path: Path) -> str:
    """Return a text field of a JSON object."""
    table: object = None
    try:
        table = json.loads(text)
    except (ValueError, RecursionError):
        table = None
    if not isinstance(table, dict):
        raise Mistake(place, f"the file {path} does not hold a JSON object", "correct the path, or leave out json = …")
    found = cast("dict[str, object]", table).get(field)
    if not isinstance(found, str):
        raise _Missing(place, f"the JSON file {path} has no text field {field!r}", "correct json = …, or the file")
    return found


def _entry(service: str, user: str, place: Place) -> str:
    """Return a password from this machine's keyring."""
    try:
        import keyring
    except ImportError:
        missing = Mistake(place, "the module 'keyring' could not be imported", "pip install 'tokencache[keyring]'")
        raise missing from None
    found: str | None = None
    failure = ""
    try:
        found = keyring.get_password(service, user)
    except Exception as error:  # noqa: BLE001  (INV-9: its message may hold a secret)
        failure = type(error).__name__
    if failure:
        raise Mistake(place, f"the keyring could not be asked: {failure}", "unlock it, or use env or file")
    if not found:
        remedy = f"keyring set {service} {user or '…'}"
        raise _Missing(place, f"the keyring has no password of {user!r} for {service!r}", remedy)
    return found
