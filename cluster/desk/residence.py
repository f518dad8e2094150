"""How sequences move in and out of the batch: starts, forks, ends.

The desk calls it when a plan says so or a step ends a sequence. A row is set up in the rows, the batcher and the groups
together and taken down together. What ends while steps with it are under way leaves when the last of them has retired:
no step may touch a block that the scheduler has been told is free.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cluster.desk.batcher import Batch, Batcher
from cluster.desk.groups import BeamGroups
from cluster.desk.loops import DROPPED, ENDED
from cluster.desk.names import BlockNames
from cluster.desk.outbox import Outbox
from cluster.desk.report import Reporter
from cluster.desk.rows import RowResident, Rows
from cluster.desk.starts import StartBounds, problem
from cluster.desk.words import Copies, DeviceOrder, Enter, EnterGroup, Forget, HandOverBeams, Hypothesis, Leave
from cluster.messages import Copy, Fork, Ids, Reason, Start, ids


@dataclass(frozen=True, slots=True)
class DeskBooks:
    """What the parts of one desk share. `orders` are for the device, in their order."""

    bounds: StartBounds
    rows: Rows
    batcher: Batcher
    groups: BeamGroups
    names: BlockNames
    reporter: Reporter
    outbox: Outbox
    orders: list[DeviceOrder]

    def forget(self, blocks: Sequence[int], first: int = 0) -> None:
        """These blocks are given to somebody who will write into them, the first of them from slot `first` on."""
        if len(blocks):
            self.names.forget(blocks)
            self.orders.append(Forget(blocks, first))


class Residence:
    """The comings and goings of one desk."""

    def __init__(self, books: DeskBooks) -> None:
        self._books = books
        # Parents that are still at the prompt their forks wait for.
        self._parents: set[int] = set()
        # Rows that leave once no step with them is under way: why.
        self.leaving: dict[int, tuple[Reason, str]] = {}

    # -- in

    def move_in(self, start: Start) -> None:
        """One sequence and its forks, or a group of beams. A Start that can't be obeyed ends at once as FAILED."""
        books = self._books
        if start.seq in books.rows.row_of:
            return
        wrong = problem(start, books.rows, books.bounds)
        if wrong:
            self.refuse(start, wrong)
            return
        goes_on = start.beams is not None and bool(start.beams.search)
        if goes_on:
            assert start.beams is not None
            row = self._enter(start, start.seq, start.index, start.tokens, start.position, start.beams.tables[0])
            books.batcher.add(row, start.position, start.position + 1, start.lease_end, start.precedence, limit=0)
        else:
            row = self._enter(start, start.seq, start.index, start.tokens, start.position, start.table)
            limit = int(books.rows.end[row]) - 1
            length = len(start.tokens)
            books.batcher.add(row, start.position, length, start.lease_end, start.precedence, limit=limit)
            self._forget_behind(start.table, start.position)
        parent = books.rows.at(row)
        books.names.fill(parent, start.position)
        if start.sampling.prompt_logprobs is not None and start.position == 0 and start.index == 0:
            # Nothing judges the first token.
            parent.prompt_logprobs = [None]
        if start.beams is not None:
            books.groups.enter(row, start)
            # What beams write is named by nobody.
            books.names.forget([*start.table[start.num_prompt // books.bounds.block_size :], *start.beams.purse])
            books.orders.append(EnterGroup(row))
            return
        books.orders.append(Enter(row))
        waits = start.position < start.num_prompt
        for fork in start.forks:
            self._enter_fork(start, fork, parent)
        if parent.forks:
            self._parents.add(row)
            if not waits:
                self.written_for(parent.forks)
                self._wake(parent)

    def refuse(self, start: Start, detail: str) -> None:
        """Nothing of this Start is obeyed."""
        for seq in dict.fromkeys([start.seq, *(fork.seq for fork in start.forks)]):
            self._books.reporter.stop_unknown(seq, detail)
        self._books.outbox.refuse(start, detail)

    def _enter(self, start: Start, seq: int, index: int, tokens: Ids, position: int, table: Ids) -> int:
        books = self._books
        resident = RowResident(seq, index, start)
        resident.hasher = books.names.hasher(start)
        if start.sampling.logprobs is not None:
            resident.logprobs, resident.first_logprob = [], len(tokens)
        return books.rows.enter(resident, tokens, position, table)

    def _enter_fork(self, start: Start, fork: Fork, parent: RowResident) -> None:
        """A fork stands still until its parent has written the prompt. With nothing known behind the prompt it then
        computes the last prompt token again, for its logits, without writing it: that block has other holders."""
        books, num_prompt = self._books, start.num_prompt
        tokens = ids(start.tokens[:num_prompt])
        tokens.extend(fork.outputs)
        row = self._enter(start, fork.seq, fork.index, tokens, num_prompt, fork.table)
        books.rows.write_from[row] = num_prompt
        position = num_prompt if fork.outputs else num_prompt - 1
        limit = int(books.rows.end[row]) - 1
        books.batcher.add(row, position, len(tokens), fork.lease_end, start.precedence, limit=limit, paused=True)
        self._forget_behind(fork.table, num_prompt)
        books.orders.append(Enter(row))
        parent.forks.append(row)
        books.rows.at(row).parent = parent.row

    def _forget_behind(self, table: Ids, position: int) -> None:
        size = self._books.bounds.block_size
        self._books.forget(table[position // size :], position % size)

    def wake_forks(self, batch: Batch) -> tuple[int, ...]:
        """After a launch: forks whose parent has its prompt written with it go on by themselves, behind it. Returns
        their rows; `written_for` them when it has retired."""
        if not self._parents:
            return ()
        rows, position = self._books.rows, self._books.batcher.position
        woken: list[int] = []
        for row in batch.rows.tolist():
            if row in self._parents and position[row] >= rows.num_prompt[row]:
                woken += rows.at(row).forks
                self._wake(rows.at(row))
        return tuple(woken)

    def _wake(self, parent: RowResident) -> None:
        books, rows = self._books, self._books.rows
        num_prompt = parent.start.num_prompt
        tail, part = divmod(num_prompt, books.bounds.block_size)
        if part:
            source = int(rows.tables[parent.row, tail])
            copies = [Copy(source, int(rows.tables[fork, tail]), part) for fork in parent.forks]
            books.orders.append(Copies(tuple(copies)))
        books.batcher.paused[parent.forks] = False
        parent.forks = []
        self._parents.discard(parent.row)

    def written_for(self, forks: Sequence[int]) -> None:
        """The prompt that these rows begin with is written: their blocks can be named."""
        for row in forks:
            self._books.rows.at(row).parent = -1

    # -- out

    def end(self, row: int, reason: Reason, detail: str = "", outputs: Sequence[Hypothesis] = ()) -> None:
        """A sequence ends; it leaves once no step can touch its blocks any more. `outputs`: of a beam group."""
        books = self._books
        is_group = row in books.groups.groups
        if books.batcher.in_flight[row] or (is_group and reason is Reason.DROPPED):
            self.leaving[row] = reason, detail
            books.rows.stopping[row] = DROPPED if reason is Reason.DROPPED else ENDED
            books.batcher.paused[row] = True
            if not is_group and reason is not Reason.DROPPED:
                # With its last token: who has that token and no end would have it gone on with behind its end.
                books.outbox.end(books.rows.at(row), reason, detail)
            if not books.batcher.in_flight[row]:
                self._let_go(row)
        else:
            self._move_out(row, reason, detail, outputs)

    def tell_again(self, row: int) -> None:
        """Its tokens go to another gateway, from the first on."""
        books = self._books
        books.rows.sent[row] = books.rows.num_prompt[row]
        if books.rows.stopping[row] == ENDED and row not in books.groups.groups:
            books.outbox.end(books.rows.at(row), *self.leaving[row])

    def leave_quiet(self) -> None:
        """A step has retired: those leave that waited for it."""
        if self.leaving:
            for row in [row for row in self.leaving if not self._books.batcher.in_flight[row]]:
                self._let_go(row)

    def _let_go(self, row: int) -> None:
        books = self._books
        reason, detail = self.leaving[row]
        group = books.groups.groups.get(row)
        if group is not None and reason is Reason.DROPPED and not group.is_at_prompt:
            # Whoever dropped it may have it go on elsewhere.
            books.orders.append(HandOverBeams(row))
            return
        self._move_out(row, reason, detail)

    def handed_over(self, row: int, search: bytes) -> None:
        """The device's answer to HandOver: the group leaves, with its tables and its search."""
        group = self._books.groups.groups[row]
        reason, detail = self.leaving[row]
        self._move_out(row, reason, detail, dropped=(self._books.groups.tables(group), search))

    def _move_out(
        self,
        row: int,
        reason: Reason,
        detail: str,
        outputs: Sequence[Hypothesis] = (),
        dropped: tuple[tuple[Ids, ...], bytes] = ((), b""),
    ) -> None:
        """An attempt ends here; no step that could touch its blocks is under way."""
        books, rows = self._books, self._books.rows
        assert not books.batcher.in_flight[row], f"batch row {row} leaves while steps with it are under way"
        resident = rows.at(row)
        self.leaving.pop(row, None)
        is_group = row in books.groups.groups
        if outputs:
            rows.append(row, outputs[0].ids)
        books.reporter.stop(resident, reason, detail, dropped)
        if is_group:
            books.outbox.end_group(resident, reason, detail, outputs)
            left = tuple(books.groups.leave(row).rows.tolist())
        else:
            if rows.stopping[row] != ENDED:
                books.outbox.end(resident, Reason.NONE if reason is Reason.DROPPED else reason, detail)
            left = (row,)
        books.batcher.remove(row)
        books.orders.append(Leave(left))
        if resident.parent >= 0:
            rows.at(resident.parent).forks.remove(row)
        self._parents.discard(row)
        rows.leave(row)
        for fork in resident.forks:
            # Nobody will write their prompt any more: there is nothing in their blocks to be named.
            rows.at(fork).parent, rows.at(fork).hasher = -1, None
            self._move_out(fork, reason, detail)
