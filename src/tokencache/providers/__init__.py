"""Providers: what knows how to obtain a token. Each module is imported on its own, when it is used."""
