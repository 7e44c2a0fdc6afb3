"""The place of a setting, and its mistake: a message names file, key and remedy, never a value."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Final, cast

from tokencache.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable

ENVIRONMENT: Final = "environment"
"""The name instead of a file for a setting from a variable."""

_BARE: Final = re.compile(r"[A-Za-z0-9_-]+")
_SHOWN: Final = 40  # characters of an unknown name


@dataclass(frozen=True, slots=True)
class Place:
    """A file and a dotted key in it, or ``environment`` and a variable."""

    file: str
    key: str = ""

    def at(self, name: object) -> Place:
        """Return the place of an entry: by name in the table here, or by number in the list here."""
        if isinstance(name, int):
            return Place(self.file, f"{self.key}[{name}]")
        text = str(name)[:_SHOWN]
        text = text if _BARE.fullmatch(text) else repr(text)
        return Place(self.file, f"{self.key}.{text}" if self.key else text)

    def __str__(self) -> str:
        """Return file and key, the beginning of a message."""
        return f"{self.file}: {self.key}" if self.key else self.file


def as_table(value: object) -> Mapping[str, object] | None:
    """Return the value if it is a table, else ``None``."""
    return cast("Mapping[str, object]", value) if isinstance(value, Mapping) else None


def as_list(value: object) -> list[object] | None:
    """Return the value if it is a list, else ``None``."""
    return cast("list[object]", value) if isinstance(value, list) else None


class Mistake(ConfigurationError):
    """The problem at a place, and the remedy."""

    def __init__(self, place: Place, problem: str, remedy: str) -> None:
        super().__init__(f"{place}: {problem}{'; ' if remedy else ''}{remedy}")
        self.place = place
        self.problem = problem
        self.remedy = remedy


def unknown(place: Place, what: str, name: object, names: Iterable[str]) -> Mistake:
    """Return the mistake of an unknown name, with the closest known one."""
    known = sorted(names)
    close = get_close_matches(str(name)[:_SHOWN].lower(), known, n=1)
    remedy = f"did you mean {close[0]!r}?" if close else f"remove it; known: {', '.join(known) or 'none'}"
    return Mistake(place, f"there is no {what} of this name", remedy)
