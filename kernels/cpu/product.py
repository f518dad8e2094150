"""Matrix products on a CPU for weights that stay: packed once in panels, multiplied by however many rows a step has.

A panel is two vectors of output columns over the whole depth, so that a tile of rows keeps its sums in registers and
each weight is read once, in the order in which it lies. What a row comes to depends on that row alone: the terms are
added in the order of the depth, whatever else is in the batch. `program` calls `emit_product` for its product ops.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch

from kernels.cpu import memory
from kernels.cpu.ir import BF16, F32, I32, Code, Kind, Pointer, Value, Variable
from kernels.cpu.jit import Target
from kernels.cpu.math import sigmoid
from kernels.cpu.shapes import pair_product

# What becomes of the sums: kept as float32, added to what is there, or made the rows of the next product.
STORE, ADD, ACTIVATE = range(3)

Activation = Literal["silu_mul", "relu", "gelu_tanh"]
"""silu(gate) * up of interleaved columns; or a function of each sum."""

_GELU_CUBE, _GELU_SCALE = 0.044715, 2.0 * math.sqrt(2.0 / math.pi)


@dataclass(frozen=True)
class ProductShape:
    """What products are specialised for on this machine: vectors, rows per tile, the rows' element type and stride."""

    kind: Kind
    target: Target
    row_stride: int  # elements between two rows of inputs
    activation: Activation = "silu_mul"

    @property
    def lanes(self) -> int:
        return 16 if self.target.accumulators >= 24 else 8

    @property
    def panel(self) -> int:
        """Output columns of one panel."""
        return 2 * self.lanes

    @property
    def tiles(self) -> tuple[int, ...]:
        """Rows of a tile, the largest first: as many as have their sums in registers."""
        return (12, 8, 4, 2, 1) if self.lanes == 16 else (6, 4, 2, 1)

    @property
    def pairs(self) -> bool:
        """bf16 is multiplied in pairs of neighbours."""
        return self.kind is BF16


def supports(dtype: torch.dtype, target: Target) -> bool:
    return dtype == torch.float32 or (dtype == torch.bfloat16 and target.pair_products)


