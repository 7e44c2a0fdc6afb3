"""`python -m tokencache` is the command line."""

from __future__ import annotations

from tokencache.cli import main

main()
