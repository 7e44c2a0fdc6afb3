"""A program packed without the metadata of distributions, as by zipapp, PyInstaller or for a small lambda."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipapp
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import tokencache
import tokencache_qpay
from tokencache.testing.token_server import TokenServer, json_reply

if TYPE_CHECKING:
    from collections.abc import Mapping

pytestmark = pytest.mark.live

WORKERS = 8
PROGRAM = """
import sys
from importlib.metadata import entry_points
from tokencache import TokenCache
from tokencache.plugins import own_version
from tokencache.providers.presets import presets

assert own_version() == "?"
assert "zoom" in presets()
assert not entry_points(group="tokencache.backends")
sys.stdin.read()  # all start together
with TokenCache.from_env() as cache:
    print(cache.source("acme").token().value)
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """Return a zipapp of our two packages, beside a folder of what they need; neither has metadata."""
    packed, needed = tmp_path / "packed", tmp_path / "needed"
    for folder in (packed, needed):
        folder.mkdir()
    for package in (tokencache, tokencache_qpay):
        home = Path(str(package.__file__)).parent
        for path in home.rglob("*"):
            if path.is_file() and path.suffix != ".pyc":
                target = packed / home.name / path.relative_to(home)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
    (packed / "__main__.py").write_text(PROGRAM)
    for path in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if path.suffix not in {".dist-info", ".pth"} and "tokencache" not in path.name:
            (needed / path.name).symlink_to(path)
    zipapp.create_archive(packed, tmp_path / "program.pyz")
    return tmp_path / "program.pyz"


@pytest.mark.timeout(300)
def test_eight_workers_of_a_zipapp_log_in_once(program: Path, tmp_path: Path) -> None:
    """Without metadata, eight processes find backend, provider and presets by name, and share one login (INV-2)."""
    with TokenServer() as server:
        server.answer(json_reply({"access_token": "shared", "token_type": "Bearer", "expires_in": 3600}))
        ran = run(
            program,
            {
                "PYTHONPATH": str(tmp_path / "needed"),
                "TOKENCACHE_BACKEND": f"file://{tmp_path}/tokens",
                "TOKENCACHE_PROVIDER_ACME_TYPE": "client_credentials",
                "TOKENCACHE_PROVIDER_ACME_TOKEN_URL": f"{server.url}/token",
                "TOKENCACHE_PROVIDER_ACME_CLIENT_ID": "acme",
                "TOKENCACHE_PROVIDER_ACME_CLIENT_SECRET": "secret",
            },
        )
        assert ran == [(0, "shared\n", "")] * WORKERS
        assert len(server.requests) == 1


def run(program: Path, environ: Mapping[str, str]) -> list[tuple[int, str, str]]:
    """Return exit code, output and errors of each worker; all begin when all have been started."""
    command = [sys.executable, "-S", str(program)]
    pipe = subprocess.PIPE
    workers = [
        subprocess.Popen(command, env=os.environ | environ, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        for _ in range(WORKERS)
    ]
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.close()
        worker.stdin = None
    return [(worker.wait(), out, err) for worker in workers for out, err in [worker.communicate()]]
