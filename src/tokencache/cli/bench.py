"""Bench: the cost of a token on the user's own servers: first call, local copy, store, stampede.

It logs in once per backend, under a separate key of its own, and deletes its records.
"""

from __future__ import annotations

import secrets
import statistics
import sys
import time
import timeit
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from typing import TYPE_CHECKING, Final

from tokencache.cli._bench_figures import BenchReport, Figures, Percentiles, Stampede
from tokencache.cli._bench_worker import Drill, PlayedProvider
from tokencache.cli._checks import binds, clear
from tokencache.cli._counted import CountedProvider
from tokencache.cli._exit import complain
from tokencache.cli._fleet import Fleet
from tokencache.cli._read_only import ReadOnlyBackend
from tokencache.cli._render import duration
from tokencache.errors import BackendUnavailable, ConfigurationError, ProviderUnavailable, TokenCacheError
from tokencache.plugins import open_backend

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

    from tokencache import Token, TokenSource
    from tokencache._resolver import Resolved
    from tokencache.cli._setup import Setup
    from tokencache.ports import Backend
    from tokencache.url import BackendURL

ROUNDS: Final = 50_000
TURNS: Final = 5
SHARED_CALLS: Final = 1_000
SHARED_FOR: Final = 2.0
"""Longest measurement of shared gets, in seconds."""

SHORTEST: Final = 15.0
"""Least remaining lifetime of a token, in seconds: it must not expire during the measurement."""

LONGEST_PLAY: Final = 2.0
"""Longest simulated login, in seconds; a slower real login is simulated by this time."""

FAKE_LOGIN: Final = 0.25
FAKE_SIZE: Final = 1_000
FAKE: Final = f"a fake with a login of {FAKE_LOGIN * 1e3:.0f} ms"
_NAMES: Final = 8
_NOT_SHARED: Final = "processes do not share this backend, so there is no shared get and no stampede"


@dataclass(frozen=True)
class Place:
    """A backend on which to measure. ``key`` is the bench's own, ``cold`` that of its stampede."""

    setup: Setup
    configured: Resolved
    url: BackendURL
    key: str

    @property
    def cold(self) -> str:
        """The key of the stampede."""
        return f"{self.key}:cold"

    @property
    def drill_backend(self) -> str | None:
        """The backend as another process needs it, with its password."""
        return self.configured.backend


@dataclass(frozen=True)
class Size:
    """The numbers of processes and threads in the stampede, and the time-out of a login."""

    processes: int
    threads: int
    timeout: float | None


def measure(
    name: str | None, setups: Sequence[Setup], size: Size, tell: Callable[[Figures], None] | None = None
) -> BenchReport:
    """Measure on each backend, and call ``tell`` with the figures of each as soon as they are known.

    Every backend is checked before the first login. Raises the errors of ``TokenSource.token``, ``BackendUnavailable``
    for a backend that does not answer, and ``ConfigurationError`` for a provider that allows only one login.
    """
    import_module("httpx")  # most logins import it: import it now, so that the first backend is not slower
    report = BenchReport(FAKE if name is None else name)
    configured = _providers(name, setups)
    places = [_place(setup, each, name) for setup, each in zip(setups, configured, strict=True)]
    if name is not None:
        complain(
            f"{name} is asked for {len(places)} token{'' if len(places) == 1 else 's'} at most, stored beside the"
            " fleet's and deleted at the end; a server that keeps one token per client may end the fleet's"
        )
    for place in places:
        counted = CountedProvider(place.configured.provider, most=1)
        try:
            figures = _figures(place, counted, size)
        finally:
            report.logins += counted.logins
            _sweep(place)
        report.backends.append(figures)
        if tell is not None:
            tell(figures)
    return report


def _providers(name: str | None, setups: Sequence[Setup]) -> list[Resolved]:
    """Return a provider for each backend: new ones of the given name, or fakes without requests."""
    if name is None:
        played = PlayedProvider(FAKE_LOGIN, FAKE_SIZE, secrets.token_hex(16))
        return [setup.provider(played) for setup in setups]
    found = [setup.provider(name) for setup in setups]
    if any(getattr(each.provider, "refreshing", False) for each in found):
        message = (
            f"[{name}] each login spends the refresh token that the fleet needs, so the bench cannot ask for one;"
            " run `tokencache bench` without a provider, on the same backend"
        )
        raise ConfigurationError(message)
    return found


def _place(setup: Setup, configured: Resolved, name: str | None) -> Place:
    """Return where to measure; raise if the backend does not answer, or during a cooldown."""
    from tokencache import TokenCache

    url = setup.url(configured)
    with (
        closing(open_backend(url)) as backend,
        TokenCache.from_config(setup.plan, backend=backend, observers=()) as cache,
    ):
        if name is None:
            return Place(setup, configured, url, _own_key(backend, url, f"{setup.plan.namespace}tokencache"))
        source = cache.source(configured.provider, policy=setup.quiet_policy(configured), key=configured.key)
        own = _own_key(backend, url, source.key)
        status = source.status()
        if status.cooldown is not None and binds(status):
            message = (
                f"[{name}] a cooldown holds for {duration(status.cooldown.remaining)} more, and the bench keeps it:"
                f" {status.cooldown.message}; try again then"
            )
            raise ProviderUnavailable(message)
    return Place(setup, configured, url, own)


