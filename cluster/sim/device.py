"""The bytes of a simulated pool and the ordered stream of work on a simulated device.

A pool's blocks really hold slots (see `cluster/sim/model.py`); what nobody has written is junk. The device does its
work in the order in which it was issued, as a GPU stream does: a copy that was ordered while a step runs happens after
that step, and a step that was issued with a table keeps that table. Workers and host pools own one each.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from random import Random
from zlib import crc32

from cluster.sim.clock import Process
from cluster.sim.model import SLOT_BYTES, before_first, values

_NOTHING = b"\xee" * SLOT_BYTES


class Blocks:
    """The content of a pool. Knows nothing of who holds what: it does what it is told, late or not."""

    def __init__(self, num_blocks: int, block_size: int, random: Random, model: str = "") -> None:
        """`model`: the one that computes here; nobody computes in host memory."""
        self._before_first = before_first(model)
        self.block_size = block_size
        self.num_bytes = block_size * SLOT_BYTES
        self.content = [bytearray(random.randbytes(self.num_bytes)) for _ in range(num_blocks)]

    def write(self, table: Sequence[int], start: int, tokens: Sequence[int]) -> None:
        """Computes and stores the slots of `tokens` from position `start` on, behind what the table holds before."""
        if start:
            block, slot = table[(start - 1) // self.block_size], (start - 1) % self.block_size
            before = int.from_bytes(self.content[block][slot * SLOT_BYTES : (slot + 1) * SLOT_BYTES], "little")
        else:
            before = self._before_first
        new = values(before, tokens)
        at, position, end = 0, start, start + len(tokens)
        while position < end:
            slot = position % self.block_size
            count = min(self.block_size - slot, end - position)
            size = count * SLOT_BYTES
            target = self.content[table[position // self.block_size]]
            target[slot * SLOT_BYTES : slot * SLOT_BYTES + size] = new[at : at + size]
            at += size
            position += count

    def read(self, table: Sequence[int], count: int) -> int:
        """The checksum of the first `count` slots, as they lie in the table's blocks now."""
        content = self.content
        num_blocks = -(-count // self.block_size)
        return crc32(b"".join([content[block] for block in table[:num_blocks]])[: count * SLOT_BYTES])

    def clear(self, blocks: Sequence[int]) -> None:
        for block in blocks:
            self.content[block][:] = bytes(self.num_bytes)

    def forget(self, blocks: Sequence[int], first: int) -> None:
        """They hold nothing of worth, the first of them from slot `first` on: whoever reads them all the same says
        something else than the model would."""
        for block in blocks:
            self.content[block][first * SLOT_BYTES :] = _NOTHING * (self.block_size - first)
            first = 0

    def copy(self, source: int, target: int, num_slots: int) -> None:
        size = num_slots * SLOT_BYTES
        self.content[target][:size] = self.content[source][:size]


class StackedBlocks:
    """The blocks of a pool as transfers see them: the slices of all its ranks, one behind the other."""

    def __init__(self, ranks: Sequence[Blocks]) -> None:
        self._ranks = ranks
        self.num_bytes = sum(rank.num_bytes for rank in ranks)

    def read(self, block: int) -> bytes:
        return b"".join([rank.content[block] for rank in self._ranks])

    def write(self, block: int, content: bytes) -> None:
        first = 0
        for rank in self._ranks:
            rank.content[block][:] = content[first : first + rank.num_bytes]
            first += rank.num_bytes


class SimStream:
    """Work of one device, done in order: each piece takes its seconds, then its effect happens."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._queue: deque[tuple[float, Callable[[], None]]] = deque()
        self._busy = self._hangs = False

    @property
    def hangs(self) -> bool:
        return self._hangs

    def hang(self) -> None:
        """Nothing that is under way or comes ever ends: a rank that all others wait for is gone."""
        self._hangs = True

    def issue(self, seconds: float, effect: Callable[[], None]) -> None:
        self._queue.append((seconds, effect))
        if not self._busy:
            self._next()

    def _next(self) -> None:
        while self._queue and not self._hangs:
            seconds, effect = self._queue.popleft()
            if seconds > 0.0:
                self._busy = True
                self._process.after(seconds, self._end, effect)
                return
            # What the effect issues comes behind what was issued before.
            self._busy = True
            effect()
        self._busy = False

    def _end(self, effect: Callable[[], None]) -> None:
        if not self._hangs:
            effect()
            self._next()
