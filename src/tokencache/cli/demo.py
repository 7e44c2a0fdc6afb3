"""The demo: four scenes against a fake QPay on loopback; each measures its promises.

Every scene has its own fake, so it counts only its own logins.
"""

from __future__ import annotations

import secrets
import tempfile
import threading
import time
import timeit
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from tokencache.cli._demo_worker import DemoOrders
from tokencache.cli._fleet import Fleet
from tokencache.errors import BackendUnavailable, ConfigurationError, TokenCacheError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from tokencache_qpay import QPayProvider
    from tokencache_qpay.testing import FakeQPay

LATENCY: Final = 0.25
PATIENCE: Final = LATENCY / 2
"""A call of more than half a login, in seconds, counts as one that waited for it."""

WORKER: Final = "tokencache.cli._demo_worker"
PROCESSES: Final = 8
THREADS: Final = 16
SHORT_LIFE: Final = 2.0
LOAD: Final = 6.0
LOAD_THREADS: Final = 8
CALLERS: Final = 50
MERCHANT: Final = "DEMO_MERCHANT"
CHECK: Final = {"object_type": "INVOICE", "object_id": "none-yet"}


@dataclass
class Promise:
    """A promise of the library, the figure that was measured for it, and whether it was kept."""

    text: str
    figure: str
    kept: bool


@dataclass
class Stage:
    """The state of the demo: the console, the backend, and the promises measured so far."""

    console: Console
    backend: str
    promises: list[Promise] = field(default_factory=list[Promise])

    def title(self, number: int, text: str) -> None:
        """Announce a scene."""
        self.console.print(f"\n[bold]{number}/4  {text}[/bold]")

    def figure(self, name: str, value: str) -> None:
        """Show one measured figure."""
        self.console.print(f"     {name:<34}{value}")

    def judge(self, promise: str, figure: str, *, kept: bool) -> None:
        """Record whether a promise was kept."""
        self.promises.append(Promise(promise, figure, kept))

    @contextmanager
    def progress(self, text: str, total: float) -> Generator[Callable[[float, str], None]]:
        """Show a progress bar on a terminal while the block works; the block reports its progress."""
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=24), TimeElapsedColumn())
        with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as bar:
            task = bar.add_task(f"    {text}", total=total)

            def advance(done: float, more: str = "") -> None:
                bar.update(task, completed=done, description=f"    {text}{more}")

            yield advance

    @contextmanager
    def fake(self, *, lifetime: float = 3600.0) -> Generator[tuple[FakeQPay, QPayProvider]]:
        """Yield a fake QPay and a provider with an account there."""
        from tokencache_qpay import QPayProvider
        from tokencache_qpay.testing import FakeQPay

        account = {MERCHANT: secrets.token_urlsafe()}
        with FakeQPay(credentials=account, latency=LATENCY, lifetime=lifetime, expires="duration") as fake:
            yield fake, QPayProvider(MERCHANT, account[MERCHANT], base_url=fake.url)


def show(backend: str | None) -> bool:
    """Run the four scenes and return whether every promise was kept."""
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console = Console(highlight=False, soft_wrap=True, width=120)
    if backend is not None and backend.partition(":")[0] == "memory":
        message = "memory:// is not shared between the demo's processes: omit --backend, or name another"
        raise ConfigurationError(message)
    with tempfile.TemporaryDirectory(prefix="tokencache-demo-") as folder:
        stage = Stage(console, backend or Path(folder).as_uri())
        _knock(stage)
        console.print(
            f"A fake QPay on loopback answers each login after {LATENCY * 1e3:.0f} ms; "
            f"tokens are shared through {'the backend that you named' if backend else stage.backend}."
        )
        began = time.perf_counter()
        for scene in (first_and_cached, cold_fleet, expiry_under_load, one_revocation):
            scene(stage)
        _close(stage, time.perf_counter() - began)
    return all(promise.kept for promise in stage.promises)


def _knock(stage: Stage) -> None:
    """Raise ``BackendUnavailable`` if the backend does not answer: the fleet needs it."""
    from tokencache import TokenCache

    with TokenCache(stage.backend) as cache:
        status = cache.source(dict, key=_namespace()).status()
    if status.problem is not None:
        message = f"{status.problem}; the demo needs a backend that answers"
        raise BackendUnavailable(message)


