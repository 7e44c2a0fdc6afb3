"""The types of settings: the supported annotations, and how values of files and variables are read."""

from __future__ import annotations

import json
import math
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Final, Literal, TypeAlias, Union, cast, get_args, get_origin

from tokencache.config._place import Mistake, as_list, as_table
from tokencache.config._references import is_reference

if TYPE_CHECKING:
    from tokencache.config._place import Place
    from tokencache.config._references import ReferenceResolver

Basic: TypeAlias = Literal["text", "integer", "number", "boolean", "texts", "table"]

SECRET: Final = "secret"
"""The mark of :data:`tokencache.ports.SecretText`."""

_BASICS: Final[Mapping[object, Basic]] = {str: "text", int: "integer", float: "number", bool: "boolean"}
_SEQUENCES: Final = (Sequence, list, tuple, set, frozenset)
_TRUE: Final = ("true", "1", "yes", "on")
_FALSE: Final = ("false", "0", "no", "off")
_WORDS: Final[Mapping[Basic, str]] = {
    "text": "a text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "texts": "a list of texts",
    "table": "a table of texts",
}


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting of a provider: a keyword of its factory, or of a preset.

    ``type`` is an annotation that a configuration can fill: ``str``, ``int``, ``float``, ``bool``, ``Literal`` of
    them, ``Sequence[str]``, ``Mapping[str, str]``, a union of these, or :data:`tokencache.ports.SecretText`.
    """

    name: str
    type: object = str
    required: bool = False
    secret: bool = False
    description: str = ""

    @property
    def kind(self) -> Kind | None:
        """The kind of its values; ``None`` for a type that a configuration cannot hold."""
        return kind_of(self.type)


@dataclass(frozen=True, slots=True)
class Kind:
    """The kind of values of a setting: any of ``basics``, or one of ``choices``."""

    basics: frozenset[Basic]
    choices: tuple[str | int, ...] = ()
    secret: bool = False

    def __str__(self) -> str:
        """Return it in words."""
        if self.choices:
            return "one of " + ", ".join(repr(choice) for choice in self.choices)
        return " or ".join(word for basic, word in _WORDS.items() if basic in self.basics)


TEXT: Final = Kind(frozenset({"text"}))
NUMBER: Final = Kind(frozenset({"number"}))
BOOLEAN: Final = Kind(frozenset({"boolean"}))


@dataclass(frozen=True, slots=True)
class Given:
    """A value as it was given, and its place. ``spelled`` marks the text of a variable, for a setting of any type."""

    value: object = field(repr=False)
    place: Place
    spelled: bool = False


def kind_of(annotation: object) -> Kind | None:
    """Return the kind of values of an annotation, ``None`` for a type that a configuration cannot hold."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        inner = kind_of(arguments[0])
        secret = SECRET in arguments[1:]
        return inner and Kind(inner.basics, inner.choices, inner.secret or secret)
    if origin in {Union, types.UnionType}:
        kinds = [kind for argument in arguments if argument is not type(None) and (kind := kind_of(argument))]
        return _united(kinds) if kinds else None
    if origin is Literal:
        choices = tuple(
            choice for choice in arguments if isinstance(choice, str | int) and not isinstance(choice, bool)
        )
        return Kind(frozenset(), choices) if choices else None
    if origin in _SEQUENCES and arguments[:1] and kind_of(arguments[0]) == TEXT:
        return Kind(frozenset({"texts"})) if arguments[1:] in {(), (...,)} else None
    if isinstance(origin, type) and issubclass(origin, Mapping):
        texts = len(arguments) == 2 and all(kind_of(argument) == TEXT for argument in arguments)  # noqa: PLR2004
        return Kind(frozenset({"table"})) if texts else None
    basic = _BASICS.get(annotation) if isinstance(annotation, type) else None
    return None if basic is None else Kind(frozenset({basic}))


