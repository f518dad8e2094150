"""`quire simulate`: whole clusters in virtual time, to find mistakes (--histories) or to plan capacity (--workers).

It reads the command line, shows progress and prints; the simulator itself is in cluster/sim.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from cluster.cli import exits
from cluster.errors import ConfigError


def register(app: typer.Typer) -> None:
    app.command()(simulate)


def simulate(
    histories: Annotated[int, typer.Option(help="Seeded histories of a small cluster to run and judge.")] = 0,
    faults: Annotated[bool, typer.Option("--faults", help="Processes die, networks break, clocks jump.")] = False,
    seed: Annotated[int, typer.Option(help="The first seed; histories take this and those that follow.")] = 0,
    jobs: Annotated[int, typer.Option(help="Processes at once. 0: one per core.")] = 0,
) -> None:
    """Simulate a cluster: the real scheduler and batcher, with everything else in virtual time."""
    if histories < 1:
        raise ConfigError(f"histories is {histories}, which runs nothing; give --histories 1000, say")
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
