"""Quire's embedded engine, step by step, so that each token's time is known."""

from __future__ import annotations

import time
from importlib import metadata
from typing import Any


def quire(job: dict[str, Any]) -> Any:
    import torch

    from cluster import SamplingParams
    from cluster.bench.stepping import Stepping
    from cluster.settings import SchedulerSettings

    torch.set_num_threads(job["threads"])
    settings = {"dtype": job["dtype"], "device": job["device"], "prefix_caching": True}
    engine = Stepping(job["folder"], SchedulerSettings(ahead=12), **settings)

    def run(prompts: list[list[int]], wanted: list[int]) -> tuple[list[list[int]], list[list[float]]]:
        began = time.perf_counter()
        asked = [
            engine.ask(prompt, SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True))
            for prompt, count in zip(prompts, wanted, strict=True)
        ]
        times: list[list[float]] = [[] for _ in asked]
        while not all(live.done for live in asked):
            engine.turn(eager=True)
            now = time.perf_counter() - began
            for live, stamps in zip(asked, times, strict=True):
                stamps += [now] * (live.log.num_tokens - len(stamps))
        return [list(live.log.sequences[0].ids) for live in asked], times

    return run


def version(job: dict[str, Any]) -> str:
    return metadata.version("quire")
