"""Several steps of decodes in one call, where nothing can come in between: what the host does per step is then done
once for all of them.

The worker asks before it launches a batch of decodes that ask for no more than their likeliest token or a draw. A run
is bounded by every lease, by the length at which a sequence ends, and by what the caller allows; a stop id ends it by
itself. Tokens are the same as step by step.
"""

from __future__ import annotations

import numpy as np

from cluster.batcher import Batch, Batcher
from kernels.cpu.host_loops import most_steps
from worker.model.model import Model
from worker.sampling.sampler import Sampler
from worker.state import BatchState


class RunAhead:
    """Decides for one worker how many steps a batch may run at once."""

    def __init__(self, model: Model, state: BatchState, batcher: Batcher, sampler: Sampler) -> None:
        self._model = model
        self._state = state
        self._batcher = batcher
        self._sampler = sampler

    def num_steps(self, batch: Batch, allowed: int) -> int:
        """At least 1. More only for a batch of decodes that is all that there is to run."""
        if allowed == 1 or batch.num_decodes != len(batch.rows) or batch.num_dry or not self._model.runs_ahead:
            return 1
        batcher, state = self._batcher, self._state
        if np.any(batcher.width[batch.rows] > 1) or not self._sampler.is_plain(batch.rows):
            return 1
        part = self._model.keys_per_cut
        return int(most_steps(batch.rows, (batcher.position, batcher.lease_end, state.known, state.end), part, allowed))
