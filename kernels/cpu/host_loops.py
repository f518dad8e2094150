"""Loops that the host runs once per step over the rows of a batch, compiled so that no Python runs per row.

`worker/batch.py` and `worker/worker.py` call them around a step. In numpy each is a dozen calls on cold caches,
which a small model feels in every step. They touch only the arrays that they are given.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import njit

NEVER: Final = 2**31 - 1


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


@njit(error_model="numpy", nogil=True, cache=True)
def take_tokens(rows, ids, broken, state, ended, reasons):
    """Notes the sampled tokens and finds the rows that end with them.

    state: tokens int32 [max_batch, max_len], known, ends int32 [max_batch], stops int32 [max_batch, width] (-1: none).
    ended: int32 [rows], reasons int32 [rows]: 1 a stop id, 2 the length, 3 no number, for the first so many. Returns
    how many end.
    """
    tokens, known, ends, stops = state
    count = 0
    for i in range(rows.size):
        row = rows[i]
        token = ids[i]
        reason = 0
        if broken[i]:
            reason = 3
        else:
            tokens[row, known[row]] = token
            known[row] += 1
            if known[row] >= ends[row]:
                reason = 2
            for column in range(stops.shape[1]):
                if stops[row, column] == token:
                    reason = 1
        if reason:
            ended[count] = row
            reasons[count] = reason
            count += 1
    return count


@njit(error_model="numpy", nogil=True, cache=True)
def find_reports(rows, batcher, state, ahead, size, found):
    """Rows that the scheduler is to hear of: near their lease's end, or with a block of their prompt filled.

    batcher: resident bool, position, lease_end int32 [max_batch]. state: limit, asked, reported, num_prompt int32
    [max_batch]; `asked` is written. Asked once ahead of need, and once more where a row stands still: the scheduler may
    have thought it too early. Returns how many were put into `found`.
    """
    resident, positions, lease_end = batcher
    limit, asked, reported, num_prompt = state
    count = 0
    for i in range(rows.size):
        row = rows[i]
        if not resident[row]:
            continue
        position = positions[row]
        left = lease_end[row] - position
        near = left <= ahead and lease_end[row] < limit[row]
        near = near and (asked[row] == NEVER or (left == 0 and asked[row] > 0))
        filled = position // size > reported[row] // size and position <= num_prompt[row]
        if near:
            asked[row] = left
        if near or filled:
            found[count] = row
            count += 1
    return count


@njit(error_model="numpy", nogil=True, cache=True)
def most_steps(rows, state, part_keys, allowed):
    """How many steps these rows of decodes can run without the host, at most `allowed`.

    state: position, lease_end, known, ends int32 [max_batch]. No step reaches behind a lease or a sequence's end, and
    none after the first has a context that is a multiple of `part_keys`.
    """
    position, lease_end, known, ends = state
    most = np.int64(allowed)
    for i in range(rows.size):
        row = rows[i]
        context = np.int64(position[row]) + 1
        most = min(most, np.int64(lease_end[row] - position[row]), np.int64(ends[row] - known[row]))
        most = min(most, part_keys - context % part_keys)
    return max(most, np.int64(1))


@njit(error_model="numpy", nogil=True, cache=True)
def append_tokens(rows, steps, tokens, known):
    """Notes tokens of several steps after which no row ends: steps int64 [steps, rows]."""
    for i in range(rows.size):
        row = rows[i]
        for step in range(steps.shape[0]):
            tokens[row, known[row]] = steps[step, i]
            known[row] += 1


def warm_up() -> None:
    """Compiles what comes after a step, or finds it in the cache, so that no request waits for it; `fill_step` comes
    with the first step."""
    rows, each, grid = np.zeros(0, np.int32), np.zeros(1, np.int32), np.zeros((1, 1), np.int32)
    flags, ids = np.zeros(1, np.bool_), np.zeros((1, 0), np.int64)
    take_tokens(rows, ids[0], flags[:0], (grid, each, each, grid), each, each)
    find_reports(rows, (flags, each, each), (each, each, each, each), 1, 1, each)
    most_steps(rows, (each, each, each, each), 1, 1)
    append_tokens(rows, ids, grid, each)
