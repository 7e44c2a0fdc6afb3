"""Credentials for Google clients that hand out the fleet's token: ``google.auth.credentials.Credentials``.

google-auth's sessions call ``before_request`` for each request and ``refresh`` after a 401. Its own credentials log in
once per caller. Here ``before_request`` gets the token from the source's memory, and ``refresh`` reports the token that
*this thread* sent, so that one login serves all refused callers (INV-6).
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from google.auth.credentials import CredentialsWithQuotaProject
from google.auth.exceptions import RefreshError

from tokencache.errors import BackendUnavailable, DeadlineExceeded, ProviderRejected, ProviderUnavailable

if TYPE_CHECKING:
    from collections.abc import Generator, MutableMapping
    from typing import Self

    from tokencache.integrations._refusal import TokenSupply
    from tokencache.token import Token

__all__ = ["SourceCredentials"]

_LAST: Final = 253_402_300_799.0
"""The last second that a datetime can hold."""


class _Sent(threading.local):
    """The token that a thread sent last and has not reported."""

    token: Token | None = None


class SourceCredentials(CredentialsWithQuotaProject):
    """Google credentials on a source, for ``AuthorizedSession`` and the clients of Google SDKs; safe between threads.

    google-auth calls ``refresh`` after a 401. It replaces the token that this thread sent last, if the source still
    has it. A thread that has sent no token gets the source's current one. A token that just replaced a refused one
    stays, and the session returns the 401.

    Raises ``RefreshError`` if the source has no token; it is ``retryable`` unless the provider rejected the
    credentials. The source's own error is the cause.
    """

    def __init__(self, source: TokenSupply, *, quota_project_id: str | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._source = source
        self._quota_project_id = quota_project_id
        self._sent = _Sent()

    def refresh(self, request: object) -> None:
        """Report the token that this thread sent last, and take the source's current token."""
        del request  # the source calls the provider itself
        sent, self._sent.token = self._sent.token, None
        with _told():
            self._take((self._source.replace(sent) if sent is not None else None) or self._source.token())

    def before_request(self, request: object, method: str, url: str, headers: MutableMapping[str, str]) -> None:
        """Put the source's token into the headers of a request."""
        del request, method, url
        with _told():
            token = self._source.token()
        self._take(token)
        self._sent.token = token
        # The value is passed, because another thread may have set another token in between.
        self.apply(headers, token.value)  # type: ignore[no-untyped-call]  # pyright: ignore[reportUnknownMemberType]

    def with_quota_project(self, quota_project_id: str | None) -> Self:
        """Return credentials on the same source that bill another project."""
        return type(self)(self._source, quota_project_id=quota_project_id)

    def __repr__(self) -> str:
        """Return a text without the token."""
        return f"SourceCredentials({self._source!r})"

    def _take(self, token: Token) -> None:
        """Set the attributes ``token`` and ``expiry``; google-auth's expiry is a naive datetime in UTC."""
        self.token = token.value
        expiry = datetime.fromtimestamp(max(0.0, min(token.expires_at, _LAST)), tz=UTC)
        self.expiry = expiry.replace(tzinfo=None)


@contextmanager
def _told() -> Generator[None]:
    """Translate the source's errors into google-auth's: permanent ones, and ones that a caller may retry."""
    try:
        yield
    except ProviderRejected as error:
        raise RefreshError(str(error), retryable=False) from error  # type: ignore[no-untyped-call]
    except (ProviderUnavailable, BackendUnavailable, DeadlineExceeded) as error:
        raise RefreshError(str(error), retryable=True) from error  # type: ignore[no-untyped-call]
