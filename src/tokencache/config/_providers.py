"""The providers of a configuration: each table is checked against its factory's schema, then the provider is made."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, cast

from tokencache.config._factory import RESERVED, Schema, schema_of
from tokencache.config._file import policy_fields
from tokencache.config._place import Mistake, Place, as_table, unknown
from tokencache.config._types import BOOLEAN, NUMBER, TEXT, Given, Kind, Setting, kind_of, read
from tokencache.errors import ConfigurationError, TokenCacheError
from tokencache.policy import RefreshPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tokencache.config._references import ReferenceResolver
    from tokencache.ports import TokenProvider

PRESETS: Final = "tokencache.providers.presets"
_POLICY: Final = "policy_"
_FILE: Final = "_file"


@dataclass(frozen=True, slots=True)
class Configured:
    """A provider made from its table, and the table's settings for the cache.

    ``backend`` is a URL or the name of a backend, ``None`` for the cache's backend.
    """

    provider: TokenProvider
    backend: str | None = None
    key: str | None = None
    keep_warm: bool = False
    policy: Mapping[str, float] = field(default_factory=dict[str, float])

    def policy_over(self, base: RefreshPolicy) -> RefreshPolicy:
        """Return ``base`` with the fields that the table sets."""
        return replace(base, **self.policy) if self.policy else base


@dataclass(slots=True)
class Draft:
    """A provider's table, read as far as possible: the arguments of its factory, and all mistakes."""

    place: Place
    make: Callable[..., object] | None = None
    schema: Schema = field(default_factory=lambda: Schema({}))
    values: dict[str, object] = field(default_factory=dict[str, object])
    cache: dict[str, object] = field(default_factory=dict[str, object])
    policy: dict[str, float] = field(default_factory=dict[str, float])
    mistakes: list[Mistake] = field(default_factory=list[Mistake])

    def take(self, kind: Kind, given: Given, source: ReferenceResolver) -> object:
        """Read one value; for a mistake, record it and return ``None``."""
        try:
            return read(kind, given, source)
        except Mistake as mistake:
            self.mistakes.append(mistake)
            return None


def draft(name: str, table: Mapping[str, Given], place: Place, source: ReferenceResolver) -> Draft:
    """Return the draft of a provider, its references resolved."""
    drawn = Draft(place)
    _read_policy(drawn, table, source)
    for setting, kind in (("backend", TEXT), ("key", TEXT), ("keep_warm", BOOLEAN)):
        if setting in table:
            drawn.cache[setting] = drawn.take(kind, table[setting], source)
    if not _find_factory(drawn, table):
        return drawn
    for setting, given in table.items():
        if setting not in RESERVED and not (given.spelled and setting.startswith(_POLICY)):
            _read_setting(drawn, setting, given, source)
    for wanted in drawn.schema.settings.values():
        if wanted.required and not {wanted.name, f"{wanted.name}{_FILE}"} & {*drawn.values, *table}:
            drawn.mistakes.append(_missing(place, name, wanted))
    if drawn.schema.takes_name:
        drawn.values["name"] = name
    return drawn


def finish(drawn: Draft) -> Configured:
    """Return the provider of a draft; raises ``ConfigurationError`` for its mistakes and for errors of its factory."""
    if drawn.mistakes or drawn.make is None:
        raise _first(drawn)
    problem = ""
    made: object = None
    try:
        made = drawn.make(**drawn.values)
    except ConfigurationError as error:
        raise Mistake(drawn.place, str(error), "") from error
    except TokenCacheError:
        raise
    except Exception as error:  # noqa: BLE001  (INV-9: its message may hold a secret)
        problem = f"its factory raised {type(error).__name__}"
    if problem or not (hasattr(made, "fetch") or hasattr(made, "afetch")):
        problem = problem or "its factory did not return a provider"
        raise Mistake(drawn.place, problem, "check its settings, or report it to the author of that provider")
    chosen = drawn.cache
    return Configured(
        provider=cast("TokenProvider", made),
        backend=cast("str | None", chosen.get("backend")),
        key=cast("str | None", chosen.get("key")) or None,
        keep_warm=bool(chosen.get("keep_warm")),
        policy=drawn.policy,
    )


def preset_settings(name: str) -> Mapping[str, Setting]:
    """Return the settings of a preset; raises ``ConfigurationError`` for an unknown one."""
    return cast("Mapping[str, Setting]", _presets("preset_settings")(name))


def _is_preset(name: str) -> bool:
    """Return whether there is a preset of this name."""
    return name in cast("Mapping[str, object]", _presets("presets")())


def _presets(name: str) -> Callable[..., object]:
    """Return a function of the presets module, loaded at its first use."""
    from importlib import import_module

    try:
        found: Callable[..., object] = getattr(import_module(PRESETS), name)
    except ModuleNotFoundError as error:
        message = f"cannot load presets: the module {error.name!r} is missing; reinstall tokencache"
        raise ConfigurationError(message) from None
    return found


