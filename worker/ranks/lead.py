"""What rank 0 of a tensor-parallel replica tells the other ranks of each step: the batch, and tables that have changed.

The worker calls it between preparing a step and running it. Everything is on the host already, so that no rank waits
for a device; sampled tokens reach the others as the ids of the next step.
"""

from __future__ import annotations

import numpy as np

from kernels.batch import AttentionBatch
from worker.batch import Step, StepBuilder
from worker.ranks.team import STEP, Team
from worker.state import BatchState, Int32, Int64


class Lead:
    """Rank 0's side; `worker/ranks/member.py` is the other."""

    def __init__(self, team: Team, state: BatchState, builder: StepBuilder) -> None:
        self._team = team
        self._state = state
        self._builder = builder
        state.untold_tables = set()

    def step(self, rows: Int32, step: Step, more_logits: Int64) -> None:
        """Everybody runs this step of these batch rows now; `more_logits`: tokens whose logits are wanted beside."""
        self._team.say(STEP, *self._tables(), *self._builder.host(step), rows, more_logits, _sizes(step.attention))

    def _tables(self) -> tuple[Int64, Int32]:
        """Rows and numbers of blocks of the tables that have changed, and all their blocks in order."""
        state = self._state
        assert state.untold_tables is not None
        rows = sorted(state.untold_tables)
        state.untold_tables.clear()
        counts = state.num_blocks[rows]
        tables = [state.tables[row, :count] for row, count in zip(rows, counts.tolist(), strict=True)]
        changes = np.stack([np.array(rows, np.int64), counts.astype(np.int64)], axis=1)
        return changes, np.concatenate([np.zeros(0, np.int32), *tables])


def _sizes(batch: AttentionBatch) -> list[int]:
    return [batch.max_query_len, batch.max_context_len, batch.num_decodes]
