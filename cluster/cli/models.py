"""`quire models`, `load`, `unload` and `scale`: which models a running cluster serves, and with how many workers."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import Annotated

import typer

from cluster.bench.report import Row, render
from cluster.cli.connecting import GatewayOption, TokenOption, open_client
from cluster.client.blocking import Client
from cluster.errors import AccessDenied, DeadlineExceeded, QuireError, Unavailable

# A gateway reads the tokenizer of a new model; a large one takes seconds.
LISTED_S = 60.0
ASKED_S = 10.0
NONE_SERVED = "no model is served now; `quire status` shows which workers are missing, `quire load` brings a model"


def register(app: typer.Typer) -> None:
    for command in (models, load, unload, scale):
        app.command()(command)


def models(
    address: GatewayOption = None,
    token_file: TokenOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """The models that are served.

    Their names, how long a sequence may be, and who serves them.
    """
    with open_client(address, token_file) as client:
        cards = client.models()
    if as_json:
        print(json.dumps([asdict(card) for card in cards], indent=1))
        return
    rows: list[Row] = [
        {
            "model": card.name,
            "": "default" if card.is_default else "",
            "state": "serves" if card.is_ready else "waits",
            "workers": card.num_replicas,
            "longest": card.max_model_len,
            "chat": "yes" if card.has_chat_template else "no",
            "why": card.detail,
        }
        for card in cards
    ]
    print(render(rows) if rows else NONE_SERVED)


def scale(
    workers: Annotated[int, typer.Argument(help="How many workers there shall be.")],
    model: Annotated[str | None, typer.Option(help="Of this model. Default: the only one.")] = None,
) -> None:
    """Add workers, or drain and end some, while it serves."""
    from cluster.lifecycle.fleet import scale as change

    change(workers, model, print)


def load(
    model: Annotated[str, typer.Argument(help="Folder, GGUF file or hub id of a checkpoint, or demo; or NAME=FOLDER.")],
    workers: Annotated[int, typer.Option(help="Workers that serve it.")] = 1,
    token_file: TokenOption = None,
) -> None:
    """Bring a further model into the running cluster.

    Returns once its gateway takes requests for it.
    """
    from cluster.lifecycle.fleet import load as bring
    from cluster.lifecycle.served import ModelToServe

    named = ModelToServe.read(model)
    with open_client(None, token_file) as client:
        may_ask = _may_ask(client)
        bring(named, workers, print)
        until = time.monotonic() + LISTED_S
        while may_ask and _is_missing(client, named.name):
            if time.monotonic() > until:
                raise Unavailable(f"the gateway does not list {named.name} after {LISTED_S:g} s; `quire logs --causes`")
            time.sleep(0.1)
    print(f'try: quire generate --model {named.name} "Once upon a time"')


def _may_ask(client: Client) -> bool:
    """Whether this operator has a token and a certificate for the gateway's door. Who has none does not wait for it."""
    try:
        client.models(timeout_s=ASKED_S)
    except QuireError:
        return False
    return True


def _is_missing(client: Client, model: str) -> bool:
    """Whether the gateway does not list it yet. One that does not answer just now lists nothing."""
    try:
        return model not in [card.name for card in client.models(timeout_s=ASKED_S)]
    except AccessDenied:
        return False
    except (Unavailable, DeadlineExceeded):
        return True


def unload(
    model: Annotated[str, typer.Argument(help="As `quire models` shows it.")],
    patience: Annotated[float, typer.Option(help="Seconds that accepted requests have to end.")] = 60.0,
) -> None:
    """Take a model out of the running cluster.

    Nothing new is taken; what was accepted ends first.
    """
    from cluster.lifecycle.fleet import unload as take_out

    take_out(model, patience, print)
