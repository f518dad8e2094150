"""A step, from the choice of its rows to what came of it.

`next` picks it, `launched` takes its positions, `retire` its tokens. Several flights may be under way, in the order in
which they were launched; a flight may be a run of several steps of decodes. What happened while a step was under way
and touches its rows waits in `residence.py` for the retirement.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

from cluster.desk import loops
from cluster.desk.batcher import Batch
from cluster.desk.residence import DeskBooks, Residence
from cluster.desk.words import NO_TOKEN_OF_STRUCTURE, NOT_NUMBERS, Copies, Drawn, Flight, GroupStep
from cluster.messages import Copy, Reason

_REASONS = {loops.STOP: Reason.STOP, loops.LENGTH: Reason.LENGTH, loops.BROKEN: Reason.FAILED}


def most_at_once(ahead: int) -> int:
    """Steps in one go where leases are asked for so many slots ahead: one less, so that there is time yet to renew
    those that they near the end of."""
    return max(1, ahead - 1)


class Steps:
    """The steps of one desk."""

    def __init__(self, books: DeskBooks, residence: Residence) -> None:
        self._books = books
        self._residence = residence
        self.flights: deque[Flight] = deque()
        self.num_steps = 0
        self.num_sampled = 0
        # Rows that end, with the reason, and rows to report: filled anew in every step.
        self._found = np.zeros(books.rows.max_batch, np.int32)
        self._reasons = np.zeros(books.rows.max_batch, np.int32)

    def next(self) -> Batch:
        """The next step, with a row for each beam. An empty batch: there are no residents, or every lease is dry."""
        books = self._books
        if not books.rows.row_of:
            return NOTHING
        batch = books.batcher.next()
        books.reporter.num_dry += batch.num_dry
        if books.groups.groups:
            for row in books.groups.lacking(batch):
                self._residence.end(row, Reason.FAILED, "its purse has too few blocks for the next step of its beams")
                return self.next()
            batch, grown = books.groups.spread(batch)
            books.forget(grown)
        return batch

    def most_steps(self, batch: Batch, allowed: int, part_keys: int) -> int:
        """How many steps a batch may run at once, where nothing can come in between: every lease, the length at which
        a sequence ends and `allowed` bound it. More than one only for a batch of decodes that is all there is to run.
        `part_keys`: no step after the first may have a context that is a multiple of it."""
        if allowed == 1 or batch.num_decodes != len(batch.rows) or batch.num_dry or self._books.groups.groups:
            return 1
        if self._books.batcher.held.any():
            return 1
        batcher, rows = self._books.batcher, self._books.rows
        state = batcher.position, batcher.lease_end, rows.known, rows.end
        return int(loops.most_steps(batch.rows, state, part_keys, allowed))

    def launched(self, batch: Batch, num_steps: int) -> Flight:
        """The device has issued this batch: its positions are taken and its tokens are coming."""
        books = self._books
        sampled = books.batcher.issue(batch, num_steps)
        rows = sampled[~books.groups.is_beam[sampled]] if books.groups.groups else sampled
        woken = self._residence.wake_forks(batch)
        if woken:
            books.batcher.in_flight[list(woken)] += 1
        flight = Flight(batch, sampled, rows, num_steps, woken)
        self.flights.append(flight)
        return flight

    def retire(self, flight: Flight, drawn: Drawn) -> None:
        """The oldest flight is over: its tokens are known, some sequences end, some report."""
        books, rows = self._books, self._books.rows
        assert flight is self.flights[0], "flights retire in the order in which they were launched"
        self.flights.popleft()
        self.num_steps += flight.num_steps
        self.num_sampled += flight.num_steps * len(flight.rows)
        batch = flight.batch
        loops.land(
            (batch.rows, batch.starts, batch.counts),
            flight.num_steps,
            books.batcher.in_flight,
            rows.written,
            rows.stopping,
        )
        if flight.woken:
            books.batcher.in_flight[list(flight.woken)] -= 1
            self._residence.written_for(flight.woken)
        if drawn.logprobs or drawn.prompt_logprobs:
            self._note_logprobs(drawn)
        num_ended = loops.take_tokens(
            flight.rows,
            (drawn.earlier, drawn.ids, drawn.broken),
            (rows.tokens, rows.known, rows.end, rows.stops, rows.stopping),
            self._found,
            self._reasons,
        )
        for row, why in zip(self._found[:num_ended].tolist(), self._reasons[:num_ended].tolist(), strict=True):
            self._residence.end(row, _REASONS[why], self._why_broken(row) if why == loops.BROKEN else "")
        if drawn.groups:
            self._search(drawn.groups)
        self._residence.leave_quiet()
        self._report(flight)

    def _why_broken(self, row: int) -> str:
        return NOT_NUMBERS if self._books.rows.at(row).sampling.structured_outputs is None else NO_TOKEN_OF_STRUCTURE

    def _note_logprobs(self, drawn: Drawn) -> None:
        rows = self._books.rows
        for row, logprob in drawn.logprobs:
            noted = rows.at(row).logprobs
            if noted is not None and rows.stopping[row] != loops.ENDED:
                noted.append(logprob)
        for row, judged in drawn.prompt_logprobs:
            prompt = rows.at(row).prompt_logprobs
            if prompt is not None:
                prompt.extend(judged)

    def _search(self, steps: Sequence[GroupStep]) -> None:
        """Groups go on or end; the tails of those that go on are copied in one call."""
        books = self._books
        copies: list[Copy] = []
        fresh: list[int] = []
        for step in steps:
            group = books.groups.groups[step.row]
            self.num_sampled += len(group.rows)
            if books.rows.stopping[step.row] == loops.ENDED:
                continue
            if step.reason is not Reason.NONE:
                self._residence.end(step.row, step.reason, step.detail, step.outputs)
            elif group.is_at_prompt and not books.groups.can_fork(group):
                self._residence.end(step.row, Reason.FAILED, "its purse has too few blocks for the tails of its beams")
            else:
                new, tails = books.groups.go_on(group, step)
                fresh += new
                copies += tails
                books.batcher.paused[step.row] = books.rows.stopping[step.row] != loops.GOES_ON
        books.forget(fresh)
        if copies:
            books.orders.append(Copies(tuple(copies)))

    def _report(self, flight: Flight) -> None:
        """Notes for the next result what the scheduler is to hear of: rows near their lease's end, or that filled
        blocks of what they came with; groups of beams near theirs."""
        books, rows = self._books, self._books.rows
        count = loops.find_reports(
            flight.batch.rows,
            (books.batcher.resident, books.batcher.lease_end),
            (rows.written, books.batcher.limit, rows.asked, rows.reported, rows.num_start, rows.stopping),
            books.reporter.ahead,
            rows.block_size,
            self._found,
        )
        for row in self._found[:count].tolist():
            books.reporter.advance(rows.at(row))
        if books.groups.groups:
            for row in flight.sampled.tolist():
                group = books.groups.groups.get(row)
                if group is not None and rows.stopping[row] == loops.GOES_ON:
                    told = books.groups.near_lease_end(group, books.reporter.ahead)
                    if told is not None:
                        books.reporter.group(told)


_NONE = np.zeros(0, np.int32)
NOTHING = Batch(_NONE, _NONE, _NONE, 0, 0, 0)
