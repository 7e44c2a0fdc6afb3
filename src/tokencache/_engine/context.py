"""The context of a source: the provider, backend, clocks and observers that its effects use."""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tokencache._engine.effects import Draw, Emit, Instants, Now
from tokencache._engine.flights import flight_of_context
from tokencache._engine.launcher import LAUNCHER, Launcher
from tokencache.events import LeaseLost, ProviderWarning, observe
from tokencache.ports import FetchContext

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tokencache._crypto import Sealer
    from tokencache._engine.breaker import Breaker
    from tokencache._engine.effects import Effect, Fetch
    from tokencache.events import Event, Observer
    from tokencache.ports import AsyncBackend, Backend, Clock, LeaseGrant, TokenProvider


@dataclass(frozen=True, slots=True)
class SourceContext:
    """Everything outside of the flow that the effects of one source use."""

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
    launcher: Launcher = LAUNCHER
    contested: set[str] = field(default_factory=set[str])
    """The keys of the backend at which this process has seen two identities."""

    def simple(self, effect: Effect) -> object:
        """Perform an effect that needs neither backend nor provider, and does not wait."""
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

    def tell(self, event: Event) -> None:
        """Give an event to the observers; one of a flight when it is settled, as an observer may want the token."""
        flight = flight_of_context()
        if flight is None:
            observe(self.observers, event)
        else:
            flight.later(functools.partial(observe, self.observers, event))

    def context(self, effect: Fetch, key: str) -> FetchContext:
        """Return the context of a fetch."""

        def warn(text: str) -> None:
            self.tell(ProviderWarning(provider=self.provider.name, key=key, message=text))

        return FetchContext(effect.previous, self.clock() + effect.timeout, effect.reason, self.clock, warn)

    def lost(self, lease: LeaseGrant) -> None:
        """Tell the observers that a lease could not be extended."""
        self.tell(LeaseLost(provider=self.provider.name, key=lease.key, fence=lease.fence))
