"""Attention on the CPU beside torch and the machine's ceilings: decode, unequal lengths, prefill, what is around it.

Keys and values come cold from memory, as they do in a model of many layers. Every shape that is timed is
also checked against the reference. `cpu_command` calls `run`, which ends with how the targets were met.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch

from cluster.bench import cpu_around
from cluster.bench.cpu_peers import PEERS
from cluster.bench.gpu_batches import (
    GEMMA2_9B,
    GEMMA3_LOCAL,
    LLAMA_8B,
    SHAPES,
    Built,
    GpuWorkload,
    LayerHeads,
    build,
    decodes,
    sharegpt_like,
    worst_error,
)
from cluster.bench.gpu_peers import NotForThis
from cluster.bench.report import Cell, Report, Row, target_row
from cluster.bench.timing import alternate
from kernels.batch import Scoring
from kernels.cpu.backend import CpuBackend
from kernels.cpu.memory import new_pool
from kernels.layout import BlockLayout, LayerCache, LayerShape
from kernels.reference import gather_tokens

Call = Callable[[], object]

CPU = torch.device("cpu")

# The shape that the targets are about: a Llama of 125M parameters with grouped heads.
SMALL = LayerHeads("small", 12, 4, 64)
CPU_SHAPES = (SMALL, *SHAPES)
ANCHOR = decodes("32 x 512", [512] * 32)
BLOCK_SIZES = (8, 16, 32, 64, 128)
# Read before each turn, so that no cache holds anything of it. A turn goes over a few layers, each with its own keys,
# as in a model: their keys are cold, the code that goes over them is not. Large layers stand alone.
FLOOD_BYTES = 128 << 20
LAYERS, MAX_LAYER_BYTES = 4, 64 << 20


@dataclass
class CpuBench:
    """One run: what it measures with and what it has found."""

    report: Report
    dtypes: Sequence[torch.dtype]
    shapes: Sequence[str]
    peers: bool
    budget_s: float
    seed: int
    backend: CpuBackend = field(default_factory=lambda: CpuBackend(CPU))
    targets: list[Row] = field(default_factory=list)
    noted: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        unknown = set(self.shapes) - {shape.name for shape in CPU_SHAPES}
        if unknown:
            names = ", ".join(shape.name for shape in CPU_SHAPES)
            raise ValueError(f"there is no head shape named {sorted(unknown)[0]!r}; there are {names}")
        self._flood = torch.ones(FLOOD_BYTES // 4, dtype=torch.int32)

    def wants(self, shape: LayerHeads) -> bool:
        return not self.shapes or shape.name in self.shapes

    def flood(self) -> None:
        self._flood.amax()

    def times(self, candidates: dict[str, Call]) -> dict[str, float]:
        return alternate(candidates, budget_s=self.budget_s * len(candidates), before=self.flood)

    def reader(self, size_bytes: int) -> Callable[[], torch.Tensor]:
        """Reads so many bytes once: what nothing that needs them all can beat."""
        data = torch.ones(max(16, size_bytes // 4), dtype=torch.int32)
        return data.amax

    def target(self, what: str, wanted: float, got: float, *, at_least: bool = True) -> None:
        self.targets.append(target_row(what, wanted, got, at_least=at_least))

    def left_out(self, name: str, reason: str, where: str) -> None:
        if f"{name}: {reason}" not in self.noted:
            self.noted.add(f"{name}: {reason}")
            self.report.note(f"{name} left out of {where} and the like: {reason}")


def laid_out(bench: CpuBench, built: Built, *, shuffled: bool) -> Built:
    """The same keys and values in the CPU's order of bytes: in the same blocks, or all in one run."""
    cache, shape = built.caches[0], built.shape
    keys = bench.backend.key_order(built.q.dtype, cache.block_size)
    layout = BlockLayout((LayerShape(shape.num_kv_heads, shape.dim),), cache.block_size, built.q.dtype, keys)
    pool = new_pool(cache.num_blocks, layout.block_bytes)
    (own,) = layout.views(pool)
    tables = built.batch.tables
    if not shuffled:
        counts = [-(-context // cache.block_size) for context in built.workload.contexts]
        tables = torch.zeros_like(tables)
        begin = 0
        for row, count in enumerate(counts):
            tables[row, :count] = torch.arange(begin, begin + count)
            begin += count
    batch = replace(built.batch, tables=tables, tasks=None)
    for row, context in enumerate(built.workload.contexts):
        k, v = gather_tokens(cache, built.batch.tables[row], context)
        at = torch.arange(context)
        slots = tables[row, at // cache.block_size].long() * cache.block_size + at % cache.block_size
        bench.backend.write_kv(k, v, own, slots)
    bench.backend.prepare(
        batch,
        num_heads=shape.num_heads,
        num_kv_heads=shape.num_kv_heads,
        head_dim=shape.dim,
        block_size=cache.block_size,
    )
    return replace(built, caches=[own], batch=batch, pool=pool)


def ours(bench: CpuBench, built: Built) -> Callable[[], torch.Tensor]:
    out, shape = torch.full_like(built.q, float("nan")), built.shape
    cache: LayerCache = built.caches[0]
    scoring = Scoring(built.scale, shape.window, shape.softcap)
    return lambda: bench.backend.attention(built.q, cache, built.batch, scoring, out=out)


def attention_row(
    bench: CpuBench,
    shape: LayerHeads,
    workload: GpuWorkload,
    block_size: int,
    dtype: torch.dtype,
    peer_names: Sequence[str],
) -> dict[str, Cell]:
    """Times our attention, in shuffled blocks and in one run, and its peers, after checking all of them."""
    layers = [build(shape, workload, block_size=block_size, dtype=dtype, device=CPU)]
    plain = layers[0]
    while len(layers) < LAYERS and plain.kv_bytes <= MAX_LAYER_BYTES:
        layers.append(build(shape, workload, block_size=block_size, dtype=dtype, device=CPU))
    name = f"{shape.name}, {workload.name}, block {block_size}, {str(dtype).removeprefix('torch.')}"
    candidates: dict[str, Call] = {}
    for what, is_shuffled in (("ours", True), ("in order", False)):
        calls = [ours(bench, laid_out(bench, each, shuffled=is_shuffled)) for each in layers]
        error = max(worst_error(each, call()) for each, call in zip(layers, calls, strict=True))
        bench.report.check(f"{name}, {what}", error <= 1.0, f"{error:.2f} of the error allowed for {dtype}")
        candidates[what] = _all(calls)
    candidates["read"] = _all([bench.reader(plain.kv_bytes) for _ in layers])
    for peer in peer_names if bench.peers else ():
        call = _peer(bench, peer, layers, name)
        if call is not None:
            candidates[peer] = call
    times = {what: seconds / len(layers) for what, seconds in bench.times(candidates).items()}
    own = times["ours"]
    row: dict[str, Cell] = {"shape": shape.name, "batch": workload.name, "block": block_size}
    row |= {"dtype": str(dtype).removeprefix("torch."), "ms": own * 1e3}
    if workload.decode:
        row |= {"GB/s": plain.kv_bytes / own / 1e9, "of read": times["read"] / own}
    else:
        row |= {"GFLOP/s": plain.flop / own / 1e9}
    row["paging"] = own / times["in order"]
    for peer in peer_names:
        row[f"{peer} / ours"] = times[peer] / own if peer in times else None
    return row


def _peer(bench: CpuBench, name: str, layers: Sequence[Built], where: str) -> Call | None:
    """A peer's calls over the same layers, checked; None, and a note why, if it cannot do this."""
    try:
        calls = [PEERS[name](each) for each in layers]
        error = worst_error(layers[0], calls[0]())
    except NotForThis as reason:
        bench.left_out(name, str(reason), where)
        return None
    # torch rounds weights to 16 bits on some of its roads; that is its business, but twice our error is wrong.
    if error > 2.0:
        bench.left_out(name, f"wrong by {error:.1f} of what is allowed", where)
        return None
    return _all(calls)


def _all(calls: Sequence[Callable[[], torch.Tensor]]) -> Call:
    """One call after the other, as the layers of a model follow each other."""
    return lambda: [call() for call in calls]


def decode_rows(bench: CpuBench, *, quick: bool) -> None:
    """The shape of the targets, then block sizes, then the heads of well-known models."""
    peer_names = ("sdpa", "sdpa gqa", "gather+sdpa")
    rows = []
    for dtype in bench.dtypes if bench.wants(SMALL) else ():
        row = attention_row(bench, SMALL, ANCHOR, 16, dtype, peer_names)
        rows.append(row)
        what = f"decode 32 x 512, {row['dtype']}"
        if bench.peers:
            for peer, wanted in (("gather+sdpa", 3.0), ("sdpa", 1.0), ("sdpa gqa", 1.0)):
                bench.target(f"{what}: {peer} / ours", wanted, _figure(row, f"{peer} / ours"))
        bench.target(f"{what}: share of the read bandwidth", 0.5, _figure(row, "of read"))
        bench.target(f"{what}: shuffled blocks / one run", 1.05, _figure(row, "paging"), at_least=False)
    bench.report.table("decode", rows)
    if quick:
        return
    if bench.wants(SMALL):
        dtype = bench.dtypes[0]
        sizes = [attention_row(bench, SMALL, ANCHOR, size, dtype, ("sdpa",)) for size in BLOCK_SIZES]
        bench.report.table("decode, block sizes", sizes)
    models = [shape for shape in SHAPES if bench.wants(shape)]
    workload = decodes("8 x 1K", [1024] * 8)
    dtype = bench.dtypes[-1]
    bench.report.table(
        "decode, heads of models", [attention_row(bench, shape, workload, 16, dtype, ("sdpa",)) for shape in models]
    )


def balance_rows(bench: CpuBench, *, long: bool) -> None:
    """Batches of unequal lengths beside a uniform one of as many bytes."""
    if not bench.wants(SMALL):
        return
    most, least = (128 * 1024, 4096) if long else (16 * 1024, 512)
    total = most + 31 * least
    workloads = [
        sharegpt_like(32, bench.seed),
        decodes(f"32 x {total // 32}", [total // 32] * 32),
        decodes(f"1 x {most // 1024}K + 31 x {least}", [most] + [least] * 31),
        decodes(f"1 x {total // 1024}K", [total]),
    ]
    for dtype in bench.dtypes:
        rows = [attention_row(bench, SMALL, each, 16, dtype, ("sdpa per seq", "gather+sdpa")) for each in workloads]
        bench.report.table("decode, unequal lengths", rows)
        uniform, unequal = (
            ours(bench, laid_out(bench, build(SMALL, each, block_size=16, dtype=dtype, device=CPU), shuffled=True))
            for each in workloads[1:3]
        )
        # Once more in turns: a machine's memory is not equally fast from one minute to the next.
        times = bench.times({"uniform": uniform, "unequal": unequal})
        what = f"{rows[2]['batch']}, {rows[2]['dtype']}: time / that of a uniform batch of as many bytes"
        bench.target(what, 1.05, times["unequal"] / times["uniform"], at_least=False)


def prefill_rows(bench: CpuBench, *, quick: bool) -> None:
    """Whole prompts, chunks behind a past, and chunks beside decodes."""
    prompt = GpuWorkload("prompt of 512", (512,), (512,))
    rows = []
    for dtype in bench.dtypes if bench.wants(SMALL) else ():
        row = attention_row(bench, SMALL, prompt, 16, dtype, ("sdpa", "flex"))
        rows.append(row)
        if bench.peers:
            bench.target(f"prefill of 512, {row['dtype']}: sdpa / ours", 0.9, _figure(row, "sdpa / ours"))
    others = [
        GpuWorkload("4 prompts of 512", (512,) * 4, (512,) * 4),
        GpuWorkload("chunk of 256 behind 1792", (256,), (2048,)),
        GpuWorkload("31 decodes at 512 + chunk of 256", (1,) * 31 + (256,), (512,) * 31 + (256,)),
    ]
    if not quick:
        for dtype in bench.dtypes if bench.wants(SMALL) else ():
            rows += [attention_row(bench, SMALL, each, 16, dtype, ("sdpa", "sdpa per seq")) for each in others]
        for shape in (LLAMA_8B, GEMMA2_9B, GEMMA3_LOCAL):
            if bench.wants(shape):
                rows.append(attention_row(bench, shape, prompt, 16, bench.dtypes[-1], ("sdpa",)))
    bench.report.table("prefill and mixed", rows)


def run(bench: CpuBench, *, sections: Sequence[str], quick: bool, long: bool, trace: bool) -> None:
    """Times the sections asked for and says how the targets were met."""
    if "decode" in sections:
        decode_rows(bench, quick=quick)
    if "balance" in sections and not quick:
        balance_rows(bench, long=long)
    if "prefill" in sections:
        prefill_rows(bench, quick=quick)
    if "around" in sections and not quick:
        cpu_around.rows(bench.report, bench.backend, bench.dtypes, bench.times)
    if trace:
        plain = build(SMALL, ANCHOR, block_size=16, dtype=bench.dtypes[0], device=CPU)
        cpu_around.trace(bench.report, bench.backend, laid_out(bench, plain, shuffled=True))
    bench.report.table("targets", bench.targets)


def _figure(row: dict[str, Cell], name: str) -> float:
    value = row[name]
    return float("nan") if value is None else float(value)
