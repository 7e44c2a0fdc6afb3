"""Drivers of generators, one for threads and one for event loops, so that the generators are written once for both.

A generator yields each step that it needs, and receives the reply. Examples are the flow of a fetch, a call of a
source, the requests of an HTTP provider, and the operations of an API client.
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
    """Run ``steps`` to its end on this thread and return its result; ``perform`` performs each step.

    The return value of ``perform`` is the reply at the ``yield``. An ``Exception`` that it raises is raised there. Any
    other ``BaseException``, such as an interrupt, closes the generator.
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
