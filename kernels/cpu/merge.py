"""Finishes what attention tasks left as partials over disjoint keys: one kernel per head shape.

A partial row is its sums (not divided), its top score in units of log2, and its total weight. A task is one key/value
head of one merged item; parts are added in the order of their keys, so the result does not depend on who computed what.
"""

from __future__ import annotations

from kernels.cpu import math as cpu_math
from kernels.cpu.attention import ARGUMENTS, TiledAttention, for_vectors, write_row
from kernels.cpu.ir import F32, I32, Code, Pointer, Value

# Columns of a merge item, int32 each.
MERGE_TOKEN, MERGE_TOKENS, MERGE_PARTIAL, MERGE_PARTS, MERGE_WIDTH = range(5)


class MergeEmitter:
    """Writes the kernel `merge_parts`; it takes the arguments of `attend`, with merge items as its items."""

    def __init__(self, code: Code, shape: TiledAttention) -> None:
        self.code = code
        self.shape = shape
        self.args = ARGUMENTS.reader(code)

    def emit(self) -> None:
        code, args = self.code, self.args
        num_heads = args.integer("num_kv_heads")
        num_tasks = args.integer("num_items") * num_heads
        counter = ARGUMENTS.counter(code)
        with code.forever():
            task = counter.fetch_add(1)
            code.return_unless(task < num_tasks)
            self._task(args.pointer("items", I32).at((task // num_heads) * MERGE_WIDTH), task % num_heads)

    def _task(self, item: Pointer, head: Value) -> None:
        code, group = self.code, self.shape.head.group
        tokens, num_parts = item.load(MERGE_TOKENS), item.load(MERGE_PARTS)
        rows = tokens * group
        # One part holds the rows of all heads.
        part_stride = rows * self.args.integer("num_kv_heads") * self.shape.partial_stride
        partials = self.args.pointer("partials", F32)
        with code.range(0, rows) as row:
            first = partials.at((item.load(MERGE_PARTIAL) + head * rows + row) * self.shape.partial_stride)
            top, total = self._add_parts(first, part_stride, num_parts)
            token = item.load(MERGE_TOKEN) + row // group
            write_row(self.args, self.shape.head, first, top, total, token, head * group + row % group)

    def _add_parts(self, first: Pointer, part_stride: Value, num_parts: Value) -> tuple[Value, Value]:
        """Adds all parts of a row into its first part, each weighed by how far its top is below the highest."""
        code = self.code
        at_top = self.shape.head.value_stride
        highest = code.variable(code.number(float("-inf")))
        with code.range(0, num_parts) as part:
            highest.set(first.at(part * part_stride).load(at_top).maximum(highest.get()))
        level = highest.get().maximum(-3.0e38)
        total = code.variable(code.number(0.0))
        with code.range(0, num_parts) as part:
            source = first.at(part * part_stride)
            share = cpu_math.exp2(source.load(at_top) - level)
            # The first part is where the sums are gathered: it is scaled and nothing is added to it.
            keep = part.equals(0).choose(code.number(0.0), code.number(1.0))

            def add(at: Value, lanes: int, source: Pointer = source, share: Value = share, keep: Value = keep) -> None:
                first.store(at, first.load(at, lanes) * keep + source.load(at, lanes) * share)

            for_vectors(code, at_top, add)
            total.add(source.load(at_top + 1) * share)
        return highest.get(), total.get()
