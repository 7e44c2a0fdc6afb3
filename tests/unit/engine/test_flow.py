"""The flow by hand: effects come out, replies go in, without a clock, a thread or a store."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tokencache import _record
from tokencache._engine.effects import (
    Commit,
    Draw,
    Emit,
    Fetch,
    Instants,
    Lease,
    Load,
    Now,
    Release,
    Sleep,
    Unreachable,
    Wait,
)
from tokencache._engine.flow import Copy, Failed, Job, Kept, Obtained, obtain
from tokencache.errors import BackendUnavailable, DeadlineExceeded, ProviderRejected, ProviderUnavailable
from tokencache.policy import RefreshPolicy, schedule
from tokencache.ports import Cooldown, Found, Granted, Held, LeaseGrant, Stored
from tokencache.token import Token

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokencache._engine.effects import Effect
    from tokencache._engine.flow import Outcome

WALL = 1_800_000_000.0
DOWN = Unreachable(BackendUnavailable("down"))
EARLY = object()  # a wait that ends at once and tells nothing
GRANT = LeaseGrant("k", "me", 100, 3.0)


def job(**changes: object) -> Job:
    """Return the job of a cold start, with changes."""
    settings: dict[str, object] = {
        "provider": "p",
        "key": "k",
        "identity": "me",
        "owner": "o",
        "policy": RefreshPolicy(),
        "reason": "cold",
        "current": None,
        "deadline": 30.0,
        "spread": 0.0,
    }
    return Job(**{**settings, **changes})  # type: ignore[arg-type]


def token(value: str = "t", lifetime: float = 3600.0) -> Token:
    """Return a token issued now."""
    return Token(value, expires_at=WALL + lifetime, issued_at=WALL)


def stored(
    value: str = "t", *, fence: int = 50, identity: str = "me", lifetime: float = 3600.0, again: float | None = None
) -> Stored:
    """Return a record of ours; after ``again`` seconds the provider is asked again."""
    again_at = None if again is None else WALL + again
    data = _record.encode(token(value, lifetime), fence=fence, identity=identity, key="k", again_at=again_at)
    return Stored(data, 100_000.0)


def copy(value: str = "mine", *, refresh_at: float = -1.0, usable_at: float = 700.0, data: bytes | None = b"x") -> Copy:
    """Return a local copy that is due for renewal at 0."""
    return Copy(token(value), data, 10, refresh_at, usable_at, -2800.0, -2800.0, WALL - 2800)


def play(orders: Job, replies: Mapping[type[Effect], list[object]]) -> tuple[Outcome, list[Effect]]:
    """Run the flow on scripted replies; ``Sleep`` and ``Wait`` move the clock."""
    queues = {kind: list(answers) for kind, answers in replies.items()}
    flow, done, clock, reply = obtain(orders), [], 0.0, None
    while True:
        try:
            effect = flow.send(reply)
        except StopIteration as end:
            assert not any(queues.values()), f"not asked for: {queues}"
            return end.value, done
        reply = None
        match effect:
            case Now():
                reply = Instants(clock, WALL + clock)
            case Draw():
                reply = 0.5
            case Emit():
                pass
            case Sleep(duration=duration) | Wait(timeout=duration):
                done.append(effect)
                reply = queues[Wait].pop(0) if isinstance(effect, Wait) and queues.get(Wait) else None
                if reply is EARLY:
                    reply = None
                else:
                    clock += duration
            case _:
                done.append(effect)
                if not isinstance(effect, Release):
                    reply = queues[type(effect)].pop(0)


def kinds(effects: list[Effect]) -> list[str]:
    """Return the names of effects."""
    return [type(effect).__name__ for effect in effects]


def test_a_stored_record_at_its_usable_end_is_not_taken() -> None:
    """INV-1: the record's own instants count, even if the store's countdown is longer."""
    old = stored("old", lifetime=59.0 / 10)
    ended = Stored(old.data.replace(b"1800000005", b"1800000000"), 100_000.0)
    outcome, effects = play(job(), {Load: [ended], Lease: [Granted(GRANT)], Fetch: [token()], Commit: [True]})
    assert isinstance(outcome, Obtained)
    assert kinds(effects) == ["Load", "Lease", "Fetch", "Commit"]


def test_a_refused_token_is_not_taken_from_the_store() -> None:
    """INV-6: the flow takes it neither from a load nor from a lease."""
    bad = stored("bad")
    outcome, effects = play(
        job(reason="rejected", refused=frozenset({"bad"})),
        {Load: [bad], Lease: [Found(bad), Granted(GRANT)], Fetch: [token("good")], Commit: [True]},
    )
    assert isinstance(outcome, Obtained)
    assert outcome.copy.token.value == "good"
    assert outcome.copy.replaces_refused
    asked = [effect.seen for effect in effects if isinstance(effect, Lease)]
    assert asked == [bad.data, bad.data]


def test_the_lease_request_names_the_record_that_was_read() -> None:
    """INV-2: a record that was loaded and not used is named in the request for the lease."""
    others = stored("x", identity="another")
    _, effects = play(job(), {Load: [others], Lease: [Granted(GRANT)], Fetch: [token()], Commit: [True]})
    assert [effect.seen for effect in effects if isinstance(effect, Lease)] == [others.data]


def test_a_waiter_waits_for_the_holder_and_looks_again() -> None:
    """INV-2: "held" is not "unavailable": a process does not fetch beside a holder."""
    outcome, effects = play(job(), {Load: [None], Lease: [Held(2.5), Held(0.0), Found(stored("theirs"))]})
    assert isinstance(outcome, Obtained)
    assert outcome.copy.token.value == "theirs"
    assert [effect.timeout for effect in effects if isinstance(effect, Wait)] == [2.5, 0.02]


def test_a_process_whose_waits_are_refused_polls_at_a_limited_rate() -> None:
    """INV-5: if leases are answered and waits are refused, the process polls slowly, and does not fetch."""
    outcome, effects = play(
        job(), {Load: [None], Lease: [*[Held(2.0)] * 4, Found(stored("theirs"))], Wait: [DOWN, DOWN, None, DOWN]}
    )
    assert isinstance(outcome, Obtained)
    assert waits(effects) == ["Wait", 0.03, "Wait", 0.06, "Wait", "Wait"]


def waits(effects: list[Effect]) -> list[object]:
    """Return the waits by name, and the pauses between them in seconds."""
    return [
        pytest.approx(effect.duration) if isinstance(effect, Sleep) else "Wait"
        for effect in effects
        if isinstance(effect, Wait | Sleep)
    ]


def test_an_early_wake_up_without_news_costs_a_pause() -> None:
    """A store that wakes its waiter at once, each time for nothing, is asked at a pace that falls to a few a second."""
    outcome, effects = play(
        job(), {Load: [None], Lease: [*[Held(2.0)] * 7, Found(stored("theirs"))], Wait: [*[EARLY] * 6, None]}
    )
    assert isinstance(outcome, Obtained)
    pauses = [0.03, 0.06, 0.12, 0.24, 0.3, 0.3]
    assert waits(effects) == ["Wait", *(each for pause in pauses for each in (pause, "Wait"))]


def test_a_wake_up_with_a_useless_record_costs_a_pause() -> None:
    """A wake-up that carries a record of another identity is a turn in vain."""
    theirs = stored("x", identity="somebody else")
    outcome, effects = play(
        job(), {Load: [None], Lease: [*[Held(2.0)] * 3, Found(stored("good"))], Wait: [theirs, theirs, None]}
    )
    assert isinstance(outcome, Obtained)
    assert waits(effects) == ["Wait", 0.03, "Wait", 0.06, "Wait"]


def test_a_store_that_finds_the_same_record_again_is_not_asked_without_a_pause() -> None:
    """A backend that calls a record news for ever gets a second question at once, and each further one after a pause.

    At the deadline the flow ends.
    """
    useless = Found(stored("x", identity="somebody else"))
    outcome, effects = play(job(deadline=1.0), {Load: [None], Lease: [useless] * 7})
    assert isinstance(outcome, Failed)
    assert isinstance(outcome.error, DeadlineExceeded)
    assert waits(effects) == [0.03, 0.06, 0.12, 0.24, 0.3, 0.25]


def test_a_waiter_gives_up_at_the_deadline() -> None:
    """INV-8: if another process always holds the lease, the wait ends in DeadlineExceeded, without a fetch."""
    outcome, _ = play(job(deadline=5.0), {Load: [None], Lease: [Held(3.0), Held(3.0)]})
    assert isinstance(outcome, Failed)
    assert isinstance(outcome.error, DeadlineExceeded)


def test_fetches_without_the_backend_are_a_probe_apart() -> None:
    """INV-5: without the backend the provider is asked at a bounded rate."""
    outcome, effects = play(job(unleased_fetch_at=0.75), {Load: [DOWN], Fetch: [token()]})
    assert isinstance(outcome, Obtained)
    assert outcome.copy.data is None
    assert [effect.duration for effect in effects if isinstance(effect, Sleep)] == [0.75]


def test_the_rate_limit_ends_at_the_deadline() -> None:
    """INV-8: the rate limit never outlasts the deadline."""
    outcome, _ = play(job(unleased_fetch_at=60.0, deadline=5.0), {Load: [DOWN]})
    assert isinstance(outcome, Failed)
    assert isinstance(outcome.error, DeadlineExceeded)


def test_without_the_backend_the_token_is_kept_for_half_the_window() -> None:
    """INV-4, INV-5: after that it is renewed without the backend, and an unchanged token is kept."""
    early, _ = play(job(reason="refresh", current=copy()), {Lease: [DOWN]})
    assert isinstance(early, Kept)
    assert early.next_at == 1.0
    late = copy(refresh_at=-800.0, usable_at=700.0)
    renewed, _ = play(job(reason="refresh", current=late), {Lease: [DOWN], Fetch: [token("new")]})
    assert isinstance(renewed, Obtained)
    same, _ = play(job(reason="refresh", current=late), {Lease: [DOWN], Fetch: [token("mine")]})
    assert isinstance(same, Kept)
    failed, _ = play(job(reason="refresh", current=late), {Lease: [DOWN], Fetch: [ProviderUnavailable("no")]})
    assert isinstance(failed, Failed)
    assert failed.unleased


def test_a_commit_without_an_answer_still_returns_the_token() -> None:
    """INV-4: the fetched token is returned, not shared."""
    outcome, _ = play(job(), {Load: [None], Lease: [Granted(GRANT)], Fetch: [token()], Commit: [DOWN]})
    assert isinstance(outcome, Obtained)
    assert outcome.copy.data is None


@pytest.mark.parametrize(
    ("reply", "value"),
    [(stored("newer"), "newer"), (None, "t"), (DOWN, "t"), (Stored(b"junk", None), "t")],
    ids=["newer", "gone", "down", "junk"],
)
def test_a_refused_commit_gives_way_to_the_newer_record(reply: object, value: str) -> None:
    """INV-3: the newer token is taken if it is usable; otherwise the fetched one is used."""
    outcome, _ = play(job(), {Load: [None, reply], Lease: [Granted(GRANT)], Fetch: [token()], Commit: [False]})
    assert isinstance(outcome, Obtained)
    assert outcome.copy.token.value == value


def test_a_backend_that_fails_after_the_load_is_an_outage() -> None:
    """INV-5: an unreachable lease is not a held one: the flow neither waits nor shares."""
    outcome, effects = play(job(), {Load: [None], Lease: [DOWN], Fetch: [token()]})
    assert isinstance(outcome, Obtained)
    assert outcome.copy.data is None
    assert kinds(effects) == ["Load", "Lease", "Fetch"]


def test_an_older_stored_token_does_not_displace_a_newer_one() -> None:
    """INV-3: a record with a lower fence than the current one is not taken."""
    current = copy()
    outcome, _ = play(
        job(reason="renew", current=current),
        {Lease: [Found(stored("older", fence=5)), Granted(GRANT)], Fetch: [token("new")], Commit: [True]},
    )
    assert isinstance(outcome, Obtained)
    assert outcome.copy.token.value == "new"


@pytest.mark.parametrize(
    ("error", "low", "high", "permanent"),
    [
        (ProviderRejected("no"), 300.0, 300.0, True),
        (ProviderUnavailable("429", retry_at=WALL + 42), 42.0, 42.0, False),
        (ProviderUnavailable("429", retry_at=WALL + 4200), 300.0, 300.0, False),
        (ProviderUnavailable("429", retry_at=WALL), 0.1, 1.0, False),
        (ProviderUnavailable("429", retry_at=WALL - 5), 0.1, 1.0, False),
        (ProviderRejected("no", retry_at=WALL + 42), 42.0, 42.0, True),
        (ProviderUnavailable("500"), 0.1, 1.0, False),
    ],
    ids=["rejected", "retry", "retry-clamped", "retry-zero", "retry-past", "rejected-retry", "backoff"],
)
def test_a_failure_leaves_a_cooldown(error: ProviderUnavailable, low: float, high: float, permanent: bool) -> None:
    """INV-7: the cooldown holds duration, identity and reason. A Retry-After in the past does not shorten backoff."""
    outcome, effects = play(job(), {Load: [None], Lease: [Granted(GRANT)], Fetch: [error]})
    assert isinstance(outcome, Failed)
    assert low <= outcome.next_at <= high
    (released,) = [effect for effect in effects if isinstance(effect, Release)]
    assert isinstance(released.cooldown, Cooldown)
    assert (released.cooldown.identity, released.cooldown.permanent) == ("me", permanent)
    assert released.cooldown.remaining == outcome.next_at


def test_backoff_continues_from_the_fleets_count() -> None:
    """INV-7: the cooldown holds the count of failures."""
    cooldown = Cooldown("me", 5.0, permanent=False, attempt=4, message="500")
    outcome, _ = play(job(), {Load: [None], Lease: [Held(5.0, cooldown)]})
    assert isinstance(outcome, Failed)
    assert (outcome.attempt, outcome.next_at) == (4, 5.0)


def test_a_token_fetched_without_the_backend_is_shared_later() -> None:
    """INV-5: when the backend is back, the token is stored there, without another fetch."""
    mine = copy(refresh_at=100.0, data=None)
    outcome, effects = play(job(reason="refresh", current=mine), {Lease: [Granted(GRANT)], Commit: [True]})
    assert isinstance(outcome, Obtained)
    assert outcome.copy.fence == GRANT.fence
    assert kinds(effects) == ["Lease", "Commit"]


def test_a_commit_whose_reply_was_lost_does_not_delay_the_renewal() -> None:
    """INV-2: if the store holds the process's own token, the provider may still have a newer one."""
    orders = job(reason="refresh", current=replace(copy("mine", refresh_at=500.0, data=None), fence=None))
    outcome, _ = play(orders, {Lease: [Found(stored("mine", fence=7))]})
    assert isinstance(outcome, Obtained)
    assert (outcome.copy.token.value, outcome.copy.fence, outcome.copy.refresh_at) == ("mine", 7, 500.0)