def read(kind: Kind, given: Given, source: ReferenceResolver) -> object:
    """Return the value of a setting, references resolved; raises :class:`Mistake` if it is of another kind."""
    value, place = given.value, given.place
    if is_reference(value) and "table" not in kind.basics:
        return _spelled(kind, source.resolve(value, place), place)
    if given.spelled and isinstance(value, str):
        return _spelled(kind, value, place)
    table, several = as_table(value), as_list(value)
    if table is not None and "table" in kind.basics:
        return {name: read(TEXT, Given(each, place.at(name)), source) for name, each in table.items()}
    if several is not None and "texts" in kind.basics:
        return [read(TEXT, Given(each, place.at(number)), source) for number, each in enumerate(several)]
    if kind.choices:
        return _chosen(kind, value, place)
    return _scalar(kind, value, place)


def _scalar(kind: Kind, value: object, place: Place) -> object:
    """Return a value as one of the simple kinds."""
    match value:
        case bool() if "boolean" in kind.basics:
            return value
        case int() if not isinstance(value, bool) and "integer" in kind.basics:
            return value
        case int() | float() if not isinstance(value, bool) and "number" in kind.basics and math.isfinite(value):
            return float(value)
        case str() if "text" in kind.basics:
            return value
        case _:
            raise _wrong(kind, f"this is {_described(value)}", place)


def _spelled(kind: Kind, text: str, place: Place) -> object:
    """Return the value that a text represents: the text of a variable or of a reference."""
    if kind.choices:
        number = next((choice for choice in kind.choices if str(choice) == text), None)
        return _chosen(kind, text if number is None else number, place)
    if "text" in kind.basics:
        return text
    for basic in ("integer", "number", "boolean", "texts", "table"):
        if basic in kind.basics:
            value = _parsed(basic, text)
            if value is not None:
                return value
    raise _wrong(kind, "this text is not one", place)


def _parsed(basic: Basic, text: str) -> object:
    """Return a text parsed as one kind, ``None`` if it does not fit."""
    text = text.strip()
    match basic:
        case "boolean":
            return text.lower() in _TRUE if text.lower() in _TRUE + _FALSE else None
        case "texts":
            return [part.strip() for part in text.split(",") if part.strip()]
        case "table":
            return _table(text)
        case _:
            try:
                number = int(text) if basic == "integer" else float(text)
            except ValueError:
                return None
            return number if math.isfinite(number) else None


def _table(text: str) -> dict[str, str] | None:
    """Return a table written as a JSON object or as ``name=value,name=value``."""
    if text.startswith("{"):
        try:
            table = as_table(json.loads(text))
        except (ValueError, RecursionError):
            return None
        texts = table is not None and all(isinstance(each, str) for each in table.values())
        return cast("dict[str, str]", table) if texts else None
    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    return {name.strip(): value.strip() for name, _, value in pairs} if all(sign for _, sign, _ in pairs) else None


def _chosen(kind: Kind, value: object, place: Place) -> object:
    """Return a value that must be one of the choices, or of one of the other kinds."""
    if not isinstance(value, bool) and value in kind.choices:
        return value
    if kind.basics:
        return _scalar(Kind(kind.basics), value, place)
    known = [str(choice) for choice in kind.choices]
    close = get_close_matches(value, known, n=1) if isinstance(value, str) else []
    remedy = f"did you mean {close[0]!r}?" if close else f"use {kind}"
    raise Mistake(place, "this is not an allowed value", remedy)


def _wrong(kind: Kind, seen: str, place: Place) -> Mistake:
    """Return the mistake of a value of another kind."""
    return Mistake(place, f"expected {kind}; {seen}", "correct it")


def _described(value: object) -> str:
    """Return the type of a TOML value in words, never the value (INV-9)."""
    kinds = (
        (bool, "true or false"),
        (str, "a text"),
        (int | float, "a number"),
        (list, "a list"),
        (Mapping, "a table"),
    )
    if isinstance(value, float) and not math.isfinite(value):
        return "not finite"
    return next((words for kind, words in kinds if isinstance(value, kind)), f"a {type(value).__name__}")


def _united(kinds: Sequence[Kind]) -> Kind:
    """Return the union of several kinds."""
    return Kind(
        frozenset[Basic]().union(*(kind.basics for kind in kinds)),
        tuple(choice for kind in kinds for choice in kind.choices),
        any(kind.secret for kind in kinds),
    )
