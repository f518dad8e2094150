"""`quire bench cluster`: what a cluster costs beside the engine alone, and what its front door carries.

A model of 125M parameters in fp32 (`--shape`), as an embedded engine in this process and behind scheduler, gateway and
gRPC with its worker in a process of its own; both take turns and must say the same tokens. Then one worker against two
on the same cores, and the front door with workers that make up tokens (`cluster/bench/gateway.py`).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import worker.demo
from cluster.bench import gateway
from cluster.bench.offline_engines import Ours
from cluster.bench.offline_models import Workload, folder_of, workload
from cluster.bench.processes import Processes
from cluster.bench.report import Cell, Report
from cluster.client.blocking import Client
from cluster.client.request import Options
from cluster.sampling import SamplingParams
from cluster.settings import SchedulerSettings, WorkerSettings

TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
REQUESTS, PROMPT_TOKENS, TOKENS, LONE_TOKENS = 24, 64, 48, 64
TIMEOUT_S = 300.0

MIN_THROUGHPUT, MAX_INTER_TOKEN, MIN_PER_CORE = 0.9, 1.3, 0.9
MIN_TOKENS, MIN_MESSAGES, MAX_ADDED_S = 100_000, 8_000, 0.050


def with_tokenizer(shape: str, folder: Path) -> Path:
    """The benchmark's model as a gateway needs it: it has no texts of its own, but one must be able to ask."""
    for file in folder_of(shape).iterdir():
        (folder / file.name).symlink_to(file)
    for name in TOKENIZER:
        shutil.copy(Path(worker.demo.__file__).parent / name, folder / name)
    return folder


def many(shape: str, requests: int) -> Workload:
    prompts = [[3 + (number * 37 + at * 11) % 900 for at in range(PROMPT_TOKENS)] for number in range(requests)]
    return Workload("many", prompts, [TOKENS] * requests)


class Served:
    """The same model behind a gateway."""

    def __init__(self, processes: Processes, model: str) -> None:
        self._client = Client(processes.gateway)
        self._client.wait_ready(30.0)
        self._options = Options(model=model, timeout_s=TIMEOUT_S)

    def _params(self, tokens: int) -> SamplingParams:
        return SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)

    def run(self, work: Workload) -> tuple[float, list[list[int]]]:
        """All at once on one stream: seconds and tokens."""
        prompts = [{"prompt_token_ids": prompt} for prompt in work.prompts]
        began = time.perf_counter()
        results = self._client.generate_many(prompts, self._params(work.max_tokens[0]), self._options)
        return time.perf_counter() - began, [result.outputs[0].token_ids for result in results]

    def lone(self, work: Workload) -> float:
        """Seconds that a lone request takes, streamed."""
        prompt = {"prompt_token_ids": work.prompts[0]}
        began = time.perf_counter()
        for _ in self._client.stream(prompt, self._params(work.max_tokens[0]), self._options):
            pass
        return time.perf_counter() - began

    def close(self) -> None:
        self._client.close()


def beside_the_engine(report: Report, shape: str, model: str, rounds: int) -> None:
    """Embedded and served in turn."""
    work, lone = many(shape, REQUESTS), workload("single", shape, 1, 0)
    lone = Workload(lone.name, lone.prompts, [LONE_TOKENS])
    settings = WorkerSettings(model=model, dtype="float32", kv_blocks=512, max_batch=32, show_progress=False)
    embedded = Ours(Path(model), "float32", kv_blocks=512, max_batch=32)
    with Processes(SchedulerSettings()) as processes:
        processes.add_workers({"w0": settings})
        processes.open_gateway([model])
        served = Served(processes, model)
        seconds: dict[str, list[float]] = {"embedded": [], "through gRPC": []}
        alone: dict[str, list[float]] = {"embedded": [], "through gRPC": []}
        same = True
        for number in range(rounds + 1):
            ours, (theirs_s, theirs) = embedded(work), served.run(work)
            lone_s = embedded(lone).seconds, served.lone(lone)
            same = same and theirs == ours.outputs
            if number:
                # The first round warms up.
                seconds["embedded"].append(ours.seconds)
                seconds["through gRPC"].append(theirs_s)
                alone["embedded"].append(lone_s[0])
                alone["through gRPC"].append(lone_s[1])
        served.close()
    embedded.llm.close()
    rows: list[dict[str, Cell]] = [
        {
            "road": road,
            f"tokens/s of {REQUESTS} at once": REQUESTS * TOKENS / median(seconds[road]),
            "lone, ms a token": 1e3 * median(alone[road]) / LONE_TOKENS,
        }
        for road in seconds
    ]
    report.table(f"{shape} in fp32, one worker", rows)
    throughput = median(seconds["embedded"]) / median(seconds["through gRPC"])
    between = median(alone["through gRPC"]) / median(alone["embedded"])
    report.check("the same tokens by both roads", same)
    what = f"at least {MIN_THROUGHPUT:g}x of the embedded engine's throughput"
    report.check(what, throughput >= MIN_THROUGHPUT, f"{throughput:.3f}x")
    what = f"at most {MAX_INTER_TOKEN:g}x of its time for a token of a lone request"
    report.check(what, between <= MAX_INTER_TOKEN, f"{between:.3f}x")
    report.note(f"{throughput:.3f}x the throughput, {between:.3f}x the time for a token of a lone request")


