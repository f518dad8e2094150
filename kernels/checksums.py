"""CRC32C of blocks where they lie: what a transfer sums on a device instead of on the host, chunk by chunk.

A CRC is the remainder of a polynomial, so that parts of a chunk are summed side by side, each is moved to its place by
a product with a power of x, and all are added (exclusive or). `Checksums` holds the powers for blocks of one size and
chooses the Triton kernel (`gpu/checksums.py`) or, on the twin, google-crc32c. Nothing here waits for the device:
whoever has fetched the sums has them `finished` on the host.
"""

from __future__ import annotations

from functools import cache
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from kernels.device.seam import device_of

# Bits reversed, as the words of memory are: the highest bit is the coefficient of 1.
_POLYNOMIAL: Final = 0x82F63B78
_ONE: Final = 0x80000000
_ALL: Final = 0xFFFFFFFF

LANES: Final = 1024
"""Words of a part that are summed side by side."""
PART: Final = 16 * LANES
"""Words of a chunk that one program sums; the last part is its beginning, before which are zeros."""


def product(one: int, other: int) -> int:
    """Of two remainders."""
    found = 0
    for bit in range(32):
        if one & (_ONE >> bit):
            found ^= other
        other = (other >> 1) ^ (_POLYNOMIAL if other & 1 else 0)
    return found


@cache
def power(exponent: int) -> int:
    """x ** exponent."""
    if exponent == 0:
        return _ONE
    half = power(exponent // 2)
    whole = product(half, half)
    return product(whole, _ONE >> 1) if exponent % 2 else whole


@cache
def moving(num_words: int) -> NDArray[np.uint32]:
    """[4, 256]: what each byte of a word becomes that is moved over so many."""
    step, table = power(32 * num_words), np.zeros((4, 256), np.uint32)
    for byte in range(4):
        for bit in range(8):
            first = 1 << bit
            table[byte, first : 2 * first] = table[byte, :first] ^ np.uint32(product(1 << (8 * byte + bit), step))
    return table


def _on(device: torch.device, words: NDArray[np.uint32] | list[int]) -> torch.Tensor:
    return device_of(device).send(np.array(words, np.uint32).view(np.int32))


class Checksums:
    """Of blocks of `block_bytes` each in a pool on `device`, in chunks of `chunk_bytes` and a last one of the rest."""

    def __init__(self, device: torch.device, block_bytes: int, chunk_bytes: int, *, triton: bool | None = None) -> None:
        """`triton`: whether Triton's kernel is used; None: on a GPU."""
        if block_bytes % 4 or chunk_bytes % 4:
            raise ValueError(f"blocks of {block_bytes} bytes in chunks of {chunk_bytes} are no whole words")
        self.block_words, self.chunk_words = block_bytes // 4, min(chunk_bytes, block_bytes) // 4
        self.per_block = -(-self.block_words // self.chunk_words)
        self.num_parts = -(-self.chunk_words // PART)
        lengths = [min(self.chunk_words, self.block_words - i * self.chunk_words) for i in range(self.per_block)]
        # A CRC begins with all ones and ends with all bits turned.
        self.ends = np.array([product(_ALL, power(32 * length)) ^ _ALL for length in lengths], np.uint32)
        is_gpu = device_of(device).facts().family != "interpreter"
        self._triton = is_gpu if triton is None else triton
        if self._triton:
            self.moved = _on(device, moving(LANES).reshape(-1))
            # From each lane to the end of its part, from each part to the end of its chunk.
            self.behind_lane = _on(device, [power(32 * (LANES - lane)) for lane in range(LANES)])
            self.behind_part = _on(device, [power(32 * PART * part) for part in range(self.num_parts)])

    def __call__(self, pool: torch.Tensor, blocks: NDArray[np.int32]) -> torch.Tensor:
        """int32 [len(blocks) * chunks of a block], to be `finished`, of pool, uint8 [blocks, block_bytes]."""
        assert pool.shape[1] == 4 * self.block_words and pool.is_contiguous(), tuple(pool.shape)
        found = torch.zeros(len(blocks) * self.per_block, dtype=torch.int32, device=pool.device)
        which = device_of(pool.device).send(blocks.astype(np.int32))
        words = pool.view(-1).view(torch.int32)
        if self._triton:
            from kernels.gpu.checksums import add_sums

            tables = self.moved, self.behind_lane, self.behind_part
            sizes = self.chunk_words, self.block_words, self.per_block
            add_sums(words, which, found, tables, sizes, LANES, PART // LANES)
        else:
            device_of(pool.device).call(_add_sums, words, which, found, self)
        return found

    def finished(self, found: NDArray[np.int32]) -> NDArray[np.uint32]:
        """The CRC32C of each chunk, from what has come to the host."""
        return (found.view(np.uint32).reshape(-1, self.per_block) ^ self.ends).reshape(-1)


def _add_sums(
    words: torch.Tensor,  # int32 [blocks * words of a block]
    which: torch.Tensor,  # int32 [blocks]
    found: torch.Tensor,  # int32 [len(which) * chunks of a block]
    shape: Checksums,
) -> None:
    """A chunk after the other, on a device whose memory this process can address."""
    import google_crc32c

    rows, sums = words.view(-1, shape.block_words).numpy(), found.view(-1, shape.per_block).numpy().view(np.uint32)
    for place, block in enumerate(which.tolist()):
        for number in range(shape.per_block):
            chunk = rows[block, number * shape.chunk_words : (number + 1) * shape.chunk_words]
            sums[place, number] ^= google_crc32c.extend(0, chunk.view(np.uint8)) ^ int(shape.ends[number])
