"""`quire bench limits`: where one scheduler ends. Clusters of growing size on a public trace's lengths, simulated.

Scheduler and desks are the real ones, steps take what they would on the accelerators; what the scheduler takes of this
processor is measured, with the plans and results that it would encode and decode. The limit is where that is a second
of one core for a second of the cluster. Sizes grow until the next one would take more processor time than `--minutes`.
`--shell` measures the process around the scheduler instead, at real connections. What to do beyond the limit:
tests/bench/limits.md.
"""

from __future__ import annotations

import argparse
import gc
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

from cluster.bench.page import Line, PagePlot
from cluster.bench.report import RawHelp, Report, Row
from cluster.bench.shell import report_shell
from cluster.errors import ConfigError
from cluster.messages import Event, Plan, Result
from cluster.serving.shell import tune_collector
from cluster.settings import SchedulerSettings
from cluster.sim.capacity import Capacity, CapacityOutcome, PaperSite
from cluster.sim.costs import machine
from cluster.sim.load import ArrivingLoad
from cluster.sim.traces import TRACES
from cluster.wire.plans import decode_result, encode_plan, encode_result

SIZES = (100, 300, 1000, 3000, 10_000)
LONGEST, MAX_BATCH, TURN_S = 4096, 128, 0.01
# Plans and results of one turn in so many are encoded, and what that takes is multiplied.
SAMPLED = 8
# Desks and all else that is simulated beside the scheduler take memory, too: in all so many times as much.
SIMULATED_TIMES = 2.5
# Where a scheduler is full in practice: the rest is for bursts.
FULL = 0.7
_NOT_OWNED = (ModuleType, FunctionType, BuiltinFunctionType, MethodType, type)


class Watched:
    """What the turns of the second half came to: by then requests end as fast as they come."""

    def __init__(self, since: float) -> None:
        self.since = since
        self.turns: list[float] = []
        self.wire_s = 0.0
        self.plan_bytes = self.num_plans = self.result_bytes = self.num_results = 0

    def __call__(self, now: float, seconds: float, events: Sequence[Event], orders: Sequence[object]) -> None:
        if now < self.since:
            return
        self.turns.append(seconds)
        if len(self.turns) % SAMPLED:
            return
        plans = [order for order in orders if isinstance(order, Plan)]
        results = [encode_result(event) for event in events if isinstance(event, Result)]
        began = time.thread_time()
        encoded = [encode_plan(plan) for plan in plans]
        for raw in results:
            decode_result(raw)
        self.wire_s += SAMPLED * (time.thread_time() - began)
        self.num_plans += SAMPLED * len(plans)
        self.plan_bytes += SAMPLED * sum(map(len, encoded))
        self.num_results += SAMPLED * len(results)
        self.result_bytes += SAMPLED * sum(map(len, results))


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="quire bench limits", description=__doc__, formatter_class=RawHelp)
    parser.add_argument("--workers", nargs="+", type=int, default=list(SIZES))
    parser.add_argument("--gpu", default="h100")
    parser.add_argument("--model", default="8b")
    parser.add_argument("--gpus", type=int, default=1, help="accelerators of one worker")
    parser.add_argument("--trace", choices=list(TRACES), default="azure-conv")
    parser.add_argument("--rate", type=float, default=8.0, help="requests a second for each worker")
    parser.add_argument("--block-size", nargs="+", type=int, default=[16])
    parser.add_argument("--ahead", type=int, help="slots before a lease's end (default: the scheduler's)")
    parser.add_argument("--seconds", type=float, default=8.0, help="simulated; the second half is measured")
    parser.add_argument("--minutes", type=float, default=10.0, help="of processor time for all sizes together")
    parser.add_argument("--shell", nargs="+", type=int, default=[], help="workers at real connections, instead")
    parser.add_argument("--gateways", type=int, default=8, help="of --shell")
    parser.add_argument("--sequences", type=int, default=8, help="of --shell, on each worker")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json")
    args = parser.parse_args(argv)
    if args.trace not in TRACES or min(args.workers) < 1 or args.rate <= 0:
        raise ConfigError("--workers and --rate are above zero")
    report = Report("limits", argv)
    if args.shell:
        report.begins(f"a scheduler's process with {', '.join(map(str, args.shell))} workers at real connections", 120)
        report_shell(report, args.shell, args.gateways, args.sequences, args.seconds, args.seed)
        return report.finish(args.json)
    tune_collector()
    sizes = [(block, num) for block in args.block_size for num in sorted(args.workers)]
    told = ", ".join(f"{num:,}" for num in sorted(args.workers))
    report.begins(f"{told} workers in blocks of {args.block_size}, as far as the time goes", 60 * args.minutes)
    title = (
        f"{args.trace}, {args.model} on {args.gpus} {args.gpu} a worker, {args.rate:g} requests/s each, "
        f"{args.seconds:g} simulated s"
    )
    began, last_s, last_mb, last_num = time.process_time(), 0.0, 0.0, 1
    for block, num in sizes:
        spent, times = time.process_time() - began, num / last_num
        if spent + last_s * times > 60 * args.minutes:
            report.note(
                f"{num:,} workers in blocks of {block} would take {last_s * times / 60:.0f} min more: "
                f"{spent / 60:.1f} of {args.minutes:g} are over"
            )
            continue
        if SIMULATED_TIMES * last_mb * times > _available_mb():
            report.note(f"{num:,} workers in blocks of {block} would take {last_mb * times / 1e3:.0f} GB twice")
            continue
        row = measure(args, num, block)
        report.row(title, row)
        last_s, last_mb, last_num = time.process_time() - began - spent, float(row["scheduler MB"] or 0.0), num
        gc.collect()
    _draw(report, title)
    return report.finish(args.json)


