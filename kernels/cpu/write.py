"""Writes new keys and values into their slots and copies whole blocks, on a CPU.

`write_kv` is compiled per layout; a task is a run of neighbouring tokens and one head, since their slots share cache
lines. Tokens whose slot is -1 are skipped. `copy_blocks` is the C library's memcpy per block, shared by the threads.
"""

from __future__ import annotations

from dataclasses import dataclass

from kernels.cpu.attention import for_vectors
from kernels.cpu.call import ArgumentList
from kernels.cpu.ir import I64, POINTER, Code, Kind, Pointer, Value

WRITE_ARGUMENTS = ArgumentList(
    "num_tokens", "num_kv_heads", "slots", "block_stride",
    "key", "key_token_stride", "key_head_stride", "value", "value_token_stride", "value_head_stride",
    "keys", "values",
)  # fmt: skip
COPY_ARGUMENTS = ArgumentList("num_copies", "pool", "block_bytes", "sources", "targets")

TOKENS_PER_TASK = 16


@dataclass(frozen=True)
class WriteShape:
    """What the write is specialised for."""

    source: Kind
    cache: Kind
    pairs: bool
    block_size: int
    head_dim: int
    value_dim: int


class WriteEmitter:
    """Writes the kernel `write_kv` for one layout."""

    def __init__(self, code: Code, shape: WriteShape) -> None:
        self.code = code
        self.shape = shape
        self.args = WRITE_ARGUMENTS.reader(code)

    def emit(self) -> None:
        code, args = self.code, self.args
        num_tokens, num_heads = args.integer("num_tokens"), args.integer("num_kv_heads")
        num_tasks = (num_tokens + (TOKENS_PER_TASK - 1)) // TOKENS_PER_TASK * num_heads
        counter = WRITE_ARGUMENTS.counter(code)
        with code.forever():
            task = counter.fetch_add(1)
            code.return_unless(task < num_tasks)
            first, head = (task // num_heads) * TOKENS_PER_TASK, task % num_heads
            with code.range(first, (first + TOKENS_PER_TASK).minimum(num_tokens)) as token:
                slot = args.pointer("slots", I64).load(token)
                with code.when(slot >= 0):
                    self._token(token, head, slot)

    def _token(self, token: Value, head: Value, slot: Value) -> None:
        args, shape = self.args, self.shape
        block_at = (slot // shape.block_size) * args.integer("block_stride")
        within = slot % shape.block_size

        def row(name: str) -> Pointer:
            start = token * args.integer(f"{name}_token_stride") + head * args.integer(f"{name}_head_stride")
            return args.pointer(name, shape.source).at(start)

        def block(name: str, dim: int) -> Pointer:
            return args.pointer(name, shape.cache).at_bytes(block_at).at(head * (dim * shape.block_size))

        self._keys(row("key"), block("keys", shape.head_dim), within)
        self._values(row("value"), block("values", shape.value_dim), within)

    def _keys(self, source: Pointer, block: Pointer, slot: Value) -> None:
        shape = self.shape
        with self.code.range(0, shape.head_dim // 2 if shape.pairs else shape.head_dim) as dim:
            if shape.pairs:
                for half in (0, 1):
                    at = (dim * shape.block_size + slot) * 2 + half
                    self._move(source, dim * 2 + half, block, at)
            else:
                self._move(source, dim, block, dim * shape.block_size + slot)

    def _values(self, source: Pointer, block: Pointer, slot: Value) -> None:
        shape = self.shape
        if shape.pairs:
            start = (slot >> 1) * (2 * shape.value_dim) + (slot & 1)
            with self.code.range(0, shape.value_dim) as dim:
                self._move(source, dim, block, start + dim * 2)
        else:
            target = block.at(slot * shape.value_dim)
            for_vectors(self.code, shape.value_dim, lambda at, n: self._move(source, at, target, at, n))

    def _move(self, source: Pointer, at: Value, target: Pointer, to: Value, lanes: int = 1) -> None:
        if source.kind is target.kind:
            target.put(to, source.raw(at, lanes))
        else:
            target.store(to, source.load(at, lanes))


def emit_copy(code: Code) -> None:
    """Writes the kernel `copy_blocks`."""
    args = COPY_ARGUMENTS.reader(code)
    counter = COPY_ARGUMENTS.counter(code)
    size = args.integer("block_bytes")
    pool = args.pointer("pool", I64)
    with code.forever():
        number = counter.fetch_add(1)
        code.return_unless(number < args.integer("num_copies"))
        target = pool.at_bytes(args.pointer("targets", I64).load(number) * size)
        source = pool.at_bytes(args.pointer("sources", I64).load(number) * size)
        addresses = [Value(code, pointer.ir) for pointer in (target, source)]
        code.call("memcpy", POINTER, [*addresses, size])
