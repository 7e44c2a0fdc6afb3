"""The two drivers of generators: replies, errors, interrupts, the end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tokencache.steps import adrive, drive

if TYPE_CHECKING:
    from collections.abc import Callable, Generator


class Asked:
    """A generator that asks for two numbers and records its end; an error at the first counts as 10."""

    def __init__(self) -> None:
        self.closed = False

    def steps(self) -> Generator[str, int, int]:
        """Return the sum."""
        try:
            try:
                first = yield "first"
            except ValueError:
                first = 10
            return first + (yield "second")
        finally:
            self.closed = True


def run(half: str, steps: Generator[str, int, int], perform: Callable[[str], int]) -> int:
    """Run the sync or the async driver."""
    if half == "sync":
        return drive(steps, perform)

    async def later(step: str) -> int:
        await asyncio.sleep(0)
        return perform(step)

    return asyncio.run(adrive(steps, later))


@pytest.mark.parametrize("half", ["sync", "async"])
def test_each_reply_reaches_its_yield(half: str) -> None:
    """The result is the generator's return value, after all steps in order."""
    assert run(half, Asked().steps(), {"first": 1, "second": 2}.__getitem__) == 3


@pytest.mark.parametrize("half", ["sync", "async"])
def test_an_error_of_a_step_is_raised_at_its_yield(half: str) -> None:
    """The generator decides: it handles the error, or ends with it."""

    def perform(step: str) -> int:
        return int(step) if step == "first" else 2

    assert run(half, Asked().steps(), perform) == 12
    asked = Asked()
    with pytest.raises(KeyError):
        run(half, asked.steps(), {"first": 1}.__getitem__)
    assert asked.closed


@pytest.mark.parametrize("half", ["sync", "async"])
def test_an_interrupt_closes_the_generator(half: str) -> None:
    """INV-8: a BaseException that is not an Exception ends the generator at once, and is raised."""
    asked = Asked()
    steps = asked.steps()  # keeps a reference, so that the collector does not close it

    def perform(step: str) -> int:
        raise SystemExit(step)

    with pytest.raises(SystemExit):
        run(half, steps, perform)
    assert asked.closed


def test_a_stop_iteration_of_a_step_is_an_error() -> None:
    """PEP 479: a stray StopIteration of a step does not count as the generator's result None."""

    def perform(step: str) -> int:
        raise StopIteration

    with pytest.raises(RuntimeError):
        drive(Asked().steps(), perform)
