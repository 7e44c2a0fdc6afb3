"""The JSON schema of ``tokencache.toml``, for editors, made from the rules of the reader."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tokencache.config._factory import RESERVED, schema_of
from tokencache.config._file import policy_fields
from tokencache.config._types import TEXT, Kind, kind_of
from tokencache.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tokencache.config._factory import Schema
    from tokencache.config._types import Basic
    from tokencache.plugins import Plugin
    from tokencache.providers.presets import Preset

DRAFT: Final = "http://json-schema.org/draft-07/schema#"  # the draft that TOML editors support

_TEXT: Final[Mapping[str, object]] = {"$ref": "#/definitions/text"}
_SECRET: Final[Mapping[str, object]] = {"$ref": "#/definitions/secret"}
_REFERENCE: Final[Mapping[str, object]] = {"$ref": "#/definitions/reference"}
_FORMS: Final[Mapping[Basic, Mapping[str, object]]] = {
    "text": {"type": "string"},
    "integer": {"type": "integer"},
    "number": {"type": "number"},
    "boolean": {"type": "boolean"},
    "texts": {"type": "array", "items": _TEXT},
    "table": {"$ref": "#/definitions/texts"},
}


def schema(plugins: Iterable[Plugin] | None = None) -> dict[str, object]:
    """Return the schema with all installed providers, or only with those of ``plugins``.

    A provider that cannot be loaded, because its extra is missing, is named without its settings.
    """
    from tokencache.plugins import PROVIDERS, known, load_provider_factory

    names = sorted({plugin.name for plugin in (known(PROVIDERS) if plugins is None else plugins)})
    schemas: dict[str, Schema] = {}
    for name in names:
        try:
            schemas[name] = schema_of(load_provider_factory(name))
        except ConfigurationError:
            continue
    return {
        "$schema": DRAFT,
        "title": "tokencache.toml",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "namespace": _described(_TEXT, "The prefix of every generated key."),
            "backend": _described(_TEXT, "Where tokens are shared: a name of [backends], or a URL."),
            "backends": {
                "type": "object",
                "description": "Backends by name.",
                "additionalProperties": {"anyOf": [_TEXT, {"$ref": "#/definitions/backend"}]},
            },
            "policy": {"$ref": "#/definitions/policy"},
            "encryption": {"$ref": "#/definitions/encryption"},
            "providers": {
                "type": "object",
                "description": "Providers by name: cache.source(name), tokencache token NAME.",
                "additionalProperties": {
                    "allOf": [{"$ref": "#/definitions/provider"}, {"$ref": "#/definitions/preset"}]
                },
            },
        },
        "definitions": _definitions(names, schemas),
    }


def _definitions(names: list[str], schemas: Mapping[str, Schema]) -> dict[str, object]:
    """Return the definitions that the schema refers to."""
    from tokencache.providers.presets import presets

    known = presets()
    return {
        "text": {"anyOf": [{"type": "string"}, _REFERENCE]},
        "texts": {"type": "object", "additionalProperties": _TEXT},
        "secret": {"writeOnly": True, "anyOf": [{"type": "string"}, _REFERENCE]},
        "reference": {
            "description": "Where the text is read from, so that this file does not hold it.",
            "oneOf": [
                _reference("env", "The name of a variable."),
                _reference("file", "A path, relative to this file.", json="The field to take of a JSON file."),
                _reference("keyring", "The service in the machine's keyring.", user="The user there."),
            ],
        },
        "backend": _object({"url": _TEXT, "username": _TEXT, "password": _SECRET}, ["url"]),
        "policy": _object({name: {"type": "number", "minimum": 0} for name in policy_fields()}),
        "encryption": {
            **_object(
                {
                    "keys": {
                        "type": "array",
                        "minItems": 1,
                        "description": "The first encrypts, all decrypt; 32 bytes each, as hexadecimal or base64 text.",
                        "items": _SECRET,
                    },
                    "from_provider": {
                        "type": "boolean",
                        "description": "The key of each source comes from its provider's own credential.",
                    },
                }
            ),
            "maxProperties": 1,
        },
        "provider": {
            "type": "object",
            "properties": {
                "type": {"type": "string", "enum": names},
                "preset": {"type": "string", "enum": list(known)},
            },
            "oneOf": [{"required": ["type"]}, {"required": ["preset"]}],
            "allOf": [_provider(name, found) for name, found in schemas.items()],
        },
        "preset": {"allOf": [_preset(each) for each in known.values()]},
    }


def _provider(name: str, found: Schema) -> dict[str, object]:
    """Return the rule for the table of one type."""
    settings = {
        setting.name: _setting(setting.kind, setting.secret, setting.description) for setting in found.settings.values()
    }
    required = ["type", *(setting.name for setting in found.settings.values() if setting.required)]
    then = _object({"type": {"const": name, "description": found.summary}, **_cache_settings(), **settings}, required)
    if found.others is not None:
        then["additionalProperties"] = _setting(kind_of(found.others), secret=False)
    return {"if": {"properties": {"type": {"const": name}}, "required": ["type"]}, "then": then}


def _preset(found: Preset) -> dict[str, object]:
    """Return the rule for the table of a preset: its own settings, and the required ones.

    The other settings of its provider's type are not checked: the schema would be many times as long.
    """
    from tokencache.providers.presets import preset_settings

    settings = preset_settings(found.name)
    shown = [setting for setting in settings.values() if setting.name in found.settings or setting.required]
    properties = {each.name: _setting(each.kind, each.secret, each.description) for each in shown}
    required = [each.name for each in shown if each.required]
    then: dict[str, object] = {
        "properties": {"preset": {"const": found.name, "description": found.title}, **properties},
        "required": required,
    }
    if found.any_of:
        then["anyOf"] = [{"required": [each]} for each in (*found.any_of, "client_auth")]
    return {"if": {"properties": {"preset": {"const": found.name}}, "required": ["preset"]}, "then": then}


def _cache_settings() -> dict[str, object]:
    """Return the settings of a provider's table that are for the cache."""
    texts: dict[str, object] = {
        "backend": _described(_TEXT, "A name of [backends], or a URL; by default the one above."),
        "key": _described(_TEXT, "The key of the record, used as it stands."),
        "policy": {"$ref": "#/definitions/policy"},
        "keep_warm": {"type": "boolean", "description": "Renew the token even if it is not used."},
    }
    return {name: texts[name] for name in RESERVED if name in texts}


