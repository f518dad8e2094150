"""A decoder's whole step as one call: a table of ops that threads of one team walk through together.

`decoder` writes the table once per model and runs it once per step, or for several steps of decodes in which each
step's tokens, the likeliest or drawn ones, are the next one's inputs (`advance`); nothing returns to Python in between.
After each op a thread waits until nobody is at work on it, and not for who has not come to it: a thread that has lost
its core to another process between two tasks keeps nobody up, and passes over what was done meanwhile. All come
together between two steps. An op is a product, something done to rows, or a call of another kernel, which is attention
or the draw. A program knows addresses only; who owns the memory keeps it alive.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from llvmlite import ir

from kernels.cpu import advance as cpu_advance
from kernels.cpu import product as cpu_product
from kernels.cpu import rows as cpu_rows
from kernels.cpu.call import COUNTER, TICKET, ArgumentList, KernelCall
from kernels.cpu.ir import F32, I32T, I64, POINTER, Code, Pointer, Value
from kernels.cpu.jit import Kernel, compile_kernel
from kernels.cpu.product import Product, ProductShape
from kernels.cpu.rows import Embedding, Rotation, RowShape
from kernels.cpu.sampling import ARGUMENTS as DRAW_ARGUMENTS

ARGUMENTS = ArgumentList("num_threads", "ops", "num_ops", "counts", "sync", "num_steps", "advance")

NOTHING, PRODUCT, EMBEDDING, NORM, ROTATION, CALL, BEST, DRAW = range(8)
# Words of each op, the kind first. `rows` says which of the program's two counts holds.
WORDS = {
    PRODUCT: ("x", "weights", "bias", "depth", "panels", "mode", "out", "out_stride", "next", "next_stride"),
    EMBEDDING: ("ids", "table", "positions", "places", "out", "out_stride", "width"),
    NORM: ("source", "source_stride", "chosen", "out", "weight", "bias", "width", "epsilon"),
    ROTATION: (
        "heads", "heads_stride", "num_heads", "num_kv_heads", "query", "query_stride", "cosines", "sines",
        "angle_stride", "positions", "slots", "keys", "values", "block_stride", "query_norm", "key_norm", "epsilon",
    ),
    CALL: ("function", "arguments"),
    BEST: ("logits", "stride", "vocabulary", "ids", "broken"),
    DRAW: ("function", "arguments"),
}  # fmt: skip
OP_WORDS = 24
# One cache line for each op: the counter of its tasks, and how many threads are at work on it.
LINE_WORDS = 8
ALL_ROWS, LOGIT_ROWS = 0, 1

# Looks at the meeting place before a waiting thread gives its core away, and, after about a millisecond of that,
# sleeps: whom it waits for may stand behind somebody else on another core, and is brought over to this one only when it
# is idle. Asleep sooner it misses those who come in time, which cost a served model 5 % of its throughput.
_SPINS = 2000
_YIELDS = 3000
_SLEEP_US = 1


class ProgramWriter:
    """Writes the table of ops."""

    def __init__(self) -> None:
        self._ops: list[list[int]] = []

    def add(self, kind: int, rows: int = ALL_ROWS, **words: int | float) -> int:
        """Appends an op and returns its number. Floats are kept as float32 bits."""
        op = [kind, rows]
        for name in WORDS[kind]:
            word = words.pop(name)
            op.append(int(np.float32(word).view(np.int32)) if isinstance(word, float) else word)
        assert not words, f"an op of kind {kind} has no {sorted(words)}"
        self._ops.append(op + [0] * (OP_WORDS - len(op)))
        return len(self._ops) - 1

    def table(self) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
        """int64 [ops, OP_WORDS], with each product told where the next one's weights lie."""
        table = np.array(self._ops, dtype=np.int64)
        products = np.flatnonzero(table[:, 0] == PRODUCT)
        at, weights, depth = (word_of(PRODUCT, name) for name in ("next", "weights", "depth"))
        for number, following in zip(products, [*products[1:], products[-1]], strict=True):
            table[number, at] = table[following, weights]
            table[number, at + 1] = table[following, depth]
        return table


def word_of(kind: int, name: str) -> int:
    """Where a word lies in an op of this kind."""
    return 2 + WORDS[kind].index(name)


class Program:
    """A table of ops with what a call of it needs. One thread at a time may run it."""

    def __init__(self, table: np.ndarray[tuple[int, int], np.dtype[np.int64]], kernel: Kernel) -> None:
        self.table = table
        self.counts = np.zeros(2, np.int64)
        self._kernel = kernel
        self._call = KernelCall(ARGUMENTS)
        memory = np.zeros((len(table) + 2) * LINE_WORDS, np.int64)
        skip = (-memory.ctypes.data % 64) // 8
        # A line per op, and one for the end of a step: how often threads have come there, and steps that are over.
        self._sync = memory[skip : skip + (len(table) + 1) * LINE_WORDS]
        self._call.set(
            ops=table.ctypes.data, num_ops=len(table), counts=self.counts.ctypes.data, sync=self._sync.ctypes.data
        )

    def run(self, num_rows: int, num_logit_rows: int, num_threads: int, num_steps: int = 1, advance: int = 0) -> None:
        """One step; or up to `num_steps` of them, with the address of what `advance` needs."""
        self.counts[ALL_ROWS] = num_rows
        self.counts[LOGIT_ROWS] = num_logit_rows
        self._sync[:] = 0
        self._call.set(num_threads=num_threads, num_steps=num_steps, advance=advance)
        self._call.run(self._kernel, num_threads)


