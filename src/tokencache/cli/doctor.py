"""The doctor: one finding per check of provider, backend, record and token, with a remedy if it is not ok.

Backends and providers add checks of their own by hooks: :mod:`tokencache.health`.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from typing import TYPE_CHECKING, Final, NamedTuple, cast, get_args

from tokencache.cli._checks import binds, is_stuck, is_usable, round_trip, scratch_key, state, versions
from tokencache.cli._counted import CountedProvider
from tokencache.cli._render import duration
from tokencache.errors import BackendUnavailable, DeadlineExceeded, ProviderRejected, TokenCacheError
from tokencache.health import ExaminedBackend, ExaminedProvider, Finding, Mark, failed, ok, skipped
from tokencache.ports import Secret

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Mapping

    from tokencache import TokenSource
    from tokencache._resolver import Resolved
    from tokencache.cli._setup import Setup
    from tokencache.events import Event
    from tokencache.ports import Backend
    from tokencache.status import Status

_SHORTEST_SECRET: Final = 4  # any text contains shorter ones by chance
_COLOURS: Final = {"ok": "32", "warning": "33", "failed": "1;31", "skipped": "2"}


class Result(NamedTuple):
    """A finding and its subject: ``runtime``, the provider's name, ``backend`` or ``token``."""

    subject: str
    finding: Finding


