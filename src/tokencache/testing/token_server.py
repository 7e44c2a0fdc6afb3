"""``TokenServer``: a real token endpoint on a free loopback port that answers as it is told, and keeps what came."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from typing import TYPE_CHECKING, TypeAlias

from tokencache.testing.loopback import Asked, Handler, LoopbackServer, Reply, Reset

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType
    from typing import Self

__all__ = ["Answer", "Asked", "Reply", "TokenServer", "json_reply", "reset", "silent"]

Answer: TypeAlias = "Reply | Handler"


def json_reply(document: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
    """Return an answer in JSON."""
    named = (("Content-Type", "application/json"), *(headers or {}).items())
    return Reply(status, json.dumps(document).encode(), tuple(named))


async def reset(_: Asked) -> Reply:
    """Reset the connection instead of answering."""
    raise Reset


async def silent(_: Asked) -> Reply:
    """Never answer, and keep the connection."""
    never: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
    return await never


class TokenServer:
    """Answers with what :meth:`answer` was given, in turn, and then with the last of it again and again.

    ``pages`` holds what is answered at other paths, always: metadata, a first step. ``requests`` holds what came for
    a token, and ``came_at`` when, in epoch seconds. Use it as a context manager; until then it has the address that
    ``port`` says, and is not there.
    """

    def __init__(self, port: int = 0) -> None:
        self.pages: dict[str, Answer] = {}
        self.requests: list[Asked] = []
        self.came_at: list[float] = []
        self._lock = threading.Lock()  # guards _answers
        self._answers: list[Answer] = [Reply(404)]
        self._server = LoopbackServer(self._handle)
        self._server.port = port

    @property
    def url(self) -> str:
        """Where the server is, without a slash at the end."""
        return f"http://127.0.0.1:{self._server.port}"

    def answer(self, *answers: Answer) -> None:
        """Say what the next requests for a token get: a :class:`Reply`, :func:`reset`, :func:`silent`, a function."""
        with self._lock:
            self._answers = list(answers)

    def stop(self) -> None:
        """Cut all connections and listen no more. May be called twice."""
        self._server.stop()

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        """Return the address; answers and requests may hold secrets."""
        return f"<TokenServer {self.url}>"

    async def _handle(self, asked: Asked) -> Reply:
        """Answer one request."""
        path, _, _ = asked.path.partition("?")
        given = self.pages.get(path) or self._next(asked)
        return given if isinstance(given, Reply) else await given(asked)

    def _next(self, asked: Asked) -> Answer:
        """Keep a request for a token, and return what it gets."""
        self.came_at.append(time.time())
        self.requests.append(asked)
        with self._lock:
            return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
