"""`quire logs`: what the processes of this user's cluster wrote, of all of them in order of time, or of one request."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

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
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as lines come. Ctrl-C ends it.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The lines as they were written.")] = False,
    folder: Annotated[Path | None, typer.Option(help="Where the logs are. Default: this user's.")] = None,
) -> None:
    """Show what the cluster's processes logged on this machine; a failure's cause is one line of level error."""
    from cluster.watching.logs import log_files, read_lines, shown

    place = folder or log_folder()
    if not log_files(place):
        raise NotFound(f"no logs are in {place}; a cluster writes them from its start, or give --folder")
    lowest = "error" if causes else level
    found = read_lines(place, request=request or "", level=lowest, process=process)[-lines:]
    if request and not found:
        raise NotFound(f"no line in {place} is about {request}; ids are in `quire status` and in clients' answers")
    seen = {json.dumps(line) for line in found}
    for line in found:
        print(json.dumps(line) if as_json else shown(line))
    while follow:
        time.sleep(FOLLOW_S)
        for line in read_lines(place, request=request or "", level=lowest, process=process, since_s=10.0):
            text = json.dumps(line)
            if text not in seen:
                seen.add(text)
                print(text if as_json else shown(line), flush=True)


def log_folder() -> Path:
    """Where the cluster that this user has up, or had last, keeps its logs."""
    from cluster.serving.launch import Running, state_folder

    running = Running.load()
    noted = "" if running is None else str(running.settings.get("log_dir", ""))
    return Path(noted) if noted else state_folder() / "logs"
