"""The command line as `python -m tokencache`."""

from __future__ import annotations

from tokencache.cli import main

main()
