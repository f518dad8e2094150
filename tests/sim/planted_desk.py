"""Mistakes that a test plants one at a time into the desk: slips in the rules of its page that histories can see.

Each is the kind of slip that a change could bring in unseen. `plant` patches one method for the time of a test; nothing
here is ever on outside of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from cluster.desk.batcher import Batch
from cluster.desk.desk import Desk
from cluster.desk.groups import BeamGroup, BeamGroups
from cluster.desk.loops import DROPPED, GOES_ON, NEVER
from cluster.desk.names import BlockNames
from cluster.desk.report import Reporter
from cluster.desk.residence import Residence
from cluster.desk.rows import RowResident
from cluster.desk.words import Flight, GroupStep
from cluster.messages import Copy, Fork, GroupTables, Plan, Reason, Revoke, Start, Transferred

Patch = pytest.MonkeyPatch


def _freed_before_the_step_retired(patch: Patch) -> None:
    """Who is dropped is told to have stopped at once, though steps under way still write into its blocks."""
    end, stop = Residence.end, Reporter.stop
    told: set[int] = set()

    def hasty(self: Residence, row: int, reason: Reason, detail: str = "", outputs: Any = ()) -> None:
        books = self._books
        if books.batcher.in_flight[row] and reason is Reason.DROPPED and row not in books.groups.groups:
            books.reporter.stop(books.rows.at(row), reason, detail)
            told.add(books.rows.at(row).seq)
        end(self, row, reason, detail, outputs)

    def once(self: Reporter, resident: RowResident, *rest: Any) -> None:
        if resident.seq not in told:
            stop(self, resident, *rest)

    patch.setattr(Residence, "end", hasty)
    patch.setattr(Reporter, "stop", once)


def _dropped_sequence_keeps_its_lease(patch: Patch) -> None:
    def lazy(self: Desk, seq: int) -> None:
        row = self.rows.row_of.get(seq)
        if row is not None:
            self.reporter.stop(self.rows.at(row), Reason.DROPPED)

    patch.setattr(Desk, "_drop", lazy)


def _fork_without_its_tail(patch: Patch) -> None:
    wake = Residence._wake

    def bare(self: Residence, parent: RowResident) -> None:
        before = len(self._books.orders)
        wake(self, parent)
        del self._books.orders[before:]

    patch.setattr(Residence, "_wake", bare)


def _beams_drop_the_wrong_parent(patch: Patch) -> None:
    """What a dropped beam held is spare, though others hold it too."""
    permute = BeamGroups._permute

    def greedy(self: BeamGroups, group: BeamGroup, step: GroupStep) -> list[Copy]:
        full = int(self._batcher.position[group.leader]) // self._rows.block_size
        dropped = [
            block
            for slot, row in enumerate(group.rows.tolist())
            if slot not in step.parents
            for block in self._rows.table(row)[group.num_shared : full]
        ]
        copies = permute(self, group, step)
        group.purse += [block for block in dict.fromkeys(dropped) if block not in group.purse]
        return copies

    patch.setattr(BeamGroups, "_permute", greedy)


def _target_starts_before_its_last_block_came(patch: Patch) -> None:
    obey = Desk.obey

    def hasty(self: Desk, plan: Plan) -> None:
        obey(self, replace(plan, starts=tuple(replace(start, after=0) for start in plan.starts)))

    patch.setattr(Desk, "obey", hasty)


def _revoked_block_still_written(patch: Patch) -> None:
    revoke = Desk._revoke

    def stubborn(self: Desk, order: Revoke) -> None:
        row = self.rows.row_of.get(order.seq)
        kept = (0, 0) if row is None else (int(self.rows.num_blocks[row]), int(self.batcher.lease_end[row]))
        revoke(self, order)
        if row is not None:
            self.rows.num_blocks[row], self.batcher.lease_end[row] = kept

    patch.setattr(Desk, "_revoke", stubborn)


def _revoke_of_a_block_that_a_step_under_way_writes(patch: Patch) -> None:
    patch.setattr(Desk, "issued", lambda self, row: int(self.rows.written[row]))


def _end_told_without_its_reason(patch: Patch) -> None:
    """The last token goes out when it is drawn, and that it was the last only when the step behind it has retired."""
    end, move_out = Residence.end, Residence._move_out

    def late(self: Residence, row: int, reason: Reason, detail: str = "", outputs: Any = ()) -> None:
        outbox = self._books.outbox
        if self._books.batcher.in_flight[row]:
            outbox.end = lambda *rest: None  # type: ignore[method-assign]
        end(self, row, reason, detail, outputs)
        outbox.__dict__.pop("end", None)

    def telling(self: Residence, row: int, *rest: Any, **more: Any) -> None:
        self._books.rows.stopping[row] = GOES_ON
        move_out(self, row, *rest, **more)

    patch.setattr(Residence, "end", late)
    patch.setattr(Residence, "_move_out", telling)


def _names_outlive_what_they_name(patch: Patch) -> None:
    """A block that is given to somebody else keeps its name: a new scheduler shares what is no longer there."""
    patch.setattr(BlockNames, "forget", lambda self, blocks: None)


def _told_before_it_is_written(patch: Patch) -> None:
    """Positions count as written when their step is launched."""
    launched = Desk.launched

    def early(self: Desk, batch: Batch, num_steps: int = 1) -> Flight:
        flight = launched(self, batch, num_steps)
        self.rows.written[batch.rows] = self.batcher.position[batch.rows]
        return flight

    patch.setattr(Desk, "launched", early)


def _asks_only_once_for_a_longer_lease(patch: Patch) -> None:
    advance = Reporter.advance

    def forgetful(self: Reporter, resident: RowResident) -> None:
        advance(self, resident)
        rows = self._rows
        if rows.asked[resident.row] != NEVER:
            rows.asked[resident.row] = 0

    patch.setattr(Reporter, "advance", forgetful)


def _beams_never_ask_again(patch: Patch) -> None:
    near = BeamGroups.near_lease_end

    def once(self: BeamGroups, group: BeamGroup, ahead: int) -> GroupTables | None:
        told = near(self, group, ahead)
        group.asked = min(group.asked, 0) if told is not None else group.asked
        return told

    patch.setattr(BeamGroups, "near_lease_end", once)


def _tokens_behind_the_end_count(patch: Patch) -> None:
    end = Residence.end

    def on_and_on(self: Residence, row: int, *rest: Any) -> None:
        end(self, row, *rest)
        if row in self.leaving:
            self._books.rows.stopping[row] = DROPPED

    patch.setattr(Residence, "end", on_and_on)


def _forks_do_not_wait_for_their_prompt(patch: Patch) -> None:
    enter = Residence._enter_fork

    def hasty(self: Residence, start: Start, fork: Fork, parent: RowResident) -> None:
        enter(self, start, fork, parent)
        self._books.batcher.paused[parent.forks[-1]] = False

    patch.setattr(Residence, "_enter_fork", hasty)


def _forks_told_as_written_before_they_are(patch: Patch) -> None:
    wake = Residence._wake

    def early(self: Residence, parent: RowResident) -> None:
        self.written_for(parent.forks)
        wake(self, parent)

    patch.setattr(Residence, "_wake", early)


def _begins_though_its_transfer_failed(patch: Patch) -> None:
    transferred = Desk.transferred

    def hopeful(self: Desk, outcome: Transferred) -> None:
        starts = self.waiting.pop(outcome.transfer, [])
        transferred(self, outcome)
        for start in starts:
            self.residence.move_in(start)

    patch.setattr(Desk, "transferred", hopeful)


def _held_told_up_to_what_is_issued(patch: Patch) -> None:
    """A new scheduler is told of positions that no step has written yet."""

    def early(self: Reporter, resident: RowResident) -> int:
        position = int(self._rows.known[resident.row])
        self._told(resident.row, position, position)
        return position

    patch.setattr(Reporter, "hold", early)


def _rerouted_tokens_begin_where_the_old_gateway_was(patch: Patch) -> None:
    patch.setattr(Residence, "tell_again", lambda self, row: None)


def _group_runs_on_while_its_search_chooses(patch: Patch) -> None:
    enter = BeamGroups.enter

    def restless(self: BeamGroups, leader: int, start: Start) -> None:
        enter(self, leader, start)
        self._batcher.limit[self.groups[leader].rows] = NEVER

    patch.setattr(BeamGroups, "enter", restless)


def _tails_of_beams_not_copied(patch: Patch) -> None:
    permute = BeamGroups._permute

    def bare(self: BeamGroups, group: BeamGroup, step: GroupStep) -> list[Copy]:
        permute(self, group, step)
        return []

    patch.setattr(BeamGroups, "_permute", bare)


PLANTS: dict[str, Callable[[Patch], None]] = {
    name.strip("_").replace("_", " "): plant
    for name, plant in list(globals().items())
    if name.startswith("_") and not name.startswith("__") and callable(plant)
}
