"""A small language for CPU kernels: Python expressions that write LLVM IR, with vectors and loops as plain objects.

The files of this folder that emit kernels use it; `jit` turns what it wrote into machine code. Loops over Python ranges
are unrolled in the emitted code, loops over `Code.range` are loops there. It knows nothing of attention.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from llvmlite import ir

I1, I8, I16, I32T, I64T = ir.IntType(1), ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64)
FLOAT = ir.FloatType()
POINTER = ir.PointerType()


class _BFloat(ir.Type):  # type: ignore[misc]
    """llvmlite has no bfloat; the text of the code only needs its name."""

    def _to_string(self) -> str:
        return "bfloat"


BFLOAT = _BFloat()


@dataclass(frozen=True)
class Kind:
    """An element type in memory. In registers floats are float32 and integers 64 bits wide."""

    name: str
    size_bytes: int
    ir: Any

    @property
    def is_float(self) -> bool:
        return self.name in ("f32", "bf16", "f16")


F32 = Kind("f32", 4, FLOAT)
BF16 = Kind("bf16", 2, I16)
F16 = Kind("f16", 2, ir.HalfType())
I32 = Kind("i32", 4, I32T)
I64 = Kind("i64", 8, I64T)


def _is_float(kind: Any) -> bool:
    return isinstance(kind.element if isinstance(kind, ir.VectorType) else kind, ir.FloatType)


class Value:
    """A number in a register: an integer, a float, or a vector of either. Operators emit instructions."""

    __slots__ = ("code", "ir")

    def __init__(self, code: Code, value: Any) -> None:
        self.code = code
        self.ir = value

    @property
    def lanes(self) -> int:
        return self.ir.type.count if isinstance(self.ir.type, ir.VectorType) else 1

    def _both(self, other: Operand) -> tuple[Any, Any, bool]:
        """Both operands in one type: a number takes this value's type, a scalar is spread over the other's lanes."""
        if not isinstance(other, Value):
            other = self.code.like(other, self)
        left, right = self, other
        if left.lanes != right.lanes:
            left, right = (left.splat(right.lanes), right) if left.lanes == 1 else (left, right.splat(left.lanes))
        return left.ir, right.ir, _is_float(left.ir.type)

    def _op(self, other: Operand, integer: str, floating: str, *, swap: bool = False) -> Value:
        left, right, is_float = self._both(other)
        if swap:
            left, right = right, left
        builder = self.code.builder
        if is_float:
            return Value(self.code, getattr(builder, floating)(left, right, flags=("contract", "nsz")))
        return Value(self.code, getattr(builder, integer)(left, right))

    def __add__(self, other: Operand) -> Value:
        return self._op(other, "add", "fadd")

    __radd__ = __add__

    def __sub__(self, other: Operand) -> Value:
        return self._op(other, "sub", "fsub")

    def __rsub__(self, other: Operand) -> Value:
        return self._op(other, "sub", "fsub", swap=True)

    def __mul__(self, other: Operand) -> Value:
        return self._op(other, "mul", "fmul")

    __rmul__ = __mul__

    def __truediv__(self, other: Operand) -> Value:
        return self._op(other, "sdiv", "fdiv")

    def __rtruediv__(self, other: Operand) -> Value:
        return self._op(other, "sdiv", "fdiv", swap=True)

    def __floordiv__(self, other: Operand) -> Value:
        """Rounds towards zero; meant for non-negative integers, as are shifts."""
        return self._op(other, "udiv", "")

    def __mod__(self, other: Operand) -> Value:
        return self._op(other, "urem", "")

    def __and__(self, other: Operand) -> Value:
        return self._op(other, "and_", "")

    def __or__(self, other: Operand) -> Value:
        return self._op(other, "or_", "")

    def __lshift__(self, other: Operand) -> Value:
        return self._op(other, "shl", "")

    def __rshift__(self, other: Operand) -> Value:
        return self._op(other, "lshr", "")

    def _compare(self, other: Operand, sign: str) -> Value:
        left, right, is_float = self._both(other)
        builder = self.code.builder
        return Value(self.code, (builder.fcmp_ordered if is_float else builder.icmp_signed)(sign, left, right))

    def __lt__(self, other: Operand) -> Value:
        return self._compare(other, "<")

    def __le__(self, other: Operand) -> Value:
        return self._compare(other, "<=")

    def __gt__(self, other: Operand) -> Value:
        return self._compare(other, ">")

    def __ge__(self, other: Operand) -> Value:
        return self._compare(other, ">=")

    def equals(self, other: Operand) -> Value:
        return self._compare(other, "==")

    def maximum(self, other: Operand) -> Value:
        """The larger one; `other` if either is not a number."""
        left, right, _ = self._both(other)
        return (self > other).choose(Value(self.code, left), Value(self.code, right))

    def minimum(self, other: Operand) -> Value:
        left, right, _ = self._both(other)
        return (self < other).choose(Value(self.code, left), Value(self.code, right))

    def choose(self, yes: Value, no: Value) -> Value:
        """This value is a condition (or one per lane)."""
        return Value(self.code, self.code.builder.select(self.ir, yes.ir, no.ir))

    def choose_pointer(self, yes: Pointer, no: Pointer) -> Pointer:
        return Pointer(self.code, self.code.builder.select(self.ir, yes.ir, no.ir), yes.kind)

    def splat(self, lanes: int) -> Value:
        """The scalar in every lane."""
        if lanes == 1:
            return self
        vector = ir.VectorType(self.ir.type, lanes)
        single = self.code.builder.insert_element(ir.Constant(vector, ir.Undefined), self.ir, ir.Constant(I32T, 0))
        zeros = ir.Constant(ir.VectorType(I32T, lanes), [0] * lanes)
        return Value(self.code, self.code.builder.shuffle_vector(single, ir.Constant(vector, ir.Undefined), zeros))

    def cast(self, target: Any) -> Value:
        """The same bits as another LLVM type."""
        return Value(self.code, self.code.builder.bitcast(self.ir, target))

    def narrow(self) -> Value:
        """An integer's low 32 bits."""
        return Value(self.code, self.code.builder.trunc(self.ir, self._shaped(I32T)))

    def to_float(self) -> Value:
        return Value(self.code, self.code.builder.sitofp(self.ir, self._shaped(FLOAT)))

    def _shaped(self, scalar: Any) -> Any:
        return ir.VectorType(scalar, self.lanes) if self.lanes > 1 else scalar

    def reduce_max(self) -> Value:
        return self._reduce("fmax", ())

    def reduce_add(self) -> Value:
        return self._reduce("fadd", (ir.Constant(FLOAT, 0.0),))

    def _reduce(self, name: str, start: tuple[Any, ...]) -> Value:
        if self.lanes == 1:
            return self
        kind = self.ir.type
        function = self.code.declare(
            f"llvm.vector.reduce.{name}.v{kind.count}f32", FLOAT, [*(s.type for s in start), kind]
        )
        flags = ("reassoc", "nsz", "nnan") if name == "fmax" else ("reassoc", "nsz")
        return Value(self.code, self.code.builder.call(function, [*start, self.ir], fastmath=flags))


