"""The laws that every backend keeps, and the tests of this backend's URL."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tokencache import ConfigurationError, TokenCache
from tokencache.testing.contract import BackendContract

from tokencache_sqlite import SqliteBackend

if TYPE_CHECKING:
    from pathlib import Path

    from tokencache.ports import Backend


class TestSqliteBackend(BackendContract):
    """Every law, for threads and for event loops."""

    def make_backend(self, tmp_path: Path) -> Backend:
        """Return a backend whose store is empty."""
        return SqliteBackend(str(tmp_path / "tokens.db"))


def test_two_caches_at_one_url_share_a_token(tmp_path: Path) -> None:
    """An installed backend is found by its scheme, and the second cache needs no fetch."""
    answers = iter([{"access_token": "first", "expires_in": 3600}])
    url = f"sqlite://{tmp_path}/tokens.db"
    with TokenCache(url) as one, TokenCache(url) as other:
        assert one.source(lambda: next(answers), key="shop").token().value == "first"
        assert other.source(lambda: next(answers), key="shop").token().value == "first"


def test_an_unknown_option_is_refused(tmp_path: Path) -> None:
    """An unknown option of the URL raises an error."""
    with pytest.raises(ConfigurationError, match="colour"):
        TokenCache(f"sqlite://{tmp_path}/tokens.db?colour=red")
