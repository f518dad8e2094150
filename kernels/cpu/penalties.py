"""Repetition, presence and frequency penalties in one pass over each row of logits, for the CPU.

The worker's penalties call it with the rows that ask for any; elsewhere the same arithmetic is done in torch. The loop
has no branches, so that it is vector code, and no contraction, so that both give the same bits.
"""

from __future__ import annotations

import numpy as np
from numba import njit

F32 = np.float32


@njit(error_model="numpy", nogil=True, cache=True)
def penalise_rows(values, rows, slots, seen, counts, factors):
    """Changes values[rows] in place. seen: bool, counts: fp32 [slots, vocabulary]; factors: fp32 [3, rows], which are
    repetition, presence, frequency."""
    for n in range(rows.size):
        row = values[rows[n]]
        was_seen = seen[slots[n]]
        count = counts[slots[n]]
        repetition, presence, frequency = factors[0, n], factors[1, n], factors[2, n]
        for i in range(row.size):
            value = row[i]
            penalised = value * repetition if value < F32(0.0) else value / repetition
            value = penalised if was_seen[i] else value
            written = count[i]
            value -= presence if written > F32(0.0) else F32(0.0)
            row[i] = value - written * frequency
