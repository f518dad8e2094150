"""`quire doctor`: what is wrong on this machine and with its cluster, and a bundle for somebody who helps."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cluster.cli import exits
from cluster.private_files import check_file
from cluster.sizes import counted

_SIGNS = {"ok": "ok   ", "note": "note ", "wrong": "WRONG"}


def register(app: typer.Typer) -> None:
    app.command()(doctor)


def doctor(
    bundle: Annotated[bool, typer.Option("--bundle", help="Also pack findings, figures and logs into a tar.")] = False,
    out: Annotated[Path | None, typer.Option(help="Where the bundle goes. Default: the current folder.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check this machine and its cluster.

    Versions, memory, ports, workers, models, certificates, and where logs are. Exit code 1: something is wrong.
    """
    from cluster.watching.doctor import examine, write_bundle

    path = out or Path(f"quire-bundle-{time.strftime('%Y%m%d-%H%M%S')}.tar.gz")
    if bundle or out is not None:
        check_file(path, "the bundle", "name another with --out")
    findings = examine()
    if as_json:
        print(json.dumps([asdict(one) for one in findings], indent=1))
    else:
        width = max(len(one.what) for one in findings)
        for one in findings:
            print(f"{_SIGNS[one.state]}  {one.what:{width}}  {one.detail}")
    if bundle or out is not None:
        names = write_bundle(path, findings)
        print(f"{path}: {counted(len(names), 'file')}, without tokens or keys; look into it before you send it")
    if any(one.state == "wrong" for one in findings):
        raise typer.Exit(exits.FAILED)