@pytest.mark.parametrize(("again", "expected"), [(300.0, 500.0), (600.0, 630.0), (690.0, 700.0), (900.0, 700.0)])
def test_a_token_fetched_alone_heeds_the_stored_time_to_ask_again(again: float, expected: float) -> None:
    """INV-2: if the record says to ask again later than the process's own renewal, the later time counts."""
    orders = job(reason="refresh", current=replace(copy("mine", refresh_at=500.0, data=None), fence=None))
    outcome, _ = play(orders, {Lease: [Found(stored("mine", fence=7, again=again))]})
    assert isinstance(outcome, Obtained)
    assert outcome.copy.refresh_at == pytest.approx(expected)


def test_a_record_without_a_lifetime_keeps_the_whole_of_early() -> None:
    """INV-1: the window is a share of the remaining time."""
    record = Stored(b'{"accessToken":"x","expiresAt":%d}' % (WALL + 1000), None)
    outcome, _ = play(job(), {Load: [record]})
    assert isinstance(outcome, Obtained)
    assert outcome.copy.usable_at == pytest.approx(940.0)
    assert outcome.copy.refresh_at == pytest.approx(740.0)


def test_the_stores_countdown_also_ends_a_record() -> None:
    """INV-1: the earliest of countdown, lifetime and wall clock counts."""
    outcome, _ = play(job(), {Load: [Stored(stored().data, 12.0)]})
    assert isinstance(outcome, Obtained)
    assert outcome.copy.usable_at == 12.0