def _find_factory(drawn: Draft, table: Mapping[str, Given]) -> bool:
    """Find the factory, by ``type`` or ``preset``; return whether it exists."""
    chosen = [name for name in ("type", "preset") if name in table]
    if len(chosen) != 1:
        problem = "it has both type and preset" if chosen else "it has neither type nor preset"
        remedy = 'write one of them, for example type = "client_credentials"; `tokencache plugins` lists the types'
        drawn.mistakes.append(Mistake(drawn.place, problem, remedy))
        return False
    given = table[chosen[0]]
    value = given.value
    if not isinstance(value, str):
        drawn.mistakes.append(Mistake(given.place, "this must be a text", "write the name of a provider or preset"))
        return False
    try:
        if chosen[0] == "preset":
            from functools import partial

            settings = preset_settings(value)
            drawn.make = partial(_presets("preset"), value)
            own = {name: each for name, each in settings.items() if name not in {"name", *RESERVED}}
            drawn.schema = Schema(own, takes_name=True)
        else:
            from tokencache.plugins import load_provider_factory

            factory = load_provider_factory(value)
            drawn.make, drawn.schema = factory, schema_of(factory)
    except ConfigurationError as error:
        remedy = f'it is a preset: write preset = "{value}"' if chosen == ["type"] and _is_preset(value) else ""
        drawn.mistakes.append(Mistake(given.place, str(error), remedy))
        return False
    for name in drawn.schema.unfit:
        problem = (
            f"the provider {value!r} cannot be made from a configuration: it needs {name!r}, which is not a plain value"
        )
        drawn.mistakes.append(Mistake(given.place, problem, "make it in code, and pass it to cache.source()"))
    return True


def _read_setting(drawn: Draft, name: str, given: Given, source: ReferenceResolver) -> None:
    """Read one setting of the factory."""
    settings = drawn.schema.settings
    if name not in settings and given.spelled and name.endswith(_FILE) and name.removesuffix(_FILE) in settings:
        name = name.removesuffix(_FILE)
        given = Given({"file": given.value}, given.place)
    setting = settings.get(name)
    kind = setting.kind if setting is not None else kind_of(drawn.schema.others)
    if kind is None:
        known = {*settings, *(each for each in RESERVED if each not in {"type", "preset"})}
        drawn.mistakes.append(_unknown(given, name, known))
        return
    if name in drawn.values:
        drawn.mistakes.append(Mistake(given.place, f"{name} is set twice", "remove one of the two"))
        return
    value = drawn.take(kind, given, source)
    if value is not None:
        drawn.values[name] = value


def _read_policy(drawn: Draft, table: Mapping[str, Given], source: ReferenceResolver) -> None:
    """Read the policy of a provider: its table, and variables for single fields."""
    known = policy_fields()
    fields: dict[str, Given] = {}
    whole = table.get("policy")
    items = None if whole is None else as_table(whole.value)
    if whole is not None and items is not None:
        fields = {name: Given(value, whole.place.at(name)) for name, value in items.items()}
    elif whole is not None:
        drawn.mistakes.append(Mistake(whole.place, "this must be a table", "write policy = { early = 60 }"))
    fields |= {
        name.removeprefix(_POLICY): given for name, given in table.items() if given.spelled and name.startswith(_POLICY)
    }
    for name, given in fields.items():
        if name not in known:
            drawn.mistakes.append(unknown(given.place, "field of the policy", name, known))
            continue
        value = drawn.take(NUMBER, given, source)
        if value is not None and _is_fit(drawn, name, cast("float", value), given.place):
            drawn.policy[name] = cast("float", value)


def _is_fit(drawn: Draft, name: str, value: float, place: Place) -> bool:
    """Return whether a policy may have this value."""
    try:
        RefreshPolicy(**{name: value})
    except ConfigurationError as error:
        drawn.mistakes.append(Mistake(place, str(error), ""))
        return False
    return True


def _unknown(given: Given, name: str, known: set[str]) -> Mistake:
    """Return the mistake of a setting that the factory does not take."""
    if given.spelled:  # the variable in full, its setting in lower case
        mistake = unknown(given.place, "setting", name, known)
        return Mistake(given.place, f"this provider has no setting {name!r}", mistake.remedy)
    return unknown(given.place, "setting", name, known)


def _missing(place: Place, name: str, setting: Setting) -> Mistake:
    """Return the mistake of a missing required setting."""
    variable = f"{name}_{setting.name}".upper().replace("-", "_")
    value = f'{{ env = "{variable}" }}' if setting.secret else "…"
    what = f" ({setting.description.rstrip('.')})" if setting.description else ""
    return Mistake(place.at(setting.name), "this is missing", f"add {setting.name} = {value}{what}")


def _first(drawn: Draft) -> ConfigurationError:
    """Return the first mistake, with the number of the others."""
    first, *more = drawn.mistakes
    if not more:
        return first
    return Mistake(first.place, first.problem, f"{first.remedy} (and {len(more)} more: `tokencache config check`)")