def one_against_two(report: Report, shape: str, model: str, rounds: int) -> None:
    """The same load on the same cores: one worker with all of them, two with half of them each."""
    settings = WorkerSettings(model=model, dtype="float32", kv_blocks=512, max_batch=32, show_progress=False)
    rates: dict[int, list[float]] = {1: [], 2: []}
    cores = len(os.sched_getaffinity(0))
    for workers, found in rates.items():
        with Processes(SchedulerSettings()) as processes:
            processes.add_workers({f"w{number}": settings for number in range(workers)}, threads=cores // workers)
            processes.open_gateway([model])
            served = Served(processes, model)
            for number in range(rounds + 1):
                work = many(shape, REQUESTS)
                seconds, _ = served.run(work)
                if number:
                    found.append(work.num_output / seconds / cores)
            served.close()
    per_core = median(rates[2]) / median(rates[1])
    rows: list[dict[str, Cell]] = [
        {"workers": workers, "threads each": cores // workers, "tokens/s per core": median(found)}
        for workers, found in rates.items()
    ]
    report.table(f"{REQUESTS} at once on {cores} cores", rows)
    report.check("two workers: throughput per core within 10 % of one", per_core >= MIN_PER_CORE, f"{per_core:.3f}x")


def front_door(report: Report, scale: float) -> None:
    asyncio.run(gateway.measure(scale, report))
    rows = {str(row["load"]): row for row in report.tables["gateway"]}
    tokens = float(rows["many, text"]["tokens/cpu s"] or 0)
    report.check("GenerateMany: 100,000 tokens/s of gateway processor time", tokens >= MIN_TOKENS, f"{tokens:,.0f}")
    singles = [row for name, row in rows.items() if "single" in name]
    messages = max(float(row["messages/s"] or 0) for row in singles)
    report.check("64 single streams: 8,000 messages/s", messages >= MIN_MESSAGES, f"{messages:,.0f}")
    (calm, *merged) = [float(row["delay p99 ms"] or 0) / 1e3 for row in singles]
    added = max(merged) - calm
    report.check(
        "merging adds at most 50 ms at p99", added <= MAX_ADDED_S, f"{1e3 * added:.1f} ms over {1e3 * calm:.1f}"
    )


PARTS = ("engine", "workers", "door")


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="quire bench cluster", description=__doc__)
    parser.add_argument("--json", help="also write the figures to this file")
    parser.add_argument("--shape", choices=("14m", "125m"), default="125m")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the tokens of the front door's loads")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    options = parser.parse_args(argv)
    report = Report("cluster", argv)
    with tempfile.TemporaryDirectory(prefix="quire-bench-") as made:
        model = str(with_tokenizer(options.shape, Path(made)))
        if "engine" in options.parts:
            beside_the_engine(report, options.shape, model, options.rounds)
        if "workers" in options.parts:
            one_against_two(report, options.shape, model, options.rounds)
    if "door" in options.parts:
        front_door(report, options.scale)
    return report.finish(options.json)
