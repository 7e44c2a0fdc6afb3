"""Answers of servers that send byte after byte, or more than any record: Redis and memcached, threads and loops."""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from tokencache.backends import _answers
from tokencache.backends._answers import LARGEST_ANSWER, AnswerSocket, TooLarge
from tokencache.errors import BackendUnavailable
from tokencache.plugins import open_backend
from tokencache.ports import LeaseGrant, Stored
from tokencache.testing.probes import AsyncProbe

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokencache.testing.probes import Probe

PATIENCE = 30.0
GRANT = LeaseGrant("k", "me", 5, 3.0)
DATA = b"x" * 1_000
VALUES = {
    "redis": (b"$1000\r\n" + DATA + b"\r\n:5000\r\n", Stored(DATA, 5.0)),
    "memcached": (b"VALUE k 0 1000 7\r\n" + DATA + b"\r\nEND\r\n", Stored(DATA, None)),
}
GIANTS = {"redis": b"$%d\r\n", "memcached": b"VALUE k 0 %d 7\r\n"}


class Clock:
    """The time of the answers: each piece that is awaited takes a quarter of a second."""

    def __init__(self) -> None:
        self.at = 0.0

    def __call__(self) -> float:
        """Return the time."""
        return self.at


class Dripping:
    """A socket whose answer comes byte by byte; a piece takes a quarter of a second, or the time-out ends it."""

    def __init__(self, clock: Clock, timeout: float | None) -> None:
        self.waits: list[float | None] = []
        self._clock = clock
        self._timeout = timeout

    def settimeout(self, timeout: float | None) -> None:
        """Set the time-out."""
        self._timeout = timeout

    def gettimeout(self) -> float | None:
        """Return the time-out."""
        return self._timeout

    def fileno(self) -> int:
        """Return no descriptor."""
        return -1

    def sendall(self, data: bytes) -> None:
        """Take a request."""

    def recv(self, size: int) -> bytes:
        """Return one byte."""
        self.waits.append(self._timeout)
        self._clock.at += 0.25
        return b"x"[:size]

    def recv_into(self, buffer: bytearray) -> int:
        """Return one byte."""
        buffer[:1] = self.recv(1)
        return 1


@pytest.mark.parametrize("own", [1.0, None], ids=["its own time-out", "the kernel's"])
@pytest.mark.parametrize("into", [False, True])
def test_each_piece_gets_what_is_left_of_the_time(
    monkeypatch: pytest.MonkeyPatch, *, own: float | None, into: bool
) -> None:
    """INV-8: the pieces of an answer share one time-out, and the next answer has the whole of it again."""
    clock = Clock()
    monkeypatch.setattr(_answers, "_now", clock)
    dripping = Dripping(clock, own)
    sock = AnswerSocket(dripping, 1.0)  # type: ignore[arg-type]
    for _ in range(2):
        dripping.waits.clear()
        sock.sendall(b"request")
        for _ in range(4):
            assert (sock.recv_into(bytearray(9)) if into else len(sock.recv(9))) == 1
        with pytest.raises(TimeoutError):
            sock.recv(9)
        assert dripping.waits == [own, 0.75, 0.5, 0.25]
        assert dripping.gettimeout() == own


@pytest.mark.parametrize("timeout", [0, None])
def test_a_look_and_a_socket_without_a_time_out_are_left_alone(timeout: float | None) -> None:
    """redis-py looks without waiting whether a connection is in step; a user's client may have no time-out."""
    dripping = Dripping(Clock(), timeout)
    sock = AnswerSocket(dripping)  # type: ignore[arg-type]
    for _ in range(3):
        sock.recv(9)
    assert dripping.waits == [timeout] * 3


def test_what_is_given_back_is_read_again() -> None:
    """A piece that another reader is for comes first, in pieces of the size that it asks for."""
    sock = AnswerSocket(Dripping(Clock(), 1.0))  # type: ignore[arg-type]
    sock.sendall(b"request")
    assert sock.ask(b"request", 9) == b"x"
    sock.unread(b"abc")
    buffer = bytearray(2)
    assert (sock.recv_into(buffer), bytes(buffer)) == (2, b"ab")
    assert sock.recv(9) == b"c"
    assert sock.recv(9) == b"x"


