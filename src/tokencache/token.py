"""The token: an immutable access token with its expiry, which never shows its value."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NoReturn, cast

if TYPE_CHECKING:
    from collections.abc import Mapping

_NOTHING: Final[Mapping[str, object]] = MappingProxyType({})
_FAR: Final = 1e14
_NUMBERS: Final = (int, float)
_VISIBLE: Final = bytes(range(0x21, 0x7F))
_FIELDS: Final = (
    "value",
    "expires_at",
    "issued_at",
    "token_type",
    "scope",
    "refresh_token",
    "refresh_expires_at",
    "extra",
)


class Token:
    """An access token with its expiry and the other fields of the response.

    ``value`` goes into the header: one or more visible ASCII characters (RFC 6750 section 2.1, read leniently). It is
    checked here, so no later step can send a line break. ``expires_at`` and ``issued_at`` are float epoch seconds, by
    the issuer's clock if it is known. ``expires_at`` is the true expiry, before any ``early``. ``token_type`` is the
    scheme; any spelling of ``bearer`` becomes ``Bearer``. ``scope`` is the granted scope, ``None`` if the response
    omits it. ``refresh_token`` and ``refresh_expires_at`` belong to the provider. ``extra`` holds the other fields.

    Two tokens are equal when all fields are. ``repr`` and ``str`` never hold ``value``, ``refresh_token`` or the
    values of ``extra`` (INV-9).

    Raises ``ValueError`` for an unusable value, type or instant; the message does not repeat it.
    """

    __slots__ = _FIELDS

    value: str
    expires_at: float
    issued_at: float
    token_type: str
    scope: str | None
    refresh_token: str | None
    refresh_expires_at: float | None
    extra: Mapping[str, object]

    def __init__(
        self,
        value: str,
        *,
        expires_at: float,
        issued_at: float,
        token_type: str = "Bearer",
        scope: str | None = None,
        refresh_token: str | None = None,
        refresh_expires_at: float | None = None,
        extra: Mapping[str, object] | None = None,
    ) -> None:
        _require_visible("value", value)
        if token_type != "Bearer":
            _require_visible("token_type", token_type)
            if token_type.lower() == "bearer":
                token_type = "Bearer"
        if not (type(expires_at) is type(issued_at) is float and -_FAR < expires_at < _FAR > issued_at > -_FAR):
            expires_at, issued_at = _instant("expires_at", expires_at), _instant("issued_at", issued_at)
        store = object.__setattr__
        store(self, "value", value)
        store(self, "expires_at", expires_at)
        store(self, "issued_at", issued_at)
        store(self, "token_type", token_type)
        store(self, "scope", scope)
        store(self, "refresh_token", refresh_token)
        store(self, "refresh_expires_at", refresh_expires_at)
        store(self, "extra", MappingProxyType(dict(extra)) if extra else _NOTHING)

    @property
    def authorization(self) -> str:
        """The value of the ``Authorization`` header, for example ``Bearer eyJ…``."""
        return f"{self.token_type} {self.value}"

    @property
    def lifetime(self) -> float:
        """The whole life of the token in seconds, from its issue to its true expiry."""
        return self.expires_at - self.issued_at

    def replace(self, **changes: Any) -> Token:  # noqa: ANN401  (a field's value)
        """Return a copy with the given fields changed; it is checked like a new token."""
        fields: dict[str, Any] = self.__getstate__() | changes
        return Token(**fields)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        """Refuse: a token is immutable."""
        message = f"a Token is immutable; {name!r} cannot be set"
        raise AttributeError(message)

    def __delattr__(self, name: str) -> NoReturn:
        """Refuse: a token is immutable."""
        message = f"a Token is immutable; {name!r} cannot be deleted"
        raise AttributeError(message)

    def __eq__(self, other: object) -> bool:
        """Return whether all fields are equal."""
        if not isinstance(other, Token):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in _FIELDS)

    def __hash__(self) -> int:
        """Return a hash of value and expiry."""
        return hash((self.value, self.expires_at))

    def __repr__(self) -> str:
        """Return type, expiry and scope; secrets appear only as ``<hidden>``."""
        parts = [f"<hidden>, token_type={self.token_type!r}, expires_at={self.expires_at!r}"]
        if self.scope is not None:
            parts.append(f"scope={self.scope!r}")
        if self.refresh_token is not None:
            parts.append("refresh_token=<hidden>")
        if self.extra:
            parts.append(f"extra=<{len(self.extra)} hidden>")
        return f"Token({', '.join(parts)})"

    def __getstate__(self) -> dict[str, object]:
        """Return the fields for ``pickle`` and ``copy``; a pickle therefore holds the secret."""
        state = {name: getattr(self, name) for name in _FIELDS}
        state["extra"] = dict(self.extra)
        return state

    def __setstate__(self, state: dict[str, object]) -> None:
        """Restore the fields."""
        for name, value in state.items():
            stored = MappingProxyType(cast("dict[str, object]", value)) if name == "extra" else value
            object.__setattr__(self, name, stored)


def _require_visible(name: str, text: object) -> None:
    """Raise ``ValueError`` unless ``text`` is a non-empty string of visible ASCII characters."""
    if not isinstance(text, str) or not text or not text.isascii() or text.encode().translate(None, _VISIBLE):
        message = f"a token's {name} must be a non-empty string of visible ASCII characters without spaces"
        raise ValueError(message)


def _instant(name: str, instant: object) -> float:
    """Return a finite number as float; raises ``ValueError`` for anything else."""
    if not isinstance(instant, _NUMBERS) or isinstance(instant, bool) or not -_FAR < instant < _FAR:
        message = f"a token's {name} must be finite epoch seconds"
        raise ValueError(message)
    return float(instant)
