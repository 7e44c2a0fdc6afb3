"""Plugins: our own backends and providers, and those that installed distributions declare as entry points.

Each entry is loaded at its first use; listing the entries loads nothing. Ours are in a table of this module, so they
are found where the metadata of distributions are missing: in a zipapp, or in a program packed by PyInstaller. Only
other names are looked up in the metadata, and no other distribution can replace an entry of ours.

``redis+sentinel://`` is the entry ``redis.sentinel`` of the group ``tokencache.backends``. An entry that needs an
extra of its distribution names it: ``redis = "tokencache.backends.redis:from_url [redis]"``.

A backend's entry point is a callable that takes a :class:`~tokencache.url.BackendURL`. A provider's entry point is a
function or a class. ``cache.source("qpay")`` calls it without arguments. A table of a configuration
(``[providers.shop]`` with ``type = "qpay"``) calls it with the table's settings as keywords, and with the table's
name as ``name=`` if it has that parameter. Its signature is the schema of the table: names, defaults and type hints,
also those of ``**options: Unpack[SomeTypedDict]``. A configuration can hold ``str``, ``int``, ``float``, ``bool``,
``Literal`` of them, sequences of ``str``, ``Mapping[str, str]``, and unions of these with ``None``.
:data:`tokencache.ports.SecretText` marks what no file should hold in plain text. A parameter of another type is for
code only. A table's ``backend``, ``key``, ``policy`` and ``keep_warm`` belong to the cache. The module must import
the types at run time, not only under ``TYPE_CHECKING``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import wraps
from importlib import import_module
from typing import TYPE_CHECKING, Final, ParamSpec, TypeVar, cast

from tokencache.errors import BackendConflict, BackendNotInstalled, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from importlib.metadata import EntryPoint

    from tokencache.errors import TokenCacheError
    from tokencache.ports import Backend, TokenProvider
    from tokencache.url import BackendURL

BACKENDS: Final = "tokencache.backends"
PROVIDERS: Final = "tokencache.providers"

_NAME: Final = "tokencache"
_REDIS: Final = "tokencache.backends.redis:from_url [redis]"
_OURS: Final[Mapping[str, Mapping[str, str]]] = {
    BACKENDS: {
        "file": "tokencache.backends.file:from_url",
        "memcached": "tokencache.backends.memcached:from_url [memcached]",
        "memory": "tokencache.backends.memory:from_url",
        "redis": _REDIS,
        "rediss": _REDIS,
        "unix": _REDIS,
        "redis.sentinel": _REDIS,
        "redis.cluster": _REDIS,
    },
    PROVIDERS: {
        "client_credentials": "tokencache.providers.oauth2:ClientCredentials [jose]",
        "custom_grant": "tokencache.providers.oauth2:CustomGrant",
        "jwt_bearer": "tokencache.providers.oauth2:JWTBearer [jose]",
        "password": "tokencache.providers.oauth2:Password",
        "qpay": "tokencache_qpay.provider:from_env",
        "refresh_token": "tokencache.providers.oauth2:RefreshToken",
        "token_exchange": "tokencache.providers.oauth2:TokenExchange",
    },
}

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Plugin:
    """One declared entry: its ``name`` in ``group``, the distribution that declares it, and the object it names."""

    name: str
    group: str
    distribution: str
    version: str
    value: str


@dataclass(frozen=True, slots=True)
class _Entry:
    """A plugin, and the function that imports its object."""

    plugin: Plugin
    load: Callable[[], object]


@dataclass(frozen=True, slots=True)
class _Errors:
    """The noun of a group's entries in messages, and the errors that it raises."""

    noun: str
    conflict: type[TokenCacheError]
    not_installed: type[TokenCacheError]


_ERRORS: Final = {
    BACKENDS: _Errors("backend", BackendConflict, BackendNotInstalled),
    PROVIDERS: _Errors("provider", ConfigurationError, ConfigurationError),
}


def known(group: str) -> list[Plugin]:
    """Return the declared entries of a group, by name, and load nothing; a name claimed twice appears twice."""
    entries = [entry.plugin for entry in _entries(group)]
    return sorted(entries, key=lambda plugin: (plugin.name, plugin.distribution))


def is_known(group: str, name: str) -> bool:
    """Return whether a group has an entry of that name."""
    return name in _OURS[group] or any(entry.plugin.name == name for entry in _foreign(group))


