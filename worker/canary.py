"""A step of one token that belongs to nobody: how an idle worker proves that its device still computes.

The step loop has the worker run it when nothing else has run for a while. It goes the whole way of a step, over all
ranks, except that nothing is written: its one position counts as one that others hold, so no block is needed for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cluster.desk.batcher import Batch
from kernels.device.seam import device_of
from worker.batch import StepBuilder
from worker.ranks.lead import Lead
from worker.state import BatchState

if TYPE_CHECKING:
    from worker.model.startup import WorkerParts


class Canary:
    """Runs between two steps, never while one is under way."""

    def __init__(self, parts: WorkerParts, state: BatchState, builder: StepBuilder, lead: Lead | None) -> None:
        self._parts = parts
        self._state = state
        self._builder = builder
        self._lead = lead

    def run(self) -> bool:
        """Returns once the device has answered; False without a free batch row, for then there is work to prove it."""
        state, rows = self._state, self._state.rows
        if not rows.free:
            return False
        row = rows.take()
        rows.extend(row, 0, [0])
        state.tokens[row, 0] = 0
        # What lies before is never written; what is read there means nothing.
        state.write_from[row] = 1
        one = np.array([row], np.int32)
        batch = Batch(one, np.zeros(1, np.int32), np.ones(1, np.int32), 1, 1, 0)
        step = self._builder.build(batch, np.ones(state.max_batch, np.int32))
        self._parts.model.prepare(step.attention)
        if self._lead is not None:
            self._lead.step(step, np.zeros(0, np.int64))
        self._parts.model.forward(step.ids, step.positions, step.logit_rows)
        device_of(self._parts.device).current().wait()
        state.write_from[row] = 0
        rows.give_back(row)
        return True