def test_a_record_lives_no_longer_than_its_lifetime() -> None:
    """INV-1: a token does not live longer here if its issuer's clock is two hours ahead."""
    ahead = Token("t", expires_at=WALL + 7200 + 3600, issued_at=WALL + 7200)
    record = Stored(_record.encode(ahead, fence=50, identity="me", key="k"), None)
    outcome, _ = play(job(), {Load: [record]})
    assert isinstance(outcome, Obtained)
    assert outcome.copy.usable_at == pytest.approx(3540.0)


@pytest.mark.parametrize(
    ("hint", "refresh"),
    [(1800, 1800.0), ("1700", 1700.0), (10, 360.0), (3599, 2880.0), (4000, 2880.0), (True, 2880.0), (None, 2880.0)],
)
def test_a_token_is_renewed_at_the_age_that_the_provider_names(hint: object, refresh: float) -> None:
    """Entra's `refresh_in` is obeyed by the process that fetched and by those that read the record."""
    policy = RefreshPolicy(jitter=0.0, window=3600.0, window_fraction=0.2, early=0.0)
    got = token("new").replace(extra={} if hint is None else {"refresh_in": hint})
    outcome, _ = play(job(policy=policy), {Load: [None], Lease: [Granted(GRANT)], Fetch: [got], Commit: [True]})
    assert isinstance(outcome, Obtained)
    assert outcome.copy.refresh_at == pytest.approx(refresh)
    shared = Stored(_record.encode(got, fence=1, identity="me", key="k"), 100_000.0)
    outcome, _ = play(job(policy=policy), {Load: [shared]})
    assert isinstance(outcome, Obtained)
    assert outcome.copy.refresh_at == pytest.approx(refresh)


@pytest.mark.parametrize(("took", "window"), [(0.0, 2.0), (0.9, 2.0), (1.2, 2.4), (2.5, 3.25), (60.0, 3.25)])
def test_the_window_is_longer_than_a_slow_login(took: float, window: float) -> None:
    """With tokens of 6.5 s and logins of 2.5 s a renewal must begin early enough to be done in time."""
    plan = schedule(RefreshPolicy(), lifetime=6.5, remaining=6.5, spread=0.0, took=took)
    assert plan.usable - plan.refresh == pytest.approx(window)
