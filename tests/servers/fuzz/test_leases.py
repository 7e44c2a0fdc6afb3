"""One model of the lease protocol; a machine calls every backend at random and compares it with the model.

The machine has three owners in two processes, two keys and two identities. In any order they ask for the lease,
commit, extend, release, discard, wait and load, also with leases that were lost long ago. Meanwhile other programs
write records, and stored entries end. After each call the store must match the model.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Protocol

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from tokencache.ports import Cooldown, Slot, Stored
from tokencache.records import fence_of, is_another
from tokencache.testing.probes import found, granted, held, record

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokencache.ports import LeaseGrant, LeaseReply
    from tokencache.testing.fakes import FakeClock
    from tokencache.testing.probes import Probe

PROGRAMS = settings.get_profile("programs")

OWNERS = {"anna": 0, "bat": 0, "otgon": 1}
"""Who asks, and in which of the two processes."""

ELAPSED = 60.0
"""No program takes longer than that on a store that counts for itself."""

LIVES = (600.0, 900.0)
FOREIGN = (record(None, "theirs"), b"\x00\xff{not json", record(1, "old"), b"", record(2**52, "far ahead"))

# Repeated entries are drawn more often, so that most programs reach contended leases and do not end before.
EACH_OWNER = st.sampled_from(sorted(OWNERS))
EACH_KEY = st.sampled_from([0, 0, 0, 1])
EACH_IDENTITY = st.sampled_from(["right secret", "wrong secret"])
EACH_LIFE = st.sampled_from([2.0, 2.0, 0.5, 1.0, 30.0])
EACH_RECORDS_LIFE = st.sampled_from([600.0, 900.0, 2.0])
EACH_PAUSE = st.sampled_from([30.0, 600.0, 1.0])
SEEN = st.sampled_from([1, 1, 1, 1, 1, 0, 2, 3, 4, 5, 6, -1, -2, -3, -4])
KIND = st.sampled_from(["ours"] * 6 + ["no fence", "unreadable", "ahead"])
BACK = st.sampled_from([0, 0, 1, 1, 2, 3, 4])


class Ground(Protocol):
    """The machine's store, as the fixtures of ``conftest.py`` give it; they describe each field."""

    probes: tuple[Probe, Probe]
    clock: FakeClock | None
    rounding: float
    remembers: bool
    plant: Callable[[str, bytes], object] | None
    end_lease: Callable[[str], object] | None
    end_record: Callable[[str], object] | None


@dataclass
class Key:
    """The model of one key. An instant is one of the machine's clock; under a clock that stands still, none ends."""

    name: str
    data: bytes | None = None
    data_ends_at: float | None = None
    lease: LeaseGrant | None = None
    cooldown: Cooldown | None = None
    slot_ends_at: float = 0.0
    fence: int = 0
    was_ahead: bool = False
    written: list[bytes] = field(default_factory=list)

    def stored(self, now: float) -> bytes | None:
        """Return the record that has not ended."""
        return None if self.data_ends_at is not None and self.data_ends_at <= now else self.data

    def store(self, data: bytes, ends_at: float | None) -> None:
        """Replace the record."""
        self.data, self.data_ends_at = data, ends_at
        self.note(data)
        self.written.append(data)

    def note(self, data: bytes | None) -> None:
        """Note a fence from a clock that was far ahead."""
        self.was_ahead = self.was_ahead or (fence_of(data or b"") or 0) >= 2**52

    def tidy(self, now: float) -> None:
        """Forget a lease or a cooldown that has ended."""
        if self.slot_ends_at <= now:
            self.empty()

    def empty(self) -> None:
        """Empty the slot."""
        self.lease = self.cooldown = None

    def holds(self, lease: LeaseGrant) -> bool:
        """Return whether this very lease fills the slot."""
        return self.lease is not None and (self.lease.owner, self.lease.fence) == (lease.owner, lease.fence)


