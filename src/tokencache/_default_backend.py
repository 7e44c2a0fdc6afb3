"""The environment variables that name the backend if neither code nor a configuration does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

_VARIABLES: Final = ("TOKENCACHE_BACKEND", "REDIS_DATABASE_URI")
"""The first one that is set wins; older QPay services set the second."""


def default_url(environ: Mapping[str, str], fallback: str = "memory://") -> str:
    """Return the backend URL of the environment, else ``fallback``. An empty variable counts as unset."""
    return next((url for name in _VARIABLES if (url := environ.get(name))), fallback)
