"""The laws of the lease: its grant, the answers to other callers, its end, and the cooldown of a failed holder."""

# ruff: noqa: S101 - a law is an assertion

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from tokencache.ports import Granted, Held
from tokencache.testing._laws import Laws
from tokencache.testing.probes import KEY, LONG, cooldown, found, granted, held, record

if TYPE_CHECKING:
    from tokencache.ports import LeaseReply
    from tokencache.testing.probes import Probe


class LeaseLaws(Laws):
    """The laws of ``lease``, ``extend``, ``release`` and of cooldowns."""

    # --- the lease

    def test_one_gets_the_lease_and_the_next_is_held_off(self, probe: Probe) -> None:
        """The first owner gets the lease. Any other gets ``Held`` with the remaining time, without a cooldown."""
        lease = granted(self.ask(probe, "a"))
        assert (lease.key, lease.owner, lease.ttl) == (KEY, "a", LONG)
        reply = held(self.ask(probe, "b"))
        assert 0 < reply.remaining <= LONG + self.rounding
        assert reply.cooldown is None

    def test_many_ask_and_one_gets_the_lease(self, probe: Probe) -> None:
        """INV-2: of many concurrent callers exactly one gets the lease."""
        together = threading.Barrier(8)

        def contend(number: int) -> LeaseReply:
            together.wait()
            return self.ask(probe, f"owner-{number}")

        with ThreadPoolExecutor(8) as pool:
            replies = list(pool.map(contend, range(8)))
        assert sum(isinstance(reply, Granted) for reply in replies) == 1
        assert sum(isinstance(reply, Held) for reply in replies) == 7  # noqa: PLR2004 - the other seven

    def test_leases_of_two_keys_are_apart(self, probe: Probe) -> None:
        """A held lease does not affect another key."""
        granted(probe.lease("contract:one", "a", "identity", None, LONG))
        granted(probe.lease("contract:two", "b", "identity", None, LONG))

    def test_the_same_owner_gets_the_same_lease_back(self, probe: Probe) -> None:
        """An owner that asks again after a lost reply gets the same lease, and others still do not get it."""
        first = granted(self.ask(probe, "a"))
        again = granted(self.ask(probe, "a"))
        assert again.fence == first.fence
        held(self.ask(probe, "b"))
        assert probe.commit(first, record(first.fence), LONG) is True

    def test_asking_again_extends_the_lease(self, probe: Probe) -> None:
        """When the same owner asks again, its lease lasts the whole requested ``ttl`` from now on."""
        granted(self.ask(probe, "a"))
        granted(self.ask(probe, "a", ttl=2 * LONG))
        assert held(self.ask(probe, "b")).remaining > LONG + self.rounding

    def test_the_fence_only_grows(self, probe: Probe) -> None:
        """INV-3: each grant has a higher fence than the last, however the last lease and its record ended."""
        fences: list[int] = []
        seen: bytes | None = None
        for step in range(9):
            lease = granted(self.ask(probe, "ab"[step % 2], seen))
            fences.append(lease.fence)
            if step % 3 == 0:
                probe.release(lease)
                continue
            seen = record(lease.fence)
            assert probe.commit(lease, seen, LONG) is True
            if step % 3 == 1:
                assert probe.discard(KEY, seen) is True
        assert fences == sorted(set(fences))

    def test_the_fence_is_above_that_of_the_stored_record(self, probe: Probe) -> None:
        """INV-3: after a record from a clock that was ahead, the next fence is still higher."""
        ahead = granted(self.ask(probe, "a")).fence + 10**10
        probe.release(granted(self.ask(probe, "a")))
        self.plant(probe, record(ahead))
        lease = granted(self.ask(probe, "a", record(ahead)))
        assert lease.fence > ahead
        assert probe.commit(lease, record(lease.fence), LONG) is True

    def test_a_lease_ends_by_itself(self, probe: Probe) -> None:
        """A lease ends after its ``ttl``. Then its holder can neither extend it nor free the next lease."""
        first = granted(self.ask(probe, "a", ttl=self.short))
        second = self.eventually_granted(probe, "b")
        assert second.fence > first.fence
        assert probe.extend(first, LONG) is False
        probe.release(first)
        held(self.ask(probe, "c"))

    def test_an_ended_lease_has_no_owner(self, probe: Probe) -> None:
        """An ended lease is neither extended nor turned into a cooldown, even if no other owner took it."""
        lease = granted(self.ask(probe, "a", ttl=self.short))
        self.eventually(lambda: probe.inspect(KEY).owner is None or None)
        assert probe.extend(lease, LONG) is False
        probe.release(lease, cooldown())
        granted(self.ask(probe, "b"))

    def test_extending_makes_the_lease_last(self, probe: Probe) -> None:
        """The holder can make its lease last longer; others see the new end."""
        lease = granted(self.ask(probe, "a"))
        assert probe.extend(lease, 2 * LONG) is True
        assert held(self.ask(probe, "b")).remaining > LONG + self.rounding

    def test_a_freed_lease_is_not_extended(self, probe: Probe) -> None:
        """A released lease cannot be extended, and ``extend`` does not take a lease."""
        lease = granted(self.ask(probe, "a"))
        probe.release(lease)
        assert probe.extend(lease, LONG) is False
        granted(self.ask(probe, "b"))
        assert probe.extend(lease, LONG) is False

    def test_releasing_frees_the_lease(self, probe: Probe) -> None:
        """After the release the next caller gets the lease."""
        probe.release(granted(self.ask(probe, "a")))
        granted(self.ask(probe, "b"))

    def test_only_the_owner_releases(self, probe: Probe) -> None:
        """A late or repeated release does not free another owner's lease and does not store a cooldown."""
        first = granted(self.ask(probe, "a"))
        probe.release(first)
        second = granted(self.ask(probe, "b"))
        probe.release(first)
        probe.release(first, cooldown())
        assert held(self.ask(probe, "c")).cooldown is None
        assert probe.extend(second, LONG) is True

    def test_an_earlier_lease_of_the_same_owner_is_not_the_later_one(self, probe: Probe) -> None:
        """A late release does not free the later lease of the same owner."""
        first = granted(self.ask(probe, "a"))
        probe.release(first)
        second = granted(self.ask(probe, "a"))
        assert second.fence > first.fence
        probe.release(first)
        held(self.ask(probe, "b"))

    # --- found

    def test_another_record_is_found_though_the_lease_is_held(self, probe: Probe) -> None:
        """INV-6: a caller that has not seen the stored record gets it, also while the lease is held."""
        self.plant(probe, record(None, "one"))
        granted(self.ask(probe, "a", record(None, "one")))
        assert found(self.ask(probe, "b")).data == record(None, "one")
        held(self.ask(probe, "b", record(None, "one")))

    def test_only_a_higher_fence_is_another_record(self, probe: Probe) -> None:
        """A stored record with a higher fence than the seen one is found; an equal or lower fence is not."""
        lease = granted(self.ask(probe, "a"))
        fence = lease.fence
        assert probe.commit(lease, record(fence), LONG) is True
        assert found(self.ask(probe, "b", record(fence - 1))).data == record(fence)
        probe.release(granted(self.ask(probe, "b", record(fence))))
        probe.release(granted(self.ask(probe, "b", record(fence, "other bytes"))))
        granted(self.ask(probe, "b", record(fence + 1)))

    def test_a_record_without_a_fence_is_another_when_its_bytes_differ(self, probe: Probe) -> None:
        """If one of the two records has no fence, their bytes are compared."""
        self.plant(probe, record(None, "theirs"))
        assert found(self.ask(probe, "a")).data == record(None, "theirs")
        found(self.ask(probe, "a", record(None, "older")))
        found(self.ask(probe, "a", record(1)))
        found(self.ask(probe, "a", record(2**52)))
        lease = granted(self.ask(probe, "a", record(None, "theirs")))
        assert probe.commit(lease, record(lease.fence), LONG) is True
        assert found(self.ask(probe, "a", record(None, "theirs"))).data == record(lease.fence)

    def test_an_unreadable_record_is_another_when_its_bytes_differ(self, probe: Probe) -> None:
        """Bytes that are not a record are found and replaced like a record without a fence."""
        self.plant(probe, b"\x00\xff{not json")
        assert found(self.ask(probe, "a")).data == b"\x00\xff{not json"
        lease = granted(self.ask(probe, "a", b"\x00\xff{not json"))
        assert probe.commit(lease, record(lease.fence), LONG) is True

    def test_an_empty_record_is_another_than_one_with_a_fence(self, probe: Probe) -> None:
        """An empty record of another program is found like any other unreadable one."""
        self.plant(probe, b"")
        assert found(self.ask(probe, "a", record(1))).data == b""
        granted(self.ask(probe, "a", b""))

    # --- cooldown

    def test_a_cooldown_gives_its_identity_the_reason(self, probe: Probe) -> None:
        """INV-7: the same identity gets ``Held`` with every field of the stored cooldown."""
        probe.release(granted(self.ask(probe, "a")), cooldown())
        reply = held(self.ask(probe, "b"))
        assert reply.cooldown is not None
        assert 0 < reply.cooldown.remaining <= LONG + self.rounding
        assert 0 < reply.remaining <= LONG + self.rounding
        assert reply.cooldown == cooldown(reply.cooldown.remaining)
        assert held(self.ask(probe, "a")).cooldown is not None

    def test_a_cooldown_binds_no_other_identity(self, probe: Probe) -> None:
        """INV-7: a misconfigured process does not stop others: another identity's lease replaces the cooldown."""
        probe.release(granted(self.ask(probe, "a")), cooldown())
        other = granted(probe.lease(KEY, "b", "another identity", None, LONG))
        assert probe.commit(other, record(other.fence), LONG) is True
        granted(self.ask(probe, "a", record(other.fence)))

    def test_a_cooldown_ends(self, probe: Probe) -> None:
        """After the cooldown has ended the next caller gets the lease."""
        probe.release(granted(self.ask(probe, "a")), cooldown(self.short))
        self.eventually_granted(probe, "b")

    def test_a_record_comes_before_a_cooldown(self, probe: Probe) -> None:
        """INV-4: after a failed renewal, a caller that has not seen the record still gets it."""
        self.plant(probe, record(None))
        probe.release(granted(self.ask(probe, "a", record(None))), cooldown())
        found(self.ask(probe, "b"))
        assert probe.load(KEY) is not None