def pack(weight: torch.Tensor, shape: ProductShape) -> torch.Tensor:
    """weight [columns, depth] in panels, [panels, depth, panel], for bf16 [panels, depth / 2, panel, 2]. Columns are
    filled up to whole panels with zeros."""
    columns, depth = weight.shape
    panels = -(-columns // shape.panel)
    if columns % shape.panel:
        full = weight.new_zeros(panels * shape.panel, depth)
        full[:columns] = weight
        weight = full
    if shape.pairs:
        ordered = weight.reshape(panels, shape.panel, depth // 2, 2).transpose(1, 2)
    else:
        ordered = weight.reshape(panels, shape.panel, depth).transpose(1, 2)
    return memory.empty(*ordered.shape, dtype=weight.dtype).copy_(ordered)


def interleave(gate: torch.Tensor, up: torch.Tensor, shape: ProductShape) -> torch.Tensor:
    """Rows of gate and up such that each panel holds one vector of either: what "silu_mul" wants."""
    lanes = shape.lanes
    size = -(-gate.shape[0] // lanes) * lanes

    def filled(weight: torch.Tensor) -> torch.Tensor:
        full = weight.new_zeros(size, *weight.shape[1:])
        full[: weight.shape[0]] = weight
        return full.view(size // lanes, 1, lanes, *weight.shape[1:])

    return torch.cat([filled(gate), filled(up)], dim=1).flatten(0, 2)


@dataclass(frozen=True)
class Product:
    """One product in emitted code."""

    x: Pointer  # rows of inputs, `row_stride` apart
    weights: Pointer
    bias: Pointer  # float32, one per column: what the sums begin with
    depth: Value
    panels: Value
    rows: Value
    mode: Value
    out: Pointer  # for STORE and ADD of float32, for ACTIVATE of the rows' kind
    out_stride: Value
    next_weights: Pointer  # where this thread is likely to read first in the next product
    counter: Pointer


@contextmanager
def repeat(code: Code) -> Iterator[Callable[[Value], None]]:
    """A loop in emitted code that goes on until the yielded function is called with a condition that fails."""
    body, end = code.function.append_basic_block(), code.function.append_basic_block()
    code.builder.branch(body)
    code.builder.position_at_end(body)

    def go_on_while(condition: Value) -> None:
        rest = code.function.append_basic_block()
        code.builder.cbranch(condition.ir, rest, end)
        code.builder.position_at_end(rest)

    yield go_on_while
    code.builder.branch(body)
    code.builder.position_at_end(end)


def emit_product(code: Code, shape: ProductShape, product: Product, num_threads: Value) -> None:
    """This thread's share. A task is a panel and a run of rows; each thread takes from the counter, one ahead, so that
    it can fetch the weights that it will need next."""
    most = shape.tiles[0]
    tiles = (product.rows + (most - 1)) // most
    # Few panels and many threads: rows are shared out as well.
    wanted = (num_threads * 4 + product.panels - 1) // product.panels
    groups = wanted.minimum(tiles).maximum(1)
    rows_per_group = (tiles + groups - 1) // groups * most
    num_tasks = product.panels * groups
    panel_elements = product.depth * shape.panel
    task = code.variable(product.counter.fetch_add(1))
    with repeat(code) as go_on_while:
        current = task.get()
        go_on_while(current < num_tasks)
        following = product.counter.fetch_add(1)
        panel = current // groups
        here = product.weights.at(panel * panel_elements)
        there = product.weights.at((following // groups) * panel_elements)
        ahead = (following < num_tasks).choose_pointer(there, product.next_weights)
        # Whole tiles may leave the last groups without rows.
        first = ((current % groups) * rows_per_group).minimum(product.rows)
        _rows(code, shape, product, panel, here, ahead, first, (first + rows_per_group).minimum(product.rows))
        task.set(following)


def _rows(
    code: Code,
    shape: ProductShape,
    product: Product,
    panel: Value,
    here: Pointer,
    ahead: Pointer,
    first: Value,
    end: Value,
) -> None:
    """All rows of one task, in tiles. Only the first tile fetches ahead."""
    row = code.variable(first)
    fetch = Prefetch(code, ahead)
    for size in shape.tiles:
        begin = row.get()
        count = (end - begin) // size
        with code.range(0, count) as number:
            at = begin + number * size
            _tile(code, shape, product, size, product.x.at(at * shape.row_stride), at, panel, here, fetch)
            fetch.pointer.set(Value(code, here.ir))
        row.set(begin + count * size)


class Prefetch:
    """Where a tile fetches ahead. Once that is done it names the panel in use, which is in the cache already."""

    def __init__(self, code: Code, ahead: Pointer) -> None:
        self.kind = ahead.kind
        self.pointer = Variable(code, Value(code, ahead.ir))

    def get(self) -> Pointer:
        value = self.pointer.get()
        return Pointer(value.code, value.ir, self.kind)


def _tile(
    code: Code,
    shape: ProductShape,
    product: Product,
    size: int,
    x: Pointer,
    at: Value,
    panel: Value,
    here: Pointer,
    fetch: Prefetch,
) -> None:
    """`size` rows times one panel."""
    lanes = shape.lanes
    bias = product.bias.at(panel * shape.panel)
    start = [bias.load(half * lanes, lanes) for half in range(2)]
    sums = [[code.variable(start[half]) for half in range(2)] for _ in range(size)]
    ahead = fetch.get()
    words_here, words_x = here.of(I32), x.of(I32)
    with code.range(0, product.depth // 2 if shape.pairs else product.depth) as k:
        for half in range(2):
            # Words of 32 bits: a float32, or a pair of bf16.
            ahead.of(I32).prefetch(k * shape.panel + half * lanes)
        if shape.pairs:
            weights = [words_here.raw(k * shape.panel + half * lanes, lanes) for half in range(2)]
        else:
            weights = [here.load(k * shape.panel + half * lanes, lanes) for half in range(2)]
        for row in range(size):
            offset = row * shape.row_stride
            if shape.pairs:
                factor = words_x.at(offset // 2).raw(k)
                for half in range(2):
                    sums[row][half].set(pair_product(code, sums[row][half].get(), weights[half], factor))
            else:
                factor = x.at(offset).load(k)
                for half in range(2):
                    sums[row][half].add(weights[half] * factor)
    _finish(code, shape, product, [[half.get() for half in row] for row in sums], at, panel)


def _finish(
    code: Code, shape: ProductShape, product: Product, sums: list[list[Value]], at: Value, panel: Value
) -> None:
    """Does with the sums of a tile what the product's mode says."""
    lanes = shape.lanes
    with code.when(product.mode.equals(ACTIVATE)):
        for number, row in enumerate(sums):
            activated = _activated(code, shape, row)
            column = panel * (len(activated) * lanes)
            target = product.out.of(shape.kind).at((at + number) * product.out_stride + column)
            for half, value in enumerate(activated):
                target.store(half * lanes, value)
    with code.when(product.mode < ACTIVATE):
        is_added = product.mode.equals(ADD)
        for number, row in enumerate(sums):
            target = product.out.of(F32).at((at + number) * product.out_stride + panel * shape.panel)
            for half, total in enumerate(row):
                old = target.load(half * lanes, lanes)
                kept = is_added.choose(old, code.number(0.0, lanes))
                target.store(half * lanes, total + kept)


def _activated(code: Code, shape: ProductShape, row: list[Value]) -> list[Value]:
    """One row of a panel as the next product reads it."""
    if shape.activation == "silu_mul":
        gate, up = row
        return [gate * sigmoid(gate) * up]
    if shape.activation == "relu":
        return [value.maximum(code.number(0.0, shape.lanes)) for value in row]
    # (1 + tanh(u)) / 2 is the sigmoid of 2 u.
    return [value * sigmoid((value * value * value * _GELU_CUBE + value) * _GELU_SCALE) for value in row]
