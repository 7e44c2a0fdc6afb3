"""Processes that are made in other ways than Python makes them: patched after the import, or forked in C.

gunicorn's gevent worker patches :mod:`threading` after the application was imported. uWSGI forks in C, so that no hook
of Python runs. Both are the real ones here, with their default options: eight workers share one login.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tokencache.testing.servers import MemcachedServer, RedisServer
from tokencache.testing.token_server import Reply, TokenServer, json_reply

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tokencache.testing.token_server import Asked

pytestmark = pytest.mark.live

PATIENCE = 60.0
WORKERS = 8
THREADS = 4

SERVICE = """
import contextlib, json, os, threading, time
from tokencache import TokenCache
from tokencache.providers.oauth2 import ClientCredentials

login = ClientCredentials(token_url=os.environ["TOKEN_URL"], client_id="c", client_secret="s")
source = TokenCache(os.environ["BACKEND"]).source(login, keep_warm=os.environ["FORK"] == "warm")


def switches():
    found = {}
    for task in os.listdir("/proc/self/task"):
        with contextlib.suppress(FileNotFoundError):  # the thread has ended
            with open(f"/proc/self/task/{task}/status") as about:
                if task != str(os.getpid()):
                    found[task] = [line for line in about if "ctxt_switches" in line]
    return found


if os.environ["FORK"] != "after import":
    source.token()
    # A thread that waits for the GIL at a fork in C would be waited for in the child for ever, by the C library.
    before = None
    while os.path.isdir("/proc/self/task") and (now := switches()) != before:
        before = now
        time.sleep(0.2)


def meet(place):
    os.makedirs(place, exist_ok=True)
    open(os.path.join(place, str(os.getpid())), "w").close()
    ends_at = time.monotonic() + 30
    while len(os.listdir(place)) < int(os.environ["WORKERS"]):
        assert time.monotonic() < ends_at, "the others never came"
        time.sleep(0.01)


def application(environ, start_response):
    step = environ["PATH_INFO"].strip("/")
    meet(step)
    seen = []

    def ask():
        try:
            seen.append((source.renew() if step == "renew" else source.token()).value)
        except Exception as error:
            seen.append(repr(error))

    threads = [threading.Thread(target=ask) for _ in range(int(os.environ["THREADS"]))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps({"pid": os.getpid(), "seen": seen}).encode()]
"""

GUNICORN = [
    *("gunicorn", "--preload", "-k", "gevent", "--worker-connections", "1", "--workers", str(WORKERS)),
    *("--bind", "unix:socket", "--no-control-socket", "--timeout", "60", "--graceful-timeout", "30"),
    "service:application",
]
UWSGI = [
    *("uwsgi", "--master", "--processes", str(WORKERS), "--http-socket", "socket", "--die-on-term"),
    *("--need-app", "--wsgi-file", "service.py"),
]


@pytest.fixture
def tokens() -> Iterator[TokenServer]:
    """A token endpoint whose logins take a tenth of a second and give another token each."""

    async def login(_: Asked) -> Reply:
        number = len(server.requests)
        await asyncio.sleep(0.1)
        return json_reply({"access_token": f"t{number}", "expires_in": 3600, "token_type": "Bearer"})

    with TokenServer() as server:
        server.answer(login)
        yield server


@pytest.fixture(params=["file", "redis", "memcached"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty backend that processes share."""
    if request.param == "file":
        yield (tmp_path / "cache").as_uri()
        return
    with RedisServer() if request.param == "redis" else MemcachedServer() as server:
        yield server.url


@contextmanager
def running(command: list[str], folder: Path, environ: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program of this environment in ``folder`` until the block ends."""
    (folder / "service.py").write_text(SERVICE)
    program, *arguments = command
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [str(Path(sys.executable).with_name(program)), *arguments],
            cwd=folder,
            env=environ,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def until_it_listens(process: subprocess.Popen[bytes], folder: Path) -> None:
    """Wait for the program's socket."""
    ends_at = time.monotonic() + PATIENCE
    while True:
        assert process.poll() is None, (folder / "log").read_text()
        assert time.monotonic() < ends_at, (folder / "log").read_text()
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(folder / "socket"))
            except OSError:
                time.sleep(0.02)
            else:
                return


def together(client: httpx.Client, step: str) -> list[dict[str, Any]]:
    """Ask all workers at once; each waits until all were asked."""
    with ThreadPoolExecutor(WORKERS) as pool:
        return list(pool.map(lambda _: client.get(f"/{step}", headers={"Connection": "close"}).json(), range(WORKERS)))


@pytest.mark.parametrize(
    "fork", ["after import", *(pytest.param(fork, marks=pytest.mark.slow) for fork in ("after use", "warm"))]
)
@pytest.mark.parametrize("command", [GUNICORN, UWSGI], ids=["gunicorn-gevent", "uwsgi"])
def test_eight_workers_share_one_login(
    tokens: TokenServer, backend: str, tmp_path: Path, command: list[str], fork: str
) -> None:
    """All threads of eight workers get the token of one login, then that of one renewal; SIGTERM ends the server.

    INV-2, INV-8. A worker that does not end by itself is killed after 30 seconds, and the server then exits late.
    """
    environ = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    environ |= {"BACKEND": backend, "TOKEN_URL": tokens.url, "FORK": fork, "WORKERS": str(WORKERS)}
    environ |= {"THREADS": str(THREADS), "PYTHONUNBUFFERED": "1"}
    transport = httpx.HTTPTransport(uds=str(tmp_path / "socket"))
    with (
        running(command, tmp_path, environ) as process,
        httpx.Client(transport=transport, base_url="http://service", timeout=PATIENCE) as client,
    ):
        until_it_listens(process, tmp_path)
        for logins, step in enumerate(["token", "renew"], start=1):
            answers = together(client, step)
            assert len({answer["pid"] for answer in answers}) == WORKERS
            assert {text for answer in answers for text in answer["seen"]} == {f"t{logins}"}, answers
            assert len(tokens.requests) == logins
        process.terminate()
        told = time.monotonic()
        assert process.wait(PATIENCE / 3) == 0, (tmp_path / "log").read_text()
        print(f"ended {time.monotonic() - told:.2f} s after SIGTERM")
    log = (tmp_path / "log").read_text()
    assert "Traceback" not in log, log
    assert "SIGKILL" not in log, log


