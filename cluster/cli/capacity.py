"""`quire simulate --workers`: its options made into runs, progress, tables and plots.

`cluster/cli/simulate.py` calls it; the simulation itself is in cluster/sim/capacity.py.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from cluster.errors import ConfigError
from cluster.settings import AllocatorName, PlacementName, PreemptionName, SchedulerSettings
from cluster.sizes import parse_bytes

COMPARED = ("placement", "preemption", "block-size", "allocator")
# Turns grow under load, as the scheduler's own do: it takes all that has come.
TURN_S, LONG_TURN_S, MANY_WORKERS = 0.004, 0.01, 100
BLOCK_SIZES = (8, 16, 32, 64, 128)


@dataclass(frozen=True, slots=True)
class CapacityQuestion:
    """What is asked, as the command line has it."""

    workers: int
    trace: str
    model: str
    gpu: str
    gpus: int
    rate: float | None
    seconds: float
    block_size: int
    kv_memory: str | None
    host_memory: str | None
    max_batch: int
    token_budget: int
    prefix: int
    prefix_share: float
    placement: str
    preemption: str
    allocator: str
    compare: str | None
    seed: int
    plot: Path | None


def plan(question: CapacityQuestion) -> None:
    """Runs what is asked and prints it."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    from cluster.bench.report import render
    from cluster.serving.shell import tune_collector
    from cluster.sim.capacity import CapacityOutcome
    from cluster.sim.capacity import plan as run
    from cluster.sim.figures import compared, speed
    from cluster.sim.plots import to_png, to_text

    outcomes: dict[str, CapacityOutcome] = {}
    tune_collector()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        for name, each in _runs(question):
            task = progress.add_task(name, total=1.0)

            def show(share: float, task: TaskID = task) -> None:
                progress.update(task, completed=share)

            site, load, settings = _inputs(each)
            outcomes[name] = run(site, load, settings, each.seconds, show)
    print(_headline(question, next(iter(outcomes.values()))))
    print(render(compared(outcomes)))
    for outcome in outcomes.values():
        print(speed(outcome))
    plots = _plots(outcomes)
    for plot in plots:
        print("\n" + to_text(plot))
    if question.plot is not None:
        to_png(plots, question.plot)
        print(f"\nplotted into {question.plot}")


def _runs(question: CapacityQuestion) -> Iterator[tuple[str, CapacityQuestion]]:
    """One run, or one for each value of the policy that is compared."""
    what = question.compare
    if what is None:
        yield "run", question
    elif what == "placement":
        for name in get_args(PlacementName):
            yield name, replace(question, placement=name)
    elif what == "preemption":
        for name in get_args(PreemptionName):
            yield name, replace(question, preemption=name)
    elif what == "allocator":
        for name in get_args(AllocatorName):
            yield name, replace(question, allocator=name)
    elif what == "block-size":
        for size in BLOCK_SIZES:
            yield f"blocks of {size}", replace(question, block_size=size)
    else:
        raise ConfigError(f"{what!r} can't be compared; there is {', '.join(COMPARED)}")


def _inputs(question: CapacityQuestion) -> Any:
    """Site, load and settings of one run."""
    from cluster.sim.capacity import PaperSite
    from cluster.sim.copies import WORKERS_PER_NODE
    from cluster.sim.costs import machine
    from cluster.sim.load import ArrivingLoad
    from cluster.sim.traces import TRACES

    if question.trace not in TRACES:
        raise ConfigError(f"no trace {question.trace!r} is known; there is {', '.join(TRACES)}")
    trace = TRACES[question.trace]
    kv_bytes = None if question.kv_memory is None else float(parse_bytes(question.kv_memory, "kv_memory"))
    replica = machine(question.gpu, question.model, question.block_size, question.gpus, kv_bytes)
    host_bytes = 0 if question.host_memory is None else parse_bytes(question.host_memory, "host_memory")
    site = PaperSite(
        question.workers,
        replica,
        max_batch=question.max_batch,
        token_budget=question.token_budget,
        host_blocks=int(host_bytes / replica.block_bytes),
        turn_s=TURN_S if question.workers <= MANY_WORKERS else LONG_TURN_S,
    )
    longest = min(site.max_model_len, replica.num_blocks * replica.block_size // 2)
    rate = trace.rate * question.workers / WORKERS_PER_NODE if question.rate is None else question.rate
    load = ArrivingLoad(trace, rate, longest, question.seed, question.prefix, question.prefix_share)
    fields: dict[str, Any] = {
        "placement": question.placement,
        "preemption": question.preemption,
        "allocator": question.allocator,
        "swap_share": replica.swap_share,
        "network_bytes_per_s": replica.network_bytes_per_s,
        "max_queue": 1_000_000,
    }
    for name, allowed in (("placement", PlacementName), ("preemption", PreemptionName), ("allocator", AllocatorName)):
        if fields[name] not in get_args(allowed):
            raise ConfigError(f"{name} is {fields[name]!r}; give one of {', '.join(get_args(allowed))}")
    return site, load, SchedulerSettings(**fields)


def _headline(question: CapacityQuestion, outcome: Any) -> str:
    site, load = outcome.site, outcome.load
    return (
        f"{site.num_workers:,} workers of {question.gpus} {question.gpu} with {question.model}, "
        f"{site.machine.num_blocks:,} blocks of {site.machine.block_size} tokens each; "
        f"{load.trace.name}, {load.rate:,.1f} requests/s, {outcome.seconds:,.0f} s"
    )


def _plots(outcomes: dict[str, Any]) -> list[Any]:
    from cluster.sim.plots import LinePlot

    samples = next(iter(outcomes.values())).samples
    at = [sample.at for sample in samples]
    wanted = (
        ("output", "tokens/s", "tokens_per_s", 1.0),
        ("memory held", "%", "held", 100.0),
        ("running sequences", "", "running", 1.0),
        ("waiting requests", "", "waiting", 1.0),
        ("scheduler load", "% of one core", "scheduler_load", 100.0),
    )
    return [
        LinePlot(
            title,
            unit,
            at,
            "s",
            {
                name: [scale * getattr(sample, field) for sample in outcome.samples][: len(at)]
                for name, outcome in outcomes.items()
            },
        )
        for title, unit, field, scale in wanted
    ]
