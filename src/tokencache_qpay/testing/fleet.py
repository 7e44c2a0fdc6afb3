"""A fleet of real processes that ask for a QPay token at once: for tests with starts, kills and stops."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokencache_qpay.testing import FakeQPay

PATIENCE: Final = 60.0

_ASKING: Final = """
import sys, threading
from tokencache import TokenCache
from tokencache_qpay import QPayProvider

qpay, backend, threads, key = sys.argv[1:]
provider = QPayProvider("TEST_MERCHANT", "123456", base_url=qpay, key=key or None)
source = TokenCache(backend).source(provider)
source.key
print("ready", flush=True)
sys.stdin.readline()
got, errors = [], []

def ask():
    try:
        got.append(source.token().value)
    except Exception as error:
        errors.append(repr(error))

crowd = [threading.Thread(target=ask) for _ in range(int(threads))]
for thread in crowd:
    thread.start()
for thread in crowd:
    thread.join()
print(len(got), len(set(got)), hash(got[0]) if got else 0, *errors, flush=True)
"""


def start(qpay: FakeQPay, backend: str, threads: int, *, key: str = "") -> subprocess.Popen[str]:
    """Start a process that asks ``qpay`` for tokens on the backend of this URL, after :func:`go`."""
    process = subprocess.Popen(  # noqa: S603  (a constant script)
        [sys.executable, "-c", _ASKING, qpay.url, backend, str(threads), key],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": "1"},
    )
    line = process.stdout.readline() if process.stdout is not None else ""
    if line != "ready\n":
        process.kill()
        process.communicate()
        message = "a process of the fleet did not start; its error is on stderr"
        raise RuntimeError(message)
    return process


def go(processes: Sequence[subprocess.Popen[str]]) -> None:
    """Let all processes ask."""
    for process in processes:
        if process.stdin is not None:
            process.stdin.write("go\n")
            process.stdin.flush()


def answers(processes: Sequence[subprocess.Popen[str]]) -> list[list[str]]:
    """Return the result of each process: the numbers of tokens and distinct tokens, a hash of one, and errors."""
    return [process.communicate(timeout=PATIENCE)[0].split() for process in processes]
