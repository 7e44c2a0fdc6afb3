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


def _works(python: str, version: str) -> bool:
    """Return whether this command runs this version; a shim may be on PATH and run nothing."""
    try:
        probe = subprocess.run(  # noqa: S603 - our own candidates
            [python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
            capture_output=True,
            check=False,
            text=True,
        )
    except OSError:
        return False
    return probe.returncode == 0 and probe.stdout.strip() == version


def _put_on_path(version: str) -> None:
    """Put pyenv's interpreter of this version on PATH if none on it works."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for python in sorted(pyenv.glob(f"{version}.*/bin/python{version}"), reverse=True):
        if _works(f"python{version}", version):
            return
        os.environ["PATH"] = os.pathsep.join((str(python.parent), os.environ.get("PATH", "")))


for _version in SUPPORTED:
    _put_on_path(_version)


@nox.session(python=SUPPORTED)
def tests(session: nox.Session) -> None:
    """Run the tests; arguments after `--` go to pytest."""
    session.install("--constraint", PINS, "--upgrade", "pip")
    session.install("--constraint", PINS, "--group", "test", "--editable", ".[all]")
    session.run("python", "-m", "pytest", *session.posargs)
