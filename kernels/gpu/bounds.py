"""Checks on the device what a batch says of the tables: rows and blocks that exist, lengths that fit.

`backend` launches it in debug mode before attention; the answer is the first fault, or nothing. It reads only
what it has found to lie inside the tables, so that a wrong batch is reported and not followed.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kernels.batch import AttentionBatch
from kernels.gpu.issuing import issue
from kernels.layout import LayerCache

# What a sequence can have wrong; the two words behind the code say which entry and its value.
_FAULTS = {
    1: "batch.query_start gives sequence {seq} {value} query tokens; it must have 0 to {max_query_len}, a decode 1",
    2: "batch.query_start ends sequence {seq} at token {value}; the batch has {num_tokens}",
    3: "batch.context_len[{seq}] is {value}; it must be 0 to {max_context_len}",
    4: "batch.rows[{seq}] is {value}; batch.tables has rows 0 to {last_row}",
    5: "batch.context_len[{seq}] is {value}, more than a row of {max_blocks} blocks of {block_size} holds",
    6: "batch.tables names block {value} as number {at} of sequence {seq}; the pool has blocks 0 to {last_block}",
}


@triton.jit(do_not_specialize=["num_decodes", "num_tokens", "max_query_len", "max_context_len", "num_rows"])
def bounds_kernel(
    query_start_ptr,  # int32 [seqs + 1]
    context_ptr,  # int32 [seqs]
    rows_ptr,  # int32 [seqs]
    tables_ptr,  # int32 [rows, max blocks]
    faults_ptr,  # int32 [seqs, 3], zeros: code, entry, value
    num_decodes,
    num_tokens,
    max_query_len,
    max_context_len,
    num_rows,
    max_blocks,
    num_blocks,
    table_stride,
    BLOCK_SIZE: tl.constexpr,
    SPAN: tl.constexpr,
):
    """One program per sequence."""
    seq = tl.program_id(0)
    start = tl.load(query_start_ptr + seq)
    stop = tl.load(query_start_ptr + seq + 1)
    context = tl.load(context_ptr + seq)
    row = tl.load(rows_ptr + seq)
    query_len = stop - start
    used = (context + BLOCK_SIZE - 1) // BLOCK_SIZE
    code = 0
    value = 0
    at = 0
    if (query_len < 0) | (query_len > max_query_len) | ((seq < num_decodes) & (query_len != 1)):
        code = 1
        value = query_len
    elif (start < 0) | (stop > num_tokens):
        code = 2
        value = stop
    elif (context < 0) | (context > max_context_len):
        code = 3
        value = context
    elif (row < 0) | (row >= num_rows):
        code = 4
        value = row
    elif used > max_blocks:
        code = 5
        value = context
    else:
        for begin in range(0, used, SPAN):
            number = begin + tl.arange(0, SPAN)
            block = tl.load(tables_ptr + row.to(tl.int64) * table_stride + number, mask=number < used, other=0)
            wrong = (block < 0) | (block >= num_blocks)
            first = tl.min(tl.where(wrong, number, 2147483647), 0)
            if (first < 2147483647) & (code == 0):
                code = 6
                at = first
                value = tl.sum(tl.where(number == first, block, 0), 0)
    tl.store(faults_ptr + seq * 3, code)
    tl.store(faults_ptr + seq * 3 + 1, at)
    tl.store(faults_ptr + seq * 3 + 2, value)


def check_bounds(batch: AttentionBatch, cache: LayerCache) -> None:
    """Raises a ValueError that names the first fault. Waits for the device."""
    seqs = batch.num_seqs
    if seqs == 0:
        return
    faults = torch.zeros((seqs, 3), dtype=torch.int32, device=batch.rows.device)
    num_rows, max_blocks = batch.tables.shape
    issue(
        bounds_kernel,
        (seqs,),
        batch.query_start,
        batch.context_len,
        batch.rows,
        batch.tables,
        faults,
        batch.num_decodes,
        batch.num_tokens,
        batch.max_query_len,
        batch.max_context_len,
        num_rows,
        max_blocks,
        cache.num_blocks,
        batch.tables.stride(0),
        BLOCK_SIZE=cache.block_size,
        SPAN=256,
        num_warps=4,
    )
    for seq, (code, at, value) in enumerate(faults.tolist()):
        if code:
            raise ValueError(
                _FAULTS[code].format(
                    seq=seq,
                    at=at,
                    value=value,
                    max_query_len=batch.max_query_len,
                    num_tokens=batch.num_tokens,
                    max_context_len=batch.max_context_len,
                    last_row=num_rows - 1,
                    max_blocks=max_blocks,
                    block_size=cache.block_size,
                    last_block=cache.num_blocks - 1,
                )
            )
