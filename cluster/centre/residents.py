"""Who lives on a replica, and what its pool holds for them: sequences come and go, pins and copies hold blocks.

Only the accounting: what leaves is released here, who leaves and why is decided above. `check` proves a replica's
ledger against all that is known to hold its blocks.
"""

from __future__ import annotations

from array import array

from cluster.centre.beginnings import Beginnings
from cluster.centre.books import Books
from cluster.centre.ledger import Ledger
from cluster.centre.nouns import Replica, Sequence
from cluster.messages import EPOCH_BITS, ReplicaJoined, ids
from cluster.settings import SchedulerSettings


def new_replica(joined: ReplicaJoined, books: Books) -> Replica:
    """One that has just joined: its pool is empty."""
    settings = books.settings
    ledger = Ledger(books.next_pool(), joined.num_blocks, settings.allocator, books.index, books)
    return Replica(joined, ledger, Beginnings(ledger, joined.block_size), books.touched, settings.ahead)


def enter(replica: Replica, sequence: Sequence) -> None:
    replica.residents[sequence.seq] = sequence
    replica.num_places += sequence.num_places
    replica.requests[sequence.request.request_id] = sequence.request
    sequence.last_pool = replica.ledger.pool


def leave(replica: Replica, sequence: Sequence) -> None:
    """An attempt has ended and its blocks are free or cached. Copies of named blocks stay as cache."""
    seq = sequence.seq
    del replica.residents[seq]
    replica.num_places -= sequence.num_places
    replica.wanting.pop(seq, None)
    replica.awaited.pop(seq, None)
    sequence.is_revoking = False
    request = sequence.request
    request.block_seconds += replica.ledger.release(sequence.table, seq) - sequence.paid
    if request.tenant.is_cleared:
        # Freed in this turn, overwritten before whoever gets them in this turn's plan can start.
        replica.write().clears.extend(block for block in sequence.table if not replica.ledger.holders(block))
    sequence.table = ids()
    sequence.position = sequence.lease_end = 0
    sequence.paid = 0.0
    sequence.has_stopped = False
    if sequence.request.host is None:
        sequence.group = None
    sequence.seq = 0


def pin(replica: Replica, request_id: str, blocks: list[int]) -> None:
    """Keeps these blocks, which a resident holds now, until `unpin`."""
    replica.ledger.share(blocks)
    replica.pins[request_id] = blocks


def unpin(replica: Replica, request_id: str) -> None:
    replica.ledger.release(replica.pins.pop(request_id, []))
    replica.write()


def hold_for_copy(replica: Replica, block: int) -> None:
    """The source of a copy in this turn's plan; it must not be evicted before the worker has copied it."""
    replica.copying.append((replica.next_plan, block))


def end_copies(replica: Replica, plan: int) -> None:
    """The worker has obeyed this plan."""
    while replica.copying and replica.copying[0][0] <= plan:
        replica.ledger.release([replica.copying.popleft()[1]])


def close(replica: Replica) -> None:
    """The replica is gone: nothing that it cached or copied can be found any more."""
    assert not replica.residents and not replica.pins
    end_copies(replica, replica.next_plan)
    replica.ledger.close()


def check(replica: Replica, lent: list[list[int]], settings: SchedulerSettings, epoch: int) -> None:
    """Proves the ledger against the tables of all residents; `lent`: blocks that are kept for requests on their way."""
    tables: list[array[int] | list[int]] = [sequence.table for sequence in replica.residents.values()]
    tables += [[block] for _, block in replica.copying]
    tables += replica.pins.values()
    tables += lent
    replica.ledger.check(tables)
    for sequence in replica.residents.values():
        assert sequence.lease_end <= len(sequence.table) * replica.block_size, f"{sequence} has leave without blocks"
        # With how much those began that a scheduler before this one has started nobody can say.
        is_ours = sequence.seq >> EPOCH_BITS == epoch
        if is_ours and not sequence.request.width and settings.reserve == "none":
            _check_lease(replica, sequence, settings.ahead)
        _check_writable(replica, sequence)


def _check_lease(replica: Replica, sequence: Sequence, ahead: int) -> None:
    """Nobody has leave, or blocks, beyond what it began with or needs for what comes next."""
    size, held = replica.block_size, len(sequence.table)
    needed = max(sequence.first_end(ahead), sequence.position + ahead + max(1, ahead - size + 1) + size - 1)
    most = min(sequence.limit, -(-needed // size) * size)
    assert sequence.lease_end <= most, f"{sequence} has leave up to {sequence.lease_end}, and needs {most}"
    assert held <= -(-sequence.lease_end // size), (
        f"{sequence} holds {held} blocks for leave up to {sequence.lease_end}"
    )


def _check_writable(replica: Replica, sequence: Sequence) -> None:
    """Blocks that a sequence may still write are its own, but for prompt blocks that its own forks wait for."""
    first = sequence.position // replica.block_size
    if sequence.request.width:
        # The table of a beam group is a set behind the prompt.
        first = min(first, len(sequence.request.prompt) // replica.block_size)
    for logical in range(first, len(sequence.table)):
        block = sequence.table[logical]
        siblings = sum(1 for other in sequence.request.sequences if block in other.table)
        assert replica.ledger.holders(block) == siblings, f"{sequence} can write block {block}, which others share"
        if siblings > 1:
            end = (logical + 1) * replica.block_size
            assert end <= len(sequence.request.prompt), f"{sequence}: {block} shared"
