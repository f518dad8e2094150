"""What stands around attention on the CPU: cache writes and block copies timed, and where a call's time goes.

`cpu_kernels` calls these as its last sections.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median

import torch

from cluster.bench.gpu_batches import Built
from cluster.bench.report import Cell, Report
from kernels import reference
from kernels.batch import Scoring
from kernels.cpu.backend import CpuBackend
from kernels.layout import BlockLayout, LayerCache, LayerShape

Call = Callable[[], object]
Times = Callable[[dict[str, Call]], dict[str, float]]


def rows(report: Report, backend: CpuBackend, dtypes: Sequence[torch.dtype], times: Times) -> None:
    """Writes of a decode step and of a prompt, and copies of whole blocks beside a plain copy of as many bytes."""
    found: list[dict[str, Cell]] = []
    for dtype in dtypes:
        layout = BlockLayout((LayerShape(4, 64),) * 12, 16, dtype, backend.key_order(dtype, 16))
        pool = torch.zeros((512, layout.block_bytes), dtype=torch.uint8)
        for tokens in (32, 512):
            found.append(_write_row(report, backend, layout.views(pool)[5], tokens, times))
        found.append(_copy_row(report, backend, pool, dtype, times))
    report.table("around attention", found)


def _write_row(report: Report, backend: CpuBackend, cache: LayerCache, tokens: int, times: Times) -> dict[str, Cell]:
    dtype, num_slots = cache.k.dtype, cache.num_blocks * cache.block_size
    k, v = (torch.randn((tokens, 4, 64)).to(dtype) for _ in range(2))
    slots = torch.randperm(num_slots)[:tokens]
    backend.write_kv(k, v, cache, slots)
    got_k, got_v = reference.gather_tokens(cache, torch.arange(cache.num_blocks), num_slots)
    right = torch.equal(got_k[slots], k) and torch.equal(got_v[slots], v)
    report.check(f"write of {tokens} tokens, {dtype}", right, "what was written is not what is there")
    candidates: dict[str, Call] = {
        "ours": lambda: backend.write_kv(k, v, cache, slots),
        "torch": lambda: reference.write_kv(k, v, cache, slots),
    }
    return _row(f"write {tokens} tokens", dtype, times(candidates), k.nbytes + v.nbytes)


def _copy_row(
    report: Report, backend: CpuBackend, pool: torch.Tensor, dtype: torch.dtype, times: Times
) -> dict[str, Cell]:
    ids = torch.randperm(pool.shape[0])
    src, dst = ids[:128], ids[128:256]
    pool.random_(0, 256)
    wanted = pool.clone()
    wanted[dst] = wanted[src]
    backend.copy_blocks(pool, src, dst)
    report.check(f"copy of 128 blocks, {dtype}", torch.equal(pool, wanted), "blocks differ from their sources")
    candidates: dict[str, Call] = {
        "ours": lambda: backend.copy_blocks(pool, src, dst),
        "torch": lambda: pool.index_copy_(0, dst, pool[src]),
        "one run": lambda: pool[:128].copy_(pool[256:384]),
    }
    return _row("copy 128 blocks", dtype, times(candidates), 2 * 128 * pool.shape[1])


def _row(what: str, dtype: torch.dtype, took: dict[str, float], size_bytes: int) -> dict[str, Cell]:
    row: dict[str, Cell] = {"what": what, "dtype": str(dtype).removeprefix("torch."), "us": took["ours"] * 1e6}
    row["GB/s"] = size_bytes / took["ours"] / 1e9
    for name, seconds in took.items():
        if name != "ours":
            row[f"{name} / ours"] = seconds / took["ours"]
    return row


def trace(report: Report, backend: CpuBackend, built: Built) -> None:
    """Where one attention call's time goes: the plan, the host's part of the call, one thread's work, all threads'."""
    shape, cache, batch = built.shape, built.caches[0], built.batch
    out = torch.empty_like(built.q)

    def prepare() -> object:
        return backend.prepare(
            batch,
            num_heads=shape.num_heads,
            num_kv_heads=shape.num_kv_heads,
            head_dim=shape.dim,
            block_size=cache.block_size,
        )

    def attend() -> object:
        return backend.attention(built.q, cache, batch, Scoring(built.scale), out=out)

    threads = torch.get_num_threads()
    found: list[dict[str, Cell]] = [{"what": "plan, once per step", "us": _median_us(prepare)}]
    found.append({"what": f"attention, {threads} threads", "us": _median_us(attend)})
    torch.set_num_threads(1)
    found.append({"what": "attention, 1 thread", "us": _median_us(attend)})
    torch.set_num_threads(threads)
    lengths = batch.context_len.clone()
    batch.context_len.fill_(1)
    prepare()
    found.append({"what": "attention over one key each: the host's part", "us": _median_us(attend)})
    batch.context_len.copy_(lengths)
    prepare()
    report.table(f"where the time goes: {built.shape.name}, {built.workload.name}", found)


def _median_us(call: Callable[[], object], rounds: int = 50) -> float:
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return median(times) * 1e6
