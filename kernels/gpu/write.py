"""Writing keys and values into the blocks of a pool, alone or with the rotary embedding of queries and keys on the way.

The worker calls it once per layer and step through `backend`, before attention. A token whose slot is -1 is
rotated but not written. Nothing here knows which sequence a token belongs to.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kernels.checks import FLOATS, check_write, expect
from kernels.gpu.issuing import issue
from kernels.layout import LayerCache


@triton.jit
def _store_heads(x_ptr, head_stride, to_ptr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr,
                 LANES: tl.constexpr):  # fmt: skip
    """All heads of one token to its slot."""
    lane = tl.arange(0, LANES)
    head = lane // DIM
    dim = lane % DIM
    inside = lane < KV_HEADS * DIM
    x = tl.load(x_ptr + head * head_stride + dim, mask=inside)
    tl.store(to_ptr + head * (BLOCK_SIZE * DIM) + dim, x.to(to_ptr.dtype.element_ty), mask=inside)


@triton.jit
def write_kernel(
    k_ptr,  # [tokens, kv heads, dim]
    v_ptr,  # [tokens, kv heads, value dim]
    k_cache_ptr,  # [blocks, kv heads, slot, dim]
    v_cache_ptr,  # [blocks, kv heads, slot, value dim]
    slots_ptr,  # int64 [tokens]
    k_token_stride,
    k_head_stride,
    v_token_stride,
    v_head_stride,
    k_block_stride,
    v_block_stride,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    K_LANES: tl.constexpr,
    V_LANES: tl.constexpr,
):
    """One program per token."""
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + token)
    if slot >= 0:
        block = slot // BLOCK_SIZE
        at = slot % BLOCK_SIZE
        k_to = k_cache_ptr + block * k_block_stride + at * DIM
        v_to = v_cache_ptr + block * v_block_stride + at * VALUE_DIM
        _store_heads(k_ptr + token * k_token_stride, k_head_stride, k_to, KV_HEADS, DIM, BLOCK_SIZE, K_LANES)
        _store_heads(v_ptr + token * v_token_stride, v_head_stride, v_to, KV_HEADS, VALUE_DIM, BLOCK_SIZE, V_LANES)


@triton.jit
def _rotate(x_ptr, to_ptr, to_head_stride, head_stride, token_cos_ptr, token_sin_ptr, heads,
            DIM: tl.constexpr, HALF: tl.constexpr, HALF_PAD: tl.constexpr, REST: tl.constexpr,
            REST_PAD: tl.constexpr, INTERLEAVED: tl.constexpr, HEADS_PAD: tl.constexpr):  # fmt: skip
    """Rotates the first 2 * HALF dims of some heads of one token and copies the other REST."""
    head = tl.arange(0, HEADS_PAD)
    pair = tl.arange(0, HALF_PAD)
    inside = (head < heads)[:, None] & (pair < HALF)[None, :]
    cos = tl.load(token_cos_ptr + pair, mask=pair < HALF, other=0.0).to(tl.float32)[None, :]
    sin = tl.load(token_sin_ptr + pair, mask=pair < HALF, other=0.0).to(tl.float32)[None, :]
    if INTERLEAVED:
        first = (2 * pair)[None, :]
        second = first + 1
    else:
        first = pair[None, :]
        second = first + HALF
    x = tl.load(x_ptr + head[:, None] * head_stride + first, mask=inside, other=0.0).to(tl.float32)
    y = tl.load(x_ptr + head[:, None] * head_stride + second, mask=inside, other=0.0).to(tl.float32)
    target = to_ptr.dtype.element_ty
    tl.store(to_ptr + head[:, None] * to_head_stride + first, (x * cos - y * sin).to(target), mask=inside)
    tl.store(to_ptr + head[:, None] * to_head_stride + second, (y * cos + x * sin).to(target), mask=inside)
    if REST > 0:
        rest = tl.arange(0, REST_PAD)
        inside = (head < heads)[:, None] & (rest < REST)[None, :]
        x = tl.load(x_ptr + head[:, None] * head_stride + 2 * HALF + rest[None, :], mask=inside)
        tl.store(to_ptr + head[:, None] * to_head_stride + 2 * HALF + rest[None, :], x.to(target), mask=inside)


@triton.jit
def rotary_write_kernel(
    q_ptr,  # [tokens, heads, dim], rotated in place
    k_ptr,  # [tokens, kv heads, dim]
    v_ptr,  # [tokens, kv heads, value dim]
    cos_ptr,  # [tokens, rotary dim / 2]
    sin_ptr,
    k_cache_ptr,  # [blocks, kv heads, slot, dim]
    v_cache_ptr,  # [blocks, kv heads, slot, value dim]
    slots_ptr,  # int64 [tokens]
    q_token_stride,
    q_head_stride,
    k_token_stride,
    k_head_stride,
    v_token_stride,
    v_head_stride,
    angle_stride,
    k_block_stride,
    v_block_stride,
    NUM_HEADS: tl.constexpr,
    HEAD_TILE: tl.constexpr,
    HEAD_TILES: tl.constexpr,
    KV_HEADS: tl.constexpr,
    KV_PAD: tl.constexpr,
    DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    HALF: tl.constexpr,
    HALF_PAD: tl.constexpr,
    REST_PAD: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    V_LANES: tl.constexpr,
    INTERLEAVED: tl.constexpr,
):
    """Program (token, part): a tile of query heads, or after the last of them the token's keys and values."""
    token = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    cos = cos_ptr + token * angle_stride
    sin = sin_ptr + token * angle_stride
    if part < HEAD_TILES:
        q = q_ptr + token * q_token_stride + part * HEAD_TILE * q_head_stride
        # In place: only the rotated dims move, and every program reads its own before it writes them.
        _rotate(q, q, q_head_stride, q_head_stride, cos, sin, NUM_HEADS - part * HEAD_TILE,
                DIM, HALF, HALF_PAD, 0, REST_PAD, INTERLEAVED, HEAD_TILE)  # fmt: skip
    else:
        slot = tl.load(slots_ptr + token)
        if slot >= 0:
            block = slot // BLOCK_SIZE
            at = slot % BLOCK_SIZE
            to = k_cache_ptr + block * k_block_stride + at * DIM
            _rotate(k_ptr + token * k_token_stride, to, BLOCK_SIZE * DIM, k_head_stride, cos, sin, KV_HEADS,
                    DIM, HALF, HALF_PAD, DIM - 2 * HALF, REST_PAD, INTERLEAVED, KV_PAD)  # fmt: skip
            v_to = v_cache_ptr + block * v_block_stride + at * VALUE_DIM
            _store_heads(v_ptr + token * v_token_stride, v_head_stride, v_to, KV_HEADS, VALUE_DIM, BLOCK_SIZE, V_LANES)


