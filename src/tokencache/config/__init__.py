"""Configuration: backends, providers, policy and encryption from ``tokencache.toml`` and ``TOKENCACHE_*`` variables."""

from tokencache.config._configuration import Configuration, Remark
from tokencache.config._providers import Configured
from tokencache.config._types import Setting

__all__ = ["Configuration", "Configured", "Remark", "Setting"]
