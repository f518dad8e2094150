"""`quire logs`: what the processes of this user's cluster wrote, of all of them in order of time, or of one request."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.errors import NotFound

FOLLOW_S = 0.5


def register(app: typer.Typer) -> None:
    app.command()(logs)


def logs(
    request: Annotated[str | None, typer.Argument(help="Only about this request: its id, or its end.")] = None,
    level: Annotated[str, typer.Option(help="This level and above: debug, info, warning or error.")] = "info",
    process: Annotated[str, typer.Option(help="Only this process, such as demo-0 or scheduler.")] = "",
    causes: Annotated[bool, typer.Option("--causes", help="Root causes only: one line for each failure.")] = False,
    lines: Annotated[int, typer.Option(min=1, help="The last so many lines.")] = 100,
    goes_on: Annotated[bool, typer.Option("--follow", "-f", help="Go on as lines come. Ctrl-C ends it.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The lines as they were written.")] = False,
    folder: Annotated[Path | None, typer.Option(help="Where the logs are. Default: this user's.")] = None,
) -> None:
    """Show what the processes of the cluster logged, on all nodes.

    A failure's cause is one line of level error.
    """
    from cluster.watching.logs import log_files, shown

    place = folder or log_folder()
    if not log_files(place):
        raise NotFound(f"no logs are in {place}; a cluster writes them from its start, or give --folder")
    chosen: dict[str, Any] = {"request": request or "", "level": "error" if causes else level, "process": process}
    with _reader(place, is_given=folder is not None) as read:
        found = read(**chosen)
        if request and not found:
            raise NotFound(f"no line in {place} is about {request}; ids are in `quire status` and in clients' answers")
        if process and not found:
            _check_process(place, process)
        for line in found[-lines:]:
            print(json.dumps(line) if as_json else shown(line), flush=goes_on)
        if goes_on:
            _go_on(partial(read, **chosen), found, as_json=as_json)


def follow(is_over: Callable[[], bool]) -> None:
    """Shows what the cluster of this user logs from now on, until `is_over`."""
    with _reader(log_folder(), is_given=False) as read:
        _go_on(partial(read, level="info"), read(level="info"), is_over=is_over)


def _go_on(
    read: Any, shown_before: list[dict[str, Any]], *, as_json: bool = False, is_over: Callable[[], bool] = bool
) -> None:
    """Prints each line once that is not among those from before."""
    from cluster.watching.logs import shown

    seen = {json.dumps(line) for line in shown_before}
    while not is_over():
        time.sleep(FOLLOW_S)
        for line in read(since_s=10.0):
            text = json.dumps(line)
            if text not in seen:
                seen.add(text)
                print(text if as_json else shown(line), flush=True)


def _check_process(place: Path, process: str) -> None:
    from cluster.watching.logs import processes_of

    known = processes_of(place)
    if not any(f"{name}.".startswith((f"{process}.", f"{process}-")) for name in known):
        raise NotFound(f"no process {process} has logged in {place}; there is {', '.join(known)}")


@contextmanager
def _reader(place: Path, *, is_given: bool) -> Iterator[Any]:
    """How lines are read: those of this folder, or of all nodes of a cluster on a Ray that others may have joined."""
    from cluster.errors import QuireError
    from cluster.lifecycle.running import Running
    from cluster.watching.logs import read_lines

    running = Running.load()
    if is_given or running is None or not running.settings.get("address"):
        yield partial(read_lines, place)
        return
    from cluster.lifecycle.node_logs import lines_of_all_nodes

    with ExitStack() as stack:
        try:
            read = stack.enter_context(lines_of_all_nodes(running, place, _warn))
        except QuireError as error:
            _warn(f"only this machine's lines are shown: {error}")
            read = partial(read_lines, place)
        yield read


def _warn(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)


def log_folder() -> Path:
    """Where the cluster that this user has up, or had last, keeps its logs."""
    from cluster.lifecycle.running import Running, state_folder

    running = Running.load()
    noted = "" if running is None else str(running.settings.get("log_dir", ""))
    return Path(noted) if noted else state_folder() / "logs"
