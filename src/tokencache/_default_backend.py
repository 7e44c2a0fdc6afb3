"""The variables that name the backend where neither code nor a configuration names one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

_VARIABLES: Final = ("TOKENCACHE_BACKEND", "REDIS_DATABASE_URI")
"""In this order; the QPay services used the second one before."""


def default_url(environ: Mapping[str, str], fallback: str = "memory://") -> str:
    """Return the URL of the backend that the environment names, else ``fallback``; an empty variable is not set."""
    return next((url for name in _VARIABLES if (url := environ.get(name))), fallback)
