"""Loops that run once per step over the rows of a batch, compiled so that no Python runs per row.

`steps.py` calls them around a step. In numpy each is a dozen calls on cold caches, which a small model feels in every
step. They touch only the arrays that they are given.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import njit

NEVER: Final = 2**31 - 1
# How a row is on its way out, as `Rows.stopping` has it: its own tokens ended it, and what steps under way draw for it
# means nothing; or it was dropped, and their tokens count.
GOES_ON: Final = 0
DROPPED: Final = 1
ENDED: Final = 2
# Why a row ends with the token that it drew, as `take_tokens` says it.
STOP, LENGTH, BROKEN = 1, 2, 3


@njit(error_model="numpy", nogil=True, cache=True)
def find_ready(state, found):
    """The rows that can run, in order.

    state: resident, paused, held bool, position, length, lease_end, width int32 [max_batch]. found: int64
    [2, max_batch]: decodes, which have one token to compute, and prefills, which have more; a held row is no decode.
    Returns how many decodes and prefills there are, the tokens that the decodes take, and the rows that stand still at
    the end of their leases.
    """
    resident, paused, held, position, length, lease_end, width = state
    num_decodes = 0
    num_prefills = 0
    num_tokens = 0
    num_dry = 0
    for row in range(resident.size):
        if not resident[row] or paused[row]:
            continue
        if min(length[row], lease_end[row]) <= position[row]:
            num_dry += 1
        elif length[row] - position[row] == 1:
            if held[row]:
                continue
            found[0, num_decodes] = row
            num_decodes += 1
            num_tokens += width[row]
        else:
            found[1, num_prefills] = row
            num_prefills += 1
    return num_decodes, num_prefills, num_tokens, num_dry


@njit(error_model="numpy", nogil=True, cache=True)
def issue(batch, state, num_steps, sampled):
    """A step was launched: its positions are taken.

    batch: rows, starts, counts int32 [rows]. state: position, length, in_flight, limit int32, paused bool [max_batch].
    A row that can write nothing more pauses, its last token is coming; so does a group of beams, whose limit is 0,
    until its search has chosen. Puts the rows that get a token into `sampled`, and returns how many.
    """
    rows, starts, counts = batch
    position, length, in_flight, limit, paused = state
    count = 0
    for i in range(rows.size):
        row = rows[i]
        in_flight[row] += 1
        end = starts[i] + counts[i]
        position[row] = end + num_steps - 1
        if end == length[row]:
            sampled[count] = row
            count += 1
            length[row] += num_steps
            if position[row] >= limit[row]:
                paused[row] = True
    return count


@njit(error_model="numpy", nogil=True, cache=True)
def land(batch, num_steps, in_flight, written, stopping):
    """A step has retired: its positions are written, but for those of rows that had ended before.

    batch: rows, starts, counts int32 [rows]; in_flight, written int32, stopping int8 [max_batch].
    """
    rows, starts, counts = batch
    for i in range(rows.size):
        row = rows[i]
        in_flight[row] -= 1
        if stopping[row] != 2:
            written[row] = max(written[row], starts[i] + counts[i] + num_steps - 1)


@njit(error_model="numpy", nogil=True, cache=True)
def take_tokens(rows, drawn, state, ended, reasons):
    """Notes the sampled tokens and finds the rows that end with them.

    drawn: earlier int64 [steps - 1, rows] (after these no row ends), ids int64 [rows], broken bool [rows]. state:
    tokens int32 [max_batch, max_len], known, ends int32, stops int32 [max_batch, width] (-1: none), stopping int8.
    ended: int32 [rows], reasons int32 [rows]: 1 a stop id, 2 the length, 3 no number, for the first so many. Returns
    how many end.
    """
    earlier, ids, broken = drawn
    tokens, known, ends, stops, stopping = state
    count = 0
    for i in range(rows.size):
        row = rows[i]
        if stopping[row] == 2:
            continue
        for step in range(earlier.shape[0]):
            tokens[row, known[row]] = earlier[step, i]
            known[row] += 1
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
    """Rows that the scheduler is to hear of: near their lease's end, or with a block filled of what they came with.

    batcher: resident bool, lease_end int32 [max_batch]. state: written, limit, asked, reported, num_start int32,
    stopping int8 [max_batch]; `asked` is written. A row asks once ahead of need, and once more where it stands still:
    the scheduler may have thought it too early. Returns how many were put into `found`.
    """
    resident, lease_end = batcher
    written, limit, asked, reported, num_start, stopping = state
    count = 0
    for i in range(rows.size):
        row = rows[i]
        if not resident[row] or stopping[row] != 0:
            continue
        position = written[row]
        left = lease_end[row] - position
        near = left <= ahead and lease_end[row] < limit[row]
        near = near and (asked[row] == NEVER or (left == 0 and asked[row] > 0))
        # Of several steps in one go the last may be far behind that block.
        filled = min(position, num_start[row]) // size > reported[row] // size
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


def warm_up() -> None:
    """Compiles all of them, or finds them in the cache, so that no request waits for it."""
    rows, each, grid = np.zeros(0, np.int32), np.zeros(1, np.int32), np.zeros((1, 1), np.int32)
    flags, kinds, ids = np.zeros(1, np.bool_), np.zeros(1, np.int8), np.zeros((1, 0), np.int64)
    find_ready((flags, flags, flags, each, each, each, each), np.zeros((2, 1), np.int64))
    issue((rows, rows, rows), (each, each, each, each, flags), 1, each)
    land((rows, rows, rows), 1, each, each, kinds)
    take_tokens(rows, (ids, ids[0], flags[:0]), (grid, each, each, grid, kinds), each, each)
    find_reports(rows, (flags, each), (each, each, each, each, each, kinds), 1, 1, each)
    most_steps(rows, (each, each, each, each), 1, 1)
