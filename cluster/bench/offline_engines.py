"""The engines that the offline benchmark compares: ours, and transformers in its two ways, each behind one call.

Every engine gets the same checkpoint, dtype and threads and the same requests, all at once, and says what came of them
(`Outcome`). Times of tokens are taken where each engine has them, without a second run.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch

from cluster.bench.offline_models import Workload
from cluster.desk import Drawn, Flight
from cluster.offline.engine import LLM
from cluster.sampling import SamplingParams
from kernels.device.seam import device_of

STATIC_BATCH = 32
TIMEOUT_S = 900
# Tokens of one block of transformers' continuous batching.
PAGE = 256


@dataclass
class Outcome:
    """What one engine did with one workload. `times[i]` are the seconds from the start to each token of request i."""

    seconds: float
    outputs: list[list[int]]
    times: list[list[float]] = field(default_factory=list)
    peak_bytes: int = 0
    processor_s: float = 0.0

    @property
    def first_token_s(self) -> float:
        return median(times[0] for times in self.times if times)

    @property
    def inter_token_s(self) -> float:
        """Of the median request: from its first token to its last, per token; those of several steps come at once."""
        gaps = [(times[-1] - times[0]) / (len(times) - 1) for times in self.times if len(times) > 1]
        return median(gaps) if gaps else 0.0


Engine = Callable[[Workload], Outcome]


class Ours:
    """The embedded engine."""

    def __init__(self, folder: Path, dtype: str, **settings: Any) -> None:
        self.llm = LLM(str(folder), dtype=dtype, quiet=True, **settings)
        self._worker = self.llm._worker

    def __call__(self, workload: Workload) -> Outcome:
        params = [
            SamplingParams(n=workload.n, temperature=0, max_tokens=count, ignore_eos=True)
            for count in workload.max_tokens
        ]
        stamps: dict[tuple[str, int], list[float]] = {}
        desk = self._worker.desk
        retire = desk.retire

        def stamped(flight: Flight, drawn: Drawn) -> None:
            now = time.perf_counter()
            for row in flight.rows.tolist():
                resident = desk.rows.at(row)
                stamp = [now - started] * flight.num_steps
                stamps.setdefault((resident.request_id, resident.index), []).extend(stamp)
            retire(flight, drawn)

        desk.retire = stamped  # type: ignore[method-assign]
        try:
            started = time.perf_counter()
            results = self.llm.generate(workload.prompts, params, use_tqdm=False)
            seconds = time.perf_counter() - started
        finally:
            desk.retire = retire  # type: ignore[method-assign]
        outputs = [one.token_ids for result in results for one in result.outputs]
        return Outcome(seconds, outputs, list(stamps.values()))


class Transformers:
    """A model of transformers, with the attention that it is fastest with."""

    def __init__(self, folder: Path, dtype: str, device: str = "cpu") -> None:
        from transformers import AutoModelForCausalLM, logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        self.device = device
        loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), attn_implementation="sdpa")
        self.model: Any = loaded.to(device).eval()

    @torch.inference_mode()
    def static(self, workload: Workload, size: int = STATIC_BATCH) -> Outcome:
        """`generate` over padded batches; each runs until its longest output is done, the surplus is not counted."""
        outputs: list[list[int]] = []
        times: list[list[float]] = []
        prompts = [prompt for prompt in workload.prompts for _ in range(workload.n)]
        wanted = [count for count in workload.max_tokens for _ in range(workload.n)]
        started = time.perf_counter()
        for at in range(0, len(prompts), size):
            batch, counts = prompts[at : at + size], wanted[at : at + size]
            steps: list[float] = []
            written = self._generate(batch, max(counts), steps, started)
            for row, count in zip(written, counts, strict=True):
                outputs.append(row[:count])
                times.append(steps[:count])
        return Outcome(time.perf_counter() - started, outputs, times)

    def _generate(self, batch: list[list[int]], count: int, steps: list[float], started: float) -> list[list[int]]:
        width = max(map(len, batch))
        ids = torch.zeros(len(batch), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(batch):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1

        def stamp(input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            # Waits for the device, as whoever streams tokens does.
            input_ids[0, -1].item()
            steps.append(time.perf_counter() - started)
            return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)

        out = self.model.generate(
            ids.to(self.device),
            attention_mask=mask.to(self.device),
            max_new_tokens=count,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            stopping_criteria=[stamp],
        )
        return out[:, width:].tolist()  # type: ignore[no-any-return]

    def continuous(self, workload: Workload) -> Outcome:
        """Its continuous batching, with each request's own length."""
        from transformers import ContinuousBatchingConfig, GenerationConfig

        config = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0, max_new_tokens=16)
        requests = [
            (prompt, count)
            for prompt, count in zip(workload.prompts, workload.max_tokens, strict=True)
            for _ in range(workload.n)
        ]
        # Without a bound it takes half of the memory, and its masks grow with it: it gets room for all requests.
        pages = sum(-(-(len(prompt) + count) // PAGE) for prompt, count in requests) + 1
        sizes = ContinuousBatchingConfig(num_blocks=pages, max_batch_tokens=512, allow_block_sharing=True)
        manager = self.model.init_continuous_batching(generation_config=config, continuous_batching_config=sizes)
        manager.start()
        try:
            # Its thread builds the cache first; that is not timed.
            _collect(manager, [manager.add_request([1], max_new_tokens=1)])
            started = time.perf_counter()
            names = [
                manager.add_request(prompt, max_new_tokens=count, record_timestamps=True) for prompt, count in requests
            ]
            done = _collect(manager, names)
            seconds = time.perf_counter() - started
        finally:
            manager.stop(block=True, timeout=30)
        times = [[at - started for at in done[name].timestamps or []] for name in names]
        return Outcome(seconds, [list(done[name].generated_tokens) for name in names], times)


def _collect(manager: Any, names: list[str]) -> dict[str, Any]:
    """The finished requests of these names."""
    began = time.perf_counter()
    done: dict[str, Any] = {}
    while len(done) < len(names):
        assert time.perf_counter() - began < TIMEOUT_S, "continuous batching did not end in time"
        try:
            result = manager.get_result(timeout=1)
        except queue.Empty:
            continue
        if result is not None and result.is_finished():
            done[result.request_id] = result
    return done


def measured(make: Callable[[], Engine], workload: Workload) -> Outcome:
    """Builds an engine and runs the workload, with the memory that both took at their peak."""
    outcome: list[Outcome] = []

    def run() -> None:
        engine = make()
        began = time.process_time()
        outcome.append(engine(workload))
        outcome[0].processor_s = time.process_time() - began

    peak = device_of(torch.device("cpu")).peak_bytes(run)
    outcome[0].peak_bytes = peak
    return outcome[0]
