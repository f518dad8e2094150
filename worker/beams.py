"""The beam groups of one worker: rows, tables and purses, which follow the search without a word to the scheduler.

For the scheduler and the batcher a group is one sequence, in the row of its leader. Once its prompt is written it runs
in `width` rows at one position. After each step the tables of dropped beams take over their new parents': full blocks
are shared, and only a part-filled tail is copied, into the tail of the dropped beam. The step loop calls `spread` and
`rank` before a launch is over and `retire` after it; nothing here allocates a block beyond the purse.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from cluster.batcher import Batch, Batcher
from cluster.messages import GroupTables, Ids, Logprobs, Reason, Start, ids
from cluster.sampling import required
from kernels.cpu.host_loops import NEVER
from kernels.device.seam import Event, device_of
from kernels.sampling import send
from worker.model.startup import Started
from worker.sampling.beam_search import BeamSearch, Choice, Floats, Ints
from worker.sampling.logprobs import token_logprobs
from worker.sampling.row_slots import some
from worker.sampling.sampler import NOT_NUMBERS, Sampler
from worker.state import BatchState, Int32


class BeamGroup:
    """One group. `rows` are its batch rows by slot of the search, the leader's first."""

    __slots__ = (
        "asked",
        "is_at_prompt",
        "limit",
        "num_given",
        "num_shared",
        "num_top",
        "purse",
        "rows",
        "search",
        "seq",
    )

    def __init__(self, start: Start, rows: Int32, block_size: int) -> None:
        assert start.beams is not None
        self.seq = start.seq
        self.rows = rows
        self.search = BeamSearch(start.sampling, start.beams.width)
        # Blocks that no beam needs now, and how many the group was given in all.
        self.purse = list(start.beams.purse)
        self.num_given = len(start.table) + len(self.purse)
        # The prompt's full blocks: every table begins with them, and they stay.
        self.num_shared = start.num_prompt // block_size
        self.is_at_prompt = True
        # The end of what it can ever write, and slots that were left when it last asked for a longer lease.
        self.limit = start.num_prompt + required(start.sampling.max_tokens) - 1
        self.asked = NEVER
        # Top tokens that are reported with each token; None: no logprobs are asked for.
        self.num_top = start.sampling.logprobs


@dataclass(frozen=True, slots=True)
class Ranked:
    """The likeliest continuations of a step's beams, which may still be under way on the device."""

    groups: list[tuple[BeamGroup, int, int]]  # whose, and which rows of the tensors
    best: torch.Tensor  # fp32 [rows, k]
    tokens: torch.Tensor  # int64 [rows, k]
    logits: torch.Tensor  # [rows, vocabulary], on the device
    done: Event  # the others have come to the host


