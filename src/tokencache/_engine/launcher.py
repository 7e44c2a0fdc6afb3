"""The launcher: starts what runs beside a caller, on threads and on event loops."""

from __future__ import annotations

import contextlib
import contextvars
import threading
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Coroutine

T = TypeVar("T")


class Launcher:
    """Starts threads and tasks for a source; tests give its :class:`SourceContext` another one."""

    __slots__ = ()

    def thread(self, call: Callable[[], object], name: str) -> None:
        """Start ``call`` on a daemon thread, with the context variables of this one; raises if no thread starts."""
        context = contextvars.copy_context()
        threading.Thread(target=context.run, args=(call,), name=name, daemon=True).start()

    def task(self, coroutine: Coroutine[object, object, T], name: str) -> asyncio.Task[T]:
        """Start a coroutine as a task of the running event loop; the caller keeps the task, a loop does not."""
        import asyncio

        return asyncio.get_running_loop().create_task(coroutine, name=name)

    def beside(
        self, call: Callable[[], object], name: str, *, lends: bool, abandon: Callable[[], object] = bool
    ) -> None:
        """Make ``call`` once, on a thread of its own.

        If no thread can be started, it runs on this thread where that ``lends`` itself. Otherwise ``abandon`` is
        called, and the error raised.
        """
        turn = threading.Lock()  # taken by the one thread that makes the call: start() may fail though its thread runs

        def once() -> None:
            if turn.acquire(blocking=False):
                call()

        def target() -> None:
            with contextlib.suppress(BaseException):  # the waiting callers have it, or were sent to look again
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
"""The launcher of every source that is given no other; it has no state."""


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

    LAUNCHER.thread(target, "tokencache-call")
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
