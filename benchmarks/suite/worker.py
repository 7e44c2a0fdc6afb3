"""One process of a fleet: asks at a given instant from many threads, or from as many tasks, by one of the ways.

The setting is one line of JSON as argument. It prints ``ready``, reads the instant (epoch seconds) from standard
input, and prints the time or the error of each call as JSON. Started as ``python -m suite.worker``.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from suite import stores

if TYPE_CHECKING:
    from collections.abc import Callable

    from suite.stores import Setting


def way_of(name: str, *, tasks: bool) -> Callable[[Setting], Callable[[], Any]]:
    """Return the function that makes the named way."""
    return next(way.make for way in (stores.LOOPS if tasks else stores.WAYS) if way.name == name)


def ask_by_threads(get: Callable[[], Any], count: int) -> list[Any]:
    """Ask from threads at the instant."""
    answers: list[Any] = []
    start = _told()

    def ask() -> None:
        time.sleep(max(0.0, start - time.time()))
        began = time.time()
        try:
            get()
        except Exception as error:  # noqa: BLE001  (reported to the parent)
            answers.append(repr(error))
        else:
            answers.append(time.time() - began)

    crowd = [threading.Thread(target=ask) for _ in range(count)]
    for thread in crowd:
        thread.start()
    for thread in crowd:
        thread.join()
    return answers


async def ask_by_tasks(make: Callable[[Setting], Callable[[], Any]], setting: Setting, count: int) -> list[Any]:
    """Ask from tasks of one loop at the instant."""
    get = make(setting)
    start = _told()

    async def ask() -> Any:  # noqa: ANN401  (seconds or an error)
        await asyncio.sleep(max(0.0, start - time.time()))
        began = time.time()
        try:
            await get()
        except Exception as error:  # noqa: BLE001  (reported to the parent)
            return repr(error)
        return time.time() - began

    return list(await asyncio.gather(*(ask() for _ in range(count))))


def _told() -> float:
    """Print ``ready``, and return the instant to ask."""
    print("ready", flush=True)
    return float(sys.stdin.readline())


def main() -> None:
    """Ask at the instant and print the results."""
    told = json.loads(sys.argv[1])
    make = way_of(told["way"], tasks=told["tasks"])
    setting = stores.Setting(**told["setting"])
    if told["loop"]:
        answers = asyncio.run(ask_by_tasks(make, setting, told["count"]))
    else:
        answers = ask_by_threads(make(setting), told["count"])
    print(json.dumps(answers), flush=True)
    sys.stdout.flush()
    import os

    os._exit(0)  # without waiting for threads or destructors of a peer


if __name__ == "__main__":
    main()
