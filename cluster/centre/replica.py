"""One replica as the scheduler sees it: its ledger, its residents, their leases, and the plan being written for it.

This is the hot path: `advance` and `renew` run once per filled block of every sequence and do nothing else. A replica
never chooses between requests; it says what it lacks (`wanting`), and the scheduler relieves it.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterable
from collections.abc import Sequence as SequenceOf
from typing import TYPE_CHECKING

from cluster.centre.beginnings import Beginnings
from cluster.centre.ledger import Clock, Ledger
from cluster.centre.plan_draft import PlanDraft
from cluster.centre.prefix import PrefixIndex
from cluster.centre.sequences import Request, Sequence, State
from cluster.errors import ProtocolError
from cluster.hashing import HASH_BYTES
from cluster.messages import Advances, GroupTables, Plan, ReplicaJoined, Result, Revoke, Revoked, ids
from cluster.settings import SchedulerSettings

if TYPE_CHECKING:
    from cluster.centre.move import Move

# Slots that are leased ahead under pressure: what the next step writes. With none every sequence would stand still for
# a round trip at each end of a block, which with blocks of one slot is every other step.
PRESSED_AHEAD = 1


class Replica:
    """The workers that hold one copy of a model, their pool of blocks, and who lives there."""

    def __init__(
        self,
        joined: ReplicaJoined,
        pool: int,
        settings: SchedulerSettings,
        index: PrefixIndex,
        clock: Clock,
        touched: dict[str, Replica],
    ) -> None:
        self.name = joined.replica
        self.incarnation = joined.incarnation
        self.joined = joined
        self.block_size = joined.block_size
        self.ledger = Ledger(pool, joined.num_blocks, settings.allocator, index, clock)
        self.beginnings = Beginnings(self.ledger, joined.block_size)
        self.residents: dict[int, Sequence] = {}
        self.requests: dict[str, Request] = {}
        # Sequences whose lease could not be renewed, and how many requests are on their way out.
        self.wanting: dict[int, Sequence] = {}
        self.num_stopping = 0
        # How many sequences are to give back what they lease ahead, and have not answered.
        self.num_revoking = 0
        # Places in the batch that residents take; each beam of a group takes one.
        self.num_places = 0
        # Residents whose prefix others wait for.
        self.awaited: dict[int, Sequence] = {}
        # Blocks that pins hold, by the request that warmed them, oldest first.
        self.pins: dict[str, list[int]] = {}
        # Requests that are on their way here and still run elsewhere.
        self.incoming: dict[str, Move] = {}
        self.is_draining = False
        self.drained_from = 0.0
        self.step_seconds = 0.0
        self._draft = PlanDraft()
        self._touched = touched
        self.prefill_waiting = 0
        self.prefill_tokens_per_s = joined.prefill_tokens_per_s
        self.num_dry = 0
        self.num_stale = 0
        self.last_result = 0
        self._settings = settings
        self._number = 0
        self._ahead = settings.ahead
        # Sources of copies stay held until the worker has obeyed the plan that copies them.
        self._copying: deque[tuple[int, int]] = deque()

    def write(self) -> PlanDraft:
        """The plan of this turn, to write orders into."""
        self._touched[self.name] = self
        return self._draft

    # -- the hot path: once per block

    def advance(self, advances: Advances) -> None:
        """Sequences filled blocks: their tokens and names are noted, their leases renewed ahead of need."""
        get = self.residents.get
        running = State.RUNNING
        renewable: dict[int, Sequence] = {}
        flat, hashes, at, hash_at = advances.ids, advances.hashes, 0, 0
        for seq, position, num_ids, num_hashes in zip(
            advances.seqs, advances.positions, advances.num_ids, advances.num_hashes, strict=True
        ):
            sequence = get(seq)
            if sequence is None:
                self.num_stale += 1
            else:
                request = sequence.request
                if position > sequence.lease_end or (
                    position < sequence.position and (position < 0 or not request.width)
                ):
                    raise ProtocolError(f"{sequence} is told to be at {position}")
                if num_ids:
                    sequence.outputs.extend(flat[at : at + num_ids])
                    if len(sequence.outputs) > request.max_tokens:
                        raise ProtocolError(f"{sequence} has {len(sequence.outputs)} tokens of {request.max_tokens}")
                    tenant = request.tenant
                    tenant.service += num_ids / tenant.weight
                names = hashes[hash_at : hash_at + num_hashes * HASH_BYTES] if num_hashes else b""
                self.fill(sequence, position, names)
                if request.state is running and not request.width:
                    renewable[seq] = sequence
            at += num_ids
            hash_at += num_hashes * HASH_BYTES
        self._renew_each(renewable.values())

    def fill(self, sequence: Sequence, position: int, hashes: bytes) -> None:
        """Positions up to here are written: full blocks get their names and can be shared."""
        size, request = self.block_size, sequence.request
        if request.width:
            position = min(position, len(request.prompt))
        first, end = sequence.position // size, position // size
        sequence.position = position
        if end == first or not request.is_cacheable:
            return
        # Generated blocks are named by the worker, which may repeat names that are known from an attempt before.
        num_known = len(sequence.names) // HASH_BYTES
        flat = b""
        if num_known < end:
            at = len(hashes) - (end - num_known) * HASH_BYTES
            if at < 0:
                raise ProtocolError(f"{sequence} filled blocks up to {position} without naming them")
            flat = hashes[at:]
            sequence.names += flat
        if num_known > first:
            flat = sequence.names[first * HASH_BYTES : end * HASH_BYTES]
        table = sequence.table
        self.ledger.set_names((table[first],) if end == first + 1 else table[first:end], flat)
        if first * size < len(request.prompt):
            # Blocks of a prompt, and the one in which it ends, can be shared in part as well.
            end = min(end, -(-len(request.prompt) // size))
            self.beginnings.note(request.salt, request.prompt, sequence.table, sequence.names, first, end)

    def renew(self, sequence: Sequence) -> None:
        self._renew_each((sequence,))

    def _renew_each(self, sequences: Iterable[Sequence]) -> None:
        """Extends leases so that the worker has leave beyond `ahead` slots; without memory a sequence waits."""
        size, ahead = self.block_size, self._ahead
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
                self._extend(sequence, num_new)
        if not grow:
            return
        # Nearly all need one block: they get it in one go.
        blocks = None
        if not self.wanting:
            blocks = self.ledger.allocate_each([each.seq for each in grow], [each.table[-1] for each in grow])
        if blocks is None:
            for sequence in grow:
                self._extend(sequence, 1)
            return
        for sequence, block in zip(grow, blocks, strict=True):
            self._grant(sequence, (block,))

    def _extend(self, sequence: Sequence, num_new: int) -> None:
        """So many further blocks, or none. Those that wait already go first: they are served at the turn's end."""
        blocks: list[int] | None = []
        if num_new > 0:
            blocks = None if self.wanting else self.ledger.allocate(num_new, sequence.seq, sequence.table[-1])
        if blocks is None:
            self.wanting[sequence.seq] = sequence
        else:
            self._grant(sequence, blocks)

    def _grant(self, sequence: Sequence, blocks: SequenceOf[int]) -> None:
        table, limit = sequence.table, sequence.limit
        first = len(table)
        table.extend(blocks)
        lease_end = len(table) * self.block_size
        sequence.lease_end = lease_end = lease_end if lease_end < limit else limit
        self._draft.extends.add(sequence.seq, lease_end, first, blocks)

    # -- pressure: what is leased ahead comes back before anybody is preempted

    def revoke_unused(self, needed: int) -> int:
        """Orders leases back to what this step and the next write, from the lowest precedence on, until `needed` blocks
        should come. Returns how many leases that takes; what really comes is the worker's to say (`take_back`)."""
        size = self.block_size
        # Extended in this turn: the plan would have its worker revoke first and extend then.
        extended = set(self._draft.extends.seqs)
        found = count = 0
        for sequence in sorted(self.residents.values(), key=lambda sequence: -sequence.request.precedence):
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
                self.num_revoking += 1
                count += 1
                self.write().revokes.append(Revoke(sequence.seq, kept * size))
        return count

    def take_back(self, revoked: Revoked) -> int:
        """A worker's answer: the end that holds now. Behind it no step writes: that many blocks are free again."""
        sequence = self.residents.get(revoked.seq)
        if sequence is None or not sequence.is_revoking:
            self.num_stale += 1
            return 0
        if not sequence.position <= revoked.lease_end <= sequence.lease_end:
            raise ProtocolError(f"{sequence} is told to keep leave up to {revoked.lease_end}")
        self._end_revoke(sequence)
        sequence.lease_end = revoked.lease_end
        kept = -(-revoked.lease_end // self.block_size)
        blocks = sequence.table[kept:]
        del sequence.table[kept:]
        sequence.request.block_seconds += self.ledger.release(blocks, sequence.seq)
        if sequence.request.state is State.RUNNING:
            # It may stand at its end already, and what it asked for meanwhile was not answered.
            self.renew(sequence)
        return len(blocks)

    def _end_revoke(self, sequence: Sequence) -> None:
        self.num_revoking -= sequence.is_revoking
        sequence.is_revoking = False

    def advance_group(self, group: GroupTables) -> None:
        """A beam group comes near the end of its lease: for each further block every beam needs one in the purse."""
        sequence = self.residents.get(group.seq)
        if sequence is None:
            self.num_stale += 1
            return
        in_tables = {block for table in group.tables for block in table}
        alien = in_tables.union(group.purse).difference(sequence.table)
        if alien:
            raise ProtocolError(f"{sequence}: its beams hold blocks {sorted(alien)}, which it was never given")
        width = sequence.request.width
        if not 0 < len(group.tables) <= width or not 0 <= group.position <= sequence.lease_end:
            raise ProtocolError(f"{sequence}: {len(group.tables)} of {width} beams at {group.position}")
        sequence.position = group.position
        # Blocks that are on their way to the worker are in no table either. A beam that is still missing, because its
        # parent has no second heir yet, will take a copy of a part-filled block.
        missing = sequence.request.width - len(group.tables) if group.position % self.block_size else 0
        sequence.purse = len(sequence.table) - len(in_tables) - missing
        if sequence.request.state is State.RUNNING:
            self.renew_group(sequence)

    def renew_group(self, sequence: Sequence) -> None:
        size, request = self.block_size, sequence.request
        wanted = sequence.position + self._ahead + 1
        target = min(sequence.limit, -(-wanted // size) * size)
        if target <= sequence.lease_end:
            return
        # Up to its position every beam has its own tail; for each block behind it may need one more from the purse.
        # Missing beams have been counted, when the purse was.
        num_new = max(0, request.num_purse(size, sequence.position, request.width, target) - sequence.purse)
        blocks = None if self.wanting and num_new else self.ledger.allocate(num_new, sequence.seq)
        if blocks is None:
            self.wanting[sequence.seq] = sequence
            return
        first = len(sequence.table)
        sequence.table.extend(blocks)
        sequence.purse = 0
        sequence.lease_end = target
        self._draft.extends.add(sequence.seq, target, first, blocks)

    # -- residents

    def first_lease(self, sequence: Sequence) -> int:
        """The lease of a sequence that starts: as far as `renew` would have it; of a beam group one block at least."""
        # A safe one must not ask for more before it is safe no longer, whatever is leased ahead at the moment.
        ahead = self._settings.ahead if sequence.safe_end else self._ahead
        return min(sequence.limit, -(-sequence.first_end(ahead) // self.block_size) * self.block_size)

    def enter(self, sequence: Sequence) -> None:
        self.residents[sequence.seq] = sequence
        self.num_places += sequence.num_places
        self.requests[sequence.request.request_id] = sequence.request

    def leave(self, sequence: Sequence) -> None:
        """An attempt has ended and its blocks are free or cached. Copies of named blocks stay as cache."""
        seq = sequence.seq
        del self.residents[seq]
        self.num_places -= sequence.num_places
        self.wanting.pop(seq, None)
        self.awaited.pop(seq, None)
        self._end_revoke(sequence)
        request = sequence.request
        request.block_seconds += self.ledger.release(sequence.table, seq) - sequence.paid
        if request.tenant.is_cleared:
            # Freed in this turn, overwritten before whoever gets them in this turn's plan can start.
            self.write().clears.extend(block for block in sequence.table if not self.ledger.holders(block))
        sequence.table = ids()
        sequence.position = sequence.lease_end = 0
        sequence.paid = 0.0
        sequence.has_stopped = False
        if sequence.request.host is None:
            sequence.group = None
        sequence.seq = 0

    def serve_wanting(self) -> Sequence | None:
        """Renews those that wait, by precedence; the first that cannot be served is returned."""
        if self.wanting:
            # Nobody gets a block beyond the next step while somebody else stands still.
            self._ahead = min(PRESSED_AHEAD, self._settings.ahead)
        while self.wanting:
            sequence = min(self.wanting.values(), key=lambda waiting: waiting.request.precedence)
            del self.wanting[sequence.seq]
            others, self.wanting = self.wanting, {}
            if sequence.request.width:
                self.renew_group(sequence)
            else:
                self.renew(sequence)
            failed = bool(self.wanting)
            self.wanting |= others
            if failed:
                return sequence
        return None

    def pin(self, request_id: str, blocks: list[int]) -> None:
        """Keeps these blocks, which a resident holds now, until `unpin`."""
        self.ledger.share(blocks, 0)
        self.pins[request_id] = blocks

    def unpin(self, request_id: str) -> None:
        self.ledger.release(self.pins.pop(request_id, []), 0)
        self.write()

    @property
    def next_plan(self) -> int:
        """The number of the plan that is being written."""
        return self._number + 1

    def hold_for_copy(self, block: int) -> None:
        """The source of a copy in this turn's plan; it must not be evicted before the worker has copied it."""
        self._copying.append((self.next_plan, block))

    def _end_copies(self, plan: int) -> None:
        while self._copying and self._copying[0][0] <= plan:
            self.ledger.release([self._copying.popleft()[1]], 0)

    def close(self) -> None:
        """The replica is gone: nothing that it cached or copied can be found any more."""
        assert not self.residents and not self.pins
        self._end_copies(self._number + 1)
        self.ledger.close()

    # -- plans and results

    def take(self, result: Result) -> bool:
        """Notes the envelope of a result. False: it was seen before, or is not from this incarnation."""
        if result.incarnation != self.incarnation or result.number <= self.last_result:
            self.num_stale += 1
            return False
        if result.number != self.last_result + 1 or result.plan > self._number:
            raise ProtocolError(
                f"result {result.number} of plan {result.plan} came after {self.last_result}, and {self._number} plans"
            )
        self.last_result = result.number
        self.write()
        self.prefill_waiting = result.prefill_waiting
        self.prefill_tokens_per_s = result.prefill_tokens_per_s or self.prefill_tokens_per_s
        self.step_seconds = result.step_seconds or self.step_seconds
        self.num_dry += result.dry
        self._end_copies(result.plan)
        return True

    def watch_pressure(self) -> None:
        """Under pressure leases are renewed for the next step alone; further again when twice as much is at hand."""
        low = max(1, int(self._settings.pressure * self.ledger.num_blocks))
        available = self.ledger.num_available
        if available < low:
            self._ahead = min(PRESSED_AHEAD, self._settings.ahead)
        elif available >= 2 * low:
            self._ahead = self._settings.ahead

    def plan(self, epoch: int) -> Plan | None:
        """The plan of this turn, numbered; None if there is nothing to say."""
        draft = self._draft
        if not draft:
            return None
        self._draft = PlanDraft()
        self._number += 1
        return draft.numbered(self, epoch, self._number, self._ahead)

    def check(self) -> None:
        """Proves the ledger against the tables of all residents."""
        tables: list[array[int] | list[int]] = [sequence.table for sequence in self.residents.values()]
        tables += [[block] for _, block in self._copying]
        tables += self.pins.values()
        tables += [move.kept() for move in self.incoming.values()]
        self.ledger.check(tables)
        for sequence in self.residents.values():
            assert sequence.lease_end <= len(sequence.table) * self.block_size, f"{sequence} has leave without blocks"
            self._check_writable(sequence)

    def _check_writable(self, sequence: Sequence) -> None:
        """Blocks that a sequence may still write are its own, but for prompt blocks that its own forks wait for."""
        first = sequence.position // self.block_size
        if sequence.request.width:
            # The table of a beam group is a set behind the prompt.
            first = min(first, len(sequence.request.prompt) // self.block_size)
        for logical in range(first, len(sequence.table)):
            block = sequence.table[logical]
            siblings = sum(1 for other in sequence.request.sequences if block in other.table)
            assert self.ledger.holders(block) == siblings, f"{sequence} can write block {block}, which others share"
            if siblings > 1:
                assert (logical + 1) * self.block_size <= len(sequence.request.prompt), f"{sequence}: {block} shared"
