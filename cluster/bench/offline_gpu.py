"""A GPU's steps: decode steps at batches of 1 to 256 and at long and skewed contexts, and whole prompts.

Step time stands against the bytes that must be read, prompts against the dense product rate, both measured in the same
run, and tokens per second beside transformers and, where they are installed, vLLM and SGLang. Bytes of a step are the
weights that it reads, once, and the keys and values of every sequence. The busy share is kernel time over wall time,
from torch's profiler, in a few steps that are not timed. `gpu_slices.py` calls it; on other devices it runs too.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from cluster.bench.offline_engines import Ours, Transformers
from cluster.bench.offline_models import MAX_LEN, Workload
from cluster.bench.offline_step import run_steps
from cluster.bench.report import Report, Row, target_row
from cluster.offline.engine import LLM
from cluster.sampling import SamplingParams
from kernels.device.seam import device_of
from worker.model.model import Model

WARM_STEPS, STEPS, TRACED_STEPS = 16, 64, 16
# In a rehearsal and on a CPU, where the figures mean little and a step takes long.
FEW_STEPS = 4


class GpuSteps:
    """Steady decode steps of one engine, and what they are held against."""

    def __init__(self, report: Report, folder: Path, title: str, **settings: Any) -> None:
        """`settings` are those of the engine; dtype and device among them."""
        self.report, self.title = report, title
        self.llm: LLM = Ours(folder, settings.pop("dtype"), **settings).llm
        self.worker = self.llm._worker
        self.device = self.worker.parts.device
        self.seam = device_of(self.device)
        self.is_real = self.seam.facts().family != "interpreter"
        self.warm_steps, self.steps = (WARM_STEPS, STEPS) if self.is_real else (FEW_STEPS, FEW_STEPS)
        if self.seam.has_graphs:
            why = "see what `quire generate --local` says at its start"
            report.check(f"decode steps are captured ({title})", self.worker._launcher.graphs is not None, why)
        with self.seam.may_wait():
            self.read, self.products = ceilings(self.device)
        ceiling: Row = {"memory read GB/s": self.read / 1e9, "products TFLOP/s": (self.products or 0.0) / 1e12}
        report.row(f"{title}: ceilings", {**ceiling, "device": self.seam.facts().name})

    @property
    def length(self) -> int:
        """Tokens of each output: more than these steps write, with what is under way."""
        return self.warm_steps + self.steps + TRACED_STEPS + 64

    def row(self, contexts: Sequence[int]) -> Row | None:
        """A batch of sequences whose prompts have these lengths; None: there is no room for it."""
        size, parts = self.worker.settings.block_size, self.worker.parts
        needed = sum(-(-(context + self.length) // size) for context in contexts)
        if needed > parts.pool.num_blocks:
            there_are = parts.pool.num_blocks
            self.report.note(f"{self.title}: {len(contexts)} sequences need {needed:,} blocks of {there_are:,}")
            return None
        seconds, busy = self._measure(contexts)
        held = sum(contexts) + len(contexts) * (self.warm_steps + self.steps // 2)
        moved = _weights_read(parts.model, len(contexts)) + held * parts.layout.token_bytes
        return {
            "batch": len(contexts),
            "context": held // len(contexts),
            "longest": max(contexts),
            "step ms": seconds * 1e3,
            "tokens/s": len(contexts) / seconds,
            "MB to read": moved / 1e6,
            "of read bandwidth": moved / seconds / self.read,
            "busy share": busy,
        }

    def _measure(self, contexts: Sequence[int]) -> tuple[float, float | None]:
        """Seconds of a steady step, and the share of it in which the GPU computes."""
        llm, engine, worker = self.llm, self.llm._engine, self.worker
        desk, batcher = worker.desk, worker.desk.batcher
        params = SamplingParams(temperature=0, max_tokens=self.length, ignore_eos=True)
        prompts = _prompts(contexts, worker.parts.model.vocab_size)
        _, requests = llm._make(prompts, params, keeps_pieces=False)
        for request in requests:
            engine.submit(request)
        while len(desk.rows.row_of) != len(contexts) or (batcher.length - batcher.position)[batcher.resident].max() > 1:
            engine.turn(eager=False)
        run_steps(engine, self.warm_steps)
        worker.settle()
        self.seam.wait()
        began = time.perf_counter()
        steps = run_steps(engine, self.steps)
        worker.settle()
        self.seam.wait()
        seconds = (time.perf_counter() - began) / steps
        busy = self._busy() if self.is_real else None
        llm._abandon(dict(enumerate(requests)))
        return seconds, busy

    def _busy(self) -> float:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            began = time.perf_counter()
            run_steps(self.llm._engine, TRACED_STEPS)
            self.worker.settle()
            self.seam.wait()
            seconds = time.perf_counter() - began
        return sum(float(event.self_device_time_total) for event in profile.key_averages()) * 1e-6 / seconds

    def close(self) -> None:
        """The next engine has the device for itself, once this is forgotten."""
        self.llm.close()
        del self.llm, self.worker
        gc.collect()
        self.seam.free_bytes()


def decode_batches(
    report: Report, folder: Path, title: str, batches: list[int], prompt: int, *, beside: bool = True, **settings: Any
) -> None:
    """One row per batch, then, if `beside`, transformers on the same batches."""
    steps = GpuSteps(report, folder, title, **{"max_batch": max(batches), "max_model_len": MAX_LEN, **settings})
    rows: list[Row] = []
    for batch in report.in_time(title, batches):
        row = steps.row([prompt] * batch)
        if row is not None:
            rows.append(row)
            report.row(title, row)
    if steps.is_real and rows:
        share, busy = (max(float(row[name] or 0.0) for row in rows) for name in ("of read bandwidth", "busy share"))
        targets = [target_row(f"{title}: share of read bandwidth at best", 0.92, share)]
        report.table("targets", [*targets, target_row(f"{title}: busy share at best", 0.994, busy)])
    dtype, device = str(steps.worker.parts.layout.dtype).removeprefix("torch."), steps.device
    # Transformers asks the device as it goes, which the twin forbids.
    device, count = (device, STEPS) if steps.is_real else (torch.device("cpu"), steps.steps)
    steps.close()
    del steps
    if not beside:
        return
    theirs = Transformers(folder, dtype, str(device))
    theirs.static(Workload("warm", _prompts([prompt], 60), [8]))
    for row in report.in_time(f"{title}: transformers", rows):
        batch = int(row["batch"] or 1)
        outcome = theirs.static(Workload("decode", _prompts([prompt] * batch, 60), [count] * batch), batch)
        # The first token of each is the prompt's.
        took = (outcome.times[0][-1] - outcome.times[0][0]) / (count - 1)
        ratio = took * 1e3 / float(row["step ms"] or 1.0)
        report.row(f"{title}: transformers", {"batch": batch, "tokens/s": batch / took, "ours over theirs": ratio})


def long_contexts(report: Report, folder: Path, batches: Sequence[Sequence[int]], **settings: Any) -> None:
    """Decode steps of sequences of these lengths, equal and skewed."""
    title = f"decode steps at long contexts, {folder.name}"
    steps = GpuSteps(report, folder, title, max_batch=max(map(len, batches)), **settings)
    for contexts in report.in_time(title, batches):
        row = steps.row(contexts)
        if row is not None:
            report.row(title, row)
    steps.close()


def whole_prompts(report: Report, folder: Path, lengths: Sequence[int], **settings: Any) -> None:
    """One prompt at a time, from its hand-over to its first token, against the device's dense product rate."""
    title = f"prompts, {folder.name}"
    steps = GpuSteps(report, folder, title, max_batch=4, **settings)
    params = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)
    parts = steps.worker.parts
    for length in report.in_time(title, lengths):
        took = []
        for number in range(4 if steps.is_real else 1):
            prompt = _prompts([length], parts.model.vocab_size, seed=number)
            steps.seam.wait()
            began = time.perf_counter()
            steps.llm.generate(prompt, params, use_tqdm=False)
            took.append(time.perf_counter() - began)
        flop = _flop(parts.model, length)
        share = None if steps.products is None else flop / min(took) / steps.products
        report.row(title, {"tokens": length, "ms": min(took) * 1e3, "TFLOP": flop / 1e12, "of products": share})
        if steps.is_real and length == 8192 and share is not None:
            report.table("targets", [target_row("prompt of 8 K: share of the dense product rate", 0.6, share)])
    steps.close()


