"""State machines that do random things to a part of the scheduler and to a simple model of it, and compare the two.

Each is run by a test of tests/cluster/test_machines.py, which counts the steps. The models are plain lists and dicts,
written without a look at the code that they judge.
"""

from __future__ import annotations

from collections import Counter

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cluster.centre.ledger import Ledger, TurnClock
from cluster.centre.prefix import PrefixIndex
from cluster.hashing import HASH_BYTES

STEPS: Counter[str] = Counter()
"""Steps taken, by machine."""


class Counted(RuleBasedStateMachine):
    """Counts its steps: the invariant is looked at after each."""

    @invariant()
    def count(self) -> None:
        STEPS[type(self).__name__] += 1


def name_of(number: int) -> bytes:
    return number.to_bytes(HASH_BYTES, "little")


class LedgerMachine(Counted):
    """A ledger beside a list of tables: who holds what is counted by looking at all of them."""

    NUM_BLOCKS = 12

    @initialize(allocator=st.sampled_from(["lru", "fifo", "buddy"]))
    def begin(self, allocator: str) -> None:
        self.clock = TurnClock()
        self.index = PrefixIndex()
        self.ledger = Ledger(1, self.NUM_BLOCKS, allocator, self.index, self.clock)  # type: ignore[arg-type]
        self.tables: list[list[int]] = []
        self.paid: list[float] = []
        self.named: dict[int, bytes] = {}
        self.moving: list[list[int]] = []
        self.quarantined: list[list[int]] = []
        self.held_seconds = 0.0
        self.billed = 0.0
        self.number = 0

    def holders(self, block: int) -> int:
        return sum(table.count(block) for table in self.tables)

    def unheld(self) -> list[int]:
        busy = {block for blocks in self.moving + self.quarantined for block in blocks}
        return [block for block in range(self.NUM_BLOCKS) if not self.holders(block) and block not in busy]

    @rule(count=st.integers(0, 6))
    def allocate(self, count: int) -> None:
        room = self.unheld()
        got = self.ledger.allocate(count, 7)
        if count > len(room):
            assert got is None
            return
        assert got is not None
        assert len(set(got)) == count
        assert set(got) <= set(room)
        free = [block for block in room if block not in self.named]
        if count <= len(free) and isinstance(self.ledger._unheld, object) and self.is_lru:
            assert set(got) <= set(free), "a cached block was taken while others were free"
        for block in got:
            self.named.pop(block, None)
        if got:
            self.tables.append(got)
            self.paid.append(0.0)

    @property
    def is_lru(self) -> bool:
        return type(self.ledger._unheld).__name__ == "Lru"

    @precondition(lambda self: self.tables)
    @rule(which=st.integers(0, 99), count=st.integers(1, 4))
    def share_a_table(self, which: int, count: int) -> None:
        blocks = self.tables[which % len(self.tables)][:count]
        self.paid.append(self.ledger.share(blocks, 8))
        self.tables.append(list(blocks))

    @precondition(lambda self: self.cached())
    @rule(which=st.integers(0, 99))
    def share_what_is_cached(self, which: int) -> None:
        cached = self.cached()
        block = cached[which % len(cached)]
        self.paid.append(self.ledger.share([block], 9))
        self.tables.append([block])

    def cached(self) -> list[int]:
        return [block for block in self.unheld() if block in self.named]

    @precondition(lambda self: self.tables)
    @rule(which=st.integers(0, 99))
    def release(self, which: int) -> None:
        at = which % len(self.tables)
        table = self.tables.pop(at)
        self.billed += self.ledger.release(table, 7) - self.paid.pop(at)

    @precondition(lambda self: self.tables)
    @rule(which=st.integers(0, 99), known=st.booleans())
    def fill(self, which: int, known: bool) -> None:
        """A block is named; a name that the pool has already stays with the block that had it first."""
        table = self.tables[which % len(self.tables)]
        block = table[which % len(table)]
        self.number += 1
        name = next(iter(self.named.values())) if known and self.named else name_of(self.number)
        self.ledger.set_names([block], [name])
        if block not in self.named and name not in self.named.values():
            self.named[block] = name

    @precondition(lambda self: self.tables)
    @rule(which=st.integers(0, 99))
    def begin_moving(self, which: int) -> None:
        blocks = list(self.tables[which % len(self.tables)])
        self.ledger.begin_moving(blocks)
        self.moving.append(blocks)

    @precondition(lambda self: self.moving)
    @rule(which=st.integers(0, 99), quarantine=st.booleans())
    def end_moving(self, which: int, quarantine: bool) -> None:
        blocks = self.moving.pop(which % len(self.moving))
        others = {block for other in self.moving for block in other}
        alone = not any(self.holders(block) or block in others for block in blocks)
        self.ledger.end_moving(blocks, quarantine=quarantine and alone)
        if quarantine and alone:
            self.quarantined.append(blocks)
            for block in blocks:
                self.named.pop(block, None)

    @precondition(lambda self: self.quarantined)
    @rule(which=st.integers(0, 99))
    def end_quarantine(self, which: int) -> None:
        self.ledger.end_quarantine(self.quarantined.pop(which % len(self.quarantined)))

    @rule()
    def forget_cache(self) -> None:
        cached = self.cached()
        assert self.ledger.forget_cache() == len(cached)
        for block in cached:
            del self.named[block]

    @rule(seconds=st.sampled_from([0.5, 1.0, 4.0]))
    def time_goes_on(self, seconds: float) -> None:
        self.clock.now += seconds
        self.held_seconds += seconds * sum(1 for block in range(self.NUM_BLOCKS) if self.holders(block))

    @invariant()
    def agrees(self) -> None:
        self.ledger.check(self.tables)
        in_motion = {block for blocks in self.moving for block in blocks}
        shut = {block for blocks in self.quarantined for block in blocks}
        states = Counter(
            "quarantined" if block in shut
            else "held" if self.holders(block)
            else "moving" if block in in_motion
            else "cached" if block in self.named
            else "free"
            for block in range(self.NUM_BLOCKS)
        )  # fmt: skip
        counts = self.ledger.counts()
        assert {state: getattr(counts, state) for state in ("free", "cached", "held", "moving", "quarantined")} == {
            state: states[state] for state in ("free", "cached", "held", "moving", "quarantined")
        }
        for block in range(self.NUM_BLOCKS):
            assert self.ledger.holders(block) == self.holders(block)
            assert self.ledger.name(block) == self.named.get(block, b"")

    def teardown(self) -> None:
        """Shared blocks are split among their holders: together they pay each block's time once."""
        while getattr(self, "tables", []):
            self.release(0)
        if hasattr(self, "billed"):
            assert abs(self.billed - self.held_seconds) < 1e-6, f"{self.billed} paid of {self.held_seconds}"


