"""`quire up`, `quire serve` and `quire down`: a cluster from nothing, in the background or in front, and nothing from a
cluster."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.cli import exits, interrupts
from cluster.cli.cluster_options import read_settings, takes_settings

if TYPE_CHECKING:
    from cluster.lifecycle.running import Running

GRACE_S = 5.0


def register(app: typer.Typer) -> None:
    for command in (up, serve, down):
        app.command()(command)


@takes_settings
def up(**given: Any) -> None:
    """Start a cluster in the background; wait until it serves.

    Scheduler, workers, host memory, gateways, and a page in the browser.
    """
    from cluster.lifecycle.launch import down as end
    from cluster.lifecycle.launch import up as launch
    from cluster.lifecycle.page_process import start_page

    with _ended_in_order():
        running = launch(settings := read_settings(given), _say)
        try:
            start_page(running, settings.page_port, _say)
        except KeyboardInterrupt:
            _say("what was started is taken away")
            end(_say)
            raise
    print(f"try: {_asking(settings.tokens)}\n     quire top\n     quire down")


@partial(takes_settings, leave_out="model")
def serve(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL",
            help="Folder, GGUF file or hub id, or NAME=FOLDER; the first is the default. Default: demo; QUIRE_MODEL.",
            show_default=False,
        ),
    ] = None,
    grace: Annotated[float, typer.Option(min=0, help="Seconds that requests have to end by themselves.")] = GRACE_S,
    **given: Any,
) -> None:
    """Start a cluster and stay in front of it, with its logs.

    Ctrl-C ends everything; a second one does not wait for requests.
    """
    from cluster.cli.logs import follow
    from cluster.lifecycle.launch import up as launch
    from cluster.lifecycle.page_process import start_page

    with _ended_in_order():
        running = launch(settings := read_settings({**given, "model": models}), _say)
        try:
            start_page(running, settings.page_port, _say)
            print(f"try: {_asking(settings.tokens)}\nCtrl-C ends the cluster", flush=True)
            follow(lambda: not _runs(running))
            print("the cluster was ended by another command, or has died")
        except KeyboardInterrupt:
            print(file=sys.stderr)
        finally:
            left = _end(grace)
    if left:
        raise typer.Exit(exits.FAILED)


def _end(grace: float) -> list[str]:
    """Another Ctrl-C ends the grace."""
    from cluster.lifecycle.launch import down as end

    try:
        return end(_say, grace)
    except KeyboardInterrupt:
        return end(_say)


def _asking(tokens: str) -> str:
    """A command to paste, from this machine and user."""
    return f'{"QUIRE_TOKEN_FILE=FILE " if tokens else ""}quire generate "Once upon a time"'


def down(
    grace: Annotated[float, typer.Option(min=0, help="Seconds that requests have to end by themselves.")] = GRACE_S,
) -> None:
    """End what `quire up` started; prove that nothing is left."""
    from cluster.lifecycle.launch import down as end

    if end(_say, grace):
        raise typer.Exit(exits.FAILED)


def _say(line: str) -> None:
    """Shown when it is so, also through a pipe."""
    print(line, flush=True)


def _runs(running: Running) -> bool:
    """Whether it is still noted, and its Ray there."""
    from cluster.lifecycle import ray_head
    from cluster.lifecycle.running import Running

    noted = Running.load()
    is_ours = noted is not None and noted.gateways == running.gateways
    return is_ours and (not running.ray_temp or ray_head.serves(running.ray_temp))


@contextmanager
def _ended_in_order() -> Iterator[None]:
    """Whoever ends this command in here, a person or a service manager: what it started ends too."""
    interrupts.end_in_order()
    before = signal.signal(signal.SIGTERM, _as_interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _as_interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
