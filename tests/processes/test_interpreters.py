"""Subinterpreters, as mod_wsgi makes one for each application: they end without a thread of ours, or have none."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

PATIENCE = 60.0

SHARED = """
import sys
sys.path[:] = {path!r}
import asyncio, threading, time
from tokencache import TokenCache
from tokencache._engine import timer

timer._IDLE = 3600  # it ends with the interpreter, not because it is idle

def login():
    logins.append(1)
    if len(logins) == slow:
        time.sleep(1)
        print("slept", flush=True)
    return {{"access_token": "t", "expires_in": 3600}}

logins, slow = [], {slow}
source = TokenCache("memory://", observers=[]).source(login, key="k", keep_warm={warm})
"""

THREADS = """
source.token()
try:
    source.renew(timeout=0.1)
except Exception as error:
    print(type(error).__name__)
while not slow and any(thread.name == "tokencache-k" for thread in threading.enumerate()):
    time.sleep(0.001)
print(sorted(thread.name for thread in threading.enumerate() if thread is not threading.main_thread()), flush=True)
"""

NONE = """
print(source.token().value, asyncio.run(source.arenew()).value, source.renew().value, flush=True)
"""

ENDING = """
import _testcapi
assert _testcapi.run_in_subinterp({code!r}) == 0
print("end")
"""

ISOLATED = """
try:
    import _interpreters as interpreters
    made = interpreters.create()
except ImportError:
    import _xxsubinterpreters as interpreters
    made = interpreters.create(isolated=True)
interpreters.run_string(made, {code!r})
interpreters.destroy(made)
print("end")
"""


def ran(tmp_path: Path, program: str) -> list[str]:
    """Run a program and return its lines; it must not write to stderr."""
    script = tmp_path / "script.py"
    script.write_text(program)
    # Coverage cannot start in a second interpreter of a process, and says so on stderr.
    environ = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    command = [sys.executable, str(script)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


@pytest.mark.skipif(find_spec("_testcapi") is None, reason="this Python was installed without its test modules")
@pytest.mark.parametrize(
    ("warm", "slow", "said"),
    [
        pytest.param(False, 0, ["['tokencache-heartbeat']"], id="timer"),
        pytest.param(True, 0, ["['tokencache-heartbeat', 'tokencache-warm']"], id="warmer"),
        pytest.param(
            False, 2, ["DeadlineExceeded", "['tokencache-heartbeat', 'tokencache-k']", "slept"], id="fetch in progress"
        ),
    ],
)
def test_a_subinterpreter_ends_with_its_threads(tmp_path: Path, *, warm: bool, slow: int, said: list[str]) -> None:
    """A thread that is left ends the whole process: "Py_EndInterpreter: not the last thread"."""
    code = SHARED.format(path=sys.path, warm=warm, slow=slow) + THREADS
    assert ran(tmp_path, ENDING.format(code=code)) == [*said, "end"]


def test_a_subinterpreter_without_threads_gets_tokens(tmp_path: Path) -> None:
    """INV-8: an isolated one may start no daemon thread, so each caller makes its own fetch."""
    code = SHARED.format(path=sys.path, warm=False, slow=0) + NONE
    assert ran(tmp_path, ISOLATED.format(code=code)) == ["t t t", "end"]
