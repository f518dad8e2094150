"""`quire bench NAME ...`: hands a benchmark everything behind its name. It measures and prints nothing itself."""

from __future__ import annotations

import typer

from cluster.cli import interrupts

# The benchmark reads its own options, `--help` too.
_FORWARD = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def register(app: typer.Typer) -> None:
    app.command(context_settings=_FORWARD, options_metavar="NAME ...")(bench)


def bench(context: typer.Context) -> None:
    """Run a benchmark; without a name, list them.

    `quire bench NAME --help` shows its options.
    """
    from cluster.bench.__main__ import run

    interrupts.end_in_order()
    raise typer.Exit(run(context.args))
