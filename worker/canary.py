"""A step of one token that belongs to nobody: how an idle worker proves that its device still computes.

The step loop has the worker run it when nothing else has run for a while. It goes the whole way of a step, over all
ranks, except that nothing is written: its one position counts as one that others hold, so no block is needed for it.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

import numpy as np

from cluster.batcher import Batch
from worker.batch import StepBuilder
from worker.ranks.lead import Lead
from worker.state import BatchState

if TYPE_CHECKING:
    from worker.model.startup import Started


class Canary:
    """Runs between two steps, never while one is under way."""

    def __init__(self, parts: Started, state: BatchState, builder: StepBuilder, lead: Lead | None) -> None:
        self._parts = parts
        self._state = state
        self._builder = builder
        self._lead = lead

    def run(self) -> bool:
        """Returns once the device has answered; False without a free batch row, for then there is work to prove it."""
        state = self._state
        if not state.num_free_rows:
            return False
        row = state.enter_beam()
        state.extend(row, 0, array("i", [0]))
        state.tokens[row, 0] = 0
        # What lies before is never written; what is read there means nothing.
        state.write_from[row] = 1
        rows = np.array([row], np.int32)
        batch = Batch(rows, np.zeros(1, np.int32), np.ones(1, np.int32), 1, 1, 0)
        step = self._builder.build(batch, np.ones(state.max_batch, np.int32))
        self._parts.model.prepare(step.attention)
        if self._lead is not None:
            self._lead.step(rows, step, np.zeros(0, np.int64))
        logits = self._parts.model.forward(step.ids, step.positions, step.logit_rows)
        # Reading a number waits for the device.
        logits[0, 0].item()
        state.write_from[row] = 0
        state.leave_beam(row)
        return True
