"""The launcher: starts the threads and tasks of the engine."""

from __future__ import annotations

import contextlib
import contextvars
import threading
from importlib import import_module
from typing import TYPE_CHECKING, Final, TypeVar

from tokencache.errors import ConfigurationError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Coroutine

T = TypeVar("T")


class Launcher:
    """Starts threads and tasks for a source; a test may give the :class:`SourceContext` a launcher of its own."""

    __slots__ = ()

    def thread(self, call: Callable[[], object], name: str) -> None:
        """Start ``call`` on a daemon thread with this thread's context variables; raises if no thread starts."""
        context = contextvars.copy_context()
        threading.Thread(target=context.run, args=(call,), name=name, daemon=True).start()

    def task(self, coroutine: Coroutine[object, object, T], name: str) -> asyncio.Task[T]:
        """Start a coroutine as a task of the running event loop; the caller must keep a reference to the task."""
        try:
            return running_loop().create_task(coroutine, name=name)
        except ConfigurationError:
            coroutine.close()
            raise

    def beside(
        self, call: Callable[[], object], name: str, *, lends: bool, abandon: Callable[[], object] = bool
    ) -> None:
        """Make ``call`` once, on a thread of its own.

        If no thread can be started and ``lends`` is true, this thread makes the call. Otherwise ``abandon`` is called,
        and the error is raised.
        """
        turn = threading.Lock()  # start() may fail though the thread runs, so the lock lets only one thread call

        def once() -> None:
            if turn.acquire(blocking=False):
                call()

        def target() -> None:
            with contextlib.suppress(BaseException):  # its waiters have the error, or start over
                once()

        try:
            self.thread(target, name)
        except BaseException as error:
            if lends and isinstance(error, RuntimeError):  # too many threads, or the interpreter ends
                with contextlib.suppress(Exception):
                    once()
                return
            if turn.acquire(blocking=False):
                abandon()
            raise


LAUNCHER: Final = Launcher()
"""The default launcher of a source; it has no state."""


def running_loop() -> asyncio.AbstractEventLoop:
    """Return the running event loop; raises ``ConfigurationError`` where asyncio does not run, as under trio."""
    import asyncio

    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        message = (
            "the async methods need a running event loop of asyncio, and none runs here; "
            "under trio, call the sync method on a thread: await trio.to_thread.run_sync(source.token)"
        )
        raise ConfigurationError(message) from None


async def on_thread(call: Callable[[], T]) -> T:
    """Run a call on a thread of its own, and await it; if no thread can be started, on the loop.

    A call that hangs then blocks neither the loop's own thread pool, nor the end of the loop or the interpreter.
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

    LAUNCHER.beside(target, "tokencache-call", lends=True)
    return await future


def run_coroutine(start: Callable[[], Coroutine[object, object, T]]) -> T:
    """Run a coroutine to its end, from any thread; if the thread runs an event loop, on a thread of its own."""
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

    run = contextvars.copy_context().run
    thread = threading.Thread(target=run, args=(target,), name="tokencache-coroutine", daemon=True)
    thread.start()
    thread.join()
    if isinstance(box[0], BaseException):
        raise box[0]
    return box[0]


def is_main_interpreter() -> bool:
    """Return whether this is not a subinterpreter, such as mod_wsgi has for each application."""
    for name in ("_interpreters", "_xxsubinterpreters"):  # CPython 3.13 and newer, and older
        with contextlib.suppress(ImportError):
            interpreters = import_module(name)
            return bool(interpreters.get_current() == interpreters.get_main())
    return True  # another Python
