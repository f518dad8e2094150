"""What a decoder does to each row between its products, on a CPU: embedding, norms, rotation, writing keys and values.

`program` calls these for its ops; rows are shared out to the threads in equal runs. Inputs and residuals are
float32, outputs of the kind that the products read.
"""

from __future__ import annotations

from dataclasses import dataclass

from kernels.cpu.attention import for_vectors
from kernels.cpu.ir import FLOAT, Code, Kind, Pointer, Value
from kernels.cpu.shapes import LANES


@dataclass(frozen=True)
class RowShape:
    """What the row ops are specialised for."""

    kind: Kind
    head_dim: int
    block_size: int
    pairs: bool  # how keys and values lie in a block: as the CPU's attention reads bf16


def share(code: Code, rows: Value, thread: Value, num_threads: Value) -> tuple[Value, Value]:
    """The first row of this thread and the first that is not its own."""
    return rows * thread // num_threads, rows * (thread + 1) // num_threads


@dataclass(frozen=True)
class Embedding:
    """Where the rows of a step begin. The width is a multiple of the vector."""

    ids: Pointer
    table: Pointer
    positions: Pointer
    places: Pointer  # what is learned of each position, or null
    out: Pointer  # float32
    out_stride: Value
    width: Value


def emit_embedding(code: Code, first: Value, end: Value, op: Embedding) -> None:
    """out[row] = table[ids[row]] + places[positions[row]] as float32."""
    with code.range(first, end) as row:
        source, target = op.table.at(op.ids.load(row) * op.width), op.out.at(row * op.out_stride)
        with code.range(0, op.width, LANES) as at:
            target.store(at, source.load(at, LANES))
        with code.when(op.places.is_null().equals(0)):
            place = op.places.at(op.positions.load(row) * op.width)
            with code.range(0, op.width, LANES) as at:
                target.store(at, target.load(at, LANES) + place.load(at, LANES))


def emit_norm(
    code: Code,
    first: Value,
    end: Value,
    *,
    source: Pointer,
    source_stride: Value,
    chosen: Pointer,
    out: Pointer,
    out_stride: int,
    weight: Pointer,
    bias: Pointer,
    width: Value,
    epsilon: Value,
) -> None:
    """out[row] = rms_norm(source[chosen[row]]) * weight, or with a bias layer_norm of it; `chosen` may be null: every
    row."""
    every, has_bias = chosen.is_null(), bias.is_null().equals(0)
    with code.range(first, end) as row:
        index = code.variable(row)
        with code.when(every.choose(code.integer(0), code.integer(1)).equals(1)):
            index.set(chosen.load(row))
        values, target = source.at(index.get() * source_stride), out.at(row * out_stride)
        mean = code.variable(code.number(0.0))
        with code.when(has_bias):
            total = code.variable(code.number(0.0, LANES))
            with code.range(0, width, LANES) as at:
                total.add(values.load(at, LANES))
            mean.set(total.get().reduce_add() / width.to_float())
        centre = mean.get()
        squares = code.variable(code.number(0.0, LANES))
        with code.range(0, width, LANES) as at:
            value = values.load(at, LANES) - centre
            squares.add(value * value)
        scale = _inverse_root(code, squares.get().reduce_add() / width.to_float() + epsilon)
        # Without a bias its place is read from the weights, and counts nothing.
        added, share = has_bias.choose_pointer(bias, weight), has_bias.choose(code.number(1.0), code.number(0.0))
        with code.range(0, width, LANES) as at:
            normed = (values.load(at, LANES) - centre) * scale * weight.load(at, LANES)
            target.store(at, normed + added.load(at, LANES) * share)


def _inverse_root(code: Code, value: Value) -> Value:
    return 1.0 / code.call("llvm.sqrt.f32", FLOAT, [value])


