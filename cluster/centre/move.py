"""What is known of one request on its way to another replica: plain objects that `cluster/centre/moves.py` changes.

A `Move` lives from the first copy until its source has its blocks back; `HeldBlocks` is what a sequence had when it was
stopped. Nothing here decides or allocates.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum

from cluster.centre.nouns import Replica, Request, Sequence
from cluster.messages import Ids, ids


class MovePhase(IntEnum):
    COPYING = 0  # full blocks go while it runs
    STOPPING = 1  # dropped at the source, which has not answered for all of its sequences
    FINISHING = 2  # the last blocks are on their way, the target's Starts wait for them


@dataclass(slots=True, eq=False)
class Move:
    """One request on its way. `place_of` leads from a block of the source to the target's copy of it."""

    request: Request
    source: Replica
    target: Replica
    num_places: int
    num_hit: int = 0  # blocks at the front that the target had cached
    phase: MovePhase = MovePhase.COPYING
    place_of: dict[int, int] = field(default_factory=dict)
    spare: list[int] = field(default_factory=list)
    num_rounds: int = 0
    # The read under way and the target's blocks of it; 0: none.
    transfer: int = 0
    landing: list[int] = field(default_factory=list)
    stopped_at: float = 0.0
    is_given_up: bool = False

    @property
    def replica(self) -> Replica:
        """Who reads."""
        return self.target

    @property
    def held_up(self) -> Request | None:
        return self.request if self.phase is MovePhase.FINISHING else None

    @property
    def is_waiting(self) -> bool:
        """It runs on, and nothing is copied."""
        return self.phase is MovePhase.COPYING and not self.transfer

    @property
    def has_stopped(self) -> bool:
        """Whether the source has answered for all of its sequences."""
        on_source = [sequence for sequence in self.request.sequences if sequence.seq]
        return bool(on_source) and all(sequence.has_stopped for sequence in on_source)

    def full_blocks(self) -> list[int]:
        """Full blocks of its sequences that were not sent yet, in order."""
        size = self.source.block_size
        blocks: dict[int, None] = {}
        for sequence in self.request.live:
            blocks.update(dict.fromkeys(sequence.table[: num_full(sequence, size)]))
        return [block for block in blocks if block not in self.place_of]

    def kept(self) -> list[int]:
        """Blocks of the target that this move holds and no table does."""
        return [] if self.phase is MovePhase.FINISHING or self.is_given_up else [*self.place_of.values(), *self.spare]


@dataclass(frozen=True, slots=True)
class HeldBlocks:
    """What a sequence had when its source stopped it: blocks with content, once each, and how far it was."""

    table: Ids
    position: int
    group: tuple[int, tuple[Ids, ...], bytes] | None

    @classmethod
    def of(cls, sequence: Sequence, block_size: int) -> HeldBlocks:
        if sequence.group is None:
            table = ids(sequence.table[: -(-sequence.position // block_size)])
            return cls(table, sequence.position, None)
        position, tables, _ = sequence.group
        return cls(ids(dict.fromkeys([block for table in tables for block in table])), position, sequence.group)

    def group_at(self, place_of: Mapping[int, int]) -> tuple[int, tuple[Ids, ...], bytes] | None:
        """The group as it is where each of its blocks has another number."""
        if self.group is None:
            return None
        position, tables, search = self.group
        return position, renumbered(tables, place_of), search


def num_full(sequence: Sequence, size: int) -> int:
    """How many blocks at the front of its table are full for good. Behind the prompt, beams' tables change."""
    end = sequence.position
    return (min(end, len(sequence.request.prompt)) if sequence.request.width else end) // size


def blocks_of(request: Request, whole: bool) -> list[int]:
    """The distinct device blocks of a request in order: those with content, or (`whole`) all of its tables."""
    replica = request.replica
    assert replica is not None
    blocks: dict[int, None] = {}
    for sequence in request.live:
        count = len(sequence.table) if whole else -(-sequence.position // replica.block_size)
        blocks.update(dict.fromkeys(sequence.table[:count]))
    return list(blocks)


def renumbered(tables: tuple[Ids, ...], place_of: Mapping[int, int]) -> tuple[Ids, ...]:
    """Tables of beams where each block has another number."""
    return tuple([ids([place_of[block] for block in table]) for table in tables])


def num_needed(request: Request, source: Replica, ahead: int) -> int:
    """Blocks that its tables take at a target, the next lease of every sequence included."""
    size = source.block_size
    blocks: set[int] = set()
    more = 0
    for sequence in request.live:
        blocks.update(sequence.table)
        longest = -(-min(sequence.limit, sequence.lease_end + ahead + 2) // size)
        if request.width:
            # What it has is enough for every beam up to the end of its lease.
            more += request.width * (longest - -(-sequence.lease_end // size))
        else:
            more += max(0, longest - len(sequence.table))
    return len(blocks) + more


def without_rest(held: list[HeldBlocks], copied: Container[int], block_size: int) -> list[HeldBlocks] | None:
    """The same sequences, each only as far as an unbroken run of its copied blocks reaches: what is behind can be
    written again, into blocks of its own. None where it cannot: beams, and blocks that several hold."""
    holders = Counter(block for one in held for block in one.table)
    kept = []
    for one in held:
        count = next((at for at, block in enumerate(one.table) if block not in copied), len(one.table))
        if one.group is not None or any(block in copied or holders[block] > 1 for block in one.table[count:]):
            return None
        kept.append(replace(one, position=min(one.position, count * block_size)))
    return kept


def can_go_on(sequence: Sequence) -> bool:
    """Not a fork that has not begun: it would have no token to go on with. Nor a group between prompt and beams."""
    return sequence.group is not None or sequence.position < sequence.length
