"""Merging partial attention results over disjoint keys, each weighed by the sum of weights that it saw.

`backend` launches `merge_pieces_kernel` behind every attention whose plan may split units; it works on the
partials of that call. `merge_kernel` is the op of the same name on finished outputs with their log-sum-exps. Neither
decides what is split.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.gpu.attention import FLOOR, LN_2, LOG2_E

# Words of a merge in a plan; see `plan.py`.
MERGE_WORDS = tl.constexpr(8)


@triton.jit(do_not_specialize=["merges_at"])
def merge_pieces_kernel(
    plan_ptr,  # int32, see `plan.py`
    part_ptr,  # float32 [slots, BLOCK_M, VALUE_PAD]
    part_sums_ptr,  # float32 [slots, BLOCK_M, 2]
    out_ptr,  # [tokens, heads, value dim]
    lse_ptr,  # float32 [tokens, heads]
    merges_at,
    out_token_stride,
    out_head_stride,
    lse_token_stride,
    FLAT: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    VALUE_PAD: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    HAS_LSE: tl.constexpr,
    ROWS: tl.constexpr,
    PARTS: tl.constexpr,
):
    """FLAT: program (share, row tile) merges the unit that begins in its share and ends in a later one, if any.

    Otherwise program (split unit and head, row tile).
    """
    pid = tl.program_id(0)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    merge_ptr = plan_ptr + merges_at + (pid if FLAT else pid // KV_HEADS) * MERGE_WORDS
    count = tl.load(merge_ptr)
    head = tl.load(merge_ptr + 1)
    first_slot = tl.load(merge_ptr + 2)
    rest_slot = tl.load(merge_ptr + 3)
    query_first = tl.load(merge_ptr + 4)
    query_left = tl.load(merge_ptr + 5)
    slot_step = 1
    if not FLAT:
        head = pid % KV_HEADS
        first_slot += head
        rest_slot += head
        slot_step = KV_HEADS
    if count > 0:
        token = row // GROUP
        used = (row < BLOCK_Q * GROUP) & (token < query_left)
        values = tl.arange(0, VALUE_PAD)
        top = tl.full([ROWS], FLOOR, tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        acc = tl.zeros([ROWS, VALUE_PAD], tl.float32)
        for begin in range(0, count, PARTS):
            part = begin + tl.arange(0, PARTS)
            slot = tl.where(part == 0, first_slot, rest_slot + (part - 1) * slot_step).to(tl.int64)
            at = slot[:, None] * BLOCK_M + row[None, :]  # [parts, rows]
            real = (part < count)[:, None] & used[None, :]
            tops = tl.load(part_sums_ptr + at * 2, mask=real, other=FLOOR)
            totals = tl.load(part_sums_ptr + at * 2 + 1, mask=real, other=0.0)
            partial = tl.load(part_ptr + at[:, :, None] * VALUE_PAD + values[None, None, :], mask=real[:, :, None],
                              other=0.0)  # fmt: skip
            new_top = tl.maximum(top, tl.max(tops, 0))
            weights = tl.exp2(tops - new_top[None, :])
            shrink = tl.exp2(top - new_top)
            total = total * shrink + tl.sum(totals * weights, 0)
            acc = acc * shrink[:, None] + tl.sum(partial * weights[:, :, None], 0)
            top = new_top
        saw = total > 0.0
        safe = tl.where(saw, total, 1.0)
        to = (query_first + token).to(tl.int64)
        head_of = head * GROUP + row % GROUP
        tl.store(
            out_ptr + (to * out_token_stride + head_of * out_head_stride)[:, None] + values[None, :],
            (acc / safe[:, None]).to(out_ptr.dtype.element_ty),
            mask=used[:, None] & (values < VALUE_DIM)[None, :],
        )
        if HAS_LSE:
            lse = tl.where(saw, (top + tl.log2(safe)) * LN_2, float("-inf"))
            tl.store(lse_ptr + to * lse_token_stride + head_of, lse, mask=used)


@triton.jit(do_not_specialize=["num_parts", "num_rows"])
def merge_kernel(
    outs_ptr,  # [parts, rows, dim], contiguous; a row is one token and head
    lses_ptr,  # [parts, rows], contiguous
    out_ptr,  # [rows, dim]
    lse_ptr,  # [rows]
    num_parts,
    num_rows,
    DIM: tl.constexpr,
    DIM_PAD: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Each program merges ROWS rows over all parts."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    used = row < num_rows
    dims = tl.arange(0, DIM_PAD)
    mask = used[:, None] & (dims < DIM)[None, :]
    top = tl.full([ROWS], FLOOR, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, DIM_PAD], tl.float32)
    for part in range(num_parts):
        at = part * num_rows.to(tl.int64) + row
        lse = tl.load(lses_ptr + at, mask=used, other=float("-inf")).to(tl.float32)
        saw = lse > float("-inf")
        new_top = tl.maximum(top, tl.where(saw, lse * LOG2_E, FLOOR))
        weight = tl.where(saw, tl.exp2(lse * LOG2_E - new_top), 0.0)
        shrink = tl.exp2(top - new_top)
        out = tl.load(outs_ptr + at[:, None] * DIM + dims[None, :], mask=mask & saw[:, None], other=0.0)
        total = total * shrink + weight
        acc = acc * shrink[:, None] + out.to(tl.float32) * weight[:, None]
        top = new_top
    saw = total > 0.0
    safe = tl.where(saw, total, 1.0)
    tl.store(
        out_ptr + row.to(tl.int64)[:, None] * DIM + dims[None, :],
        (acc / safe[:, None]).to(out_ptr.dtype.element_ty),
        mask=mask,
    )
    lse = tl.where(saw, (top + tl.log2(safe)) * LN_2, float("-inf"))
    tl.store(lse_ptr + row, lse.to(lse_ptr.dtype.element_ty), mask=used)