class Doctor:
    """Examines a backend, and a provider if one is named; ``results`` yields each finding as soon as it is known.

    ``login`` allows one request to the provider; ``None`` allows it only if no token is stored. Afterwards ``logins``
    is the number of logins, and ``key`` names the record.
    """

    def __init__(
        self, provider: str | None, setup: Setup, *, login: bool | None = None, timeout: float | None = None
    ) -> None:
        self.key: str | None = None
        self._counted: CountedProvider | None = None
        self._name = provider
        self._setup = setup
        self._login = login
        self._timeout = timeout
        self._hidden: set[str] = set()
        self._took: float | None = None
        self._unwell: set[str] = set()
        self._shared = True

    @property
    def logins(self) -> int:
        """The number of token requests to the provider."""
        return 0 if self._counted is None else self._counted.logins

    def results(self) -> Iterator[Result]:
        """Yield the findings, without secrets (INV-9)."""
        for subject, finding in self._all():
            if finding.mark == "failed":
                self._unwell.add(subject)
            yield Result(subject, self._without_secrets(finding))

    def _all(self) -> Iterator[Result]:
        yield Result("runtime", versions(None if self._name is None else _distribution_of(self._name)))
        path = self._setup.plan.path
        where = "variables and defaults, no file" if path is None else str(path.absolute())
        yield Result("runtime", ok("configuration", where))
        configured: Resolved | None = None
        if self._name is not None:
            configured = yield from self._made_provider(self._name)
        backend = yield from self._made_backend(configured)
        if backend is None:
            if self._name is not None:
                yield Result("token", skipped("token", "no backend shares it; correct the URL first"))
            return
        try:
            yield from self._with(backend, configured)
        finally:
            backend.close()

    def _with(self, backend: Backend, configured: Resolved | None) -> Iterator[Result]:
        """Yield the findings that need a backend."""
        from tokencache import TokenCache
        from tokencache.events import log

        with TokenCache.from_config(self._setup.plan, backend=backend, observers=(log, self._note)) as cache:
            source = None
            if configured is not None:
                self._counted = CountedProvider(configured.provider, most=1)
                policy = self._setup.quiet_policy(configured)
                source = cache.source(self._counted, policy=policy, key=configured.key)
            self.key = None if source is None else source.key
            yield from self._backend(backend, self.key or "tokencache")
            if source is not None:
                yield from self._token(source)
            elif self._name is not None:
                yield Result("token", skipped("token", f"the provider {self._name!r} cannot be asked; see above"))

    # --- provider -----------------------------------------------------------------------------------------------

    def _made_provider(self, name: str) -> Generator[Result, None, Resolved | None]:
        """Make the provider and yield its own findings; return it, ``None`` if it cannot be made."""
        remedy = "set the missing values for this command and for your service"
        try:
            configured = self._setup.provider(name)
            provider = configured.provider
            self._hidden |= set(_secrets_of(provider.identity()))
        except TokenCacheError as error:
            yield Result(name, failed("settings", str(error), remedy))
            return None
        except Exception as error:  # noqa: BLE001  (INV-9: its message may hold a secret)
            yield Result(name, failed("settings", f"the provider cannot be made: {type(error).__name__}", remedy))
            return None
        yield Result(name, ok("settings", f"complete, with {len(self._hidden)} credential(s), hidden"))
        if isinstance(provider, ExaminedProvider):
            yield from _heard(name, provider.findings)
        else:
            yield Result(name, skipped("checks", "this provider brings no checks of its own"))
        return configured

    # --- backend ------------------------------------------------------------------------------------------------

    def _made_backend(self, configured: Resolved | None) -> Generator[Result, None, Backend | None]:
        """Make the backend of the URL; return it, ``None`` if it cannot be made."""
        from tokencache.plugins import open_backend

        try:
            url = self._setup.url(configured)
            self._hidden |= {secret for secret in (url.password,) if secret}
            self._shown = str(url)
            return open_backend(url)
        except TokenCacheError as error:
            remedy = "correct --backend, TOKENCACHE_BACKEND, REDIS_DATABASE_URI or the configuration"
            yield Result("backend", failed("backend", str(error), remedy))
            return None

    def _backend(self, backend: Backend, key: str) -> Iterator[Result]:
        """Yield the findings about the backend itself."""
        import time

        try:
            backend.inspect(key)
            began = time.perf_counter()
            backend.inspect(key)
            took = (time.perf_counter() - began) * 1e3
        except TokenCacheError as error:
            remedy = "start it, or correct the URL: docs/troubleshooting.md, Redis connection error"
            yield Result("backend", failed("reachable", str(error), remedy))
            if "ACL" in str(error) and isinstance(backend, ExaminedBackend):  # it answers, and can tell what it lacks
                yield from _heard("backend", lambda: backend.findings(key))
            return
        yield Result("backend", ok("reachable", f"{self._shown} answers within {took:.1f} ms"))
        yield Result("backend", round_trip(backend, scratch_key(backend, key)))
        if isinstance(backend, ExaminedBackend):
            yield from _heard("backend", lambda: backend.findings(key))
        else:
            yield Result("backend", skipped("checks", "this backend brings no checks of its own"))

    # --- token --------------------------------------------------------------------------------------------------

    def _token(self, source: TokenSource) -> Iterator[Result]:
        """Yield the state of the key, and whether a token can be obtained."""
        status = source.status()
        for finding in state(status):
            yield Result("token", finding)
        why_not = self._why_no_login(status)
        if why_not is not None:
            yield Result("token", why_not)
            return
        try:
            token = source.token(self._timeout)
            if self._login and not self.logins:
                token = source.renew(self._timeout)
        except TokenCacheError as error:
            yield Result("token", failed("token", f"no token, {self._logins_text()}: {error}", _remedy(error)))
            return
        self._hidden |= {token.value, token.refresh_token or token.value}
        took = "" if self._took is None else f" in {self._took * 1e3:.0f} ms"
        seen = f"a token for {duration(token.expires_at - token.issued_at)} was obtained{took}, {self._logins_text()}"
        if self.logins and not self._shared:
            yield Result("token", failed("token", f"{seen}, but not stored for the fleet", "see the backend above"))
        else:
            yield Result("token", ok("token", seen))

    def _why_no_login(self, status: Status) -> Finding | None:
        """Return the finding that explains why there is no login, ``None`` if a login is allowed."""
        stuck = "the lease is stuck, so a caller would wait in vain; no login"
        if self._login is True:
            return skipped("token", stuck) if is_stuck(status) else None
        if is_usable(status):
            return ok("token", "a usable token is stored; no login (--login asks for another)")
        reasons = (
            (self._login is False, "--no-login forbids a login"),
            (is_stuck(status), stuck),
            (status.stored == "unknown", "the stored token is unknown; no login (--login asks for one)"),
            (binds(status), "a cooldown holds; no login"),
            (self._name in self._unwell, "a check above failed; no login (--login asks anyway)"),
        )
        why = next((text for holds, text in reasons if holds), None)
        return None if why is None else skipped("token", why)

    def _logins_text(self) -> str:
        return "by one login" if self.logins else "without a login"

    def _note(self, event: Event) -> None:
        """Record the time of the login, and whether its token was stored."""
        from tokencache.events import TokenFetched

        if isinstance(event, TokenFetched):
            self._took, self._shared = event.took, event.shared

    def _without_secrets(self, finding: Finding) -> Finding:
        """Return the finding as one printable line without secrets."""

        def clean(text: str) -> str:
            for secret in sorted(self._hidden, key=len, reverse=True):
                if len(secret) >= _SHORTEST_SECRET:
                    text = text.replace(secret, "<hidden>")
            return " ".join("".join(char if char.isprintable() else " " for char in text).split())

        remedy = None if finding.remedy is None else clean(finding.remedy)
        return Finding(clean(finding.check), finding.mark, clean(finding.seen), remedy)


