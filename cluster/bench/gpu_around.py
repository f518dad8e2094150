"""What surrounds attention on the GPU: a decode step in a CUDA graph, cache writes, block copies, plans, a trace.

`gpu_kernels.run` calls these sections. The replayed step is also checked after its sequences have changed.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from cluster.bench.gpu_batches import LLAMA_8B, Built, GpuWorkload, decodes, worst_error
from cluster.bench.gpu_bench import GpuBench, prepare
from cluster.bench.gpu_clock import Work
from cluster.bench.report import Cell
from kernels.batch import Scoring


def graph_rows(bench: GpuBench) -> None:
    """A decode step of several layers, launched one by one and replayed from a graph, while its sequences change."""
    layers = 2 if bench.tiny else 8
    built = bench.build(LLAMA_8B, decodes("64 x 2K", [2048] * 64), layers=layers)
    shape, out = built.shape, torch.empty_like(built.q)
    k = torch.randn_like(built.q[:, : shape.num_kv_heads])
    v = torch.randn_like(k)

    def step() -> None:
        prepare(bench.backend, built)
        for cache in built.caches:
            bench.backend.write_kv(k, v, cache, built.batch.slots)
            bench.backend.attention(built.q, cache, built.batch, Scoring(built.scale), out=out)

    step()
    rows: list[dict[str, Cell]] = []
    eager = bench.clock.seconds(step, capture=False)
    rows.append({"step": f"{layers} layers, launched", "us": eager * 1e6, "us per layer": eager * 1e6 / layers})
    replay: Work = step
    if bench.clock.seam.has_graphs:
        replay = bench.clock.seam.graphs().capture(step)[0].replay
        replayed = bench.clock.seconds(replay, capture=False)
        rows.append(
            {"step": f"{layers} layers, replayed", "us": replayed * 1e6, "us per layer": replayed * 1e6 / layers}
        )
    grown = tuple(max(1, c - (37 * i) % (c - 1)) for i, c in enumerate(built.workload.contexts))
    built.batch.context_len.copy_(torch.tensor(grown, dtype=torch.int32))
    out.fill_(float("nan"))
    replay()
    changed = replace(built, workload=replace(built.workload, contexts=grown), caches=built.caches[-1:])
    error = worst_error(changed, out)
    bench.report.check("a decode step replayed with other lengths", error <= 1.0, f"{error:.2f} of the error allowed")
    bench.report.table("decode step", rows)


def write_rows(bench: GpuBench, built: Built) -> list[dict[str, Cell]]:
    """Keys and values into blocks, with the rotary embedding before it in torch, and fused."""
    shape, tokens = built.shape, built.workload.num_tokens
    cache, slots, backend, q = built.caches[0], built.batch.slots, bench.backend, built.q
    k = torch.randn_like(q[:, : shape.num_kv_heads])
    v = torch.randn_like(k)
    angle = torch.rand((tokens, shape.dim // 2), device=bench.device)
    cos, sin = angle.cos(), angle.sin()
    rounded = cos[:, None].to(q.dtype), sin[:, None].to(q.dtype)

    def rotated(x: torch.Tensor) -> torch.Tensor:
        (first, second), (c, s) = x.chunk(2, dim=-1), rounded
        return torch.cat([first * c - second * s, second * c + first * s], dim=-1)

    def apart() -> torch.Tensor:
        backend.write_kv(rotated(k), v, cache, slots)
        return rotated(q)

    times = bench.clock.compare(
        {
            "keys and values written": lambda: backend.write_kv(k, v, cache, slots),
            "rotary embedding and write, fused": lambda: backend.rotary_write_kv(q, k, v, cos, sin, cache, slots),
            "rotary embedding in torch, then write": apart,
        }
    )
    written = 2 * tokens * shape.token_bytes(bench.dtype)
    rows: list[dict[str, Cell]] = []
    for name, took in times.items():
        moved = written if name.startswith("keys") else written + 2 * q.nbytes + cos.nbytes + sin.nbytes
        rows.append({"op": f"{name}, {tokens} tokens", "us": took * 1e6, "of copy": moved / took / bench.ceilings.copy})
    return rows


def other_rows(bench: GpuBench) -> None:
    """The plan of a step, cache writes with and without rotary embedding, and block copies."""
    rows: list[dict[str, Cell]] = []
    for tokens in (64, 8192):
        rows += write_rows(bench, bench.build(LLAMA_8B, GpuWorkload(f"{tokens} tokens", (tokens,), (tokens,))))
    blocks = 8 if bench.tiny else 512
    pool = torch.zeros((2 * blocks, 2 << 20 if not bench.tiny else 4096), dtype=torch.uint8, device=bench.device)
    order = torch.randperm(2 * blocks, device=bench.device)
    took = bench.clock.seconds(lambda: bench.backend.copy_blocks(pool, order[:blocks], order[blocks:]))
    share = 2 * blocks * pool.shape[1] / took / bench.ceilings.copy
    rows.append({"op": f"{blocks} blocks copied", "us": took * 1e6, "of copy": share})
    for batch in (32, 1024):
        built = bench.build(LLAMA_8B, decodes(f"{batch} decodes", [64] * batch))

        def plan(built: Built = built) -> None:
            prepare(bench.backend, built)
            bench.backend.plan(built.batch, built.q, built.caches[0])

        rows.append({"op": f"plan of {built.workload.name}, once a step", "us": bench.clock.seconds(plan) * 1e6})
    bench.report.table("around attention", rows)


def trace(bench: GpuBench) -> None:
    """Where the time of a decode step and of a prefill goes, kernel by kernel."""
    for workload in (decodes("32 x 4K", [4096] * 32), GpuWorkload("1 x 8K", (8192,), (8192,))):
        built = bench.build(LLAMA_8B, workload)
        k = torch.randn_like(built.q[:, : built.shape.num_kv_heads])

        def step(built: Built = built, k: torch.Tensor = k) -> None:
            prepare(bench.backend, built)
            bench.backend.write_kv(k, k, built.caches[0], built.batch.slots)
            bench.backend.attention(built.q, built.caches[0], built.batch, Scoring(built.scale))

        step()
        kind = torch.profiler.ProfilerActivity.CUDA if bench.clock.is_real else torch.profiler.ProfilerActivity.CPU
        with torch.profiler.profile(activities=[kind]) as profile:
            for _ in range(1 if bench.tiny else 20):
                step()
            bench.clock.seam.wait()
        field_name = "self_device_time_total" if bench.clock.is_real else "self_cpu_time_total"
        events = sorted(profile.key_averages(), key=lambda event: -float(getattr(event, field_name)))
        total = sum(float(getattr(event, field_name)) for event in events) or 1.0
        rows: list[dict[str, Cell]] = [
            {
                "kernel": event.key[:60],
                "calls": int(event.count),
                "us a call": float(getattr(event, field_name)) / max(int(event.count), 1),
                "share": float(getattr(event, field_name)) / total,
            }
            for event in events[:12]
        ]
        bench.report.table(f"where the time goes: {workload.name}", rows)
