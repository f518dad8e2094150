"""What the CPU's attention is specialised for, and how its emitted code finds blocks and reads bf16 pairs.

`scores` and `values` write the two inner products over these; `attention` puts them together.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import gcd

from llvmlite import ir

from kernels.cpu.ir import BFLOAT, FLOAT, Code, Kind, Pointer, Value
from kernels.cpu.jit import Target

LANES = 16  # float32 lanes of the widest vector that kernels use; narrower processors split it
# Blocks side by side in a panel of scores. More would let the keys fetched ahead push out those in use.
MAX_COLUMNS = 4


@dataclass(frozen=True)
class Tiling:
    """How work is cut. Any values give right results; these are fast where the first cache has 32 to 48 KiB."""

    # Keys that are scored before their softmax is taken.
    decode_keys: int = 512
    prefill_keys: int = 128
    # Keys of one part. Twice as many or more are cut; less than a part is never split off.
    part_keys: int = 512
    # Query rows that one task works on at most, unless one token alone has more heads in a group.
    task_rows: int = 96

    def tokens_per_task(self, group: int) -> int:
        return max(1, self.task_rows // group)


@dataclass(frozen=True)
class HeadShape:
    """What the inner products are specialised for: one head's block and the query heads that share it."""

    cache: Kind
    query: Kind
    pairs: bool
    block_size: int
    head_dim: int
    value_dim: int
    group: int  # query heads per key/value head
    target: Target
    tiling: Tiling = Tiling()

    @cached_property
    def score_lanes(self) -> int:
        """Slots per vector: all of one vector lie in one block."""
        return gcd(self.block_size, LANES)

    @cached_property
    def pair_products(self) -> bool:
        """Whether bf16 pairs are multiplied as they lie; the queries must be bf16 too, or they would lose digits."""
        pairs = self.pairs and self.cache.name == "bf16" and self.query.name == "bf16"
        return pairs and self.target.pair_products and self.score_lanes == LANES

    def columns(self, rows: int) -> int:
        """Vectors side by side in a panel of so many rows."""
        return max(1, min(MAX_COLUMNS, self.target.accumulators // rows))

    @property
    def value_stride(self) -> int:
        """float32 elements of one row of sums: the dims of a value in whole vectors."""
        return -(-self.value_dim // LANES) * LANES


@dataclass(frozen=True)
class KeyBlocks:
    """One head's keys or values of a run of blocks: where block 0 of the pool lies, the stride, the run's table."""

    code: Code
    base: Pointer
    stride_bytes: Value
    table: Pointer

    def block(self, number: Value) -> Pointer:
        return self.base.at_bytes(self.table.load(number) * self.stride_bytes)

    def moved(self, elements: int) -> KeyBlocks:
        """The same blocks from a place further on in each."""
        return KeyBlocks(self.code, self.base.at(elements), self.stride_bytes, self.table)


def unpack_pair(word: Value) -> tuple[Value, Value]:
    """Two bf16 in each 32-bit word as float32: the low one is shifted up, the high one already stands there."""
    return (word << 16).cast(word._shaped(FLOAT)), (word & -65536).cast(word._shaped(FLOAT))


def pair_product(code: Code, total: Value, words: Value, factor: Value) -> Value:
    """total + low * low + high * high of bf16 pairs, sums in float32."""
    lanes = words.lanes
    if lanes not in (4, 8, 16):
        # What is left over of a head whose size is no multiple of a vector: there is no such instruction.
        low, high = unpack_pair(words)
        low_factor, high_factor = unpack_pair(factor)
        return total + low * low_factor + high * high_factor
    bfloats = ir.VectorType(BFLOAT, 2 * lanes)
    return code.call(
        f"llvm.x86.avx512bf16.dpbf16ps.{lanes * 32}",
        ir.VectorType(FLOAT, lanes),
        [total, words.cast(bfloats), factor.splat(lanes).cast(bfloats)],
    )
