"""Products of packed weights against torch in double precision: odd sizes, every mode, any number of threads, and rows
that come out the same bit for bit whatever they are multiplied beside."""

import itertools
import threading
from dataclasses import replace

import pytest
import torch

from kernels.cpu.call import KernelCall
from kernels.cpu.ir import BF16, F32
from kernels.cpu.jit import Kernel, host
from kernels.cpu.linear import Products
from kernels.cpu.product import ACTIVATE, ADD, STORE, ProductShape, interleave, pack, supports
from kernels.cpu.program import PRODUCT, Program, ProgramWriter, program_kernel
from kernels.cpu.rows import RowShape
from kernels.cpu.weights import Linear, pack_linears

# At least the widest inputs and inner columns, as in a model.
STRIDE = 400
KINDS = {"float32": (F32, torch.float32, 2e-5), "bfloat16": (BF16, torch.bfloat16, 2e-2)}
SIZES = [(16, 5), (96, 32), (250, 70), (256, 384)]


def shape_of(name: str) -> ProductShape:
    kind, dtype, _ = KINDS[name]
    if not supports(dtype, host()):
        pytest.skip(f"this processor has no fast product of {name}")
    return ProductShape(kind, host(), STRIDE)


class Case:
    """One product of random weights; `run` multiplies given rows."""

    def __init__(self, name: str, depth: int, columns: int, mode: int, shape: ProductShape) -> None:
        kind, dtype, self.tolerance = KINDS[name]
        self.mode, self.columns, self.depth, self.dtype, self.shape = mode, columns, depth, dtype, shape
        self.weight = (torch.randn(columns, depth) * depth**-0.5).to(dtype)
        self.up = (torch.randn(columns, depth) * depth**-0.5).to(dtype)
        self.bias, self.up_bias = torch.randn(columns), torch.randn(columns)
        if mode == ACTIVATE:
            self.packed = pack(interleave(self.weight, self.up, shape), shape)
            self.packed_bias = interleave(self.bias, self.up_bias, shape)
        else:
            self.packed = pack(self.weight, shape)
            self.packed_bias = torch.zeros(self.packed.shape[0] * shape.panel)
            self.packed_bias[:columns] = self.bias
        self.kernel = program_kernel(shape, RowShape(kind, 16, 16, False))

    def run(self, x: torch.Tensor, num_threads: int) -> torch.Tensor:
        rows = torch.zeros(len(x), STRIDE, dtype=self.dtype)
        rows[:, : self.depth] = x
        width = self.packed.shape[0] * self.shape.panel
        out = torch.full((len(x) + 1, width), float("nan"))
        out[:-1] = 1.0
        if self.mode == ACTIVATE:
            out = torch.full((len(x) + 1, STRIDE), float("nan"), dtype=self.dtype)
        writer = ProgramWriter()
        writer.add(
            PRODUCT,
            x=rows.data_ptr(),
            weights=self.packed.data_ptr(),
            bias=self.packed_bias.data_ptr(),
            depth=self.depth,
            panels=self.packed.shape[0],
            mode=self.mode,
            out=out.data_ptr(),
            out_stride=out.shape[1],
            next=0,
            next_stride=0,
        )
        Program(writer.table(), self.kernel).run(len(x), 0, num_threads)
        assert out[-1].isnan().all(), "a row behind the last was written"
        return out[:-1, : self.columns]

    def wanted(self, x: torch.Tensor) -> torch.Tensor:
        exact = x.double() @ self.weight.double().T + self.bias
        if self.mode == ADD:
            exact = exact + 1.0
        if self.mode == ACTIVATE:
            up = x.double() @ self.up.double().T + self.up_bias
            exact = torch.nn.functional.silu(exact) * up
        return exact


@pytest.mark.parametrize("mode", [STORE, ADD, ACTIVATE])
@pytest.mark.parametrize("name", KINDS)
def test_products_are_right_at_odd_sizes(name: str, mode: int, seed: int) -> None:
    torch.manual_seed(seed)
    shape = shape_of(name)
    for depth, columns in SIZES:
        case = Case(name, depth, columns, mode, shape)
        for rows, threads in itertools.product((1, 2, 7, 12, 13, 31, 64, 111), (1, 2, 3)):
            x = torch.randn(rows, depth).to(case.dtype)
            wanted = case.wanted(x)
            error = (case.run(x, threads).double() - wanted).abs().max()
            scale = wanted.abs().max() if mode == ACTIVATE else 1.0
            assert error <= case.tolerance * max(1.0, float(scale)), (depth, columns, rows, threads)


def test_a_thread_that_does_not_come_keeps_nobody_up(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of three does it all: the cores of the others are another process's."""
    torch.manual_seed(seed)
    case, found = Case("float32", 256, 384, STORE, shape_of("float32")), []
    x = torch.randn(50, 256)
    wanted = case.run(x, 3)

    def alone(call: KernelCall, kernel: Kernel, num_threads: int) -> None:
        call.begin()
        kernel(call.address)

    monkeypatch.setattr(KernelCall, "run", alone)
    running = threading.Thread(target=lambda: found.append(case.run(x, 3)), daemon=True)
    running.start()
    running.join(20.0)
    assert found, "it waits for threads that do not come"
    assert torch.equal(found[0], wanted)


@pytest.mark.parametrize("name", KINDS)
def test_a_row_does_not_depend_on_the_others(name: str, seed: int) -> None:
    torch.manual_seed(seed)
    case = Case(name, 256, 384, STORE, shape_of(name))
    x = torch.randn(50, 256).to(case.dtype)
    together = case.run(x, 2)
    for first, end in ((0, 1), (3, 4), (7, 20), (30, 50)):
        assert torch.equal(case.run(x[first:end], 1), together[first:end])


def test_a_processor_without_wide_vectors(seed: int) -> None:
    """Eight lanes and six rows to a tile: what machines without AVX-512 run."""
    torch.manual_seed(seed)
    narrow = replace(host(), accumulators=6, pair_products=False)
    shape = ProductShape(F32, narrow, STRIDE)
    assert (shape.lanes, shape.tiles[0]) == (8, 6)
    for rows, mode in itertools.product((1, 5, 6, 17), (STORE, ADD, ACTIVATE)):
        case = Case("float32", 96, 70, mode, shape)
        x = torch.randn(rows, 96)
        assert (case.run(x, 2).double() - case.wanted(x)).abs().max() < 2e-4


@pytest.mark.parametrize("name", KINDS)
def test_products_of_single_modules(name: str, seed: int) -> None:
    """Of different depths in turn, with and without a bias; a row is the same beside any others."""
    torch.manual_seed(seed)
    _, dtype, tolerance = KINDS[name]
    if not supports(dtype, host()):
        pytest.skip(f"this processor has no fast product of {name}")
    products = Products(dtype, host(), max(depth for depth, _ in SIZES))
    for (depth, columns), rows in itertools.product(SIZES, (111, 1, 13)):
        weight, bias = (torch.randn(columns, depth) * depth**-0.5).to(dtype), torch.randn(columns).to(dtype)
        x = torch.randn(rows, depth).to(dtype)
        for linear in (Linear(weight), Linear(weight, bias)):
            packed = pack_linears([linear], products.shape)
            found = products.run(x, packed)
            exact = x.double() @ weight.double().T + (0.0 if linear.bias is None else bias.double())
            assert found.dtype == dtype and found.shape == (rows, columns)
            assert (found.double() - exact).abs().max() <= tolerance * max(1.0, float(exact.abs().max()))
            assert torch.equal(products.run(x[-1:], packed)[0], found[-1])
