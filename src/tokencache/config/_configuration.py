"""Configuration: backends, providers, policy and encryption from ``tokencache.toml`` and ``TOKENCACHE_*`` variables.

docs/configuration.md describes the form. Secrets are kept elsewhere, and are read when a source that needs them is
made. Messages name file, key and remedy, but never a value (INV-9).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, Self, cast

from tokencache._default_backend import default_url
from tokencache.config._environ import environment_name, lay_over
from tokencache.config._file import VARIABLE, Tables, find, missing, read_file, take_apart
from tokencache.config._place import ENVIRONMENT, Mistake, Place, as_list, as_table, unknown
from tokencache.config._providers import Configured, Draft, draft, finish
from tokencache.config._references import ReferenceResolver, is_reference
from tokencache.config._types import BOOLEAN, NUMBER, TEXT, Given, read
from tokencache.errors import ConfigurationError, TokenCacheError
from tokencache.policy import RefreshPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

    from tokencache._crypto import Sealer
    from tokencache._engine.handle import Deferred
    from tokencache.ports import Backend
    from tokencache.url import BackendURL

_URL_PARTS: Final = ("url", "username", "password")


@dataclass(frozen=True, slots=True)
class Remark:
    """One finding of `tokencache config check`: place, severity, problem and remedy, without secrets."""

    file: str
    key: str
    severity: Literal["error", "warning"]
    problem: str
    remedy: str

    def as_dict(self) -> dict[str, object]:
        """Return plain values, fit for JSON."""
        return asdict(self)

    def line(self) -> str:
        """Return one line for a person."""
        where = f"{self.file}: {self.key}" if self.key else self.file
        return f"{self.severity:<8} {where}: {self.problem}{f'; {self.remedy}' if self.remedy else ''}"


class Configuration:
    """A configuration whose form is valid; its values are read when they are needed.

    ``fallback`` is the URL of the backend if neither the configuration nor a variable names one.
    """

    def __init__(self, tables: Tables, environ: Mapping[str, str], *, fallback: str = "memory://") -> None:
        self._tables = tables
        self._environ = environ
        self._source = ReferenceResolver(environ, tables.folder)
        self._fallback = fallback
        self._known_sealer: Sealer | None = None
        self._sealed = False

    @classmethod
    def load(
        cls,
        source: str | os.PathLike[str] | Mapping[str, object] | Configuration | None = None,
        *,
        environ: Mapping[str, str] | None = None,
    ) -> Configuration:
        """Return the configuration of a file or a mapping, or itself; ``None`` looks for the file.

        Raises ``ConfigurationError`` if it is missing or has an invalid form.
        """
        if isinstance(source, Configuration):
            return source
        environ = os.environ if environ is None else environ
        if source is None:
            source = find(environ)
        if source is None:
            raise missing()
        if isinstance(source, Mapping):
            return cls(take_apart(source, Place("configuration"), Path.cwd()), environ).right()
        return cls(read_file(source), environ).right()

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Self:
        """Return the configuration from variables; they override the file of ``TOKENCACHE_CONFIG``, if it is set."""
        environ = os.environ if environ is None else environ
        named = environ.get(VARIABLE)
        return cls.over(read_file(named) if named else None, environ).right()

    @classmethod
    def found(cls, path: str | None = None, *, fallback: str = "file://") -> Self:
        """Return the configuration of the command line: the given or found file, if any, and the variables."""
        found = path or find(os.environ)
        return cls.over(read_file(found) if found else None, os.environ, fallback=fallback)

    @classmethod
    def over(cls, tables: Tables | None, environ: Mapping[str, str], *, fallback: str = "memory://") -> Self:
        """Return the configuration of tables, overridden by variables; its form is not checked yet."""
        tables = tables or Tables(Place(ENVIRONMENT), Path.cwd())
        lay_over(tables, environ)
        return cls(tables, environ, fallback=fallback)

    def right(self) -> Self:
        """Return the configuration itself. Raises ``ConfigurationError`` for the first mistake in its form."""
        for mistake in self._tables.mistakes:
            raise mistake
        return self

    # --- the parts of a cache ----------------------------------------------------------------------------------

    @property
    def path(self) -> Path | None:
        """The file, if there is one."""
        return self._tables.path

    @property
    def names(self) -> Sequence[str]:
        """The names of the providers."""
        return list(self._tables.providers)

    @property
    def namespace(self) -> str:
        """The prefix of all derived keys."""
        given = self._tables.top.get("namespace")
        return "" if given is None else self._text(given)

    @property
    def policy(self) -> RefreshPolicy | None:
        """The policy of sources without their own, ``None`` if it is not set."""
        fields = self._tables.policy
        if not fields:
            return None
        values = {name: cast("float", read(NUMBER, given, self._source)) for name, given in fields.items()}
        for name, value in values.items():
            with _at(fields[name].place):
                RefreshPolicy(**{name: value})
        return RefreshPolicy(**values)

    @property
    def backend(self) -> str:
        """The default backend, a URL or a name: for each provider that does not name another."""
        given = self._tables.top.get("backend")
        if given is not None:
            return self._text(given)
        return default_url(self._environ, self._fallback)

    def is_main(self, name: str) -> bool:
        """Return whether this is the default backend."""
        with suppress(Mistake):  # a broken reference breaks only the sources that need it
            return name == self.backend
        return False

    def backend_url(self, name: str | None = None, place: Place | None = None) -> BackendURL:
        """Return the URL of a backend, given by name or as a URL; ``place`` is the setting that gives it."""
        from tokencache.url import BackendURL

        if name is None:
            given = self._tables.top.get("backend")
            name, place = self.backend, Place(ENVIRONMENT) if given is None else given.place
        place = place or Place("backend")
        entry = self._tables.backends.get(name)
        if entry is not None:
            return self._named_url(entry)
        if "://" not in name and self._tables.backends:
            mistake = unknown(place, "backend", name, self._tables.backends)
            raise Mistake(place, "this is neither a URL nor a name of [backends]", mistake.remedy)
        with _at(place):
            return BackendURL.parse(name)

    def deferred(self, name: str | None = None) -> Deferred:
        """Return a backend that is opened at its first use."""
        from tokencache._engine.handle import Deferred

        shown = "the configured backend" if name is None else name.partition("://")[0]
        return Deferred(shown, lambda: self._opened(name))

    def sealer(self) -> Sealer | None:
        """Return the sealer of records, ``None`` if records are not encrypted."""
        if not self._sealed:
            self._known_sealer = self._make_sealer()
            self._sealed = True
        return self._known_sealer

    def provider(self, name: str) -> Configured | None:
        """Return a new provider, so that a replaced secret is read again; ``None`` for an unknown name."""
        drawn = self._draft(name)
        if drawn is not None:
            return finish(drawn)
        if self.names:
            self._require_installed(name)
        return None

    # --- remarks ------------------------------------------------------------------------------------------------

    def remarks(self) -> Iterator[Remark]:
        """Yield all errors and warnings, with references resolved; nothing goes over a network."""
        found = [*self._tables.mistakes]
        for attempt in (lambda: self.namespace, lambda: self.policy, self.sealer, lambda: self._tried(None)):
            found += _mistakes(self._tables.place, attempt)
        for name, given in self._tables.backends.items():
            found += _mistakes(given.place, partial(self._tried, name))
        for name in self._tables.providers:
            found += self._mistakes_of(name)
        for mistake in found:
            place = mistake.place
            yield Remark(place.file, place.key, "error", mistake.problem, mistake.remedy)
        yield from self._doubts()

    def _mistakes_of(self, name: str) -> list[Mistake]:
        """Make a provider and return its mistakes."""
        drawn = self._draft(name)
        if drawn is None or drawn.mistakes:
            return [] if drawn is None else drawn.mistakes
        place = drawn.place

        def attempt() -> None:
            configured = finish(drawn)
            if configured.backend is not None:
                self._tried(configured.backend, place.at("backend"))
            sealer = None
            with suppress(ConfigurationError):  # reported by its own remark
                sealer = self.sealer()
            if sealer is not None:
                with _at(place):
                    sealer.admit(configured.provider)

        return _mistakes(place, attempt)

    def _doubts(self) -> Iterator[Remark]:
        """Yield warnings about secrets in the file, and about a file with secrets that others may read."""
        plain = list(self._plain_secrets())
        for place in plain:
            remedy = 'refer to it: { env = "NAME" }, { file = "path" } or { keyring = "service", user = "name" }'
            yield Remark(place.file, place.key, "warning", "a secret stands here in plain text", remedy)
        path = self._tables.path
        if plain and path is not None and path.stat().st_mode & 0o077:
            yield Remark(
                str(path), "", "warning", "others can read this file, and it holds a secret", f"chmod 600 {path}"
            )

    def _plain_secrets(self) -> Iterator[Place]:
        """Yield the place of each secret in the file."""
        for given in self._tables.backends.values():
            for part, value in (as_table(given.value) or {"": given.value}).items():
                if isinstance(value, str) and (part == "password" or (part in {"", "url"} and _has_password(value))):
                    yield given.place.at(part) if part else given.place
        backend = self._tables.top.get("backend")
        if (
            backend is not None
            and isinstance(backend.value, str)
            and not backend.spelled
            and _has_password(backend.value)
        ):
            yield backend.place
        keys = self._tables.encryption.get("keys")
        for number, key in enumerate(as_list(keys.value) or () if keys is not None else ()):
            if keys is not None and _is_plain(key):
                yield keys.place.at(number)
        for name, table in self._tables.providers.items():
            drawn = self._draft(name)
            for setting in drawn.schema.settings.values() if drawn is not None else ():
                stands = table.get(setting.name)
                if stands is not None and setting.secret and not stands.spelled and _is_plain(stands.value):
                    yield stands.place

    # --- reading ------------------------------------------------------------------------------------------------

    def _text(self, given: Given) -> str:
        """Return a text."""
        return cast("str", read(TEXT, given, self._source))

    def _require_installed(self, name: str) -> None:
        """Raise :class:`Mistake` for a provider that is neither configured nor installed."""
        from tokencache.plugins import PROVIDERS, is_known, known

        if name not in self.names and not is_known(PROVIDERS, name):
            names = {*self.names, *(plugin.name for plugin in known(PROVIDERS))}
            remedy = unknown(self._tables.place, "provider", name, names).remedy.replace("remove it", "use another")
            raise Mistake(self._tables.place, f"there is no provider {name[:40]!r}, neither here nor installed", remedy)

    def _draft(self, name: str) -> Draft | None:
        """Return the draft of a provider, ``None`` for a name without a table."""
        table = self._tables.providers.get(name)
        if table is None:
            return None
        file = self._tables.place.file
        place = Place(file).at("providers").at(name)
        if all(given.spelled for given in table.values()):
            place = Place(ENVIRONMENT, f"TOKENCACHE_PROVIDER_{environment_name(name)}_*")
        return draft(name, table, place, self._source)

    def _named_url(self, given: Given) -> BackendURL:
        """Return the URL of an entry of ``[backends]``: a text, a reference, or a table with ``url``."""
        from tokencache.url import BackendURL

        parts: dict[str, str] = {}
        table = as_table(given.value)
        if table is not None and not is_reference(table):
            for name, value in table.items():
                place = given.place.at(name)
                if name not in _URL_PARTS:
                    raise unknown(place, "setting of a backend", name, _URL_PARTS)
                parts[name] = self._text(Given(value, place))
            if "url" not in parts:
                raise Mistake(given.place, "url is missing", 'write { url = "redis://…", password = { env = "…" } }')
        else:
            parts["url"] = self._text(given)
        with _at(given.place):
            url = BackendURL.parse(parts["url"])
        return replace(url, username=parts.get("username", url.username), password=parts.get("password", url.password))

    def _opened(self, name: str | None, place: Place | None = None) -> Backend:
        """Open a backend."""
        from tokencache.plugins import open_backend

        url = self.backend_url(name, place)
        given = self._tables.backends.get(self.backend if name is None else name)
        if given is None and name is None:
            given = self._tables.top.get("backend")
        with _at(given.place if given is not None else place or Place(ENVIRONMENT)):
            return open_backend(url)

    def _tried(self, name: str | None, place: Place | None = None) -> None:
        """Open a backend and close it; opening does not connect."""
        self._opened(name, place).close()

    def _make_sealer(self) -> Sealer | None:
        """Read ``[encryption]``."""
        table = self._tables.encryption
        if not table:
            return None
        from tokencache._crypto import FROM_PROVIDER, Sealer, read_key

        if len(table) > 1:
            raise Mistake(table["keys"].place, "keys and from_provider exclude each other", "remove one of the two")
        derived = table.get("from_provider")
        if derived is not None:
            return Sealer(FROM_PROVIDER) if read(BOOLEAN, derived, self._source) else None
        given = table["keys"]
        if given.spelled and isinstance(given.value, str):
            texts = [Given(part, given.place) for part in given.value.split(",") if part.strip()]
        elif (several := as_list(given.value)) is not None:
            texts = [Given(key, given.place.at(number)) for number, key in enumerate(several)]
        else:
            raise Mistake(given.place, "this must be a list", 'write keys = [{ env = "NAME" }]')
        keys: list[bytes] = []
        for text in texts:
            key = self._text(text)
            with _at(text.place):
                keys.append(read_key(key, "encryption"))
        if not keys:
            raise Mistake(given.place, "the list of keys is empty", "add one, or remove [encryption]")
        with _at(given.place):
            return Sealer(keys)


@contextmanager
def _at(place: Place) -> Generator[None]:
    """Add the place to an error from code that does not know the file."""
    try:
        yield
    except Mistake:
        raise
    except ConfigurationError as error:
        raise Mistake(place, str(error), "") from error


def _mistakes(place: Place, attempt: Callable[[], object]) -> list[Mistake]:
    """Return the mistakes that an attempt raises."""
    try:
        attempt()
    except Mistake as mistake:
        return [mistake]
    except TokenCacheError as error:
        return [Mistake(place, str(error), "")]
    return []


def _is_plain(value: object) -> bool:
    """Return whether the value is a secret in plain text, itself or as the default of a reference."""
    if is_reference(value):
        return bool(value.get("default"))
    return isinstance(value, str) and bool(value)


def _has_password(url: str) -> bool:
    """Return whether a URL holds a password."""
    from tokencache.url import BackendURL

    with suppress(ConfigurationError):
        return BackendURL.parse(url).password is not None
    return False