Operand = Value | int | float


class Pointer:
    """An address of elements of one kind. Indices count elements; addresses need not be aligned to vectors."""

    __slots__ = ("code", "ir", "kind")

    def __init__(self, code: Code, value: Any, kind: Kind) -> None:
        self.code = code
        self.ir = value
        self.kind = kind

    def at(self, index: Operand) -> Pointer:
        index = self.code.integer(index)
        return Pointer(self.code, self.code.builder.gep(self.ir, [index.ir], source_etype=self.kind.ir), self.kind)

    def at_bytes(self, offset: Operand) -> Pointer:
        offset = self.code.integer(offset)
        return Pointer(self.code, self.code.builder.gep(self.ir, [offset.ir], source_etype=I8), self.kind)

    def of(self, kind: Kind) -> Pointer:
        return Pointer(self.code, self.ir, kind)

    def is_null(self) -> Value:
        return Value(self.code, self.code.builder.ptrtoint(self.ir, I64T)).equals(0)

    def raw(self, index: Operand, lanes: int = 1) -> Value:
        """Elements as they lie, not widened."""
        shape = ir.VectorType(self.kind.ir, lanes) if lanes > 1 else self.kind.ir
        loaded = self.code.builder.load(self.at(index).ir, align=self.kind.size_bytes, typ=shape)
        return Value(self.code, loaded)

    def load(self, index: Operand = 0, lanes: int = 1) -> Value:
        """`lanes` elements as float32, or integers as 64 bits."""
        raw = self.raw(index, lanes)
        builder = self.code.builder
        if self.kind is F16:
            return Value(self.code, builder.fpext(raw.ir, raw._shaped(FLOAT)))
        if self.kind is BF16:
            wide = Value(self.code, builder.zext(raw.ir, raw._shaped(I32T)))
            return (wide << 16).cast(raw._shaped(FLOAT))
        if self.kind is I32:
            return Value(self.code, builder.sext(raw.ir, raw._shaped(I64T)))
        return raw

    def store(self, index: Operand, value: Value) -> None:
        """Stores float32 or 64-bit integers, rounded to nearest or cut to this kind."""
        builder = self.code.builder
        if self.kind is F16:
            value = Value(self.code, builder.fptrunc(value.ir, value._shaped(F16.ir)))
        elif self.kind is BF16:
            value = value.code.round_bf16(value)
        elif self.kind is I32:
            value = value.narrow()
        self.put(index, value)

    def put(self, index: Operand, value: Value) -> None:
        """Stores bits as they are."""
        self.code.builder.store(value.ir, self.at(index).ir, align=self.kind.size_bytes)

    def prefetch(self, index: Operand) -> None:
        function = self.code.declare("llvm.prefetch.p0", ir.VoidType(), [POINTER, I32T, I32T, I32T])
        read, keep, data = (ir.Constant(I32T, number) for number in (0, 3, 1))
        self.code.builder.call(function, [self.at(index).ir, read, keep, data])

    def fetch_add(self, amount: Operand) -> Value:
        """Adds to the 64-bit integer here, atomically, and returns what it was."""
        amount = self.code.integer(amount)
        return Value(self.code, self.code.builder.atomic_rmw("add", self.ir, amount.ir, "monotonic"))


