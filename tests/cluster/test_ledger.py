"""The ledger against a model of it: states add up whatever is done, content is found until its space is needed, and a
mistake of ours is an assertion that names the block."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.centre.ledger import Ledger, TurnClock
from cluster.centre.prefix import PrefixIndex
from cluster.hashing import HASH_BYTES
from cluster.settings import AllocatorName

NUM_BLOCKS = 24


def new_ledger(allocator: AllocatorName = "lru", num_blocks: int = NUM_BLOCKS) -> Ledger:
    return Ledger(1, num_blocks, allocator, PrefixIndex(), TurnClock())


def name_of(number: int) -> bytes:
    return number.to_bytes(HASH_BYTES, "little")


@dataclass
class Model:
    """Tables as a scheduler would keep them, and what random operations did to them."""

    ledger: Ledger
    tables: list[list[int]] = field(default_factory=list)
    num_names: int = 0

    def do(self, random: Random) -> None:
        action = random.choice((self.grow, self.grow, self.end, self.share, self.name, self.truncate, self.move))
        action(random)
        self.ledger.check(self.tables)

    def grow(self, random: Random) -> None:
        """A new sequence, or blocks on demand at the end of one."""
        table = random.choice([*self.tables, []])
        count = random.randint(1, 6)
        available = self.ledger.num_available
        blocks = self.ledger.allocate(count, 7, table[-1] if table else -1)
        assert (blocks is not None) == (count <= available)
        if blocks is not None:
            if not table:
                self.tables.append(table)
            table.extend(blocks)

    def end(self, random: Random) -> None:
        if self.tables:
            self.ledger.release(self.tables.pop(random.randrange(len(self.tables))), 7)

    def share(self, random: Random) -> None:
        """A fork: a prefix of any number of blocks stands in two tables."""
        if self.tables:
            table = random.choice(self.tables)
            prefix = table[: random.randint(1, len(table))]
            self.ledger.share(prefix, 8)
            self.tables.append(prefix)

    def truncate(self, random: Random) -> None:
        if self.tables:
            table = random.choice(self.tables)
            kept = random.randint(1, len(table))
            self.ledger.release(table[kept:], 7)
            del table[kept:]

    def name(self, random: Random) -> None:
        if self.tables:
            blocks = random.choice(self.tables)
            names = [name_of(self.num_names + i) for i in range(len(blocks))]
            self.num_names += len(blocks)
            self.ledger.set_names(blocks, names)

    def move(self, random: Random) -> None:
        """A transfer that outlives its holder, and one whose late writer is waited for."""
        blocks = self.ledger.allocate(2, 9)
        if blocks is not None:
            self.ledger.begin_moving(blocks)
            self.ledger.release(blocks, 9)
            self.ledger.check(self.tables)
            late = random.random() < 0.5
            self.ledger.end_moving(blocks, quarantine=late)
            if late:
                self.ledger.check(self.tables)
                self.ledger.end_quarantine(blocks)


@pytest.mark.parametrize("allocator", ["fifo", "lru", "buddy"])
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1 << 32))
def test_states_add_up_whatever_is_done(allocator: AllocatorName, seed: int) -> None:
    random = Random(seed)
    model = Model(new_ledger(allocator))
    for _ in range(60):
        model.do(random)
    for table in model.tables:
        model.ledger.release(table, 7)
    counts = model.ledger.counts()
    assert (counts.held, counts.moving, counts.quarantined) == (0, 0, 0)
    assert counts.free + counts.cached == NUM_BLOCKS == model.ledger.num_available


@pytest.mark.parametrize("allocator", ["fifo", "lru", "buddy"])
def test_one_block_each_is_as_good_as_one_by_one(allocator: AllocatorName) -> None:
    together, alone = new_ledger(allocator), new_ledger(allocator)
    first, last = together.allocate(3, 1), alone.allocate(3, 1)
    assert first == last and first is not None
    each = together.allocate_each([1, 2, 3], first)
    assert each == [(alone.allocate(1, seq, block) or [-1])[0] for seq, block in zip([1, 2, 3], first, strict=True)]
    together.check([*([block] for block in first), *([block] for block in each or ())])
    assert together.allocate_each([1] * 19, [-1] * 19) is None, "all or nothing"
    assert together.num_available == NUM_BLOCKS - 6


def test_a_chain_loses_its_tail_before_its_head() -> None:
    ledger = new_ledger(num_blocks=4)
    chain = ledger.allocate(3, 1)
    assert chain is not None
    ledger.set_names(chain, [*map(name_of, range(3))])
    ledger.release(chain, 1)
    assert ledger.counts().cached == 3
    # One block is free and one more is needed: the tail goes, and only the tail.
    ledger.allocate(2, 2)
    assert [ledger.index.block_in(name_of(number), 1) for number in range(3)] == [chain[0], chain[1], None]


def test_block_seconds_are_split_among_holders() -> None:
    ledger = new_ledger()
    clock = ledger._clock
    shared = ledger.allocate(2, 1)
    assert shared is not None
    clock.now = 10.0
    owed = ledger.share(shared, 2)
    clock.now = 14.0
    second = ledger.release(shared, 2) - owed
    clock.now = 15.0
    first = ledger.release(shared, 1)
    # Alone for ten seconds and one, by halves for four.
    assert (first, second) == (pytest.approx(2 * (10 + 2 + 1)), pytest.approx(2 * 2.0))


def test_a_double_free_names_the_block_and_what_was_done_with_it() -> None:
    ledger = new_ledger()
    blocks = ledger.allocate(1, 0xABC)
    assert blocks is not None
    ledger.release(blocks, 0xABC)
    with pytest.raises(
        AssertionError, match=rf"block {blocks[0]} .*freed twice by 0xdef.*allocate by 0xabc, release by"
    ):
        ledger.release(blocks, 0xDEF)


def test_use_after_free_names_the_block() -> None:
    ledger = new_ledger()
    blocks = ledger.allocate(1, 1)
    assert blocks is not None
    ledger.release(blocks, 1)
    for use in (lambda: ledger.share(blocks, 2), lambda: ledger.begin_moving(blocks)):
        with pytest.raises(AssertionError, match=f"block {blocks[0]} of pool 1"):
            use()
    with pytest.raises(AssertionError, match="named while free"):
        ledger.set_names(blocks, [name_of(1)])


@pytest.mark.parametrize("wrong", ["a table lost", "a table twice", "a block twice"])
def test_check_sees_tables_that_are_not_what_was_counted(wrong: str) -> None:
    ledger = new_ledger()
    one, other = ledger.allocate(2, 1), ledger.allocate(2, 2)
    assert one is not None and other is not None
    ledger.check([one, other])
    tables = {"a table lost": [one], "a table twice": [one, other, other], "a block twice": [[*one, one[0]], other]}
    with pytest.raises(AssertionError):
        ledger.check(tables[wrong])
