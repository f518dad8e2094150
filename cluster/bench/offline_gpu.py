"""A GPU's decode steps at batches of 1 to 256: step time against the bytes that must be read, tokens per second beside
transformers, and how busy the GPU is. `quire bench gpu` prints it; on a CPU it runs too, as a rehearsal.

Bytes of a step are the weights, once, and the keys and values of every sequence; the bandwidth is measured in the same
run. The busy share is kernel time over wall time, from torch's profiler, in a few steps that are not timed.
"""

from __future__ import annotations

import gc
import random
import time
from pathlib import Path
from typing import Any

import torch

from cluster.bench.offline_engines import Ours, Transformers
from cluster.bench.offline_models import Workload
from cluster.bench.offline_step import run_steps
from cluster.bench.report import Report, Row
from cluster.sampling import SamplingParams
from worker.model.model import Model

WARM_STEPS, STEPS, TRACED_STEPS = 16, 64, 16
# Tokens of each output: more than these steps write, with what is under way.
LENGTH = WARM_STEPS + STEPS + TRACED_STEPS + 64


def decode_batches(report: Report, folder: Path, title: str, batches: list[int], prompt: int, **settings: Any) -> None:
    """One row per batch. `settings` are those of the engine; dtype and device among them."""
    llm = Ours(folder, settings.pop("dtype"), max_batch=max(batches), **settings).llm
    worker = llm._worker
    device = worker.parts.device
    if device.type == "cuda":
        why = "see what `quire generate --local` says at its start"
        report.check(f"decode steps are captured ({title})", worker._launcher.graphs is not None, why)
    bandwidth = read_bandwidth(device)
    report.table(f"{title}: memory read", [{"GB/s": bandwidth / 1e9, "device": _name(device)}])
    weights = _weights_read(worker.parts.model)
    rows: list[Row] = []
    for batch in batches:
        needed, there_are = batch * -(-(prompt + LENGTH) // worker.settings.block_size), worker.parts.pool.num_blocks
        if needed > there_are:
            report.note(f"{title}: {batch} sequences need {needed:,} blocks of {there_are:,}; left out")
            continue
        seconds, busy = _steps(llm, batch, prompt)
        context = prompt + WARM_STEPS + STEPS // 2
        moved = weights + batch * context * worker.parts.layout.token_bytes
        rows.append(
            {
                "batch": batch,
                "context": context,
                "step ms": seconds * 1e3,
                "tokens/s": batch / seconds,
                "MB to read": moved / 1e6,
                "of read bandwidth": moved / seconds / bandwidth,
                "busy share": busy,
            }
        )
    dtype = str(worker.parts.layout.dtype).removeprefix("torch.")
    del llm, worker
    _give_back(device)
    theirs = Transformers(folder, dtype, str(device))
    theirs.static(Workload("warm", _prompts(1, prompt, 1000), [8]))
    for row in rows:
        batch = int(row["batch"] or 1)
        outcome = theirs.static(Workload("decode", _prompts(batch, prompt, 1000), [STEPS] * batch), batch)
        # The first token of each is the prompt's.
        took = (outcome.times[0][-1] - outcome.times[0][0]) / (STEPS - 1)
        rows[rows.index(row)] = {**row, "transformers tokens/s": batch / took, "ratio": took * 1e3 / _number(row)}
    report.table(title, rows)
    del theirs
    _give_back(device)


def _weights_read(model: Model) -> int:
    """Bytes of the weights that a step reads: an embedding of its own is looked up and not read."""
    module: Any = model.loaded.module
    embedding, head = module.get_input_embeddings().weight, module.get_output_embeddings().weight
    is_tied = embedding.data_ptr() == head.data_ptr()
    return model.weights_bytes - (0 if is_tied or embedding.is_meta else int(embedding.nbytes))


def _give_back(device: torch.device) -> None:
    """The next engine has the device for itself."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _number(row: Row) -> float:
    return float(row["step ms"] or 0.0)


def _steps(llm: Any, batch: int, prompt: int) -> tuple[float, float | None]:
    """Seconds of a steady step of so many decodes, and the share of it in which the GPU computes."""
    engine, worker = llm._engine, llm._worker
    desk, batcher = worker.desk, worker.desk.batcher
    params = SamplingParams(temperature=0, max_tokens=LENGTH, ignore_eos=True)
    _, requests = llm._make(_prompts(batch, prompt, worker.parts.model.vocab_size), params, keeps_pieces=False)
    for request in requests:
        engine.submit(request)
    while len(desk.rows.row_of) != batch or (batcher.length - batcher.position)[batcher.resident].max() > 1:
        engine.turn(eager=False)
    run_steps(engine, WARM_STEPS)
    worker.settle()
    _synchronize(worker.parts.device)
    began = time.perf_counter()
    steps = run_steps(engine, STEPS)
    worker.settle()
    _synchronize(worker.parts.device)
    seconds = (time.perf_counter() - began) / steps
    busy = _busy(engine) if worker.parts.device.type == "cuda" else None
    llm._abandon(dict(enumerate(requests)))
    return seconds, busy


def _busy(engine: Any) -> float:
    device = engine.worker.parts.device
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        began = time.perf_counter()
        run_steps(engine, TRACED_STEPS)
        engine.worker.settle()
        _synchronize(device)
        seconds = time.perf_counter() - began
    return sum(float(event.self_device_time_total) for event in profile.key_averages()) * 1e-6 / seconds


def _prompts(batch: int, length: int, vocab: int) -> list[list[int]]:
    rng = random.Random(batch)
    return [[rng.randrange(3, vocab) for _ in range(length)] for _ in range(batch)]


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def read_bandwidth(device: torch.device) -> float:
    """Bytes per second of reading memory that no cache holds."""
    if device.type == "cuda":
        from cluster.bench.gpu_clock import Clock

        return Clock(device).ceilings().read
    data = torch.ones((64 << 20) // 4)
    best = float("inf")
    for _ in range(10):
        began = time.perf_counter()
        data.sum()
        best = min(best, time.perf_counter() - began)
    return data.nbytes / best


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
