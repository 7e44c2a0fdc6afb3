"""What the demo tells a process of its fleet to do; sent over a pipe, so that no credential is in a process list."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Orders:
    """One process's part. With ``seconds`` its threads ask again and again for that long, else each asks once.

    ``patience`` is how long a call takes, in seconds, before it counts as one that waited.
    """

    backend: str = field(repr=False)
    namespace: str
    base_url: str
    client_id: str
    client_secret: str = field(repr=False)
    threads: int
    patience: float
    seconds: float = 0.0
