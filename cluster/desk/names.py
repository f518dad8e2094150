"""Which blocks of the pool are full, and by what name they can be found.

A name says what a block holds: a hash of all tokens up to its end (`cluster/hashing.py`), chained block by block. The
desk names a block when it reports that a step has filled it, and what a sequence brings when it moves in; the note goes
when the block is given to somebody who writes into it. A new scheduler is told all of them.
"""

from __future__ import annotations

from collections.abc import Iterable

from cluster.desk.rows import RowResident, Rows
from cluster.hashing import BlockHasher
from cluster.messages import Start


class BlockNames:
    """Names of one pool's full blocks. `known` has each under its block."""

    def __init__(self, rows: Rows, hash_key: bytes, digest: bytes, wanted: bool) -> None:
        self.known: dict[int, bytes] = {}
        self._rows = rows
        self._hash_key = hash_key
        self._digest = digest
        self._wanted = wanted

    def hasher(self, start: Start) -> BlockHasher | None:
        """What names the blocks of a sequence; None where nobody wants names, or its prompt came without them."""
        size = self._rows.block_size
        if not self._wanted or (start.num_prompt >= size and not start.chain):
            return None
        return BlockHasher(self._hash_key, self._digest, start.salt, size)

    def forget(self, blocks: Iterable[int]) -> None:
        """These blocks are about to hold something else."""
        for block in blocks:
            self.known.pop(block, None)

    def told(self) -> tuple[tuple[int, bytes], ...]:
        return tuple(self.known.items())

    def fill(self, resident: RowResident, position: int) -> list[bytes]:
        """Positions up to here are written. Returns the names of the blocks behind the prompt's full ones that were
        filled since the last report: those of the prompt the gateway has told."""
        if resident.hasher is None or resident.parent >= 0:
            # A fork whose parent is still at the prompt: its blocks are not written, whatever its position says.
            return []
        rows, row, size = self._rows, resident.row, self._rows.block_size
        num_prompt = resident.start.num_prompt
        tells = resident.start.beams is None
        if not tells:
            # Blocks that beams write are never shared with other requests.
            position = min(position, num_prompt)
        first, end = max(int(rows.reported[row]), num_prompt) // size, position // size
        if end <= resident.num_chained:
            return []
        table = rows.tables[row, resident.num_chained : end].tolist()
        chain, names, known = resident.chain, [], self.known
        for number, block in enumerate(table, resident.num_chained):
            name = known.get(block)
            if name is None:
                tokens = rows.tokens[row, number * size : (number + 1) * size].tobytes()
                name = known[block] = resident.hasher.extend(chain, tokens)
            chain = name
            if tells and number >= first:
                names.append(name)
        resident.chain, resident.num_chained = chain, end
        return names
