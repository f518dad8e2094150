"""What compiled Python lacks to be run by a team of threads: an address as memory, and a counter that threads share.

The arguments are those of `call.py`: one array of 64-bit words. Called by kernels that numba compiles.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from kernels.cpu.shapes import LANES

_COMPRESS = f"llvm.experimental.vector.compress.v{LANES}i32"


@intrinsic
def memory_at(typing: Any, address: Any) -> Any:
    """The integer as a pointer, to be given to `carray`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(types.voidptr))

    return types.voidptr(address), generate


@intrinsic
def fetch_add(typing: Any, arguments: Any, word: Any) -> Any:
    """Adds one to this word of the arguments and returns what it was; no two threads get the same."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        integer = ir.IntType(64)
        words = builder.bitcast(given[0], integer.as_pointer())
        at = builder.gep(words, [builder.sext(given[1], integer) if given[1].type.width < 64 else given[1]])
        return builder.atomic_rmw("add", at, ir.Constant(integer, 1), "acq_rel")

    return types.int64(arguments, word), generate


@intrinsic
def keep_lanes(typing: Any, ids: Any, values: Any, at: Any, low: Any, last: Any, to_ids: Any, to_values: Any) -> Any:
    """Copies, close together, those of LANES ids and values from `at` on whose value lies in low..last; how many.

    Whole vectors are written, so that both targets need LANES more places. All are addresses of int32, `at` is int64.
    """

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        vector = ir.VectorType(ir.IntType(32), LANES)
        bits = ir.VectorType(ir.IntType(1), LANES)
        compress = builder.module.globals.get(_COMPRESS) or ir.Function(
            builder.module, ir.FunctionType(vector, [vector, bits, vector]), _COMPRESS
        )

        def place(address: Any, offset: Any) -> Any:
            start = builder.inttoptr(address, ir.IntType(32).as_pointer())
            return builder.bitcast(builder.gep(start, [offset]), vector.as_pointer())

        def splat(value: Any) -> Any:
            first = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
            return builder.shuffle_vector(first, first, ir.Constant(vector, [0] * LANES))

        zero = ir.Constant(ir.IntType(64), 0)
        token, value = (builder.load(place(source, given[2]), align=4) for source in given[:2])
        keep = builder.and_(
            builder.icmp_signed(">=", value, splat(given[3])), builder.icmp_signed("<=", value, splat(given[4]))
        )
        for source, target in ((token, given[5]), (value, given[6])):
            kept = builder.call(compress, [source, keep, ir.Constant(vector, ir.Undefined)])
            builder.store(kept, place(target, zero), align=4)
        lanes = builder.bitcast(keep, ir.IntType(LANES))
        return builder.zext(builder.ctpop(lanes), ir.IntType(64))

    assert (at, low, last) == (types.int64, types.int32, types.int32), (at, low, last)
    return types.int64(ids, values, at, low, last, to_ids, to_values), generate
