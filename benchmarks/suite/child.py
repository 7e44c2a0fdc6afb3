"""Measurements in a separate process, so that threads, imports and memory of one peer do not affect another."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

_BENCHMARKS = Path(__file__).parents[1]


class Child:
    """A process that calls ``function`` of a module of the suite and prints its result."""

    def __init__(self, module: str, function: str, **arguments: object) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "suite.child", module, function, json.dumps(arguments)],
            cwd=_BENCHMARKS,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={name: value for name, value in os.environ.items() if not name.startswith("COV")},
        )

    def result(self, timeout: float = 120.0) -> Any:  # noqa: ANN401  (the result of the function)
        """Wait for the result. Raises ``RuntimeError`` with the last line of stderr."""
        try:
            out, errors = self._process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            message = f"no result within {timeout:g} s"
            raise RuntimeError(message) from None
        if self._process.returncode:
            lines = [line for line in errors.splitlines() if line.strip()]
            raise RuntimeError(lines[-1] if lines else f"exit code {self._process.returncode}")
        return json.loads(out.splitlines()[-1])


def main() -> None:
    """Call the function and print its result; exit without waiting for threads of a peer."""
    module, function, arguments = sys.argv[1:]
    result = getattr(importlib.import_module(f"suite.{module}"), function)(**json.loads(arguments))
    print(json.dumps(result), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
