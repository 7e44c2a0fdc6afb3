"""Integrations: tokens of a source inside HTTP clients and SDKs. Each module is imported on its own."""
