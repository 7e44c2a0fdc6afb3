"""Sessions for several Pythons: `nox` runs the tests on every supported one that is installed."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import nox

SUPPORTED = ("3.11", "3.12", "3.13")
PINS = "requirements/dev.txt"

nox.needs_version = ">=2025.5"
nox.options.default_venv_backend = "venv"
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_missing_interpreters = False


def _interpreter(version: str) -> str:
    """Return a working interpreter of this version: from PATH, else from pyenv's folder, else the bare version."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = [f"python{version}", *map(str, sorted(pyenv.glob(f"{version}.*/bin/python"), reverse=True))]
    for candidate in candidates:
        try:
            probe = subprocess.run(  # noqa: S603 - our own candidates
                [candidate, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
                capture_output=True,
                check=False,
                text=True,
            )
        except OSError:
            continue
        if probe.returncode == 0 and probe.stdout.strip() == version:
            return candidate
    return version


@nox.session(python=[_interpreter(version) for version in SUPPORTED])
def tests(session: nox.Session) -> None:
    """Run the tests; arguments after `--` go to pytest."""
    session.install("--constraint", PINS, "--upgrade", "pip")
    session.install("--constraint", PINS, "--group", "test", "--editable", ".[all]")
    session.run("python", "-m", "pytest", *session.posargs)
