"""Cuts one step's attention into tasks of bounded size, once per step for all layers.

A sequence's query tokens are cut into runs of rows, and a sequence with only one such run has its keys cut into parts,
so that one long sequence keeps all threads busy. Where the cuts fall depends on the sequence alone. The plan is arrays,
filled by compiled loops because it is made anew in every step; the kernels read it and nothing changes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from kernels.batch import AttentionBatch
from kernels.cpu.attention import (
    ITEM_FROM,
    ITEM_PARTIAL,
    ITEM_POSITION,
    ITEM_ROW,
    ITEM_TO,
    ITEM_TOKEN,
    ITEM_TOKENS,
    ITEM_WIDTH,
)
from kernels.cpu.inner import inner
from kernels.cpu.merge import MERGE_PARTIAL, MERGE_PARTS, MERGE_TOKEN, MERGE_TOKENS, MERGE_WIDTH
from kernels.cpu.shapes import Tiling

_INDEX_BITS: Final = 20


@dataclass(frozen=True)
class AttentionPlan:
    """The items of one step for one head geometry."""

    group: int
    block_size: int
    num_kv_heads: int
    items: NDArray[np.int32]  # [items, ITEM_WIDTH], the most work first
    merges: NDArray[np.int32]  # [merged items, MERGE_WIDTH]
    num_partial_rows: int
    num_row_keys: int  # query rows times keys, all heads of a group, one key/value head: how much work there is


def part_keys(tiling: Tiling, block_size: int) -> int:
    """Keys of one part: whole blocks. A sequence has as many parts as its context has whole ones, at least one."""
    return max(1, tiling.part_keys // block_size) * block_size


def build(batch: AttentionBatch, tiling: Tiling, *, group: int, num_kv_heads: int, block_size: int) -> AttentionPlan:
    """The plan of a batch for layers of this geometry."""
    items, merges, num_partial_rows, num_row_keys = cut_attention(
        batch.query_start.numpy(),
        batch.context_len.numpy(),
        batch.rows.numpy(),
        (group, num_kv_heads, tiling.tokens_per_task(group), part_keys(tiling, block_size)),
    )
    return AttentionPlan(group, block_size, num_kv_heads, items, merges, num_partial_rows, num_row_keys)


@inner
def put_in_order_of_work(work, order):
    """Fills `order` with the indices of `work`, the most first, equals in their old order."""
    size = work.size
    keys = np.empty(size, np.int64)
    for i in range(size):
        keys[i] = (work[i] << _INDEX_BITS) | (size - 1 - i)
    gap = 1
    while gap * 3 < size:
        gap = gap * 3 + 1
    while gap > 0:
        for i in range(gap, size):
            key = keys[i]
            at = i
            while at >= gap and keys[at - gap] < key:
                keys[at] = keys[at - gap]
                at -= gap
            keys[at] = key
        gap //= 3
    for i in range(size):
        order[i] = size - 1 - (keys[i] & ((1 << _INDEX_BITS) - 1))


@njit(error_model="numpy", nogil=True, cache=True)
def cut_attention(query_start, context_len, table_rows, geometry):
    """geometry: group, key/value heads, query tokens per task, keys per part. Returns what a Plan holds: items, merges,
    partial rows, row keys."""
    group, num_kv_heads, tokens_per_task, part_keys = geometry
    num_items = 0
    num_merges = 0
    for s in range(context_len.size):
        runs = -(-(query_start[s + 1] - query_start[s]) // tokens_per_task)
        parts = max(1, context_len[s] // part_keys) if runs == 1 else 1
        num_items += runs * parts
        num_merges += runs if parts > 1 else 0
    found = np.zeros((num_items, ITEM_WIDTH), np.int32)
    merges = np.zeros((num_merges, MERGE_WIDTH), np.int32)
    work = np.empty(num_items, np.int64)
    at = 0
    merge = 0
    partial_rows = 0
    row_keys = 0
    for s in range(context_len.size):
        first_query, context = query_start[s], context_len[s]
        queries = query_start[s + 1] - first_query
        runs = -(-queries // tokens_per_task)
        parts = max(1, context // part_keys) if runs == 1 else 1
        for run in range(runs):
            first = run * tokens_per_task
            tokens = min(queries - first, tokens_per_task)
            position = context - queries + first
            if parts > 1:
                merges[merge, MERGE_TOKEN] = first_query + first
                merges[merge, MERGE_TOKENS] = tokens
                merges[merge, MERGE_PARTIAL] = partial_rows
                merges[merge, MERGE_PARTS] = parts
                merge += 1
            for part in range(parts):
                begin = part * part_keys
                end = min(context, position + tokens) if part == parts - 1 else begin + part_keys
                found[at, ITEM_TOKEN] = first_query + first
                found[at, ITEM_TOKENS] = tokens
                found[at, ITEM_POSITION] = position
                found[at, ITEM_ROW] = table_rows[s]
                found[at, ITEM_FROM] = begin
                found[at, ITEM_TO] = end
                found[at, ITEM_PARTIAL] = partial_rows if parts > 1 else -1
                if parts > 1:
                    partial_rows += tokens * group * num_kv_heads
                work[at] = tokens * group * max(end - begin, 1)
                row_keys += work[at]
                at += 1
    order = np.empty(num_items, np.int64)
    put_in_order_of_work(work, order)
    items = np.empty((num_items, ITEM_WIDTH), np.int32)
    for i in range(num_items):
        # Word by word: an assignment of rows would bring in code for shapes that differ, a second of compiling.
        for word in range(ITEM_WIDTH):
            items[i, word] = found[order[i], word]
    return items, merges, partial_rows, row_keys
