"""The world of a source: what its effects are performed on."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tokencache._engine.effects import Draw, Emit, Instants, Now, Unreachable
from tokencache.events import BackendFailed, BackendRecovered, LeaseLost, ProviderWarning, observe
from tokencache.ports import FetchContext

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tokencache._crypto import Sealer
    from tokencache._engine.breaker import Breaker
    from tokencache._engine.effects import BackendEffect, Effect, Fetch
    from tokencache.errors import BackendUnavailable
    from tokencache.events import Event, Observer
    from tokencache.ports import AsyncBackend, Backend, Clock, LeaseGrant, TokenProvider


@dataclass(frozen=True, slots=True)
class SourceContext:
    """What the effects of one source are performed on."""

    provider: TokenProvider
    backend: Backend
    async_backend: Callable[[], AsyncBackend]
    reads: Breaker
    writes: Breaker
    clock: Clock
    wall: Clock
    observers: Sequence[Observer]
    draw: Clock = field(default=random.random)
    sealer: Sealer | None = None

    def breaker(self, effect: BackendEffect) -> Breaker:
        """Return the breaker of this kind of call: reads may work while writes do not."""
        return self.writes if effect.writes else self.reads

    def simple(self, effect: Effect) -> object:
        """Perform an effect that needs neither backend nor provider nor time."""
        match effect:
            case Now():
                return Instants(self.clock(), self.wall())
            case Draw():
                return self.draw()
            case Emit(event=event):
                self.tell(event)
                return None
            case _:
                message = f"no driver performs {type(effect).__name__}"
                raise NotImplementedError(message)

    def failed(self, effect: BackendEffect, error: BackendUnavailable) -> Unreachable:
        """Take note that the backend did not answer."""
        if self.breaker(effect).failed(error):
            operation = type(effect).__name__.lower()
            self.tell(BackendFailed(provider=self.provider.name, key=effect.key, operation=operation, error=str(error)))
        return Unreachable(error)

    def answered(self, effect: BackendEffect) -> None:
        """Take note that the backend answered; a store that can be written to can be read."""
        ended = self.reads.answered()
        if effect.writes:
            ended = self.writes.answered() or ended
        if ended:
            self.tell(BackendRecovered(provider=self.provider.name, key=effect.key))

    def tell(self, event: Event) -> None:
        """Give an event to the observers."""
        observe(self.observers, event)

    def context(self, effect: Fetch, key: str) -> FetchContext:
        """Return what the provider is told."""

        def warn(text: str) -> None:
            self.tell(ProviderWarning(provider=self.provider.name, key=key, message=text))

        return FetchContext(effect.previous, self.clock() + effect.timeout, effect.reason, self.clock, warn)

    def lost(self, lease: LeaseGrant) -> None:
        """Tell that a lease could not be prolonged."""
        self.tell(LeaseLost(provider=self.provider.name, key=lease.key, fence=lease.fence))
