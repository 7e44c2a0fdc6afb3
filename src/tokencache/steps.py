"""One driver of generators for threads, one for event loops: the code between two yields is written once for both.

A generator yields what it wants done, and receives what came of it: the flow of a fetch, a call of a source, the
requests of an HTTP provider, the operations of an API client.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator

__all__ = ["adrive", "drive"]

S = TypeVar("S")
R = TypeVar("R")
T = TypeVar("T")


def drive(steps: Generator[S, R, T], perform: Callable[[S], R]) -> T:
    """Run ``steps`` to its end and return its result; ``perform`` does each step, on this thread.

    What ``perform`` returns is the reply at the ``yield``; an ``Exception`` that it raises is raised there. Anything
    else, such as an interrupt, closes the generator.
    """
    try:
        step = next(steps)
        while True:
            try:
                reply = perform(step)
            except Exception as error:  # noqa: BLE001  (the generator decides)
                step = steps.throw(error)
            else:
                step = steps.send(reply)
    except StopIteration as end:
        result: T = end.value
        return result
    finally:
        steps.close()


async def adrive(steps: Generator[S, R, T], perform: Callable[[S], Awaitable[R]]) -> T:
    """Run ``steps`` to its end on this event loop; otherwise as :func:`drive`."""
    try:
        step = next(steps)
        while True:
            try:
                reply = await perform(step)
            except Exception as error:  # noqa: BLE001  (the generator decides)
                step = steps.throw(error)
            else:
                step = steps.send(reply)
    except StopIteration as end:
        result: T = end.value
        return result
    finally:
        steps.close()
