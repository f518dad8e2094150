"""`quire bench cluster`: what a cluster costs beside the engine alone, and what its front door carries.

A model of 125M parameters in fp32 (`--shape`), as an embedded engine in this process and behind scheduler, gateway and
gRPC with its worker in a process of its own; both take turns, with new prompts in each round, and must say the same
tokens. Then one worker against two
on the same cores, and the front door with workers that make up tokens (`cluster/bench/gateway.py`).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import worker.demo
from cluster.bench import gateway
from cluster.bench.control import cpu_s
from cluster.bench.offline_engines import Ours
from cluster.bench.offline_models import SHAPES, Workload, folder_of
from cluster.bench.processes import Processes
from cluster.bench.report import BenchHelp, Cell, Report
from cluster.client.asynchronous import AsyncClient
from cluster.client.request import Options
from cluster.lifecycle.ports import free_port
from cluster.sampling import SamplingParams
from cluster.settings import SchedulerSettings, WorkerSettings

TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
REQUESTS, PROMPT_TOKENS, TOKENS, LONE_TOKENS = 24, 64, 48, 64
TIMEOUT_S = 300.0

MIN_THROUGHPUT, MAX_LONE, MIN_PER_CORE = 0.9, 1.3, 0.9
MIN_TOKENS, MIN_MESSAGES, MAX_ADDED_S = 100_000, 8_000, 0.050


def with_tokenizer(shape: str, folder: Path) -> Path:
    """The benchmark's model as a gateway needs it: it has no texts of its own, but one must be able to ask."""
    for file in folder_of(shape).iterdir():
        (folder / file.name).symlink_to(file)
    for name in TOKENIZER:
        shutil.copy(Path(worker.demo.__file__).parent / name, folder / name)
    return folder


def asked(shape: str, requests: int, tokens: int, seed: str) -> Workload:
    """So many prompts that nobody has cached unless the seed was there before."""
    rng, vocabulary = random.Random(seed), SHAPES[shape]["vocab_size"]
    prompts = [[rng.randrange(3, vocabulary) for _ in range(PROMPT_TOKENS)] for _ in range(requests)]
    return Workload(seed, prompts, [tokens] * requests)


class BehindGateway:
    """The same model behind a gateway."""

    def __init__(self, address: str, model: str) -> None:
        self._runner = asyncio.Runner()
        self._client = AsyncClient(address)
        self._options = Options(model=model, timeout_s=TIMEOUT_S)
        self._runner.run(self._client.wait_ready(30.0))

    def run(self, work: Workload) -> tuple[float, list[list[int]]]:
        """All at once on one stream: seconds and tokens."""
        prompts = [{"prompt_token_ids": prompt} for prompt in work.prompts]
        began = time.perf_counter()
        results = self._runner.run(self._client.generate_many(prompts, _params(work.max_tokens[0]), self._options))
        return time.perf_counter() - began, [result.outputs[0].token_ids for result in results]

    def each(self, work: Workload) -> tuple[float, list[list[int]], list[list[float]]]:
        """All at once, each on a call of its own: seconds, tokens, and when each request's came."""

        async def read(prompt: list[int], num_tokens: int) -> tuple[list[int], list[float]]:
            tokens: list[int] = []
            stamps: list[float] = []
            async for news in self._client.stream({"prompt_token_ids": prompt}, _params(num_tokens), self._options):
                tokens += news.token_ids
                stamps += [time.perf_counter() - began] * len(news.token_ids)
            return tokens, stamps

        async def read_all() -> list[tuple[list[int], list[float]]]:
            return await asyncio.gather(*map(read, work.prompts, work.max_tokens))

        began = time.perf_counter()
        found = self._runner.run(read_all())
        return time.perf_counter() - began, [tokens for tokens, _ in found], [stamps for _, stamps in found]

    def close(self) -> None:
        self._runner.run(self._client.close())
        self._runner.close()


def _params(num_tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True, detokenize=False)


EMBEDDED, MANY, EACH = "embedded", "GenerateMany", "a call each"
ENDS = ("worker", "gateway", "scheduler", "client")


@dataclass
class Beside:
    """What the rounds gave, by road. Every run has prompts of its own, which the embedded engine gets too, just before:
    `ours_s` are its seconds for them, `spent_s` the processor time of the engine and of each end of the calls.

    Of a lone request: seconds to its first token, and of the whole of it for each token. Several tokens come at once
    from the embedded engine, so that the gaps between them say little: its first is that of a request for one.
    """

    seconds: dict[str, list[float]] = field(default_factory=lambda: {MANY: [], EACH: []})
    ours_s: dict[str, list[float]] = field(default_factory=lambda: {MANY: [], EACH: []})
    first_s: dict[str, list[float]] = field(default_factory=lambda: {EMBEDDED: [], EACH: []})
    lone_s: dict[str, list[float]] = field(default_factory=lambda: {EMBEDDED: [], EACH: []})
    spent_s: dict[str, list[float]] = field(default_factory=lambda: {end: [] for end in (EMBEDDED, *ENDS)})
    same: bool = True

    def round(self, embedded: Ours, served: BehindGateway, pids: Sequence[int], shape: str, number: int) -> None:
        """`pids`: of `ENDS`, the last of them this process."""
        for road in (MANY, EACH):
            work = asked(shape, REQUESTS, TOKENS, f"{road} {number}")
            before = cpu_s(pids[-1])
            ours = embedded(work)
            spent = [cpu_s(pids[-1]) - before]
            at_ends = [cpu_s(pid) for pid in pids]
            seconds, tokens = served.run(work) if road == MANY else served.each(work)[:2]
            spent += [cpu_s(pid) - before for pid, before in zip(pids, at_ends, strict=True)]
            self.same = self.same and tokens == ours.outputs
            self.seconds[road].append(seconds)
            self.ours_s[road].append(ours.seconds)
        # Those of a call each.
        for end, taken in zip(self.spent_s, spent, strict=True):
            self.spent_s[end].append(taken)
        lone = asked(shape, 1, LONE_TOKENS, f"lone {number}")
        self.first_s[EMBEDDED].append(embedded(asked(shape, 1, 1, f"first {number}")).seconds)
        self.lone_s[EMBEDDED].append(embedded(lone).seconds / LONE_TOKENS)
        seconds, _, times = served.each(lone)
        self.first_s[EACH].append(times[0][0])
        self.lone_s[EACH].append(seconds / LONE_TOKENS)

    def share(self, road: str) -> list[float]:
        """Of the embedded engine's throughput, in each round."""
        return [ours / seconds for ours, seconds in zip(self.ours_s[road], self.seconds[road], strict=True)]


