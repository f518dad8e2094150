"""Where a step's time goes: products, attention, rows, sampling, scheduling, host, rest.

A steady batch of decodes is run; the host's parts are what the worker counts. Inside the fused call the share of each
kind of op is what the call takes less without it, on the same step. `offline_limits.py` says how much of the machine
that reaches.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from cluster.bench.offline_engines import Ours
from cluster.bench.offline_models import workload
from cluster.bench.report import Row
from cluster.offline.embedded import Embedded
from cluster.offline.engine import LLM
from cluster.sampling import SamplingParams
from kernels.cpu import program as cpu_program
from kernels.cpu.call import COUNTER, TICKET

WARM_STEPS, STEPS, REPEATS = 20, 60, 25
_PARTS = {
    "products": (cpu_program.PRODUCT,),
    "attention": (cpu_program.CALL,),
    "rows": (cpu_program.NORM, cpu_program.ROTATION, cpu_program.EMBEDDING),
    "sampling": (cpu_program.BEST, cpu_program.DRAW),
}


def breakdown(llm: LLM, shape: str, batch: int, *, draws: bool) -> list[Row]:
    """Microseconds and shares of one step at this batch. `draws`: with top-p and top-k instead of greedy."""
    engine, worker = llm._engine, llm._worker
    batcher = worker.desk.batcher
    params = SamplingParams(
        temperature=1.0 if draws else 0.0, top_p=0.9 if draws else 1.0, top_k=40 if draws else 0, seed=1,
        max_tokens=600, ignore_eos=True,
    )  # fmt: skip
    lengths = workload("sharegpt", shape, batch, seed=3).prompts
    _, requests = llm._make([prompt[:200] for prompt in lengths], params, keeps_pieces=False)
    for request in requests:
        engine.submit(request)
    while worker.num_sampled < 1 or np.any(batcher.length - batcher.position > 1):
        engine.turn(eager=False)
    run_steps(engine, WARM_STEPS)
    before, decided = dict(worker.seconds), engine.scheduling_seconds
    began = time.perf_counter()
    steps = run_steps(engine, STEPS)
    whole = (time.perf_counter() - began) / steps
    host = {part: (worker.seconds[part] - before[part]) / steps for part in before}
    parts = _inside(worker.parts.model._fused, host["model"])
    # Chosen inside the call or, where the model is not fused or a row asks for more, by the sampler.
    parts["sampling"] = parts.get("sampling", 0.0) + host["sample"]
    parts |= {"prepare": host["prepare"], "retire": host["retire"]}
    parts["scheduling"] = (engine.scheduling_seconds - decided) / steps
    parts["rest"] = max(0.0, whole - sum(parts.values()))
    llm._abandon(dict(enumerate(requests)))
    rows: list[Row] = [
        {"part": name, "us": seconds * 1e6, "share %": 100 * seconds / whole} for name, seconds in parts.items()
    ]
    other = whole - parts.get("products", parts.get("model", 0.0)) - parts.get("attention", 0.0)
    rows.append({"part": "neither products nor attention", "us": other * 1e6, "share %": 100 * other / whole})
    rows.append({"part": "step", "us": whole * 1e6, "share %": 100.0})
    return rows


def run_steps(engine: Embedded, wanted: int) -> int:
    """Turns until so many steps have run; returns how many did, because a turn can run several."""
    first = engine.worker.num_steps
    while engine.worker.num_steps < first + wanted:
        engine.turn(eager=False)
    return engine.worker.num_steps - first


def step_cost(llm: LLM, shape: str) -> Row:
    """A step of n tokens takes about a + b * n: a is "step base", b "per token". From prompts of one step each."""
    most = llm._worker.parts.token_budget
    few, many = max(1, most // 32), most
    params = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)

    def best(length: int) -> float:
        # New prompts each time: nothing of them is cached.
        drawn = workload("sharegpt", shape, REPEATS, seed=50 + length).prompts
        prompts = iter([(prompt * length)[:length] for prompt in drawn])
        return best_time(lambda: llm.generate(next(prompts), params, use_tqdm=False))

    took = {length: best(length) for length in (few, many)}
    slope = (took[many] - took[few]) / (many - few)
    return {"step base ms": (took[few] - slope * few) * 1e3, "per token us": slope * 1e6, "tokens of the largest": many}


def prefix_cost(make: Callable[[bool], Ours], shape: str, rounds: int = 12) -> list[Row]:
    """What prefix caching costs where no two prompts share anything, in processor time of one thread.

    Both engines get the same prompts, new ones in each round, and take turns at being first. The model's calls are the
    same in both, and on a busy machine their times differ by more than caching costs: what is compared is all the rest
    (hashing, scheduling, tables, sampling), as a share of a whole run without caching."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        engines = {caches: make(caches) for caches in (False, True)}
        clocks = {caches: _model_clock(engine.llm._worker.parts.model) for caches, engine in engines.items()}
        whole: dict[bool, list[float]] = {False: [], True: []}
        rest: dict[bool, list[float]] = {False: [], True: []}
        # The first round warms up.
        for number in range(rounds + 1):
            work = workload("alpaca", shape, 12, seed=100 + number)
            for caches in (False, True) if number % 2 else (True, False):
                inside, began = clocks[caches][0], time.process_time()
                engines[caches](work)
                took = time.process_time() - began
                if number:
                    whole[caches].append(took)
                    rest[caches].append(took - (clocks[caches][0] - inside))
    finally:
        torch.set_num_threads(threads)
    run = float(np.median(whole[False]))
    cost = float(np.median(np.array(rest[True]) - np.array(rest[False])))
    return [
        {"what": "a run without prefix caching, ms", "figure": 1e3 * run},
        {"what": "of that not in the model, ms", "figure": 1e3 * float(np.median(rest[False]))},
        {"what": "the same with prefix caching, ms", "figure": 1e3 * float(np.median(rest[True]))},
        {"what": "prefix caching costs, % of a run", "figure": 100 * cost / run},
    ]


