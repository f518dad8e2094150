"""`quire torture`: kills and stops under load, with every stream compared token by token."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cluster.cli import exits
from cluster.errors import ConfigError


def register(app: typer.Typer) -> None:
    app.command()(torture)


def torture(
    minutes: Annotated[float, typer.Option(help="How long it burns.")] = 5.0,
    seed: Annotated[int, typer.Option(help="What is asked, and who is struck when.")] = 1,
    streams: Annotated[int, typer.Option(help="Streams at once.")] = 32,
    every: Annotated[float, typer.Option(help="Seconds of peace between two fires.")] = 5.0,
    one_gateway: Annotated[
        bool, typer.Option("--one-gateway", help="Clients know the first of the two gateways only.")
    ] = False,
    report: Annotated[Path | None, typer.Option(help="A JSON file for what was seen.")] = None,
) -> None:
    """Start a cluster of its own, kill and stop its processes under load, and compare every token.

    Exit code 1 if any stream was lost or wrong, or anything is left behind.
    """
    if not 0 < minutes <= 24 * 60:
        raise ConfigError(f"--minutes is {minutes:g}; give more than 0 and at most 1,440")
    if not 1 <= streams <= 10_000:
        raise ConfigError(f"--streams is {streams}; give 1 to 10,000")
    if report is not None and not report.parent.is_dir():
        raise ConfigError(f"--report {report}: there is no folder {report.parent}; give a file in one that exists")
    from cluster.torture.run import Torture
    from cluster.torture.run import torture as burn

    verdict = burn(
        Torture(seed, minutes, num_streams=streams, every_s=every, one_gateway=one_gateway),
        lambda line: print(line, flush=True),
    )
    for line in verdict.lines():
        print(line)
    if report is not None:
        verdict.write(report)
    if not verdict.holds:
        raise typer.Exit(exits.FAILED)
