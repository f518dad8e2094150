"""`quire simulate`: whole clusters in virtual time, to find mistakes (--histories) or to plan capacity (--workers).

It reads the command line, shows progress and prints; the simulator itself is in cluster/sim.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from cluster.cli import exits
from cluster.errors import ConfigError

_MISTAKES, _CAPACITY = "Finding mistakes", "Planning capacity"


def register(app: typer.Typer) -> None:
    app.command()(simulate)


def simulate(
    histories: Annotated[
        int, typer.Option(help="Seeded histories of a small cluster to run and judge.", rich_help_panel=_MISTAKES)
    ] = 0,
    faults: Annotated[
        bool, typer.Option("--faults", help="Processes die, networks break, clocks jump.", rich_help_panel=_MISTAKES)
    ] = False,
    mutate: Annotated[
        int,
        typer.Option(
            help="Mutations of the machines to draw by --seed: which would no history see?", rich_help_panel=_MISTAKES
        ),
    ] = 0,
    results: Annotated[
        Path, typer.Option(help="Where --mutate keeps what it found, to go on from.", rich_help_panel=_MISTAKES)
    ] = Path("mutations.jsonl"),
    jobs: Annotated[int, typer.Option(help="Processes at once. 0: one per core.", rich_help_panel=_MISTAKES)] = 0,
    seed: Annotated[int, typer.Option(help="The first seed; histories take this and those that follow.")] = 0,
    workers: Annotated[
        int, typer.Option(help="Workers (replicas) of the planned cluster.", rich_help_panel=_CAPACITY)
    ] = 0,
    trace: Annotated[
        str,
        typer.Option(
            help="Lengths and arrivals: azure-conv, azure-code, mooncake-conv, sharegpt, alpaca.",
            rich_help_panel=_CAPACITY,
        ),
    ] = "azure-conv",
    model: Annotated[str, typer.Option(help="1b, 8b or 70b, in bf16.", rich_help_panel=_CAPACITY)] = "8b",
    gpu: Annotated[str, typer.Option(help="a100, h100 or h200.", rich_help_panel=_CAPACITY)] = "h100",
    gpus: Annotated[int, typer.Option(help="GPUs of one worker (tensor parallel).", rich_help_panel=_CAPACITY)] = 1,
    rate: Annotated[
        float | None,
        typer.Option(
            help="Requests/s of all. Default: the trace's own for every 8 workers.", rich_help_panel=_CAPACITY
        ),
    ] = None,
    minutes: Annotated[float, typer.Option(help="Simulated time.", rich_help_panel=_CAPACITY)] = 2.0,
    block_size: Annotated[int, typer.Option(help="Slots in a block.", rich_help_panel=_CAPACITY)] = 16,
    kv_memory: Annotated[
        str | None,
        typer.Option(help="Of a worker's pool, like 20GB. Default: what weights leave.", rich_help_panel=_CAPACITY),
    ] = None,
    host_memory: Annotated[
        str | None, typer.Option(help="Of a host pool for 8 workers. Default: none.", rich_help_panel=_CAPACITY)
    ] = None,
    max_batch: Annotated[int, typer.Option(help="Sequences of a worker at once.", rich_help_panel=_CAPACITY)] = 256,
    token_budget: Annotated[int, typer.Option(help="Tokens of a step.", rich_help_panel=_CAPACITY)] = 8192,
    prefix: Annotated[
        int, typer.Option(help="Tokens that prompts share at their start.", rich_help_panel=_CAPACITY)
    ] = 0,
    prefix_share: Annotated[
        float, typer.Option(help="The share of requests that have such a prefix.", rich_help_panel=_CAPACITY)
    ] = 1.0,
    placement: Annotated[str, typer.Option(help="The scheduler's policy.", rich_help_panel=_CAPACITY)] = "scored",
    preemption: Annotated[str, typer.Option(help="The scheduler's policy.", rich_help_panel=_CAPACITY)] = "cheapest",
    allocator: Annotated[str, typer.Option(help="The ledger's policy.", rich_help_panel=_CAPACITY)] = "lru",
    compare: Annotated[
        str | None,
        typer.Option(
            help="Side by side: placement, preemption, block-size or allocator. Default: none.",
            rich_help_panel=_CAPACITY,
        ),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="A PNG to plot into. Default: none.", rich_help_panel=_CAPACITY)
    ] = None,
) -> None:
    """Simulate a cluster in virtual time.

    The machines that ship, with all around them made up: faults by seed, or a capacity question.
    """
    if workers > 0 and histories == 0:
        from cluster.cli.capacity import CapacityQuestion, plan

        plan(
            CapacityQuestion(
                workers, trace, model, gpu, gpus, rate, minutes * 60, block_size, kv_memory, host_memory, max_batch,
                token_budget, prefix, prefix_share, placement, preemption, allocator, compare, seed, plot,
            )
        )  # fmt: skip
        return
    if mutate > 0 and not workers:
        raise typer.Exit(_run_mutations(mutate, seed, histories, jobs or os.cpu_count() or 1, results))
    if histories < 1 or workers:
        raise ConfigError("nothing is to be run; give --histories 1000, --mutate 100 or --workers 8, say (one of them)")
    raise typer.Exit(_run_histories(histories, faults, seed, jobs or os.cpu_count() or 1))


def _run_histories(histories: int, faults: bool, seed: int, jobs: int) -> int:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from cluster.sim.campaign import Summary, run_campaign
    from cluster.sim.report import failure, figures

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[failed]} failed"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("", total=histories, failed=0)

        def show(summary: Summary) -> bool:
            progress.update(task, completed=summary.num_histories, failed=len(summary.failures))
            return len(summary.failures) < 20  # more of them say no more

        summary = run_campaign(seed, histories, faults, jobs, show)
    for line in figures(summary):
        print(line)
    for verdict in summary.failures[1:]:
        print(f"seed {verdict.seed} fails: {verdict.failure}")
    for verdict in summary.failures[:1]:
        print("\n".join(failure(verdict, faults)))
    return exits.FAILED if summary.failures else exits.DONE


def _run_mutations(num: int, seed: int, histories: int, jobs: int, results: Path) -> int:
    """Fails if a mutation lives that is not on the list of those that change nothing."""
    from cluster.sim.mutants import MOST_HISTORIES, MutantFound, draw, known_survivors, run_mutations

    mutations, most = draw(num, seed), histories or MOST_HISTORIES
    if not results.parent.is_dir():
        raise ConfigError(f"--results {results}: there is no folder {results.parent}; give a file in one that exists")
    print(f"{len(mutations)} mutations, at most {most} histories each, {jobs} at once; kept in {results}", flush=True)

    def say(found: MutantFound) -> None:
        seen = f"history {found.history}" if found.history else "LIVES"
        print(f"{seen:>12}  {found.name}", flush=True)

    every = run_mutations(mutations, most, jobs, results, say)
    living = [found.name for found in every if not found.history]
    reasons = known_survivors()
    for name in living:
        print(
            f"lives: {name}\n       {reasons.get(name, 'unexplained: a history is missing, or the code is not needed')}"
        )
    unknown = [name for name in living if name not in reasons]
    seen = len(every) - len(living)
    print(f"{len(every)} mutations: {seen} seen, {len(living)} live, {len(unknown)} of them without a reason")
    return exits.FAILED if unknown else exits.DONE
