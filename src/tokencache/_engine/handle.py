"""The handle of a backend: the backend with its breakers, opened at first use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokencache._engine.breaker import Breaker
from tokencache._fork import LateLock, Stage, enrol, reset_backend

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokencache.ports import AsyncBackend, Backend, Clock


@dataclass(frozen=True, slots=True)
class Deferred:
    """A backend that is opened at its first use; until then only its ``name`` is known."""

    name: str
    open: Callable[[], Backend]


class BackendHandle:
    """A backend with its breakers and its half for event loops; both are made at first use.

    ``backend`` is a backend, or how to open one. If it is ``owned``, ``close`` closes it.
    """

    __slots__ = ("__weakref__", "_backend", "_deferred", "_half", "_lock", "owned", "reads", "writes")

    def __init__(self, backend: Backend | Deferred, clock: Clock, probe: float, *, owned: bool = True) -> None:
        self._lock = LateLock()  # guards _backend while it is made
        self._deferred: Deferred | None = None
        self._backend: Backend | None = None
        if isinstance(backend, Deferred):
            self._deferred = backend
        else:
            self._backend = backend
        self._half: AsyncBackend | None = None
        self.owned = owned
        self.reads = Breaker(clock, probe)
        self.writes = Breaker(clock, probe)
        enrol(Stage.CONNECTIONS, self.after_fork)

    @property
    def name(self) -> str:
        """The name of the backend."""
        return self._deferred.name if self._backend is None and self._deferred is not None else self.backend.name

    @property
    def backend(self) -> Backend:
        """The backend; the first reading opens it."""
        opened = self._backend
        if opened is None:
            with self._lock():
                opened = self._backend or self._open()
                self._backend = opened
        return opened

    def _open(self) -> Backend:
        """Open the deferred backend."""
        assert self._deferred is not None  # noqa: S101  (a handle has one of the two)
        return self._deferred.open()

    def async_backend(self) -> AsyncBackend:
        """Return the half of the backend for the running event loop; a half on threads serves all loops."""
        if self._half is not None:
            return self._half
        from tokencache.backends._threaded import ThreadedBackend, async_half

        half = async_half(self.backend)
        if isinstance(half, ThreadedBackend):
            self._half = half  # two loops may race and make one each; later loops get the last one
        return half

    def close(self) -> None:
        """Close the backend if it is owned and has been opened."""
        if self.owned and self._backend is not None:
            self._backend.close()

    async def aclose(self) -> None:
        """Close, from an event loop."""
        if self.owned and self._backend is not None:
            await self.async_backend().close()

    def after_fork(self) -> None:
        """Give the child of a fork a lock and connections of its own."""
        self._lock = LateLock()
        self._half = None
        reset_backend(self._backend)
