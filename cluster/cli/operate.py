"""`quire blocks`, `drain` and `usage`: one request's tables, a worker's leave, tenants' bills."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from cluster.bench.report import Row, render
from cluster.cli.admin import AddressOption, JsonOption, TokenOption, open_admin
from cluster.serving.admin_client import plain


def register(app: typer.Typer) -> None:
    for command in (blocks, drain, usage):
        app.command()(command)


def blocks(
    request: Annotated[str, typer.Argument(help="The id of a request, or its end.")],
    address: AddressOption = None,
    token_file: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """The block tables of a request: logical block -> physical block, with how many tables hold each."""
    from protos.quire.v1 import admin_pb2 as pb

    answer = plain(
        open_admin(address, token_file).call("DescribeRequest", pb.DescribeRequestRequest(request_id=request))
    )
    if as_json:
        print(json.dumps(answer, indent=1))
        return
    found = answer["request"]
    cached = answer["cached_tokens"]
    print(f"request {found['request_id']}: {found['state']}, attempt {answer['attempt']}, {cached} cached tokens")
    if found["reason"]:
        print(f"  {found['reason']}")
    for one in answer["sequences"]:
        where = one["pool"] or one["host_pool"] or "no worker"
        told = f"{one['length']} tokens, {one['position']} written, leave to {one['lease_end']}, on {where}"
        print(f"  [{one['index']}] {told}")
        pairs = zip(one["blocks"], one["holders"], strict=True)
        shown = " ".join(f"{block}" + (f"x{holders}" if holders > 1 else "") for block, holders in pairs)
        print("      " + (shown or " ".join(f"host {block}" for block in one["host_blocks"]) or "no blocks"))


def drain(
    worker: Annotated[str, typer.Argument(help="The worker's name, as `quire status` shows it.")],
    undo: Annotated[bool, typer.Option("--undo", help="Let it take work again.")] = False,
    address: AddressOption = None,
    token_file: TokenOption = None,
) -> None:
    """Move everything off a worker and give it nothing new."""
    from protos.quire.v1 import admin_pb2 as pb

    answer = open_admin(address, token_file).call("Drain", pb.DrainRequest(worker=worker, undo=undo))
    print(f"{worker} takes work again" if undo else f"{worker} drains: {answer.num_moving} requests move")


def usage(
    tenant: Annotated[str, typer.Option(help="Only this tenant.", show_default=False)] = "",
    address: AddressOption = None,
    token_file: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """What each tenant used: requests, tokens and block-seconds."""
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
