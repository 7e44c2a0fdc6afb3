"""The errors of tokencache, one tree.

::

    TokenCacheError
    ├── ProviderError                the provider gave no token
    │   ├── ProviderRejected         it said no: permanent, asking again does not help
    │   └── ProviderUnavailable      it could not say: transient, try again at ``retry_at``
    ├── BackendError                 the store of records and leases failed
    │   ├── BackendUnavailable       it does not answer, or refuses for now
    │   ├── BackendConflict          two distributions claim one name
    │   ├── BackendNotInstalled      its client library is missing or too old
    │   └── BackendClosed            it was used after ``close()``
    ├── ConfigurationError           a setting is wrong; no credential was sent
    └── DeadlineExceeded             the caller's time ran out first

A message says what failed, for which provider and key, and what to do next. None holds a secret (INV-9).
"""

from __future__ import annotations

from typing import Self


class TokenCacheError(Exception):
    """Anything that tokencache raises on purpose."""

    def replica(self) -> Self:
        """Return an equal error without a traceback, so that each of many waiters raises its own."""
        twin = type(self).__new__(type(self), *self.args)  # not __init__: a subclass may ask for other arguments
        twin.__dict__.update(self.__dict__)
        if "__notes__" in twin.__dict__:
            twin.__notes__ = list(self.__notes__)
        twin.__cause__ = self.__cause__
        twin.__suppress_context__ = True
        return twin.with_traceback(None)


class ProviderError(TokenCacheError):
    """The provider gave no token."""


class ProviderRejected(ProviderError):
    """The provider said no, and would say so again: wrong credentials, a forbidden scope.

    ``error``, ``error_description`` and ``error_uri`` are the fields of RFC 6749 section 5.2 (or the provider's
    own code and text), ``status`` the HTTP status where there was one, ``retry_at`` (epoch seconds) the instant
    until which nobody in the fleet asks again.
    """

    def __init__(
        self,
        message: str,
        *,
        error: str | None = None,
        error_description: str | None = None,
        error_uri: str | None = None,
        status: int | None = None,
        retry_at: float | None = None,
    ) -> None:
        super().__init__(message)
        self.error = error
        self.error_description = error_description
        self.error_uri = error_uri
        self.status = status
        self.retry_at = retry_at


class ProviderUnavailable(ProviderError):
    """The provider could not answer now; ``retry_at`` (epoch seconds) is when asking again makes sense.

    ``retry_at`` is ``None`` where the provider named no instant: the policy's backoff decides then.
    """

    def __init__(
        self,
        message: str,
        *,
        error: str | None = None,
        status: int | None = None,
        retry_at: float | None = None,
    ) -> None:
        super().__init__(message)
        self.error = error
        self.status = status
        self.retry_at = retry_at


class BackendError(TokenCacheError):
    """The store of records and leases failed."""


class BackendUnavailable(BackendError):
    """The backend does not answer, or refuses to for now. It is *not* the answer "somebody else has the lease"."""


class BackendConflict(BackendError):
    """Two installed distributions claim one entry-point name."""


class BackendNotInstalled(BackendError):
    """The client library of a backend is missing or too old; the message holds the ``pip install`` line."""


class BackendClosed(BackendError):
    """A backend or cache was used after it was closed."""


class ConfigurationError(TokenCacheError):
    """A setting is wrong or missing. No credential was sent."""


class DeadlineExceeded(TokenCacheError, TimeoutError):
    """The caller's deadline passed before there was a token. The fetch may go on for others."""
