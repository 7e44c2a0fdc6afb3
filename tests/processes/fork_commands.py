"""A program: runs many commands with the standard streams that it was started with, each in a fork of its own.

A fork begins with the streams as the interpreter set them up, and ends as a process does, without importing all anew.
Arguments: the stream to capture (1 or 2), a folder, and the commands as JSON. Output in the folder: `0`, `1`, … hold
what each command wrote to that stream, and `codes` their exit codes.
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

# What is tested is not how quick it is, nor the processes that these commands start.
bench.ROUNDS = bench.SHARED_CALLS = 10
verify._report = lambda orders: {"seconds": 0.001}
for warm in ("config schema", "doctor qpay --no-login", "bench nonsense", "verify", "tail qpay --for 0", "--help"):
    CliRunner().invoke(app, warm.split())
httpx.Client().close()
assert threading.active_count() == 1
gc.freeze()  # a fork ends sooner: its collector does not look at what was here before

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
