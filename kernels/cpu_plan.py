"""Cuts one step's attention into tasks of bounded size, once per step for all layers.

A sequence's query tokens are cut into runs of rows, and a sequence with only one such run has its keys cut into parts,
so that one long sequence keeps all threads busy. Where the cuts fall depends on the sequence alone. The plan is plain
numpy; the kernels read it and nothing changes it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kernels.batch import AttentionBatch
from kernels.cpu_attention import (
    ITEM_FROM,
    ITEM_PARTIAL,
    ITEM_POSITION,
    ITEM_ROW,
    ITEM_TO,
    ITEM_TOKEN,
    ITEM_TOKENS,
    ITEM_WIDTH,
)
from kernels.cpu_merge import MERGE_PARTIAL, MERGE_PARTS, MERGE_TOKEN, MERGE_TOKENS, MERGE_WIDTH
from kernels.cpu_shapes import Tiling


@dataclass(frozen=True)
class Plan:
    """The items of one step for one head geometry."""

    group: int
    block_size: int
    num_kv_heads: int
    items: NDArray[np.int32]  # [items, ITEM_WIDTH], the most work first
    merges: NDArray[np.int32]  # [merged items, MERGE_WIDTH]
    num_partial_rows: int
    num_row_keys: int  # query rows times keys, all heads of a group, one key/value head: how much work there is


def build(batch: AttentionBatch, tiling: Tiling, *, group: int, num_kv_heads: int, block_size: int) -> Plan:
    """The plan of a batch for layers of this geometry."""
    tokens_per_task = tiling.tokens_per_task(group)
    starts = batch.query_start.numpy().astype(np.int64)
    contexts, table_rows = batch.context_len.numpy().astype(np.int64), batch.rows.numpy()
    queries = np.diff(starts)
    runs = -(-queries // tokens_per_task)
    part_keys = max(1, tiling.part_keys // block_size) * block_size
    parts = np.where(runs == 1, np.maximum(1, contexts // part_keys), 1)
    counts = runs * parts
    seq = np.repeat(np.arange(len(queries)), counts)
    within = np.arange(len(seq)) - np.repeat(np.cumsum(counts) - counts, counts)
    run, part = within // parts[seq], within % parts[seq]

    items = np.zeros((len(seq), ITEM_WIDTH), dtype=np.int32)
    first = run * tokens_per_task
    tokens = np.minimum(queries[seq] - first, tokens_per_task)
    position = contexts[seq] - queries[seq] + first
    last_part = part == parts[seq] - 1
    items[:, ITEM_TOKEN] = starts[seq] + first
    items[:, ITEM_TOKENS] = tokens
    items[:, ITEM_POSITION] = position
    items[:, ITEM_ROW] = table_rows[seq]
    items[:, ITEM_FROM] = part * part_keys
    items[:, ITEM_TO] = np.where(last_part, np.minimum(contexts[seq], position + tokens), (part + 1) * part_keys)

    split = parts[seq] > 1
    partial_rows = np.where(split, tokens * (group * num_kv_heads), 0)
    partial_from = np.cumsum(partial_rows) - partial_rows
    items[:, ITEM_PARTIAL] = np.where(split, partial_from, -1)
    work = tokens * group * np.maximum(items[:, ITEM_TO] - items[:, ITEM_FROM], 1)
    return Plan(
        group=group,
        block_size=block_size,
        num_kv_heads=num_kv_heads,
        items=np.ascontiguousarray(items[np.argsort(-work, kind="stable")]),
        merges=_merges(items[split & (part == 0)], parts[seq[split & (part == 0)]]),
        num_partial_rows=int(partial_rows.sum()),
        num_row_keys=int(work.sum()),
    )


def _merges(firsts: NDArray[np.int32], parts: NDArray[np.int64]) -> NDArray[np.int32]:
    merges = np.zeros((len(firsts), MERGE_WIDTH), dtype=np.int32)
    merges[:, MERGE_TOKEN] = firsts[:, ITEM_TOKEN]
    merges[:, MERGE_TOKENS] = firsts[:, ITEM_TOKENS]
    merges[:, MERGE_PARTIAL] = firsts[:, ITEM_PARTIAL]
    merges[:, MERGE_PARTS] = parts
    return merges
