"""The server behind the fake: that of :mod:`tokencache.testing.loopback`."""

from __future__ import annotations

from tokencache.testing.loopback import Asked, LoopbackServer, Reply, Reset

__all__ = ["Asked", "LoopbackServer", "Reply", "Reset"]
