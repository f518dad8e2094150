"""Throughput at equal latency: request rate against the latency of an output token, in pages and in reserved runs.

The four policies are those of this code's pool (`SchedulerSettings.reserve`); scheduler, batcher, ledger and lengths
are the same, and only the memory differs. Large models are simulated on public figures of A100s: no kernel runs, so how
fast a step is comes from a formula, and that is weak evidence for seconds; how many requests run at once is exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from cluster.bench.page import Line, PagePlot
from cluster.bench.report import Report, Row
from cluster.serving.shell import tune_collector
from cluster.settings import ReserveName, SchedulerSettings
from cluster.sim.capacity import Capacity, PaperSite
from cluster.sim.costs import Machine, machine
from cluster.sim.load import ArrivingLoad
from cluster.sim.traces import TRACES

MAX_LEN = 2048
# What the others are held against goes first.
POLICIES: Mapping[str, ReserveName] = {
    "pages of 16": "none",
    "oracle": "oracle",
    "power of two": "power_of_two",
    "longest": "longest",
}
# A rate is sustained while an output token takes at most so many times what it takes on an empty machine.
LIMIT = 4.0
STEP, NUM_RATES = 1.25, 24
SECONDS, QUICK_SECONDS = 300.0, 100.0
Latency = Callable[[ReserveName, float], float]


@dataclass(frozen=True, slots=True)
class Case:
    """One picture of the paper: a model, its machine, its lengths, and how much pages gained beside each policy."""

    name: str
    machine: Machine
    load: ArrivingLoad
    first_rate: float
    paper: Mapping[str, str]
    # Beside the time that others are simulated for: many short requests take long to simulate.
    share: float = 1.0


def cases(seed: int, quick: bool) -> list[Case]:
    small = machine("a100-40", "opt-13b", 16, kv_bytes=12e9)
    chat = ArrivingLoad(TRACES["sharegpt"], 1.0, MAX_LEN, seed)
    gains = {"oracle": "1.7-2.7", "longest": "2.7-8"}
    found = [Case("OPT-13B, ShareGPT", small, chat, 0.5, gains)]
    if quick:
        return found
    short = ArrivingLoad(TRACES["alpaca"], 1.0, MAX_LEN, seed)
    growing = replace(chat, prompt=1024)
    return [
        *found,
        Case("OPT-66B on 4, ShareGPT", machine("a100-40", "opt-66b", 16, 4, kv_bytes=21.2e9), chat, 0.2, gains),
        Case("OPT-175B on 8, ShareGPT", machine("a100", "opt-175b", 16, 8, kv_bytes=264e9), chat, 0.4, gains),
        Case("OPT-13B, Alpaca", small, short, 4.0, {}, share=0.2),
        # Translation: everybody's prompt begins with the same examples.
        Case("13B, prefix of 80", small, _translation(short, 80), 2.0, {"oracle": "1.67"}, share=0.3),
        Case("13B, prefix of 341", small, _translation(short, 341), 2.0, {"oracle": "3.58"}, share=0.3),
        # What was said before is cut to its last 1,024 tokens.
        Case("OPT-13B, chat", small, growing, 0.3, dict.fromkeys(("oracle", "power of two", "longest"), "2")),
    ]


def _translation(load: ArrivingLoad, prefix: int) -> ArrivingLoad:
    return replace(load, prefix=prefix, prefix_share=1.0, num_prefixes=1, prompt=prefix + 30, output=35)


def settings(reserve: ReserveName, *, caches: bool = False) -> SchedulerSettings:
    """The paper's baselines hold no prefix; its own system shares the one that it is told of."""
    if reserve == "none":
        return SchedulerSettings(prefix_caching=caches)
    return SchedulerSettings(prefix_caching=False, reserve=reserve, allocator="buddy")


def load(report: Report, seed: int, quick: bool) -> None:
    tune_collector()
    for case in cases(seed, quick):
        title = f"{case.name}: requests/s at which a token takes {LIMIT:g} times that of an empty machine (simulated)"
        print(title, flush=True)
        rates = [case.first_rate * STEP**power for power in range(NUM_RATES)]
        compare(report, title, _simulated(case, QUICK_SECONDS if quick else SECONDS), rates, case.paper)


def _simulated(case: Case, seconds: float) -> Latency:
    def latency(reserve: ReserveName, rate: float) -> float:
        site = PaperSite(1, case.machine, max_model_len=MAX_LEN, token_budget=2048, turn_s=0.01)
        chosen = settings(reserve, caches=case.load.prefix > 0)
        outcome = Capacity(site, replace(case.load, rate=rate), chosen, until_s=case.share * seconds).run()
        # Of all requests together; those that have not ended are in it with the time that they took from the others.
        return sum(outcome.latencies) / max(1, outcome.num_tokens) if outcome.finished else math.inf

    return latency


def compare(
    report: Report,
    title: str,
    latency: Latency,
    rates: Sequence[float],
    paper: Mapping[str, str],
    times: float = LIMIT,
) -> None:
    """Each policy at growing rates until a token takes so many times what it takes at the first one; then what pages
    sustain beside the others."""
    limit, curves, sustained = 0.0, list[Line](), dict[str, float]()
    for name, reserve in POLICIES.items():
        took: list[float] = []
        while len(took) < len(rates) and (not took or took[-1] <= limit):
            took.append(latency(reserve, rates[len(took)]))
            limit = limit or times * took[0]
        sustained[name] = crossing(rates[: len(took)], took, limit)
        curves.append(Line(name, rates[: len(took)], [1e3 * min(each, 2 * limit) for each in took]))
        gain = sustained["pages of 16"] / sustained[name]
        row: Row = {"memory": name, "requests/s": sustained[name], "pages sustain x": gain, "paper x": paper.get(name)}
        report.row(title, row)
    report.check(f"{title}: pages sustain most", sustained["pages of 16"] >= max(sustained.values()))
    report.plot(PagePlot(title.partition(":")[0], "requests/s", "ms of latency per output token", curves))


def crossing(rates: Sequence[float], took: Sequence[float], limit: float) -> float:
    """The rate at which the limit is reached, between the last two: latencies grow about exponentially there."""
    if len(rates) < 2 or took[-1] <= limit:
        return rates[-1]
    low, high = took[-2], took[-1]
    share = math.log(limit / low) / math.log(high / low) if math.isfinite(high) else 0.0
    return rates[-2] * math.pow(rates[-1] / rates[-2], share)
