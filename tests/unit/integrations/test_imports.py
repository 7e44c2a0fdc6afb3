"""Each integration is loaded on demand, and does not import another integration's library."""

from __future__ import annotations

import subprocess
import sys

import pytest

LIBRARIES = {"aiohttp", "azure", "google", "httpx2", "msal", "requests"}
NEEDS = {
    "aiohttp": {"aiohttp"},
    "azure": {"azure", "requests"},  # azure.core imports requests if it is installed
    "google": {"google"},
    "httpx": set[str](),
    "httpx2": {"httpx2"},
    "msal": {"msal", "requests"},
    "requests": {"requests"},
}


@pytest.mark.parametrize("name", NEEDS)
def test_an_integration_loads_only_its_own_library(name: str) -> None:
    """The package alone loads no library; an integration loads no library of another one."""
    script = f"""
import sys
import tokencache, tokencache.integrations
loaded = lambda: {{name.split(".")[0] for name in sys.modules}} & {LIBRARIES!r}
assert not loaded(), loaded()
import tokencache.integrations.{name}
print(*sorted(loaded()))
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert {name} & LIBRARIES <= set(ran.stdout.split()) <= NEEDS[name]


@pytest.mark.parametrize("name", sorted(set(NEEDS) - {"httpx"}))
def test_a_missing_library_is_named(name: str) -> None:
    """Without the library the import fails, and the error names the library."""
    module = {"azure": "azure.core", "google": "google.auth"}.get(name, name)
    script = f"""
import sys
sys.modules[{module!r}] = None
try:
    import tokencache.integrations.{name}
except ImportError as error:
    print(error)
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert module in ran.stdout
