"""Each integration is loaded when it is asked for, and brings no other's library along."""

from __future__ import annotations

import subprocess
import sys

import pytest

LIBRARIES = {"aiohttp", "azure", "google", "httpx2", "msal", "requests"}
NEEDS = {
    "aiohttp": {"aiohttp"},
    "azure": {"azure", "requests"},  # azure.core looks for requests by itself
    "google": {"google"},
    "httpx": set[str](),
    "httpx2": {"httpx2"},
    "msal": {"msal", "requests"},
    "requests": {"requests"},
}


@pytest.mark.parametrize("name", NEEDS)
def test_an_integration_loads_its_own_library_alone(name: str) -> None:
    """After its import no library of another integration is there, and the package has loaded none before."""
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
    """Without the library the import fails with the library's name, and so says what to install."""
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