class Variable:
    """A value that changes. It lives in a register once LLVM has promoted it."""

    __slots__ = ("_slot", "code")

    def __init__(self, code: Code, start: Value) -> None:
        self.code = code
        with code.builder.goto_entry_block():
            self._slot = code.builder.alloca(start.ir.type)
        self.set(start)

    def get(self) -> Value:
        return Value(self.code, self.code.builder.load(self._slot, typ=self._slot.allocated_type))

    def set(self, value: Value) -> None:
        self.code.builder.store(value.ir, self._slot)

    def add(self, value: Value) -> None:
        self.set(self.get() + value)


class Code:
    """One function under construction: `void name(ptr arguments)`."""

    def __init__(self, module: ir.Module, name: str) -> None:
        self.module = module
        self.function = ir.Function(module, ir.FunctionType(ir.VoidType(), [POINTER]), name)
        self.builder = ir.IRBuilder(self.function.append_basic_block("entry"))
        self.arguments = Pointer(self, self.function.args[0], I64)

    # Constants

    def integer(self, number: Operand) -> Value:
        return number if isinstance(number, Value) else Value(self, ir.Constant(I64T, int(number)))

    def number(self, number: float, lanes: int = 1) -> Value:
        shape = ir.VectorType(FLOAT, lanes) if lanes > 1 else FLOAT
        return Value(self, ir.Constant(shape, [float(number)] * lanes if lanes > 1 else float(number)))

    def like(self, number: int | float, model: Value) -> Value:
        kind = model.ir.type
        if not isinstance(kind, ir.VectorType):
            return Value(self, ir.Constant(kind, number))
        return Value(self, ir.Constant(kind, [number] * kind.count))

    def lane_numbers(self, lanes: int) -> Value:
        """0, 1, 2, ... as 32-bit integers."""
        if lanes == 1:
            return Value(self, ir.Constant(I32T, 0))
        return Value(self, ir.Constant(ir.VectorType(I32T, lanes), list(range(lanes))))

    # Control

    @contextmanager
    def range(self, start: Operand, stop: Operand, step: int = 1) -> Iterator[Value]:
        """A loop in the emitted code; yields its index."""
        start, stop = self.integer(start), self.integer(stop)
        before = self.builder.block
        head, body, end = (self.function.append_basic_block() for _ in range(3))
        self.builder.branch(head)
        self.builder.position_at_end(head)
        index = self.builder.phi(I64T)
        index.add_incoming(start.ir, before)
        self.builder.cbranch(self.builder.icmp_signed("<", index, stop.ir), body, end)
        self.builder.position_at_end(body)
        yield Value(self, index)
        index.add_incoming(self.builder.add(index, ir.Constant(I64T, step)), self.builder.block)
        self.builder.branch(head)
        self.builder.position_at_end(end)

    @contextmanager
    def when(self, condition: Value) -> Iterator[None]:
        with self.builder.if_then(condition.ir):
            yield

    def return_unless(self, condition: Value) -> None:
        """Leaves the function unless the condition holds."""
        go_on, leave = self.function.append_basic_block(), self.function.append_basic_block()
        self.builder.cbranch(condition.ir, go_on, leave)
        self.builder.position_at_end(leave)
        self.builder.ret_void()
        self.builder.position_at_end(go_on)

    @contextmanager
    def forever(self) -> Iterator[None]:
        """A loop that only `return_unless` leaves."""
        body = self.function.append_basic_block()
        self.builder.branch(body)
        self.builder.position_at_end(body)
        yield
        self.builder.branch(body)
        self.builder.position_at_end(self.function.append_basic_block())
        self.builder.unreachable()

    # Memory and calls

    def variable(self, start: Value) -> Variable:
        return Variable(self, start)

    def pointer(self, address: Value, kind: Kind) -> Pointer:
        return Pointer(self, self.builder.inttoptr(address.ir, POINTER), kind)

    def declare(self, name: str, result: Any, arguments: Sequence[Any]) -> Any:
        found = self.module.globals.get(name)
        return found or ir.Function(self.module, ir.FunctionType(result, list(arguments)), name)

    def call(self, name: str, result: Any, arguments: Sequence[Value]) -> Value:
        function = self.declare(name, result, [argument.ir.type for argument in arguments])
        return Value(self, self.builder.call(function, [argument.ir for argument in arguments]))

    def round_bf16(self, value: Value) -> Value:
        """float32 as the bits of the nearest bfloat16 (ties to even), quiet where it is not a number."""
        bits = value.cast(value._shaped(I32T))
        rounded = (bits + ((bits >> 16) & 1) + 0x7FFF) >> 16
        quiet = (bits >> 16) | 0x40
        number = Value(self, self.builder.fcmp_ordered("==", value.ir, value.ir))
        chosen = number.choose(rounded, quiet)
        return Value(self, self.builder.trunc(chosen.ir, value._shaped(I16)))

    def finish(self) -> None:
        if not self.builder.block.is_terminated:
            self.builder.ret_void()