class BeamGroups:
    """All groups of one worker."""

    def __init__(self, state: BatchState, batcher: Batcher, sampler: Sampler, parts: Started) -> None:
        # By the row of their leader.
        self.groups: dict[int, BeamGroup] = {}
        self._state = state
        self._batcher = batcher
        self._sampler = sampler
        self._parts = parts
        self._seam = device_of(parts.device)
        self._is_beam = np.zeros(state.max_batch, np.bool_)
        # In how many tables a block stands, counted behind the prompt's full blocks.
        self._holders = np.zeros(parts.pool.num_blocks, np.int32)

    # -- groups come and go

    def enter(self, leader: int, start: Start, outputs: Sequence[Ids] = ()) -> None:
        """The leader has moved in as any sequence does, and computes the prompt alone; the other rows are reserved.
        With `outputs` (see `first_tokens`) the group goes on in the middle of its search."""
        assert start.beams is not None
        rows = np.array([leader, *(self._state.enter_beam() for _ in range(start.beams.width - 1))], np.int32)
        for slot, row in enumerate(rows.tolist()):
            known = start.num_prompt + (len(outputs[slot]) if outputs else 0)
            if outputs:
                self._state.tokens[row, start.num_prompt : known] = outputs[slot]
                self._state.tokens[row, : start.num_prompt] = start.tokens[: start.num_prompt]
            if row != leader:
                tokens = self._state.tokens[row if outputs else leader, :known]
                self._sampler.enter(row, start.sampling, start.index, tokens, start.num_prompt)
        group = self.groups[leader] = BeamGroup(start, rows, self._state.block_size)
        self._is_beam[rows] = True
        # It asks for its leases itself.
        self._state.limit[leader] = 0
        if outputs:
            self._resume(group, start)

    def first_tokens(self, start: Start) -> list[Ids]:
        """The tokens of each beam of a group that goes on in the middle of its search; empty: it begins."""
        if start.beams is None or not start.beams.search:
            return []
        search = BeamSearch(start.sampling, start.beams.width)
        search.load(start.beams.search)
        return search.outputs()

    def _resume(self, group: BeamGroup, start: Start) -> None:
        """Its tables and its search stand as another worker left them."""
        assert start.beams is not None
        leader = int(group.rows[0])
        group.search.load(start.beams.search)
        group.is_at_prompt = False
        for row, table in zip(group.rows.tolist(), start.beams.tables, strict=True):
            self._state.num_blocks[row] = 0
            self._state.extend(row, 0, table)
            self._holders[list(table[group.num_shared :])] += 1
        # Nothing of it goes out before the end.
        self._state.known[leader] = self._state.reported_known[leader] = start.num_prompt
        self._batcher.widen(leader, len(group.rows))

    def dump(self, leader: int) -> tuple[int, tuple[Ids, ...], bytes]:
        """How far a group is, its tables, and its search; no tables: it is still at its prompt."""
        group, position = self.groups[leader], int(self._batcher.position[leader])
        if group.is_at_prompt:
            return position, (), b""
        count = -(-position // self._state.block_size)
        return position, tuple([ids(self._table(row)[:count]) for row in group.rows.tolist()]), group.search.dump()

    def leave(self, leader: int) -> BeamGroup:
        """Its blocks are the scheduler's again. The leader's row itself moves out as any sequence does."""
        group = self.groups.pop(leader)
        self._holders[list(self.held(group))] = 0
        self._is_beam[group.rows] = False
        for row in group.rows[1:].tolist():
            self._sampler.leave(row)
            self._state.leave_beam(row)
        return group

    def extend(self, leader: int, first: int, blocks: Ids) -> None:
        """Further blocks of a group, of which the first is number `first` of all that it was given."""
        group = self.groups[leader]
        fresh = blocks[group.num_given - first :]
        group.purse.extend(fresh)
        group.num_given += len(fresh)
        group.asked = NEVER

    def held(self, group: BeamGroup) -> Ids:
        """Every block of a group once, those of the prompt first."""
        tables = [block for row in group.rows.tolist() for block in self._table(row)]
        return ids(dict.fromkeys([*tables, *group.purse]))

    def near_lease_end(self, ranked: Ranked, ahead: int) -> list[GroupTables]:
        """Of the groups of this step those that ask for more, as the scheduler is told: once ahead of need, and once
        more when they stand still, because it may have thought the first time too early."""
        asking = []
        for group, _, _ in ranked.groups:
            leader = int(group.rows[0])
            position, lease_end = int(self._batcher.position[leader]), int(self._batcher.lease_end[leader])
            left = lease_end - position
            if self.groups.get(leader) is not group or left > ahead or lease_end >= group.limit:
                continue
            if group.asked == NEVER or left == 0 < group.asked:
                group.asked = left
                tables = tuple([ids(self._table(row)) for row in group.rows.tolist()])
                asking.append(GroupTables(group.seq, position, tables, ids(group.purse)))
        return asking

    def _table(self, row: int) -> list[int]:
        table: list[int] = self._state.tables[row, : self._state.num_blocks[row]].tolist()
        return table

    # -- before a step

    def spread(self, batch: Batch) -> Batch:
        """The same step with a row for each beam of the groups that decode in it, which have their next block then."""
        if not self.groups:
            return batch
        num = batch.num_decodes
        wide = self._batcher.width[batch.rows[:num]] > 1
        if not wide.any():
            return batch
        groups = [self.groups[row] for row in batch.rows[:num][wide].tolist()]
        for group in groups:
            self._grow(group)
            self._batcher.length[group.rows] = self._batcher.length[group.rows[0]]
        widths = [len(group.rows) for group in groups]
        starts, counts = batch.starts, batch.counts
        return Batch(
            rows=np.concatenate([batch.rows[:num][~wide], *(group.rows for group in groups), batch.rows[num:]]),
            starts=np.concatenate([starts[:num][~wide], np.repeat(starts[:num][wide], widths), starts[num:]]),
            counts=np.concatenate([counts[:num][~wide], np.ones(sum(widths), np.int32), counts[num:]]),
            num_decodes=num - len(groups) + sum(widths),
            num_tokens=batch.num_tokens,
            num_dry=batch.num_dry,
        )

    def _grow(self, group: BeamGroup) -> None:
        """At the border of a block every beam takes one from the purse."""
        state, width = self._state, len(group.rows)
        leader = group.rows[0]
        logical = int(self._batcher.position[leader]) // state.block_size
        if logical < state.num_blocks[leader]:
            return
        blocks = self._spend(group, width)
        for row, block in zip(group.rows.tolist(), blocks, strict=True):
            state.extend(row, logical, ids([block]))

    def _spend(self, group: BeamGroup, num: int) -> list[int]:
        assert len(group.purse) >= num, f"a purse of {len(group.purse)} blocks has to give {num}"
        blocks = group.purse[len(group.purse) - num :]
        del group.purse[len(group.purse) - num :]
        self._holders[blocks] = 1
        self._parts.pool.forget(blocks)
        return blocks

    # -- the step

    def rank(self, logits: torch.Tensor, rows: Int32) -> tuple[torch.Tensor, Int32, Ranked | None]:
        """Of the rows that get a token: the logits and rows of those that are no beams, and the beams ranked."""
        if not self.groups:
            return logits, rows, None
        is_beam = self._is_beam[rows]
        which = np.flatnonzero(is_beam)
        if not which.size:
            return logits, rows, None
        rest = np.flatnonzero(~is_beam)
        beams, own = some(logits, which), rows[which]
        groups, at = [], 0
        while at < len(own):
            group = self.groups[int(own[at])]
            end = at + (1 if group.is_at_prompt else len(group.rows))
            groups.append((group, at, end))
            at = end
        num = min(logits.shape[1], max(group.search.num_candidates for group, _, _ in groups))
        best, tokens = self._sampler.rank(beams, own, num)
        best, tokens, done = self._seam.fetch(best), self._seam.fetch(tokens), self._seam.event()
        done.record()
        return some(logits, rest), rows[rest], Ranked(groups, best, tokens, beams, done)

    def retire(self, ranked: Ranked) -> list[tuple[int, Reason, str]]:
        """The step is done: groups go on, their tails copied in one call. Returns those that are over, by leader."""
        ranked.done.wait()
        best: Floats = ranked.best.numpy()
        tokens: Ints = ranked.tokens.numpy()
        over: list[tuple[int, Reason, str]] = []
        going: list[tuple[BeamGroup, Choice]] = []
        sources: list[int] = []
        targets: list[int] = []
        for group, first, end in ranked.groups:
            leader, search = int(group.rows[0]), group.search
            alive = [first + slot for slot in range(end - first) if search.lives(slot)]
            if np.isnan(best[alive, 0]).any() or np.isposinf(best[alive, 0]).any():
                over.append((leader, Reason.FAILED, NOT_NUMBERS))
                continue
            choice = search.choose(best[first:end], tokens[first:end])
            search.take(choice, self._logprobs(group, ranked.logits[first:end], choice))
            if search.is_over:
                over.append((leader, *search.verdict()))
                continue
            if group.is_at_prompt:
                self._fork(group)
            self._permute(group, choice, sources, targets)
            going.append((group, choice))
        if sources:
            self._parts.copy_blocks(sources, targets)
        if going:
            self._go_on(going)
        return over

    def _logprobs(self, group: BeamGroup, logits: torch.Tensor, choice: Choice) -> list[Logprobs]:
        if group.num_top is None:
            return []
        picks = [*choice.children, *choice.ended]
        slots = send(np.array([pick.parent for pick in picks], np.int64), logits.device)
        tokens = send(np.array([pick.token for pick in picks], np.int64), logits.device)
        found = token_logprobs(logits[slots], tokens, group.num_top).leaving()
        self._seam.current().wait()
        return found.messages([group.num_top] * len(picks))

    def _fork(self, group: BeamGroup) -> None:
        """The prompt is written: what the leader has beyond it is spare, and every beam gets a tail of its own."""
        state, leader = self._state, int(group.rows[0])
        num_prompt = int(state.num_prompt[leader])
        table = self._table(leader)
        used = -(-num_prompt // state.block_size)
        group.purse += table[used:]
        state.num_blocks[leader] = used
        self._holders[table[group.num_shared : used]] = 1
        for row in group.rows[1:].tolist():
            tail = self._spend(group, used - group.num_shared)
            state.extend(row, 0, ids(table[: group.num_shared] + tail))
        group.is_at_prompt = False
        self._batcher.widen(leader, len(group.rows))

    def _permute(self, group: BeamGroup, choice: Choice, sources: list[int], targets: list[int]) -> None:
        """Slots whose beam was dropped take over another's table. A parent keeps its own, so the order is free."""
        state, holders, first = self._state, self._holders, group.num_shared
        full, part = divmod(int(self._batcher.position[group.rows[0]]), state.block_size)
        for slot, child in enumerate(choice.children):
            if child.parent == slot:
                continue
            row, parent = int(group.rows[slot]), int(group.rows[child.parent])
            theirs, dropped = state.tables[parent, first:full], state.tables[row, first:full].copy()
            holders[theirs] += 1
            holders[dropped] -= 1
            group.purse += dropped[holders[dropped] == 0].tolist()
            if part:
                sources.append(int(state.tables[parent, full]))
                targets.append(int(state.tables[row, full]))
            state.extend(row, first, np.append(theirs, state.tables[row, full : full + (part > 0)]))

    def _go_on(self, going: list[tuple[BeamGroup, Choice]]) -> None:
        rows = np.concatenate([group.rows for group, _ in going])
        parents = np.concatenate([group.rows[choice.parents] for group, choice in going])
        tokens = np.concatenate([choice.tokens for _, choice in going])
        self._sampler.go_on(rows, parents, tokens)
        ends = [int(self._batcher.length[group.rows[0]]) - 1 for group, _ in going]
        self._state.tokens[rows, np.repeat(ends, [len(group.rows) for group, _ in going])] = tokens
