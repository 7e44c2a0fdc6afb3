"""Drivers: perform a flow's effects, for threads and for event loops, and free its leases when it ends."""

from __future__ import annotations

import contextlib
import inspect
import threading
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING, TypeVar, cast

from tokencache._engine import breaker, heartbeat
from tokencache._engine.effects import (
    BackendEffect,
    Commit,
    Fetch,
    Lease,
    Release,
    Sleep,
)
from tokencache._engine.launcher import on_thread, run_coroutine
from tokencache.errors import ConfigurationError, ProviderError, ProviderUnavailable
from tokencache.ports import Granted
from tokencache.steps import adrive, drive
from tokencache.token import Token

if TYPE_CHECKING:
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
        """Add the lease that the reply grants, remove one that it ends; return the reply."""
        if isinstance(effect, Lease) and isinstance(reply, Granted):
            self.held[effect.key] = reply.lease
        elif isinstance(effect, Release) or (isinstance(effect, Commit) and reply is True):
            self.held.pop(effect.key, None)
        return reply


def run(flow: Flow[T], world: SourceContext, key: str) -> T:
    """Run a flow on this thread, or, if this is the main thread, on a thread of its own.

    Only the main thread handles signals. An interrupt within a call could leave a lock of the backend held for ever, or
    half a change.
    """
    if threading.current_thread() is not threading.main_thread():
        return _run(flow, world, key)

    done: Future[T] = Future()

    def target() -> None:
        try:
            done.set_result(_run(flow, world, key))
        except BaseException as error:  # noqa: BLE001  (carried to the caller's thread)
            done.set_exception(error)

    world.launcher.beside(target, "tokencache-flow", lends=True)
    return done.result()


def _run(flow: Flow[T], world: SourceContext, key: str) -> T:
    """Run a flow on this thread."""
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
    """Run a flow on this event loop; otherwise as :func:`run`."""
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
    except GeneratorExit:  # garbage-collected after its loop was closed, so nothing can be awaited
        leases.held.clear()  # these leases end by themselves
        raise
    finally:
        for lease in leases.held.values():
            with contextlib.suppress(Exception):
                await backend.release(lease)


def _call(effect: BackendEffect, world: SourceContext) -> object:
    """Call the backend, unless its breaker answers."""
    refusal = breaker.refusal(effect, world)
    if refusal is not None:
        return refusal
    try:
        reply = effect.on(world.backend)
    except Exception as error:  # noqa: BLE001  (INV-5: any exception of a backend counts as an outage)
        return breaker.failed(effect, error, world)
    breaker.answered(effect, world)
    return reply


async def _acall(effect: BackendEffect, world: SourceContext, backend: AsyncBackend) -> object:
    """Call the async half of the backend, unless its breaker answers."""
    refusal = breaker.refusal(effect, world)
    if refusal is not None:
        return refusal
    try:
        reply = await cast("Awaitable[object]", effect.on(backend))
    except Exception as error:  # noqa: BLE001  (INV-5: any exception of a backend counts as an outage)
        return breaker.failed(effect, error, world)
    breaker.answered(effect, world)
    return reply


def _fetch(effect: Fetch, world: SourceContext, key: str) -> Token | ProviderError:
    """Call the provider on this thread while a heartbeat extends the lease."""
    context = world.context(effect, key)
    beat = None if effect.lease is None else heartbeat.start(world, effect.lease, context.deadline)
    try:
        return _checked(_sync_half(world.provider)(context), world.provider)
    except Exception as error:  # noqa: BLE001  (INV-4: any exception of a provider counts as a failed fetch)
        return _translated(error, world.provider)
    finally:
        if beat is not None:
            beat.stop()


async def _afetch(effect: Fetch, world: SourceContext, key: str, backend: AsyncBackend) -> Token | ProviderError:
    """Call the provider on this event loop while a heartbeat extends the lease."""
    import asyncio

    context = world.context(effect, key)
    lease = effect.lease
    beat = None if lease is None else heartbeat.LoopBeat(asyncio.get_running_loop(), backend, lease, world)
    try:
        async with asyncio.timeout(effect.timeout):
            return _checked(await _async_half(world.provider)(context), world.provider)
    except TimeoutError:
        return ProviderUnavailable(f"[{world.provider.name}] the provider did not answer within {effect.timeout:.1f}s")
    except Exception as error:  # noqa: BLE001  (INV-4: any exception of a provider counts as a failed fetch)
        return _translated(error, world.provider)
    finally:
        if beat is not None:
            beat.stop()


def _sync_half(provider: TokenProvider) -> Callable[[FetchContext], Token]:
    """Return ``fetch``, or, if the provider has only ``afetch``, a function that runs that on this thread."""
    if hasattr(provider, "fetch"):
        own: SyncProvider = provider  # type: ignore[assignment]
        return own.fetch
    other: AsyncProvider = provider  # type: ignore[assignment]

    return lambda context: run_coroutine(lambda: other.afetch(context))


def _async_half(provider: TokenProvider) -> Callable[[FetchContext], Coroutine[object, object, Token]]:
    """Return ``afetch``, or, if the provider has only ``fetch``, a function that runs that on a thread."""
    if hasattr(provider, "afetch"):
        own: AsyncProvider = provider  # type: ignore[assignment]
        return own.afetch
    other: SyncProvider = provider  # type: ignore[assignment]

    return lambda context: on_thread(lambda: other.fetch(context))


def _checked(token: object, provider: TokenProvider) -> Token:
    """Return the value that a provider returned; raises ``ProviderUnavailable`` if it is not a token."""
    if isinstance(token, Token):
        return token
    if inspect.iscoroutine(token):
        token.close()
    message = f"[{provider.name}] fetch() returned {type(token).__name__}, not a Token; return tokencache.Token(…)"
    raise ProviderUnavailable(message)


def _translated(error: Exception, provider: TokenProvider) -> ProviderError:
    """Return a provider's exception as a ``ProviderError``; a ``ConfigurationError`` is raised unchanged.

    Any other exception is named by its type alone, because its text may hold a secret (INV-9).
    """
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
