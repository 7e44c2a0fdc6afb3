"""``CallableProvider``: a plain function, sync or async, as a provider."""

from __future__ import annotations

import inspect
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeAlias, cast

from tokencache.errors import ConfigurationError, ProviderUnavailable
from tokencache.providers.oauth_response import token_from_mapping
from tokencache.token import Token

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import Self

    from tokencache.ports import FetchContext

__all__ = ["CallableProvider"]

Answer: TypeAlias = Token | Mapping[str, object]
_Function: TypeAlias = "Callable[[], Answer | Awaitable[Answer]] | Callable[[FetchContext], Answer | Awaitable[Answer]]"


class CallableProvider:
    """A provider made of a function with no argument or one, the :class:`~tokencache.ports.FetchContext`.

    The function returns a :class:`Token`, or the OAuth response as a mapping, whose expiry is read as usual. ``key``
    says which token it is and is the whole identity. ``name`` is for events and messages; by default it is ``key``.

    A sync function makes a provider with ``fetch`` only, an async function one with ``afetch`` only. Errors of
    tokencache that the function raises go through. The engine turns any other exception into ``ProviderUnavailable``
    without its text, which may hold a secret (INV-9).

    Raises ``ConfigurationError`` for a function that takes other arguments, or an empty key.
    """

    def __new__(cls, function: _Function, *, key: str, name: str | None = None) -> Self:
        """Make the sync or the async provider, as the function is."""
        del key, name
        if cls is CallableProvider:
            return cast("Self", object.__new__(_AsyncCallable if _is_async(function) else _SyncCallable))
        return object.__new__(cls)

    def __init__(self, function: _Function, *, key: str, name: str | None = None) -> None:
        if not key:
            message = "CallableProvider: give key=…, the name of its token; a function has no identity of its own"
            raise ConfigurationError(message)
        self.name = name or key
        self._key = key
        self._function = cast("Callable[..., object]", function)
        self._takes_context = _takes_context(self._function, self.name)

    def identity(self) -> Mapping[str, object]:
        """Return the key that the caller gave."""
        return {"key": self._key}

    def __repr__(self) -> str:
        """Return a text without anything that the function holds."""
        return f"<CallableProvider {self.name!r}>"

    def _call(self, context: FetchContext) -> object:
        return self._function(context) if self._takes_context else self._function()

    def _token(self, answer: object, before_wall: float, context: FetchContext) -> Token:
        """Return the token that an answer is or describes."""
        if isinstance(answer, Token):
            return _as_of(answer, before_wall)
        if isinstance(answer, Mapping):
            fields = cast("Mapping[str, object]", answer)
            token, expiry = token_from_mapping(fields, provider=self.name, date=None, before_wall=before_wall)
            if expiry.warning:
                context.warn(expiry.warning)
            return token
        hint = ""
        if inspect.iscoroutine(answer):
            answer.close()
            hint = "; pass the async function itself rather than a sync one that calls it"
        message = (
            f"[{self.name}] the function returned {type(answer).__name__}: it must return a Token"
            f' or a mapping such as {{"access_token": …, "expires_in": 3600}}{hint}'
        )
        raise ProviderUnavailable(message)


class _SyncCallable(CallableProvider):
    """The half for threads."""

    def fetch(self, context: FetchContext) -> Token:
        """Call the function and read what it returned."""
        before_wall = time.time()
        return self._token(self._call(context), before_wall, context)


class _AsyncCallable(CallableProvider):
    """The half for event loops."""

    async def afetch(self, context: FetchContext) -> Token:
        """Await the function and read what it returned."""
        before_wall = time.time()
        answer = await cast("Awaitable[object]", self._call(context))
        return self._token(answer, before_wall, context)


def _as_of(token: Token, now: float) -> Token:
    """Return a token whose lifetime counts from ``now``: the function may return a token that it got earlier."""
    return token if token.issued_at >= now - 1 else token.replace(issued_at=now)


def _is_async(function: object) -> bool:
    """Return whether calling ``function``, or an object's ``__call__``, gives a coroutine."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def _takes_context(function: Callable[..., object], name: str) -> bool:
    """Return whether the function takes the context. Raises ``ConfigurationError`` for any other signature."""
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):
        return False  # some functions written in C have no signature
    for arguments, takes in (((object(),), True), ((), False)):
        try:
            signature.bind(*arguments)
        except TypeError:
            continue
        if takes and _only_defaults(signature):
            continue
        return takes
    message = f"[{name}] the function must take no argument or one, the FetchContext; it takes {signature}"
    raise ConfigurationError(message)


def _only_defaults(signature: inspect.Signature) -> bool:
    """Return whether every argument has a default: such a function was not written for a context."""
    first = next(iter(signature.parameters.values()))
    return first.default is not inspect.Parameter.empty or first.kind is inspect.Parameter.VAR_POSITIONAL
