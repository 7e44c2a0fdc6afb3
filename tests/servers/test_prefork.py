"""Programs that fork: the real gunicorn with preload and Celery's prefork pool share one login.

A worker starts by ``fork`` after the program was imported, or after it already used its source. It then has a copy of
the parent's memory: locks, connections, the token. It must use neither the locks nor the connections.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from redis import Redis

from tokencache_qpay.testing import FakeQPay

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import Self

pytestmark = pytest.mark.live

PATIENCE = 30.0
WORKERS = 3

SERVICE = """
import hashlib, json, os, time
from pathlib import Path
from tokencache import TokenCache

source = TokenCache().source("qpay")
if os.environ["FORK"] == "after use":
    source.token()


def meet(place):
    Path(place).mkdir(exist_ok=True)
    Path(place, str(os.getpid())).touch()
    ends_at = time.monotonic() + 30
    while len(os.listdir(place)) < int(os.environ["WORKERS"]):
        assert time.monotonic() < ends_at, "the others never came"
        time.sleep(0.005)


def shown(token):
    return {"pid": os.getpid(), "token": hashlib.sha256(token.value.encode()).hexdigest()}
"""

GUNICORN = """
def application(environ, start_response):
    step = environ["PATH_INFO"].strip("/")
    meet(step)
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(shown(source.renew() if step == "renew" else source.token())).encode()]
"""

CELERY = """
from celery import Celery

app = Celery("service", broker=os.environ["BROKER"], backend=os.environ["BROKER"])
app.conf.broker_connection_retry_on_startup = True


@app.task
def token(step):
    meet(step)
    return shown(source.renew() if step == "renew" else source.token())
"""

SENDER = """
import json, sys
from service import app, token

asked = [token.delay(sys.argv[1]) for _ in range(int(sys.argv[2]))]
print(json.dumps([result.get(timeout=30) for result in asked]))
"""


@pytest.fixture
def qpay() -> Iterator[FakeQPay]:
    """A QPay that counts logins, each of a tenth of a second."""
    with FakeQPay(latency=0.1) as fake:
        yield fake


@pytest.fixture(params=["file", "redis"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty backend that processes share."""
    if request.param == "file":
        return (tmp_path / "cache").as_uri()
    url: str = request.getfixturevalue("redis_url")
    with Redis.from_url(url) as client:
        client.flushall()
    return url


def environment(qpay: FakeQPay, backend: str, fork: str, **more: str) -> dict[str, str]:
    """Return the program's environment."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    given = {"TOKENCACHE_BACKEND": backend, "FORK": fork, "WORKERS": str(WORKERS), "PYTHONUNBUFFERED": "1"}
    return kept | qpay.environ | given | more


@contextmanager
def running(command: list[str], folder: Path, environ: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """Run a program in ``folder``, and end it gently; then kill the rest of its session."""
    with (folder / "log").open("w") as log:
        program = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=folder,
            env=environ,
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            yield program
        finally:
            program.terminate()
            with suppress(subprocess.TimeoutExpired):
                program.wait(PATIENCE)
            with suppress(ProcessLookupError):
                os.killpg(program.pid, signal.SIGKILL)
            program.wait()


def until_it_listens(program: subprocess.Popen[str], log: Path) -> None:
    """Wait until the program accepts connections on its socket."""
    ends_at = time.monotonic() + PATIENCE
    while True:
        assert program.poll() is None, log.read_text()
        assert time.monotonic() < ends_at, log.read_text()
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(log.parent / "socket"))
            except OSError:
                time.sleep(0.02)
            else:
                return


def connected(url: str) -> set[str]:
    """Return the addresses that are connected to a Redis, without this query's."""
    with Redis.from_url(url) as client:
        return {row["addr"] for row in client.client_list() if row["cmd"] != "client|list"}


