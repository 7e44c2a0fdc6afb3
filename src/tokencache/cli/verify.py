"""Verify: the check after a deployment. It times the first token, a second get, and fresh processes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.table import Table

from tokencache.cli._counted import CountedProvider
from tokencache.cli._render import spell

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokencache import TokenSource
    from tokencache.cli._setup import Setup
    from tokencache.status import Status

MOST_LOGINS: Final = 2
PATIENCE: Final = 60.0
"""Time limit of a fresh process in seconds; after it the process is killed."""

_CALLS: Final = 1000
_NO_LOGIN: Final = ", because a token was stored; --login asks for another and times it"


@dataclass
class Verdict:
    """The times, in seconds, and whether processes share the token; if not, ``reason`` explains it."""

    key: str
    backend: str
    logins: int = 0
    first: float = 0.0
    again: float = 0.0
    processes: list[float] = field(default_factory=list[float])
    reason: str | None = None

    @property
    def by_login(self) -> bool:
        """Whether the first call logged in."""
        return self.logins > 0

    def as_dict(self) -> dict[str, object]:
        """Return plain values, fit for JSON."""
        return {
            "key": self.key,
            "backend": self.backend,
            "logins": self.logins,
            "shared": self.reason is None,
            "reason": self.reason,
            "first": {"by": "login" if self.by_login else "backend", "seconds": self.first},
            "again": {"seconds": self.again, "speedup": _speedup(self.first, self.again)},
            "processes": [{"seconds": seconds, "speedup": _speedup(self.first, seconds)} for seconds in self.processes],
        }


def compare(provider: str, setup: Setup, *, processes: int, login: bool, timeout: float | None) -> Verdict:
    """Obtain the token here and in fresh processes, one after another.

    The provider is asked twice at most: only this process asks, the others only read. With ``login`` it is asked even
    if a usable token is stored. Raises the errors of ``TokenSource.token``.
    """
    from tokencache import TokenCache
    from tokencache.plugins import open_backend

    configured = setup.provider(provider)
    counted = CountedProvider(configured.provider, most=MOST_LOGINS)
    url = setup.url(configured)
    with (
        closing(open_backend(url)) as backend,
        TokenCache.from_config(setup.plan, backend=backend) as cache,
    ):
        source = cache.source(counted, policy=setup.quiet_policy(configured), key=configured.key)
        verdict = Verdict(source.key, str(url))  # the key takes a while: not to be measured
        _ask(source, counted, verdict, login=login, timeout=timeout)
        verdict.logins = counted.logins
        orders = setup.orders(provider, timeout)
        verdict.reason = _not_stored(source.status())
        for _ in range(processes if verdict.reason is None else 0):
            report = _report(orders)
            verdict.reason = _not_shared(report, verdict)
            if verdict.reason is not None:
                break
            verdict.processes.append(report["seconds"])
    return verdict


def show(verdict: Verdict) -> None:
    """Print the figures as a small table."""
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{verdict.key} on {verdict.backend}\n", markup=False)
    table = Table("", "time", "quicker by", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    table.add_row(f"first, {'by a login' if verdict.by_login else 'from the backend'}", spell(verdict.first))
    for name, seconds in _rows(verdict):
        table.add_row(name, spell(seconds), f"{_speedup(verdict.first, seconds):,.0f} times")
    console.print(table)
    console.print(
        f"\n{verdict.logins} login{'' if verdict.logins == 1 else 's'}{'' if verdict.by_login else _NO_LOGIN}"
    )
    if verdict.reason is None:
        console.print("Processes share the token.")


def _ask(
    source: TokenSource, counted: CountedProvider, verdict: Verdict, *, login: bool, timeout: float | None
) -> None:
    """Obtain the token at first and again; note the times."""
    began = time.perf_counter()
    source.token(timeout)
    verdict.first = time.perf_counter() - began
    if login and not counted.logins:
        began = time.perf_counter()
        source.renew(timeout)
        verdict.first = time.perf_counter() - began
    began = time.perf_counter()
    for _ in range(_CALLS):
        source.token(timeout)
    verdict.again = (time.perf_counter() - began) / _CALLS


def _not_stored(status: Status) -> str | None:
    """Return why no other process can read the token, ``None`` if that is not known yet."""
    if status.stored == "unknown" or status.problem is not None:
        return f"the backend failed, so each process logs in for itself: {status.problem}"
    if status.stored != "ours":
        what = "nothing" if status.stored == "none" else "another identity's record"
        return f"the token was obtained, but {what} is stored at {status.key} on the backend {status.backend}"
    return None


def _not_shared(report: dict[str, Any], verdict: Verdict) -> str | None:
    """Return why a fresh process did not get the fleet's token, ``None`` if it did."""
    if report.get("key", verdict.key) != verdict.key:
        return f"a fresh process reads another key, {report['key']}, because its settings differ"
    if report.get("problem"):
        return f"a fresh process could not use the backend: {report['problem']}"
    if "seconds" not in report:
        return (
            f"a fresh process finds no usable record at {verdict.key} on {verdict.backend}, so each process logs in for"
            " itself: use a backend that processes share, which memory:// is not"
        )
    return None


def _report(orders: dict[str, object]) -> dict[str, Any]:
    """Run one fresh process and return what it says."""
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "tokencache.cli._verify_worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as worker:
        try:
            said, _ = worker.communicate(json.dumps(orders) + "\n", timeout=PATIENCE)
            report: dict[str, Any] = json.loads(said)
        except subprocess.TimeoutExpired:
            report = {"problem": f"it did not end within {PATIENCE:.0f} s"}
        except ValueError:
            report = {"problem": f"it ended with code {worker.wait()} and without a report"}
        finally:
            worker.kill()
    return report


def _rows(verdict: Verdict) -> Iterator[tuple[str, float]]:
    """Yield what the table shows below the first call."""
    yield "again, in this process", verdict.again
    if verdict.processes:
        count = len(verdict.processes)
        yield f"again, in {count} fresh {'process' if count == 1 else 'processes, the slowest'}", max(verdict.processes)


def _speedup(first: float, seconds: float) -> float:
    """Return how many times quicker something was than the first call."""
    return first / max(seconds, 1e-9)
