"""Presets: known settings of widely used APIs, so that a source needs only those of the account.

Presets are data, in ``presets.toml`` beside this module. Each table is a preset:

===============  ===================================================================================================
name             is
===============  ===================================================================================================
``title``        the API, in words
``type``         the type of its provider, by its name in a configuration
``settings``     settings of the preset itself, which fill the templates: each with ``about``; ``form``, its format
                 (``segment`` of an address, ``host``, ``url``, ``text``); ``default``, ``optional``, ``choices``
``values``       settings of the provider: templates, in which ``{tenant}`` stands for the setting ``tenant``; a
                 template without its setting is omitted
``client_auth``  how a client secret is sent
``required``     settings of the provider that must be given; ``any_of``: at least one of them must be given
``lifetime``     the known lifetime of a token; ``quirks``: other facts, each with its source
``sources``      the page of the API's documentation for each of endpoint, grant, client_auth and lifetime
``example``      a provider's table in ``tokencache.toml``
===============  ===================================================================================================
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.resources import files
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from tokencache.config._types import Setting
from tokencache.errors import ConfigurationError
from tokencache.providers._exchange import nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tokencache.ports import TokenProvider

__all__ = ["Preset", "PresetSetting", "Quirk", "preset", "preset_settings", "presets"]

_MADE_BY: Final[Mapping[str, tuple[str, str]]] = {
    "client_credentials": ("tokencache.providers.oauth2", "ClientCredentials"),
    "custom_grant": ("tokencache.providers.oauth2", "CustomGrant"),
    "github_app": ("tokencache.providers.github", "GitHubApp"),
    "jwt_bearer": ("tokencache.providers.oauth2", "JWTBearer"),
}
_IN_CODE: Final = frozenset({"name", "client", "async_client", "verify"})  # a configuration cannot hold these
_PLACE: Final = re.compile(r"\{(\w+)\}")
_FORMS: Final = {
    "segment": (re.compile(r"[A-Za-z0-9_~-][A-Za-z0-9._~-]*"), "a name without slashes and spaces"),
    "host": (re.compile(r"[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+(:[0-9]+)?"), "a host name alone, without https:// and path"),
    "url": (re.compile(r"https?://[^\s?#{}]+"), "an address that begins with https://"),
    "text": (re.compile(r"[^\r\n\0]+"), "a text of one line"),
}


@dataclass(frozen=True, slots=True)
class PresetSetting:
    """A setting of a preset itself. ``choices`` maps each allowed name to its text in a template."""

    about: str
    form: str = "segment"
    default: str | None = None
    optional: bool = False
    choices: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def required(self) -> bool:
        """Whether the setting must be given."""
        return self.default is None and not self.optional


@dataclass(frozen=True, slots=True)
class Quirk:
    """A fact about an API, and the page that states it."""

    text: str
    source: str


@dataclass(frozen=True, slots=True)
class Preset:
    """The known settings of an API; the names are those of ``presets.toml``."""

    name: str
    title: str
    type: str
    lifetime: str
    sources: Mapping[str, str]
    example: Mapping[str, object]
    values: Mapping[str, object] = field(default_factory=dict[str, object])
    settings: Mapping[str, PresetSetting] = field(default_factory=dict[str, PresetSetting])
    required: tuple[str, ...] = ()
    any_of: tuple[str, ...] = ()
    client_auth: str | None = None
    quirks: tuple[Quirk, ...] = ()


@cache
def presets() -> Mapping[str, Preset]:
    """Return all presets by name, in the order of their names."""
    text = files("tokencache.providers").joinpath("presets.toml").read_text("utf-8")
    tables = cast("Mapping[str, dict[str, Any]]", tomllib.loads(text))
    return MappingProxyType({name: _read(name, dict(tables[name])) for name in sorted(tables)})


def preset(name: str, /, **settings: object) -> TokenProvider:
    """Return the provider of a preset: ``preset("zoom", account_id=…, client_id=…, client_secret=…)``.

    ``settings`` are those of :func:`preset_settings`, and ``client``, ``async_client`` and ``verify``. A setting of the
    provider overrides the preset, also ``token_url``; a table (``parameters``, ``headers``) is merged into it. ``name``
    is for keys, events and messages; by default it is the preset's name.

    Raises ``ConfigurationError`` for an unknown preset, with the closest one, and for invalid settings.
    """
    found = _find(name)
    label = str(settings.get("name") or found.name)
    given = {each: value for each, value in settings.items() if value is not None} | {"name": label}
    _require_known(found, label, given)
    _require_given(found, label, given)

    texts: dict[str, str | None] = {each: value for each, value in given.items() if isinstance(value, str)}
    texts |= {each: _text(label, each, known, given) for each, known in found.settings.items()}
    options = _filled(found.values, texts)

    for each, value in given.items():
        if each in found.settings:
            continue
        known = options.get(each)
        merged = isinstance(known, dict) and isinstance(value, dict)
        options[each] = {**cast("dict[str, object]", known), **value} if merged else value  # type: ignore[dict-item]

    # The preset's way to send a secret does not apply to a client that signs.
    signs = options.get("private_key") or options.get("client_assertion_file")
    if found.client_auth is not None and options.get("client_secret") and not signs:
        options.setdefault("client_auth", found.client_auth)
    return cast("TokenProvider", _factory(found)(**options))


def preset_settings(name: str) -> Mapping[str, Setting]:
    """Return the settings of a preset: its own, then those of its provider.

    Raises ``ConfigurationError`` for an unknown preset, with the closest one.
    """
    from tokencache.config._factory import schema_of

    found = _find(name)
    own = {each: _setting(each, known) for each, known in found.settings.items()}
    for each, known in schema_of(_factory(found)).settings.items():
        if each not in own:
            choice = f"one of {', '.join(found.any_of)} must be set" if each in found.any_of else ""
            required = each in found.required
            own[each] = Setting(each, known.type, required, known.secret, choice or known.description)
    return own


def _read(name: str, table: dict[str, Any]) -> Preset:
    """Return a preset from its table."""
    settings = {each: PresetSetting(**known) for each, known in table.pop("settings", {}).items()}
    quirks = tuple(Quirk(**each) for each in table.pop("quirks", ()))
    table |= {each: tuple(table[each]) for each in ("required", "any_of") if each in table}
    return Preset(name=name, settings=settings, quirks=quirks, **table)


def _find(name: str) -> Preset:
    """Return a preset; raises ``ConfigurationError`` for an unknown one."""
    known = presets()
    if name in known:
        return known[name]
    message = f"unknown preset {name!r}; {nearest(name, known)}"
    raise ConfigurationError(message)


def _factory(found: Preset) -> Callable[..., object]:
    """Return the factory of a preset's provider."""
    module, attribute = _MADE_BY[found.type]
    factory: Callable[..., object] = getattr(import_module(module), attribute)
    return factory