def write_kv(k: torch.Tensor, v: torch.Tensor, cache: LayerCache, slots: torch.Tensor) -> None:
    """Writes k and v [tokens, kv_heads, dim] to `slots`."""
    check_write(k, v, cache, slots)
    if slots.numel() == 0:
        return
    lanes = max(k.shape[1] * k.shape[2], v.shape[1] * v.shape[2])
    issue(
        write_kernel,
        (slots.shape[0],),
        k,
        v,
        cache.k,
        cache.v,
        slots,
        k.stride(0),
        k.stride(1),
        v.stride(0),
        v.stride(1),
        cache.k.stride(0),
        cache.v.stride(0),
        KV_HEADS=cache.num_kv_heads,
        DIM=cache.head_dim,
        VALUE_DIM=cache.value_dim,
        BLOCK_SIZE=cache.block_size,
        K_LANES=triton.next_power_of_2(k.shape[1] * k.shape[2]),
        V_LANES=triton.next_power_of_2(v.shape[1] * v.shape[2]),
        num_warps=4 if lanes >= 1024 else 1,
    )


def rotary_write_kv(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    cache: LayerCache,
    slots: torch.Tensor,
    *,
    interleaved: bool = False,
) -> None:
    """Rotates q [tokens, heads, head_dim] in place and writes rotated k, and v, to `slots`; k itself stays.

    cos, sin [tokens, rotary_dim / 2]: dims beyond rotary_dim are left as they are. A pair is (i, i + rotary_dim / 2),
    or (2 i, 2 i + 1) if interleaved. Computed in float32 and rounded once.
    """
    check_write(k, v, cache, slots)
    tokens, half, device = slots.shape[0], cos.shape[-1], cache.k.device
    expect("q", q, (tokens, None, cache.head_dim), FLOATS, device)
    expect("cos", cos, (tokens, None), FLOATS, device)
    expect("sin", sin, (tokens, half), FLOATS, device)
    if not 0 < 2 * half <= cache.head_dim:
        raise ValueError(f"cos must have 1 to {cache.head_dim // 2} angles per token, got {half}")
    if cos.stride(0) != sin.stride(0):
        raise ValueError(f"sin must have the strides of cos, {cos.stride()}, got {sin.stride()}")
    if tokens == 0:
        return
    heads = q.shape[1]
    head_tile = min(triton.next_power_of_2(heads), 16)
    head_tiles = triton.cdiv(heads, head_tile)
    rest = cache.head_dim - 2 * half
    issue(
        rotary_write_kernel,
        (tokens, head_tiles + 1),
        q,
        k,
        v,
        cos,
        sin,
        cache.k,
        cache.v,
        slots,
        q.stride(0),
        q.stride(1),
        k.stride(0),
        k.stride(1),
        v.stride(0),
        v.stride(1),
        cos.stride(0),
        cache.k.stride(0),
        cache.v.stride(0),
        NUM_HEADS=heads,
        HEAD_TILE=head_tile,
        HEAD_TILES=head_tiles,
        KV_HEADS=cache.num_kv_heads,
        KV_PAD=triton.next_power_of_2(cache.num_kv_heads),
        DIM=cache.head_dim,
        VALUE_DIM=cache.value_dim,
        HALF=half,
        HALF_PAD=triton.next_power_of_2(half),
        REST_PAD=triton.next_power_of_2(max(rest, 1)),
        BLOCK_SIZE=cache.block_size,
        V_LANES=triton.next_power_of_2(v.shape[1] * v.shape[2]),
        INTERLEAVED=interleaved,
        num_warps=4,
    )