class PrefixMachine(Counted):
    """The prefix index beside a dict of dicts: name -> pool -> block."""

    NUM_NAMES = 6
    # More than a name's few: it is kept in another way where many pools hold it.
    POOLS = range(1, 9)

    def __init__(self) -> None:
        super().__init__()
        self.index = PrefixIndex()
        self.places: dict[bytes, dict[int, int]] = {}
        self.block = 0

    @rule(name=st.integers(0, NUM_NAMES - 1), pool=st.integers(1, 8))
    def list_block(self, name: int, pool: int) -> None:
        self.block += 1
        pools = self.places.setdefault(name_of(name), {})
        assert self.index.list_block(name_of(name), pool, self.block) == (pool not in pools)
        pools.setdefault(pool, self.block)

    @precondition(lambda self: any(self.places.values()))
    @rule(which=st.integers(0, 99))
    def unlist_block(self, which: int) -> None:
        listed = [(name, pool) for name, pools in self.places.items() for pool in pools]
        name, pool = listed[which % len(listed)]
        self.index.unlist_block(name, pool, self.places[name].pop(pool))
        if not self.places[name]:
            del self.places[name]

    @rule(names=st.lists(st.integers(0, NUM_NAMES - 1), max_size=6))
    def match(self, names: list[int]) -> None:
        expected = {}
        for pool in self.POOLS:
            run = []
            for name in names:
                block = self.places.get(name_of(name), {}).get(pool)
                if block is None:
                    break
                run.append(block)
            if run:
                expected[pool] = run
        hits = self.index.match(b"".join(map(name_of, names)))
        assert {pool: hits.blocks(pool) for pool, _ in hits} == expected
        assert dict(hits) == {pool: len(run) for pool, run in expected.items()}
        assert hits.longest == max(map(len, expected.values()), default=0)
        assert all(not hits.blocks(pool) for pool in self.POOLS if pool not in expected)

    @invariant()
    def agrees(self) -> None:
        assert len(self.index) == len(self.places)
        for name in map(name_of, range(self.NUM_NAMES)):
            for pool in self.POOLS:
                assert self.index.block_in(name, pool) == self.places.get(name, {}).get(pool)
