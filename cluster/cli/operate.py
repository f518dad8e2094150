"""`quire blocks`, `drain`, `usage` and `restart`: tables, a worker's leave, bills, new processes."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from cluster.bench.report import Row, render
from cluster.cli.admin import AddressOption, JsonOption, TokenOption, open_admin
from cluster.cli.table_lines import table_lines
from cluster.errors import ConfigError
from cluster.serving.admin_client import plain
from cluster.sizes import counted


def register(app: typer.Typer) -> None:
    for command in (blocks, drain, usage, restart):
        app.command()(command)


def blocks(
    request: Annotated[str, typer.Argument(help="The id of a request, or its end.")],
    address: AddressOption = None,
    token_file: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """The block tables of a request.

    Logical block -> physical block, with how many tables hold each.
    """
    from protos.quire.v1 import admin_pb2 as pb

    answer = plain(
        open_admin(address, token_file).call("DescribeRequest", pb.DescribeRequestRequest(request_id=request))
    )
    if as_json:
        print(json.dumps(answer, indent=1))
        return
    print("\n".join(table_lines(answer)))


def drain(
    worker: Annotated[str, typer.Argument(help="The worker's name, as `quire status` shows it.")],
    undo: Annotated[bool, typer.Option("--undo", help="Let it take work again.")] = False,
    address: AddressOption = None,
    token_file: TokenOption = None,
) -> None:
    """Move everything off a worker and give it nothing new."""
    from protos.quire.v1 import admin_pb2 as pb

    answer = open_admin(address, token_file).call("Drain", pb.DrainRequest(worker=worker, undo=undo))
    print(f"{worker} takes work again" if undo else f"{worker} drains: {counted(answer.num_moving, 'request')} to move")


def usage(
    tenant: Annotated[str, typer.Option(help="Only this tenant. Default: all.", show_default=False)] = "",
    address: AddressOption = None,
    token_file: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """What tenants used: requests, tokens and block-seconds."""
    from protos.quire.v1 import admin_pb2 as pb

    answer = plain(open_admin(address, token_file).call("GetUsage", pb.GetUsageRequest(tenant=tenant)))
    if as_json:
        print(json.dumps(answer, indent=1))
        return
    rows: list[Row] = [
        {
            "tenant": one["tenant"] or "-",
            "requests": one["num_requests"],
            "prompt": one["prompt_tokens"],
            "cached": one["cached_tokens"],
            "output": one["output_tokens"],
            "device block-s": one["device_block_seconds"],
            "host block-s": one["host_block_seconds"],
        }
        for one in answer["tenants"]
    ]
    print(render(rows) if rows else "nothing was used yet")


def restart(
    rolling: Annotated[
        bool, typer.Option("--rolling", help="One process after the other; every stream goes on. It has to be given.")
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(help="gateways, workers or scheduler; repeatable. Default: all, in turn.", show_default=False),
    ] = None,
) -> None:
    """Start every process again, with new code, while it serves."""
    from cluster.lifecycle.rolling import KINDS
    from cluster.lifecycle.rolling import restart as roll

    if not rolling:
        raise ConfigError("give --rolling, by which every stream goes on; `quire down` and `quire up` end them all")
    for kind in only or ():
        if kind not in KINDS:
            raise ConfigError(f"--only is {kind!r}; give {', '.join(KINDS)}")
    roll(tuple(only or KINDS), print)