def own_version() -> str:
    """Return the version of tokencache, ``"?"`` where its metadata are missing."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(_NAME)
    except PackageNotFoundError:
        return "?"


def load_backend_factory(url: BackendURL) -> Callable[[BackendURL], Backend]:
    """Return the factory of a URL's backend.

    Raises ``ConfigurationError`` for an unknown scheme or a broken entry, and ``BackendConflict`` if two distributions
    claim the scheme. It, or a call of the factory, raises ``BackendNotInstalled`` if the client library is missing.
    """
    return cast("Callable[[BackendURL], Backend]", _load(BACKENDS, url.entry_point))


def open_backend(url: str | BackendURL) -> Backend:
    """Make the backend that a URL names; raises what :func:`load_backend_factory` and its factory raise."""
    from tokencache.url import BackendURL

    parsed = BackendURL.parse(url) if isinstance(url, str) else url
    return load_backend_factory(parsed)(parsed)


def load_provider_factory(name: str) -> Callable[..., TokenProvider]:
    """Return the factory of the provider with this entry-point name.

    Raises ``ConfigurationError`` for an unknown name, a broken entry, a conflict or a missing library.
    """
    return cast("Callable[..., TokenProvider]", _load(PROVIDERS, name))


def _load(group: str, name: str) -> Callable[..., object]:
    """Load the entry of that name."""
    entry = _find(group, name)
    errors = _ERRORS[group]
    try:
        factory: object = entry.load()
    except ImportError as error:
        raise errors.not_installed(_missing(entry, errors.noun, error)) from error
    except Exception as error:
        raise ConfigurationError(_broken(entry, errors.noun, f"raised {type(error).__name__}")) from error
    if not callable(factory):
        raise ConfigurationError(_broken(entry, errors.noun, "is not callable"))
    return _translated(factory, entry, errors)


def _translated(factory: Callable[P, R], entry: _Entry, errors: _Errors) -> Callable[P, R]:
    """Return the factory with its import errors translated: it may import its client library only when called."""

    @wraps(factory)
    def make(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return factory(*args, **kwargs)
        except ImportError as error:
            raise errors.not_installed(_missing(entry, errors.noun, error)) from error

    return make


def _find(group: str, name: str) -> _Entry:
    """Return the entry of that name; metadata are read only for a name that is not ours."""
    if name in _OURS[group]:
        return _own(group, name, "?")
    errors = _ERRORS[group]
    entries = _foreign(group)
    found = [entry for entry in entries if entry.plugin.name == name]
    if not found:
        raise ConfigurationError(_unknown(group, name, {*_OURS[group], *(entry.plugin.name for entry in entries)}))
    if len(found) > 1:
        claims = " and ".join(f"{entry.plugin.distribution} {entry.plugin.version}" for entry in found)
        message = f"the {errors.noun} {name!r} is claimed by {claims}; uninstall one of them"
        raise errors.conflict(message)
    return found[0]


def _entries(group: str) -> list[_Entry]:
    """Return the entries of a group, ours first."""
    version = own_version()
    return [*(_own(group, name, version) for name in _OURS[group]), *_foreign(group)]


def _own(group: str, name: str, version: str) -> _Entry:
    """Return an entry of ours."""
    value = _OURS[group][name]
    module, _, attribute = value.partition(" ")[0].partition(":")
    return _Entry(Plugin(name, group, _NAME, version, value), lambda: getattr(import_module(module), attribute))


def _foreign(group: str) -> list[_Entry]:
    """Return the entries of other distributions, one per name and distribution.

    A distribution may be found twice, for example as an editable installation beside old metadata. Python imports the
    first one on ``sys.path``.
    """
    from importlib.metadata import entry_points

    first: dict[tuple[str, str], _Entry] = {}
    for entry in entry_points(group=group):
        plugin = _describe(entry)
        if plugin.distribution != _NAME:  # an older release of ours declared its entries
            first.setdefault((plugin.name, plugin.distribution), _Entry(plugin, entry.load))
    return list(first.values())


def _describe(entry: EntryPoint) -> Plugin:
    """Return an entry with its distribution."""
    metadata = None if entry.dist is None else entry.dist.metadata
    name = metadata["Name"] if metadata is not None and "Name" in metadata else "an unnamed distribution"
    version = metadata["Version"] if metadata is not None and "Version" in metadata else "?"
    return Plugin(entry.name, entry.group, name, version, entry.value)


def _unknown(group: str, name: str, names: set[str]) -> str:
    """Return the message for a name that is neither ours nor declared by a distribution."""
    from difflib import get_close_matches

    shown = sorted(_shown(group, each) for each in names)
    asked = _shown(group, name)
    close = get_close_matches(asked, shown, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"there is no {_ERRORS[group].noun} {asked!r}; known: {', '.join(shown)}{hint}"


def _shown(group: str, name: str) -> str:
    """Return a name as users write it: a URL's scheme has a plus where the entry point has a dot."""
    return name.replace(".", "+") if group == BACKENDS else name


def _missing(entry: _Entry, noun: str, error: ImportError) -> str:
    """Return the message for a library that is missing or too old, with the line that installs it."""
    needed = f"the module {error.name!r}" if error.name else "a module"
    _, bracket, extras = entry.plugin.value.partition("[")
    what = f"the {noun} {entry.plugin.name!r} needs {needed}, which could not be imported"
    return f"{what}: pip install '{entry.plugin.distribution}{bracket}{extras}'"


def _broken(entry: _Entry, noun: str, what: str) -> str:
    """Return the message for an entry that does not name a factory."""
    plugin = entry.plugin
    return (
        f"the {noun} {plugin.name!r} of {plugin.distribution} {plugin.version} is broken: {plugin.value!r} {what};"
        " upgrade or reinstall that distribution"
    )
