"""How many steps a desk takes in which nothing comes to be told: who plans with it need not take them one by one."""

from __future__ import annotations

import numpy as np
from numba import njit

from cluster.desk.batcher import Batch
from cluster.desk.desk import Desk
from cluster.desk.loops import NEVER


def quiet_steps(desk: Desk, batch: Batch, allowed: int) -> int:
    """After how many steps of this batch, which is all there is to run, something is to be told. 1: a prompt is
    computed, or somebody stands still."""
    if allowed == 1 or batch.num_decodes != len(batch.rows) or batch.num_dry or desk.steps.flights:
        return 1
    rows, batcher = desk.rows, desk.batcher
    if desk.beams.groups or len(batch.rows) != len(rows.row_of):
        return 1
    state = rows.written, batcher.lease_end, batcher.limit, rows.asked, rows.known, rows.end, rows.num_start
    return int(_quiet_steps(batch.rows, state, desk.reporter.ahead, allowed))


@njit(error_model="numpy", nogil=True, cache=True)
def _quiet_steps(rows, state, ahead, allowed):
    """After how many steps of these rows of decodes the first of them ends or reports: `find_reports`, ahead of time.

    state: written, lease_end, limit, asked, known, ends, num_start int32 [max_batch]. No step is under way.
    """
    written, lease_end, limit, asked, known, ends, num_start = state
    most = np.int64(allowed)
    for i in range(rows.size):
        row = rows[i]
        left = np.int64(lease_end[row] - written[row])
        most = min(most, left, np.int64(ends[row] - known[row]))
        if asked[row] == NEVER and lease_end[row] < limit[row]:
            most = min(most, left - ahead)
        if written[row] < num_start[row]:
            most = np.int64(1)
    return max(most, np.int64(1))