def other_engines(report: Report, folder: Path, batches: list[int], prompt: int, dtype: str) -> None:
    """Tokens per second of engines that are installed, over decodes of the same prompts; for the others the reason."""
    ways = {"vllm": _vllm, "sglang": _sglang}
    for name, way in report.in_time("other engines", ways.items()):
        try:
            run = way(folder, dtype, max(batches))
            for batch in report.in_time(name, batches):
                prompts = _prompts([prompt] * batch, 60)
                few, many = (_seconds(run, prompts, count) for count in (8, 8 + STEPS))
                report.row("other engines", {"engine": name, "batch": batch, "tokens/s": batch * STEPS / (many - few)})
        except Exception as error:  # what another engine stumbles over must not end our run
            report.note(f"{name} left out: {type(error).__name__}: {(str(error) or '?').splitlines()[0][:160]}")


Generate = Callable[[list[list[int]], int], object]


def _vllm(folder: Path, dtype: str, batch: int) -> Generate:
    vllm = import_module("vllm")
    engine: Any = vllm.LLM(
        str(folder), dtype=dtype, skip_tokenizer_init=True, max_model_len=MAX_LEN, max_num_seqs=batch,
        enable_prefix_caching=False,
    )  # fmt: skip

    def run(prompts: list[list[int]], count: int) -> object:
        params = vllm.SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True, detokenize=False)
        return engine.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)

    return run