def spread(found: Sequence[float], form: str) -> str:
    return f"{min(found):{form}} to {max(found):{form}}"


def beside_the_engine(report: Report, shape: str, model: str, rounds: int) -> None:
    """Embedded and served in turn. Scheduler, gateway, worker and client are a process each, as they are for users."""
    settings = WorkerSettings(model=model, dtype="float32", kv_blocks=512, max_batch=32, show_progress=False)
    embedded, found = Ours(Path(model), "float32", kv_blocks=512, max_batch=32), Beside()
    address = f"127.0.0.1:{free_port()}"
    with Processes(SchedulerSettings(), serves=False) as processes:
        members = [processes.add_scheduler()]
        members[0].told()
        processes.add_workers({"w0": settings})
        members = [processes.members["w0"], processes.add_gateway("g0", {model: model}, {"g0": address}), *members]
        members[1].told()
        served = BehindGateway(address, model)
        for number in range(rounds + 1):
            # The first round warms up.
            taken = found if number else Beside()
            taken.round(embedded, served, [*(member.pid for member in members), os.getpid()], shape, number)
        served.close()
    embedded.llm.close()
    tell(report, shape, found)


def tell(report: Report, shape: str, found: Beside) -> None:
    rates = {
        road: [REQUESTS * TOKENS / one for one in seconds]
        for road, seconds in ((EMBEDDED, [*found.ours_s[MANY], *found.ours_s[EACH]]), *found.seconds.items())
    }
    rows: list[dict[str, Cell]] = [
        {
            "road": road,
            f"tokens/s of {REQUESTS} at once": median(rates[road]),
            "of all rounds": spread(rates[road], ",.0f"),
            "lone, ms to the first token": 1e3 * median(found.first_s[road]) if road in found.first_s else None,
            "lone, ms a token": 1e3 * median(found.lone_s[road]) if road in found.lone_s else None,
        }
        for road in rates
    ]
    report.table(f"{shape} in fp32, one worker", rows)
    spent = {end: median(seconds) for end, seconds in found.spent_s.items()}
    costs: list[dict[str, Cell]] = [
        {"end": end, "processor us a token": 1e6 * seconds / (REQUESTS * TOKENS)} for end, seconds in spent.items()
    ]
    report.table(f"where {EACH} goes", costs)
    report.check("the same tokens by all roads", found.same)
    shares = {road: found.share(road) for road in (MANY, EACH)}
    what = f"{MANY}: at least {MIN_THROUGHPUT:g}x of the embedded engine's throughput"
    detail = f"{median(shares[MANY]):.3f}x, {spread(shares[MANY], '.3f')}"
    report.check(what, median(shares[MANY]) >= MIN_THROUGHPUT, detail)
    lone = [mine / ours for mine, ours in zip(found.lone_s[EACH], found.lone_s[EMBEDDED], strict=True)]
    what = f"at most {MAX_LONE:g}x of its time for a token of a lone request"
    report.check(what, median(lone) <= MAX_LONE, f"{median(lone):.3f}x, {spread(lone, '.3f')}")
    times = sum(spent[end] for end in ENDS) / spent[EMBEDDED]
    report.note(
        f"{median(shares[MANY]):.3f}x the throughput; with {EACH} {median(shares[EACH]):.3f}x "
        f"({spread(shares[EACH], '.3f')}), and {times:.3f}x the processor time; {median(lone):.3f}x the time for a "
        "token of a lone request"
    )


def one_against_two(report: Report, shape: str, model: str, rounds: int) -> None:
    """The same load on the same cores: one worker with all of them, two with half of them each."""
    settings = WorkerSettings(model=model, dtype="float32", kv_blocks=512, max_batch=32, show_progress=False)
    rates: dict[int, list[float]] = {1: [], 2: []}
    cores = len(os.sched_getaffinity(0))
    for workers, found in rates.items():
        with Processes(SchedulerSettings()) as processes:
            processes.add_workers({f"w{number}": settings for number in range(workers)}, threads=cores // workers)
            served = BehindGateway(processes.open_gateway([model]), model)
            for number in range(rounds + 1):
                work = asked(shape, REQUESTS, TOKENS, f"{workers} workers {number}")
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
    parser = argparse.ArgumentParser(prog="quire bench cluster", description=__doc__, formatter_class=BenchHelp)
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
            report.begins("one worker beside the engine alone", 60 * options.rounds)
            beside_the_engine(report, options.shape, model, options.rounds)
        if "workers" in options.parts:
            report.begins("one worker and two", 60 * options.rounds)
            one_against_two(report, options.shape, model, options.rounds)
    if "door" in options.parts:
        report.begins("the front door under load", 120 * options.scale)
        front_door(report, options.scale)
    return report.finish(options.json)