class LeaseMachine(RuleBasedStateMachine):
    """Calls a backend and the model, and compares. Each run has two new keys on the one store."""

    ground: ClassVar[Ground]
    _runs: ClassVar[itertools.count[int]] = itertools.count()

    def __init__(self) -> None:
        super().__init__()
        run = next(self._runs)
        self.keys = (Key(f"run {run}"), Key(f"run {run}\r\nset {{x}}"))
        self.grants: list[LeaseGrant] = []
        self.values = itertools.count()
        self.turns = itertools.count()

    # --- shared by the model and the machine

    @property
    def now(self) -> float:
        """The instant by which the store counts; for a store that counts by itself it stands still."""
        clock = self.ground.clock
        return 0.0 if clock is None else clock.at

    def life(self, duration: float) -> float:
        """Return a duration, or a long one if only real time would end it."""
        return duration if self.ground.clock is not None else LIVES[duration < 10]

    def probe(self, owner: str) -> Probe:
        """Return the backend of the owner's process."""
        probe: Probe = self.ground.probes[OWNERS[owner]]
        return probe

    def seen(self, key: Key, number: int) -> bytes | None:
        """Return bytes that a caller may have seen: none, the record, a similar or earlier one, another program's."""
        twin = record(fence_of(key.data or b"") or key.fence, "twin")
        choices = (None, key.data, twin, *reversed(key.written), *FOREIGN)
        return choices[number % len(choices)]

    def check_remaining(self, remaining: float | None, ends_at: float) -> None:
        """Compare a countdown with the expected end."""
        left = ends_at - self.now
        elapsed = ELAPSED if self.ground.clock is None else self.ground.rounding
        assert remaining is not None
        assert left - elapsed <= remaining <= left + self.ground.rounding

    def check_stored(self, stored: Stored | None, key: Key) -> None:
        """Compare a record, and its countdown if the store has one, with the model's."""
        assert (None if stored is None else stored.data) == key.stored(self.now)
        if stored is not None and stored.remaining is not None:
            assert key.data_ends_at is not None
            self.check_remaining(stored.remaining, key.data_ends_at)

    def check_cooldown(self, cooldown: Cooldown | None, key: Key) -> None:
        """Compare all fields of a cooldown with the one that was left."""
        assert cooldown is not None
        assert key.cooldown is not None
        self.check_remaining(cooldown.remaining, key.slot_ends_at)
        assert replace(cooldown, remaining=0.0) == replace(key.cooldown, remaining=0.0)

    # --- calls

    @rule(owner=EACH_OWNER, index=EACH_KEY, identity=EACH_IDENTITY, seen=SEEN, life=EACH_LIFE)
    def lease(self, owner: str, index: int, identity: str, seen: int, life: float) -> None:
        """Ask for the lease."""
        key, ttl = self.keys[index], self.life(life)
        known = self.seen(key, seen)
        key.note(known)
        reply: LeaseReply = self.probe(owner).lease(key.name, owner, identity, known, ttl)
        stored = key.stored(self.now)
        if stored is not None and is_another(stored, known):
            self.check_stored(found(reply), key)
        elif key.lease is not None and key.lease.owner != owner:
            assert held(reply).cooldown is None
            self.check_remaining(held(reply).remaining, key.slot_ends_at)
        elif key.cooldown is not None and key.cooldown.identity == identity:
            self.check_cooldown(held(reply).cooldown, key)
            self.check_remaining(held(reply).remaining, key.slot_ends_at)
        else:
            lease = granted(reply)
            assert (lease.key, lease.owner, lease.ttl) == (key.name, owner, ttl)
            if key.lease is not None:
                assert lease.fence == key.lease.fence, "asking again gives the same lease back"
            else:
                if self.ground.remembers or not key.was_ahead:
                    assert lease.fence > key.fence, "INV-3: a fence is above that of every earlier lease"
                assert lease.fence > (fence_of(stored or b"") or 0), "INV-3: a fence is above the stored one"
            key.empty()
            key.lease, key.fence, key.slot_ends_at = lease, lease.fence, self.now + ttl
            self.grants.append(lease)

    @precondition(lambda self: self.grants)
    @rule(back=BACK, kind=KIND, life=EACH_RECORDS_LIFE)
    def commit(self, back: int, kind: str, life: float) -> None:
        """Commit with the last lease or an earlier one, maybe lost or used up."""
        lease, key = self.granted_before(back)
        value, ttl = f"token-{next(self.values)}", self.life(life)
        fences = {"ours": lease.fence, "no fence": None, "ahead": 2**52}
        data = record(fences[kind], value) if kind in fences else value.encode()
        done = self.probe(lease.owner).commit(lease, data, ttl)
        fence = None if key.data is None else fence_of(key.data)
        newer = fence is not None and fence > lease.fence
        foreign = key.data is not None and fence is None and not key.holds(lease)
        if (newer or foreign) and key.stored(self.now) is not None:
            assert done is False, "INV-3: a late writer replaces nothing newer, and nothing of another program's"
        elif not newer and not foreign:
            assert done is True
        if done:  # a record that has ended may still refuse an older one, or may be gone
            key.store(data, self.now + ttl)
            if key.holds(lease):
                key.empty()

    @precondition(lambda self: self.grants)
    @rule(back=BACK, failed=st.booleans(), identity=EACH_IDENTITY, life=EACH_PAUSE)
    def release(self, back: int, failed: bool, identity: str, life: float) -> None:
        """Release the last lease or an earlier one, and leave a cooldown if the fetch failed."""
        lease, key = self.granted_before(back)
        left = Cooldown(identity, self.life(life), failed, back, 'no "luck": \u0425\u04af\u0441', "invalid_client", 401)
        self.probe(lease.owner).release(lease, left if failed else None)
        if key.holds(lease):
            key.empty()
            if failed:
                key.cooldown, key.slot_ends_at = left, self.now + left.remaining

    @precondition(lambda self: self.grants)
    @rule(back=BACK, life=EACH_LIFE)
    def extend(self, back: int, life: float) -> None:
        """Extend the last lease or an earlier one."""
        lease, key = self.granted_before(back)
        done = self.probe(lease.owner).extend(lease, self.life(life))
        assert done is key.holds(lease)
        if done:
            key.slot_ends_at = self.now + self.life(life)

    @rule(owner=EACH_OWNER, index=EACH_KEY, seen=SEEN)
    def discard(self, owner: str, index: int, seen: int) -> None:
        """Discard the record, or an earlier one, or another program's."""
        key = self.keys[index]
        known = self.seen(key, seen)
        if known is None:
            known = record(None, "never stored")
        stored = key.stored(self.now)
        done = self.probe(owner).discard(key.name, known)
        assert done is (stored is not None and stored == known), "INV-6: only the record that was seen is discarded"
        if done:
            key.data = None

    @rule(owner=EACH_OWNER, index=EACH_KEY, seen=SEEN)
    def wait(self, owner: str, index: int, seen: int) -> None:
        """Wait with a time-out of zero; a record that a wake-up brings was committed to this key."""
        key = self.keys[index]
        stored = self.probe(owner).wait(key.name, self.seen(key, seen), 0.0)
        assert stored is None or stored.data in key.written, "INV-10: never another key's record"

    @rule(owner=EACH_OWNER, index=EACH_KEY)
    def load(self, owner: str, index: int) -> None:
        """Read the record."""
        key = self.keys[index]
        self.check_stored(self.probe(owner).load(key.name), key)

    # --- sequences of calls that matter and that chance alone seldom draws

    @rule(owner=EACH_OWNER, index=EACH_KEY, identity=EACH_IDENTITY)
    def renew(self, owner: str, index: int, identity: str) -> None:
        """Replace the record, if the lease is granted."""
        before = len(self.grants)
        self.lease(owner, index, identity, 1, 2.0)
        if len(self.grants) > before:
            self.commit(0, "ours", 600.0)

    @rule(owner=EACH_OWNER, index=EACH_KEY, identity=EACH_IDENTITY, life=EACH_PAUSE)
    def fail(self, owner: str, index: int, identity: str, life: float) -> None:
        """Ask for the lease and leave a cooldown, if it is granted."""
        before = len(self.grants)
        self.lease(owner, index, identity, 1, 2.0)
        if len(self.grants) > before:
            self.release(0, True, identity, life)

    @rule(
        late=EACH_OWNER, owner=EACH_OWNER, index=EACH_KEY, identity=EACH_IDENTITY, first=st.sampled_from([0, 1, None])
    )
    def overtake(self, late: str, owner: str, index: int, identity: str, first: int | None) -> None:
        """Lose the lease to another owner; then one of the two stores first, or neither does."""
        self.lease(late, index, identity, 1, 2.0)
        key = self.keys[index]
        if key.lease is not None:
            self.end_lease(key)
            self.lease(owner, index, identity, 1, 2.0)
            if first is not None:
                self.commit(first, "ours", 600.0)

    # --- events

    def end_lease(self, key: Key) -> None:
        """Let time pass, or remove the lease, and change nothing else."""
        if self.ground.clock is None:
            self.ground.end_lease(key.name)
            key.empty()
        else:
            self.time_passes(max(0.0, key.slot_ends_at - self.now))

    @precondition(lambda self: self.ground.clock is not None)
    @rule(duration=st.sampled_from([0.25, 0.5, 1.0, 2.0, 30.0, 600.0]))
    def time_passes(self, duration: float) -> None:
        """Let leases, cooldowns and records end."""
        self.ground.clock.advance(duration)
        for key in self.keys:
            key.tidy(self.now)

    @rule(index=EACH_KEY)
    def lease_ends(self, index: int) -> None:
        """Make the lease or the cooldown end, as time or an eviction would."""
        self.end_lease(self.keys[index])

    @precondition(lambda self: self.ground.end_record is not None)
    @rule(index=EACH_KEY)
    def record_ends(self, index: int) -> None:
        """Make the record end, as time, an eviction or another program would."""
        self.ground.end_record(self.keys[index].name)
        self.keys[index].data = None

    @precondition(lambda self: self.ground.plant is not None and self.grants)
    @rule(index=EACH_KEY, data=st.sampled_from(FOREIGN))
    def another_program_writes(self, index: int, data: bytes) -> None:
        """Find a record that another program wrote."""
        self.ground.plant(self.keys[index].name, data)
        self.keys[index].store(data, None)

    @invariant()
    def the_store_is_what_the_model_says(self) -> None:
        """INV-2, INV-3: record, holder and cooldown are the model's, for both processes in turn."""
        for key, probe in zip(
            self.keys, self.ground.probes if next(self.turns) % 2 else self.ground.probes[::-1], strict=True
        ):
            slot: Slot = probe.inspect(key.name)
            self.check_stored(slot.stored, key)
            assert slot.owner == (None if key.lease is None else key.lease.owner)
            if key.cooldown is not None:
                self.check_cooldown(slot.cooldown, key)
            else:
                assert slot.cooldown is None
            if key.lease is not None or key.cooldown is not None:
                self.check_remaining(slot.remaining, key.slot_ends_at)
            else:
                assert slot.remaining is None

    def granted_before(self, back: int) -> tuple[LeaseGrant, Key]:
        """Return the lease that was granted so many grants ago, and its key."""
        lease = self.grants[-1 - back % len(self.grants)]
        return lease, next(key for key in self.keys if key.name == lease.key)

    def teardown(self) -> None:
        """Release all leases."""
        for lease in self.grants:
            self.probe(lease.owner).release(lease)


