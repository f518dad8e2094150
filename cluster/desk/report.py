"""What the scheduler is told, gathered between two results: advances, ends, answers.

The desk notes what happened while it steps; `take` makes one numbered Result of it, which whoever carries it keeps
until the scheduler has taken it. Names of blocks are made here, when they are reported and not before.
"""

from __future__ import annotations

from dataclasses import replace

from cluster.desk.departures import Departures
from cluster.desk.names import BlockNames
from cluster.desk.rows import RowResident, Rows
from cluster.messages import Advances, GroupTables, Ids, Reason, Result, Revoked, Stopped, Transferred, ids


class Reporter:
    """One desk's side of the result stream. Numbers run from 1 within an epoch of the scheduler."""

    def __init__(self, rows: Rows, names: BlockNames, replica: str, incarnation: int) -> None:
        self._rows = rows
        self._names = names
        self._replica = replica
        self._incarnation = incarnation
        self.epoch = 0
        # The last plan that was obeyed in this epoch.
        self.plan = 0
        # A sequence reports when so many slots are left of its lease.
        self.ahead = 0
        self._number = 0
        self._forget_news()
        # Gateways that take nothing from here at the moment.
        self.unreached: tuple[str, ...] = ()
        # Steps in which a sequence stood still, since the last result.
        self.num_dry = 0
        self.departures = Departures()

    def _forget_news(self) -> None:
        self._advances = Advances()
        self._hashes: list[bytes] = []
        self._stopped: list[Stopped] = []
        self._revoked: list[Revoked] = []
        self._groups: list[GroupTables] = []
        self._transferred: list[Transferred] = []
        self.has_news = False

    @property
    def has_ends(self) -> bool:
        """Whether the next result tells of a sequence that has ended."""
        return bool(self._stopped)

    def begin_epoch(self, epoch: int) -> None:
        """A new scheduler: it knows nothing of what its forerunner was told, and is told all that is held instead."""
        self.epoch = epoch
        self.plan = self._number = 0
        self._forget_news()
        self.has_news = bool(self.unreached)

    def obeyed(self, plan: int) -> None:
        """The next result says so."""
        self.plan = plan
        self.has_news = True

    def advance(self, resident: RowResident) -> None:
        """How far a sequence is, and all that became known of it since its last report."""
        rows, row = self._rows, resident.row
        position, known, before = int(rows.written[row]), int(rows.known[row]), int(rows.reported_known[row])
        advances = self._advances
        advances.seqs.append(resident.seq)
        advances.positions.append(position)
        advances.num_ids.append(known - before)
        if known > before:
            advances.ids.frombytes(rows.tokens[row, before:known].tobytes())
        hashes = self._names.fill(resident, position)
        advances.num_hashes.append(len(hashes))
        self._hashes.extend(hashes)
        self._told(row, position, known)
        self.has_news = True

    def _told(self, row: int, position: int, known: int) -> None:
        self._rows.reported[row] = position
        self._rows.reported_known[row] = known

    def hold(self, resident: RowResident) -> int:
        """A new scheduler is told all of a sequence, which counts as a report; returns how far it is."""
        row = resident.row
        position = int(self._rows.written[row])
        self._names.fill(resident, position)
        self._told(row, position, int(self._rows.known[row]))
        return position

    def stop(
        self, resident: RowResident, reason: Reason, detail: str = "", group: tuple[tuple[Ids, ...], bytes] = ((), b"")
    ) -> None:
        """An attempt has ended, and no step can touch its blocks any more. `group`: tables and search of a group of
        beams that was dropped."""
        rows, row = self._rows, resident.row
        position = int(rows.written[row])
        new = rows.ids(row, int(rows.reported_known[row]), int(rows.known[row]))
        hashes = b"".join(self._names.fill(resident, position))
        self._stopped.append(Stopped(resident.seq, reason, position, new, hashes, detail, *group))
        self.departures.note(resident, reason, rows.ids(row, 0, int(rows.known[row])))
        self.has_news = True

    def stop_unknown(self, seq: int, detail: str) -> None:
        """A sequence that never moved in."""
        self._stopped.append(Stopped(seq, Reason.FAILED, 0, ids(), b"", detail))
        self.has_news = True

    def group(self, tables: GroupTables) -> None:
        """A beam group comes near the end of its lease."""
        self._groups.append(tables)
        self.has_news = True

    def revoke(self, seq: int, lease_end: int) -> None:
        self._revoked.append(Revoked(seq, lease_end))
        self.has_news = True

    def transferred(self, outcome: Transferred) -> None:
        self._transferred.append(outcome)
        self.has_news = True

    def cannot_reach(self, gateways: tuple[str, ...]) -> None:
        self.has_news |= gateways != self.unreached
        self.unreached = gateways

    def take(self, *, step: int, prefill_waiting: int, step_seconds: float) -> Result | None:
        """All news as one Result, numbered; None if there is none."""
        if not self.has_news or not self.epoch:
            return None
        self._number += 1
        result = Result(
            replica=self._replica,
            incarnation=self._incarnation,
            epoch=self.epoch,
            number=self._number,
            plan=self.plan,
            step=step,
            advances=replace(self._advances, hashes=b"".join(self._hashes)) if self._hashes else self._advances,
            stopped=tuple(self._stopped),
            revoked=tuple(self._revoked),
            groups=tuple(self._groups),
            transferred=tuple(self._transferred),
            dry=self.num_dry,
            prefill_waiting=prefill_waiting,
            step_seconds=step_seconds,
            unreached=self.unreached,
        )
        self.num_dry = 0
        self._forget_news()
        return result