@lru_cache(maxsize=16)
def program_kernel(products: ProductShape, rows: RowShape) -> Kernel:
    """The interpreter of programs for a model of these shapes, compiled at its first use."""
    return compile_kernel("run_program", lambda code: _Interpreter(code, products, rows).emit(), products.target)


class _Op:
    """The words of the op at hand."""

    def __init__(self, code: Code, words: Pointer, kind: int) -> None:
        self._code = code
        self._words = words
        self._at = {name: number + 2 for number, name in enumerate(WORDS[kind])}

    def integer(self, name: str) -> Value:
        return self._words.load(self._at[name])

    def number(self, name: str) -> Value:
        return self._words.at(self._at[name]).of(F32).load(0)

    def floats(self, name: str) -> Pointer:
        return self._code.pointer(self.integer(name), F32)

    def integers(self, name: str) -> Pointer:
        return self._code.pointer(self.integer(name), I64)


class _Interpreter:
    """Writes the kernel `run_program`."""

    def __init__(self, code: Code, products: ProductShape, rows: RowShape) -> None:
        self.code = code
        self.products = products
        self.rows = rows
        self.args = ARGUMENTS.reader(code)
        # Rows are shared out in as many tasks as there are threads.
        self._of_rows = {EMBEDDING: self._embedding, NORM: self._norm, ROTATION: self._rotation, BEST: self._best}

    def emit(self) -> None:
        code, args = self.code, self.args
        thread = ARGUMENTS.ticket(code).fetch_add(1)
        num_threads, num_ops = args.integer("num_threads"), args.integer("num_ops")
        sync, num_steps = args.pointer("sync", I64), args.integer("num_steps")
        with code.range(0, num_steps) as step:
            self._ops(thread, num_threads)
            advance = args.pointer("advance", I64)
            with code.when(advance.is_null().equals(0)):
                last = step + 1 >= num_steps
                come = sync.at(num_ops * LINE_WORDS)
                over = come.at(1)
                self._fence()
                # All threads come once more in each step; the last one goes on to the next for all.
                with code.when((come.fetch_add(1) + 1).equals(num_threads * (step + 1))):
                    self._fence()
                    num_rows = args.pointer("counts", I64).load(ALL_ROWS)
                    cpu_advance.emit_advance(code, advance, step, num_rows, last)
                    self._reset(args.pointer("ops", I64), num_ops, sync, num_rows)
                    self._fence()
                    over.fetch_add(1)
                self._wait(lambda: self._seen(over) < step + 1)
                code.return_unless(cpu_advance.halted(code, advance).equals(0))

    def _reset(self, ops: Pointer, num_ops: Value, sync: Pointer, num_rows: Value) -> None:
        """Before the next step all tasks are to be taken again."""
        code = self.code
        with code.range(0, num_ops) as number:
            sync.store(number * LINE_WORDS, code.integer(0))
            words = ops.at(number * OP_WORDS)
            with code.when(words.load(0).equals(CALL)):
                self._begin(_Op(code, words, CALL))
            with code.when(words.load(0).equals(DRAW)):
                drawn = self._begin(_Op(code, words, DRAW))
                # The next step's keys lie behind this one's.
                keys = DRAW_ARGUMENTS.offsets["keys"]
                drawn.store(keys, drawn.load(keys) + num_rows * 8)

    def _begin(self, op: _Op) -> Pointer:
        """Another kernel's arguments, with no task taken and no thread numbered."""
        arguments = op.integers("arguments")
        for word in (COUNTER, TICKET):
            arguments.store(word, self.code.integer(0))
        return arguments

    def _ops(self, thread: Value, num_threads: Value) -> None:
        code, args = self.code, self.args
        sync = args.pointer("sync", I64)
        with code.range(0, args.integer("num_ops")) as number:
            words = args.pointer("ops", I64).at(number * OP_WORDS)
            kind = words.load(0)
            num_rows = args.pointer("counts", I64).load(words.load(1))
            counter = sync.at(number * LINE_WORDS)
            inside = counter.at(1)
            with code.when(kind > NOTHING):
                inside.fetch_add(1)
                self._fence()
                with code.when(kind.equals(PRODUCT)):
                    self._product(_Op(code, words, PRODUCT), num_rows, counter, thread, num_threads)
                for calls in (CALL, DRAW):
                    with code.when(kind.equals(calls)):
                        self._call(_Op(code, words, calls))
                for kind_of_rows, emit in self._of_rows.items():
                    with code.when(kind.equals(kind_of_rows)), cpu_product.repeat(code) as go_on_while:
                        task = counter.fetch_add(1)
                        go_on_while(task < num_threads)
                        emit(_Op(code, words, kind_of_rows), *cpu_rows.share(code, num_rows, task, num_threads))
                # Whoever is done has seen that no task is left.
                self._fence()
                inside.fetch_add(-1)
                self._wait(lambda: self._seen(inside) > 0)

    def _call(self, op: _Op) -> None:
        builder = self.code.builder
        function = builder.inttoptr(
            op.integer("function").ir, ir.PointerType(ir.FunctionType(ir.VoidType(), [POINTER]))
        )
        builder.call(function, [op.integers("arguments").ir])

    def _fence(self) -> None:
        self.code.builder.fence("seq_cst")

    def _seen(self, word: Pointer) -> Value:
        return Value(self.code, self.code.builder.load_atomic(word.ir, "acquire", 8, typ=ir.IntType(64)))

    def _wait(self, condition: Callable[[], Value]) -> None:
        """As long as the condition holds, looked at anew each time."""
        code = self.code
        spins = code.variable(code.integer(0))
        with cpu_product.repeat(code) as go_on_while:
            go_on_while(condition())
            spins.add(code.integer(1))
            with code.when(spins.get() > _SPINS):
                code.call("sched_yield", I32T, [])
            with code.when(spins.get() > _SPINS + _YIELDS):
                code.call("usleep", I32T, [Value(code, ir.Constant(I32T, _SLEEP_US))])
        self._fence()

    def _product(self, op: _Op, num_rows: Value, counter: Pointer, thread: Value, num_threads: Value) -> None:
        code, shape = self.code, self.products
        weights = code.pointer(op.integer("weights"), shape.kind)
        following = code.pointer(op.integer("next"), shape.kind).at(thread * op.integer("next_stride") * shape.panel)
        product = Product(
            x=code.pointer(op.integer("x"), shape.kind),
            weights=weights,
            bias=op.floats("bias"),
            depth=op.integer("depth"),
            panels=op.integer("panels"),
            rows=num_rows,
            mode=op.integer("mode"),
            out=op.floats("out"),
            out_stride=op.integer("out_stride"),
            next_weights=following,
            counter=counter,
        )
        with code.when(num_rows > 0):
            cpu_product.emit_product(code, shape, product, num_threads)

    def _embedding(self, op: _Op, first: Value, end: Value) -> None:
        embedding = Embedding(
            ids=op.integers("ids"),
            table=self.code.pointer(op.integer("table"), self.products.kind),
            positions=op.integers("positions"),
            places=self.code.pointer(op.integer("places"), self.products.kind),
            out=op.floats("out"),
            out_stride=op.integer("out_stride"),
            width=op.integer("width"),
        )
        cpu_rows.emit_embedding(self.code, first, end, embedding)

    def _norm(self, op: _Op, first: Value, end: Value) -> None:
        cpu_rows.emit_norm(
            self.code,
            first,
            end,
            source=op.floats("source"),
            source_stride=op.integer("source_stride"),
            chosen=op.integers("chosen"),
            out=self.code.pointer(op.integer("out"), self.products.kind),
            out_stride=self.products.row_stride,
            weight=op.floats("weight"),
            bias=op.floats("bias"),
            width=op.integer("width"),
            epsilon=op.number("epsilon"),
        )

    def _best(self, op: _Op, first: Value, end: Value) -> None:
        cpu_advance.emit_best(
            self.code,
            first,
            end,
            logits=op.floats("logits"),
            stride=op.integer("stride"),
            vocabulary=op.integer("vocabulary"),
            ids=op.integers("ids"),
            broken=op.integers("broken"),
        )

    def _rotation(self, op: _Op, first: Value, end: Value) -> None:
        def of_kind(name: str) -> Pointer:
            return self.code.pointer(op.integer(name), self.products.kind)

        rotation = Rotation(
            heads=op.floats("heads"),
            heads_stride=op.integer("heads_stride"),
            num_heads=op.integer("num_heads"),
            num_kv_heads=op.integer("num_kv_heads"),
            query=of_kind("query"),
            query_stride=op.integer("query_stride"),
            cosines=op.floats("cosines"),
            sines=op.floats("sines"),
            angle_stride=op.integer("angle_stride"),
            positions=op.integers("positions"),
            slots=op.integers("slots"),
            keys=of_kind("keys"),
            values=of_kind("values"),
            block_stride=op.integer("block_stride"),
            query_norm=op.floats("query_norm"),
            key_norm=op.floats("key_norm"),
            epsilon=op.number("epsilon"),
        )
        cpu_rows.emit_rotation(self.code, self.rows, first, end, rotation)
