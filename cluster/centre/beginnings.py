"""How the blocks of a pool go on: finds a block of which a new prompt needs only the first slots.

Prefix hits share full blocks. Where a prompt leaves what is cached inside a block, the slots before that are copied
into a block of its own, which costs one copy of a block instead of computing those tokens. A replica notes where the
prompts run that it has filled; admission asks once per start. Nothing here holds a block or keeps it cached: what was
noted is good as long as the ledger knows the block by the name that it had.

A copy of a block was seen to cost about a tenth of computing one token (demo model on a CPU), so it pays at once. Two
slots must agree all the same: a first token that stands before every prompt is not worth an order.

Of several prompts through one block the last is asked, and its next block is taken as far as it agrees. Prompts with a
common beginning agree up to where that ends, whichever of them is asked; and to list every way to go on would cost
more, on each block of each prompt, than the few tokens that it saves.
"""

from __future__ import annotations

from collections.abc import Sequence

from cluster.centre.ledger import Ledger
from cluster.hashing import HASH_BYTES
from cluster.messages import Ids, ids

MIN_SLOTS = 2


class Beginnings:
    """The last prompt through each block of a replica, and for each salt the last prompt at all."""

    def __init__(self, ledger: Ledger, block_size: int) -> None:
        self._ledger = ledger
        self._block_size = block_size
        # By block: the prompt, the table in which it lies, and the names of its full blocks as they were known then.
        # The garbage collector looks at such a tuple once, and not again.
        self._through: list[tuple[Ids, Ids, bytes]] = [(ids(), ids(), b"")] * ledger.num_blocks
        self._roots: dict[bytes, int] = {}

    def note(self, salt: bytes, prompt: Ids, table: Ids, names: bytes, first: int, end: int) -> None:
        """The prompt runs through blocks number `first` to `end` - 1 of the table, which are full."""
        through, noted = self._through, (prompt, table, names)
        if not first:
            self._roots[salt] = table[0]
        # The block before them as well: from there a prompt that shares it finds them.
        for block in table[first - 1 if first else 0 : end]:
            through[block] = noted

    def find(self, shared: Sequence[int], names: bytes, salt: bytes, tokens: Ids) -> tuple[int, int] | None:
        """A block behind the `shared` ones that begins as `tokens` do, and how many of its slots agree. `names` are
        those of the prompt that asks."""
        last = shared[-1] if shared else self._roots.get(salt, -1)
        if last < 0:
            return None
        prompt, table, known = self._through[last]
        at = len(shared) * HASH_BYTES
        if len(known) < at + HASH_BYTES or known[:at] != names[:at]:
            return None
        block = table[len(shared)] if len(shared) < len(table) else -1
        if block < 0 or self._ledger.name(block) != known[at : at + HASH_BYTES]:
            return None
        first, agreed = len(shared) * self._block_size, 0
        for token, other in zip(tokens, prompt[first : first + self._block_size], strict=False):
            if token != other:
                break
            agreed += 1
        return (block, agreed) if agreed >= MIN_SLOTS else None
