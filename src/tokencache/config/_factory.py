"""The settings of a provider: read from the signature of its factory, whose type hints are the schema."""

from __future__ import annotations

import inspect
import sys
import types
from dataclasses import dataclass
from typing import (
    TYPE_CHECKING,
    Final,
    NotRequired,
    Required,
    Unpack,
    cast,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from tokencache.config._types import Setting, kind_of
from tokencache.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

RESERVED: Final = ("type", "preset", "backend", "key", "policy", "keep_warm")
"""The settings in a provider's table that are for the cache and never reach a factory."""


@dataclass(frozen=True, slots=True)
class Schema:
    """The keywords of a factory.

    ``settings`` can be set in a configuration; ``unfit`` are required ones that cannot. ``takes_name`` tells whether
    the factory takes the name of its table. ``others`` is the type of further keywords of any name.
    """

    settings: Mapping[str, Setting]
    takes_name: bool = False
    unfit: tuple[str, ...] = ()
    others: object = None
    summary: str = ""


def schema_of(factory: Callable[..., object]) -> Schema:
    """Return the schema of a factory, a function or a class.

    Raises ``ConfigurationError`` if its signature cannot be read.
    """
    found: dict[str, tuple[object, bool]] = {}
    others: object = None
    plain = inspect.unwrap(factory)
    function = _function(plain)
    try:
        parameters = inspect.signature(plain).parameters.values()
    except (TypeError, ValueError):
        message = "the signature of its factory cannot be read; it must be a function or a class with type hints"
        raise ConfigurationError(message) from None
    for parameter in parameters:
        if parameter.kind in {parameter.POSITIONAL_ONLY, parameter.VAR_POSITIONAL}:
            continue
        annotation = _evaluated(parameter.annotation, getattr(function, "__globals__", {}))
        if parameter.kind is parameter.VAR_KEYWORD:
            if get_origin(annotation) is Unpack and is_typeddict(get_args(annotation)[0]):
                found |= dict(_fields(get_args(annotation)[0]))
            elif kind_of(annotation) is not None:
                others = annotation
            continue
        found[parameter.name] = (annotation, parameter.default is parameter.empty)
    settings: dict[str, Setting] = {}
    unfit: list[str] = []
    for name, (annotation, required) in found.items():
        kind = kind_of(annotation)
        if name == "name" or name in RESERVED:
            continue
        if kind is not None:
            settings[name] = Setting(name, annotation, required, kind.secret)
        elif required:
            unfit.append(name)
    summary = (inspect.getdoc(plain) or "").partition("\n")[0]
    return Schema(settings, "name" in found, tuple(unfit), others, summary)


def _function(factory: object) -> object:
    """Return the function whose module evaluates the annotations."""
    if isinstance(factory, type):
        made = inspect.unwrap(cast("Callable[..., object]", getattr(factory, "__init__")))  # noqa: B009
        return made if isinstance(made, types.FunctionType) else factory.__new__
    if isinstance(factory, types.FunctionType | types.MethodType):
        return factory
    inner = getattr(factory, "func", None)  # a partial
    return _function(inner) if inner is not None else type(factory).__call__


def _evaluated(annotation: object, scope: Mapping[str, object]) -> object:
    """Evaluate an annotation; the result is ``object`` if its module does not import a name in it."""
    if annotation is inspect.Parameter.empty:
        return object
    holder = types.SimpleNamespace(__annotations__={"it": annotation})
    try:
        return get_type_hints(holder, dict(scope), include_extras=True)["it"]
    except Exception:  # noqa: BLE001  (evaluating a text may raise anything)
        return object


def _fields(table: type) -> Iterator[tuple[str, tuple[object, bool]]]:
    """Yield the fields of a ``TypedDict``: name, type, and whether it is required."""
    known = cast("Collection[str]", getattr(table, "__required_keys__", ()))
    scope = vars(sys.modules[table.__module__]) if table.__module__ in sys.modules else {}
    for name, raw in cast("Mapping[str, object]", table.__annotations__).items():
        annotation, required = _evaluated(raw, scope), name in known
        while get_origin(annotation) in {Required, NotRequired}:
            required = get_origin(annotation) is Required  # __required_keys__ ignores it if annotations are texts
            annotation = get_args(annotation)[0]
        yield name, (annotation, required)