class Overheard:
    """Records the commands that a Redis gets, and their client addresses, while the block runs.

    ``before`` holds the addresses that were connected at its start, except ``strangers``: the parent's.
    """

    def __init__(self, url: str, strangers: set[str]) -> None:
        self.before = connected(url) - strangers
        address = url.removeprefix("redis://").split("/")[0].split(":")
        self._socket = socket.create_connection((address[0], int(address[1])))
        self._heard = b""
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._listen)

    def _listen(self) -> None:
        self._socket.sendall(b"MONITOR\r\n")
        while data := self._socket.recv(65_536):
            self._heard += data
            self._ready.set()

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(PATIENCE)
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(PATIENCE)
        self._socket.close()

    @property
    def senders(self) -> set[str]:
        """The addresses that sent a command; the commands inside a script do not count."""
        lines = self._heard.decode(errors="replace").splitlines()
        found = {line.split("[", 1)[1].split("]", 1)[0].split()[-1] for line in lines if "[" in line}
        return found - {"lua"}


@pytest.mark.parametrize("fork", ["after import", "after use"])
def test_gunicorns_workers_share_one_login(qpay: FakeQPay, backend: str, tmp_path: Path, fork: str) -> None:
    """With preload, three workers share the token of one login, and renew it together once, on their own connections.

    INV-2; after a fork, no worker uses the parent's connections.
    """
    (tmp_path / "service.py").write_text(SERVICE + GUNICORN)
    command = [
        "gunicorn",
        "--preload",
        "--workers",
        str(WORKERS),
        "--bind",
        f"unix:{tmp_path}/socket",
        "--no-control-socket",
    ]
    command += ["--worker-tmp-dir", str(tmp_path), "--timeout", "60", "--graceful-timeout", "5", "service:application"]
    transport = httpx.HTTPTransport(uds=str(tmp_path / "socket"))
    strangers = connected(backend) if backend.startswith("redis") else set()  # of earlier tests
    with (
        running(command, tmp_path, environment(qpay, backend, fork)) as program,
        httpx.Client(transport=transport, base_url="http://service", timeout=PATIENCE) as client,
        ThreadPoolExecutor(WORKERS) as pool,
    ):
        until_it_listens(program, tmp_path / "log")

        def together(step: str) -> list[dict[str, Any]]:
            return list(
                pool.map(lambda _: client.get(f"/{step}", headers={"Connection": "close"}).json(), range(WORKERS))
            )

        with Overheard(backend, strangers) if backend.startswith("redis") else nullcontext() as overheard:
            check(qpay, together)
        if overheard is not None:
            assert len(overheard.senders) >= WORKERS
            assert bool(overheard.before) is (fork == "after use")
            assert not overheard.senders & overheard.before


@pytest.mark.slow
@pytest.mark.parametrize("fork", ["after import", "after use"])
def test_celerys_workers_share_one_login(qpay: FakeQPay, redis_url: str, tmp_path: Path, fork: str) -> None:
    """The processes of a prefork pool hold one token of one login, and renew it together once (INV-2)."""
    with Redis.from_url(redis_url) as client:
        client.flushall()
    (tmp_path / "service.py").write_text(SERVICE + CELERY)
    (tmp_path / "sender.py").write_text(SENDER)
    command = ["celery", "-A", "service", "worker", "--pool", "prefork", "--concurrency", str(WORKERS), "-O", "fair"]
    command += ["--without-gossip", "--without-mingle", "--without-heartbeat", "--prefetch-multiplier", "1"]
    environ = environment(qpay, redis_url, fork, BROKER=redis_url.rsplit("/", 1)[0] + "/1")
    sender = environ | {"FORK": "after import"}

    def together(step: str) -> list[dict[str, Any]]:
        ran = subprocess.run(
            [sys.executable, "sender.py", step, str(WORKERS)],
            cwd=tmp_path,
            env=sender,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr + (tmp_path / "log").read_text()
        rows: list[dict[str, Any]] = json.loads(ran.stdout)
        return rows

    with running(command, tmp_path, environ):
        check(qpay, together)


def check(qpay: FakeQPay, together: Callable[[str], list[dict[str, Any]]]) -> None:
    """Check that the workers make one login, then one renewal."""
    first = together("token")
    assert len({row["pid"] for row in first}) == WORKERS
    assert len({row["token"] for row in first}) == 1
    assert qpay.logins == 1
    renewed = together("renew")
    assert len({row["pid"] for row in renewed}) == WORKERS
    assert len({row["token"] for row in renewed}) == 1
    assert renewed[0]["token"] != first[0]["token"]
    assert qpay.logins == 2
