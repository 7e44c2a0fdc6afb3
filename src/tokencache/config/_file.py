"""The file of a configuration: found, read, and split into tables whose values know their place."""

from __future__ import annotations

import logging
import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tokencache._files import content_of, expanded
from tokencache.config._place import Mistake, Place, as_table, unknown
from tokencache.config._types import Given
from tokencache.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

VARIABLE: Final = "TOKENCACHE_CONFIG"
NAME: Final = "tokencache.toml"

TABLES: Final[Mapping[str, str]] = {
    "namespace": 'a text: namespace = "orders:"',
    "backend": "a URL, or a name of [backends]",
    "backends": "a table: [backends]",
    "policy": "a table: [policy]",
    "encryption": "a table: [encryption]",
    "providers": "tables: [providers.NAME]",
}
ENCRYPTION: Final = ("keys", "from_provider")

_log: Final = logging.getLogger("tokencache")
_AT: Final = re.compile(r"\(at line (\d+), column (\d+)\)")


@dataclass(slots=True)
class Tables:
    """A configuration split into tables. Invalid entries are listed in ``mistakes`` and omitted."""

    place: Place
    folder: Path
    path: Path | None = None
    top: dict[str, Given] = field(default_factory=dict[str, Given])
    backends: dict[str, Given] = field(default_factory=dict[str, Given])
    policy: dict[str, Given] = field(default_factory=dict[str, Given])
    encryption: dict[str, Given] = field(default_factory=dict[str, Given])
    providers: dict[str, dict[str, Given]] = field(default_factory=dict[str, dict[str, Given]])
    mistakes: list[Mistake] = field(default_factory=list[Mistake])


def find(environ: Mapping[str, str]) -> Path | None:
    """Return the file of ``TOKENCACHE_CONFIG``, else the one in the working folder, ``None`` without both.

    Raises ``ConfigurationError`` for a file in the working folder that another user owns or can write to: it could
    send this user's secrets to any address.
    """
    named = environ.get(VARIABLE)
    if named:
        return Path(named)
    path = Path(NAME)
    if not path.exists():
        return None
    why = _untrusted(path)
    if why is not None:
        raise Mistake(Place(str(path.absolute())), why, f"read it, then name it by hand: --config or {VARIABLE}")
    return path


def _untrusted(path: Path) -> str | None:
    """Return why a file that was found is not trusted, ``None`` if only this user and root can change it."""
    if os.name != "posix":
        return None
    about = path.stat()
    if about.st_uid not in {os.getuid(), 0}:
        return "another user owns this file"
    if about.st_mode & stat.S_IWOTH or (about.st_mode & stat.S_IWGRP and not _is_own_group(about.st_gid)):
        return "other users can write to this file"
    return None


def _is_own_group(group: int) -> bool:
    """Return whether a group has this user as its only member, as on systems with a group for each user."""
    import grp
    import pwd

    try:
        me, members = pwd.getpwuid(os.getuid()), grp.getgrgid(group).gr_mem
    except KeyError:
        return False
    return me.pw_gid == group and set(members) <= {me.pw_name}


def read_file(path: str | os.PathLike[str]) -> Tables:
    """Return the tables of a TOML file; raises ``ConfigurationError`` if it cannot be read."""
    import tomllib

    path = Path(path)
    place = Place(str(path))
    problem: str | None = None
    document: dict[str, object] = {}
    try:
        path = expanded(path)
        document = tomllib.loads(content_of(path, pipes=True).decode())
        if (why := _untrusted(path)) is not None:
            _log.warning("%s: %s, so they can read and redirect the secrets that it names", path, why)
        _log.info("the configuration is that of %s", path.absolute())
    except FileNotFoundError:
        problem = "there is no such file"
    except OSError as error:
        problem = error.strerror or "it cannot be read"
    except tomllib.TOMLDecodeError as error:
        raise _syntax(place, str(error)) from None
    except UnicodeDecodeError as error:
        problem = f"it is not UTF-8 text (byte {error.start})"
    except (RecursionError, ValueError) as error:  # a number of thousands of digits is a ValueError
        what = "it is nested too deeply" if isinstance(error, RecursionError) else "a number in it is too long"
        raise Mistake(place, what, "correct the file") from None
    if problem is not None:
        raise Mistake(place, problem, f"correct the path: --config, {VARIABLE}, or {NAME} in the working folder")
    return take_apart(document, place, path.absolute().parent, path)


def take_apart(document: Mapping[str, object], place: Place, folder: Path, path: Path | None = None) -> Tables:
    """Return the tables of a document, with all mistakes of its form."""
    tables = Tables(place, folder, path)
    for name, value in document.items():
        where = place.at(name)
        if name not in TABLES:
            tables.mistakes.append(unknown(where, "setting", name, TABLES))
        elif name in {"namespace", "backend"}:
            tables.top[name] = Given(value, where)
        elif (table := as_table(value)) is not None:
            _take_table(tables, name, table, where)
        else:
            tables.mistakes.append(Mistake(where, f"this must be {TABLES[name]}", "correct it"))
    return tables


def missing() -> ConfigurationError:
    """Return the error for a missing configuration; it names both ways to give one."""
    return ConfigurationError(
        f"there is no configuration: set {VARIABLE} to the path of a TOML file, or put {NAME} into the working folder"
    )


def _take_table(tables: Tables, name: str, value: Mapping[str, object], where: Place) -> None:
    """Split one of the tables."""
    given = {key: Given(each, where.at(key)) for key, each in value.items()}
    if name == "providers":
        for provider, each in given.items():
            table = as_table(each.value)
            if table is not None:
                tables.providers[provider] = {key: Given(part, each.place.at(key)) for key, part in table.items()}
            else:
                tables.mistakes.append(Mistake(each.place, "this must be a table", f"write [providers.{provider}]"))
    elif name == "backends":
        tables.backends = given
    elif name == "policy":
        tables.policy = _only(tables, given, policy_fields(), "field of the policy")
    else:
        tables.encryption = _only(tables, given, ENCRYPTION, "setting of the encryption")


def policy_fields() -> Sequence[str]:
    """Return the names of a policy's fields."""
    from dataclasses import fields

    from tokencache.policy import RefreshPolicy

    return [each.name for each in fields(RefreshPolicy)]


def _only(tables: Tables, given: dict[str, Given], known: Sequence[str], what: str) -> dict[str, Given]:
    """Return the entries with a known name; the others become mistakes."""
    tables.mistakes += [unknown(each.place, what, name, known) for name, each in given.items() if name not in known]
    return {name: each for name, each in given.items() if name in known}


def _syntax(place: Place, message: str) -> Mistake:
    """Return the mistake of invalid TOML, with its place."""
    found = _AT.search(message)
    what = _AT.sub("", message).strip()
    at = f"line {found[1]}, column {found[2]}" if found else "at its end"
    return Mistake(place, f"{at}: this is not TOML: {what}", "correct that line")
