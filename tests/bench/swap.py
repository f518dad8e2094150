"""`python -m tests.bench swap`: what swapping does to those who ask, on real workers and host pools without Ray.

`--choice` lets the cost model, always-swap and always-recompute serve the same load in turn. `--storm` holds demand at
four times the device pool while the host pool is too small, dies and comes back, and compares goodput with the same
memory at a load that just fits. Every answer is compared with every other answer to the same request.
"""

from __future__ import annotations

import argparse
import random
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from cluster import Client
from cluster.bench.processes import Processes
from cluster.bench.report import BenchHelp, Report, Row
from cluster.offline.outputs import RequestOutput
from cluster.sampling import SamplingParams
from cluster.settings import PreemptionName, SchedulerSettings, WorkerSettings
from tests.bench.transfer_pool import processor_seconds

MODEL, BLOCK_SIZE, NUM_BLOCKS = "demo", 16, 64
# Requests of the storm have this many blocks on average, so that four times the pool is asked for at any time.
NUM_CLIENTS, NUM_FITTING, HOST_BLOCKS = 16, 4, 24
POLICIES: tuple[PreemptionName, ...] = ("cheapest", "swap", "recompute")
TIMEOUT_S = 120.0
# Counters of the scheduler that belong to it.
_TOLD = ("preempted", "transfer", "host pools lost", "out of host memory")


@dataclass(frozen=True, slots=True)
class Ask:
    """One request; it says the same whenever it is asked."""

    prompt: list[int]
    params: SamplingParams


def draw_asks(count: int, seed: int, prompts: tuple[int, int], outputs: tuple[int, int]) -> list[Ask]:
    draw = random.Random(seed)
    made = []
    for number in range(count):
        prompt = [draw.randrange(10, 400) for _ in range(draw.randint(*prompts))]
        length, temperature = draw.randint(*outputs), draw.choice((0.0, 0.8))
        made.append(
            Ask(prompt, SamplingParams(temperature=temperature, seed=number, max_tokens=length, ignore_eos=True))
        )
    return made


@dataclass(slots=True)
class Load:
    """What a number of clients got who each ask one request after the other."""

    seconds: float = 0.0
    # Of the worker's process.
    processor_s: float = 0.0
    tokens: int = 0
    preemptions: list[int] = field(default_factory=list)
    took_s: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds


class Known:
    """The first answer to each request, which all later ones must equal."""

    def __init__(self, asks: list[Ask]) -> None:
        self.asks = asks
        self._answers: dict[int, list[int]] = {}
        self._lock = threading.Lock()

    def problem(self, number: int, output: RequestOutput) -> str:
        said = output.outputs[0].token_ids
        wanted = self.asks[number].params.max_tokens
        if len(said) != wanted:
            return f"request {number} has {len(said)} of {wanted} tokens ({output.outputs[0].finish_reason})"
        with self._lock:
            first = self._answers.setdefault(number, said)
        return "" if first == said else f"request {number} was answered in two ways"


def drive(running: Processes, known: Known, num_clients: int, seconds: float) -> Load:
    """Holds `num_clients` requests open for so long; what is open then ends by itself and counts."""
    load, lock, began = Load(), threading.Lock(), time.monotonic()
    worker = [running.members["worker"].pid]
    processor = processor_seconds(worker)
    with Client(running.gateway) as client:

        def ask_on(first: int) -> None:
            number = first
            while time.monotonic() - began < seconds:
                ask, asked_at = known.asks[number % len(known.asks)], time.monotonic()
                try:
                    output = client.generate(ask.prompt, ask.params, timeout_s=TIMEOUT_S)
                    problem = known.problem(number % len(known.asks), output)
                except Exception as error:
                    # Whatever it is, it is what somebody who asks would have got.
                    with lock:
                        load.problems.append(f"{type(error).__name__}: {error}")
                    return
                with lock:
                    load.tokens += len(output.outputs[0].token_ids)
                    load.preemptions.append(output.metrics.preemptions)
                    load.took_s.append(time.monotonic() - asked_at)
                    load.problems += [problem] if problem else []
                number += num_clients

        clients = [threading.Thread(target=ask_on, args=(number,)) for number in range(num_clients)]
        for one in clients:
            one.start()
        for one in clients:
            one.join()
    load.seconds = time.monotonic() - began
    load.processor_s = processor_seconds(worker) - processor
    return load


