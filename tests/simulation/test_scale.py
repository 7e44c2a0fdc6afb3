"""Fleets of any size: one call to the provider a renewal, a command or two an instance, as docs/scale.md says."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from simulator.scale import Figures, Fleet, run
from tokencache import TokenCache
from tokencache.policy import RefreshPolicy, schedule
from tokencache.testing.fakes import FakeClock, FakeProvider

DAY = 86400.0
PERIOD = 5.0
DOCUMENT = Path(__file__).parents[2] / "docs" / "scale.md"
LIFETIMES = {"1 h": 3600.0, "24 h": DAY}


def renewals(lifetime: float, lasts: float) -> tuple[int, int]:
    """Return the least and the most tokens that a fleet of any size can need in that time, including the first one."""
    soonest = schedule(RefreshPolicy(), lifetime=lifetime, remaining=lifetime, spread=1.0).refresh
    latest = schedule(RefreshPolicy(), lifetime=lifetime, remaining=lifetime, spread=-1.0).refresh + PERIOD + 1
    return int((lasts - 600) / latest), 1 + int(lasts / soonest)


@pytest.fixture(scope="module")
def day() -> Figures:
    """A day of fifty instances with tokens of an hour; the referee checks every step against the invariants."""
    return run(Fleet(instances=50, lifetime=3600.0, lasts=DAY, starts=600.0, period=PERIOD))


def test_a_fleet_makes_one_call_a_renewal(day: Figures) -> None:
    """INV-2: one provider call for each stored record, one at a time, and no more often than due."""
    least, most = renewals(3600.0, DAY)
    assert day.calls == day.records == len(day.fetched_at)
    assert least <= day.calls <= most
    assert (day.together, day.alone, day.errors, day.late) == (1, 0, {}, 0)


def test_an_instance_costs_the_store_one_command_a_renewal(day: Figures) -> None:
    """An instance asks for the lease once a renewal; its start, the commits and a few waits are added."""
    asked = {kind: sum(row) for kind, row in day.commands.items()}
    assert asked["load"] == 50
    assert asked["commit"] == day.calls
    assert day.total() <= 50 * day.calls * 1.2 + 2 * 50
    assert day.connections <= 2 * 50


def test_only_the_first_callers_wait(day: Figures) -> None:
    """The first call of each instance waits, for one login at most; all others find a cached token."""
    assert len(day.waits) == 50
    assert max(day.waits) < 1


def test_a_cold_herd_makes_one_call() -> None:
    """INV-2: two thousand instances that start within a second make one call; each waits for one login at most."""
    herd = run(Fleet(instances=2000, lifetime=3600.0, lasts=30.0, starts=1.0))
    assert (herd.calls, herd.alone, herd.errors) == (1, 0, {})
    assert len(herd.waits) == 2000
    assert herd.total() <= 2 * 2000  # a load each; a quarter come during the login and also ask for the lease and wait
    assert herd.connections <= 2 * 2000


def test_each_source_has_its_own_renewals() -> None:
    """INV-2: the calls of five processes with ten sources each are those of ten sources, whatever the processes."""
    fleet = run(Fleet(instances=5, sources=10, lifetime=3600.0, lasts=6 * 3600.0, starts=60.0))
    least, most = renewals(3600.0, 6 * 3600.0)
    assert 10 * least <= fleet.calls <= 10 * most
    assert (fleet.calls, fleet.together) == (fleet.records, 1)


def test_an_overloaded_store_counts_as_unavailable() -> None:
    """INV-5: if answers come later than the time-out, processes fetch alone; with a longer time-out one does."""
    slow = {"connect": 2e-3, "load": 2e-3, "lease": 2e-3, "wait": 2e-3, "wake": 2e-3, "commit": 2e-3}
    slow |= {"release": 2e-3, "extend": 2e-3}
    hasty = run(Fleet(instances=600, lifetime=3600.0, lasts=30.0, starts=0.5, costs=slow))
    assert hasty.late > 0
    assert hasty.alone > 100
    patient = run(Fleet(instances=600, lifetime=3600.0, lasts=30.0, starts=0.5, costs=slow, timeout=10.0))
    assert (patient.calls, patient.alone, patient.late) == (1, 0, 0)


def test_the_document_agrees_with_the_simulation() -> None:
    """INV-2: each steady day of docs/scale.md has the calls that its tokens need, whatever the number of instances."""
    table = DOCUMENT.read_text().partition("<!-- day -->")[2].partition("<!-- /day -->")[0]
    rows = [[cell.strip().replace(" ", "") for cell in line.split("|")[1:-1]] for line in table.splitlines()[3:]]
    assert [(row[0], int(row[1])) for row in rows] == [
        (name, 10**power) for name in ("1h", "24h") for power in range(1, 6)
    ]
    for row in rows:
        lifetime, instances, hours, calls, alone, commands = LIFETIMES[re.sub("h", " h", row[0])], *map(int, row[1:6])
        least, most = renewals(lifetime, hours * 3600.0)
        assert max(1, least) <= calls <= most
        assert least * instances <= alone <= most * instances
        assert instances <= commands <= instances * calls * 1.2 + 2 * instances + 10 * calls


def test_a_source_behind_a_source_makes_one_request_a_host() -> None:
    """The local agent of docs/scale.md: five hosts that ask the fleet's source cost one login a renewal."""
    clock = FakeClock()
    login = FakeProvider(wall=clock.wall)
    fleet = TokenCache("memory://", clock=clock, wall=clock.wall, observers=()).source(login)
    caches = [TokenCache("memory://", clock=clock, wall=clock.wall, observers=()) for _ in range(5)]
    hosts = [cache.source(lambda: fleet.token(), key="agent") for cache in caches]  # noqa: PLW0108  (its own argument is a time-out)
    first = {host.token().value for host in hosts}
    assert (login.calls, len(first)) == (1, 1)
    while clock.at < 1_000_000.0 + 3500:  # the usable end comes at 3540
        clock.advance(20.0)
        assert all(host.token() for host in hosts)
        patience = time.monotonic() + 30
        while any(source._flights is not None and source._flights.flying for source in (fleet, *hosts)):
            assert time.monotonic() < patience
            time.sleep(0.001)
    assert first.isdisjoint({host.token().value for host in hosts})
    assert login.calls == 2
