"""Paged attention in Triton: any mix of prefill chunks and decodes, read straight from the blocks of a pool.

One tile of rows holds all query heads of a KV group for a run of query tokens, so that a group reads each key once.
Which program works on which keys comes from a plan that `plan` built on the device; a piece that covers all keys
of its unit writes the output, any other piece writes a partial that `merge` finishes. `step` is the only
caller. Nothing here decides sizes or allocates.
"""

from __future__ import annotations

import triton
import triton.language as tl

# A score that no key reached. Finite, so that the difference of two of them is 0 and not NaN.
FLOOR = tl.constexpr(-3.0e38)
LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
# Words of a plan's header and of a unit's record in it; see `plan.py`.
HEADER_WORDS = tl.constexpr(8)
UNIT_WORDS = tl.constexpr(16)


@triton.jit
def _block_ids(table_ptr, tile, last_block, TILE: tl.constexpr, BLOCK_SIZE: tl.constexpr):
    """The physical blocks of a tile: one id where a tile lies inside a block, else one id per key [tile]."""
    if BLOCK_SIZE % TILE == 0:
        ids = tl.load(table_ptr + tl.minimum(tile // (BLOCK_SIZE // TILE), last_block))
    else:
        at = tile * TILE + tl.arange(0, TILE)
        ids = tl.load(table_ptr + tl.minimum(at // BLOCK_SIZE, last_block))
    return ids


@triton.jit
def _tile_offsets(ids, tile, block_stride, DIM: tl.constexpr, TILE: tl.constexpr, BLOCK_SIZE: tl.constexpr):
    """Where each key of a tile begins, in elements from block 0 of its head: int64 [tile]."""
    lane = tl.arange(0, TILE)
    if BLOCK_SIZE % TILE == 0:
        start = ids.to(tl.int64) * block_stride + (tile % (BLOCK_SIZE // TILE)) * (TILE * DIM)
        offsets = start + lane * DIM
    elif TILE % BLOCK_SIZE == 0:
        offsets = ids.to(tl.int64) * block_stride + (lane % BLOCK_SIZE) * DIM
    else:
        offsets = ids.to(tl.int64) * block_stride + ((tile * TILE + lane) % BLOCK_SIZE) * DIM
    return offsets


@triton.jit
def _load_tile(ptr, offsets, seen, DIM: tl.constexpr, DIM_PAD: tl.constexpr, MASKED: tl.constexpr):
    """Keys or values of one tile, [tile, dim], zeros behind DIM and, if MASKED, where not `seen`."""
    dims = tl.arange(0, DIM_PAD)
    ptrs = ptr + offsets[:, None] + dims[None, :]
    if MASKED:
        if DIM == DIM_PAD:
            return tl.load(ptrs, mask=seen[:, None], other=0.0)
        else:
            return tl.load(ptrs, mask=seen[:, None] & (dims < DIM)[None, :], other=0.0)
    else:
        if DIM == DIM_PAD:
            return tl.load(ptrs)
        else:
            return tl.load(ptrs, mask=(dims < DIM)[None, :], other=0.0)


@triton.jit
def _tile_step(
    acc,  # [rows, value dim] weighted values so far
    top,  # [rows] largest score so far, in units of log2
    total,  # [rows] sum of weights so far
    q,  # [rows, dim]
    q_at,  # [rows] position of each row's query
    ids,
    tile,
    k_ptr,
    v_ptr,
    block_stride,
    context,
    scale,
    cap,
    window,
    DIM: tl.constexpr,
    DIM_PAD: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    VALUE_PAD: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    MASKED: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_CAP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Adds one tile of keys to the running softmax."""
    key_at = tile * TILE + tl.arange(0, TILE)
    present = key_at < context
    k_offsets = _tile_offsets(ids, tile, block_stride, DIM, TILE, BLOCK_SIZE)
    v_offsets = _tile_offsets(ids, tile, block_stride, VALUE_DIM, TILE, BLOCK_SIZE)
    k = _load_tile(k_ptr, k_offsets, present, DIM, DIM_PAD, MASKED)
    v = _load_tile(v_ptr, v_offsets, present, VALUE_DIM, VALUE_PAD, MASKED)
    if k.dtype != q.dtype:
        k = k.to(q.dtype)
        v = v.to(q.dtype)
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)  # [rows, tile]
    if HAS_CAP:
        # cap * tanh(s / cap) as 1 - 2 / (e^(2 s / cap) + 1), which is right at both infinities; `scale` and `cap`
        # come with the factors of log2 in them.
        scores = cap - 2.0 * cap / (tl.exp2(scores * scale) + 1.0)
        factor = 1.0
    else:
        factor = scale
    if MASKED:
        visible = key_at[None, :] <= q_at[:, None]
        if HAS_WINDOW:
            visible = visible & (key_at[None, :] > q_at[:, None] - window)
        scores = tl.where(visible, scores * factor, FLOOR)
        new_top = tl.maximum(top, tl.max(scores, 1))
        weights = tl.exp2(scores - new_top[:, None])
    else:
        # The largest score is scaled, not each one: the factor is never negative.
        new_top = tl.maximum(top, tl.max(scores, 1) * factor)
        weights = tl.exp2(scores * factor - new_top[:, None])
    shrink = tl.exp2(top - new_top)
    total = total * shrink + tl.sum(weights, 1)
    acc = tl.dot(weights.to(v.dtype), v, acc * shrink[:, None], input_precision=PRECISION)
    return acc, new_top, total


@triton.jit
def _piece(
    q_ptr,
    k_ptr,  # at the piece's head
    v_ptr,
    table_ptr,  # at the sequence's row
    sinks_ptr,
    out_ptr,
    lse_ptr,
    part_ptr,
    part_sums_ptr,
    slot,  # where a partial goes
    query_first,  # the unit's first token in the batch
    query_left,  # how many of the sequence's tokens stand from there on
    context,
    head,
    unit_lo,
    unit_hi,
    tile_lo,
    tile_hi,
    scale,
    cap,
    window,
    q_token_stride,
    q_head_stride,
    out_token_stride,
    out_head_stride,
    lse_token_stride,
    block_stride,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    DIM_PAD: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    VALUE_PAD: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_CAP: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    HAS_LSE: tl.constexpr,
    WIDEN: tl.constexpr,
    PRECISION: tl.constexpr,
    SPLIT_EDGES: tl.constexpr,
    EDGE_STAGES: tl.constexpr,
):
    """Attention of one unit's rows over the tiles [tile_lo, tile_hi) of one head, written out or kept as a partial."""
    first_at = context - query_left  # the position of the unit's first query
    last_block = tl.maximum(context - 1, 0) // BLOCK_SIZE
    # Tiles that every row sees whole need no masks; those before and behind them do.
    inner_lo = tile_lo
    inner_hi = tile_hi
    if SPLIT_EDGES:
        if HAS_WINDOW:
            last_at = tl.minimum(first_at + BLOCK_Q, context) - 1
            inner_lo = tl.minimum(tl.maximum(tl.cdiv(tl.maximum(last_at - window + 1, 0), TILE), tile_lo), tile_hi)
        inner_hi = tl.maximum(tl.minimum((first_at + 1) // TILE, tile_hi), inner_lo)
    # Asked for before the queries are waited for.
    ids = _block_ids(table_ptr, inner_lo, last_block, TILE, BLOCK_SIZE)

    row = tl.arange(0, BLOCK_M)
    token = row // GROUP
    q_head = head * GROUP + row % GROUP
    used = (token < BLOCK_Q) & (token < query_left)
    q_at = first_at + token
    dims = tl.arange(0, DIM_PAD)
    q_rows = (query_first + token).to(tl.int64) * q_token_stride + q_head * q_head_stride
    q = tl.load(q_ptr + q_rows[:, None] + dims[None, :], mask=used[:, None] & (dims < DIM)[None, :], other=0.0)
    if WIDEN:
        q = q.to(tl.float32)

    top = tl.full([BLOCK_M], FLOOR, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    if HAS_SINKS:
        # A sink is one more score without a value. It counts once: in the piece that holds the unit's first tile.
        sink = tl.load(sinks_ptr + q_head, mask=used, other=0.0).to(tl.float32) * LOG2_E
        counts = (tile_lo == unit_lo) & (context > 0)
        top = tl.where(counts, sink, top)
        total = tl.where(counts, 1.0, total)
    acc = tl.zeros([BLOCK_M, VALUE_PAD], tl.float32)
    for tile in range(inner_lo, inner_hi):
        # The next tile's blocks are looked up one round ahead, so that the loads of keys never wait for a table.
        next_ids = _block_ids(table_ptr, tile + 1, last_block, TILE, BLOCK_SIZE)
        acc, top, total = _tile_step(
            acc, top, total, q, q_at, ids, tile, k_ptr, v_ptr, block_stride, context, scale, cap, window,
            DIM, DIM_PAD, VALUE_DIM, VALUE_PAD, TILE, BLOCK_SIZE, not SPLIT_EDGES, HAS_WINDOW, HAS_CAP, PRECISION,
        )  # fmt: skip
        ids = next_ids
    if SPLIT_EDGES:
        before = inner_lo - tile_lo
        for edge in tl.range(0, before + tile_hi - inner_hi, num_stages=EDGE_STAGES):
            tile = tl.where(edge < before, tile_lo + edge, inner_hi + edge - before)
            if HAS_WINDOW:
                ids = _block_ids(table_ptr, tile, last_block, TILE, BLOCK_SIZE)
            next_ids = _block_ids(table_ptr, tile + 1, last_block, TILE, BLOCK_SIZE)
            acc, top, total = _tile_step(
                acc, top, total, q, q_at, ids, tile, k_ptr, v_ptr, block_stride, context, scale, cap, window,
                DIM, DIM_PAD, VALUE_DIM, VALUE_PAD, TILE, BLOCK_SIZE, True, HAS_WINDOW, HAS_CAP, PRECISION,
            )  # fmt: skip
            ids = next_ids

    # A row that saw no key has only weighed masked scores: it counts for nothing.
    saw = top > FLOOR * 0.5
    total = tl.where(saw, total, 0.0)
    values = tl.arange(0, VALUE_PAD)
    if (tile_lo == unit_lo) & (tile_hi == unit_hi):
        out_rows = (query_first + token).to(tl.int64) * out_token_stride + q_head * out_head_stride
        out = tl.where(saw[:, None], acc / tl.where(saw, total, 1.0)[:, None], 0.0)
        tl.store(
            out_ptr + out_rows[:, None] + values[None, :],
            out.to(out_ptr.dtype.element_ty),
            mask=used[:, None] & (values < VALUE_DIM)[None, :],
        )
        if HAS_LSE:
            lse = tl.where(saw, (top + tl.log2(tl.where(saw, total, 1.0))) * LN_2, float("-inf"))
            tl.store(lse_ptr + (query_first + token).to(tl.int64) * lse_token_stride + q_head, lse, mask=used)
    else:
        at = slot.to(tl.int64) * BLOCK_M + row
        kept = tl.where(saw[:, None], acc, 0.0)
        tl.store(part_ptr + at[:, None] * VALUE_PAD + values[None, :], kept, mask=used[:, None])
        tl.store(part_sums_ptr + at * 2, top, mask=used)
        tl.store(part_sums_ptr + at * 2 + 1, total, mask=used)


@triton.jit(do_not_specialize=["owners_at", "programs", "window", "table_stride"])
def attention_kernel(
    q_ptr,  # [tokens, heads, dim]
    k_ptr,  # [blocks, kv heads, slot, dim]
    v_ptr,  # [blocks, kv heads, slot, value dim]
    tables_ptr,  # int32 [rows, max blocks]
    plan_ptr,  # int32, see `plan.py`
    sinks_ptr,  # [heads]
    out_ptr,  # [tokens, heads, value dim]
    lse_ptr,  # float32 [tokens, heads]
    part_ptr,  # float32 [slots, BLOCK_M, VALUE_PAD]
    part_sums_ptr,  # float32 [slots, BLOCK_M, 2]: largest score, sum of weights
    owners_at,
    programs,
    scale,
    cap,
    window,
    q_token_stride,
    q_head_stride,
    out_token_stride,
    out_head_stride,
    lse_token_stride,
    block_stride,
    table_stride,
    FLAT: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    DIM_PAD: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    VALUE_PAD: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_CAP: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    HAS_LSE: tl.constexpr,
    WIDEN: tl.constexpr,
    PRECISION: tl.constexpr,
    SPLIT_EDGES: tl.constexpr,
    EDGE_STAGES: tl.constexpr,
):
    """FLAT: a program's equal share of all tiles, over several units. Otherwise one part of one unit and head."""
    pid = tl.program_id(0)
    owner = pid if FLAT else pid // KV_HEADS
    unit = tl.load(plan_ptr + owners_at + owner)
    if FLAT:
        share = tl.load(plan_ptr + 2)
        at = pid * share
        end = tl.minimum(at + share, tl.load(plan_ptr + 1) * KV_HEADS)
    else:
        at = owner
        end = tl.minimum(at + 1, tl.load(plan_ptr + 1))
    first = at
    while at < end:
        unit_ptr = plan_ptr + HEADER_WORDS + unit * UNIT_WORDS
        unit_lo = tl.load(unit_ptr + 2)
        unit_hi = tl.load(unit_ptr + 3)
        base = tl.load(unit_ptr + 4)
        table_row = tl.load(unit_ptr + 7)
        query_first = tl.load(unit_ptr + 8)
        query_left = tl.load(unit_ptr + 9)
        context = tl.load(unit_ptr + 10)
        tiles = unit_hi - unit_lo
        if FLAT:
            behind = at - base * KV_HEADS
            head = behind // tiles
            tile_lo = unit_lo + behind % tiles
            tile_hi = tl.minimum(unit_hi, tile_lo + end - at)
            # A program leaves at most two partials: of the unit it comes into the middle of, and of the one it leaves.
            slot = tl.where((at == first) & (tile_lo != unit_lo), pid, programs + pid)
            at += tile_hi - tile_lo
            unit += ((head == KV_HEADS - 1) & (tile_hi == unit_hi)).to(tl.int32)
        else:
            parts = tl.load(unit_ptr + 5)
            part = at - base
            head = pid % KV_HEADS
            tile_lo = unit_lo + tiles * part // parts
            tile_hi = unit_lo + tiles * (part + 1) // parts
            slot = (tl.load(unit_ptr + 6) + part) * KV_HEADS + head
            at += 1
        _piece(
            q_ptr,
            k_ptr + head * (BLOCK_SIZE * DIM),
            v_ptr + head * (BLOCK_SIZE * VALUE_DIM),
            tables_ptr + table_row.to(tl.int64) * table_stride,
            sinks_ptr, out_ptr, lse_ptr, part_ptr, part_sums_ptr, slot,
            query_first, query_left, context,
            head, unit_lo, unit_hi, tile_lo, tile_hi, scale, cap, window,
            q_token_stride, q_head_stride, out_token_stride, out_head_stride, lse_token_stride,
            block_stride.to(tl.int64),
            GROUP, DIM, DIM_PAD, VALUE_DIM, VALUE_PAD, BLOCK_M, BLOCK_Q, TILE, BLOCK_SIZE,
            HAS_WINDOW, HAS_CAP, HAS_SINKS, HAS_LSE, WIDEN, PRECISION, SPLIT_EDGES, EDGE_STAGES,
        )  # fmt: skip
