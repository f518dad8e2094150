"""Beam groups: rows, tables and purses, which follow the search without a word to the scheduler.

For the scheduler and the batcher a group is one sequence, in the row of its leader. Once its prompt is written it runs
in `width` rows at one position. After each step the tables of dropped beams take over their new parents': full blocks
are shared, and only a part-filled tail is copied, into the tail of the dropped beam. The search itself is the device's,
which says only who goes on from whom (`GroupStep`). Nothing here allocates a block beyond the purse.
"""

from __future__ import annotations

import numpy as np

from cluster.desk.batcher import Batch, Batcher
from cluster.desk.loops import NEVER
from cluster.desk.rows import Int32, Rows
from cluster.desk.words import GroupStep
from cluster.messages import Copy, GroupTables, Ids, Start, ids
from cluster.sampling import required


class BeamGroup:
    """One group. `rows` are its batch rows by slot of the search, the leader's first."""

    __slots__ = ("asked", "is_at_prompt", "limit", "num_given", "num_shared", "purse", "rows", "seq", "start")

    def __init__(self, start: Start, rows: Int32, block_size: int) -> None:
        assert start.beams is not None
        self.seq = start.seq
        self.start = start
        self.rows = rows
        # Blocks that no beam needs now, and how many the group was given in all.
        self.purse = list(start.beams.purse)
        self.num_given = len(start.table) + len(self.purse)
        # The prompt's full blocks: every table begins with them, and they stay.
        self.num_shared = start.num_prompt // block_size
        self.is_at_prompt = not start.beams.search
        # The end of what it can ever write, and slots that were left when it last asked for a longer lease.
        self.limit = start.num_prompt + required(start.sampling.max_tokens) - 1
        self.asked = NEVER

    @property
    def leader(self) -> int:
        return int(self.rows[0])


