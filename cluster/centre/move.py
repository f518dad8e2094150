"""What is known of one request on its way to another replica: plain objects that `cluster/centre/moves.py` changes.

A `Move` lives from the first copy until its source has its blocks back; `Held` is what a sequence had when it was
stopped. Nothing here decides or allocates.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

from cluster.centre.replica import Replica
from cluster.centre.sequences import Request, Sequence
from cluster.messages import Ids, ids


class Phase(IntEnum):
    COPYING = 0  # full blocks go while it runs
    STOPPING = 1  # dropped at the source, which has not answered for all of its sequences
    FINISHING = 2  # the last blocks are on their way, the target's Starts wait for them


@dataclass(slots=True)
class Move:
    """One request on its way. `place_of` leads from a block of the source to the target's copy of it."""

    request: Request
    source: Replica
    target: Replica
    num_places: int
    num_hit: int = 0  # blocks at the front that the target had cached
    phase: Phase = Phase.COPYING
    place_of: dict[int, int] = field(default_factory=dict)
    spare: list[int] = field(default_factory=list)
    num_rounds: int = 0
    # The read under way and the target's blocks of it; 0: none.
    transfer: int = 0
    landing: list[int] = field(default_factory=list)
    # All but a little is copied, and it runs on until fewer others stand still.
    waits: bool = False
    stopped_at: float = 0.0
    is_given_up: bool = False

    def kept(self) -> list[int]:
        """Blocks of the target that this move holds and no table does."""
        return [] if self.phase is Phase.FINISHING or self.is_given_up else [*self.place_of.values(), *self.spare]


@dataclass(frozen=True, slots=True)
class Held:
    """What a sequence had when its source stopped it: blocks with content, once each, and how far it was."""

    table: Ids
    position: int
    group: tuple[int, tuple[Ids, ...], bytes] | None

    @classmethod
    def of(cls, sequence: Sequence, block_size: int) -> Held:
        if sequence.group is None:
            table = ids(sequence.table[: -(-sequence.position // block_size)])
            return cls(table, sequence.position, None)
        position, tables, _ = sequence.group
        return cls(ids(dict.fromkeys([block for table in tables for block in table])), position, sequence.group)


def can_go_on(sequence: Sequence) -> bool:
    """Not a fork that has not begun: it would have no token to go on with. Nor a group between prompt and beams."""
    return sequence.group is not None or sequence.position < sequence.length
