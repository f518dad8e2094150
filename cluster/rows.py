"""Numbers for the attempts of sequences: `seq` is unique for ever, its low bits a dense row that is used again.

A stale message names a seq whose row belongs to nobody or to a later attempt, so one look-up refuses it.
"""

from __future__ import annotations

from cluster.messages import MAX_ROWS, ROW_BITS
from cluster.sequences import Sequence

ROW_MASK = MAX_ROWS - 1


class Rows:
    """All attempts of the cluster that run now."""

    def __init__(self, first_attempt: int = 1) -> None:
        self.by_row: list[Sequence | None] = []
        self._free: list[int] = []
        self._attempts = first_attempt

    def enter(self, sequence: Sequence) -> int:
        if self._free:
            row = self._free.pop()
            self.by_row[row] = sequence
        else:
            row = len(self.by_row)
            assert row < MAX_ROWS, f"more than {MAX_ROWS:,} sequences run at once"
            self.by_row.append(sequence)
        sequence.seq = self._attempts << ROW_BITS | row
        self._attempts += 1
        return sequence.seq

    def leave(self, sequence: Sequence) -> None:
        row = sequence.seq & ROW_MASK
        assert self.by_row[row] is sequence, f"{sequence} left its row {row} twice"
        self.by_row[row] = None
        self._free.append(row)
        sequence.seq = 0

    def get(self, seq: int) -> Sequence | None:
        row = seq & ROW_MASK
        sequence = self.by_row[row] if row < len(self.by_row) else None
        return sequence if sequence is not None and sequence.seq == seq else None

    def __len__(self) -> int:
        return len(self.by_row) - len(self._free)
