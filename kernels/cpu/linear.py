"""One matrix product on a CPU as a call of its own: for models whose modules stay, which run one product after another.

`worker/model/packed.py` puts these in place of linear modules. Weights are packed as a fused decoder's are, so a row
comes to the same whatever else is in the batch. Inputs are copied to rows that lie apart as the product wants them;
calls share that memory, so one thread at a time may use the products of one model.
"""

from __future__ import annotations

from functools import lru_cache

import torch

from kernels.cpu import product as cpu_product
from kernels.cpu.backend import KINDS
from kernels.cpu.call import ArgumentList, KernelCall
from kernels.cpu.ir import F32, Code
from kernels.cpu.jit import Kernel, Target, compile_kernel
from kernels.cpu.product import STORE, Product, ProductShape
from kernels.cpu.shapes import LANES
from kernels.cpu.weights import Packed

ARGUMENTS = ArgumentList("num_threads", "x", "weights", "bias", "depth", "panels", "rows", "out", "out_stride")
# Below so many multiplications a product stays on its own thread: waking another takes longer.
_MIN_PER_THREAD = 1 << 17


class Products:
    """What the products of one model share: a kernel, rows of inputs, and the arguments of a call."""

    def __init__(self, dtype: torch.dtype, target: Target, most_depth: int) -> None:
        """Takes inputs and gives outputs of `dtype`, of up to `most_depth` columns."""
        self.dtype = dtype
        # Rows a power of two apart would fall on one another in the cache.
        self.shape = ProductShape(KINDS[dtype], target, -(-most_depth // LANES) * LANES + LANES)
        self._rows = torch.zeros(0, self.shape.row_stride, dtype=dtype)
        self._kernel = _product_kernel(self.shape)
        self._call = KernelCall(ARGUMENTS)

    def run(self, x: torch.Tensor, packed: Packed) -> torch.Tensor:
        """x [rows, depth] of the products' dtype times the weight, plus the bias: [rows, columns], of that dtype."""
        rows, depth = x.shape
        assert depth == packed.depth and x.dtype == self.dtype, (x.shape, x.dtype, packed.depth)
        if rows > self._rows.shape[0]:
            self._rows = torch.zeros(rows, self.shape.row_stride, dtype=self.dtype)
        self._rows[:rows, :depth].copy_(x)
        out = torch.empty(rows, packed.panels * self.shape.panel)
        threads = max(1, min(torch.get_num_threads(), rows * packed.weights.numel() // _MIN_PER_THREAD))
        self._call.set(
            num_threads=threads,
            x=self._rows.data_ptr(),
            weights=packed.weights.data_ptr(),
            bias=packed.bias.data_ptr(),
            depth=depth,
            panels=packed.panels,
            rows=rows,
            out=out.data_ptr(),
            out_stride=out.shape[1],
        )
        self._call.run(self._kernel, threads)
        return out[:, : packed.columns].to(self.dtype)


@lru_cache(maxsize=16)
def _product_kernel(shape: ProductShape) -> Kernel:
    return compile_kernel("multiply", lambda code: _emit(code, shape), shape.target)


def _emit(code: Code, shape: ProductShape) -> None:
    args = ARGUMENTS.reader(code)
    weights = args.pointer("weights", shape.kind)
    product = Product(
        x=args.pointer("x", shape.kind),
        weights=weights,
        bias=args.pointer("bias", F32),
        depth=args.integer("depth"),
        panels=args.integer("panels"),
        rows=args.integer("rows"),
        mode=code.integer(STORE),
        out=args.pointer("out", F32),
        out_stride=args.integer("out_stride"),
        # What is multiplied next is not known here.
        next_weights=weights,
        counter=ARGUMENTS.counter(code),
    )
    cpu_product.emit_product(code, shape, product, args.integer("num_threads"))
