"""What a process of a fleet is told to do; sent over a pipe, so that no credential is in a process list."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class WorkerLoad:
    """The threads of one process. With ``seconds`` they ask again and again for that long, else each asks once.

    ``patience`` is how long a call takes, in seconds, before it counts as one that waited.
    """

    threads: int
    patience: float
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Orders(WorkerLoad):
    """One process's part in the demo."""

    backend: str = field(repr=False)
    namespace: str
    base_url: str
    client_id: str
    client_secret: str = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Drill(WorkerLoad):
    """One process's part in a stampede of `tokencache bench`, whose login is played.

    It takes ``login`` seconds and gives a token of ``size`` characters. ``secret`` stands for the credential, so that
    all processes have one identity. ``backend`` and ``config`` are as on the command line.
    """

    backend: str | None = field(repr=False)
    config: str | None
    key: str
    secret: str = field(repr=False)
    login: float
    size: int


def first_line() -> str:
    """Return the line of stdin that holds the orders; end the process if the parent ended before it wrote all of it."""
    line = sys.stdin.readline()
    return line if line.endswith("\n") else sys.exit(1)
