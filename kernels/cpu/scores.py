"""Scores of a panel of query rows against a tile of keys, written so that all sums stay in registers.

Each key is read once for all rows, in its block, through the table; 16-bit elements are widened on the way. One vector
holds the scores of neighbouring slots, so no sum goes across a register. `attention` calls this while it writes its
kernel; masks and softmax are its business.
"""

from __future__ import annotations

from kernels.cpu.ir import I32, Pointer, Value, Variable
from kernels.cpu.shapes import HeadShape, KeyBlocks, pair_product, unpack_pair


def score_panel(
    shape: HeadShape,
    rows: int,
    query: Pointer,
    scores: Pointer,
    keys: KeyBlocks,
    num_slots: Value,
    *,
    stride: int,
    afterwards: KeyBlocks | None = None,
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

    def fetched(number: Value, afterwards: KeyBlocks) -> Pointer:
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