def measure(args: argparse.Namespace, num: int, block: int) -> Row:
    """One size: what the scheduler takes, and what clients see."""
    site = PaperSite(
        num, machine(args.gpu, args.model, block, args.gpus), max_batch=MAX_BATCH, max_model_len=LONGEST, turn_s=TURN_S
    )
    ahead = {} if args.ahead is None else {"ahead": args.ahead}
    watched = Watched(args.seconds / 2)
    run = Capacity(
        site,
        ArrivingLoad(TRACES[args.trace], args.rate * num, LONGEST, args.seed),
        SchedulerSettings(max_queue=1_000_000, **ahead),
        until_s=args.seconds,
        watch=watched,
    )
    outcome = run.run()
    seconds = args.seconds - watched.since
    decided = sum(watched.turns) / seconds
    load = decided + watched.wire_s / seconds
    tokens_per_s = sum(sample.tokens_per_s for sample in outcome.samples if sample.at > watched.since) / max(
        1, sum(sample.at > watched.since for sample in outcome.samples)
    )
    return {
        "block": block,
        "workers": num,
        "accelerators": num * args.gpus,
        "running": outcome.samples[-1].running if outcome.samples else 0,
        "output tokens/s": tokens_per_s,
        "load of a core": load,
        "of it wire": watched.wire_s / seconds,
        "turn p50 ms": 1e3 * _share(watched.turns, 0.5),
        "turn p99 ms": 1e3 * _share(watched.turns, 0.99),
        "bytes of a plan": watched.plan_bytes / max(1, watched.num_plans),
        "plans MB/s": watched.plan_bytes / seconds / 1e6,
        "results MB/s": watched.result_bytes / seconds / 1e6,
        **_latencies(outcome),
        "scheduler MB": owned_bytes(run.scheduler) / 1e6,
        f"workers at {FULL:g}": num * FULL / load,
        f"M tokens/s at {FULL:g}": tokens_per_s * FULL / load / 1e6,
        "simulated in processor s": outcome.wall_s,
    }


def _latencies(outcome: CapacityOutcome) -> dict[str, float]:
    first, between = outcome.gaps.first, outcome.gaps.between
    return {
        "first token p50 ms": 1e3 * first.percentile(0.5),
        "first token p99 ms": 1e3 * first.percentile(0.99),
        "between p50 ms": 1e3 * between.percentile(0.5),
        "between p99 ms": 1e3 * between.percentile(0.99),
    }


def _share(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else 0.0


def owned_bytes(root: object) -> int:
    """Of all objects that this one reaches, arrays with their data."""
    seen, total, open_ = {id(root)}, 0, [root]
    while open_:
        found = open_.pop()
        total += sys.getsizeof(found)
        for each in gc.get_referents(found):
            if id(each) not in seen and not isinstance(each, _NOT_OWNED):
                seen.add(id(each))
                open_.append(each)
    return total


def _available_mb() -> float:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) / 1e3
    return math.inf


def _draw(report: Report, title: str) -> None:
    rows: list[Any] = report.tables.get(title, [])
    blocks = list(dict.fromkeys(row["block"] for row in rows))

    def lines(*columns: str) -> list[Line]:
        return [
            Line(f"{column}, blocks of {block}", *zip(*points, strict=True))
            for column in columns
            for block in blocks
            if (points := [(row["workers"], row[column]) for row in rows if row["block"] == block])
        ]

    report.plot(PagePlot("What the scheduler takes", "workers", "cores", lines("load of a core"), True))
    report.plot(PagePlot("A turn", "workers", "ms of processor time", lines("turn p50 ms", "turn p99 ms"), True))
    report.plot(PagePlot("Plans", "workers", "MB/s", lines("plans MB/s", "results MB/s"), True))
    report.plot(PagePlot("Memory of the scheduler", "workers", "MB", lines("scheduler MB"), True))
    report.plot(
        PagePlot(
            "What clients see",
            "workers",
            "ms",
            lines("first token p50 ms", "first token p99 ms", "between p99 ms"),
            True,
        )
    )
