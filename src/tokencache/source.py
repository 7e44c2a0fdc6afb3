"""The source: what callers hold. It returns a fresh local copy on the hot path, and starts a flight otherwise."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias, TypeVar

from tokencache import status
from tokencache._engine.drivers import arun, run
from tokencache._engine.effects import sleep
from tokencache._engine.flights import Flights
from tokencache._engine.flow import SHORTEST_WAIT, Failed, Job, Kept, Obtained, drop, obtain
from tokencache._engine.identity import Identity
from tokencache._engine.launcher import on_thread, running_loop
from tokencache._engine.local import LocalCopy
from tokencache._engine.warmer import resume
from tokencache._fork import notice_fork
from tokencache.errors import (
    BackendUnavailable,
    ConfigurationError,
    DeadlineExceeded,
    ProviderError,
    TokenCacheError,
)
from tokencache.events import FetchFailed, TokenInvalidated
from tokencache.shared import Shared
from tokencache.steps import adrive, drive

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Generator

    from tokencache._engine.context import SourceContext
    from tokencache._engine.effects import Flow
    from tokencache._engine.flights import Flight
    from tokencache._engine.flow import Outcome
    from tokencache.policy import RefreshPolicy
    from tokencache.ports import Reason
    from tokencache.status import Status
    from tokencache.token import Token

_LONGEST: Final = 1e8
_LAUNCH: Final = 2.0
"""How long a new flight may lack a runner, in seconds: an interrupt may stop its leader before the launch."""
_GRACE: Final = 5.0
"""How long a flight may hang past its deadline before the next one may start, in seconds."""


class JoinFlight(NamedTuple):
    """A step of a call: wait for a flight until ``deadline``; the reply is its outcome, ``None`` if it was abandoned.

    A caller that ``leads`` starts the flight first, for ``reason``.
    """

    flight: Flight
    leads: bool
    reason: Reason
    deadline: float


class RunFlow(NamedTuple):
    """A step of a call: run a flow beside the flights; the reply is its result."""

    start: Callable[[], Flow[object]]


T = TypeVar("T")
Steps: TypeAlias = "Generator[JoinFlight | RunFlow, Any, T]"


class TokenSource(LocalCopy, Shared):
    """A provider bound to a backend; safe to share between threads, event loops and over ``fork``.

    Made by :meth:`tokencache.TokenCache.source`.
    """

    __slots__ = (
        "__weakref__",
        "_flights",
        "_given_key",
        "_identity",
        "_namespace",
        "_spread",
        "_tasks",
    )

    def __init__(
        self,
        world: SourceContext,
        *,
        policy: RefreshPolicy,
        namespace: str,
        key: str | None,
    ) -> None:
        self._namespace = namespace
        self._given_key = key
        self._identity: Identity | None = None
        self._spread = world.draw() * 2 - 1
        super().__init__(world, policy)

    def _start_afresh(self) -> None:
        """Reset what a fork must not inherit: flights, tasks, and what :class:`LocalCopy` resets."""
        self._flights = Flights()
        self._tasks: set[asyncio.Task[None]] = set()
        super()._start_afresh()

    # --- public surface -----------------------------------------------------------------------------------------

    def token(self, timeout: float | None = None) -> Token:
        """Return a usable token, from this thread; ``timeout`` in seconds, by default the policy's.

        Raises :class:`ProviderRejected`, :class:`ProviderUnavailable`, :class:`DeadlineExceeded`,
        :class:`BackendClosed` or :class:`ConfigurationError`, but never while there is a usable token.
        """
        clock = self._clock  # a local name, because a call through a slot is slower on CPython 3.11
        if clock() < self._fresh_until:
            return self._token
        token = self._serve_and_refresh(self._launch_thread)
        return token if token is not None else self._drive(self._acquire(self._deadline(timeout)))

    async def atoken(self, timeout: float | None = None) -> Token:  # noqa: ASYNC109  (of the waiter, not of the flight)
        """Return a usable token, from an event loop; otherwise as :meth:`token`."""
        clock = self._clock
        if clock() < self._fresh_until:
            return self._token
        token = self._serve_and_refresh(self._launch_task)
        return token if token is not None else await self._adrive(self._acquire(self._deadline(timeout)))

    def renew(self, timeout: float | None = None) -> Token:
        """Return a newer token than the current one, by one fetch for the whole fleet.

        If the provider has no newer token, the current one is returned.
        """
        return self._drive(self._acquire(self._deadline(timeout), "renew", self._value()))

    async def arenew(self, timeout: float | None = None) -> Token:  # noqa: ASYNC109
        """Return a newer token, from an event loop; otherwise as :meth:`renew`."""
        return await self._adrive(self._acquire(self._deadline(timeout), "renew", self._value()))

    def invalidate(self, token: Token) -> bool:
        """Drop ``token`` here and in the backend, if it is still there; return whether it was dropped anywhere.

        A late report is safe: another token is not touched (compare-and-discard).
        """
        return self._drive(self._drop(token))

    async def ainvalidate(self, token: Token) -> bool:
        """Drop ``token`` if it is still kept, from an event loop; otherwise as :meth:`invalidate`."""
        return await self._adrive(self._drop(token))

    def replace(self, token: Token) -> Token | None:
        """Return another token after a resource server refused ``token`` with a 401, or ``None``: then the 401 stands.

        One renewal serves all callers that report the same token (INV-6). The result is ``None`` if ``token`` itself
        has just replaced a refused one, or if the provider has no other. This prevents a loop of renewals.
        """
        return self._drive(self._replace(token))

    async def areplace(self, token: Token) -> Token | None:
        """Return another token after a 401, from an event loop; otherwise as :meth:`replace`."""
        return await self._adrive(self._replace(token))

    def status(self) -> Status:
        """Return the state of token, lease, cooldown and backend, without secrets."""
        return self._drive(self._report())

    async def astatus(self) -> Status:
        """Return the status, from an event loop; otherwise as :meth:`status`."""
        return await self._adrive(self._report())

    def _rest(self) -> float:
        """Return the seconds until the warmer should ask again, to renew the token in time: at least 0.05."""
        now, copy = self._clock(), self._copy
        if copy is None or now >= copy.usable_at:
            return self._policy.probe
        return max(0.05, min(self._fresh_until - now, copy.token.lifetime / 20))

    @property
    def provider(self) -> str:
        """The name of the provider."""
        return self._world.provider.name

    @property
    def issuer(self) -> str | None:
        """The issuer of the tokens, from the provider's identity, or ``None``; for QPay the base URL."""
        issuer = self._world.provider.identity().get("issuer")
        return issuer if isinstance(issuer, str) else None

    @property
    def key(self) -> str:
        """The key of the record. The first access may take some 50 ms, for the fingerprint of the credential."""
        return self._identify().key

    def _identify(self) -> Identity:
        """Return the identity, computed at first use. Threads that race compute equal ones."""
        identity = self._identity
        if identity is None:
            identity = self._identity = Identity.of(self._world, self._namespace, self._given_key)
        return identity

    def _known_key(self) -> str:
        """Return the key for a message: empty before the first use of the identity, whose fingerprint is slow."""
        return "" if self._identity is None else self._identity.key

    def __repr__(self) -> str:
        """Return provider and backend, nothing secret."""
        return f"<TokenSource {self.provider!r} on {getattr(self._world.backend, 'name', 'a backend')!r}>"

    # --- the way to a token, once for threads and loops ---------------------------------------------------------

    def _acquire(self, deadline: float, reason: Reason | None = None, unlike: str | None = None) -> Steps[Token]:
        """Lead or join flights until there is a usable token, other than ``unlike`` if that is given."""
        vain, asked_at = 0, -math.inf  # turns in a row that took no time
        while True:
            now = self._clock()
            token = self._answer(now, unlike)
            if token is not None:
                return token
            self._stop_while_cooling(now)
            self._stop_at(deadline, now)
            vain = vain + 1 if now - asked_at < SHORTEST_WAIT else 0
            if vain > 1:  # flights that take no time and bring no token must not keep this loop busy
                yield RunFlow(lambda: sleep(SHORTEST_WAIT))
            asked_at = self._clock()

            place = self._lead_or_join(lambda: self._answer(self._clock(), unlike) is None)
            if place is None:
                continue
            flight, leads = place
            if not leads:
                self._stop_own_fetch(flight)
            # INV-6: the leader replaces a refused token that is missing, whether or not it reported the 401.
            why: Reason = reason or ("rejected" if self._copy is None and self._refused else "cold")
            outcome: Outcome | None = yield JoinFlight(flight, leads, why, deadline)

            match outcome:
                case Obtained() | None:  # the local copy has the token; or the flight was abandoned: lead the next
                    continue
                case Kept():
                    copy = self._usable(self._clock())
                    if copy is not None:
                        return copy.token
                case Failed(error=DeadlineExceeded()):  # the deadline of the flight; ours may be later
                    continue
                case Failed(error=error):
                    if self._answer(self._clock(), unlike) is None:
                        raise error.replica() from error.__cause__

    def _stop_at(self, deadline: float, now: float) -> None:
        """Raise if the deadline of the call has passed."""
        if now >= deadline:
            message = f"{self._who()}: no token before the deadline; allow more time, or see status()"
            raise DeadlineExceeded(message)

    def _stop_own_fetch(self, flight: Flight) -> None:
        """Raise if the flight would wait for its own caller."""
        if flight.waits_for_caller():
            message = (
                f"{self._who()}: the fetch of this token asks for this token, and would wait for itself; "
                "let the login do without it, with no HTTP client or log handler that needs it"
            )
            raise ConfigurationError(message)

    def _who(self) -> str:
        """Return the beginning of a message: which provider, which key."""
        return f"[{self.provider}] {self._known_key()!r}"

    def _answer(self, now: float, unlike: str | None) -> Token | None:
        """Return the local token if it is usable and not ``unlike``."""
        copy = self._usable(now)
        return None if copy is None or copy.token.value == unlike else copy.token

    def _drop(self, token: Token) -> Steps[bool]:
        """Forget ``token``, here and in the backend."""
        here = self._refuse(token)
        stored: bool = yield RunFlow(lambda: drop(self._job("rejected"), token.value))
        if here or stored:
            self._world.tell(TokenInvalidated(provider=self.provider, key=self.key, stored=stored))
        return here or stored

    def _replace(self, token: Token) -> Steps[Token | None]:
        """Get another token in place of the refused ``token`` (INV-6)."""
        deadline = self._deadline(None)
        try:
            if self._value() is None:  # the store may have another, or know this one as a replacement
                other = yield from self._acquire(deadline)
                if other.value != token.value:
                    return other

            if self._is_young_replacement(token):
                return None
            if self._value() == token.value:
                yield from self._drop(token)
            other = yield from self._acquire(deadline, "rejected", token.value)
        except (ProviderError, BackendUnavailable, DeadlineExceeded):  # not ConfigurationError: the caller must see it
            return None
        return other if other.value != token.value else None

    def _report(self) -> Steps[Status]:
        """Read the state of source and backend; change nothing."""
        report: Status = yield RunFlow(
            lambda: status.report(self._job("cold"), self._copy, self._fresh_until, self._world),
        )
        return report

    def _drive(self, steps: Steps[T]) -> T:
        """Run the steps of a call on this thread."""
        notice_fork()
        return drive(steps, self._perform)

    def _perform(self, step: JoinFlight | RunFlow) -> object:
        """Perform one step. A flight has a thread of its own, so a caller can return at its deadline (INV-8)."""
        if isinstance(step, RunFlow):
            return run(step.start(), self._world, self.key)
        if step.leads:
            self._launch_thread(step.flight, step.reason)
        return step.flight.join(max(0.0, step.deadline - self._clock()))

    async def _adrive(self, steps: Steps[T]) -> T:
        """Run the steps of a call on this event loop."""
        running_loop()
        notice_fork()
        return await adrive(steps, self._aperform)

    async def _aperform(self, step: JoinFlight | RunFlow) -> object:
        """Perform one step. A flight is a task of its own, so cancelling a caller does not cancel it (INV-8)."""
        if isinstance(step, RunFlow):
            await self._prepare()
            return await arun(step.start(), self._world, self.key)
        if step.leads:
            self._launch_task(step.flight, step.reason)
        return await step.flight.ajoin(max(0.0, step.deadline - self._clock()))

    def _serve_and_refresh(self, launch: Callable[[Flight, Reason], None]) -> Token | None:
        """Return the current token if it is usable, and start its renewal if that is due and no flight is open."""
        notice_fork()
        now = self._clock()
        copy = self._usable(now)
        if copy is None:
            return None
        if now < self._fresh_until:
            return copy.token

        # Of the callers that come at once, the first to claim the renewal starts it.
        def claim() -> bool:
            with self._lock:
                due = self._copy is copy and now >= self._fresh_until
                if due:
                    self._fresh_until = copy.usable_at  # other callers have the hot path until the flight lands
            return due

        match self._lead_or_join(claim):
            case (flight, True):
                try:
                    launch(flight, "refresh")
                except Exception:  # noqa: BLE001  (INV-4: the token is served though no thread or task starts)
                    self._fresh_until = min(now + self._policy.probe, copy.usable_at)
            case _:  # another flight renewed it just now, or is about to
                pass

        return copy.token

    # --- flights ------------------------------------------------------------------------------------------------

    def _lead_or_join(self, needed: Callable[[], bool]) -> tuple[Flight, bool] | None:
        """Return the open flight, or a new one and ``True`` to lead it; ``None`` if none is ``needed`` any more."""
        now = self._clock()
        flight, leads = self._flights.lead_or_join(now, now + _LAUNCH)
        if leads and not needed():  # another flight landed between the caller's look and this one
            self._abandon(flight)
            return None
        if leads:
            resume()
        return flight, leads

    def _fly(self, flight: Flight, reason: Reason) -> Outcome | None:
        """Run the flow on this thread and land the flight; abandon it if this thread is interrupted (INV-8)."""
        self._took_off(flight)
        try:
            with flight.aboard():
                return self._landed(flight, run(obtain(self._job(reason)), self._world, self.key))
        except Exception as error:
            self._crashed(flight, error)
            raise
        finally:
            self._abandon(flight)

    async def _afly(self, flight: Flight, reason: Reason) -> None:
        """Run the flow on this event loop and land the flight; abandon it if the task is cancelled (INV-8)."""
        self._took_off(flight)
        try:
            with flight.aboard():
                await self._prepare()
                self._landed(flight, await arun(obtain(self._job(reason)), self._world, self.key))
        except Exception as error:  # noqa: BLE001  (all callers that joined get it)
            self._crashed(flight, error)
        finally:
            self._abandon(flight)

    def _took_off(self, flight: Flight) -> None:
        """Mark the flight as started, and set the end of its time."""
        flight.started = True
        flight.lost_at = self._clock() + self._policy.timeout + _GRACE

    def _landed(self, flight: Flight, outcome: Outcome) -> Outcome:
        """Apply the outcome to the local copy, tell the observers, then give it to all waiters."""
        self._apply(outcome)
        self._leave(flight)
        flight.settle()
        flight.land(outcome)
        return outcome

    def _crashed(self, flight: Flight, error: Exception) -> None:
        """Give an unexpected error to all waiters; a usable copy postpones the next flight by ``probe``."""
        with self._lock:
            if self._copy is not None:
                self._fresh_until = min(self._clock() + self._policy.probe, self._copy.usable_at)
        self._leave(flight)

        copy = self._copy
        event = FetchFailed(
            provider=self.provider,
            key=self._known_key(),
            reason="refresh",
            error=str(error) if isinstance(error, TokenCacheError) else type(error).__name__,
            permanent=False,
            attempt=self._attempt,
            pause=self._policy.probe,
            served=copy is not None and self._clock() < copy.usable_at,
        )
        flight.settle()
        self._world.tell(event)
        flight.fail(error)

    def _abandon(self, flight: Flight) -> None:
        """Make the waiters start over if the flight did not land (INV-8)."""
        if not flight.over:
            with self._lock:
                if self._copy is not None:
                    self._fresh_until = min(self._fresh_until, self._due(self._copy, self._clock()))
            self._leave(flight)
            flight.settle()
            flight.abandon()

    def _leave(self, flight: Flight) -> None:
        """Close the flight to new callers."""
        self._flights.leave(flight)

    def _launch_thread(self, flight: Flight, reason: Reason) -> None:
        """Run the flight on a thread of its own; if none can be started, on that of a caller that needs the token."""
        self._world.launcher.beside(
            lambda: self._fly(flight, reason),
            f"tokencache-{self.provider}",
            lends=reason != "refresh",
            abandon=lambda: self._abandon(flight),
        )

    def _launch_task(self, flight: Flight, reason: Reason) -> None:
        """Run the flight as a task of this event loop."""
        try:
            task = self._world.launcher.task(self._afly(flight, reason), f"tokencache-{self.provider}")
        except BaseException:
            self._abandon(flight)
            raise

        flight.loop = task.get_loop()
        self._tasks.add(task)  # the loop keeps only a weak reference

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            self._abandon(flight)  # a task that is cancelled before it starts runs no line of its own

        task.add_done_callback(ended)

    # --- the job of a flow --------------------------------------------------------------------------------------

    def _deadline(self, timeout: float | None) -> float:
        """Return the deadline of a call that may take ``timeout`` seconds."""
        if timeout is None:
            return self._clock() + self._policy.timeout
        if not timeout >= 0:  # NaN too
            message = f"timeout={timeout!r}: give seconds, 0 or more, or None for the policy's"
            raise ConfigurationError(message)
        return self._clock() + min(timeout, _LONGEST)

    def _job(self, reason: Reason) -> Job:
        """Return the job for one run of a flow."""
        copy, identity = self._copy, self._identify()
        return Job(
            provider=self.provider,
            key=identity.key,
            identity=identity.fingerprint,
            owner=self._owner(),
            policy=self._policy,
            reason=reason,
            current=copy,
            deadline=self._clock() + self._policy.timeout,
            spread=self._spread,
            refreshing=bool(getattr(self._world.provider, "refreshing", False)),
            latest=self._last_refused,
            refused=frozenset(self._refused),
            attempt=self._attempt,
            failure=self._failure,
            unleased_fetch_at=self._unleased_fetch_at,
            sealing=identity.sealing,
            contested=self._world.contested,
        )

    def _owner(self) -> str:
        """Return a unique name for the holder of a lease."""
        return os.urandom(12).hex()

    async def _prepare(self) -> None:
        """Compute the identity off the event loop, because its fingerprint is slow."""
        if self._identity is None:
            await on_thread(self._identify)
