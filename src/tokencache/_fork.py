"""The child of a fork: every object that a fork breaks enrols here, and is reset in the child in a stated order.

A fork copies locks that other threads hold, connections that the parent still uses, and records of threads that the
child does not have. Only this module calls ``os.register_at_fork``. Providers, the QPay client and the command line do
not enrol, because each fetch of a provider opens a client of its own.

A C library that forks, such as uWSGI, does not run Python's hooks. So the code calls :func:`notice_fork` before it uses
what a fork breaks, off the hot path.
"""

from __future__ import annotations

import _thread
import logging
import os
import threading
from contextlib import ExitStack
from enum import Enum
from typing import TYPE_CHECKING, Final, cast
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import MethodType


class LateLock:
    """A lock to be held during a wait: made when it is first needed, and anew once a library has patched threading.

    A lock from before gevent or eventlet patched would block all greenlets, or let them all pass. Call it for the lock
    itself; ``kind`` is ``"Lock"`` or ``"RLock"``. An object that has one makes another after a fork.
    """

    __slots__ = ("_kind", "_made")

    def __init__(self, kind: str = "Lock") -> None:
        self._kind = kind
        self._made: dict[object, threading.Lock] = {}

    def __call__(self) -> threading.Lock:
        """Return the lock of this moment's kind of threads."""
        threads = _thread.start_new_thread
        return self._made.get(threads) or self._made.setdefault(threads, getattr(threading, self._kind)())


class Stage(Enum):
    """The stages, in order. A stage may use the objects that earlier stages have reset. Within a stage, any order."""

    LOCKS = "locks and breakers"
    CONNECTIONS = "backends, with their connections and leases"
    SOURCES = "sources, with their flights and local copies"
    TIMERS = "the timer, which extends leases"
    WARMERS = "warmers, whose threads fetch at once and so use all of the above"


_enrolled: Final[dict[Stage, WeakKeyDictionary[object, Callable[[object], None]]]] = {
    stage: WeakKeyDictionary() for stage in Stage
}
_turns: Final[dict[int, threading.RLock]] = {}  # a lock for each process id: an inherited one may be held for ever
_before: Final[list[Callable[[], None]]] = []
_ready = os.getpid()  # the process in which all is reset
_resetting = 0  # the process in which a reset has begun
_LOGGER: Final = logging.getLogger("tokencache")


def enrol(stage: Stage, reset: Callable[[], None]) -> None:
    """Call the method ``reset`` at this stage in the child of each fork, as long as its object lives."""
    method = cast("MethodType", reset)
    _enrolled[stage][method.__self__] = method.__func__


def reset_backend(backend: object) -> None:
    """Call the optional ``after_fork`` of a backend (:mod:`tokencache.ports`), unless the backend enrolled itself."""
    hook = getattr(backend, "after_fork", None)
    if hook is not None and all(each is not backend for each in list(_enrolled[Stage.CONNECTIONS])):
        hook()


def before_fork() -> None:
    """Let what must not be copied in mid-way end."""
    for call in _before:
        call()


def call_before_forks(call: Callable[[], None]) -> None:
    """Have ``call`` called in the parent before each fork, but not before a fork in C."""
    _before.append(call)


def after_fork() -> None:
    """Reset every enrolled object, once per process id; in the first process, do nothing.

    It may be called at any moment and from any thread, and returns when all objects are reset. If one fails, the
    others are still reset, and the last error is raised at the end.
    """
    global _ready, _resetting  # noqa: PLW0603  (one per process is the point)
    pid = os.getpid()
    with _turns.setdefault(pid, threading.RLock()):
        if pid in {_ready, _resetting}:  # the second: called by a reset
            return
        _resetting = pid
        try:
            with ExitStack() as stack:
                for stage in reversed(Stage):  # a stack runs the last callback first
                    for owner, reset in list(_enrolled[stage].items()):
                        stack.callback(reset, owner)
        finally:
            _ready = pid  # not before: the child's other threads wait until all is reset


def notice_fork() -> None:
    """Reset every enrolled object if this process was forked without Python's hooks; else cost one system call."""
    if os.getpid() == _ready:
        return
    try:
        after_fork()
    except Exception:  # as Python's hook does: the caller can go on
        _LOGGER.exception("an object could not be reset after a fork")


if hasattr(os, "register_at_fork"):  # pragma: no branch
    os.register_at_fork(before=before_fork, after_in_child=after_fork)