LATE = """
import sys, threading, time
from tokencache import TokenCache
from tokencache._engine import timer

timer._IDLE = 0.1
logins = []


def login():
    logins.append(1)
    time.sleep(0.1)
    return {"access_token": f"t{len(logins)}", "expires_in": 3600}


source = TokenCache(sys.argv[2], observers=[]).source(login, key="late")
if sys.argv[1] == "gevent":
    from gevent import monkey

    monkey.patch_all()
else:
    import eventlet

    eventlet.monkey_patch()

for number in range(1, 4):
    seen = []

    def ask():
        try:
            seen.append(source.token().value)
        except Exception as error:
            seen.append(repr(error))

    threads = [threading.Thread(target=ask) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [f"t{number}"] * 16, seen
    assert len(logins) == number
    ends_at = time.monotonic() + 30
    while timer._heartbeat._running:  # the next fetch starts it again
        assert time.monotonic() < ends_at
        time.sleep(0.01)
    source.invalidate(source.token())
print("done")
"""


@pytest.fixture(params=["memory", "file", "redis", "memcached"])
def any_backend(request: pytest.FixtureRequest) -> str:
    """The URL of each backend of ours, empty."""
    if request.param == "memory":
        return "memory://"
    return str(request.getfixturevalue("stores")[request.param]())


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Callable[[], str]]]:
    """How to get an empty store of each kind."""
    with RedisServer() as redis, MemcachedServer() as memcached:

        def emptied(server: RedisServer | MemcachedServer) -> str:
            server.restart()
            return server.url

        yield {
            "file": lambda: tmp_path_factory.mktemp("file").as_uri(),
            "redis": lambda: emptied(redis),
            "memcached": lambda: emptied(memcached),
        }


@pytest.mark.parametrize("library", ["gevent", "eventlet"])
def test_a_process_may_be_patched_after_the_import(any_backend: str, library: str, tmp_path: Path) -> None:
    """Sixteen greenlets share one login, also when the heartbeat starts anew; nothing is printed but the result."""
    script = tmp_path / "late.py"
    script.write_text(LATE)
    command = [sys.executable, "-W", "ignore", str(script), library, any_backend]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert ran.stdout == "done\n", ran.stderr
    assert "Traceback" not in ran.stderr


SILENT = """
import sys, time
from tokencache.backends.memcached import MemcachedBackend
from tokencache.errors import BackendUnavailable

backend = MemcachedBackend(sys.argv[2], timeout=0.2)
if sys.argv[1] == "gevent":
    from gevent import monkey

    monkey.patch_all()
else:
    import eventlet

    eventlet.monkey_patch()
try:
    backend.load("k")
except BackendUnavailable as error:
    print(error)
"""


@pytest.mark.parametrize("library", ["gevent", "eventlet"])
def test_a_patched_process_keeps_memcacheds_time_out(library: str, tmp_path: Path) -> None:
    """INV-8: greenlets' sockets know no time-out of the kernel, so that one would wait for ever."""
    script = tmp_path / "silent.py"
    script.write_text(SILENT)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer_the_first_command() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(100)
                connection.sendall(b"VERSION 1.6.0\r\n")
                over.wait(PATIENCE)

        over = threading.Event()
        server = threading.Thread(target=answer_the_first_command)
        server.start()
        place = f"127.0.0.1:{listener.getsockname()[1]}"
        command = [sys.executable, "-W", "ignore", str(script), library, place]
        try:
            ran = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
        finally:
            over.set()
            server.join()
    assert ran.stdout == f"memcached at {place}: it did not answer in time\n", ran.stderr


FORKED = """
import ctypes, os, sys
from tokencache import TokenCache

cache = TokenCache(sys.argv[1], observers=[])
backend = cache._backend


def own():
    if sys.argv[1].startswith("redis"):
        return str(backend._execute("k", ["CLIENT", "ID"])[0])
    with backend._server("k").session() as session:
        return str(session._connection.sock.getsockname())


before = own()
assert own() == before
reads, writes = os.pipe()
if ctypes.PyDLL(None).fork() == 0:
    os.write(writes, own().encode())
    os._exit(0)
os.wait()
after = os.read(reads, 1000).decode()
print(before != after, own() == before)
"""


@pytest.mark.parametrize("store", ["redis", "memcached"])
def test_a_child_forked_in_c_has_connections_of_its_own(
    stores: dict[str, Callable[[], str]], store: str, tmp_path: Path
) -> None:
    """INV-10: two processes on one connection would read each other's replies. The parent keeps its connection."""
    script = tmp_path / "forked.py"
    script.write_text(FORKED)
    command = [sys.executable, str(script), stores[store]()]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert ran.stdout == "True True\n", ran.stderr
