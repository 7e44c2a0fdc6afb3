"""Fixtures for tests of the order service, from `tests/support`."""

from order_shop import importable, shop

__all__ = ["importable", "shop"]
