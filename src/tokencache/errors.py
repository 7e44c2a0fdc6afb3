"""The errors of tokencache, one tree.

::

    TokenCacheError
    ├── ProviderError                the provider gave no token
    │   ├── ProviderRejected         it refused: permanent, a retry does not help
    │   └── ProviderUnavailable      it could not answer: transient, try again at ``retry_at``
    ├── BackendError                 the store of records and leases failed
    │   ├── BackendUnavailable       it does not answer, or refuses for now
    │   ├── BackendConflict          two distributions claim one name
    │   ├── BackendNotInstalled      its client library is missing or too old
    │   └── BackendClosed            it was used after ``close()``
    ├── ConfigurationError           a setting is wrong; no credential was sent
    └── DeadlineExceeded             the caller's deadline passed first

A message says what failed, for which provider and key, and what to do next. No message holds a secret (INV-9).
"""

from __future__ import annotations

from typing import Self


class TokenCacheError(Exception):
    """Anything that tokencache raises on purpose."""

    def replica(self) -> Self:
        """Return an equal error without a traceback, so that each of many waiters raises its own."""
        twin = type(self).__new__(type(self), *self.args)  # not __init__: a subclass may take other arguments
        twin.__dict__.update(self.__dict__)
        if "__notes__" in twin.__dict__:
            twin.__notes__ = list(self.__notes__)
        twin.__cause__ = self.__cause__
        twin.__suppress_context__ = True
        return twin.with_traceback(None)


class ProviderError(TokenCacheError):
    """The provider gave no token."""


class ProviderRejected(ProviderError):
    """The provider refused permanently: for example wrong credentials or a forbidden scope.

    ``error``, ``error_description`` and ``error_uri`` are the fields of RFC 6749 section 5.2 (or the provider's
    own code and text). ``status`` is the HTTP status, if there was one. Until ``retry_at`` (epoch seconds), no
    process of the fleet asks again.
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
    """The provider could not answer now; ``retry_at`` (epoch seconds) is when a retry makes sense.

    ``retry_at`` is ``None`` if the provider named no instant; then the policy's backoff decides.
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
    """The backend does not answer, or refuses for now. This does *not* mean "another process holds the lease"."""


class BackendConflict(BackendError):
    """Two installed distributions claim one entry-point name."""


class BackendNotInstalled(BackendError):
    """The client library of a backend is missing or too old; the message holds the ``pip install`` line."""


class BackendClosed(BackendError):
    """A backend or cache was used after it was closed."""


class ConfigurationError(TokenCacheError):
    """A setting is wrong or missing. No credential was sent."""


class DeadlineExceeded(TokenCacheError, TimeoutError):
    """The caller's deadline passed before a token arrived. The fetch may continue for other callers."""
