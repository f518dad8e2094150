"""How much of the machine a step reaches: its products against the rate of products and the rate at which weights are
read, its attention against the rate at which keys and values are read. Both rates are measured in the same run.

`quire bench offline` prints it beside the parts of a step (`offline_step.py`), for a batch and for one sequence alone.
"""

from __future__ import annotations

import numpy as np
import torch

from cluster.bench.offline_step import best_time
from cluster.bench.report import Row
from cluster.offline.engine import LLM
from kernels.cpu import memory
from kernels.cpu import program as cpu_program
from kernels.cpu.attention import ITEM_FROM, ITEM_TO
from kernels.cpu.decoder import CpuDecoder
from kernels.cpu.product import STORE, ProductShape, pack
from kernels.cpu.rows import RowShape

# A product whose weights stay in the cache, with as many rows as keep all sums in registers busy.
DEPTH, COLUMNS, ROWS = 256, 2048, 192
READ_BYTES = 256 << 20


class MachineLimits:
    """What this machine can do with a model of this dtype: multiplications per second, bytes read per second."""

    def __init__(self, llm: LLM) -> None:
        decoder = llm._worker.parts.model._fused
        assert decoder is not None, "only a fused decoder is held against the machine"
        self.flops = max(_packed_rate(decoder._products, decoder.dtype), _torch_rate(decoder.dtype))
        self.bytes = _bandwidth()


def limits(machine: MachineLimits, llm: LLM, parts: list[Row], batch: int) -> list[Row]:
    """What the last step that `parts` were taken from reached of it."""
    decoder = llm._worker.parts.model._fused
    assert decoder is not None
    seconds = {str(row["part"]): float(row["us"] or 0.0) * 1e-6 for row in parts}
    products, attention = (max(seconds[name], 1e-9) for name in ("products", "attention"))
    elements, weights = _weights(decoder)
    flops, keys = 2.0 * batch * elements, _keys_read(decoder)
    at_best = max(flops / machine.flops, weights / machine.bytes)
    whole = at_best + keys / machine.bytes
    return [
        _row("products, GFLOP/s", machine.flops / 1e9, flops / products / 1e9),
        _row("weights read, GB/s", machine.bytes / 1e9, weights / products / 1e9),
        _row("keys and values read, GB/s", machine.bytes / 1e9, keys / attention / 1e9),
        {
            "limit": "a step at the nearer bound of its products, and its keys read, us",
            "machine": whole * 1e6,
            "reached": seconds["step"] * 1e6,
            "share %": 100 * whole / seconds["step"],
        },
    ]


def _row(name: str, machine: float, reached: float) -> Row:
    return {"limit": name, "machine": machine, "reached": reached, "share %": 100 * reached / machine}


def _weights(decoder: CpuDecoder) -> tuple[int, int]:
    """Elements that are multiplied in a step, and their bytes."""
    packed = [decoder._head]
    for layer in decoder._layers:
        packed += [layer.heads, layer.output, layer.inner, layer.down]
    return sum(one.weights.numel() for one in packed), sum(one.size_bytes for one in packed)


def _keys_read(decoder: CpuDecoder) -> int:
    """Bytes of keys and values that the last step's attention read in all layers. Windows are not counted out."""
    assert decoder._calls is not None and decoder._calls._plan is not None
    items = decoder._calls._plan.items
    keys = int((items[:, ITEM_TO].astype(np.int64) - items[:, ITEM_FROM]).sum())
    size = decoder.head_dim * decoder.dtype.itemsize
    return 2 * keys * decoder.num_kv_heads * size * len(decoder._layers)


def _packed_rate(shape: ProductShape, dtype: torch.dtype) -> float:
    """Of our own kernel."""
    weight = pack(torch.randn(COLUMNS, DEPTH).to(dtype), shape)
    x = torch.randn(ROWS, shape.row_stride).to(dtype)
    out, bias = torch.zeros(ROWS, COLUMNS), torch.zeros(COLUMNS)
    writer = cpu_program.ProgramWriter()
    writer.add(
        cpu_program.PRODUCT,
        x=x.data_ptr(), weights=weight.data_ptr(), bias=bias.data_ptr(), depth=DEPTH, panels=weight.shape[0],
        mode=STORE, out=out.data_ptr(), out_stride=COLUMNS, next=0, next_stride=0,
    )  # fmt: skip
    kernel = cpu_program.program_kernel(shape, RowShape(shape.kind, 16, 16, False))
    program = cpu_program.Program(writer.table(), kernel)
    return 2.0 * ROWS * DEPTH * COLUMNS / best_time(lambda: program.run(ROWS, 0, torch.get_num_threads()))


def _torch_rate(dtype: torch.dtype) -> float:
    """Of torch's, so that the limit is not only what ours can do."""
    x, weight = torch.randn(2 * ROWS, 1024).to(dtype), torch.randn(1024, 1024).to(dtype)
    return 2.0 * x.numel() * len(weight) / best_time(lambda: torch.nn.functional.linear(x, weight))


def _bandwidth() -> float:
    data = memory.empty(READ_BYTES // 4, dtype=torch.float32).fill_(1.0)
    return data.nbytes / best_time(data.sum)
