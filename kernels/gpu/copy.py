"""Copying whole blocks inside a pool, any number in one launch.

The worker calls it through `backend` for forks and copy-on-write. It sees bytes and knows nothing of layers,
and moves them in the widest words that the block size allows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl

from kernels.checks import check_copy, check_copy_bounds
from kernels.device.seam import device_of
from kernels.gpu.issuing import issue

# Bytes that one program moves.
SPAN_BYTES = 16 * 1024


@triton.jit(do_not_specialize=["block_words"])
def copy_kernel(
    pool_ptr,  # [blocks, block words]
    src_ptr,  # int64 [copies]
    dst_ptr,
    block_words,
    SPAN: tl.constexpr,
):
    """Program (span, copy)."""
    copy = tl.program_id(1)
    word = tl.program_id(0) * SPAN + tl.arange(0, SPAN)
    inside = word < block_words
    src = tl.load(src_ptr + copy) * block_words
    dst = tl.load(dst_ptr + copy) * block_words
    tl.store(pool_ptr + dst + word, tl.load(pool_ptr + src + word, mask=inside), mask=inside)


def copy_blocks(
    pool: torch.Tensor, src: Sequence[int] | torch.Tensor, dst: Sequence[int] | torch.Tensor, *, check_bounds: bool
) -> None:
    """pool: uint8 [blocks, block_bytes]; block src[i] goes to dst[i]."""
    src, dst = _ids(src, pool.device), _ids(dst, pool.device)
    check_copy(pool, src, dst)
    if check_bounds:
        check_copy_bounds(pool, src, dst)
    if src.numel() == 0:
        return
    word = next(
        dtype
        for dtype in (torch.int64, torch.int32, torch.int16, torch.uint8)
        if pool.shape[1] % dtype.itemsize == 0 and pool.data_ptr() % dtype.itemsize == 0
    )
    words = pool.view(word)
    span = SPAN_BYTES // word.itemsize
    for begin in range(0, src.numel(), 65535):  # what a grid's second axis takes
        part = slice(begin, begin + 65535)
        grid = (triton.cdiv(words.shape[1], span), src[part].numel())
        issue(copy_kernel, grid, words, src[part], dst[part], words.shape[1], SPAN=span, num_warps=4)


def _ids(ids: Sequence[int] | torch.Tensor, device: torch.device) -> torch.Tensor:
    if isinstance(ids, torch.Tensor):
        return ids.to(device)
    return device_of(device).send(np.array(ids, np.int64))
