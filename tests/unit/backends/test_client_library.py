"""A client library that is too old for a backend is refused when the cache is made."""

from __future__ import annotations

import importlib
import tomllib
from pathlib import Path

import pytest

from tokencache import BackendNotInstalled, TokenCache
from tokencache.backends import _client_library
from tokencache.backends.redis import RedisBackend

LIBRARIES = [("redis", "redis", (6, 2)), ("pymemcache", "memcached", (4, 0))]


@pytest.mark.parametrize(("library", "scheme", "oldest"), LIBRARIES)
def test_an_old_library_is_refused_with_the_reason(
    library: str, scheme: str, oldest: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the installed version, the needed one and the install command; nothing is sent."""
    older = f"{oldest[0] - 1}.99.1"
    monkeypatch.setattr(importlib.import_module(library), "__version__", older)
    with pytest.raises(BackendNotInstalled) as caught:
        TokenCache(f"{scheme}://localhost")
    least = ".".join(map(str, oldest))
    reason = f"tokencache needs {library} {least} or newer, {older} is installed: pip install 'tokencache[{scheme}]'"
    assert str(caught.value) == reason


def test_a_users_client_may_be_of_an_old_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """The version is checked before the client."""
    monkeypatch.setattr("redis.__version__", "6.1.1")
    with pytest.raises(BackendNotInstalled):
        RedisBackend(client=object())


@pytest.mark.parametrize(("library", "scheme", "oldest"), LIBRARIES)
@pytest.mark.parametrize("rest", ["", ".0", ".0b1", ".0.post1"])
def test_the_oldest_supported_version_is_accepted(
    library: str, scheme: str, oldest: tuple[int, int], rest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the numbers of a version count, not its suffix."""
    version = ".".join(map(str, oldest)) + rest
    monkeypatch.setattr(importlib.import_module(library), "__version__", version)
    TokenCache(f"{scheme}://localhost").close()


def test_the_extras_require_the_versions_that_backends_need() -> None:
    """A library that an extra installs is never refused as too old."""
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"]
    for library, extra, oldest in LIBRARIES:
        assert extras[extra] == [f"{library}>={oldest[0]}.{oldest[1]}"]
        assert _client_library._OLDEST[library] == oldest
