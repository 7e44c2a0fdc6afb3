"""The contract of backends: each law of :class:`tokencache.ports.Backend` written once, for both halves.

A backend passes when a class of about this size does::

    class TestMyBackend(BackendContract):
        def make_backend(self, tmp_path):
            return MyBackend(tmp_path)

pytest runs every law twice: on the backend itself, and on its async half from an event loop in another thread.
For a store that rounds durations or answers slowly, set ``short``, ``rounding`` and ``patience``.
"""

# ruff: noqa: S101 - a law is an assertion

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from tokencache.ports import Held, Slot
from tokencache.testing._lease_laws import LeaseLaws
from tokencache.testing.probes import HOSTILE_KEYS, KEY, LONG, cooldown, found, granted, held, record

if TYPE_CHECKING:
    from tokencache.ports import LeaseReply
    from tokencache.testing.probes import Probe


class BackendContract(LeaseLaws):
    """All laws. A subclass whose name begins with ``Test`` makes a backend with an empty store."""

    # --- records

    def test_an_unknown_key_has_nothing(self, probe: Probe) -> None:
        """An unused key has no record, no lease and no cooldown."""
        assert probe.load(KEY) is None
        assert probe.inspect(KEY) == Slot(None)

    def test_what_is_committed_is_loaded(self, probe: Probe) -> None:
        """The record comes back byte for byte. Its countdown, if reported, is at most the requested one."""
        lease = granted(self.ask(probe, "a"))
        assert probe.commit(lease, record(lease.fence), 20.0) is True
        stored = probe.load(KEY)
        assert stored is not None
        assert stored.data == record(lease.fence)
        assert stored.remaining is None or 0 < stored.remaining <= 20.0 + self.rounding

    def test_a_record_ends_by_itself(self, probe: Probe) -> None:
        """After its time to live a record is neither loaded nor found."""
        self.plant(probe, record(None), self.short)
        assert self.eventually(lambda: probe.load(KEY) is None or None)
        granted(self.ask(probe, "a"))

    def test_a_committed_record_replaces_the_one_before(self, probe: Probe) -> None:
        """The newest record is loaded, and it lives for its own ``ttl``."""
        first = granted(self.ask(probe, "a"))
        probe.commit(first, record(first.fence), self.short)
        second = self.eventually_granted(probe, "a", record(first.fence))
        assert probe.commit(second, record(second.fence), LONG) is True
        stored = probe.load(KEY)
        assert stored is not None
        assert stored.data == record(second.fence)
        assert stored.remaining is None or stored.remaining > self.short + self.rounding

    def test_distinct_keys_have_distinct_records(self, probe: Probe) -> None:
        """Two different keys, however similar, have separate leases and records."""
        for number, key in enumerate(HOSTILE_KEYS):
            lease = granted(probe.lease(key, "a", "identity", None, LONG))
            assert probe.commit(lease, record(lease.fence, f"token-{number}"), LONG) is True
        for number, key in enumerate(HOSTILE_KEYS):
            stored = probe.load(key)
            assert stored is not None, f"the record of {key[:20]!a} is gone"
            assert json.loads(stored.data)["accessToken"] == f"token-{number}"

    # --- commit

    def test_committing_frees_the_lease(self, probe: Probe) -> None:
        """After the commit the next caller finds the record, or gets the lease if it has seen the record."""
        lease = granted(self.ask(probe, "a"))
        assert probe.commit(lease, record(lease.fence), LONG) is True
        found(self.ask(probe, "b"))
        granted(self.ask(probe, "b", record(lease.fence)))

    def test_a_lower_fence_is_refused(self, probe: Probe) -> None:
        """INV-3: a late commit returns ``False``, and the newer record stays."""
        late = granted(self.ask(probe, "a"))
        probe.release(late)
        newer = granted(self.ask(probe, "b"))
        assert probe.commit(newer, record(newer.fence), LONG) is True
        assert probe.commit(late, record(late.fence), LONG) is False
        stored = probe.load(KEY)
        assert stored is not None
        assert stored.data == record(newer.fence)

    def test_a_lost_lease_does_not_replace_another_programs_record(self, probe: Probe) -> None:
        """INV-3: a late commit keeps a record without a fence that was stored since; a holder may replace it."""
        late = granted(self.ask(probe, "a"))
        probe.release(late)
        self.plant(probe, record(None, "theirs"))
        assert probe.commit(late, record(late.fence), LONG) is False
        stored = probe.load(KEY)
        assert stored is not None
        assert stored.data == record(None, "theirs")
        holder = granted(self.ask(probe, "b", record(None, "theirs")))
        assert probe.commit(holder, record(holder.fence), LONG) is True

    def test_a_late_commit_leaves_the_next_lease_alone(self, probe: Probe) -> None:
        """A late commit is stored if no newer record is there, and the next holder keeps its lease."""
        late = granted(self.ask(probe, "a"))
        probe.release(late)
        newer = granted(self.ask(probe, "b"))
        assert probe.commit(late, record(late.fence), LONG) is True
        held(self.ask(probe, "c", record(late.fence)))
        assert probe.commit(newer, record(newer.fence), LONG) is True
        assert found(self.ask(probe, "c", record(late.fence))).data == record(newer.fence)

    def test_committing_twice_is_harmless(self, probe: Probe) -> None:
        """A commit repeated after a lost reply succeeds again and does not free the lease granted since."""
        lease = granted(self.ask(probe, "a"))
        assert probe.commit(lease, record(lease.fence), LONG) is True
        granted(self.ask(probe, "b", record(lease.fence)))
        assert probe.commit(lease, record(lease.fence), LONG) is True
        held(self.ask(probe, "c", record(lease.fence)))

    # --- wait

    def test_a_commit_wakes_waiters(self, probe: Probe) -> None:
        """A waiter returns when the record is stored, long before its timeout."""
        lease = granted(self.ask(probe, "a"))
        waiters = [self.waiter(probe, None, self.patience * 2) for _ in range(4)]
        probe.commit(lease, record(lease.fence), LONG)
        assert all(self.ends(waiter) for waiter in waiters)

    def test_a_release_wakes_waiters(self, probe: Probe) -> None:
        """A waiter returns when the lease is free."""
        lease = granted(self.ask(probe, "a"))
        waiter = self.waiter(probe, None, self.patience * 2)
        probe.release(lease)
        assert self.ends(waiter)

    def test_a_cooldown_wakes_waiters(self, probe: Probe) -> None:
        """A waiter returns when the holder has failed and released with a cooldown."""
        lease = granted(self.ask(probe, "a"))
        waiter = self.waiter(probe, None, self.patience * 2)
        probe.release(lease, cooldown())
        assert self.ends(waiter)

    def test_waiting_ends_at_its_timeout(self, probe: Probe) -> None:
        """INV-8: without any change, the wait returns at its timeout, and the lease is still held."""
        granted(self.ask(probe, "a"))
        assert self.ends(self.waiter(probe, None, 0.05))
        assert self.ends(self.waiter(probe, None, 0.0))
        held(self.ask(probe, "b"))

    def test_waiting_after_the_change_returns(self, probe: Probe) -> None:
        """A change that came before the wait is not missed."""
        self.plant(probe, record(None, "new"))
        granted(self.ask(probe, "a", record(None, "new")))
        assert self.ends(self.waiter(probe, record(None, "old"), self.patience * 2))

    def test_all_waiters_get_the_record(self, probe: Probe) -> None:
        """INV-2: many callers ask and wait in turn; each gets the one record, and none of them a lease."""
        lease = granted(self.ask(probe, "leader"))
        asked = threading.Barrier(9)

        def follow(number: int) -> LeaseReply:
            reply = self.ask(probe, f"follower-{number}")
            asked.wait()
            while isinstance(reply, Held):
                probe.wait(KEY, None, self.patience)
                reply = self.ask(probe, f"follower-{number}")
            return reply

        with ThreadPoolExecutor(8) as pool:
            followers = [pool.submit(follow, number) for number in range(8)]
            asked.wait()
            assert probe.commit(lease, record(lease.fence), LONG) is True
            assert {found(each.result()).data for each in followers} == {record(lease.fence)}

    # --- discard, inspect, close

    def test_only_the_record_that_was_seen_is_discarded(self, probe: Probe) -> None:
        """INV-6: a record is deleted, once, by a caller that gives its bytes; another record stays."""
        assert probe.discard(KEY, record(None)) is False
        self.plant(probe, record(None))
        assert probe.discard(KEY, record(None, "another")) is False
        assert probe.load(KEY) is not None
        assert probe.discard(KEY, record(None)) is True
        assert probe.load(KEY) is None
        assert probe.discard(KEY, record(None)) is False
        granted(self.ask(probe, "a"))

    def test_discarding_leaves_the_lease_alone(self, probe: Probe) -> None:
        """A holder that renews a record keeps its lease while the record is deleted."""
        self.plant(probe, record(None))
        lease = granted(self.ask(probe, "a", record(None)))
        assert probe.discard(KEY, record(None)) is True
        held(self.ask(probe, "b"))
        assert probe.commit(lease, record(lease.fence), LONG) is True

    def test_inspecting_reports_and_changes_nothing(self, probe: Probe) -> None:
        """``inspect`` reports the record, the holder and the cooldown, and changes nothing."""
        self.plant(probe, record(None))
        lease = granted(self.ask(probe, "a", record(None)))
        slot = probe.inspect(KEY)
        assert slot.stored is not None
        assert slot.stored.data == record(None)
        assert slot.owner == "a"
        assert slot.remaining is not None
        assert 0 < slot.remaining <= LONG + self.rounding
        assert slot.cooldown is None
        held(self.ask(probe, "b", record(None)))
        probe.release(lease, cooldown())
        slot = probe.inspect(KEY)
        assert slot.owner is None
        assert slot.cooldown is not None
        assert slot.cooldown == cooldown(slot.cooldown.remaining)

    def test_closing_twice_is_harmless(self, probe: Probe) -> None:
        """A backend can be closed while it holds a lease, and closed again."""
        granted(self.ask(probe, "a"))
        probe.close()
        probe.close()