def made(stack: ExitStack, policy: PreemptionName, host_blocks: int, **worker: int) -> tuple[Processes, dict[str, Any]]:
    """A cluster of one worker and one host pool, and the layout of its blocks."""
    running = stack.enter_context(Processes(SchedulerSettings(preemption=policy)))
    settings = WorkerSettings(
        MODEL, dtype="float32", device="cpu", block_size=BLOCK_SIZE, max_batch=32, show_progress=False,
        **{"kv_blocks": NUM_BLOCKS, **worker},  # type: ignore[arg-type]
    )  # fmt: skip
    layout = running.add_workers({"worker": settings})["worker"]
    running.add_host_pool("host", str(host_blocks * layout["block_bytes"]), layout)
    running.open_gateway((MODEL,))
    with Client(running.gateway) as client:
        client.wait_ready(30.0)
    return running, layout


# -- the choice


def choice(report: Report, rounds: int, seed: int) -> None:
    """The same load under each policy in turn; the ratio is that of the medians over all rounds."""
    asks = draw_asks(20, seed, (32, 400), (120, 240))
    known = Known(asks)
    took: dict[PreemptionName, list[float]] = {name: [] for name in POLICIES}
    processor: dict[PreemptionName, list[float]] = {name: [] for name in POLICIES}
    preempted: dict[PreemptionName, int] = {}
    with ExitStack() as stack:
        clusters = {name: made(stack, name, 1000, kv_blocks=120)[0] for name in took}
        for number in range(-1, rounds):
            for name, running in clusters.items():
                worker = [running.members["worker"].pid]
                began, ran = time.monotonic(), processor_seconds(worker)
                with Client(running.gateway) as client:
                    prompts, params = [ask.prompt for ask in asks], [ask.params for ask in asks]
                    outputs = client.generate_many(prompts, params, timeout_s=TIMEOUT_S)
                if number >= 0:
                    took[name].append(time.monotonic() - began)
                    processor[name].append(processor_seconds(worker) - ran)
                wrong = [text for i, output in enumerate(outputs) if (text := known.problem(i, output))]
                report.check(f"{name}, round {number}: same tokens", not wrong, "; ".join(wrong[:3]))
                preempted[name] = sum(output.metrics.preemptions for output in outputs)
    rows: list[Row] = [
        {
            "policy": name,
            "seconds": median(seconds),
            "least": min(seconds),
            "most": max(seconds),
            "worker's processor s": median(processor[name]),
            "preemptions in the last round": preempted[name],
        }
        for name, seconds in took.items()
    ]
    report.table("the same load under each policy", rows)
    beside: list[Row] = []
    for by, figures in (("time", took), ("processor second of the worker", processor)):
        middle = {name: median(figures[name]) for name in POLICIES}
        better = min(POLICIES[1:], key=lambda name: middle[name])
        spread = (max(figures[better]) - min(figures[better])) / middle[better]
        ratio = middle["cheapest"] / middle[better]
        beside.append({"by": by, "better": better, "cost model takes": ratio, "goal": 1.05, "its own spread": spread})
    report.table("the cost model beside the better of always-swap and always-recompute", beside)


# -- the storm


@dataclass(frozen=True, slots=True)
class Storm:
    """What came of it. `counters` are the scheduler's."""

    fitting: Load
    storm: Load
    counters: dict[str, int]
    left: list[str]

    @property
    def goodput(self) -> float:
        return self.storm.tokens_per_s / self.fitting.tokens_per_s

    @property
    def goodput_per_processor(self) -> float:
        """The same by the worker's processor time, which does not ask what else the machine does."""
        return self.storm.tokens * self.fitting.processor_s / (self.storm.processor_s * self.fitting.tokens)


