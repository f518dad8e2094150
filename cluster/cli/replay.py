"""`quire replay`: what the scheduler knew and decided, at any turn of a journal."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cluster.errors import ConfigError


def register(app: typer.Typer) -> None:
    app.command()(replay)


def replay(
    journal: Annotated[Path, typer.Argument(help="The file that `quire up --journal FILE` wrote.")],
    at: Annotated[int | None, typer.Option(help="Show the state after this turn. Default: after the last.")] = None,
    events: Annotated[bool, typer.Option("--events", help="Also list what that turn was told.")] = False,
) -> None:
    """Replay a journal, prove that every decision is the same, and show tables and ledgers."""
    from cluster.centre import replay as player
    from cluster.centre.journal import read

    recorded = read(journal, allow_cut=at is not None)
    if at is not None and not 0 <= at <= len(recorded.turns):
        raise ConfigError(f"--at is {at}, and {journal} has turns 0 to {len(recorded.turns)}")
    scheduler = player.replay(recorded, at)
    scheduler.check()
    number = len(recorded.turns) if at is None else at
    print(f"turn {number} of {len(recorded.turns)}: every decision as it was written, every ledger adds up")
    if events and number:
        for event in recorded.turns[number - 1].events:
            print(f"  told: {event}")
    print(player.describe(scheduler))