def _sglang(folder: Path, dtype: str, batch: int) -> Generate:
    sglang = import_module("sglang")
    engine: Any = sglang.Engine(
        model_path=str(folder), dtype=dtype, skip_tokenizer_init=True, context_length=MAX_LEN,
        max_running_requests=batch, disable_radix_cache=True,
    )  # fmt: skip

    def run(prompts: list[list[int]], count: int) -> object:
        params = {"temperature": 0.0, "max_new_tokens": count, "ignore_eos": True}
        return engine.generate(input_ids=prompts, sampling_params=params)

    return run


def _seconds(run: Generate, prompts: list[list[int]], count: int) -> float:
    began = time.perf_counter()
    run(prompts, count)
    return time.perf_counter() - began


def _weights_read(model: Model, batch: int) -> int:
    """Bytes of the weights that a step reads: an embedding of its own is looked up and not read, and of a mixture's
    experts those that any of the tokens goes to, if routers choose evenly."""
    module: Any = model.loaded.module
    embedding, head = module.get_input_embeddings().weight, module.get_output_embeddings().weight
    is_tied = embedding.data_ptr() == head.data_ptr()
    unread = 0.0 if is_tied or embedding.is_meta else float(embedding.nbytes)
    config = model.loaded.config
    experts, chosen = getattr(config, "num_local_experts", 0), getattr(config, "num_experts_per_tok", 0)
    if experts:
        asleep = (1.0 - chosen / experts) ** batch
        unread += asleep * sum(one.nbytes for one in module.parameters() if one.dim() == 3)
    return int(model.weights_bytes - unread)


def _flop(model: Model, length: int) -> float:
    """Operations that one prompt must take: every weight of its products once per token, and attention."""
    module: Any = model.loaded.module
    config = model.loaded.config
    head = module.get_output_embeddings().weight
    products: int = sum(
        one.numel() for name, one in module.named_parameters() if one.dim() == 2 and "embed" not in name
    )
    if head.data_ptr() != module.get_input_embeddings().weight.data_ptr():
        products -= head.numel()
    width = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    attention = 2.0 * length * length * config.num_attention_heads * width * config.num_hidden_layers
    return float(2.0 * products * length + 2.0 * head.numel() + attention)


def _prompts(lengths: Sequence[int], vocab: int, seed: int = 0) -> list[list[int]]:
    rng = random.Random(f"{len(lengths)} {seed}")
    return [[rng.randrange(3, vocab) for _ in range(length)] for length in lengths]


def ceilings(device: torch.device) -> tuple[float, float | None]:
    """Bytes per second of reading memory that no cache holds, and operations per second of dense products."""
    if device_of(device).is_apart:
        from cluster.bench.gpu_clock import DeviceClock

        found = DeviceClock(device).ceilings()
        return found.read, found.matmul
    data = torch.ones((64 << 20) // 4)
    best = float("inf")
    for _ in range(10):
        began = time.perf_counter()
        data.sum()
        best = min(best, time.perf_counter() - began)
    return data.nbytes / best, None
