"""The desk: all of a worker but the device. It obeys plans, picks steps, and says what came of them.

Whoever surrounds it (the worker, the simulator) calls one method at a time: `obey` for each plan, `next` and `launched`
for each step, `retire` when a step's tokens are there, `transferred` when blocks have moved; and takes what the device
is to do (`take_orders`, in order, before anything else is launched), what the scheduler is told (`take_result`) and
what the gateways are told (`take_tokens`). It allocates no block, chooses no request, has no clock, talks to nobody.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from cluster.desk.batcher import Batch, Batcher
from cluster.desk.check import check
from cluster.desk.groups import BeamGroups
from cluster.desk.loops import ENDED, GOES_ON, NEVER
from cluster.desk.names import BlockNames
from cluster.desk.outbox import Outbox
from cluster.desk.report import Reporter
from cluster.desk.residence import DeskBooks, Residence
from cluster.desk.rows import Rows
from cluster.desk.starts import StartBounds
from cluster.desk.steps import Steps, most_at_once
from cluster.desk.words import Abort, Clear, Copies, DeskSettings, DeviceOrder, Drawn, Flight
from cluster.errors import ProtocolError
from cluster.messages import (
    Copy,
    Ids,
    Plan,
    Reason,
    ReplicaJoined,
    ReplicaState,
    Reroute,
    Resident,
    Result,
    Revoke,
    Road,
    Start,
    Tokens,
    Transfer,
    Transferred,
    ids,
)


class Desk:
    """One replica's. Public attributes are there to be read: by the device, and by who watches."""

    def __init__(self, joined: ReplicaJoined, settings: DeskSettings) -> None:
        # How this replica introduces itself; its owner may put another in its place, of the same pool.
        self.joined = joined
        bounds = StartBounds(
            joined.num_blocks, joined.block_size, joined.max_model_len, settings.token_budget, settings.vocab_size
        )
        self.rows = rows = Rows(joined.max_batch, joined.max_model_len, joined.block_size)
        self.batcher = Batcher(joined.max_batch, settings.token_budget)
        self.names = BlockNames(rows, settings.hash_key, joined.digest, settings.names_blocks)
        self.beams = BeamGroups(rows, self.batcher, joined.num_blocks)
        self.reporter = Reporter(rows, self.names, joined.replica, joined.incarnation)
        self._outbox = Outbox(rows)
        self._orders: list[DeviceOrder] = []
        self.books = DeskBooks(
            bounds, rows, self.batcher, self.beams, self.names, self.reporter, self._outbox, self._orders
        )
        self.residence = Residence(self.books)
        self.steps = Steps(self.books, self.residence)
        # Starts that wait for the blocks of a transfer, by its number.
        self.waiting: dict[int, list[Start]] = {}
        self.transfers_under_way: dict[int, Transfer] = {}

    @property
    def epoch(self) -> int:
        """Of the scheduler whose plans count."""
        return self.reporter.epoch

    @property
    def is_idle(self) -> bool:
        """Nobody lives here."""
        return not self.rows.row_of

    # -- schedulers

    def begin_epoch(self, epoch: int) -> None:
        """Another scheduler: only its plans count from now on, and numbers start again."""
        # What the old scheduler wanted to begin here is begun anew by the next one.
        self.waiting.clear()
        self.reporter.begin_epoch(epoch)

    def hold_for(self, epoch: int) -> ReplicaState:
        """A new scheduler asks what is held here: all residents as of the last step that has retired, which of the
        blocks are full and by what name, transfers under way, what left last. Later results tell what came after."""
        self.begin_epoch(epoch)
        rows, residents = self.rows, []
        for row in self.batcher.resident.nonzero()[0].tolist():
            resident = rows.at(row)
            group = self.beams.groups.get(row)
            residents.append(
                Resident(
                    seq=resident.seq,
                    index=resident.index,
                    start=resident.start,
                    tokens=rows.ids(row, 0, int(rows.known[row])),
                    position=self.reporter.hold(resident),
                    table=ids(rows.table(row)) if group is None else self.beams.held(group),
                    lease_end=int(self.batcher.lease_end[row]),
                )
            )
        transfers = tuple(self.transfers_under_way.values())
        return ReplicaState(
            self.joined, tuple(residents), self.names.told(), transfers, self.reporter.departures.told()
        )

    # -- plans

    def obey(self, plan: Plan) -> None:
        """Does what the scheduler says. Its link brings each plan once, in order, to the life that it is for; any
        other plan is a ProtocolError."""
        if plan.epoch > self.epoch:
            self.begin_epoch(plan.epoch)
        wanted = self.joined.incarnation, self.epoch, self.reporter.plan + 1
        if (plan.incarnation, plan.epoch, plan.number) != wanted:
            raise ProtocolError(
                f"incarnation {wanted[0]} of {self.joined.replica} waits for plan {wanted[2]} of epoch {wanted[1]}; "
                f"plan {plan.number} of epoch {plan.epoch} for incarnation {plan.incarnation} came"
            )
        self.reporter.obeyed(plan.number)
        self.reporter.ahead = plan.ahead
        self._orders.extend(Abort(number) for number in plan.aborts)
        self._clear(plan.clears)
        spoiled = self._copy(plan.copies)
        self._extend(plan)
        for start in plan.starts:
            if not spoiled.isdisjoint(start.table):
                self.residence.refuse(start, f"a copy into its table names no block of {self.joined.num_blocks:,}")
            elif start.after:
                self.waiting.setdefault(start.after, []).append(start)
            else:
                self.residence.move_in(start)
        # Behind the starts: the same turn may drop what it started.
        for drop in plan.drops:
            self._drop(drop.seq)
        for revoke in plan.revokes:
            self._revoke(revoke)
        for reroute in plan.reroutes:
            self._reroute(reroute)
        for transfer in plan.transfers:
            self._begin(transfer)
        for number in [start.after for start in plan.starts if start.after]:
            if number not in self.transfers_under_way:
                for start in self.waiting.pop(number, ()):
                    self.residence.refuse(start, f"it waits for transfer {number:#x}, which is not under way")

    def _clear(self, blocks: Ids) -> None:
        own = ids(block for block in blocks if self._owns(block))
        if own:
            self.names.forget(own)
            self._orders.append(Clear(own))

    def _copy(self, copies: tuple[Copy, ...]) -> set[int]:
        """Orders copies; returns the targets of those that can't be made."""
        if not copies:
            return set()
        own = tuple([copy for copy in copies if self._owns(copy.source) and self._owns(copy.target)])
        self.names.forget([copy.target for copy in own])
        self._orders.append(Copies(own))
        return {copy.target for copy in copies}.difference(copy.target for copy in own)

    def _owns(self, block: int) -> bool:
        return 0 <= block < self.joined.num_blocks

    def _extend(self, plan: Plan) -> None:
        extends, rows, at = plan.extends, self.rows, 0
        given: list[int] = []
        for i, seq in enumerate(extends.seqs):
            count, first, lease_end = extends.counts[i], extends.firsts[i], extends.lease_ends[i]
            blocks = extends.blocks[at : at + count]
            at += count
            row = rows.row_of.get(seq)
            if row is None or rows.stopping[row] != GOES_ON:
                continue
            wrong = self._wrong_extend(row, first, blocks, lease_end)
            if wrong:
                self.residence.end(row, Reason.FAILED, wrong)
                continue
            given.extend(blocks)
            if row in self.beams.groups:
                self.beams.extend(row, first, blocks)
            else:
                rows.extend(row, first, blocks)
            self.batcher.lease_end[row] = lease_end
            rows.asked[row] = NEVER
        self.books.forget(given)

    def _wrong_extend(self, row: int, first: int, blocks: Ids, lease_end: int) -> str:
        bounds, group = self.books.bounds, self.beams.groups.get(row)
        held = int(self.rows.num_blocks[row]) if group is None else group.num_given
        if not 0 <= first <= held:
            return f"it holds {held} blocks, and is given those from number {first} on"
        # What a group is leased it pays from its purse.
        return bounds.alien(blocks) or (bounds.short(first + len(blocks), lease_end) if group is None else "")

    def _drop(self, seq: int) -> None:
        row = self.rows.row_of.get(seq)
        # None: it ended by itself before the order came; the scheduler learns so from its Stopped.
        if row is not None and self.rows.stopping[row] == GOES_ON:
            self.residence.end(row, Reason.DROPPED)

    def issued(self, row: int) -> int:
        """Steps that can't be taken back write up to here."""
        return max(int(self.batcher.position[row]), int(self.rows.written[row]))

    def _revoke(self, revoke: Revoke) -> None:
        """The lease ends with the block of the last position that steps have taken, at the earliest."""
        rows, row, size = self.rows, self.rows.row_of.get(revoke.seq), self.rows.block_size
        if row is None or rows.stopping[row] != GOES_ON or row in self.beams.groups:
            return
        held = -(-self.issued(row) // size) * size
        end = min(max(revoke.lease_end, held), int(self.batcher.lease_end[row]))
        self.batcher.lease_end[row] = end
        rows.shorten(row, min(-(-end // size), int(rows.num_blocks[row])))
        rows.asked[row] = NEVER
        self.reporter.advance(rows.at(row))
        self.reporter.revoke(revoke.seq, end)

    def _reroute(self, reroute: Reroute) -> None:
        for starts in self.waiting.values():
            for at, start in enumerate(starts):
                if start.seq == reroute.seq:
                    starts[at] = replace(start, gateway=reroute.gateway, route=reroute.route)
        row = self.rows.row_of.get(reroute.seq)
        if row is not None:
            resident = self.rows.at(row)
            resident.gateway, resident.route = reroute.gateway, reroute.route
            self.residence.tell_again(row)

    def _begin(self, transfer: Transfer) -> None:
        wrong = self.books.bounds.alien(transfer.mine)
        if wrong or transfer.transfer in self.transfers_under_way:
            self.reporter.transferred(Transferred(transfer.transfer, False, wrong or "ordered twice", 0, 0.0))
            return
        if transfer.road is Road.READ:
            self.names.forget(transfer.mine)
        self.transfers_under_way[transfer.transfer] = transfer
        self._orders.append(transfer)

    def transferred(self, outcome: Transferred) -> None:
        """A transfer has ended, one way or the other: nothing of it touches a block any more. Starts that waited for
        it begin; where it failed they are forgotten, and the scheduler starts them anew."""
        self.transfers_under_way.pop(outcome.transfer, None)
        self.reporter.transferred(outcome)
        starts = self.waiting.pop(outcome.transfer, [])
        if outcome.ok:
            for start in starts:
                self.residence.move_in(start)

    # -- the device

    def take_orders(self) -> list[DeviceOrder]:
        """What the device is to do before anything else is launched, in this order."""
        taken = self._orders[:]
        self._orders.clear()
        return taken

    def resumed(self, row: int, outputs: list[Ids]) -> None:
        """The answer to EnterGroup of a group that goes on: what its search says each beam has written, by slot."""
        group, rows = self.beams.groups[row], self.rows
        num_prompt = group.start.num_prompt
        length = int(self.batcher.length[row])
        if {len(each) for each in outputs} != {length - num_prompt} or len(outputs) != len(group.rows):
            told = sorted(len(each) for each in outputs)
            self.fail(row, f"its search holds {told} tokens, and its Start says {length - num_prompt} for each beam")
            return
        for beam, tokens in zip(group.rows.tolist(), outputs, strict=True):
            rows.tokens[beam, :num_prompt] = group.start.tokens[:num_prompt]
            rows.tokens[beam, num_prompt:length] = tokens

    def handed_over(self, row: int, search: bytes) -> None:
        """The answer to HandOver."""
        self.residence.handed_over(row, search)

    def fail(self, row: int, detail: str) -> None:
        """The device can't go on with this row's sequence."""
        if self.rows.stopping[row] != ENDED:
            self.residence.end(row, Reason.FAILED, detail)

    def fail_batch(self, batch: Batch, detail: str) -> None:
        """A batch could not be launched: the sequences in it end, everything else goes on."""
        for row in batch.rows[self.batcher.resident[batch.rows]].tolist():
            if self.batcher.resident[row]:
                self.fail(row, detail)

    # -- steps

    def hold(self, rows: Sequence[int]) -> None:
        """The device cannot draw for these rows yet, and for no others: in the steps that `next` picks from now on
        their prompts are computed but for the last token."""
        self.batcher.hold(rows)

    def next(self) -> Batch:
        """The next step, with a row for each beam. Empty: nobody lives here, or every lease is dry."""
        return self.steps.next()

    @property
    def most_at_once(self) -> int:
        """See `steps.most_at_once`."""
        return most_at_once(self.reporter.ahead)

    def most_steps(self, batch: Batch, allowed: int, part_keys: int) -> int:
        """See `Steps.most_steps`."""
        return self.steps.most_steps(batch, allowed, part_keys)

    def launched(self, batch: Batch, num_steps: int = 1) -> Flight:
        """The device has issued what `next` gave, so many times over."""
        return self.steps.launched(batch, num_steps)

    def retire(self, flight: Flight, drawn: Drawn) -> None:
        """The oldest flight is over."""
        self.steps.retire(flight, drawn)

    # -- what came of it

    def cannot_reach(self, gateways: tuple[str, ...]) -> None:
        """These take no tokens from here at the moment; all others do. The scheduler is told when that changes."""
        self.reporter.cannot_reach(gateways)

    def take_result(self, step_seconds: float = 0.0) -> Result | None:
        """All news for the scheduler since the last call; None if there is none."""
        if not self.reporter.has_news:
            return None
        batcher, waiting = self.batcher, 0
        if not self.is_idle:
            waiting = int(np.maximum(batcher.length - batcher.position - 1, 0)[batcher.resident].sum())
        return self.reporter.take(step=self.steps.num_steps, prefill_waiting=waiting, step_seconds=step_seconds)

    def take_tokens(self) -> dict[str, list[Tokens]]:
        """Tokens that were not sent yet, by gateway."""
        return self._outbox.take()

    def tables(self) -> list[list[int]]:
        """The tables of all sequences and beams up to where they are: a block that several share stands in each."""
        rows, size = self.rows, self.rows.block_size
        leaders = {row: row for row in rows.row_of.values()}
        leaders |= {row: group.leader for group in self.beams.groups.values() for row in group.rows.tolist()}
        return [rows.table(row)[: -(-int(self.batcher.position[leader]) // size)] for row, leader in leaders.items()]

    def check(self) -> None:
        """Proves what must hold after every call; AssertionError says what does not."""
        check(self.books, self.steps.flights, self.residence.leaving)
        for number, starts in self.waiting.items():
            assert number in self.transfers_under_way, f"{len(starts)} starts wait for transfer {number:#x}"
