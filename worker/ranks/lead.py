"""What rank 0 of a tensor-parallel replica tells the other ranks of each step: the batch, and tables that have changed.

The worker calls it between preparing a step and running it. Everything is on the host already, so that no rank waits
for a device. Sampled tokens reach the others as the ids of the next step; where that is issued before they are known
here, they go from device to device (`share`), and the words say which of them go where.
"""

from __future__ import annotations

import numpy as np
import torch

from kernels.batch import AttentionBatch
from worker.batch import Step, StepBuilder
from worker.ranks.team import STEP, Team
from worker.state import BatchState, Changes, Int32, Int64

# Places among a step's ids, and places among the tokens that were shared last.
Taken = tuple[Int64, Int64]
_NONE_TAKEN: Taken = (np.zeros(0, np.int64), np.zeros(0, np.int64))


class Lead:
    """Rank 0's side; `worker/ranks/member.py` is the other."""

    def __init__(self, team: Team, state: BatchState, builder: StepBuilder) -> None:
        self._team = team
        self._state = state
        self._builder = builder
        self._changes = Changes(state.rows)
        # Whether steps are issued before the tokens of the step before are known here.
        self.shares = False
        self._num_shared = 0

    def step(
        self, rows: Int32, step: Step, more_logits: Int64, taken: Taken | None = None, num_shared: int = 0
    ) -> None:
        """Everybody runs this step of these batch rows now; `more_logits`: tokens whose logits are wanted beside;
        `taken`: ids that come from the tokens that were shared last; `num_shared`: how many `share` will bring."""
        words = (*self._tables(), *self._builder.host(step), rows, more_logits, *(taken or _NONE_TAKEN))
        self._num_shared = num_shared if self.shares else 0
        self._team.say(STEP, *words, _sizes(step.attention, self._num_shared))

    def share(self, ids: torch.Tensor) -> None:
        """The tokens of the step that was said last, int64 [sampled], on their way to every rank."""
        if self._num_shared:
            self._team.share(ids)

    def _tables(self) -> tuple[Int64, Int32]:
        """Rows and numbers of blocks of the tables that have changed, and all their blocks in order."""
        state = self._state
        rows = self._changes.take()
        counts = state.num_blocks[rows]
        tables = [state.tables[row, :count] for row, count in zip(rows.tolist(), counts.tolist(), strict=True)]
        changes = np.stack([rows, counts.astype(np.int64)], axis=1)
        return changes, np.concatenate([np.zeros(0, np.int32), *tables])


def _sizes(batch: AttentionBatch, num_shared: int) -> list[int]:
    return [batch.max_query_len, batch.max_context_len, batch.num_decodes, num_shared]
