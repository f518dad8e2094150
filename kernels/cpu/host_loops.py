"""How a step is laid out in the arrays that a device reads, compiled so that no Python runs per row.

`worker/batch.py` calls it once per step. In numpy it is a dozen calls on cold caches, which a small model feels in
every step. It touches only the arrays that it is given.
"""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(error_model="numpy", nogil=True, cache=True)
def fill_step(batch, state, out):
    """Lays out the tokens of a step.

    batch: rows, starts, counts, int32 [rows]. state: lengths int32 [max_batch] (tokens in flight included), tokens
    int32 [max_batch, max_len], tables int32 [max_batch, blocks], write_from int32 [max_batch], block size. out: ids,
    positions, slots int64 [tokens], context_len int32 [rows], query_start int32 [rows + 1], sampled int32 [rows],
    logit_rows int64 [rows]. Returns how many rows are sampled, the longest query and the longest context.
    """
    rows, starts, counts = batch
    lengths, tokens, tables, write_from, size = state
    ids, positions, slots, context_len, query_start, sampled, logit_rows = out
    at = 0
    num_sampled = 0
    longest_query = np.int64(0)
    longest_context = np.int64(0)
    query_start[0] = 0
    for i in range(rows.size):
        row, start, count = rows[i], np.int64(starts[i]), np.int64(counts[i])
        end = start + count
        first_written = np.int64(write_from[row])
        for position in range(start, end):
            ids[at] = tokens[row, position]
            positions[at] = position
            block = np.int64(tables[row, position // size])
            slots[at] = block * size + position % size if position >= first_written else -1
            at += 1
        query_start[i + 1] = at
        context_len[i] = end
        longest_query = max(longest_query, count)
        longest_context = max(longest_context, end)
        if end == lengths[row]:
            sampled[num_sampled] = row
            logit_rows[num_sampled] = at - 1
            num_sampled += 1
    return num_sampled, longest_query, longest_context
