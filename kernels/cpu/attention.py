"""Paged attention on a CPU: one kernel per head shape, written here, for prefill chunks and decodes alike.

A task is one key/value head of one item of the plan (see `plan`): the query heads of its group times a run of query
tokens, over a run of keys. Threads take tasks from a shared counter until none is left. Nothing is gathered: keys and
values are read in their blocks. An item that covers all keys writes the output, any other writes a partial that
`merge` finishes. What a task computes depends on its own sequence alone, so a sequence's result never depends on
what else is in the batch, nor on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from kernels.cpu import math as cpu_math
from kernels.cpu.call import ArgumentList, ArgumentReader
from kernels.cpu.ir import BF16, F32, I32, Code, Pointer, Value
from kernels.cpu.scores import score_panel
from kernels.cpu.shapes import LANES, MAX_COLUMNS, HeadShape, KeyBlocks
from kernels.cpu.values import ValuePanel

ARGUMENTS = ArgumentList(
    "num_items", "num_kv_heads", "tasks_at_once", "items",
    "scratch", "scratch_stride", "partials",
    "query", "query_token_stride", "query_head_stride",
    "out", "out_token_stride", "out_head_stride",
    "lse", "lse_token_stride",
    "keys", "values", "block_stride", "tables", "table_stride",
    "query_factor", "score_factor", "softcap", "window", "sinks",
)  # fmt: skip

# Columns of an item, int32 each.
ITEM_TOKEN, ITEM_TOKENS, ITEM_POSITION, ITEM_ROW, ITEM_FROM, ITEM_TO, ITEM_PARTIAL, ITEM_WIDTH = range(8)


# What to give as the window for none: further back than any key.
NO_WINDOW = 1 << 40


@dataclass(frozen=True)
class TiledAttention:
    """A head shape with what follows from it: how rows and keys are tiled and how a thread's scratch memory is cut."""

    head: HeadShape

    @cached_property
    def tokens_per_task(self) -> int:
        return self.head.tiling.tokens_per_task(self.head.group)

    @cached_property
    def prefill_panel(self) -> int:
        """Rows whose sums are in registers at once: two columns of 12 rows fill them on AVX-512, 6 rows elsewhere."""
        return min(12, max(4, self.head.target.accumulators // 2)) if self.head.target.accumulators >= 24 else 6

    @cached_property
    def decode_panel(self) -> int:
        """The group's heads in equal panels, none larger than a panel of prefill."""
        panels = -(-self.head.group // self.prefill_panel)
        return -(-self.head.group // panels)

    def tile_blocks(self, keys: int) -> int:
        return max(1, keys // self.head.block_size)

    def score_stride(self, keys: int) -> int:
        """Scores of one row, with room for the vectors that a panel computes too many."""
        slots = self.tile_blocks(keys) * self.head.block_size
        return -(-slots // LANES) * LANES + MAX_COLUMNS * LANES

    @cached_property
    def max_rows(self) -> int:
        """Rows of a task, filled up to whole panels of either kind."""
        rows = max(self.tokens_per_task * self.head.group, self.head.group)
        return max(-(-rows // panel) * panel for panel in (self.prefill_panel, self.decode_panel))

    @cached_property
    def scratch_parts(self) -> dict[str, int]:
        """float32 elements of each part of a thread's scratch memory."""
        tiling = self.head.tiling
        scores = max(
            self.decode_panel * self.score_stride(tiling.decode_keys),
            self.prefill_panel * self.score_stride(tiling.prefill_keys),
        )
        return {
            "query": -(-self.max_rows * self.head.head_dim // LANES) * LANES,
            "scores": scores,
            "sums": self.max_rows * self.head.value_stride,
            "top": -(-self.max_rows // LANES) * LANES,
            "total": -(-self.max_rows // LANES) * LANES,
            "rescale": LANES,
        }

    @cached_property
    def scratch_bytes(self) -> int:
        return sum(self.scratch_parts.values()) * 4

    @cached_property
    def partial_stride(self) -> int:
        """float32 elements of one row of a partial: the sums, then the top score and the total weight."""
        return self.head.value_stride + LANES


@dataclass(frozen=True)
class _Task:
    """What the emitted code knows of the task at hand."""

    tokens: Value
    token: Value
    position: Value
    head: Value
    keys: KeyBlocks
    values: KeyBlocks
    first_key: Value
    end_key: Value


class AttentionEmitter:
    """Writes the kernel `attend` for one shape."""

    def __init__(self, code: Code, shape: TiledAttention) -> None:
        self.code = code
        self.shape = shape
        self.head = shape.head
        self.args = ARGUMENTS.reader(code)

    def emit(self) -> None:
        code, args = self.code, self.args
        thread = ARGUMENTS.ticket(code).fetch_add(1)
        self._cut_scratch(args.pointer("scratch", F32).at_bytes(thread * args.integer("scratch_stride")))
        num_heads, at_once = args.integer("num_kv_heads"), args.integer("tasks_at_once")
        num_tasks = args.integer("num_items") * num_heads
        counter = ARGUMENTS.counter(code)
        with code.forever():
            first = counter.fetch_add(at_once)
            code.return_unless(first < num_tasks)
            with code.range(first, (first + at_once).minimum(num_tasks)) as number:
                self._task(args.pointer("items", I32).at((number // num_heads) * ITEM_WIDTH), number % num_heads)

    def _cut_scratch(self, start: Pointer) -> None:
        offset = 0
        parts = {}
        for name, size in self.shape.scratch_parts.items():
            parts[name] = start.at(offset)
            offset += size
        self.query, self.scores, self.sums = parts["query"], parts["scores"], parts["sums"]
        self.top, self.total, self.rescale = parts["top"], parts["total"], parts["rescale"]

    def _task(self, item: Pointer, head: Value) -> None:
        code, args = self.code, self.args
        position, tokens = item.load(ITEM_POSITION), item.load(ITEM_TOKENS)
        tables = args.pointer("tables", I32).at(item.load(ITEM_ROW) * args.integer("table_stride"))
        stride = args.integer("block_stride")
        size = self.head.block_size * self.head.cache.size_bytes

        def blocks(name: str, dim: int) -> KeyBlocks:
            return KeyBlocks(code, args.pointer(name, self.head.cache).at_bytes(head * (dim * size)), stride, tables)

        task = _Task(
            tokens=tokens,
            token=item.load(ITEM_TOKEN),
            position=position,
            head=head,
            keys=blocks("keys", self.head.head_dim),
            values=blocks("values", self.head.value_dim),
            first_key=item.load(ITEM_FROM).maximum(position + 1 - args.integer("window")),
            end_key=item.load(ITEM_TO),
        )
        self._load_query(task)
        single = tokens.equals(1)
        with code.when(single):
            self._attend(task, self.shape.decode_panel, self.head.tiling.decode_keys, ahead=True)
        with code.when(tokens > 1):
            self._attend(task, self.shape.prefill_panel, self.head.tiling.prefill_keys, ahead=False)
        self._write(task, item.load(ITEM_PARTIAL))

    def _load_query(self, task: _Task) -> None:
        """Copies the rows' queries to scratch as [token, head of the group][dim] and clears the rows' sums."""
        code, args, group, dim = self.code, self.args, self.head.group, self.head.head_dim
        factor = args.number("query_factor")
        kind = BF16 if self.head.pair_products else F32
        source = args.pointer("query", self.head.query)
        with code.range(0, task.tokens) as token, code.range(0, group) as member:
            row = token * group + member
            start = source.at(
                (task.token + token) * args.integer("query_token_stride")
                + (task.head * group + member) * args.integer("query_head_stride")
            )
            target = self.query.of(kind).at(row * dim)
            for_vectors(code, dim, lambda at, n: target.store(at, start.load(at, n) * factor))
            sums = self.sums.at(row * self.head.value_stride)
            for_vectors(code, self.head.value_stride, lambda at, n: sums.store(at, code.number(0.0, n)))
            self.top.store(row, code.number(float("-inf")))
            self.total.store(row, code.number(0.0))

    def _attend(self, task: _Task, panel: int, tile: int, *, ahead: bool) -> None:
        """Goes over the task's keys tile by tile, and over its rows panel by panel."""
        code, group, block_size = self.code, self.head.group, self.head.block_size
        tile_slots = self.shape.tile_blocks(tile) * block_size
        stride = self.shape.score_stride(tile)
        num_panels = (task.tokens * group + (panel - 1)) // panel
        start = (task.first_key.maximum(0) // block_size) * block_size
        with code.range(start, task.end_key, tile_slots) as first, code.range(0, num_panels) as number:
            # The last token of a panel sees furthest.
            last_token = ((number + 1) * panel - 1) // group
            end = (task.position + last_token.minimum(task.tokens - 1) + 1).minimum(task.end_key)
            num_slots = (end - first).minimum(tile_slots)
            with code.when(num_slots > 0):
                self._tile(task, number * panel, panel, first, num_slots, stride, ahead=ahead)

    def _tile(
        self, task: _Task, row: Value, panel: int, first: Value, num_slots: Value, stride: int, *, ahead: bool
    ) -> None:
        code, head = self.code, self.head
        block = first // head.block_size
        keys = KeyBlocks(code, task.keys.base, task.keys.stride_bytes, task.keys.table.at(block))
        values = KeyBlocks(code, task.values.base, task.values.stride_bytes, task.values.table.at(block))
        query = self.query.of(BF16 if head.pair_products else F32).at(row * head.head_dim)
        score_panel(
            head, panel, query, self.scores, keys, num_slots, stride=stride, afterwards=values if ahead else None
        )
        with code.range(0, panel) as number:
            at = row + number
            position = task.position + (at // head.group).minimum(task.tokens - 1)
            self._softmax(self.scores.at(number * stride), at, number, position - first, num_slots)
        weights, weight_stride = self.scores, stride
        if head.pair_products:
            weights, weight_stride = self.scores.of(BF16), 2 * stride
        # The next task of this thread is mostly the next head of the same blocks.
        following = keys.moved(head.head_dim * head.block_size) if ahead else None
        sums = self.sums.at(row * head.value_stride)
        ValuePanel(head, panel, weights, weight_stride, sums, self.rescale, values, following).emit(num_slots)

    def _softmax(self, scores: Pointer, row: Value, number: Value, position: Value, num_slots: Value) -> None:
        """Turns one row's scores into weights, in place, and keeps its running top and total.

        `position` is the row's own key, counted from the tile's first one.
        """
        code, args = self.code, self.args
        num_vectors = (num_slots + (LANES - 1)) // LANES
        slots = num_vectors * LANES
        softcap = args.number("softcap")
        factor = args.number("score_factor")
        with code.when(softcap > 0.0), code.range(0, slots, LANES) as at:
            # The factor is scale / softcap here, and softcap is in units of log2.
            scores.put(at, cpu_math.tanh(scores.load(at, LANES) * factor) * softcap)
        factor = (softcap > 0.0).choose(code.number(1.0), factor)
        self._mask(scores, (position + 1 - args.integer("window")).maximum(0), (position + 1).minimum(num_slots), slots)

        best = code.variable(code.number(float("-inf"), LANES))
        with code.range(0, slots, LANES) as at:
            best.set(scores.load(at, LANES).maximum(best.get()))
        before = self.top.load(row)
        top = (best.get().reduce_max() * factor).maximum(before)
        # A row that sees nothing yet has -inf as its top; its weights must come out as 0, not as not-a-number.
        level = top.maximum(-3.0e38)
        total = code.variable(code.number(0.0, LANES))
        target = scores.of(BF16) if self.head.pair_products else scores
        with code.range(0, slots, LANES) as at:
            weight = cpu_math.exp2(scores.load(at, LANES) * factor - level)
            total.add(weight)
            target.store(at, weight)
        rescale = cpu_math.exp2(before - level)
        self.rescale.store(number, rescale)
        self.top.store(row, top)
        self.total.store(row, self.total.load(row) * rescale + total.get().reduce_add())

    def _mask(self, scores: Pointer, first: Value, end: Value, slots: Value) -> None:
        """Scores outside [first, end) become -inf; only the vectors that hold such are touched."""
        code = self.code
        lanes = code.lane_numbers(LANES)

        def clear(at: Value) -> None:
            numbers = lanes + at.narrow()
            outside = (numbers < first.narrow()) | (numbers >= end.narrow())
            scores.put(at, outside.choose(code.number(float("-inf"), LANES), scores.load(at, LANES)))

        with code.range(0, first.minimum(slots), LANES) as at:
            clear(at)
        with code.range((end.maximum(0) // LANES) * LANES, slots, LANES) as at:
            clear(at)

    def _write(self, task: _Task, partial: Value) -> None:
        """Writes the task's rows to the output, or as they are to the partials."""
        code, group = self.code, self.head.group
        with code.range(0, task.tokens) as token, code.range(0, group) as member:
            row = token * group + member
            sums = self.sums.at(row * self.head.value_stride)
            top, total = self.top.load(row), self.total.load(row)
            with code.when(partial < 0):
                head = task.head * group + member
                write_row(self.args, self.head, sums, top, total, task.token + token, head)
            with code.when(partial >= 0):
                at = partial + task.head * (task.tokens * group) + row
                target = self.args.pointer("partials", F32).at(at * self.shape.partial_stride)
                for_vectors(code, self.head.value_stride, lambda i, n: target.store(i, sums.load(i, n)))
                target.store(self.head.value_stride, top)
                target.store(self.head.value_stride + 1, total)


def write_row(
    args: ArgumentReader, head: HeadShape, sums: Pointer, top: Value, total: Value, token: Value, number: Value
) -> None:
    """Divides one row by its total weight, the sink's included, and writes it and its log-sum-exp."""
    code = sums.code
    final, weight = code.variable(top), code.variable(total)
    sinks = args.pointer("sinks", F32)
    with code.when(sinks.is_null().equals(0)):
        sink = sinks.load(number) * cpu_math.LOG2E
        higher = top.maximum(sink)
        level = higher.maximum(-3.0e38)
        final.set(higher)
        weight.set(total * cpu_math.exp2(top - level) + cpu_math.exp2(sink - level))
    level = final.get().maximum(-3.0e38)
    share = cpu_math.exp2(top - level) / weight.get()
    share = (weight.get() > 0.0).choose(share, code.number(0.0))
    target = args.pointer("out", head.query).at(
        token * args.integer("out_token_stride") + number * args.integer("out_head_stride")
    )
    for_vectors(code, head.value_dim, lambda at, n: target.store(at, sums.load(at, n) * share))
    lse = args.pointer("lse", F32)
    with code.when(lse.is_null().equals(0)):
        log_sum = final.get() * cpu_math.LN2 + cpu_math.log(weight.get())
        lse.store(token * args.integer("lse_token_stride") + number, log_sum)


def for_vectors(code: Code, length: int, act: Callable[[Value, int], None]) -> None:
    """Calls `act(index, lanes)` for whole vectors in a loop and for what is left over."""
    whole = length // LANES * LANES
    if whole:
        with code.range(0, whole, LANES) as at:
            act(at, LANES)
    if length > whole:
        act(code.integer(whole), length - whole)