def _setting(name: str, known: PresetSetting) -> Setting:
    """Return a setting of a preset in the form that a configuration reads."""
    kind: object = Literal[tuple(known.choices)] if known.choices else str
    return Setting(name, kind, required=known.required, description=known.about)


def _require_known(found: Preset, label: str, given: Mapping[str, object]) -> None:
    """Raise for a setting that the preset does not have."""
    known = {*preset_settings(found.name), *_IN_CODE}
    for each in given:
        if each not in known:
            message = f"[{label}] the preset {found.name!r} has no setting {each!r}; {nearest(each, known)}"
            raise ConfigurationError(message)


def _require_given(found: Preset, label: str, given: Mapping[str, object]) -> None:
    """Raise for missing settings; one message names all of them."""
    missing = [each for each, known in found.settings.items() if known.required and each not in given]
    missing += [each for each in found.required if each not in given]
    if missing:
        message = f"[{label}] the preset {found.name!r} needs {', '.join(missing)}; set what is missing"
        raise ConfigurationError(message)
    if found.any_of and "client_auth" not in given and not any(given.get(each) for each in found.any_of):
        message = f"[{label}] the preset {found.name!r} needs one of {', '.join(found.any_of)}; set one of them"
        raise ConfigurationError(message)


def _text(label: str, name: str, known: PresetSetting, given: Mapping[str, object]) -> str | None:
    """Return the text of a setting in a template, ``None`` if the setting is not given."""
    value = given.get(name, known.default)
    if value is None:
        return None
    if known.choices:
        if value not in known.choices:
            message = f"[{label}] {name} must be one of {', '.join(known.choices)}"
            raise ConfigurationError(message)
        return known.choices[cast("str", value)]
    pattern, words = _FORMS[known.form]
    text = value.strip() if isinstance(value, str) else ""
    if known.form == "url":
        text = text.rstrip("/")
    if not pattern.fullmatch(text):
        message = f"[{label}] {name} must be {words}; correct it"
        raise ConfigurationError(message)
    return text


def _filled(values: Mapping[str, object], texts: Mapping[str, str | None]) -> dict[str, object]:
    """Return the values with their templates filled, without empty tables and templates that lack their setting."""
    filled: dict[str, object] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            if inner := _filled(cast("dict[str, object]", value), texts):
                filled[name] = inner
        elif not isinstance(value, str):
            filled[name] = value
        elif all(texts.get(place) is not None for place in _PLACE.findall(value)):
            filled[name] = _PLACE.sub(lambda found: texts[found[1]] or "", value)
    return filled
