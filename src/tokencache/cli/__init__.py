"""The command line `tokencache`. Without the extra `cli` it prints the remedy and exits 2."""

from __future__ import annotations

import sys

from tokencache.cli._streams import replace_streams

_EXTRA = frozenset({"typer", "rich", "click", "shellingham"})


def main() -> None:
    """Run the command line and exit with its code."""
    stdout = replace_streams()
    try:
        from tokencache.cli.app import run
    except ModuleNotFoundError as missing:
        if missing.name is None or missing.name.partition(".")[0] not in _EXTRA:
            raise
        sys.stderr.write(
            f"tokencache: the command line needs the package {missing.name!r}, which is not installed.\n"
            "Install it with:  pip install 'tokencache[cli]'\n"
        )
        sys.exit(2)
    sys.exit(run(stdout))