def _setting(kind: Kind | None, secret: bool, description: str = "") -> Mapping[str, object]:
    """Return the form of a setting of this kind."""
    if kind is None:
        return {}
    if not secret and kind == TEXT:
        return _described(_TEXT, description)
    if secret:
        return _described(_SECRET, description)
    if kind.choices and not kind.basics:
        forms: list[Mapping[str, object]] = [{"enum": list(kind.choices)}]
    else:
        forms = [form for basic, form in _FORMS.items() if basic in kind.basics]
        forms += [{"enum": list(kind.choices)}] if kind.choices else []
    if "table" not in kind.basics:  # there a reference would look like any other table
        forms.append(_REFERENCE)
    return _described(forms[0] if len(forms) == 1 else {"anyOf": forms}, description)


def _described(form: Mapping[str, object], description: str) -> Mapping[str, object]:
    """Return a form with a description, if there is one."""
    if not description:
        return form
    return {
        "description": description,
        **({"allOf": [form]} if "$ref" in form else form),
    }  # editors ignore all keys beside a $ref


def _reference(kind: str, what: str, **more: str) -> dict[str, object]:
    """Return the form of one kind of reference."""
    named = {kind: what, **more, "default": "The value to use where the target is missing."}
    return _object({name: {"type": "string", "description": text} for name, text in named.items()}, [kind])


def _object(properties: Mapping[str, object], required: Iterable[str] = ()) -> dict[str, object]:
    """Return the form of a table with these settings and no other."""
    form: dict[str, object] = {"type": "object", "additionalProperties": False, "properties": dict(properties)}
    wanted = list(required)
    return form | {"required": wanted} if wanted else form
