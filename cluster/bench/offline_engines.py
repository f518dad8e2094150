"""The engines that the offline benchmark compares: ours, and transformers in its two ways, each behind one call.

Every engine gets the same checkpoint, dtype and threads and the same requests, all at once, and says what came of them
(`Outcome`). Times of tokens are taken where each engine has them, without a second run.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from cluster.bench.engines import of_transformers
from cluster.bench.offline_models import Workload
from cluster.desk import Drawn, Flight
from cluster.offline.engine import LLM
from cluster.sampling import SamplingParams
from kernels.device.seam import device_of


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
    """transformers in its two ways, through the adapter that `quire bench peers` uses."""

    def __init__(self, folder: Path, dtype: str, device: str = "cpu") -> None:
        self.device = device
        self.model: Any = of_transformers.load(str(folder), dtype, device=device)

    def static(self, workload: Workload, size: int = of_transformers.STATIC_BATCH) -> Outcome:
        return self._timed(workload, partial(of_transformers.generate, size=size))

    def continuous(self, workload: Workload) -> Outcome:
        return self._timed(workload, of_transformers.batch_continuously)

    def _timed(self, workload: Workload, run: Callable[..., of_transformers.Found]) -> Outcome:
        prompts = [prompt for prompt in workload.prompts for _ in range(workload.n)]
        wanted = [count for count in workload.max_tokens for _ in range(workload.n)]
        outputs, times = run(self.model, prompts, wanted)
        # From the first request on: what it takes to set up a cache is not timed.
        return Outcome(max(stamps[-1] for stamps in times), outputs, times)


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
