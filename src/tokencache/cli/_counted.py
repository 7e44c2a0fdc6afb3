"""A provider that counts and limits its logins, so that a command can promise a maximum."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, TypeAlias, cast

from tokencache.errors import ProviderUnavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from tokencache.ports import FetchContext, TokenProvider
    from tokencache.token import Token

    _Fetch: TypeAlias = Callable[[FetchContext], Token]
    _AsyncFetch: TypeAlias = Callable[[FetchContext], Awaitable[Token]]


class CountedProvider:
    """Wraps the provider ``inner``, with all its attributes, and lets at most ``most`` fetches through.

    ``logins`` counts the fetches. Any further fetch raises ``ProviderUnavailable`` without a request, and sets
    ``refused``.
    """

    def __init__(self, inner: TokenProvider, most: int) -> None:
        self.logins = 0
        self.refused = False
        self._inner = inner
        self._most = most
        self._lock = threading.Lock()  # guards logins

    @property
    def name(self) -> str:
        """The name of the provider."""
        return self._inner.name

    def identity(self) -> Mapping[str, object]:
        """Return the identity of the wrapped provider."""
        return self._inner.identity()

    def __getattr__(self, name: str) -> object:
        """Return the attribute of the wrapped provider, with fetches counted; a missing half stays missing."""
        found: object = getattr(self._inner, name)
        if name == "fetch":
            return self._fetching(cast("_Fetch", found))
        if name == "afetch":
            return self._afetching(cast("_AsyncFetch", found))
        return found

    def _fetching(self, fetch: _Fetch) -> _Fetch:
        def counted(context: FetchContext) -> Token:
            self._count()
            return fetch(context)

        return counted

    def _afetching(self, fetch: _AsyncFetch) -> _AsyncFetch:
        async def counted(context: FetchContext) -> Token:
            self._count()
            return await fetch(context)

        return counted

    def _count(self) -> None:
        """Count one login, or raise ``ProviderUnavailable`` beyond the limit."""
        with self._lock:
            if self.logins >= self._most:
                self.refused = True
                message = f"[{self.name}] not asked: this command makes {self._most} login(s) at most; run it again"
                raise ProviderUnavailable(message)
            self.logins += 1
