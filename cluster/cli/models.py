"""`quire load`, `quire unload` and `quire scale`: which models a running cluster serves, and with how many workers."""

from __future__ import annotations

import contextlib
import time
from typing import Annotated

import typer

from cluster.cli.connecting import TokenOption, open_client
from cluster.errors import AccessDenied, Unavailable

# A gateway reads the tokenizer of a new model; a large one takes seconds.
LISTED_S = 60.0


def register(app: typer.Typer) -> None:
    for command in (scale, load, unload):
        app.command()(command)


def scale(
    workers: Annotated[int, typer.Argument(help="How many workers there shall be.")],
    model: Annotated[str | None, typer.Option(help="Of this model; may be left out where there is one.")] = None,
) -> None:
    """Add workers, or drain and end some, while the cluster serves."""
    from cluster.lifecycle.fleet import scale as change

    change(workers, model, print)


def load(
    model: Annotated[str, typer.Argument(help="Folder or hub id of a checkpoint, or demo.")],
    workers: Annotated[int, typer.Option(help="Workers that serve it.")] = 1,
    token_file: TokenOption = None,
) -> None:
    """Bring a further model into the running cluster, and wait until its gateway takes requests for it."""
    from cluster.lifecycle.fleet import load as bring

    bring(model, workers, print)
    with contextlib.suppress(AccessDenied), open_client(None, token_file) as client:
        until = time.monotonic() + LISTED_S
        while model not in [card.name for card in client.models(timeout_s=LISTED_S)]:
            if time.monotonic() > until:
                raise Unavailable(f"the gateway does not list {model} after {LISTED_S:g} s; `quire logs --causes`")
            time.sleep(0.1)
    print(f"try: quire generate --model {model} ...")


def unload(
    model: Annotated[str, typer.Argument(help="As `quire status` shows it.")],
    patience: Annotated[float, typer.Option(help="Seconds that accepted requests have to end.")] = 60.0,
) -> None:
    """Take a model out of the running cluster: nothing new is taken, what was accepted ends first."""
    from cluster.lifecycle.fleet import unload as take_out

    take_out(model, patience, print)
