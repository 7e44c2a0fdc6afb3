"""Backend URLs: ``scheme://[user[:password]@][host[:port],…][/path][?option=value&…]``, with the password hidden."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal, NoReturn, Self, TypeAlias

from tokencache.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

OptionKind: TypeAlias = type[float] | type[int] | type[bool] | type[str] | Literal["duration"]
OptionValue: TypeAlias = float | int | bool | str
Host: TypeAlias = tuple[str, int | None]

_EXAMPLES: Final = "redis://localhost:6379/0, file:///var/cache/tokens or memory://"
_ENCODE_HINT: Final = "in a user name or password write ':' as %3A, '/' as %2F, '?' as %3F, '#' as %23, '@' as %40"
_SCHEME: Final = re.compile(r"[a-z][a-z0-9.+-]*")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_BAD_PERCENT: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_ESCAPE: Final = re.compile(rb"%([0-9A-Fa-f]{2})")
_LOGIN: Final = re.compile(":.*@")
_HOST: Final = re.compile(
    r"(?:\[(?P<v6>[0-9A-Fa-f:.]+(?:%25[\w.-]+)?)\]|(?P<name>[^\s:\[\]@%]+))(?::(?P<port>[0-9]{1,5}))?"
)
_SENSITIVE: Final = re.compile("pass|secret|token|key|auth|cred|crypt|salt|pin|pwd", re.IGNORECASE)
_WHOLE: Final = re.compile(r"[+-]?[0-9]{1,18}")
_DECIMAL: Final = re.compile(r"[+-]?[0-9]{1,18}(?:\.[0-9]{1,18})?")
_DURATION: Final = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,18})?)(ms|s|m|h|d)?")
_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_TRUE: Final = ("true", "1", "yes", "on")
_FALSE: Final = ("false", "0", "no", "off")


@dataclass(frozen=True, slots=True, repr=False)
class BackendURL:
    """The parts of a backend's URL.

    ``hosts`` are pairs of host and port (``None`` without a port); ``file:///path`` has no host. ``path`` begins with a
    slash or is empty. ``options`` come from the query. Everything is percent-decoded. ``str`` and ``repr`` show ``***``
    for the password and for options whose names suggest a secret (INV-9).
    """

    scheme: str
    username: str | None = None
    password: str | None = None
    hosts: tuple[Host, ...] = ()
    path: str = ""
    options: Mapping[str, str] = field(default_factory=dict[str, str], hash=False)

    def __post_init__(self) -> None:
        """Make the options immutable."""
        object.__setattr__(self, "options", MappingProxyType(dict(self.options)))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the parts of a URL; raises ``ConfigurationError``, whose message holds no secret."""
        if _CONTROL.search(text):
            _refuse("it holds a control character, perhaps a line break at its end; remove it")
        scheme, separator, rest = text.partition("://")
        scheme = scheme.lower()
        if not separator or not _SCHEME.fullmatch(scheme):
            _refuse(f"it does not begin with a scheme; write for example {_EXAMPLES}")
        if "#" in rest:
            _refuse(f"it holds a '#'; {_ENCODE_HINT}")
        place, _, query = rest.partition("?")
        authority, slash, path = place.partition("/")
        # An unencoded '/' or '?' cuts a password in two: its second half must not become a path or an option.
        if "@" in query or ("@" in path if authority else _LOGIN.search(path)):
            _refuse(f"there is an '@' after the host; {_ENCODE_HINT}, everywhere else write %40 for '@'")
        userinfo, _, hosts = authority.rpartition("@")
        username, _, password = userinfo.partition(":")
        return cls(
            scheme,
            _clean(_decoded(username)) or None,
            _decoded(password) or None,
            tuple(map(_parse_host, hosts.split(","))) if hosts else (),
            _clean(_decoded(slash + path)),
            _parse_options(query),
        )

    @property
    def entry_point(self) -> str:
        """The name of the backend's entry point: ``redis.sentinel`` for ``redis+sentinel``."""
        return self.scheme.replace("+", ".")

    def typed_options(self, kinds: Mapping[str, OptionKind]) -> dict[str, OptionValue]:
        """Return the options of the URL, each converted to its kind in ``kinds``.

        A ``"duration"`` is a number with or without a unit (``500ms``, ``30``, ``5m``, ``1h``, ``1d``), returned in
        seconds. Raises ``ConfigurationError`` for an option that is not in ``kinds`` or does not convert.
        """
        values: dict[str, OptionValue] = {}
        for name, text in self.options.items():
            if name not in kinds:
                self._refuse_option(name, kinds)
            read, expected = _READERS[kinds[name]]
            value = read(text)
            if value is None:
                message = f"the option {name!r} of {self.scheme}:// must be {expected}"
                raise ConfigurationError(message)
            values[name] = value
        return values

    def __str__(self) -> str:
        """Return the URL with its secrets hidden."""
        password = ":***" if self.password is not None else ""
        user = f"{self.username or ''}{password}@" if self.username or password else ""
        hosts = ",".join(map(_format_host, self.hosts))
        shown = {name: "***" if _SENSITIVE.search(name) else value for name, value in self.options.items()}
        options = "&".join(f"{name}={value}" for name, value in shown.items())
        return f"{self.scheme}://{user}{hosts}{self.path}{'?' if options else ''}{options}"

    def __repr__(self) -> str:
        """Return the URL with its secrets hidden, as a call."""
        return f"BackendURL({str(self)!r})"

    def __reduce__(self) -> tuple[object, ...]:
        """Return what ``pickle`` and ``copy`` need; a pickle therefore holds the password."""
        parts = (self.scheme, self.username, self.password, self.hosts, self.path, dict(self.options))
        return (type(self), parts)

    def _refuse_option(self, name: str, kinds: Mapping[str, OptionKind]) -> NoReturn:
        """Raise ``ConfigurationError`` for an unknown option."""
        from difflib import get_close_matches

        known = ", ".join(sorted(kinds)) or "none"
        close = get_close_matches(name, kinds, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        message = f"{self.scheme}:// has no option {name[:40]!r}; known: {known}{hint}"
        raise ConfigurationError(message)


def _parse_host(text: str) -> Host:
    """Return host and port."""
    match = _HOST.fullmatch(text)
    if match is None:
        _refuse(f"a host or port is wrong; write host:port, [IPv6]:port or several with commas; {_ENCODE_HINT}")
    port = None if match["port"] is None else int(match["port"])
    if port is not None and not 1 <= port <= 65535:  # noqa: PLR2004
        _refuse("a port is out of range; use 1 to 65535")
    return (match["name"] or match["v6"].replace("%25", "%"), port)


def _format_host(host: Host) -> str:
    """Return host and port as in a URL."""
    name, port = host
    shown = f"[{name.replace('%', '%25')}]" if ":" in name else name
    return shown if port is None else f"{shown}:{port}"


def _parse_options(query: str) -> dict[str, str]:
    """Return the options of a query."""
    options: dict[str, str] = {}
    for pair in filter(None, query.split("&")):
        raw_name, separator, value = pair.partition("=")
        name = _clean(_decoded(raw_name))
        if not separator or not name:
            _refuse("an option has no name or no value; write ?option=value&option=value")
        if name in options:
            _refuse(f"the option {name[:40]!r} is given twice; keep one")
        options[name] = _clean(_decoded(value))
    return options


def _decoded(text: str) -> str:
    """Return ``text`` with its percent-encoding undone."""
    if "%" not in text:
        return text
    if _BAD_PERCENT.search(text):
        _refuse("a '%' is not followed by two hexadecimal digits; write '%' itself as %25")
    raw = _ESCAPE.sub(lambda match: bytes.fromhex(match[1].decode()), text.encode("utf-8", "surrogatepass"))
    decoded: str | None = None
    with suppress(UnicodeDecodeError):
        decoded = raw.decode()
    if decoded is None:
        _refuse("its percent-encoding is not valid UTF-8; encode it again as UTF-8")
    return decoded


def _clean(text: str) -> str:
    """Return the decoded text unchanged; raises ``ConfigurationError`` if it holds a control character."""
    if _CONTROL.search(text):
        _refuse("it holds a percent-encoded control character; remove it")
    return text


def _refuse(why: str) -> NoReturn:
    """Raise ``ConfigurationError``."""
    message = f"the backend URL is not usable: {why}"
    raise ConfigurationError(message)


def _read_boolean(text: str) -> bool | None:
    """Return a boolean, ``None`` for any other text."""
    text = text.lower()
    return text in _TRUE if text in _TRUE + _FALSE else None


def _read_duration(text: str) -> float | None:
    """Return a duration in seconds, ``None`` for any other text."""
    match = _DURATION.fullmatch(text)
    return None if match is None else float(match[1]) * _UNITS[match[2] or "s"]


_READERS: Final[Mapping[OptionKind, tuple[Callable[[str], OptionValue | None], str]]] = {
    str: (lambda text: text, "a text"),
    int: (lambda text: int(text) if _WHOLE.fullmatch(text) else None, "a whole number"),
    float: (lambda text: float(text) if _DECIMAL.fullmatch(text) else None, "a number, for example 2.5"),
    bool: (_read_boolean, "true or false"),
    "duration": (_read_duration, "a duration, for example 30, 30s, 500ms, 5m or 1h"),
}
