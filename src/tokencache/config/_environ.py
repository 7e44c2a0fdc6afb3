"""The variables of a configuration: ``TOKENCACHE_*``, which override the file.

``TOKENCACHE_PROVIDER_<NAME>_<SETTING>`` is split after the name of a known provider. The file has that provider, or a
variable ``…_TYPE`` or ``…_PRESET`` adds it. An unknown setting that ends in ``_FILE`` is a reference to that file.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from tokencache.config._file import ENCRYPTION, VARIABLE, policy_fields
from tokencache.config._place import ENVIRONMENT, Mistake, Place, unknown
from tokencache.config._types import Given

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tokencache.config._file import Tables

PREFIX: Final = "TOKENCACHE_"
_POLICY: Final = "TOKENCACHE_POLICY_"
_PROVIDER: Final = "TOKENCACHE_PROVIDER_"
_ENCRYPTION: Final = "TOKENCACHE_ENCRYPTION_"
_PLAIN: Final = ("TOKENCACHE_BACKEND", "TOKENCACHE_NAMESPACE")
_KINDS: Final = ("_TYPE", "_PRESET")

# Kubernetes sets these in every pod if a service's name begins with "tokencache".
_SERVICE: Final = re.compile(r"\w+_(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT(?:_\d+_(?:TCP|UDP|SCTP)(?:_\w+)?)?)")


def lay_over(tables: Tables, environ: Mapping[str, str]) -> None:
    """Override the file by the variables; an empty variable counts as not set."""
    named = {name: value for name, value in environ.items() if name.startswith(PREFIX) and value}
    named.pop(VARIABLE, None)
    providers = {name: value for name, value in named.items() if name.startswith(_PROVIDER)}
    for name, value in named.items():
        given = Given(value, Place(ENVIRONMENT, name), spelled=True)
        setting = name.removeprefix(PREFIX).lower()
        field = name.removeprefix(_POLICY).lower()
        if name in _PLAIN:
            tables.top[setting] = given
        elif name.startswith(_POLICY) and field in policy_fields():
            tables.policy[field] = given
        elif name.startswith(_ENCRYPTION) and setting.removeprefix("encryption_") in ENCRYPTION:
            tables.encryption = {setting.removeprefix("encryption_"): given}
        elif name not in providers and not _SERVICE.fullmatch(name):
            tables.mistakes.append(unknown(given.place, "variable of tokencache", name.lower(), _known()))
    if providers:
        _lay_providers(tables, providers)


def environment_name(provider: str) -> str:
    """Return a provider's name in the form of a variable."""
    return re.sub(r"[^A-Z0-9]", "_", provider.upper())


def _lay_providers(tables: Tables, variables: Mapping[str, str]) -> None:
    """Add each variable to its provider."""
    rests = {name.removeprefix(_PROVIDER): name for name in variables}
    names = {environment_name(name): name for name in tables.providers}
    names |= _brought_in({rest: variables[name] for rest, name in rests.items()}, names)
    longest_first = sorted(names, key=len, reverse=True)
    for rest, variable in rests.items():
        place = Place(ENVIRONMENT, variable)
        written = next((name for name in longest_first if rest.startswith(f"{name}_")), None)
        setting = "" if written is None else rest[len(written) + 1 :].lower()
        if written is None or not setting:
            problem = "this belongs to an unknown provider"
            remedy = f"set {_PROVIDER}<NAME>_TYPE, or add the table [providers.NAME] to the file"
            tables.mistakes.append(Mistake(place, problem, remedy))
            continue
        table = tables.providers.setdefault(names[written], {})
        if setting in {"type", "preset"}:
            table.pop("type" if setting == "preset" else "preset", None)
        table[setting] = Given(variables[variable], place, spelled=True)


def _brought_in(rests: Mapping[str, str], known: Iterable[str]) -> dict[str, str]:
    """Return the providers that variables add: ``X`` of ``X_TYPE``, but not ``X_GRANT`` of ``X_GRANT_TYPE``.

    If one name begins with another, the longer one needs a value that names a provider, and another setting.
    """
    from tokencache.plugins import PROVIDERS, is_known

    found: dict[str, str] = {}
    candidates = {
        rest.removesuffix(kind): rest for kind in _KINDS for rest in rests if rest.endswith(kind) and rest != kind
    }
    for name, rest in sorted(candidates.items(), key=lambda item: len(item[0])):
        within = any(name != other and name.startswith(f"{other}_") for other in (*known, *found))
        meant = any(other != rest and other.startswith(f"{name}_") for other in rests) and (
            rest.endswith("_PRESET") or is_known(PROVIDERS, rests[rest])
        )
        if name not in known and (not within or meant):
            found[name] = name.lower()
    return found


def _known() -> list[str]:
    """Return the known variables, in lower case."""
    fields = [f"{_POLICY}{name}" for name in policy_fields()]
    encryption = [f"{_ENCRYPTION}{name}" for name in ENCRYPTION]
    return [name.lower() for name in (*_PLAIN, VARIABLE, *encryption, *fields, f"{_PROVIDER}<NAME>_<SETTING>")]
