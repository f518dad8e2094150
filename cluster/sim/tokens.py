"""What the sequences of a planned fleet say: ids, names of blocks, and where each ends. No model is computed.

`MadeUp` gives ids that mean nothing and names that no other block has, until the length that was asked for: enough to
plan capacity. `Recorded` (cluster/sim/recorded.py) repeats what a real engine said. A fleet asks one of them.
"""

from __future__ import annotations

from array import array
from random import Random
from typing import Protocol

from cluster.hashing import HASH_BYTES
from cluster.messages import Ids, Reason, Start


class Tokens(Protocol):
    """Says what was generated. Positions count from the start of the prompt."""

    def end(self, start: Start) -> tuple[int, Reason]:
        """The length, prompt included, at which this sequence ends, and why."""

    def ids(self, start: Start, first: int, last: int) -> Ids:
        """The tokens `first` to `last` - 1, all of them generated."""

    def names(self, start: Start, first: int, last: int) -> bytes:
        """The names of the blocks `first` to `last` - 1, all of them behind the full blocks of the prompt."""


class MadeUp:
    """Every request runs to its max_tokens. Blocks are named where the prompt's are, or where it fills none."""

    def __init__(self, seed: int, block_size: int) -> None:
        self._random = Random(f"tokens/{seed}")
        self._block_size = block_size

    def end(self, start: Start) -> tuple[int, Reason]:
        return start.num_prompt + (start.sampling.max_tokens or 1), Reason.LENGTH

    def ids(self, start: Start, first: int, last: int) -> Ids:
        return array("i", bytes(4 * (last - first)))

    def names(self, start: Start, first: int, last: int) -> bytes:
        is_named = start.chain or start.num_prompt < self._block_size
        return self._random.randbytes(HASH_BYTES * (last - first)) if is_named else b""
