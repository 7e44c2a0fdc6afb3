"""``TokenServer``: a real token endpoint on loopback that returns prepared answers and keeps all requests."""

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
    """Returns the answers given to :meth:`answer` in order, then repeats the last one.

    ``pages`` holds the answers of other paths, for metadata or a first step. ``requests`` holds the token requests, and
    ``came_at`` their arrival in epoch seconds. Use the server as a context manager; before that it has its address but
    does not listen.
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
        """The URL of the server, without a slash at the end."""
        return f"http://127.0.0.1:{self._server.port}"

    def answer(self, *answers: Answer) -> None:
        """Set the answers of the next token requests: a :class:`Reply`, :func:`reset`, :func:`silent`, a function."""
        with self._lock:
            self._answers = list(answers)

    def stop(self) -> None:
        """Close all connections and stop listening. May be called twice."""
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
        """Keep a token request, and return its answer."""
        self.came_at.append(time.time())
        self.requests.append(asked)
        with self._lock:
            return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