class BeamGroups:
    """All groups of one desk."""

    def __init__(self, rows: Rows, batcher: Batcher, num_blocks: int) -> None:
        # By the row of their leader.
        self.groups: dict[int, BeamGroup] = {}
        self.is_beam = np.zeros(rows.max_batch, np.bool_)
        self._rows = rows
        self._batcher = batcher
        # In how many tables a block stands, counted behind the prompt's full blocks.
        self.holders = np.zeros(num_blocks, np.int32)

    # -- groups come and go

    def enter(self, leader: int, start: Start) -> None:
        """The leader has moved in as any sequence does, and computes the prompt alone; the other rows are reserved. One
        that goes on in the middle of its search has its tables as another worker left them."""
        assert start.beams is not None
        taken = [leader, *(self._rows.take() for _ in range(start.beams.width - 1))]
        group = self.groups[leader] = BeamGroup(start, np.array(taken, np.int32), self._rows.block_size)
        self.is_beam[group.rows] = True
        # It asks for its leases itself, and pauses while a step of its search is under way.
        self._batcher.limit[group.rows] = 0
        if group.is_at_prompt:
            return
        for row, table in zip(taken, start.beams.tables, strict=True):
            self._rows.extend(row, 0, table)
            self.holders[list(table[group.num_shared :])] += 1
        self._batcher.widen(leader, start.beams.width)

    def leave(self, leader: int) -> BeamGroup:
        """Its blocks are the scheduler's again. The leader's row itself moves out as any sequence does."""
        group = self.groups.pop(leader)
        self.holders[list(self.held(group))] = 0
        self.is_beam[group.rows] = False
        for row in group.rows[1:].tolist():
            self._rows.give_back(row)
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
        tables = [block for row in group.rows.tolist() for block in self._rows.table(row)]
        return ids(dict.fromkeys([*tables, *group.purse]))

    def tables(self, group: BeamGroup) -> tuple[Ids, ...]:
        """The tables of its beams up to where they are; none while it is at its prompt."""
        if group.is_at_prompt:
            return ()
        count = -(-int(self._batcher.position[group.leader]) // self._rows.block_size)
        return tuple([ids(self._rows.table(row)[:count]) for row in group.rows.tolist()])

    def near_lease_end(self, group: BeamGroup, ahead: int) -> GroupTables | None:
        """What a group says that asks for more: once ahead of need, and once more when it stands still, because the
        scheduler may have thought the first time too early. None: it does not ask."""
        position, lease_end = int(self._batcher.position[group.leader]), int(self._batcher.lease_end[group.leader])
        left = lease_end - position
        if left > ahead or lease_end >= group.limit or not (group.asked == NEVER or left == 0 < group.asked):
            return None
        group.asked = left
        tables = tuple([ids(self._rows.table(row)) for row in group.rows.tolist()])
        return GroupTables(group.seq, position, tables, ids(group.purse))

    # -- before a step

    def lacking(self, batch: Batch) -> list[int]:
        """Leaders of groups in this step whose purses can't give each beam its next block."""
        found = []
        for row in batch.rows[: batch.num_decodes].tolist():
            group = self.groups.get(row)
            if group is not None and not group.is_at_prompt and self._is_at_border(group):
                found += [row] if len(group.purse) < len(group.rows) else []
        return found

    def can_fork(self, group: BeamGroup) -> bool:
        """Whether a group that has written its prompt has a tail for each of its beams."""
        used = -(-group.start.num_prompt // self._rows.block_size)
        spare = len(group.purse) + int(self._rows.num_blocks[group.leader]) - used
        return spare >= (len(group.rows) - 1) * (used - group.num_shared)

    def _is_at_border(self, group: BeamGroup) -> bool:
        logical = int(self._batcher.position[group.leader]) // self._rows.block_size
        return logical >= int(self._rows.num_blocks[group.leader])

    def spread(self, batch: Batch) -> tuple[Batch, list[int]]:
        """The same step with a row for each beam of the groups that decode in it, which have their next block then;
        and the blocks that they took from their purses for it."""
        num = batch.num_decodes
        wide = self._batcher.width[batch.rows[:num]] > 1
        if not wide.any():
            return batch, []
        groups = [self.groups[row] for row in batch.rows[:num][wide].tolist()]
        taken: list[int] = []
        for group in groups:
            taken += self._grow(group)
            self._batcher.length[group.rows] = self._batcher.length[group.leader]
        widths = [len(group.rows) for group in groups]
        starts, counts = batch.starts, batch.counts
        spread = Batch(
            rows=np.concatenate([batch.rows[:num][~wide], *(group.rows for group in groups), batch.rows[num:]]),
            starts=np.concatenate([starts[:num][~wide], np.repeat(starts[:num][wide], widths), starts[num:]]),
            counts=np.concatenate([counts[:num][~wide], np.ones(sum(widths), np.int32), counts[num:]]),
            num_decodes=num - len(groups) + sum(widths),
            num_tokens=batch.num_tokens,
            num_dry=batch.num_dry,
        )
        return spread, taken

    def _grow(self, group: BeamGroup) -> list[int]:
        """At the border of a block every beam takes one from the purse."""
        if not self._is_at_border(group):
            return []
        rows, logical = self._rows, int(self._rows.num_blocks[group.leader])
        blocks = self._spend(group, len(group.rows))
        for row, block in zip(group.rows.tolist(), blocks, strict=True):
            rows.extend(row, logical, [block])
        return blocks

    def _spend(self, group: BeamGroup, num: int) -> list[int]:
        assert len(group.purse) >= num, f"a purse of {len(group.purse)} blocks has to give {num}"
        blocks = group.purse[len(group.purse) - num :]
        del group.purse[len(group.purse) - num :]
        self.holders[blocks] = 1
        return blocks

    # -- after a step

    def go_on(self, group: BeamGroup, step: GroupStep) -> tuple[list[int], list[Copy]]:
        """The search goes on: tables and last tokens follow it. Returns blocks that begin anew, and copies of tails."""
        fresh: list[int] = []
        if group.is_at_prompt:
            fresh = self._fork(group)
        copies = self._permute(group, step)
        self._rows.tokens[group.rows, int(self._batcher.length[group.leader]) - 1] = step.tokens
        return fresh, copies

    def _fork(self, group: BeamGroup) -> list[int]:
        """The prompt is written: what the leader has beyond it is spare, and every beam gets a tail of its own."""
        rows, leader = self._rows, group.leader
        table = rows.table(leader)
        used = -(-group.start.num_prompt // rows.block_size)
        group.purse += table[used:]
        rows.shorten(leader, used)
        self.holders[table[group.num_shared : used]] = 1
        fresh: list[int] = []
        for row in group.rows[1:].tolist():
            tail = self._spend(group, used - group.num_shared)
            rows.extend(row, 0, table[: group.num_shared] + tail)
            fresh += tail
        group.is_at_prompt = False
        self._batcher.widen(leader, len(group.rows))
        return fresh

    def _permute(self, group: BeamGroup, step: GroupStep) -> list[Copy]:
        """Slots whose beam was dropped take over another's table. A parent keeps its own, so the order is free."""
        rows, holders, first = self._rows, self.holders, group.num_shared
        full, part = divmod(int(self._batcher.position[group.leader]), rows.block_size)
        copies: list[Copy] = []
        for slot, chosen in enumerate(step.parents.tolist()):
            if chosen == slot:
                continue
            row, parent = int(group.rows[slot]), int(group.rows[chosen])
            theirs, dropped = rows.tables[parent, first:full], rows.tables[row, first:full].copy()
            holders[theirs] += 1
            holders[dropped] -= 1
            group.purse += dropped[holders[dropped] == 0].tolist()
            if part:
                copies.append(Copy(int(rows.tables[parent, full]), int(rows.tables[row, full]), part))
            rows.extend(row, first, np.append(theirs, rows.tables[row, full : full + (part > 0)]))
        return copies