@dataclass(frozen=True)
class Rotation:
    """One layer's heads on their way from the product to attention."""

    heads: Pointer  # float32 [rows, query heads, then key heads, then value heads]
    heads_stride: Value
    num_heads: Value
    num_kv_heads: Value
    query: Pointer  # [rows, query heads], for attention
    query_stride: Value
    cosines: Pointer  # float32 [positions, head_dim / 2]
    sines: Pointer
    angle_stride: Value  # 0: the same for all positions
    positions: Pointer
    slots: Pointer
    keys: Pointer
    values: Pointer
    block_stride: Value
    query_norm: Pointer  # float32 [head_dim], or null
    key_norm: Pointer
    epsilon: Value


def emit_rotation(code: Code, shape: RowShape, first: Value, end: Value, op: Rotation) -> None:
    """Norms and rotates queries and keys, hands queries to attention, writes keys and values to their slots."""
    dim, half = shape.head_dim, shape.head_dim // 2
    with code.range(first, end) as row:
        heads = op.heads.at(row * op.heads_stride)
        angle = op.positions.load(row) * op.angle_stride
        cosines, sines = op.cosines.at(angle), op.sines.at(angle)
        with code.range(0, op.num_heads) as head:
            source = heads.at(head * dim)
            _norm_head(code, dim, source, op.query_norm, op.epsilon)
            _rotate(code, half, source, op.query.at(row * op.query_stride + head * dim), cosines, sines)
        slot = op.slots.load(row)
        with code.when(slot >= 0):
            block_at, within = (slot // shape.block_size) * op.block_stride, slot % shape.block_size
            with code.range(0, op.num_kv_heads) as head:
                key = heads.at((op.num_heads + head) * dim)
                value = heads.at((op.num_heads + op.num_kv_heads + head) * dim)
                _norm_head(code, dim, key, op.key_norm, op.epsilon)
                _rotate(code, half, key, key, cosines, sines)
                elements = head * (dim * shape.block_size)
                _write_key(code, shape, key, op.keys.at_bytes(block_at).at(elements), within)
                _write_value(code, shape, value, op.values.at_bytes(block_at).at(elements), within)


def _norm_head(code: Code, dim: int, head: Pointer, weight: Pointer, epsilon: Value) -> None:
    with code.when(weight.is_null().choose(code.integer(0), code.integer(1)).equals(1)):
        total = code.variable(code.number(0.0))

        def square(at: Value, lanes: int) -> None:
            value = head.load(at, lanes)
            total.add((value * value).reduce_add())

        for_vectors(code, dim, square)
        scale = _inverse_root(code, total.get() / float(dim) + epsilon)
        for_vectors(code, dim, lambda at, n: head.store(at, head.load(at, n) * scale * weight.load(at, n)))


def _rotate(code: Code, half: int, source: Pointer, target: Pointer, cosines: Pointer, sines: Pointer) -> None:
    """The two halves of a head as one complex number per pair."""

    def turn(at: Value, lanes: int) -> None:
        real, imaginary = source.load(at, lanes), source.load(at + half, lanes)
        cosine, sine = cosines.load(at, lanes), sines.load(at, lanes)
        target.store(at, real * cosine - imaginary * sine)
        target.store(at + half, imaginary * cosine + real * sine)

    for_vectors(code, half, turn)


def _write_key(code: Code, shape: RowShape, key: Pointer, block: Pointer, slot: Value) -> None:
    size = shape.block_size
    if shape.pairs:
        with code.range(0, shape.head_dim // 2) as pair:
            for number in (0, 1):
                block.store((pair * size + slot) * 2 + number, key.load(pair * 2 + number))
    else:
        with code.range(0, shape.head_dim) as dim:
            block.store(dim * size + slot, key.load(dim))


def _write_value(code: Code, shape: RowShape, value: Pointer, block: Pointer, slot: Value) -> None:
    dim = shape.head_dim
    if shape.pairs:
        start = (slot >> 1) * (2 * dim) + (slot & 1)
        with code.range(0, dim) as at:
            block.store(start + at * 2, value.load(at))
    else:
        target = block.at(slot * dim)
        for_vectors(code, dim, lambda at, n: target.store(at, value.load(at, n)))
