"""The laws of backends on the example of a third-party backend, found through its own entry point."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tokencache.testing.contract import BackendContract

if TYPE_CHECKING:
    from tokencache.ports import Backend

EXAMPLE = Path(__file__).parents[2] / "examples" / "tokencache-sqlite"

sys.path.insert(0, str(EXAMPLE / "src"))
from tokencache_sqlite import SqliteBackend  # noqa: E402  (an example is not installed)


class TestSqliteBackend(BackendContract):
    """Every law, on SQLite."""

    def make_backend(self, tmp_path: Path) -> Backend:
        """Return a backend on a file that does not exist yet."""
        return SqliteBackend(str(tmp_path / "tokens.db"))


def test_the_installed_example_is_found_by_its_url(tmp_path: Path) -> None:
    """Installed beside tokencache, `sqlite://` works like any other backend."""
    target = str(tmp_path / "site")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", target, str(EXAMPLE)]
    ran = subprocess.run(install, capture_output=True, text=True, check=False)
    if ran.returncode:
        pytest.fail(ran.stderr[-1000:])
    code = (
        "from tokencache import TokenCache\n"
        f"cache = TokenCache('sqlite://{tmp_path}/tokens.db')\n"
        "print(cache.source(lambda: {'access_token': 'x', 'expires_in': 60}, key='k').token().value)\n"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": target},
    )
    assert shown.stdout == "x\n"
