"""Blocks that are leased ahead come back before anybody is preempted: leases are revoked, and workers answer.

A revoke is an order, and the worker's answer is what counts: steps may be under way, so it keeps the block of the last
position that it issued, gives back those behind, and says how far it is. Between the two the lease is not renewed.
"""

from __future__ import annotations

from cluster.centre.leases import PRESSED_AHEAD, Leases
from cluster.centre.nouns import Replica, State
from cluster.errors import ProtocolError
from cluster.messages import Revoke, Revoked
from cluster.settings import SchedulerSettings


class Revokes:
    """Orders them and takes the answers. Which replica lacks blocks is `cluster/centre/pressure.py`'s to say."""

    def __init__(self, settings: SchedulerSettings, leases: Leases) -> None:
        self._settings = settings
        self._leases = leases

    def revoke_unused(self, replica: Replica, needed: int) -> int:
        """Orders leases back to what this step and the next write, from the lowest precedence on, until `needed` blocks
        should come. Returns how many leases that takes; what really comes is the worker's to say (`take_back`)."""
        size = replica.block_size
        # Extended in this turn: the plan would have its worker revoke first and extend then.
        extended = set(replica.draft.extends.seqs)
        found = count = 0
        for sequence in sorted(replica.residents.values(), key=lambda sequence: -sequence.request.precedence):
            if found >= needed:
                break
            request = sequence.request
            if request.state is not State.RUNNING or request.width or sequence.is_revoking or sequence.seq in extended:
                continue
            written = max(sequence.length, sequence.position + 1)
            needed_end = written + PRESSED_AHEAD
            if sequence.position < sequence.safe_end:
                needed_end = max(needed_end, sequence.safe_end + self._settings.ahead)
            kept = -(-min(sequence.limit, needed_end) // size)
            if kept < len(sequence.table):
                found += len(sequence.table) - kept
                sequence.is_revoking = True
                count += 1
                replica.write().revokes.append(Revoke(sequence.seq, kept * size))
        return count

    def take_back(self, replica: Replica, revoked: Revoked) -> int:
        """A worker's answer: the end that holds now. Behind it no step writes: that many blocks are free again."""
        sequence = replica.residents.get(revoked.seq)
        if sequence is None or not sequence.is_revoking:
            replica.num_stale += 1
            return 0
        if not sequence.position <= revoked.lease_end <= sequence.lease_end:
            raise ProtocolError(f"{sequence} is told to keep leave up to {revoked.lease_end}")
        sequence.is_revoking = False
        sequence.lease_end = revoked.lease_end
        kept = -(-revoked.lease_end // replica.block_size)
        blocks = sequence.table[kept:]
        del sequence.table[kept:]
        sequence.request.block_seconds += replica.ledger.release(blocks, sequence.seq)
        if sequence.request.state is State.RUNNING:
            # It may stand at its end already, and what it asked for meanwhile was not answered.
            self._leases.renew(replica, sequence)
        return len(blocks)
