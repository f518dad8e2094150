"""Attention on the GPU beside its peers and the device's ceilings: decode, prefill, mixed and unequal batches, blocks.

Every shape that is timed is also checked against the reference. `gpu_command` calls `run`, which ends with how the
targets were met; in Triton's interpreter all but the figures can be tried without a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from cluster.bench import gpu_around
from cluster.bench.gpu_batches import (
    GEMMA2_9B,
    GEMMA3_LOCAL,
    LLAMA_8B,
    LLAMA_70B,
    QWEN3_30B,
    SHAPES,
    Built,
    GpuWorkload,
    decodes,
    sharegpt_like,
    worst_error,
)
from cluster.bench.gpu_bench import GpuBench
from cluster.bench.gpu_clock import Work
from cluster.bench.gpu_peers import peers
from cluster.bench.report import Cell

BLOCK_SIZES = (8, 16, 32, 64, 128)
LONG, SHORT = 128 * 1024, 4 * 1024


def attention_row(bench: GpuBench, built: Built, block_size: int, peer_names: list[str]) -> dict[str, Cell]:
    """Times our attention and its peers on one batch, after checking all of them."""
    work = bench.ours(built)
    bench.check(built, work, block_size)
    able, reasons = peers(built, peer_names)
    candidates: dict[str, Work] = {"ours": work}
    for name, peer in able.items():
        try:
            error = worst_error(built, peer())
        except Exception as error_of_peer:  # a peer that breaks must not end our run
            reasons[name] = f"{type(error_of_peer).__name__}: {str(error_of_peer).split(chr(10))[0][:120]}"
            continue
        if error > 1.0:
            reasons[name] = f"wrong by {error:.1f} of what is allowed"
            continue
        candidates[name] = peer
    bench.left_out(built, reasons)
    times = bench.clock.compare(candidates)
    ours = times.pop("ours")
    row: dict[str, Cell] = {"shape": built.shape.name, "batch": built.workload.name, "block": block_size}
    row["us"] = ours * 1e6
    if built.workload.decode:
        row["GB/s"] = built.kv_bytes / ours / 1e9
        row["of read"] = built.kv_bytes / ours / bench.ceilings.read
    else:
        row["TFLOP/s"] = built.flop / ours / 1e12
        row["of matmul"] = built.flop / ours / bench.ceilings.matmul
    row["best peer / ours"] = min(times.values()) / ours if times else None
    for name in peer_names:
        row[f"{name} us"] = times[name] * 1e6 if name in times else None
    return row


def without(bench: GpuBench, *names: str) -> list[str]:
    return [name for name in bench.peers if name not in names]


def decode_rows(bench: GpuBench) -> None:
    """Uniform decodes over the head shapes and lengths."""
    workloads = [decodes("32 x 4K", [4096] * 32), decodes("128 x 1K", [1024] * 128), decodes("256 x 512", [512] * 256)]
    for shape, workload in bench.report.in_time("decode", product(bench.of(SHAPES), workloads)):
        is_first = workload is workloads[0]
        # Compiling FlexAttention takes half a minute a shape.
        names = bench.peers if shape is LLAMA_8B and is_first else without(bench, "flex")
        row = attention_row(bench, bench.build(shape, workload), 16, names)
        bench.report.row("decode", row)
        if is_first and 4 <= shape.group <= 8:
            what = f"decode of {shape.name}, {workload.name}"
            bench.target(f"{what}: share of read bandwidth", 0.92, float(row["of read"] or 0), at_least=True)
            if row["best peer / ours"] is not None:
                bench.target(f"{what}: best peer's time over ours", 1.0, float(row["best peer / ours"]), at_least=True)


def traffic_rows(bench: GpuBench) -> None:
    """The batches that real traffic makes, and long contexts among them."""
    names = without(bench, "flex", "gather+sdpa")
    traffic = [sharegpt_like(256, bench.seed), decodes("1 x 128K + 31 x 4K", [LONG] + [SHORT] * 31)]
    traffic.append(decodes("1 x 128K", [LONG]))
    shapes = bench.of((LLAMA_8B, LLAMA_70B, GEMMA3_LOCAL))
    for shape, workload in bench.report.in_time("decode, unequal lengths", product(shapes, traffic)):
        row = attention_row(bench, bench.build(shape, workload), 16, names)
        bench.report.row("decode, unequal lengths", row)


def balance_rows(bench: GpuBench) -> None:
    """What unequal lengths, block sizes and paging itself cost: our kernel against itself."""
    uniform = (LONG + 31 * SHORT) // 32
    for shape in bench.report.in_time("balance and paging", bench.of((LLAMA_8B, LLAMA_70B))):
        rows: list[dict[str, Cell]] = []
        unequal = bench.build(shape, decodes("1 x 128K + 31 x 4K", [LONG] + [SHORT] * 31))
        equal = bench.build(shape, decodes(f"32 x {uniform}", [uniform] * 32))
        times = bench.clock.compare({"unequal": bench.ours(unequal), "equal": bench.ours(equal)})
        ratio = times["unequal"] / times["equal"] * equal.kv_bytes / unequal.kv_bytes
        rows.append({"shape": shape.name, "compared": "1 x 128K + 31 x 4K against uniform, per byte", "ratio": ratio})
        bench.target(f"{shape.name}: unequal over uniform", 1.05, ratio, at_least=False)
        workload = decodes("32 x 4K", [SHORT] * 32)
        one_run = bench.build(shape, workload, 256, shuffled=False)
        built = {f"block {size}": bench.build(shape, workload, size) for size in BLOCK_SIZES}
        work = {name: bench.ours(of) for name, of in built.items()}
        for size, name in zip(BLOCK_SIZES, built, strict=True):
            bench.check(built[name], work[name], size)
        times = bench.clock.compare({"one run": bench.ours(one_run), **work})
        for name in built:
            ratio = times[name] / times["one run"]
            rows.append({"shape": shape.name, "compared": f"{name}, shuffled, against one run", "ratio": ratio})
            if name == "block 16":
                bench.target(f"{shape.name}: paged over contiguous", 1.02, ratio, at_least=False)
        bench.report.table("balance and paging", rows)


def prefill_rows(bench: GpuBench) -> None:
    workloads = [
        GpuWorkload("1 x 8K", (8192,), (8192,)),
        GpuWorkload("8 x 1K", (1024,) * 8, (1024,) * 8),
        GpuWorkload("2K of 32K", (2048,), (32768,)),
        GpuWorkload("64 of 128K", (64,), (LONG,)),
    ]
    shapes = bench.of((LLAMA_8B, LLAMA_70B, QWEN3_30B, GEMMA3_LOCAL, GEMMA2_9B))
    for shape, workload in bench.report.in_time("prefill", product(shapes, workloads)):
        is_first, is_last = workload is workloads[0], workload is workloads[-1]
        # Compiling FlexAttention takes half a minute a shape; a padded mask of 128K keys takes the memory.
        slow = [] if shape is LLAMA_8B and is_first else ["flex", "gather+sdpa"] if is_last else ["flex"]
        row = attention_row(bench, bench.build(shape, workload), 16, without(bench, *slow))
        bench.report.row("prefill", row)
        if is_first and shape is LLAMA_8B:
            share = float(row["of matmul"] or 0)
            bench.target("prefill of 8K: share of the dense product rate", 0.6, share, at_least=True)


def mixed_rows(bench: GpuBench) -> None:
    """Decodes and prefill chunks in one batch."""
    mixed = [
        GpuWorkload("64 x 1 of 2K + 1K of 4K", (1,) * 64 + (1024,), (2048,) * 64 + (4096,)),
        GpuWorkload("32 x 1 of 4K + 3 chunks", (1,) * 32 + (500, 1500, 100), (SHORT,) * 32 + (500, 20000, 60000)),
    ]
    names = [name for name in bench.peers if name in ("varlen", "flashinfer", "flash-attn")]
    title = "decodes and prefill chunks together"
    for shape, workload in bench.report.in_time(title, product(bench.of((LLAMA_8B, LLAMA_70B)), mixed)):
        bench.report.row(title, attention_row(bench, bench.build(shape, workload), 16, names))


def run(bench: GpuBench, *, sections: Sequence[str], with_trace: bool) -> None:
    """The sections asked for, then how the targets were met."""
    parts = {
        "decode": decode_rows,
        "traffic": traffic_rows,
        "balance": balance_rows,
        "prefill": prefill_rows,
        "mixed": mixed_rows,
        "graph": gpu_around.graph_rows,
        "around": gpu_around.other_rows,
    }
    for name, part in parts.items():
        if name in sections:
            part(bench)
    if with_trace:
        gpu_around.trace(bench)
    if bench.targets:
        bench.report.table("targets", bench.targets)