def _own_key(backend: Backend, url: BackendURL, beside: str) -> str:
    """Return an empty key, one of a few fixed names: a store may keep a small file per key for ever."""
    problem: BackendUnavailable | None = None
    for number in range(_NAMES):
        key = f"{beside}:bench{number or ''}"
        try:
            slots = [backend.inspect(each) for each in (key, f"{key}:cold")]
        except BackendUnavailable as error:  # one of several servers may be down
            problem = problem or error
        else:
            if all(slot.stored is None and slot.owner is None and slot.cooldown is None for slot in slots):
                return key
    if problem is None:
        message = f"{_NAMES} other benches run on {url}; try again when they have ended"
        raise BackendUnavailable(message)
    message = f"{problem}; start it, or correct the URL: docs/troubleshooting.md, Redis connection error"
    raise BackendUnavailable(message)


def _figures(place: Place, counted: CountedProvider, size: Size) -> Figures:
    """Return the figures of one backend."""
    from tokencache import TokenCache

    with (
        closing(open_backend(place.url)) as backend,
        TokenCache.from_config(place.setup.plan, backend=backend) as cache,
        _progress() as at_work,
    ):
        source = cache.source(counted, policy=place.setup.quiet_policy(place.configured), key=place.key)
        at_work(f"{place.url}: the first token")
        source.status()  # derives the identity and connects to the store, so that neither is measured
        began = time.perf_counter()
        token = source.token(size.timeout)
        first = time.perf_counter() - began
        _require_shared(source)
        if token.lifetime < SHORTEST:
            message = (
                f"[{source.provider}] its tokens live {duration(token.lifetime)}, which is too short to measure; run"
                " `tokencache bench` without a provider, on the same backend"
            )
            raise TokenCacheError(message)
        at_work(f"{place.url}: a token from the local copy")
        cached = statistics.median(timeit.repeat(source.token, number=ROUNDS, repeat=TURNS)) / ROUNDS
        figures = Figures(str(place.url), first, cached, Percentiles.of(_single(source.token)))
        with closing(open_backend(place.url)) as another:
            if another.load(place.key) is None:
                return replace(figures, note=_NOT_SHARED)
        at_work(f"{place.url}: a token from the store")
        figures.shared = Percentiles.of(list(_shared(place, backend)))
        at_work(f"{place.url}: {size.processes} processes that have none")
        figures.stampede = _stampede(place, size, login=min(first, LONGEST_PLAY), token=token)
    return figures


@contextmanager
def _progress() -> Generator[Callable[[str], None]]:
    """Show the current step on a terminal. No thread draws, because it would disturb the measurement."""
    if not sys.stderr.isatty():
        yield lambda _text: None
        return

    def say(text: str) -> None:
        sys.stderr.write(f"\r\x1b[2K{text}")
        sys.stderr.flush()

    try:
        yield lambda text: say(f"  {text} …")
    finally:
        say("")


def _require_shared(source: TokenSource) -> None:
    """Raise ``BackendUnavailable`` if the token could not be stored."""
    problem = source.status().problem
    if problem is not None:
        message = f"{problem}; the bench needs a backend that answers"
        raise BackendUnavailable(message)


def _single(ask: Callable[[], object]) -> list[float]:
    """Return the times of many calls, without the time of reading the clock."""
    clock = time.perf_counter_ns
    own = statistics.median([-(clock() - clock()) for _ in range(1_000)])
    times: list[float] = []
    for _ in range(ROUNDS):
        began = clock()
        ask()
        times.append(max(clock() - began - own, 1) * 1e-9)
    return times


def _shared(place: Place, backend: Backend) -> Iterator[float]:
    """Yield the times of shared gets: each is the first call of a new source, and finds the token in the store."""
    from tokencache import TokenCache

    reader, policy = ReadOnlyBackend(backend), place.setup.quiet_policy(place.configured)
    provider = CountedProvider(place.configured.provider, most=0)
    ends = time.monotonic() + SHARED_FOR
    for number in range(SHARED_CALLS):
        with TokenCache.from_config(place.setup.plan, backend=reader, observers=()) as cache:
            source = cache.source(provider, policy=policy, key=place.key)
            _ = source.key  # a process that already works knows it
            began = time.perf_counter()
            source.token()
            yield time.perf_counter() - began
        if number and time.monotonic() > ends:
            return


def _stampede(place: Place, size: Size, *, login: float, token: Token) -> Stampede:
    """Let all threads of all processes ask at once for a token that is not stored; the login is simulated."""
    drill = Drill(
        backend=place.drill_backend,
        config=place.setup.config,
        key=place.cold,
        secret=secrets.token_hex(16),
        login=login,
        size=len(token.value),
        threads=size.threads,
        patience=login,
    )
    with Fleet("tokencache.cli._bench_worker", drill, size.processes) as fleet:
        fleet.muster(lambda _count: None)
        report = fleet.run(lambda _calls: None)
    if report.errors or not report.fetches:
        first = report.errors[0] if report.errors else "no process logged in"
        message = f"{len(report.errors)} callers of the stampede got no token. The first said: {first}"
        raise TokenCacheError(message)
    fetch = max(report.fetches)
    return Stampede(
        processes=size.processes,
        threads=size.threads,
        served=report.calls,
        provider_calls=len(report.fetches),
        fetch=fetch,
        beyond=Percentiles.of([max(took - fetch, 0.0) for took in report.times]),
    )


def _sweep(place: Place) -> None:
    """Delete the bench's own records, leases and cooldowns, also those of killed processes."""
    try:
        with closing(open_backend(place.url)) as backend:
            for key in (place.key, place.cold):
                clear(backend, key)
    except TokenCacheError as error:
        complain(f"cannot delete the bench's own records at {place.key}, which end by themselves: {error}")