def test_an_answer_has_a_largest_size() -> None:
    """What comes without an end is cut off."""
    sock = AnswerSocket(Dripping(Clock(), None))  # type: ignore[arg-type]
    assert sock.recv(1) == b"x"
    sock._room = 1
    assert sock.recv(1) == b"x"
    with pytest.raises(TooLarge, match="delete the value"):
        sock.recv(1)


@contextmanager
def server(answer: bytes, *, drips: bool = False) -> Iterator[int]:
    """A server that gives one answer to all but a greeting; yield its port.

    One that drips sends the last byte of an answer never, and one byte before it each tenth of a second.
    """
    over = threading.Event()

    def serve(client: socket.socket) -> None:
        with client:
            while data := client.recv(1 << 16):
                if data.startswith(b"version"):
                    client.sendall(b"VERSION 1.6.0\r\n")
                    continue
                client.sendall(answer[:-1] if drips else answer)
                while drips and not over.wait(0.1):
                    client.sendall(b"0")

    def guarded(client: socket.socket) -> None:
        with suppress(OSError):
            serve(client)

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=guarded, args=(client,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]
        over.set()
        listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("kind", ["redis", "memcached"])
@pytest.mark.parametrize("call", ["load", "lease", "commit", "inspect"])
def test_a_server_that_drips_ends_a_call_in_time(kind: str, call: str) -> None:
    """INV-8: a byte every tenth of a second never ends the answer; the time-out of 0.3 s ends the call."""
    arguments = {"lease": ("k", "me", "me", None, 3.0), "commit": (GRANT, b"{}", 3.0)}.get(call, ("k",))
    with server(b"$1000\r\n" if kind == "redis" else b"VALUE k 0 1000 7\r\n", drips=True) as port:
        backend = open_backend(f"{kind}://127.0.0.1:{port}?timeout=0.3s")
        done = threading.Event()
        errors: list[BaseException] = []

        def ask() -> None:
            try:
                getattr(backend, call)(*arguments)
            except BackendUnavailable as error:
                errors.append(error)
            done.set()

        threading.Thread(target=ask, daemon=True).start()
        assert done.wait(PATIENCE)
        assert "did not answer in time" in str(errors[0])
        backend.close()


@pytest.mark.parametrize("size", [3, 500, 1_010, 1 << 14])
@pytest.mark.parametrize("kind", ["redis", "memcached"])
def test_an_answer_in_pieces_is_the_same(kind: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record is read at once if it comes at once, and otherwise piece by piece."""
    answer, stored = VALUES[kind]
    module = "redis._backend" if kind == "redis" else "memcached._wire"
    monkeypatch.setattr(f"tokencache.backends.{module}._CHUNK", size)
    with server(answer) as port:
        backend = open_backend(f"{kind}://127.0.0.1:{port}?timeout=30s")
        assert backend.load("k") == backend.load("k") == stored
        backend.close()


@pytest.mark.parametrize("half", ["threads", "loops"])
@pytest.mark.parametrize("size", [LARGEST_ANSWER + 1, 10**18])
def test_a_giant_value_of_redis_is_not_read(half: str, size: int) -> None:
    """INV-8: with threads the value is cut off, on loops its announced size is; it counts as an unreadable record."""
    with server(GIANTS["redis"] % size + b"x" * (LARGEST_ANSWER + 1)) as port:
        backend = open_backend(f"redis://127.0.0.1:{port}?timeout=30s")
        probe: Probe = AsyncProbe(backend) if half == "loops" else backend
        assert probe.load("k") == Stored(b"", None)
        with pytest.raises(BackendUnavailable, match="delete the value"):
            probe.inspect("k")
        if isinstance(probe, AsyncProbe):
            probe.stop()
        backend.close()


@pytest.mark.parametrize("size", [LARGEST_ANSWER + 1, 10**8, 10**18])
def test_a_giant_value_of_memcached_is_not_read(size: int) -> None:
    """INV-8: the announced size is refused, so that nothing of the value is waited for."""
    with server(GIANTS["memcached"] % size) as port:
        backend = open_backend(f"memcached://127.0.0.1:{port}?timeout=30s")
        with pytest.raises(BackendUnavailable, match=r"delete the value|not memcached's protocol"):
            backend.load("k")
        backend.close()
