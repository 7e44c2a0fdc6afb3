"""The errors: one tree; each can be copied, pickled and raised by many waiters at once."""

from __future__ import annotations

import copy
import pickle
import re
import traceback
from typing import TYPE_CHECKING

import pytest

from tokencache import errors
from tokencache.errors import (
    BackendClosed,
    BackendConflict,
    BackendError,
    BackendNotInstalled,
    BackendUnavailable,
    ConfigurationError,
    DeadlineExceeded,
    ProviderError,
    ProviderRejected,
    ProviderUnavailable,
    TokenCacheError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

REJECTED = {
    "error": "invalid_client",
    "error_description": "no such client",
    "error_uri": "https://id.example/errors",
    "status": 401,
    "retry_at": 1704067200.0,
}
EVERY: list[TokenCacheError] = [
    ProviderRejected("message", **REJECTED),  # type: ignore[arg-type]
    ProviderUnavailable("message", error="temporarily_unavailable", status=503, retry_at=1704067200.0),
    *(kind("message") for kind in (TokenCacheError, ProviderError, BackendError, ConfigurationError, DeadlineExceeded)),
    *(kind("message") for kind in (BackendUnavailable, BackendConflict, BackendNotInstalled, BackendClosed)),
]


class Picky(ProviderUnavailable):
    """A provider's own error, whose constructor takes other arguments than a message."""

    def __init__(self, host: str, *, port: int) -> None:
        super().__init__(f"{host}:{port} is away", retry_at=5.0)
        self.port = port


def test_the_tree_matches_its_drawing() -> None:
    """The tree in the module's docstring equals the tree of the classes."""
    drawn = re.findall(r"^ {4}([│├└─ ]*)(\w+)", errors.__doc__ or "", flags=re.MULTILINE)
    kinds = {
        name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)
    }
    assert {name for _, name in drawn} == set(kinds)
    above: dict[int, str] = {}
    for indent, name in drawn:
        depth = len(indent) // 4
        above[depth] = name
        assert kinds[name].__bases__[0].__name__ == (above[depth - 1] if depth else "Exception")


def test_a_deadline_is_a_timeout() -> None:
    """An ``except TimeoutError`` also catches a deadline."""
    assert issubclass(DeadlineExceeded, TimeoutError)
    assert str(DeadlineExceeded("too late")) == "too late"


def test_an_error_has_its_fields_and_their_defaults() -> None:
    """A rejection has the fields of RFC 6749, unavailability an instant; all of them may be missing."""
    assert vars(EVERY[0]) == REJECTED
    assert vars(ProviderRejected("m")) == dict.fromkeys(REJECTED)
    assert vars(EVERY[1]) == {"error": "temporarily_unavailable", "status": 503, "retry_at": 1704067200.0}
    assert vars(ProviderUnavailable("m")) == {"error": None, "status": None, "retry_at": None}


@pytest.mark.parametrize(
    "twin_of", [TokenCacheError.replica, copy.copy, lambda error: pickle.loads(pickle.dumps(error))]
)
@pytest.mark.parametrize("error", EVERY, ids=lambda error: type(error).__name__)
def test_copies_of_an_error_are_equal(
    error: TokenCacheError, twin_of: Callable[[TokenCacheError], TokenCacheError]
) -> None:
    """A replica, a copy and a pickle have the same type, message and fields."""
    twin = twin_of(error)
    assert type(twin) is type(error)
    assert twin is not error
    assert (str(twin), twin.args, vars(twin)) == (str(error), error.args, vars(error))


def test_a_replica_has_its_own_traceback() -> None:
    """Each waiter raises its own replica, so tracebacks, contexts and notes do not pile up on one object."""
    cause = OSError("refused")
    original = BackendUnavailable("away")
    with pytest.raises(BackendUnavailable):
        raise original from cause
    original.add_note("seen by the leader")
    twin = original.replica()
    assert twin.__traceback__ is None
    assert original.__traceback__ is not None
    with pytest.raises(BackendUnavailable) as raised:
        raise twin
    assert raised.value is twin
    assert twin.__cause__ is cause
    assert twin.__suppress_context__
    twin.add_note("seen by a waiter")
    assert original.__notes__ == ["seen by the leader"]
    assert twin.__notes__ == ["seen by the leader", "seen by a waiter"]
    assert "refused" in "".join(traceback.format_exception(twin))


def test_an_error_with_other_arguments_can_be_replicated() -> None:
    """A provider's own error is replicated, whatever arguments its constructor takes."""
    twin = Picky("id.example", port=443).replica()
    assert type(twin) is Picky
    assert (str(twin), twin.port, twin.retry_at) == ("id.example:443 is away", 443, 5.0)


def test_a_replica_can_be_replicated() -> None:
    """The replicas do not share their fields."""
    first = ProviderUnavailable("m", retry_at=1.0)
    second = first.replica().replica()
    second.retry_at = 2.0
    assert (first.retry_at, second.retry_at) == (1.0, 2.0)
