"""Which block is taken next: three policies behind one small interface, chosen by option.

A policy holds the blocks that nobody holds: free ones, whose content means nothing, and cached ones, whose content is
good until their space is needed. The ledger calls it; it knows no sequences and no names.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Protocol

from cluster.settings import AllocatorName


class Allocator(Protocol):
    """Blocks without a holder. `take` never fails when asked for at most `num_free + num_cached` blocks."""

    num_free: int
    num_cached: int

    def put_free(self, blocks: Iterable[int]) -> None: ...

    def put_cached(self, block: int) -> None:
        """A block nobody holds any more, content good. Of a chain the tail is put first, so that it is taken first."""

    def take_cached(self, block: int) -> None:
        """A hit: this cached block gets a holder again."""

    def next_cached(self, count: int) -> list[int]:
        """Cached blocks in the order in which they will be given up, `count` at most."""

    def take(self, count: int, after: int) -> tuple[list[int], list[int]]:
        """`count` blocks for a sequence whose last block is `after` (-1: none); also those of them that were cached."""

    def take_each(self, afters: Sequence[int]) -> tuple[list[int], list[int]]:
        """A block for each of many sequences, given by their last blocks; also those of them that were cached."""


class Lru:
    """Free blocks last in first out (warm in the processor's caches), then cached ones, longest unused first."""

    def __init__(self, num_blocks: int) -> None:
        self._free = list(range(num_blocks - 1, -1, -1))
        # Linked: in a plain dict the first one is looked for past all that were taken out before it.
        self._cached: OrderedDict[int, None] = OrderedDict()
        self.num_free = num_blocks
        self.num_cached = 0

    def put_free(self, blocks: Iterable[int]) -> None:
        self._free.extend(blocks)
        self.num_free = len(self._free)

    def put_cached(self, block: int) -> None:
        self._cached[block] = None
        self.num_cached += 1

    def take_cached(self, block: int) -> None:
        del self._cached[block]
        self.num_cached -= 1

    def next_cached(self, count: int) -> list[int]:
        return list(islice(self._cached, count))

    def take(self, count: int, after: int) -> tuple[list[int], list[int]]:
        free = self._free
        num_free = min(count, len(free))
        taken = free[len(free) - num_free :][::-1]
        del free[len(free) - num_free :]
        evicted: list[int] = []
        while num_free + len(evicted) < count:
            evicted.append(self._cached.popitem(last=False)[0])
        self.num_free = len(free)
        self.num_cached -= len(evicted)
        return taken + evicted, evicted

    def take_each(self, afters: Sequence[int]) -> tuple[list[int], list[int]]:
        return self.take(len(afters), -1)


class Fifo:
    """Blocks without a holder in the order in which they lost it, cached or not: no list is kept apart."""

    def __init__(self, num_blocks: int) -> None:
        self._order: deque[tuple[int, int]] = deque((block, 0) for block in range(num_blocks))
        # A hit leaves its entry in the queue behind; the turn tells it from the block's later entries.
        self._turn = [0] * num_blocks
        self._is_cached = bytearray(num_blocks)
        self.num_free = num_blocks
        self.num_cached = 0

    def _put(self, block: int) -> None:
        self._turn[block] += 1
        self._order.append((block, self._turn[block]))

    def put_free(self, blocks: Iterable[int]) -> None:
        for block in blocks:
            self._put(block)
            self.num_free += 1

    def put_cached(self, block: int) -> None:
        self._put(block)
        self._is_cached[block] = 1
        self.num_cached += 1

    def take_cached(self, block: int) -> None:
        self._turn[block] += 1
        self._is_cached[block] = 0
        self.num_cached -= 1

    def next_cached(self, count: int) -> list[int]:
        # Entries that a hit has left behind are passed over, and no more looked at than are likely to be needed.
        entries = islice(self._order, 8 * count)
        return [block for block, turn in entries if turn == self._turn[block] and self._is_cached[block]][:count]

    def take(self, count: int, after: int) -> tuple[list[int], list[int]]:
        taken: list[int] = []
        evicted: list[int] = []
        while len(taken) < count:
            block, turn = self._order.popleft()
            if turn != self._turn[block]:
                continue
            taken.append(block)
            if self._is_cached[block]:
                self._is_cached[block] = 0
                evicted.append(block)
        self.num_cached -= len(evicted)
        self.num_free -= count - len(evicted)
        return taken, evicted

    def take_each(self, afters: Sequence[int]) -> tuple[list[int], list[int]]:
        return self.take(len(afters), -1)


class Buddy:
    """Aligned runs of adjacent blocks: a sequence grows into the neighbour of its last block while that is free.

    Free blocks are kept as runs of 2^k, aligned to their size, merged as soon as both halves are free. Cached blocks
    are given up when the runs are empty: the neighbour if it is one, else the oldest.
    """

    def __init__(self, num_blocks: int) -> None:
        self._max_order = max(0, num_blocks.bit_length() - 1)
        self._runs: list[dict[int, None]] = [{} for _ in range(self._max_order + 1)]
        self._order_of: dict[int, int] = {}
        # Linked: in a plain dict the first one is looked for past all that were taken out before it.
        self._cached: OrderedDict[int, None] = OrderedDict()
        self.num_free = 0
        self.num_cached = 0
        self.put_free(range(num_blocks))

    def put_free(self, blocks: Iterable[int]) -> None:
        for block in blocks:
            self.num_free += 1
            order = 0
            while order < self._max_order:
                buddy = block ^ (1 << order)
                if self._order_of.get(buddy) != order:
                    break
                del self._runs[order][buddy], self._order_of[buddy]
                block &= ~(1 << order)
                order += 1
            self._runs[order][block] = None
            self._order_of[block] = order

    def put_cached(self, block: int) -> None:
        self._cached[block] = None
        self.num_cached += 1

    def take_cached(self, block: int) -> None:
        del self._cached[block]
        self.num_cached -= 1

    def next_cached(self, count: int) -> list[int]:
        return list(islice(self._cached, count))

    def take(self, count: int, after: int) -> tuple[list[int], list[int]]:
        taken: list[int] = []
        while len(taken) < count and self.num_free:
            neighbour = (taken[-1] if taken else after) + 1
            if neighbour and self._take_from_run(neighbour):
                taken.append(neighbour)
            else:
                taken.extend(self._take_run(count - len(taken)))
        evicted: list[int] = []
        while len(taken) + len(evicted) < count:
            last = evicted[-1] if evicted else taken[-1] if taken else after
            # The neighbour if it can be had, so that runs go on; else what was unused for longest.
            block = last + 1 if last + 1 in self._cached else next(iter(self._cached))
            del self._cached[block]
            evicted.append(block)
        self.num_cached -= len(evicted)
        return taken + evicted, evicted

    def take_each(self, afters: Sequence[int]) -> tuple[list[int], list[int]]:
        taken: list[int] = []
        evicted: list[int] = []
        for after in afters:
            blocks, cached = self.take(1, after)
            taken += blocks
            evicted += cached
        return taken, evicted

    @property
    def longest_run(self) -> int:
        """Blocks of the longest aligned run that is free."""
        return next((1 << order for order in range(self._max_order, -1, -1) if self._runs[order]), 0)

    def take_run(self, count: int) -> list[int]:
        """An aligned run of 2^k blocks; `count` is such a size, and one as long is free."""
        assert count & (count - 1) == 0 and count <= self.longest_run
        return self._take_run(count)

    def _take_from_run(self, block: int) -> bool:
        """Takes this very block if it is free, splitting the run that holds it."""
        for order in range(self._max_order + 1):
            head = block & ~((1 << order) - 1)
            if self._order_of.get(head) == order:
                self._split(head, order, block, 0)
                self.num_free -= 1
                return True
        return False

    def _take_run(self, count: int) -> list[int]:
        """The largest aligned run of at most `count` blocks, cut from the smallest run that has it."""
        wanted = count.bit_length() - 1
        for order in [*range(wanted, self._max_order + 1), *range(wanted - 1, -1, -1)]:
            if self._runs[order]:
                head = next(iter(self._runs[order]))
                size = min(order, wanted)
                self._split(head, order, head, size)
                self.num_free -= 1 << size
                return list(range(head, head + (1 << size)))
        raise AssertionError("no free run, but free blocks are counted")

    def _split(self, head: int, order: int, block: int, wanted: int) -> None:
        """Takes the run of order `wanted` that begins at `block` out of the run (head, order), returning the rest."""
        del self._runs[order][head], self._order_of[head]
        while order > wanted:
            order -= 1
            half = head + (1 << order)
            head, rest = (half, head) if block >= half else (head, half)
            self._runs[order][rest] = None
            self._order_of[rest] = order

    def check(self) -> None:
        """Runs are aligned, known once, merged as far as can be, and hold all that is free."""
        orders = {head: order for order, heads in enumerate(self._runs) for head in heads}
        assert orders == self._order_of and self.num_free == sum(1 << order for order in orders.values()), orders
        for head, order in orders.items():
            buddy = head ^ (1 << order)
            assert head % (1 << order) == 0, f"a run of {1 << order} blocks begins at {head}"
            assert order == self._max_order or orders.get(buddy) != order, f"runs at {head} and {buddy} are one"


def make_allocator(name: AllocatorName, num_blocks: int) -> Allocator:
    if name == "fifo":
        return Fifo(num_blocks)
    return Lru(num_blocks) if name == "lru" else Buddy(num_blocks)