def _model_clock(model: Any) -> list[float]:
    """Processor seconds in this model's calls from now on, in a list of one."""
    total = [0.0]

    def timed(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            began = time.process_time()
            try:
                return call(*arguments)
            finally:
                total[0] += time.process_time() - began

        return run

    model.pick, model.forward = timed(model.pick), timed(model.forward)
    return total


def _inside(decoder: Any, model_seconds: float) -> dict[str, float]:
    """The model's part by kind of op. Without a fused call it is one figure."""
    if decoder is None:
        return {"model": model_seconds}
    program, calls = decoder._program, decoder._calls
    tokens, chosen = (int(count) for count in program.counts)
    table, kinds = program.table, program.table[:, 0].copy()

    def run(without: tuple[int, ...]) -> float:
        table[:, 0] = np.where(np.isin(kinds, without), cpu_program.NOTHING, kinds)
        calls._words[:, :, [COUNTER, TICKET]] = 0
        decoder._draw._call.begin()
        began = time.perf_counter()
        program.run(tokens, chosen, torch.get_num_threads())
        return time.perf_counter() - began

    # The last step once more: it writes the keys and values that it wrote before. What is compared takes turns, so that
    # a machine that becomes slower meanwhile is slower for all.
    left_out = {"nothing": (), **_PARTS}
    times = [[run(kinds_left_out) for kinds_left_out in left_out.values()] for _ in range(REPEATS)]
    residual, *others = np.min(times, axis=0).tolist()
    saved = {name: max(0.0, residual - other) for name, other in zip(_PARTS, others, strict=True)}
    table[:, 0] = kinds
    scale = model_seconds / max(residual, sum(saved.values()))
    found = {name: seconds * scale for name, seconds in saved.items()}
    found["waiting for each other"] = max(0.0, model_seconds - sum(found.values()))
    return found


def best_time(call: Callable[[], object]) -> float:
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return min(times)
