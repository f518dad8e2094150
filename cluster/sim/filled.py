"""What a simulated worker knows of the content of its blocks, beyond the tables of its residents.

A scheduler that starts anew asks which blocks are full and by what name they can be found. The worker notes each block
that a step filled; the note goes when somebody writes into the block again.
"""

from __future__ import annotations

from cluster.hashing import HASH_BYTES
from cluster.sim.running import Running


class Filled:
    """Blocks of one pool that are full: whose tokens, and which of its blocks. Names are made when asked for."""

    def __init__(self) -> None:
        self._notes: dict[int, tuple[Running, int]] = {}

    def note(self, running: Running, table: list[int], start: int, end: int) -> None:
        """Positions from `start` to `end` are written on this table."""
        size = running.hasher.block_size
        for logical in range(start // size, -(-end // size)):
            if (logical + 1) * size <= end:
                self._notes[table[logical]] = (running, logical)
            else:
                self.forget(table[logical])

    def forget(self, *blocks: int) -> None:
        for block in blocks:
            self._notes.pop(block, None)

    def names(self) -> tuple[tuple[int, bytes], ...]:
        """Block and name of each full block."""
        chains: dict[int, bytes] = {}
        named = []
        for block, (running, logical) in self._notes.items():
            chain = chains.get(running.seq)
            if chain is None:
                chain = chains[running.seq] = b"".join(running.hasher.prompt(running.tokens))
            name = chain[logical * HASH_BYTES : (logical + 1) * HASH_BYTES]
            if name:
                named.append((block, name))
        return tuple(named)
