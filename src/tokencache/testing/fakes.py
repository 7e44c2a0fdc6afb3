"""Fakes for tests of code that holds tokens: a clock, a provider and a backend that a test controls."""

from __future__ import annotations

import itertools
import threading
from typing import TYPE_CHECKING, ClassVar

from tokencache.backends.memory import MemoryBackend
from tokencache.errors import BackendUnavailable
from tokencache.ports import Secret
from tokencache.token import Token

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tokencache.events import Event
    from tokencache.policy import RefreshPolicy
    from tokencache.ports import Clock, FetchContext


class FakeClock:
    """A steady clock and a wall clock that move only when a test moves them."""

    def __init__(self, at: float = 1_000_000.0, wall: float = 1_800_000_000.0) -> None:
        self.at = at
        self.wall_at = wall

    def __call__(self) -> float:
        """Return the steady reading."""
        return self.at

    def wall(self) -> float:
        """Return the wall clock's reading, in epoch seconds."""
        return self.wall_at

    def advance(self, duration: float) -> None:
        """Let time pass on both clocks."""
        self.at += duration
        self.wall_at += duration

    def step(self, duration: float) -> None:
        """Set the wall clock forward or back; the steady clock does not move."""
        self.wall_at += duration


class FakeProvider:
    """A provider that returns ``token-1``, ``token-2``, … A test can count, fail and block its fetches.

    ``failure``, while set, is raised instead of returning a token. ``gate``, while cleared, blocks every fetch.
    ``started`` is set when a fetch begins. ``calls`` counts fetches, ``together`` is the most that ran at once.
    """

    policy: RefreshPolicy | None = None
    key: str | None = None

    def __init__(
        self,
        name: str = "fake",
        *,
        lifetime: float = 3600.0,
        wall: Callable[[], float] | None = None,
        secret: str = "fake-secret",
        client: str = "client",
    ) -> None:
        import time

        self.name = name
        self.lifetime = lifetime
        self.failure: BaseException | None = None
        self.value: str | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.started = threading.Event()
        self.calls = 0
        self.together = 0
        self.contexts: list[FetchContext] = []
        self._wall = wall or time.time
        self._numbers = itertools.count(1)
        self._secret = secret
        self._client = client
        self._lock = threading.Lock()  # guards calls, together, _running
        self._running = 0

    def identity(self) -> Mapping[str, object]:
        """Return client and secret."""
        return {"client": self._client, "secret": Secret(self._secret)}

    def fetch(self, context: FetchContext) -> Token:
        """Return the next token, or raise ``failure``."""
        self._enter(context)
        try:
            self.gate.wait(context.timeout)
            return self._answer()
        finally:
            self._leave()

    async def afetch(self, context: FetchContext) -> Token:
        """Return the next token, or raise ``failure``, from an event loop."""
        import asyncio

        self._enter(context)
        try:
            while not self.gate.is_set():  # noqa: ASYNC110  (the gate is opened from any thread)
                await asyncio.sleep(0.001)
            return self._answer()
        finally:
            self._leave()

    def _enter(self, context: FetchContext) -> None:
        """Count the beginning of a fetch."""
        with self._lock:
            self.calls += 1
            self._running += 1
            self.together = max(self.together, self._running)
            self.contexts.append(context)
        self.started.set()

    def _leave(self) -> None:
        """Count the end of a fetch."""
        with self._lock:
            self._running -= 1

    def _answer(self) -> Token:
        """Return the next token, or raise."""
        if self.failure is not None:
            raise self.failure
        now = self._wall()
        value = self.value or f"{self.name}-token-{next(self._numbers)}"
        return Token(value, expires_at=now + self.lifetime, issued_at=now)


class FlakyBackend(MemoryBackend):
    """A memory backend that records its calls; operations in ``down`` fail.

    Set ``down`` to ``READS``, ``WRITES``, ``EVERYTHING`` or a set of method names, and to ``frozenset()`` to recover.
    ``calls`` holds the name of each operation in order, failed or not. ``error`` makes the exception that is raised.
    """

    READS: ClassVar[frozenset[str]] = frozenset({"load", "wait", "inspect"})
    WRITES: ClassVar[frozenset[str]] = frozenset({"lease", "commit", "release", "extend", "discard"})
    EVERYTHING: ClassVar[frozenset[str]] = READS | WRITES

    def __init__(self, clock: Clock | None = None) -> None:
        super().__init__(clock=clock)
        self.down: frozenset[str] = frozenset()
        self.calls: list[str] = []
        self.error: Callable[[str], Exception] = BackendUnavailable

    def __getattribute__(self, name: str) -> object:
        """Record an operation that is about to be called, and raise if it is down."""
        found: object = super().__getattribute__(name)
        if name in FlakyBackend.EVERYTHING:
            self.calls.append(name)
            if name in self.down:
                message = f"{name}: the store does not answer"
                raise self.error(message)
        return found


class Recorder:
    """An observer that keeps every event."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        """Keep ``event``."""
        self.events.append(event)

    def of(self, kind: type[Event]) -> list[Event]:
        """Return the events of one kind."""
        return [event for event in self.events if type(event) is kind]
