"""Providers obtain tokens. Each module is imported on its own, at its first use."""
