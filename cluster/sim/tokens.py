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
    """Every request runs to its max_tokens."""

    def __init__(self, seed: int, *, names_blocks: bool) -> None:
        self._random = Random(f"tokens/{seed}")
        self._names_blocks = names_blocks

    def end(self, start: Start) -> tuple[int, Reason]:
        return start.num_prompt + (start.sampling.max_tokens or 1), Reason.LENGTH

    def ids(self, start: Start, first: int, last: int) -> Ids:
        return array("i", bytes(4 * (last - first)))

    def names(self, start: Start, first: int, last: int) -> bytes:
        return self._random.randbytes(HASH_BYTES * (last - first)) if self._names_blocks and start.chain else b""
