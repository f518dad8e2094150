"""CRC32C of blocks of a pool in Triton: a program sums a part of a chunk, lane by lane, and adds it to the chunk's.

`kernels/checksums.py` launches it and says in plain torch what it computes. Words are read once and in order; a lane
takes each word that comes to it after what it has was moved by one round, which is four looks into a table of 4 KB.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kernels.checks import expect
from kernels.gpu.issuing import issue

WARPS = 4
_POLYNOMIAL = tl.constexpr(0x82F63B78)


@triton.jit
def _product(one, other):
    """Of two remainders, bits reversed, both uint32 of one shape."""
    found = one ^ one
    for bit in tl.static_range(32):
        found ^= tl.where(((one >> (31 - bit)) & 1) > 0, other, 0)
        other = (other >> 1) ^ tl.where((other & 1) > 0, _POLYNOMIAL, 0).to(tl.uint32)
    return found


@triton.jit(do_not_specialize=["chunk_words", "block_words", "per_block"])
def checksums_kernel(
    words_ptr,  # int32 [blocks, block_words]
    which_ptr,  # int32 [blocks that are summed]
    found_ptr,  # int32 [blocks that are summed, chunks of a block], zeros at first
    moved_ptr,  # int32 [4, 256]
    behind_lane_ptr,  # int32 [LANES]
    behind_part_ptr,  # int32 [parts]
    chunk_words,
    block_words,
    per_block,
    LANES: tl.constexpr,
    ROUNDS: tl.constexpr,
):
    """Program (part, chunk). Parts are counted from the end of a chunk, so that only the last one may be short."""
    part = tl.program_id(0)
    chunk = tl.program_id(1)
    begin = (chunk % per_block) * chunk_words
    length = tl.minimum(chunk_words, block_words - begin)
    # Where the part begins in its chunk; before the chunk are zeros, which change nothing.
    first = length - (part + 1) * (ROUNDS * LANES)
    if first > -(ROUNDS * LANES):
        block = tl.load(which_ptr + chunk // per_block).to(tl.int64)
        chunk_ptr = words_ptr + block * block_words + begin
        lane = tl.arange(0, LANES)
        so_far = tl.zeros([LANES], tl.uint32)
        for number in range(ROUNDS):
            at = first + number * LANES + lane
            word = tl.load(chunk_ptr + at, mask=at >= 0, other=0).to(tl.uint32, bitcast=True)
            low = tl.load(moved_ptr + (so_far & 255).to(tl.int32)) ^ tl.load(
                moved_ptr + 256 + ((so_far >> 8) & 255).to(tl.int32)
            )
            high = tl.load(moved_ptr + 512 + ((so_far >> 16) & 255).to(tl.int32)) ^ tl.load(
                moved_ptr + 768 + (so_far >> 24).to(tl.int32)
            )
            so_far = (low ^ high).to(tl.uint32, bitcast=True) ^ word
        weight = tl.load(behind_lane_ptr + lane).to(tl.uint32, bitcast=True)
        total = tl.xor_sum(_product(so_far, weight), 0)
        behind = tl.load(behind_part_ptr + part).to(tl.uint32, bitcast=True)
        tl.atomic_xor(found_ptr + chunk, _product(total, behind).to(tl.int32, bitcast=True))


def add_sums(
    words: torch.Tensor,
    which: torch.Tensor,
    found: torch.Tensor,
    tables: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    sizes: tuple[int, int, int],
    lanes: int,
    rounds: int,
) -> None:
    """See `kernels.checksums.Checksums`. `tables`: moved, behind_lane, behind_part; `sizes`: words of a chunk, words of
    a block, chunks of a block."""
    expect("words", words, (None,), (torch.int32,), words.device)
    expect("which", which, (None,), (torch.int32,), words.device)
    expect("found", found, (len(which) * sizes[2],), (torch.int32,), words.device)
    if not len(which):
        return
    grid = len(tables[2]), len(found)
    issue(checksums_kernel, grid, words, which, found, *tables, *sizes, LANES=lanes, ROUNDS=rounds, num_warps=WARPS)
