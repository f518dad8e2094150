"""How a step is laid out in the arrays that a device reads, compiled so that no Python runs per row.

`worker/batch.py` and `worker/tables.py` call it once per step. In numpy it is a dozen calls on cold caches, which a
small model feels in every step. It touches only the arrays that it is given.
"""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(error_model="numpy", nogil=True, cache=True)
def fill_step(batch, state, out, padded):
    """Lays out the tokens of a step, and behind a step of decodes as many as fill it up to `padded` rows: they see and
    write nothing.

    batch: rows, starts, counts, int32 [rows]. state: lengths int32 [max_batch] (tokens in flight included), tokens
    int32 [max_batch, max_len], tables int32 [max_batch, blocks], write_from and known int32 [max_batch], source int32
    [max_batch] (where in the step before this one a row gets its token, -1: it gets none), block size. out: sampled
    int32 [rows], ids, positions, slots int64 [tokens], context_len int32 [rows], query_start int32 [rows + 1],
    logit_rows int64 [rows], whose and taken int32 [rows]: rows of the state, and where ids that the host does not know
    come from, -1: it knows them. Returns how many rows are sampled and how many ids taken, the longest query and the
    longest context.
    """
    rows, starts, counts = batch
    lengths, tokens, tables, write_from, known, source, size = state
    sampled, ids, positions, slots, context_len, query_start, logit_rows, whose, taken = out
    at = 0
    num_sampled = 0
    num_taken = 0
    longest_query = np.int64(0)
    longest_context = np.int64(0)
    query_start[0] = 0
    for i in range(rows.size):
        row, start, count = rows[i], np.int64(starts[i]), np.int64(counts[i])
        end = start + count
        first_written = np.int64(write_from[row])
        whose[i] = row
        taken[i] = -1
        # Decodes come first, so that the place of their token is theirs.
        if at == i and count == 1 and start >= known[row] and source[row] >= 0:
            taken[i] = source[row]
            num_taken += 1
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
    for i in range(rows.size, padded):
        ids[i] = positions[i] = 0
        slots[i] = -1
        context_len[i] = whose[i] = 0
        query_start[i + 1] = i + 1
        taken[i] = -1
    for i in range(num_sampled, padded):
        logit_rows[i] = 0
    return num_sampled, num_taken, longest_query, longest_context


@njit(error_model="numpy", nogil=True, cache=True)
def find_changes(rows, tables, num_blocks, copy, places):
    """Where the tables of these rows differ from `copy`, which is brought up to date.

    tables, copy int32 [max_batch, blocks]; places int64, as many as they can be: places in the flat tables. Returns how
    many there are.
    """
    count = 0
    width = tables.shape[1]
    for i in range(rows.size):
        row = rows[i]
        for at in range(num_blocks[row]):
            if tables[row, at] != copy[row, at]:
                copy[row, at] = tables[row, at]
                places[count] = row * width + at
                count += 1
    return count
