"""How the blocks of a pool begin: finds a block of which a new prompt needs only the first slots.

Prefix hits share full blocks. Where a prompt leaves what is cached inside a block, the slots before that are copied
into a block of its own, which costs one copy of a block instead of computing those tokens. A replica notes blocks that
begin in a prompt when they are listed; admission asks once per start. Nothing here holds a block or keeps it cached:
what was noted is good as long as the ledger still knows the block by the same name.

A copy moves a block's bytes twice, a token to compute reads all weights of a step, so a copy pays from the first few
tokens on. Blocks are found by their first `MIN_SHARE` slots, one look-up whatever is cached; less than that is computed.
"""

from __future__ import annotations

from cluster.ledger import Ledger

MIN_SHARE = 0.25
_ID_BYTES = 4


def root(salt: bytes) -> bytes:
    """The parent of a first block. Tenants of different salts never find each other's."""
    return b"\0" + salt


def parent(name: bytes) -> bytes:
    """The parent of every other block, by its name."""
    return b"\1" + name


class Beginnings:
    """Of the blocks of one replica. Of blocks that begin alike behind one parent the last that was noted is found."""

    def __init__(self, ledger: Ledger, block_size: int) -> None:
        self._ledger = ledger
        self.min_slots = max(1, int(block_size * MIN_SHARE))
        self._block_of: dict[bytes, int] = {}
        # By block: where it stands above, its name when it was noted, its tokens. Bounded by the pool.
        self._notes: dict[int, tuple[bytes, bytes, bytes]] = {}

    def note(self, block: int, behind: bytes, tokens: bytes) -> None:
        """The listed block holds these tokens (int32 each) behind the parent `behind`."""
        known = self._notes.get(block)
        if known is not None and self._block_of.get(known[0]) == block:
            del self._block_of[known[0]]
        key = behind + tokens[: self.min_slots * _ID_BYTES]
        self._block_of[key] = block
        self._notes[block] = key, self._ledger.name(block), tokens

    def find(self, behind: bytes, tokens: bytes) -> tuple[int, int] | None:
        """A block behind `behind` that begins as `tokens` do, and how many slots of it agree."""
        if len(tokens) < self.min_slots * _ID_BYTES:
            return None
        key = behind + tokens[: self.min_slots * _ID_BYTES]
        block = self._block_of.get(key)
        if block is None:
            return None
        _, name, known = self._notes[block]
        if self._ledger.name(block) != name:
            return None
        agreed = self.min_slots * _ID_BYTES
        while agreed < len(tokens) and known[agreed : agreed + _ID_BYTES] == tokens[agreed : agreed + _ID_BYTES]:
            agreed += _ID_BYTES
        return block, agreed // _ID_BYTES