def line(result: Result, width: int, *, colours: bool) -> str:
    """Return a result as one line: mark, subject in a column of ``width``, check, observation, remedy."""
    finding = result.finding
    mark = f"{finding.mark:<8}"
    if colours:
        mark = f"\x1b[{_COLOURS[finding.mark]}m{mark}\x1b[0m"
    told = f"{finding.seen.rstrip('.')}; remedy: {finding.remedy}" if finding.remedy else finding.seen
    return f"{mark} {result.subject:<{width}} {finding.check:<16} {told}"


def summary(results: Iterable[Result], logins: int) -> str:
    """Return the number of checks by outcome, and the number of logins."""
    counts = Counter(result.finding.mark for result in results)
    shown = [f"{counts[mark]} {mark}" for mark in cast("tuple[Mark, ...]", get_args(Mark)) if counts[mark]]
    return f"{counts.total()} checks: {', '.join(shown)}; {logins} login{'' if logins == 1 else 's'}"


def document(doctor: Doctor, results: Iterable[Result]) -> dict[str, object]:
    """Return all results as plain values, fit for JSON."""
    found = [{"subject": result.subject, **result.finding.as_dict()} for result in results]
    failures = sum(entry["mark"] == "failed" for entry in found)
    return {"key": doctor.key, "logins": doctor.logins, "failed": failures, "findings": found}


def wants_colours() -> bool:
    """Return whether stdout is a terminal, and ``NO_COLOR`` is not set."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def _heard(subject: str, hook: Callable[[], Iterable[Finding]]) -> Iterator[Result]:
    """Yield the findings of a hook; an exception, or another type than ``Finding``, becomes one failed check."""
    broken = "report it to the author of that plugin; `tokencache plugins` names the distribution"
    try:
        for finding in hook():
            if not isinstance(cast("object", finding), Finding):
                yield Result(subject, failed("checks", f"its own checks gave a {type(finding).__name__}", broken))
                return
            yield Result(subject, finding)
    except TokenCacheError as error:
        yield Result(subject, failed("checks", f"its own checks broke off: {error}", "see the message"))
    except Exception as error:  # noqa: BLE001  (INV-9: its message may hold a secret)
        yield Result(subject, failed("checks", f"its own checks broke off: {type(error).__name__}", broken))


def _remedy(error: TokenCacheError) -> str:
    """Return the remedy for an error of ``TokenSource.token``."""
    match error:
        case ProviderRejected():
            return "correct the credentials; the fleet pauses for rejected ones, and tries corrected ones at once"
        case DeadlineExceeded():
            return "raise --timeout, and find the lease holder: `tokencache tail`"
        case BackendUnavailable():
            return "see the findings on the backend above"
        case _:
            return "see the findings on the provider above: docs/troubleshooting.md, Failed to get QPay access token"


def _secrets_of(value: object) -> Iterator[str]:
    """Yield all credentials of an identity, also nested ones."""
    if isinstance(value, Secret):
        yield value.reveal().decode("utf-8", "replace")
    elif isinstance(value, dict):
        for part in cast("Mapping[object, object]", value).values():
            yield from _secrets_of(part)
    elif isinstance(value, list | tuple | set | frozenset):
        for part in cast("Iterable[object]", value):
            yield from _secrets_of(part)


def _distribution_of(name: str) -> str | None:
    """Return the distribution that contains a provider."""
    from tokencache.plugins import PROVIDERS, known

    return next((plugin.distribution for plugin in known(PROVIDERS) if plugin.name == name), None)
