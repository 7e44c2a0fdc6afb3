"""The first fetch of a process on an event loop: what takes long is done on a thread."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import httpx
import pytest

from tokencache import TokenCache
from tokencache._engine.launcher import LAUNCHER, Launcher
from tokencache.providers.oauth2 import ClientCredentials
from tokencache.providers.transport import shared_trust
from tokencache.testing.token_server import TokenServer, json_reply

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TOKEN = json_reply({"access_token": "good", "token_type": "Bearer", "expires_in": 3600})
READ_CERTIFICATES = httpx.create_ssl_context


@pytest.fixture
def readers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Return the threads that read the certificates; none has read them yet."""
    threads: list[int] = []

    def read() -> object:
        threads.append(threading.get_ident())
        return READ_CERTIFICATES()

    monkeypatch.setattr(httpx, "create_ssl_context", read)
    shared_trust.cache_clear()
    yield threads
    shared_trust.cache_clear()


def first_tokens(*, together: bool = False) -> list[str]:
    """Return the values of two tokens that one event loop gets, the second after the first, or together with it."""

    async def scenario(url: str) -> list[str]:
        cache = TokenCache("memory://")
        one, two = (cache.source(ClientCredentials(token_url=url, client_id=name, client_secret="s")) for name in "ab")
        if together:
            return [token.value for token in await asyncio.gather(one.atoken(), two.atoken())]
        return [(await one.atoken()).value, (await two.atoken()).value]

    with TokenServer() as server:
        server.answer(TOKEN)
        return asyncio.run(scenario(f"{server.url}/token"))


@pytest.mark.parametrize("together", [False, True])
def test_certificates_are_read_once_on_a_thread(together: bool, readers: list[int]) -> None:
    """The loop goes on meanwhile, and another fetch uses the same certificates, also at the same time."""
    assert first_tokens(together=together) == ["good", "good"]
    assert len(readers) == 1
    assert threading.get_ident() not in readers


def test_without_a_thread_the_loop_reads_them(readers: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that cannot start a thread gets its token all the same."""

    def thread(_: Launcher, call: Callable[[], object], name: str) -> None:
        del call, name
        message = "can't start new thread"
        raise RuntimeError(message)

    monkeypatch.setattr(type(LAUNCHER), "thread", thread)
    assert first_tokens() == ["good", "good"]
    assert readers == [threading.get_ident()]


def test_no_client_library_is_imported_on_the_loop() -> None:
    """In a new process, the modules of httpx's first request are imported on another thread than the loop's."""
    code = """
import sys, threading
from test_preparation import first_tokens

class Finder:
    def find_spec(self, name, path=None, target=None):
        if threading.current_thread() is threading.main_thread() and name.startswith(("anyio", "httpcore")):
            print("imported on the loop:", name)

for name in [name for name in sys.modules if name.partition(".")[0] in {"anyio", "httpcore"}]:
    sys.exit(f"{name} was loaded before")
sys.meta_path.insert(0, Finder())
print(first_tokens())
"""
    path = ":".join([*filter(None, sys.path), __file__.rpartition("/")[0]])
    ran = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "['good', 'good']\n", "")
