"""Run the service: ``python -m order_service``, with settings from the environment."""

from __future__ import annotations

import argparse
import asyncio
import copy
import sqlite3
import sys
from typing import Any, Final

import uvicorn
from uvicorn.config import LOGGING_CONFIG

from order_service.app import create_app
from tokencache import ConfigurationError

PORT: Final = 6003
WORKERS: Final = 4
KEEP_ALIVE: Final = 65  # longer than in the proxies in front: they must not reuse a connection that is being closed


def main(arguments: list[str] | None = None) -> int:
    """Serve until interrupted; return the exit code."""
    parser = argparse.ArgumentParser("order-service", description="An order service on QPay; settings: see README.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=PORT)
    parser.add_argument("--workers", type=int, default=WORKERS)
    given = parser.parse_args(arguments)
    try:
        asyncio.run(_try())
    except (ConfigurationError, OSError, sqlite3.Error) as error:
        print(f"order-service: {error}", file=sys.stderr)
        return 2
    uvicorn.run(
        "order_service.app:create_app",
        factory=True,
        host=given.host,
        port=given.port,
        workers=given.workers,
        timeout_keep_alive=KEEP_ALIVE,
        log_config=_logging(),
        server_header=False,
    )
    return 0


async def _try() -> None:
    """Make the service and close it, so that a wrong setting is reported once, not by each worker."""
    app = create_app()
    async with app.router.lifespan_context(app):
        pass


def _logging() -> dict[str, Any]:
    """Return uvicorn's log settings, also for the service and tokencache."""
    config: dict[str, Any] = copy.deepcopy(LOGGING_CONFIG)
    for name in ("order_service", "tokencache"):
        config["loggers"][name] = {"handlers": ["default"], "level": "INFO", "propagate": False}
    return config


if __name__ == "__main__":
    sys.exit(main())
