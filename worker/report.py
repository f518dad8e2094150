"""What a worker tells the scheduler, gathered between two results: advances, ends, answers.

The worker notes what happened while it steps; `take` makes one numbered Result of it, which `worker/replica_stream.py`
keeps until the scheduler has taken it. Names of generated blocks are made here, when they are reported and not before.
"""

from __future__ import annotations

from dataclasses import replace

from cluster.messages import Advances, GroupTables, Ids, Reason, Result, Revoked, Stopped, Transferred
from worker.state import BatchState, Resident


class Reporter:
    """One worker's side of the result stream. Numbers run from 1 within an epoch of the scheduler."""

    def __init__(self, state: BatchState, replica: str, incarnation: int) -> None:
        self._state = state
        self._replica = replica
        self._incarnation = incarnation
        self._epoch = 0
        self._number = 0
        self._plan = 0
        self._forget_news()
        # Steps in which a sequence stood still, since the last result.
        self.num_dry = 0

    def _forget_news(self) -> None:
        self._advances = Advances()
        self._hashes: list[bytes] = []
        self._stopped: list[Stopped] = []
        self._revoked: list[Revoked] = []
        self._groups: list[GroupTables] = []
        self._transferred: list[Transferred] = []
        self._has_news = False

    @property
    def has_news(self) -> bool:
        """Whether there is anything to take."""
        return self._has_news

    @property
    def has_ends(self) -> bool:
        """Whether the next result tells of a sequence that has ended."""
        return bool(self._stopped)

    def begin_epoch(self, epoch: int) -> None:
        """A new scheduler: it knows nothing of what its forerunner was told, and is told all that is held instead."""
        self._epoch = epoch
        self._number = 0
        self._forget_news()

    def obeyed(self, plan: int) -> None:
        """The next result says so."""
        self._plan = plan
        self._has_news = True

    def advance(self, resident: Resident, position: int) -> None:
        """A sequence filled blocks or comes near the end of its lease."""
        state, row = self._state, resident.row
        advances = self._advances
        advances.seqs.append(resident.seq)
        advances.positions.append(position)
        known, before = int(state.known[row]), int(state.reported_known[row])
        advances.num_ids.append(known - before)
        if known > before:
            advances.ids.frombytes(state.tokens[row, before:known].tobytes())
        hashes = self._names(resident, position)
        advances.num_hashes.append(len(hashes))
        self._hashes.extend(hashes)
        state.reported[row] = position
        state.reported_known[row] = known
        self._has_news = True

    def stop(
        self,
        resident: Resident,
        position: int,
        reason: Reason,
        detail: str = "",
        group: tuple[tuple[Ids, ...], bytes] = ((), b""),
    ) -> None:
        """An attempt has ended, and no step can touch its blocks any more. `group`: tables and search of a group of
        beams that was dropped."""
        state, row = self._state, resident.row
        ids = state.ids(row, int(state.reported_known[row]), int(state.known[row]))
        hashes = b"".join(self._names(resident, position))
        self._stopped.append(Stopped(resident.seq, reason, position, ids, hashes, detail, *group))
        self._has_news = True

    def stop_unknown(self, seq: int, detail: str) -> None:
        """A sequence that never moved in."""
        self._stopped.append(Stopped(seq, Reason.FAILED, 0, self._state.ids(0, 0, 0), b"", detail))
        self._has_news = True

    def group(self, tables: GroupTables) -> None:
        """A beam group comes near the end of its lease."""
        self._groups.append(tables)
        self._has_news = True

    def revoke(self, seq: int, lease_end: int) -> None:
        self._revoked.append(Revoked(seq, lease_end))
        self._has_news = True

    def transferred(self, outcome: Transferred) -> None:
        self._transferred.append(outcome)
        self._has_news = True

    def _names(self, resident: Resident, position: int) -> list[bytes]:
        """Names of the blocks that were filled since the last report, behind the prompt's full blocks."""
        if resident.hasher is None:
            return []
        state, row, size = self._state, resident.row, self._state.block_size
        first, end = int(state.reported[row]) // size, position // size
        names = []
        for block in range(resident.num_chained, end):
            tokens = state.tokens[row, block * size : (block + 1) * size].tobytes()
            resident.chain = resident.hasher.extend(resident.chain, tokens)
            if block >= first:
                names.append(resident.chain)
        resident.num_chained = max(resident.num_chained, end)
        return names

    def take(self, *, step: int, prefill_waiting: int, step_seconds: float) -> Result | None:
        """All news as one Result, numbered; None if there is none."""
        if not self._has_news or not self._epoch:
            return None
        self._number += 1
        result = Result(
            replica=self._replica,
            incarnation=self._incarnation,
            epoch=self._epoch,
            number=self._number,
            plan=self._plan,
            step=step,
            advances=replace(self._advances, hashes=b"".join(self._hashes)) if self._hashes else self._advances,
            stopped=tuple(self._stopped),
            revoked=tuple(self._revoked),
            groups=tuple(self._groups),
            transferred=tuple(self._transferred),
            dry=self.num_dry,
            prefill_waiting=prefill_waiting,
            step_seconds=step_seconds,
        )
        self.num_dry = 0
        self._forget_news()
        return result
