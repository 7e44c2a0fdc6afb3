"""Drivers: perform a flow's effects, for threads and for event loops. They own the leases that a flow was granted."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import inspect
import threading
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING, TypeVar, cast

from tokencache._engine import timer
from tokencache._engine.effects import (
    BackendEffect,
    Commit,
    Fetch,
    Lease,
    Release,
    Sleep,
    Unreachable,
)
from tokencache.errors import (
    BackendUnavailable,
    ConfigurationError,
    ProviderError,
    ProviderUnavailable,
    TokenCacheError,
)
from tokencache.ports import Granted
from tokencache.steps import adrive, drive
from tokencache.token import Token

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable, Coroutine

    from tokencache._engine.context import SourceContext
    from tokencache._engine.effects import Effect, Flow
    from tokencache.ports import AsyncBackend, AsyncProvider, FetchContext, LeaseGrant, SyncProvider, TokenProvider

T = TypeVar("T")


class _Leases:
    """The leases that a running flow holds."""

    def __init__(self) -> None:
        self.held: dict[str, LeaseGrant] = {}

    def note(self, effect: BackendEffect, reply: object) -> object:
        """Follow what was granted and what was given back; return the reply."""
        if isinstance(effect, Lease) and isinstance(reply, Granted):
            self.held[effect.key] = reply.lease
        elif isinstance(effect, Release) or (isinstance(effect, Commit) and reply is True):
            self.held.pop(effect.key, None)
        return reply


def run(flow: Flow[T], world: SourceContext, key: str) -> T:
    """Run a flow on this thread; beside it, where it is the main thread.

    Signals interrupt the main thread alone, and an interrupt in the middle of a call would leave a backend with a lock
    that nobody gives back, or with half a change.
    """
    if threading.current_thread() is not threading.main_thread():
        return _run(flow, world, key)
    done: Future[T] = Future()
    turn = threading.Lock()  # taken by whoever runs the flow

    def target() -> None:
        if turn.acquire(blocking=False):
            try:
                done.set_result(_run(flow, world, key))
            except BaseException as error:  # noqa: BLE001  (carried to the caller's thread)
                done.set_exception(error)

    context = contextvars.copy_context()
    try:
        threading.Thread(target=context.run, args=(target,), name="tokencache-errand", daemon=True).start()
    except RuntimeError:  # no thread is to be had
        target()
    return done.result()


def _run(flow: Flow[T], world: SourceContext, key: str) -> T:
    """Run a flow on this very thread."""
    leases = _Leases()

    def perform(effect: Effect) -> object:
        if isinstance(effect, BackendEffect):
            return leases.note(effect, _call(effect, world))
        if isinstance(effect, Fetch):
            return _fetch(effect, world, key)
        if isinstance(effect, Sleep):
            time.sleep(effect.duration)
            return None
        return world.simple(effect)

    try:
        return drive(flow, perform)
    finally:
        for lease in leases.held.values():
            with contextlib.suppress(Exception):
                world.backend.release(lease)


async def arun(flow: Flow[T], world: SourceContext, key: str) -> T:
    """Run a flow on this event loop."""
    import asyncio

    leases = _Leases()
    backend = world.async_backend()

    async def perform(effect: Effect) -> object:
        if isinstance(effect, BackendEffect):
            return leases.note(effect, await _acall(effect, world, backend))
        if isinstance(effect, Fetch):
            return await _afetch(effect, world, key, backend)
        if isinstance(effect, Sleep):
            await asyncio.sleep(effect.duration)
            return None
        return world.simple(effect)

    try:
        return await adrive(flow, perform)
    except GeneratorExit:  # collected with its closed loop: nothing can be awaited any more
        leases.held.clear()  # they end by themselves
        raise
    finally:
        for lease in leases.held.values():
            with contextlib.suppress(Exception):
                await backend.release(lease)


def _call(effect: BackendEffect, world: SourceContext) -> object:
    """Call the backend, unless the breaker answers for it."""
    refusal = world.breaker(effect).refuse()
    if refusal is not None:
        return Unreachable(refusal)
    try:
        reply = effect.on(world.backend)
    except Exception as error:  # noqa: BLE001  (INV-5: whatever a backend raises is no answer, not a crash)
        return world.failed(effect, _no_answer(error, world))
    world.answered(effect)
    return reply


async def _acall(effect: BackendEffect, world: SourceContext, backend: AsyncBackend) -> object:
    """Call the async half of the backend, unless the breaker answers for it."""
    refusal = world.breaker(effect).refuse()
    if refusal is not None:
        return Unreachable(refusal)
    try:
        reply = await cast("Awaitable[object]", effect.on(backend))
    except Exception as error:  # noqa: BLE001  (INV-5: whatever a backend raises is no answer, not a crash)
        return world.failed(effect, _no_answer(error, world))
    world.answered(effect)
    return reply


def _no_answer(error: Exception, world: SourceContext) -> BackendUnavailable:
    """Return what to make of a backend's error; raises one of our own that says more than that there was no answer.

    A foreign one, from a reply that is garbled or a backend with a defect, is quoted by its kind only (INV-9).
    """
    if isinstance(error, BackendUnavailable):
        return error
    if isinstance(error, TokenCacheError):
        raise error
    name = getattr(world.backend, "name", "the backend")
    return BackendUnavailable(
        f"{name} failed with {type(error).__name__}; check that the address is that of its server"
    )


def _fetch(effect: Fetch, world: SourceContext, key: str) -> Token | ProviderError:
    """Make the call to the provider on this thread while the heartbeat keeps the lease alive."""
    context = world.context(effect, key)
    lease = effect.lease
    beat = (
        None if lease is None else timer.beat(lease.ttl / 3, functools.partial(_extend, world, lease, context.deadline))
    )
    try:
        return _checked(_sync_half(world.provider)(context), world.provider)
    except Exception as error:  # noqa: BLE001  (INV-4: whatever a provider raises is an answer, not a crash)
        return _translated(error, world.provider)
    finally:
        if beat is not None:
            beat.stop()


def _extend(world: SourceContext, lease: LeaseGrant, deadline: float, beat: timer.Beat) -> bool:
    """Prolong a lease; return whether to go on: a fetch that hangs loses its lease at its deadline (INV-8)."""
    if world.clock() >= deadline:
        return False
    try:
        kept = world.backend.extend(lease, lease.ttl)
    except Exception:  # noqa: BLE001  (the heartbeat is everybody's)
        return True  # it did not answer: not the same as a lost lease
    if not (kept or beat.stopped):
        world.lost(lease)
    return kept


async def _afetch(effect: Fetch, world: SourceContext, key: str, backend: AsyncBackend) -> Token | ProviderError:
    """Make the call to the provider on this loop while a timer keeps the lease alive."""
    import asyncio

    context = world.context(effect, key)
    lease = effect.lease
    timer = _LoopBeat(asyncio.get_running_loop(), backend, lease, world) if lease is not None else None
    try:
        async with asyncio.timeout(effect.timeout):
            return _checked(await _async_half(world.provider)(context), world.provider)
    except TimeoutError:
        return ProviderUnavailable(f"[{world.provider.name}] the provider did not answer within {effect.timeout:.1f}s")
    except Exception as error:  # noqa: BLE001  (INV-4: whatever a provider raises is an answer, not a crash)
        return _translated(error, world.provider)
    finally:
        if timer is not None:
            timer.stop()


class _LoopBeat:
    """The heartbeat of one lease on an event loop: a timer, and a task only when it fires."""

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
        """Prolong the lease in a task."""
        self._task = self._loop.create_task(self._extend())

    async def _extend(self) -> None:
        """Prolong the lease and set the timer again."""
        try:
            kept = await self._backend.extend(self._lease, self._lease.ttl)
        except Exception:  # noqa: BLE001
            kept = True  # it did not answer: not the same as a lost lease
        if kept:
            self._timer = self._loop.call_later(self._lease.ttl / 3, self._fire)
        else:
            self._world.lost(self._lease)

    def stop(self) -> None:
        """Let the lease be."""
        self._timer.cancel()
        if self._task is not None:
            self._task.cancel()


def _sync_half(provider: TokenProvider) -> Callable[[FetchContext], Token]:
    """Return ``fetch``, lifted from ``afetch`` where the provider has no other."""
    if hasattr(provider, "fetch"):
        own: SyncProvider = provider  # type: ignore[assignment]
        return own.fetch
    other: AsyncProvider = provider  # type: ignore[assignment]

    def lifted(context: FetchContext) -> Token:
        return run_coroutine(lambda: other.afetch(context))

    return lifted


def _async_half(provider: TokenProvider) -> Callable[[FetchContext], Coroutine[object, object, Token]]:
    """Return ``afetch``, lifted from ``fetch`` where the provider has no other."""
    if hasattr(provider, "afetch"):
        own: AsyncProvider = provider  # type: ignore[assignment]
        return own.afetch
    other: SyncProvider = provider  # type: ignore[assignment]

    return lambda context: on_thread(lambda: other.fetch(context))


async def on_thread(call: Callable[[], T]) -> T:
    """Run a call on a thread of its own, and await it.

    A call that hangs then holds up neither the loop's own pool of threads, nor the end of the loop or the interpreter.
    """
    import asyncio

    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if not future.done():
            if error is None:
                future.set_result(result)  # type: ignore[arg-type]
            else:
                future.set_exception(error)

    def target() -> None:
        result, error = None, None
        try:
            result = call()
        except BaseException as caught:  # noqa: BLE001  (carried to the loop)
            error = caught if isinstance(caught, Exception) else RuntimeError(type(caught).__name__)
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(settle, result, error)

    thread = threading.Thread(
        target=contextvars.copy_context().run, args=(target,), name="tokencache-call", daemon=True
    )
    thread.start()
    return await future


def run_coroutine(start: Callable[[], Coroutine[object, object, T]]) -> T:
    """Run a coroutine to its end from any thread, also from one whose own event loop is running."""
    import asyncio

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(start())
    box: list[T | BaseException] = []

    def target() -> None:
        try:
            box.append(asyncio.run(start()))
        except BaseException as error:  # noqa: BLE001  (carried to the caller's thread)
            box.append(error)

    thread = threading.Thread(target=target, name="tokencache-coroutine", daemon=True)
    thread.start()
    thread.join()
    if isinstance(box[0], BaseException):
        raise box[0]
    return box[0]


def _checked(token: object, provider: TokenProvider) -> Token:
    """Return what a provider gave if it is a token."""
    if isinstance(token, Token):
        return token
    if inspect.iscoroutine(token):
        token.close()
    message = f"[{provider.name}] fetch() returned {type(token).__name__}, not a Token; return tokencache.Token(…)"
    raise ProviderUnavailable(message)


def _translated(error: Exception, provider: TokenProvider) -> ProviderError:
    """Return the provider's error; a foreign one is named by its type alone, as its text may hold a secret (INV-9)."""
    if isinstance(error, ProviderError):
        return error
    if isinstance(error, ConfigurationError):
        raise error
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    where = f" at {frame.tb_frame.f_code.co_name}, line {frame.tb_lineno}" if frame is not None else ""
    return ProviderUnavailable(
        f"[{provider.name}] the provider failed with {type(error).__name__}{where}; its text is not shown, as it may "
        "hold a secret. Catch it in the provider and raise ProviderUnavailable or ProviderRejected to say more"
    )
