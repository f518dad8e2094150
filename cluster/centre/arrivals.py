"""What a moved request is at its target: tables built anew of the copies, its next lease, what is written again.

Called once per move, when its source has stopped it. From then on the target's tables count.
"""

from __future__ import annotations

from cluster.centre.books import Books
from cluster.centre.leases import Leases
from cluster.centre.move import HeldBlocks, Move
from cluster.centre.needs import num_group_blocks, num_purse
from cluster.centre.nouns import Replica, Sequence
from cluster.centre.residents import enter
from cluster.messages import ids


class Arrivals:
    """Tables at the target."""

    def __init__(self, books: Books, leases: Leases) -> None:
        self._books = books
        self._leases = leases

    def settle_in(self, move: Move, held: list[HeldBlocks]) -> None:
        """The copies take the places of what they are copies of, and the next lease behind."""
        target, ledger = move.target, move.target.ledger
        taken: set[int] = set()
        cached = set(list(move.place_of.values())[: move.num_hit])
        for sequence, had in zip(move.request.live, held, strict=True):
            sequence.seq = self._books.next_seq()
            places = [move.place_of[block] for block in had.table]
            # A block that several sequences share came once; the first of them takes over the move's own hold.
            ledger.share([block for block in places if block in taken], sequence.seq)
            taken.update(places)
            sequence.table = ids(places)
            sequence.group = had.group_at(move.place_of)
            num_new = self._lease(sequence, had, target)
            sequence.table.extend([move.spare.pop() for _ in range(num_new)])
            # It pays from now on: what was copied while it ran, the cluster wanted.
            sequence.paid = ledger.cost(sequence.table)
            sequence.saved = had.position
            num_cached = next((i for i, block in enumerate(places) if block not in cached), len(places))
            sequence.position = num_cached * target.block_size
            enter(target, sequence)
        # Copies of blocks whose sequence has ended meanwhile, and room that was not needed.
        unused = [block for block in move.place_of.values() if block not in taken]
        ledger.release([*unused, *move.spare])
        move.spare = []

    def _lease(self, sequence: Sequence, had: HeldBlocks, target: Replica) -> int:
        """Its first lease at the target; returns how many blocks that takes beyond what it brings."""
        size, request = target.block_size, sequence.request
        sequence.lease_end = self._leases.first(target, sequence)
        if had.group is not None:
            sequence.purse = num_purse(request, size, had.position, sequence.lease_end)
            return sequence.purse
        num_new = -(-sequence.lease_end // size) - len(had.table)
        if request.width:
            sequence.purse = num_group_blocks(request, size, sequence.lease_end) - len(had.table) - num_new
        return num_new + (sequence.purse if request.width else 0)