def first_and_cached(stage: Stage) -> None:
    """Scene one: the time of the first call and of a cached call."""
    from tokencache import TokenCache

    stage.title(1, "One process: the first token, and every other")
    with stage.fake() as (fake, provider), TokenCache(stage.backend, namespace=_namespace()) as cache:
        source = cache.source(provider)
        with stage.progress("asking", 2) as advance:
            began = time.perf_counter()
            token = source.token()
            first = time.perf_counter() - began
            advance(1, " again and again")
            rounds = 100_000
            cached = min(timeit.repeat(source.token, number=rounds, repeat=5)) / rounds
        source.invalidate(token)
        stage.figure("first token", f"{first * 1e3:,.0f} ms")
        stage.figure("cached token", f"{cached * 1e9:,.0f} ns")
        stage.figure("speed-up", f"{first / cached:,.0f} times")
        stage.judge(
            "a cached token costs next to nothing",
            f"{cached * 1e9:,.0f} ns, {first / cached:,.0f} times faster than the first",
            kept=fake.logins == 1 and cached * 1000 < first,
        )


def cold_fleet(stage: Stage) -> None:
    """Scene two: many processes with many threads ask at once, and no token is stored."""
    stage.title(2, f"{PROCESSES} processes x {THREADS} threads ask at once, and no token is stored")
    with stage.fake() as (fake, provider):
        orders = _orders(stage, fake, threads=THREADS)
        with Fleet(WORKER, orders, PROCESSES) as fleet:
            with stage.progress("starting processes", PROCESSES) as advance:
                fleet.muster(lambda count: advance(count, f": {count}"))
            with stage.progress("all ask", PROCESSES * THREADS) as advance:
                report = fleet.run(lambda calls: advance(calls, f": {calls} served"))
        _forget(stage, provider, orders.namespace)
        asked = PROCESSES * THREADS
        stage.figure("callers served", f"{report.calls} of {asked}")
        stage.figure("slowest caller", f"{report.slowest * 1e3:,.0f} ms")
        stage.figure("logins", f"{fake.logins}")
        _fail_loudly(report.errors)
        stage.judge(
            f"{asked} cold callers, one login",
            f"{report.calls} served, {len(report.tokens)} token, {_count(fake.logins, 'login')}",
            kept=report.calls == asked and fake.logins == 1 and len(report.tokens) == 1,
        )


def expiry_under_load(stage: Stage) -> None:
    """Scene three: short-lived tokens are renewed while threads ask for them."""
    stage.title(3, f"Tokens that live {SHORT_LIFE:.0f} s, under {LOAD_THREADS} threads for {LOAD:.0f} s")
    with stage.fake(lifetime=SHORT_LIFE) as (fake, provider):
        orders = _orders(stage, fake, threads=LOAD_THREADS, seconds=LOAD)
        with Fleet(WORKER, orders, 1) as fleet:
            fleet.muster(lambda _count: None)
            began = time.perf_counter()
            with stage.progress("asking", LOAD) as advance:
                report = fleet.run(lambda calls: advance(time.perf_counter() - began, f": {calls:,} calls"))
        _forget(stage, provider, orders.namespace)
        tokens = len(report.tokens)
        stage.figure("calls", f"{report.calls:,}, with {tokens} tokens in turn")
        stage.figure("callers that waited for a renewal", f"{report.waited}")
        stage.figure("tokens handed out too late", f"{report.late}")
        stage.figure("slowest call", f"{report.slowest * 1e3:,.1f} ms")
        stage.figure("logins", f"{fake.logins}")
        _fail_loudly(report.errors)
        stage.judge(
            "no wait at renewal",
            f"{report.waited} of {report.calls:,} calls waited, over {max(tokens - 1, 0)} renewals",
            kept=report.waited == 0 and tokens > 1,
        )
        stage.judge("never a late token", f"{report.late} late", kept=report.late == 0)
        # The last login may have returned its token after the last call.
        stage.judge(
            "one login per renewal",
            f"{_count(fake.logins, 'login')}, {tokens} tokens",
            kept=fake.logins in {tokens, tokens + 1},
        )


