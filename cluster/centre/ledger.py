"""The accounting of one pool: who holds which block, how often, what is moving, what is cached.

A ledger belongs to the scheduler and is changed by nobody else. It counts; the tables that the counts stand for live
in `cluster/centre/nouns.py`, and `check` holds the two against each other. Every operation is atomic: it does all
that it says or, where memory is short, nothing. A mistake of ours (double free, use after free) is an assertion that
names the block, its holders and its last operations.

A block is in exactly one state:
  free         nobody holds it, its content means nothing
  cached       nobody holds it, its content is full, good and named in the prefix index
  held         in one table, or in several that share it
  moving       no table holds it, a transfer does (to: not yet in a table; from: no longer in one)
  quarantined  a late writer could still touch it

Block-seconds are exact without work per second: a block that h holders share costs each 1/h of its time. `_paid` is the
integral of 1/h up to `_paid_at`; a holder remembers it when it comes and pays the difference when it goes.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from cluster.centre.allocators import Buddy, make_allocator
from cluster.centre.prefix import BLOCK_BITS, PrefixIndex
from cluster.settings import AllocatorName

_CODES = {state: code for code, state in enumerate(("free", "cached", "held", "shared", "moving", "quarantined"))}


class TurnClock:
    """The time of the turn, shared by all ledgers: time comes in with events and is the same within a turn."""

    __slots__ = ("now",)

    def __init__(self) -> None:
        self.now = 0.0


class Counts(NamedTuple):
    """How many blocks are in each state; they add up to the pool."""

    free: int
    cached: int
    held: int
    moving: int
    quarantined: int


class Ledger:
    """The blocks of one pool. `pool` is its number in the prefix index; 0 once it is closed."""

    def __init__(
        self, pool: int, num_blocks: int, allocator: AllocatorName, index: PrefixIndex, clock: TurnClock
    ) -> None:
        assert num_blocks > 0
        self.pool = pool
        self.num_blocks = num_blocks
        self._clock = clock
        self.num_evictions = 0
        # Blocks with more than one holder.
        self.num_shared = 0
        self.index = index
        # Cached blocks that are being copied as they are; one whose content is given up is taken out.
        self.watched: set[int] = set()
        # Those that were copied since they were cached, and the number of the pool that they were copied to.
        self.copied: dict[int, int] = {}
        self._unheld = make_allocator(allocator, num_blocks)
        self._holders = [0] * num_blocks
        # By how many transfers: as many may read one block.
        self._moving = array("i", bytes(4 * num_blocks))
        self._quarantined = bytearray(num_blocks)
        self._names: list[bytes] = [b""] * num_blocks
        self._paid = [0.0] * num_blocks
        self._paid_at = [0.0] * num_blocks
        self._num_moving = 0
        self._num_quarantined = 0
        # What was last done, for the error that names it; bounded.
        self._operations: deque[tuple[str, Sequence[int], int | Sequence[int]]] = deque(maxlen=1024)

    # -- figures

    @property
    def num_available(self) -> int:
        """Blocks that `allocate` can give: free and cached."""
        return self._unheld.num_free + self._unheld.num_cached

    @property
    def longest_run(self) -> int:
        """Blocks that `allocate_run` can give at most."""
        assert isinstance(self._unheld, Buddy)
        return self._unheld.longest_run

    def counts(self) -> Counts:
        free, cached = self._unheld.num_free, self._unheld.num_cached
        held = self.num_blocks - free - cached - self._num_moving - self._num_quarantined
        return Counts(free, cached, held, self._num_moving, self._num_quarantined)

    def holders(self, block: int) -> int:
        return self._holders[block]

    def name(self, block: int) -> bytes:
        """The name of a block's content in the prefix index; b"" if it has none."""
        return self._names[block]

    def state(self, block: int) -> str:
        if self._quarantined[block]:
            return "quarantined"
        if self._holders[block]:
            return "shared" if self._holders[block] > 1 else "held"
        if self._moving[block]:
            return "moving"
        return "cached" if self._names[block] else "free"

    def states(self, codes: Mapping[str, int]) -> bytes:
        """The state of every block as a byte, by `codes`; an eighth of what asking for each would cost."""
        holders = np.fromiter(self._holders, np.int32, self.num_blocks)
        is_named = np.fromiter(map(len, self._names), np.int32, self.num_blocks) > 0
        found = np.where(is_named, codes["cached"], codes["free"])
        found[np.frombuffer(self._moving, np.intc) > 0] = codes["moving"]
        found[holders == 1] = codes["held"]
        found[holders > 1] = codes["shared"]
        found[np.frombuffer(self._quarantined, np.uint8) > 0] = codes["quarantined"]
        return found.astype(np.uint8).tobytes()

    # -- holding

    def allocate(self, count: int, owner: int = 0, after: int = -1) -> list[int] | None:
        """`count` blocks with one holder each, or None if there are not so many. Cached ones lose their content."""
        unheld = self._unheld
        if count > unheld.num_free + unheld.num_cached:
            return None
        blocks, evicted = unheld.take(count, after)
        self._begin_holding(blocks, evicted)
        self._operations.append(("allocate", blocks, owner))
        return blocks

    def allocate_run(self, count: int, owner: int) -> list[int]:
        """A run of adjacent blocks, of which `longest_run` has said that it is there."""
        assert isinstance(self._unheld, Buddy)
        blocks = self._unheld.take_run(count)
        self._begin_holding(blocks, [])
        self._operations.append(("allocate", blocks, owner))
        return blocks

    def allocate_each(self, owners: Sequence[int], afters: Sequence[int]) -> list[int] | None:
        """One block for each of many sequences, given by their last blocks; None if there are not so many."""
        unheld = self._unheld
        if len(owners) > unheld.num_free + unheld.num_cached:
            return None
        blocks, evicted = unheld.take_each(afters)
        self._begin_holding(blocks, evicted)
        self._operations.append(("allocate", blocks, owners))
        return blocks

    def _begin_holding(self, blocks: list[int], evicted: list[int]) -> None:
        """Blocks that nobody held have one holder each; the content of the evicted ones is forgotten."""
        self.num_evictions += len(evicted)
        for block in evicted:
            self._unname(block)
        holders, paid, paid_at, clock = self._holders, self._paid, self._paid_at, self._clock.now
        for block in blocks:
            assert not holders[block], self._blame(block, "allocated while held")
            holders[block] = 1
            paid[block] = 0.0
            paid_at[block] = clock

    def share(self, blocks: Sequence[int], owner: int = 0) -> float:
        """One holder more for each block: held, or cached and now in use again. Returns what they have cost so far."""
        holders, total = self._holders, 0.0
        for block in blocks:
            if holders[block]:
                total += self._settle(block)
            else:
                assert self._names[block], self._blame(block, f"shared by {owner:#x} while free")
                if not self._moving[block]:
                    self._unheld.take_cached(block)
                    self.copied.pop(block, None)
                else:
                    self._num_moving -= 1
                self._paid[block] = 0.0
                self._paid_at[block] = self._clock.now
            holders[block] += 1
            if holders[block] == 2:
                self.num_shared += 1
        self._operations.append(("share", tuple(blocks), owner))
        return total

    def release(self, blocks: Sequence[int], owner: int = 0) -> float:
        """One holder less for each block, tail first. Without a holder a named block stays as cache, another is free.

        Returns what the blocks have cost up to now; the holder owes the difference to what it was told when it came.
        """
        holders, names, total = self._holders, self._names, 0.0
        free: list[int] = []
        for block in reversed(blocks):
            count = holders[block]
            assert count, self._blame(block, f"freed twice by {owner:#x}")
            total += self._settle(block)
            holders[block] = count - 1
            if count == 2:
                self.num_shared -= 1
            elif count == 1:
                if self._moving[block]:
                    self._num_moving += 1
                elif names[block]:
                    self._unheld.put_cached(block)
                else:
                    free.append(block)
        self._unheld.put_free(free)
        self._operations.append(("release", tuple(blocks), owner))
        return total

    def cost(self, blocks: Iterable[int]) -> float:
        """What these held blocks have cost each of their holders up to now."""
        return sum(map(self._settle, blocks))

    def _settle(self, block: int) -> float:
        paid = self._paid[block] + (self._clock.now - self._paid_at[block]) / self._holders[block]
        self._paid[block] = paid
        self._paid_at[block] = self._clock.now
        return paid

    # -- names: what a prefix hit may find

    def forget_copies(self, pool: int) -> None:
        """What was copied to that pool is gone with it."""
        self.copied = {block: where for block, where in self.copied.items() if where != pool}

    def set_names(self, blocks: Sequence[int], names: Sequence[bytes]) -> None:
        """Retired steps filled these blocks. The first block of a name in a pool is listed, a second stays unnamed."""
        assert self.pool, "blocks of a pool that is gone are named"
        holders, known, claim, first = self._holders, self._names, self.index.claim, self.pool << BLOCK_BITS
        for block, name in zip(blocks, names, strict=True):
            assert holders[block] or self._moving[block], self._blame(block, "named while free")
            if not known[block]:
                # Nearly every name is new.
                place = first | block
                if claim(name, place) == place or self.index.list_block(name, self.pool, block):
                    known[block] = name

    def next_cached(self, count: int) -> list[int]:
        """Cached blocks that will be given up next, at most so many."""
        return self._unheld.next_cached(count)

    def _unname(self, block: int) -> None:
        self.watched.discard(block)
        self.copied.pop(block, None)
        self.index.unlist_block(self._names[block], self.pool, block)
        self._names[block] = b""

    def forget_cache(self) -> int:
        """Gives up all cached content; the blocks are free. Returns how many there were."""
        count = self._unheld.num_cached
        blocks = [block for block in range(self.num_blocks) if self.state(block) == "cached"]
        for block in blocks:
            self._unheld.take_cached(block)
            self._unname(block)
        self._unheld.put_free(blocks)
        assert len(blocks) == count
        return count

    def close(self) -> None:
        """The pool is gone: nothing in it can be found any more, what is held or moving included."""
        self.forget_cache()
        for block, name in enumerate(self._names):
            if name:
                self._unname(block)
        self.pool = 0

    def restore(self, holders: dict[int, int], moving: Iterable[int], names: dict[int, bytes]) -> None:
        """Takes over a pool that a scheduler before this one kept: who holds what, what moves, what is cached."""
        assert self._unheld.num_free == self.num_blocks, f"pool {self.pool} is in use already"
        every = self.allocate(self.num_blocks)
        assert every is not None
        # A block that was written behind may have been given up and be read into by another transfer.
        for block in moving:
            self._moving[block] += 1
        self.set_names(list(names), list(names.values()))
        for block, count in holders.items():
            self._holders[block] = count
        self.num_shared = sum(count > 1 for count in holders.values())
        self.release([block for block in every if block not in holders])

    # -- transfers

    def begin_moving(self, blocks: Sequence[int]) -> None:
        """A transfer reads or writes these held blocks: they outlive their holders until `end_moving`."""
        for block in blocks:
            assert self._holders[block], self._blame(block, "moved without a holder")
            self._moving[block] += 1
        self._operations.append(("move", tuple(blocks), 0))

    def end_moving(self, blocks: Sequence[int], quarantine: bool = False) -> None:
        """The transfer has ended. `quarantine`: a late writer may still touch the blocks, so nobody gets them yet."""
        for block in blocks:
            assert self._moving[block], self._blame(block, "settled, but not moving")
            self._moving[block] -= 1
            if self._holders[block] or self._moving[block]:
                assert not quarantine, self._blame(block, "quarantined while held or moving")
                continue
            self._num_moving -= 1
            if quarantine:
                if self._names[block]:
                    self._unname(block)
                self._quarantined[block] = 1
                self._num_quarantined += 1
            elif self._names[block]:
                self._unheld.put_cached(block)
            else:
                self._unheld.put_free((block,))
        self._operations.append(("settle", tuple(blocks), 0))

    def end_quarantine(self, blocks: Sequence[int]) -> None:
        for block in blocks:
            assert self._quarantined[block], self._blame(block, "released from a quarantine that it is not in")
            self._quarantined[block] = 0
        self._num_quarantined -= len(blocks)
        self._unheld.put_free(blocks)

    # -- proof

    def check(self, tables: Iterable[Sequence[int]]) -> None:
        """Proves that states add up and that holders are appearances in `tables`; raises AssertionError if not."""
        seen = [0] * self.num_blocks
        for table in tables:
            assert len(set(table)) == len(table), f"pool {self.pool}: a block stands twice in one table {list(table)}"
            for block in table:
                seen[block] += 1
        if seen != self._holders:
            block = next(block for block, count in enumerate(seen) if count != self._holders[block])
            raise AssertionError(self._blame(block, f"in {seen[block]} tables"))
        for block, name in enumerate(self._names):
            if name:
                listed = self.index.block_in(name, self.pool)
                assert listed == block, self._blame(block, f"its name is listed for block {listed}")
        if isinstance(self._unheld, Buddy):
            self._unheld.check()
        unwatched = [block for block in (*self.watched, *self.copied) if not self._names[block]]
        assert not unwatched, f"pool {self.pool}: blocks {unwatched} lost their names and are still known as copied"
        counts, states = self.counts(), self.states(_CODES)
        free, cached, held, shared, moving, quarantined = map(states.count, range(len(_CODES)))
        found = Counts(free, cached, held + shared, moving, quarantined)
        assert found == counts, f"pool {self.pool}: {found} is not {counts}"
        assert shared == self.num_shared, f"pool {self.pool}: {shared} are shared, not {self.num_shared}"

    def _blame(self, block: int, problem: str) -> str:
        last = []
        for what, blocks, owners in self._operations:
            if block in blocks:
                owner = owners if isinstance(owners, int) else owners[blocks.index(block)]
                last.append(f"{what} by {owner:#x}")
        return (
            f"block {block} of pool {self.pool} {problem}: state {self.state(block)}, {self._holders[block]} holders, "
            f"name {self._names[block].hex() or 'none'}, last operations: {', '.join(last[-4:]) or 'none kept'}"
        )
