"""The device of a simulated replica: what a desk orders is done to made-up blocks, and its steps draw made-up tokens.

Up to `depth` steps are issued at once. A step has the tables that it was issued with, writes its slots and draws its
tokens when its time is over, in the order in which all of the device's work was issued. Where the host waits for its
device (`at_once`), steps happen at the end of their time, several in one go: what came meanwhile was there before. It
decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any

import numpy as np

from cluster.desk.batcher import Batch
from cluster.desk.desk import Desk
from cluster.desk.words import (
    Abort,
    Clear,
    Copies,
    Drawn,
    Enter,
    EnterGroup,
    Flight,
    Forget,
    GroupStep,
    HandOverBeams,
    Leave,
)
from cluster.messages import Copy, Logprobs, Transfer
from cluster.sim.beams import MadeUpSearch
from cluster.sim.client import Violation
from cluster.sim.clock import Process
from cluster.sim.device import Blocks, SimStream
from cluster.sim.model import STEP_FAILED, draw, logprob
from cluster.sim.shape import WorkerShape
from cluster.sim.transfers import SimTransfers

Ints = list[int]

KEYS_PER_CUT = 16
"""At contexts that are multiples of it no step follows another without the host."""


@dataclass(slots=True)
class Issued:
    """A flight with the tables of its rows as they were when it was issued; tokens of all steps but its last."""

    flight: Flight
    tables: dict[int, Ints]
    earlier: list[Ints] = field(default_factory=list)


class SimSteps:
    """Blocks, searches and steps beside one desk. `on_retire` is called after each step."""

    def __init__(
        self, owner: Process, desk: Desk, shape: WorkerShape, random: Random, on_retire: Callable[[], None]
    ) -> None:
        self.shape = shape
        self.blocks = Blocks(shape.num_blocks, shape.block_size, random, shape.content)
        # What the further ranks of the replica hold: the same positions, each its own slice.
        self.others = [
            Blocks(shape.num_blocks, shape.block_size, random, shape.content) for _ in range(shape.num_ranks - 1)
        ]
        self.stream = SimStream(owner)
        self._owner = owner
        self.step_seconds = 0.0
        self.num_ahead = 0
        self.num_beam_swaps = 0
        # The device refuses the next step, and those whose requests were in it come into this set.
        self.refused: set[str] | None = None
        self._desk = desk
        self._random = random
        self._noise = random.randrange(shape.num_noises)
        self._on_retire = on_retire
        self._num_issued = 0
        self._searches: dict[int, MadeUpSearch] = {}
        self._do: dict[type, Callable[[Any], object]] = {
            Enter: lambda order: None,
            EnterGroup: self._enter_group,
            Leave: lambda order: self._searches.pop(order.rows[0], None),
            HandOverBeams: lambda order: desk.handed_over(order.row, self._searches[order.row].dump()),
            Clear: lambda order: self._on_each(lambda rank: rank.clear(order.blocks)),
            Copies: self._copy,
            Forget: lambda order: self._on_each(lambda rank: rank.forget(order.blocks, order.first)),
        }

    def move_with(self, transfers: SimTransfers) -> None:
        """Who moves blocks between this pool and others."""
        self._do[Transfer] = lambda order: transfers.begin(order, self._desk.epoch)
        self._do[Abort] = lambda order: transfers.abort(order.transfer)

    # -- orders

    def carry_out(self) -> None:
        """Does what the desk wants of its device, in order."""
        while orders := self._desk.take_orders():
            for order in orders:
                self._do[type(order)](order)

    def _enter_group(self, order: EnterGroup) -> None:
        start = self._desk.beams.groups[order.row].start
        search = self._searches[order.row] = MadeUpSearch(start, self._noise, self.shape.end_one_in)
        if start.beams is not None and start.beams.search:
            self._desk.resumed(order.row, search.outputs())

    def _copy(self, order: Copies) -> None:
        for copy in order.copies:
            self._on_each(partial(_copied, copy))

    def _on_each(self, do: Callable[[Blocks], None]) -> None:
        """On every rank, behind what was issued before."""
        for rank in (self.blocks, *self.others):
            self.stream.issue(0.0, partial(do, rank))

    # -- steps

    def issue(self) -> None:
        if self.shape.at_once > 1:
            self._issue_at_once()
            return
        desk = self._desk
        while self._num_issued < self.shape.depth:
            batch = self._next()
            if not batch.num_tokens:
                return
            if self._has_failed(batch):
                continue
            seconds = self.shape.step_base_s + self.shape.per_token_s * batch.num_tokens
            seconds *= 0.9 + 0.2 * self._random.random()
            self._num_issued += 1
            issued = Issued(desk.launched(batch), {row: desk.rows.table(row) for row in batch.rows.tolist()})
            self.stream.issue(seconds, partial(self._retire, issued, seconds))
            self.carry_out()

    def _next(self) -> Batch:
        desk, held = self._desk, set[int]()
        if self.shape.holds:
            rows = [row for row in desk.rows.row_of.values() if row not in desk.beams.groups]
            held = {row for row in rows if self._random.random() < self.shape.holds}
            desk.hold(sorted(held))
        batch = desk.next()
        self.carry_out()
        for row, start, count in zip(batch.rows.tolist(), batch.starts.tolist(), batch.counts.tolist(), strict=True):
            if row in held and start + count >= int(desk.batcher.length[row]):
                raise Violation(f"row {row} is held, and gets a token")
        if held and not batch.num_tokens:
            self._owner.after(self.shape.step_base_s, self.issue)
        return batch

    def _issue_at_once(self) -> None:
        if not self._num_issued:
            self._num_issued = 1
            seconds = self.shape.step_base_s * self._random.uniform(0.9, 0.5 + self.shape.at_once)
            self._owner.after(seconds, self._issue_run, seconds)

    def _issue_run(self, seconds: float) -> None:
        batch = self._next()
        if batch.num_tokens and not self._has_failed(batch):
            self.stream.issue(0.0, partial(self._run, batch, seconds))
            return
        self._num_issued = 0
        if batch.num_tokens:
            self._issue_at_once()

    def _has_failed(self, batch: Batch) -> bool:
        """The device refuses it: what is in it ends, all else goes on. Nothing else is under way then."""
        if self.refused is None or self._desk.steps.flights:
            return False
        # A row without a resident is one more beam of a request that is in it.
        residents = [self._desk.rows.residents[row] for row in batch.rows.tolist()]
        self.refused.update(one.start.request_id for one in residents if one is not None)
        self.refused = None
        self._desk.fail_batch(batch, STEP_FAILED)
        self.carry_out()
        self._owner.after(0.0, self._on_retire)
        return True

    def _run(self, batch: Batch, seconds: float) -> None:
        """All of it at one moment; how many steps it takes depends on what they draw, and on what came for the host."""
        desk = self._desk
        tables = {row: desk.rows.table(row) for row in batch.rows.tolist()}
        earlier = self._run_ahead(batch, tables)
        self.num_ahead += len(earlier)
        issued = Issued(desk.launched(batch, len(earlier) + 1), tables, earlier)
        self.carry_out()
        self._retire(issued, seconds / (len(earlier) + 1))

    def _run_ahead(self, batch: Batch, tables: dict[int, Ints]) -> list[Ints]:
        """Of steps in one go the tokens of all but the last, which is computed as every step is."""
        desk, rows = self._desk, batch.rows.tolist()
        allowed = self._random.randint(1, min(self.shape.at_once, desk.most_at_once))
        most = desk.most_steps(batch, allowed, KEYS_PER_CUT)
        if most > 1 and any(desk.rows.at(row).logprobs is not None for row in rows):
            return []
        earlier: list[Ints] = []
        while len(earlier) + 1 < most:
            ends = self._write(batch, tables, earlier)
            drawn = [self._draw(row, tables[row], ends[row]) for row in rows]
            if any(token in desk.rows.stops[row] for row, token in zip(rows, drawn, strict=True)):
                break
            earlier.append(drawn)
        return earlier

    def _retire(self, issued: Issued, seconds: float) -> None:
        """The step is over: its slots are written, its tokens drawn."""
        desk, flight = self._desk, issued.flight
        self._num_issued -= 1
        self.step_seconds += 0.1 * (seconds - self.step_seconds)
        ends = self._write(flight.batch, issued.tables, issued.earlier)
        rows = flight.rows.tolist()
        drawn = np.array([self._draw(row, issued.tables[row], ends[row]) for row in rows], np.int64)
        broken, earlier = np.zeros(len(drawn), np.bool_), np.array(issued.earlier, np.int64)
        earlier = earlier.reshape(len(issued.earlier), len(drawn))
        groups: list[GroupStep] = []
        if self._searches:
            groups = [self._search(row, issued, ends[row]) for row in flight.sampled.tolist() if row in self._searches]
        judged = self._judge(issued, ends)
        told = [
            (row, self._logprob(issued.tables[row], ends[row], token))
            for row, token in zip(rows, drawn.tolist(), strict=True)
            if desk.rows.at(row).logprobs is not None
        ]
        desk.retire(flight, Drawn(drawn, broken, earlier, told, judged, groups))
        self.carry_out()
        self.issue()
        self._on_retire()

    def _write(self, batch: Batch, tables: dict[int, Ints], earlier: Sequence[Ints]) -> dict[int, int]:
        """Writes the slots of all rows but those that others hold; behind `earlier` steps those of the last one's
        tokens. Returns where each row ends."""
        rows, ends = self._desk.rows, {}
        spans = zip(batch.rows.tolist(), batch.starts.tolist(), batch.counts.tolist(), strict=True)
        for at, (row, start, count) in enumerate(spans):
            end = ends[row] = start + count + len(earlier)
            first = max(end - 1 if earlier else start, int(rows.write_from[row]))
            if first < end:
                tokens = [earlier[-1][at]] if earlier else rows.tokens[row, first:end].tolist()
                for rank in (self.blocks, *self.others):
                    rank.write(tables[row], first, tokens)
        return ends

    def _logprob(self, table: list[int], length: int, token: int) -> Logprobs:
        return Logprobs(token, logprob(self._read(table, length), token), 1)

    def _judge(self, issued: Issued, ends: dict[int, int]) -> list[tuple[int, list[Logprobs]]]:
        """Logprobs of the prompt tokens behind those that this step has computed, where they are asked for."""
        batch, rows, found = issued.flight.batch, self._desk.rows, list[tuple[int, list[Logprobs]]]()
        for at, (row, end) in enumerate(ends.items()):
            resident = rows.residents[row]
            if resident is not None and resident.prompt_logprobs is not None:
                start, last = int(batch.starts[at]), min(end, int(rows.num_prompt[row]) - 1)
                table, tokens = issued.tables[row], rows.tokens[row]
                found.append((row, [self._logprob(table, at, int(tokens[at])) for at in range(start + 1, last + 1)]))
        return found

    def _read(self, table: list[int], length: int) -> int:
        """The checksum of all slots; of ranks that do not agree none that means anything."""
        read = self.blocks.read(table, length)
        return read if all(rank.read(table, length) == read for rank in self.others) else read ^ 1

    def _draw(self, row: int, table: list[int], length: int) -> int:
        resident = self._desk.rows.at(row)
        seed = (resident.sampling.seed or 0) + self._noise
        return draw(self._read(table, length), seed, resident.index, length - 1, self.shape.end_one_in)

    def _search(self, row: int, issued: Issued, length: int) -> GroupStep:
        """A step of a beam group; `row` is its leader's."""
        search, rows = self._searches[row], self._desk.beams.groups[row].rows.tolist()
        reads = {slot: self._read(issued.tables[rows[slot]], length) for slot in search.beams}
        swaps = search.num_swaps
        step = search.step(row, reads, length - 1)
        self.num_beam_swaps += search.num_swaps - swaps
        return step


def _copied(copy: Copy, rank: Blocks) -> None:
    rank.copy(copy.source, copy.target, copy.num_slots)