def one_revocation(stage: Stage) -> None:
    """Scene four: the token is revoked, and all callers get a 401 at once."""
    import httpx

    from tokencache import TokenCache
    from tokencache.integrations.httpx import TokenAuth

    stage.title(4, f"The token is revoked, and {CALLERS} callers are refused with it at once")
    with stage.fake() as (fake, provider), TokenCache(stage.backend, namespace=_namespace()) as cache:
        source = cache.source(provider)
        revoked = source.token()
        fake.revoke()
        before = fake.logins
        start = threading.Barrier(CALLERS)
        with httpx.Client(base_url=fake.url, auth=TokenAuth(source), timeout=20, trust_env=False) as client:

            def call(_number: int) -> int:
                start.wait()
                return client.post("/v2/payment/check", json=CHECK).status_code

            answers: Counter[int] = Counter()
            with stage.progress("calling", CALLERS) as advance, ThreadPoolExecutor(CALLERS) as pool:
                try:
                    for answer in pool.map(call, range(CALLERS)):
                        answers[answer] += 1
                        advance(answers.total(), f": {answers[200]} good")
                finally:
                    start.abort()  # after Ctrl-C the pool does not wait for callers that never started
        logins = fake.logins - before
        healed = source.token()
        source.invalidate(healed)
        stage.figure("good responses", f"{answers[200]} of {CALLERS}")
        stage.figure("new logins", f"{logins}")
        stage.judge(
            "one 401, one renewal",
            f"{answers[200]} of {CALLERS} calls good, {_count(logins, 'new login')}",
            kept=answers[200] == CALLERS and logins == 1 and healed.value != revoked.value,
        )


def _orders(stage: Stage, fake: FakeQPay, *, threads: int, seconds: float = 0.0) -> DemoOrders:
    """Return the orders for the processes of one scene."""
    return DemoOrders(
        backend=stage.backend,
        namespace=_namespace(),
        base_url=fake.url,
        client_id=MERCHANT,
        client_secret=fake.credentials[MERCHANT],
        threads=threads,
        patience=PATIENCE,
        seconds=seconds,
    )


def _namespace() -> str:
    """Return a namespace of this run only, so that every scene starts without a stored token."""
    return f"tokencache-demo:{secrets.token_hex(4)}:"


def _forget(stage: Stage, provider: QPayProvider, namespace: str) -> None:
    """Delete the scene's record from the user's backend, without a renewal."""
    from tokencache import TokenCache
    from tokencache.cli._checks import clear
    from tokencache.plugins import open_backend

    with closing(open_backend(stage.backend)) as backend:
        clear(backend, TokenCache(backend, namespace=namespace).source(provider).key)


def _fail_loudly(errors: list[str]) -> None:
    """Raise the first error of a caller of the fleet, if there is one."""
    if errors:
        message = f"{_count(len(errors), 'caller')} of the demo got no token. The first said: {errors[0]}"
        raise TokenCacheError(message)


def _count(number: int, noun: str) -> str:
    """Return a number with its noun in the right form."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _close(stage: Stage, took: float) -> None:
    """Show the summary and the next commands."""
    table = Table("promise", "measured", "", box=None, pad_edge=False)
    for promise in stage.promises:
        verdict = "[green]kept[/green]" if promise.kept else "[bold red]BROKEN[/bold red]"
        table.add_row(promise.text, promise.figure, verdict)
    stage.console.print(f"\n[bold]Summary[/bold], after {took:.0f} s\n")
    stage.console.print(table)
    command = ".venv/bin/tokencache" if Path(".venv/bin/tokencache").exists() else "tokencache"
    stage.console.print("\n[bold]What to type next[/bold]\n")
    for line, meaning in (
        (f"{command} --help", "the commands"),
        (f"{command} plugins", "backends and providers that are installed"),
        (f"{command} token qpay", "a real token, once QPAY_CLIENT_ID and QPAY_CLIENT_SECRET are set"),
        ("less README.md", "the twelve lines for your own service"),
    ):
        stage.console.print(f"  {line:<34}{meaning}")
