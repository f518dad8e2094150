"""`quire torture`: kills and stops under load, with every stream compared token by token."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cluster.cli import exits, interrupts
from cluster.errors import ConfigError


def register(app: typer.Typer) -> None:
    app.command()(torture)


def torture(
    minutes: Annotated[float, typer.Option(help="How long it burns.")] = 5.0,
    seed: Annotated[int, typer.Option(help="What is asked, and who is struck when.")] = 1,
    streams: Annotated[int, typer.Option(help="Streams at once.")] = 32,
    every: Annotated[float, typer.Option(help="Seconds of peace between two fires.")] = 5.0,
    nodes: Annotated[int, typer.Option(help="Nodes of a Ray that is made for it; 1: that of `quire up`.")] = 1,
    tp: Annotated[int, typer.Option(help="Ranks of each of the two replicas.")] = 1,
    paced: Annotated[
        bool, typer.Option("--paced", help="Tokens made up at a fixed pace, without Ray: pauses are judged too.")
    ] = False,
    report: Annotated[Path | None, typer.Option(help="A JSON file for what was seen. Default: none.")] = None,
) -> None:
    """Kill and stop the processes of a cluster of its own.

    Under load, with every token compared.

    Exit code 1 if any stream was lost or wrong, or anything is left behind.
    """
    if not 0 < minutes <= 24 * 60:
        raise ConfigError(f"--minutes is {minutes:g}; give more than 0 and at most 1,440")
    if not 1 <= streams <= 10_000:
        raise ConfigError(f"--streams is {streams}; give 1 to 10,000")
    for name, value in (("nodes", nodes), ("tp", tp)):
        if not 1 <= value <= 8:
            raise ConfigError(f"--{name} is {value}; give 1 to 8")
    if report is not None and not report.parent.is_dir():
        raise ConfigError(f"--report {report}: there is no folder {report.parent}; give a file in one that exists")
    from cluster.torture.run import Torture
    from cluster.torture.run import torture as burn

    interrupts.end_in_order()
    verdict = burn(
        Torture(seed, minutes, num_streams=streams, every_s=every, num_nodes=nodes, num_ranks=tp, is_paced=paced),
        lambda line: print(line, flush=True),
    )
    for line in verdict.lines():
        print(line)
    if report is not None:
        verdict.write(report)
    if not verdict.holds:
        raise typer.Exit(exits.FAILED)
