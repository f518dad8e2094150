"""Leases: results of workers are noted, and leave to write on is renewed ahead of need, a block at a time.

This is the hot path: `advance` runs once for each result and touches every sequence in it that filled a block; it does
nothing else. Nobody chooses between requests here: a sequence that finds no block waits (`Replica.wanting`), and
`cluster/centre/pressure.py` relieves its replica.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as SequenceOf

from cluster.centre.needs import num_purse
from cluster.centre.nouns import Replica, Sequence, State
from cluster.errors import ProtocolError
from cluster.hashing import HASH_BYTES
from cluster.messages import Advances, GroupTables
from cluster.settings import SchedulerSettings

# Slots that are leased ahead under pressure: what the next step writes. With none every sequence would stand still for
# a round trip at each end of a block, which with blocks of one slot is every other step.
PRESSED_AHEAD = 1


class Leases:
    """Leave to write, on every replica alike."""

    def __init__(self, settings: SchedulerSettings) -> None:
        self._settings = settings
        self._pressed = min(PRESSED_AHEAD, settings.ahead)

    # -- the hot path: once per block

    def advance(self, replica: Replica, advances: Advances) -> None:
        """Sequences filled blocks: their tokens and names are noted, their leases renewed ahead of need."""
        get, size, running = replica.residents.get, replica.block_size, State.RUNNING
        renewable: dict[int, Sequence] = {}
        flat, hashes, at, hash_at = advances.ids, advances.hashes, 0, 0
        # Blocks of generated tokens, one of a sequence, and their names: nearly all are such, and named in one go.
        blocks: list[int] = []
        names: list[bytes] = []
        for seq, position, num_ids, num_hashes in zip(
            advances.seqs, advances.positions, advances.num_ids, advances.num_hashes, strict=True
        ):
            sequence = get(seq)
            if sequence is None:
                replica.num_stale += 1
            else:
                request = sequence.request
                if position > sequence.lease_end or (
                    position < sequence.position and (position < 0 or not request.width)
                ):
                    raise ProtocolError(f"{sequence} is told to be at {position}")
                if num_ids:
                    outputs = sequence.outputs
                    outputs.extend(flat[at : at + num_ids])
                    if len(outputs) > request.max_tokens:
                        raise ProtocolError(f"{sequence} has {len(outputs)} tokens of {request.max_tokens}")
                    tenant = request.tenant
                    tenant.service += num_ids / tenant.weight
                first = sequence.position // size
                if (
                    num_hashes == 1
                    and position // size == first + 1
                    and len(sequence.names) == first * HASH_BYTES
                    and first * size >= len(request.prompt)
                    and request.is_cacheable
                    and not request.width
                ):
                    name = hashes[hash_at : hash_at + HASH_BYTES]
                    blocks.append(sequence.table[first])
                    names.append(name)
                    sequence.names += name
                    sequence.position = position
                else:
                    # The first of a name stays it, so they are named in the order in which they were told.
                    if blocks:
                        replica.ledger.set_names(blocks, names)
                        blocks, names = [], []
                    told = hashes[hash_at : hash_at + num_hashes * HASH_BYTES] if num_hashes else b""
                    self.fill(replica, sequence, position, told)
                if request.state is running and not request.width:
                    renewable[seq] = sequence
            at += num_ids
            hash_at += num_hashes * HASH_BYTES
        replica.ledger.set_names(blocks, names)
        self._renew_each(replica, renewable.values())

    def fill(self, replica: Replica, sequence: Sequence, position: int, hashes: bytes) -> None:
        """Positions up to here are written: full blocks get their names and can be shared."""
        size, request = replica.block_size, sequence.request
        if request.width:
            position = min(position, len(request.prompt))
        first, end = sequence.position // size, position // size
        sequence.position = position
        if end == first or not request.is_cacheable:
            return
        # Generated blocks are named by the worker, which may repeat names that are known from an attempt before.
        num_known = len(sequence.names) // HASH_BYTES
        if num_known < end:
            at = len(hashes) - (end - num_known) * HASH_BYTES
            if at < 0:
                raise ProtocolError(f"{sequence} filled blocks up to {position} without naming them")
            sequence.names += hashes[at:]
        flat = sequence.names
        names = [flat[at : at + HASH_BYTES] for at in range(first * HASH_BYTES, end * HASH_BYTES, HASH_BYTES)]
        replica.ledger.set_names(sequence.table[first:end], names)
        if first * size < len(request.prompt):
            # Blocks of a prompt, and the one in which it ends, can be shared in part as well.
            end = min(end, -(-len(request.prompt) // size))
            replica.beginnings.note(request.salt, request.prompt, sequence.table, sequence.names, first, end)

    def renew(self, replica: Replica, sequence: Sequence) -> None:
        self._renew_each(replica, (sequence,))

    def _renew_each(self, replica: Replica, sequences: Iterable[Sequence]) -> None:
        """Extends leases so that the worker has leave beyond `ahead` slots; without memory a sequence waits."""
        size, ahead = replica.block_size, replica.ahead
        reach = ahead + (1 if ahead < size else ahead - size + 1) + size - 1
        grow: list[Sequence] = []
        for sequence in sequences:
            target = (sequence.position + reach) // size * size
            if target > sequence.limit:
                target = sequence.limit
            if target <= sequence.lease_end or sequence.is_revoking:
                continue
            num_new = -(-target // size) - len(sequence.table)
            if num_new == 1:
                grow.append(sequence)
            else:
                self._extend(replica, sequence, num_new)
        if not grow:
            return
        # Nearly all need one block: they get it in one go.
        blocks = None
        if not replica.wanting:
            blocks = replica.ledger.allocate_each([each.seq for each in grow], [each.table[-1] for each in grow])
        if blocks is None:
            for sequence in grow:
                self._extend(replica, sequence, 1)
            return
        self._grant_each(replica, grow, blocks)

    def _extend(self, replica: Replica, sequence: Sequence, num_new: int) -> None:
        """So many further blocks, or none. Those that wait already go first: they are served at the turn's end."""
        blocks: list[int] | None = []
        if num_new > 0:
            wanting, ledger = replica.wanting, replica.ledger
            blocks = None if wanting else ledger.allocate(num_new, sequence.seq, sequence.table[-1])
        if blocks is None:
            replica.wanting[sequence.seq] = sequence
        else:
            self._grant(replica, sequence, blocks)

    def _grant(self, replica: Replica, sequence: Sequence, blocks: SequenceOf[int]) -> None:
        table, limit = sequence.table, sequence.limit
        first = len(table)
        table.extend(blocks)
        lease_end = len(table) * replica.block_size
        sequence.lease_end = lease_end = lease_end if lease_end < limit else limit
        replica.draft.extends.add(sequence.seq, lease_end, first, blocks)

    def _grant_each(self, replica: Replica, sequences: SequenceOf[Sequence], blocks: SequenceOf[int]) -> None:
        """One block for each."""
        size = replica.block_size
        firsts: list[int] = []
        lease_ends: list[int] = []
        for sequence, block in zip(sequences, blocks, strict=True):
            table, limit = sequence.table, sequence.limit
            firsts.append(len(table))
            table.append(block)
            lease_end = len(table) * size
            sequence.lease_end = lease_end = lease_end if lease_end < limit else limit
            lease_ends.append(lease_end)
        replica.draft.extends.add_each([each.seq for each in sequences], lease_ends, firsts, blocks)

    # -- beam groups

    def advance_group(self, replica: Replica, group: GroupTables) -> None:
        """A beam group comes near the end of its lease: for each further block every beam needs one in the purse."""
        sequence = replica.residents.get(group.seq)
        if sequence is None:
            replica.num_stale += 1
            return
        in_tables = {block for table in group.tables for block in table}
        alien = in_tables.union(group.purse).difference(sequence.table)
        if alien:
            raise ProtocolError(f"{sequence}: its beams hold blocks {sorted(alien)}, which it was never given")
        width = sequence.request.width
        if len(group.tables) != width or not 0 <= group.position <= sequence.lease_end:
            raise ProtocolError(f"{sequence}: {len(group.tables)} of {width} beams at {group.position}")
        sequence.position = group.position
        # Blocks that are on their way to the worker are in no table either.
        sequence.purse = len(sequence.table) - len(in_tables)
        if sequence.request.state is State.RUNNING:
            self._renew_group(replica, sequence)

    def _renew_group(self, replica: Replica, sequence: Sequence) -> None:
        size, request = replica.block_size, sequence.request
        wanted = sequence.position + replica.ahead + 1
        target = min(sequence.limit, -(-wanted // size) * size)
        if target <= sequence.lease_end:
            return
        # Up to its position every beam has its own tail; for each block behind it may need one more from the purse.
        num_new = max(0, num_purse(request, size, sequence.position, target) - sequence.purse)
        blocks = None if replica.wanting and num_new else replica.ledger.allocate(num_new, sequence.seq)
        if blocks is None:
            replica.wanting[sequence.seq] = sequence
            return
        first = len(sequence.table)
        sequence.table.extend(blocks)
        sequence.purse = 0
        sequence.lease_end = target
        replica.draft.extends.add(sequence.seq, target, first, blocks)

    # -- the first one, and how far they reach

    def first(self, replica: Replica, sequence: Sequence) -> int:
        """The lease of a sequence that starts: as far as `renew` would have it; of a beam group one block at least."""
        # A safe one must not ask for more before it is safe no longer, whatever is leased ahead at the moment.
        ahead = self._settings.ahead if sequence.safe_end else replica.ahead
        return min(sequence.limit, -(-sequence.first_end(ahead) // replica.block_size) * replica.block_size)

    def serve_wanting(self, replica: Replica) -> Sequence | None:
        """Renews those that wait, by precedence; the first that cannot be served is returned."""
        if replica.wanting:
            # Nobody gets a block beyond the next step while somebody else stands still.
            replica.ahead = self._pressed
        while replica.wanting:
            sequence = min(replica.wanting.values(), key=lambda waiting: waiting.request.precedence)
            del replica.wanting[sequence.seq]
            others, replica.wanting = replica.wanting, {}
            if sequence.request.width:
                self._renew_group(replica, sequence)
            else:
                self.renew(replica, sequence)
            failed = bool(replica.wanting)
            replica.wanting |= others
            if failed:
                return sequence
        return None

    def watch_pressure(self, replica: Replica) -> None:
        """Under pressure leases are renewed for the next step alone; further again when twice as much is at hand."""
        low = max(1, int(self._settings.pressure * replica.ledger.num_blocks))
        available = replica.ledger.num_available
        if available < low:
            replica.ahead = self._pressed
        elif available >= 2 * low:
            replica.ahead = self._settings.ahead