class MemoryMachine(LeaseMachine):
    """The machine in memory."""


class FileMachine(LeaseMachine):
    """The machine on files."""


class RedisMachine(LeaseMachine):
    """The machine on Redis, from threads."""


class AsyncRedisMachine(LeaseMachine):
    """The machine on Redis, from an event loop and from threads."""


class MemcachedMachine(LeaseMachine):
    """The machine on memcached."""


def play(machine: type[LeaseMachine], ground: Ground, *, share: int = 1) -> None:
    """Run programs of calls on a store, more of them on a fast store."""
    machine.ground = ground
    run_state_machine_as_test(machine, settings=settings(PROGRAMS, max_examples=share * PROGRAMS.max_examples))


def test_memory_keeps_to_the_model(memory_ground: Ground) -> None:
    """INV-2, INV-3, INV-6: in memory every program of calls does what the model of the lease protocol says."""
    play(MemoryMachine, memory_ground, share=2)


def test_files_keep_to_the_model(file_ground: Ground) -> None:
    """INV-2, INV-3, INV-6: on files every program of calls, from two processes, does what the model says."""
    play(FileMachine, file_ground)


@pytest.mark.live
def test_redis_keeps_to_the_model(redis_ground: Ground) -> None:
    """INV-2, INV-3, INV-6: on Redis every program of calls, from two processes, does what the model says."""
    play(RedisMachine, redis_ground)


@pytest.mark.live
def test_redis_on_an_event_loop_keeps_to_the_model(async_redis_ground: Ground) -> None:
    """INV-2, INV-3, INV-6: on Redis both halves, side by side, do what the one model says."""
    play(AsyncRedisMachine, async_redis_ground)


@pytest.mark.live
def test_memcached_keeps_to_the_model(memcached_ground: Ground) -> None:
    """INV-2, INV-3, INV-6: on memcached every program of calls, from two processes, does what the model says."""
    play(MemcachedMachine, memcached_ground)