def storm(seconds: float, seed: int) -> Storm:
    """A fifth of the time a load that fits, then four times the pool, with a host pool that is full and dies."""
    known = Known(draw_asks(48, seed, (40, 200), (60, 200)))
    with ExitStack() as stack:
        # Room for one or two requests, so that it is full most of the time.
        running, layout = made(stack, "swap", HOST_BLOCKS)
        size = str(HOST_BLOCKS * layout["block_bytes"])
        fitting = drive(running, known, NUM_FITTING, seconds / 5)

        def mishap() -> None:
            running.members["host"].kill()
            time.sleep(seconds / 20)
            running.add_host_pool("host", size, layout)

        dying = threading.Timer(seconds * 0.4, mishap)
        dying.start()
        stormy = drive(running, known, NUM_CLIENTS, seconds * 0.8)
        dying.join()
        counters, left = settled(running)
    return Storm(fitting, stormy, counters, left)


def settled(running: Processes) -> tuple[dict[str, int], list[str]]:
    """The scheduler's counters, and what is held anywhere although nobody asks for anything any more."""
    until = time.monotonic() + 10.0
    while True:
        found = running.look()
        left = [
            f"{pool.name}: {pool.num_held} held, {pool.num_moving} moving, {pool.num_quarantined} quarantined"
            for pool in found.pools
            if pool.num_held or pool.num_moving or pool.num_quarantined
        ]
        if not left or time.monotonic() > until:
            return dict(found.counters), left
        time.sleep(0.1)


def report_storm(report: Report, found: Storm) -> None:
    rows: list[Row] = []
    for name, load in (("fits", found.fitting), ("four times the pool", found.storm)):
        report.check(f"{name}: every request answered, the same each time", not load.problems, str(load.problems[:3]))
        preemptions = sorted(load.preemptions)
        rows.append(
            {
                "load": name,
                "requests": len(load.took_s),
                "tokens/s": load.tokens_per_s,
                "preemptions, median": median(preemptions),
                "most": preemptions[-1],
                "seconds, median": median(load.took_s),
                "longest": max(load.took_s),
            }
        )
    report.table("a storm", rows)
    report.table(
        "goodput",
        [
            {"of what fits": found.goodput, "by": "time", "goal": 0.9},
            {"of what fits": found.goodput_per_processor, "by": "processor second of the worker", "goal": 0.9},
        ],
    )
    done = [(what, times) for what, times in sorted(found.counters.items()) if what.startswith(_TOLD)]
    report.table("what the scheduler did", [{"what": what, "times": times} for what, times in done])
    report.check("preempted at most three times in the median", median(found.storm.preemptions) <= 3)
    report.check("nothing is left", not found.left, "; ".join(found.left))


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench swap", description=(__doc__ or "").split("\n\n")[0], formatter_class=BenchHelp
    )
    parser.add_argument("--choice", type=int, default=7, help="rounds of each policy; 0: none (default: %(default)s)")
    parser.add_argument("--storm", type=float, default=60.0, help="seconds; 0: none (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", metavar="FILE", help="also write everything to this file")
    options = parser.parse_args(argv)
    if not options.choice and not options.storm:
        parser.error("--choice 0 and --storm 0 leave nothing to measure; give one of them")
    report = Report("swap", argv, command=("python", "-m", "tests.bench"))
    if options.choice:
        report.begins("the same load under each policy, in turn", 40 + 20 * options.choice)
        choice(report, options.choice, options.seed)
    if options.storm:
        report.begins("a storm on a cluster of real processes", 40 + options.storm)
        report_storm(report, storm(options.storm, options.seed))
    return report.finish(options.json)
