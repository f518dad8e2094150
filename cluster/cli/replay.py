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
    life: Annotated[
        int, typer.Option(help="Which start of the scheduler: 0 is the first. Default: the last.", show_default=False)
    ] = -1,
    events: Annotated[bool, typer.Option("--events", help="Also list what that turn was told.")] = False,
) -> None:
    """Replay a journal, and show tables and ledgers at any turn.

    Every decision is proven to be the one that was written.
    """
    from cluster.centre import replay as player
    from cluster.centre.journal import is_written, read

    recorded = read(journal, life=life)
    whole, total = recorded.num_whole, len(recorded.turns)
    if at is not None and not 0 <= at <= total:
        raise ConfigError(f"--at is {at}, and {journal} has turns 0 to {total}")
    last = len(recorded.epochs) - 1
    number_of_life = life % len(recorded.epochs)
    if last:
        print(f"life {number_of_life} of 0 to {last}: the scheduler of epoch {recorded.epoch}")
    scheduler = player.replay(recorded, at)
    scheduler.check()
    number = whole if at is None else at
    print(f"turn {number} of {total}: every decision as it was written, every ledger adds up")
    if whole < total:
        print(f"turn {total} was begun and not ended: the scheduler stopped in it (--at {total} decides it again)")
    elif not recorded.is_closed:
        is_at_work = number_of_life == last and is_written(journal)
        print(f"the scheduler {'is at work' if is_at_work else 'was ended'} after turn {total}")
    if events and number:
        for event in recorded.turns[number - 1].events:
            print(f"  told: {event}")
    print(player.describe(scheduler))
