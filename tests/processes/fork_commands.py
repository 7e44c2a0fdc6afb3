"""A program that runs many commands with its own standard streams, each in a new fork.

A fork begins with the streams of the interpreter's start and ends like a process, without importing the modules again.
Arguments: the stream to capture (1 or 2), a folder, and the commands as JSON. Files in the folder: `0`, `1`, … hold the
output of each command on that stream, and `codes` their exit codes.
"""

from __future__ import annotations

import gc
import json
import os
import shlex
import sys
import threading
from pathlib import Path

import httpx
from typer.testing import CliRunner

from tokencache.cli import bench, main, verify
from tokencache.cli.app import app

# The tests check neither speed nor the processes that these commands start.
bench.ROUNDS = bench.SHARED_CALLS = 10
verify._report = lambda orders: {"seconds": 0.001}
for warm in ("config schema", "doctor qpay --no-login", "bench nonsense", "verify", "tail qpay --for 0", "--help"):
    CliRunner().invoke(app, warm.split())
httpx.Client().close()
assert threading.active_count() == 1
gc.freeze()  # a fork ends sooner, since its collector skips the older objects

captured, folder = int(sys.argv[1]), Path(sys.argv[2])
codes: list[int] = []
for number, command in enumerate(json.loads(sys.argv[3])):
    child = os.fork()
    if not child:
        file = os.open(folder / str(number), os.O_WRONLY | os.O_CREAT)
        os.dup2(file, captured)
        os.close(file)
        sys.argv = ["tokencache", *shlex.split(command)]
        main()
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
(folder / "codes").write_text(json.dumps(codes))
