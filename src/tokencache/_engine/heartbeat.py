"""Heartbeats: each extends the lease of one fetch, on the timer thread of the process or on an event loop."""

from __future__ import annotations

import contextvars
from typing import TYPE_CHECKING

from tokencache._engine import timer

if TYPE_CHECKING:
    import asyncio

    from tokencache._engine.context import SourceContext
    from tokencache.ports import AsyncBackend, LeaseGrant


def start(world: SourceContext, lease: LeaseGrant, deadline: float) -> timer.Beat:
    """Extend a lease every third of its length, on the timer thread, until the beat is stopped."""
    context = contextvars.copy_context()  # so that a lost lease is reported as an event of the flight
    return timer.beat(lease.ttl / 3, lambda beat: context.run(extend, world, lease, deadline, beat))


def extend(world: SourceContext, lease: LeaseGrant, deadline: float, beat: timer.Beat) -> bool:
    """Extend a lease once; return whether to go on. From the fetch's deadline on, a lease is left to end (INV-8)."""
    if world.clock() >= deadline:
        return False
    try:
        kept = world.backend.extend(lease, lease.ttl)
    except Exception:  # noqa: BLE001  (all fetches share the timer thread)
        return True  # an outage does not mean that the lease is lost
    if not (kept or beat.stopped):
        world.lost(lease)
    return kept


class LoopBeat:
    """The heartbeat of one lease on an event loop: a timer, which starts a task each time that it fires."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, backend: AsyncBackend, lease: LeaseGrant, world: SourceContext
    ) -> None:
        self._loop = loop
        self._backend = backend
        self._lease = lease
        self._world = world
        self._task: asyncio.Task[None] | None = None
        self._timer = loop.call_later(lease.ttl / 3, self._fire)

    def _fire(self) -> None:
        """Extend the lease in a task."""
        self._task = self._loop.create_task(self._extend())

    async def _extend(self) -> None:
        """Extend the lease and set the timer again."""
        try:
            kept = await self._backend.extend(self._lease, self._lease.ttl)
        except Exception:  # noqa: BLE001
            kept = True  # an outage does not mean that the lease is lost
        if kept:
            self._timer = self._loop.call_later(self._lease.ttl / 3, self._fire)
        else:
            self._world.lost(self._lease)

    def stop(self) -> None:
        """Stop extending the lease."""
        self._timer.cancel()
        if self._task is not None:
            self._task.cancel()
