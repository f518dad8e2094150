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
from worker.state import BatchState, Int32, Int64
from worker.tables import TableChanges

# Places among a step's ids, and places among the tokens that were shared last.
Taken = tuple[Int64, Int64]
_NONE_TAKEN: Taken = (np.zeros(0, np.int64), np.zeros(0, np.int64))


class Lead:
    """Rank 0's side; `worker/ranks/member.py` is the other."""

    def __init__(self, team: Team, state: BatchState, builder: StepBuilder) -> None:
        self._team = team
        self._builder = builder
        self._changes = TableChanges(state.rows)
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
        """What is new in the tables: places in the flat tables, and the blocks that stand there."""
        return self._changes.take()


def _sizes(batch: AttentionBatch, num_shared: int) -> list[int]:
    return [batch.max_query_len, batch.max_context_len, batch.num_decodes, num_shared]
