"""The two products of attention for a panel of query rows, written so that all sums stay in registers.

Scores: rows x slots of a tile of keys, each key read once for all rows. Values: rows x dims, each value read once for
all rows. Both read blocks where they lie, through the table, and widen 16-bit elements on the way. `cpu_attention`
calls these while it writes its kernel; masks, softmax and work sharing are its business.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import gcd

from llvmlite import ir

from kernels.cpu_ir import BFLOAT, FLOAT, I32, Code, Kind, Pointer, Value, Variable
from kernels.cpu_jit import Target

LANES = 16  # float32 lanes of the widest vector that kernels use; narrower processors split it
# Blocks side by side in a panel of scores. More would let the keys fetched ahead push out those in use.
MAX_COLUMNS = 4
# How many blocks ahead of its use a block of values is asked for.
VALUE_LEAD = 3


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

    def value_columns(self) -> list[tuple[int, int]]:
        """The dims of a value as (first, lanes)."""
        return [(first, min(LANES, self.value_dim - first)) for first in range(0, self.value_dim, LANES)]


@dataclass(frozen=True)
class Blocks:
    """One head's keys or values of a run of blocks: where block 0 of the pool lies, the stride, the run's table."""

    code: Code
    base: Pointer
    stride_bytes: Value
    table: Pointer

    def block(self, number: Value) -> Pointer:
        return self.base.at_bytes(self.table.load(number) * self.stride_bytes)

    def moved(self, elements: int) -> Blocks:
        """The same blocks from a place further on in each."""
        return Blocks(self.code, self.base.at(elements), self.stride_bytes, self.table)


def score_panel(
    shape: HeadShape,
    rows: int,
    query: Pointer,
    scores: Pointer,
    keys: Blocks,
    num_slots: Value,
    *,
    stride: int,
    afterwards: Blocks | None = None,
) -> None:
    """scores[row, slot] = query[row] . key[slot] for `num_slots` slots of a run of blocks, not scaled.

    query: [rows, head_dim] float32, or bf16 for pair products; scores: [rows, stride] float32, with room for
    MAX_COLUMNS - 1 more vectors than `num_slots` fills. With `afterwards` keys are fetched ahead of their use, and
    behind the last of them these values, which are needed next.
    """
    code, lanes = query.code, shape.score_lanes
    columns, per_block = shape.columns(rows), shape.block_size // lanes
    num_vectors = (num_slots + (lanes - 1)) // lanes
    last = num_vectors - 1

    def key_vector(number: Value) -> Pointer:
        held = number.minimum(last)
        block = keys.block(held // per_block)
        return (block.of(I32) if shape.pairs else block).at((held % per_block) * lanes)

    def fetched(number: Value, afterwards: Blocks) -> Pointer:
        past = (number - num_vectors).maximum(0).minimum(last)
        start = afterwards.block(past // per_block).at((past % per_block) * (lanes * shape.value_dim))
        return (number > last).choose_pointer(start, key_vector(number))

    with code.range(0, num_vectors, columns) as first:
        vectors = [key_vector(first + column) for column in range(columns)]
        ahead = [fetched(first + columns + column, afterwards) for column in range(columns) if afterwards]
        sums = [[code.variable(code.number(0.0, lanes)) for _ in range(columns)] for _ in range(rows)]
        with code.range(0, shape.head_dim // 2 if shape.pairs else shape.head_dim) as step:
            for pointer in ahead:
                pointer.prefetch(step * shape.block_size)
            _score_step(shape, sums, vectors, query, step)
        for row in range(rows):
            for column in range(columns):
                scores.put((first + column) * lanes + row * stride, sums[row][column].get())


def _score_step(
    shape: HeadShape, sums: list[list[Variable]], vectors: list[Pointer], query: Pointer, step: Value
) -> None:
    """Adds one dim (or one pair of dims) of every key vector to every sum."""
    code, lanes = query.code, shape.score_lanes
    row_dims = shape.head_dim
    if not shape.pairs:
        keys = [vector.load(step * shape.block_size, lanes) for vector in vectors]
        for row, row_sums in enumerate(sums):
            factor = query.load(step + row * row_dims)
            for total, key in zip(row_sums, keys, strict=True):
                total.add(key * factor)
        return
    words = [vector.raw(step * shape.block_size, lanes) for vector in vectors]
    if shape.pair_products:
        for row, row_sums in enumerate(sums):
            factor = query.of(I32).raw(step + row * (row_dims // 2))
            for total, word in zip(row_sums, words, strict=True):
                total.set(pair_product(code, total.get(), word, factor))
        return
    halves = [unpack_pair(word) for word in words]
    for row, row_sums in enumerate(sums):
        for half in (0, 1):
            factor = query.load(step * 2 + (row * row_dims + half))
            for total, both in zip(row_sums, halves, strict=True):
                total.add(both[half] * factor)


def value_panel(
    shape: HeadShape,
    rows: int,
    weights: Pointer,
    sums: Pointer,
    rescale: Pointer,
    values: Blocks,
    num_slots: Value,
    *,
    stride: int,
    afterwards: Blocks | None = None,
) -> None:
    """sums[row] = sums[row] * rescale[row] + weights[row] . values over `num_slots` slots of a run of blocks.

    weights: [rows, stride] float32, or bf16 for pair products; sums: [rows, value_stride] float32; rescale: [rows].
    With `afterwards` values are fetched ahead of their use, and behind the last of them these keys.
    """
    code = sums.code
    columns, wide = shape.value_columns(), shape.columns(rows)
    for group in (columns[first : first + wide] for first in range(0, len(columns), wide)):
        chains = 2 if rows * len(group) <= 8 and not shape.pair_products else 1
        totals = _start(shape, rows, group, sums, rescale, chains)
        full = num_slots // shape.block_size
        last = (num_slots - 1) // shape.block_size
        with code.range(0, full) as number:
            block, at = values.block(number), number * shape.block_size
            ahead = None
            if afterwards and group[0][0] == 0:
                then = number + VALUE_LEAD
                following = afterwards.block((then - last - 1).maximum(0))
                ahead = (then > last).choose_pointer(following, values.block(then.minimum(last)))
            _value_block(shape, totals, group, block, weights.at(at), shape.block_size, stride, ahead)
        rest = num_slots - full * shape.block_size
        with code.when(rest > 0):
            _value_block(shape, totals, group, values.block(full), weights.at(full * shape.block_size), rest, stride)
        for row in range(rows):
            for column, (dim, _) in enumerate(group):
                total = totals[row][column][0].get()
                for chain in totals[row][column][1:]:
                    total = total + chain.get()
                sums.put(row * value_stride(shape) + dim, total)


def value_stride(shape: HeadShape) -> int:
    return -(-shape.value_dim // LANES) * LANES


def _start(
    shape: HeadShape, rows: int, group: list[tuple[int, int]], sums: Pointer, rescale: Pointer, chains: int
) -> list[list[list[Variable]]]:
    code = sums.code
    totals = []
    for row in range(rows):
        factor = rescale.load(row)
        line = []
        for dim, lanes in group:
            first = code.variable(sums.load(row * value_stride(shape) + dim, lanes) * factor)
            line.append([first, *(code.variable(code.number(0.0, lanes)) for _ in range(chains - 1))])
        totals.append(line)
    return totals


def _value_block(
    shape: HeadShape,
    totals: list[list[list[Variable]]],
    group: list[tuple[int, int]],
    block: Pointer,
    weights: Pointer,
    num_slots: Value | int,
    stride: int,
    ahead: Pointer | None = None,
) -> None:
    """Adds the first `num_slots` slots of one block; those behind them may hold anything and reach no sum.

    While it does, it fetches as much of what begins at `ahead`.
    """
    code = weights.code
    if shape.pairs:
        _value_pairs(shape, totals, group, block, weights, code.integer(num_slots), stride, ahead)
        return

    def add(slot: Value, chain: int) -> None:
        _fetch(ahead, slot, shape.value_dim)
        loaded = [block.load(slot * shape.value_dim + dim, lanes) for dim, lanes in group]
        for row, line in enumerate(totals):
            weight = weights.load(slot + row * stride)
            for total, value in zip(line, loaded, strict=True):
                total[chain].add(value * weight)

    chains = len(totals[0][0])
    count = code.integer(num_slots)
    if chains == 1:
        with code.range(0, count) as slot:
            add(slot, 0)
        return
    with code.range(0, count - 1, 2) as slot:
        add(slot, 0)
        add(slot + 1, 1)
    with code.when((count & 1).equals(1)):
        add(count - 1, 0)


def _value_pairs(
    shape: HeadShape,
    totals: list[list[list[Variable]]],
    group: list[tuple[int, int]],
    block: Pointer,
    weights: Pointer,
    num_slots: Value,
    stride: int,
    ahead: Pointer | None,
) -> None:
    """The same for two slots in one word; of the last word of an odd number only the low half counts."""
    code = weights.code

    def add_products(words: list[Value], pair: Value) -> None:
        for row, line in enumerate(totals):
            factor = weights.of(I32).raw(pair + row * (stride // 2))
            for total, word in zip(line, words, strict=True):
                total[0].set(pair_product(code, total[0].get(), word, factor))

    def add_halves(words: list[Value], pair: Value, halves: tuple[int, ...]) -> None:
        unpacked = [unpack_pair(word) for word in words]
        for row, line in enumerate(totals):
            for half in halves:
                weight = weights.load(pair * 2 + (row * stride + half))
                for total, both in zip(line, unpacked, strict=True):
                    total[half % len(total)].add(both[half] * weight)

    def words_of(pair: Value) -> list[Value]:
        return [block.of(I32).raw(pair * shape.value_dim + dim, lanes) for dim, lanes in group]

    with code.range(0, num_slots >> 1) as pair:
        _fetch(ahead, pair, shape.value_dim * 2)
        if shape.pair_products:
            add_products(words_of(pair), pair)
        else:
            add_halves(words_of(pair), pair, (0, 1))
    with code.when((num_slots & 1).equals(1)):
        pair = num_slots >> 1
        if shape.pair_products:
            add_products([word & 0xFFFF for word in words_of(pair)], pair)
        else:
            add_halves(words_of(pair), pair, (0,))


def _fetch(ahead: Pointer | None, number: Value, elements: int) -> None:
    """Asks for the cache lines of one run of elements."""
    if ahead is not None:
        start = ahead.at(number * elements)
        for line in range(0, elements * ahead.kind.size_bytes, 64):
            start.at_bytes(line).prefetch(0)


def unpack_pair(word: Value) -> tuple[Value, Value]:
    """Two bf16 in each 32-bit word as float32: the low one is shifted up, the high one already stands there."""
    return (word << 16).cast(word._shaped(FLOAT)), (word & -65536).cast(word._shaped(FLOAT))


def pair_product(code: Code, total: Value, words: Value, factor: Value) -> Value:
    """total + low * low + high * high of bf16 pairs, sums in float32."""
    lanes = words.lanes
    bfloats = ir.VectorType(BFLOAT, 2 * lanes)
    return code.call(
        f"llvm.x86.avx512bf16.dpbf16ps.{lanes * 32}",
        ir.VectorType(FLOAT, lanes),
        [total, words.cast(bfloats), factor.splat(lanes).cast(bfloats)],
    )
