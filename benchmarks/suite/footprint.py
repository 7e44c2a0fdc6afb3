"""Import time, memory of a source, and Python without the global interpreter lock."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from cells.many import many_sources
from suite.child import Child
from suite.results import LOCKED, Row, build, middle

if TYPE_CHECKING:
    from suite.plan import Plan

IMPORT, MEMORY, FREE = "import", "memory", "free-threaded Python"
MODULES = {
    "tokencache": ("ours", "tokencache"),
    "cachetools": ("peer", "cachetools"),
    "dogpile.cache": ("peer", "dogpile.cache"),
    "cashews": ("peer", "cashews"),
    "aiocache": ("peer", "aiocache"),
    "Authlib, requests": ("peer", "authlib.integrations.requests_client"),
    "httpx-auth": ("peer", "httpx_auth"),
    "requests-oauth2client": ("peer", "requests_oauth2client"),
    "google-auth": ("peer", "google.auth.credentials"),
    "MSAL": ("peer", "msal"),
    "azure-identity": ("peer", "azure.identity"),
    "qpay-client": ("peer", "qpay_client.v2"),
    "qpay-python": ("peer", "qpay"),
}


def imports(plan: Plan) -> list[Row]:
    """Time the start of Python with and without each import, in turns."""
    starts: dict[str, list[float]] = {}
    for _ in range(5 if plan.quick else 7):
        for name, (_, module) in {"nothing": ("", ""), **MODULES}.items():
            if plan.quick and name not in {"nothing", "tokencache", "MSAL"}:
                continue
            code = f"import {module}" if module else "pass"
            began = time.perf_counter()
            ended = subprocess.run([sys.executable, "-I", "-c", code], check=False, capture_output=True).returncode
            if not ended:
                starts.setdefault(name, []).append(time.perf_counter() - began)
    bare = starts["nothing"]
    rows: list[Row] = []
    for name, (kind, _) in MODULES.items():
        if name in starts:
            beyond = middle(took - base for took, base in zip(starts[name], bare, strict=False)) * 1e3
            rows.append(Row(IMPORT, name, "ours" if kind == "ours" else "peer", {"ms beyond Python": beyond}))
        elif not plan.quick:
            rows.append(Row(IMPORT, name, "peer", note="not measured: it cannot be imported"))
    return rows


def held(count: int) -> dict[str, float]:
    """Return the bytes of a source: as made, and with a token, beyond the token itself. Runs in a child."""
    import gc
    import tracemalloc

    from tokencache import Token, TokenCache

    def growth(make: object) -> float:
        gc.collect()
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        kept = make()  # type: ignore[operator]
        gc.collect()
        after = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        return (after - before) / len(kept)

    cache = TokenCache("memory://", sources=count + 1)

    def login() -> dict[str, object]:
        return {"access_token": "x", "expires_in": 3600}

    cache.source(login, key="first").token()
    many_sources(2, login)
    token = growth(
        lambda: [Token(f"token-{number}", expires_at=2e9, issued_at=number * 1.0) for number in range(count)]
    )
    idle = growth(lambda: [cache.source(login, key=f"key-{number}") for number in range(count)])
    other = TokenCache("memory://", sources=count)
    full = growth(lambda: many_sources(count, login, other))
    return {"bytes, idle": idle, "bytes, beyond its token": full - token, "bytes, token": token}


def memory(plan: Plan) -> list[Row]:
    """Measure the memory of sources in a separate process."""
    count = 1_000 if plan.quick else 5_000
    return [Row(MEMORY, "tokencache", "ours", Child("footprint", "held", count=count).result())]


def free_threaded(plan: Plan) -> list[Row]:
    """Report whether a free-threaded Python is installed; it is measured only if it runs this suite."""
    del plan
    if build() != LOCKED:
        return [Row(FREE, "tokencache", "ours", note=f"this run is on it: {build()}; see the threads above")]
    found = next((path for name in ("python3.14t", "python3.13t") if (path := shutil.which(name))), None)
    if found is None:
        return [Row(FREE, "tokencache", "ours", note="not available on this machine: nothing was measured")]
    return [Row(FREE, "tokencache", "ours", note=f"there; `make bench PYTHON={Path(found).name}` measures it")]
