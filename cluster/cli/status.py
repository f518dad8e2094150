"""`quire status`: what runs, what is missing, and the counters that matter."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from cluster.bench.report import Row, render
from cluster.cli.admin import AddressOption, JsonOption, TokenOption, open_admin
from cluster.serving.admin_client import status_of
from cluster.sizes import counted

MAX_REQUESTS = 50
# What an operator asks first: how it is told, and the counters that make it up.
COUNTERS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("requests finished", ("finished",)),
    ("cancelled", ("cancelled",)),
    ("failed", ("failed",)),
    ("refused", ("refused ",)),
    ("preempted", ("preempted ",)),
    ("moved alive", ("moved",)),
    ("steps without a lease", ("dry leases",)),
    ("workers lost", ("replicas lost",)),
    ("host pools lost", ("host pools lost",)),
)


def register(app: typer.Typer) -> None:
    app.command()(status)


def status(
    address: AddressOption = None,
    token_file: TokenOption = None,
    everything: Annotated[bool, typer.Option("--all", help="Every request and every counter.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Gateways, workers, pools, requests and counters."""
    found = status_of(open_admin(address, token_file), most=None if everything or as_json else MAX_REQUESTS)
    if as_json:
        print(json.dumps(found, indent=1))
        return
    cluster, workers, requests = found["cluster"], found["workers"], found["requests"]
    num_workers, num_gateways = len(workers["workers"]), sum(one["connected"] for one in cluster["gateways"])
    print(
        f"Quire {cluster['version']}, scheduler epoch {cluster['epoch']}, up {cluster['uptime_s']:.0f} s: "
        f"{_of(num_workers, num_workers + len(workers['missing']), 'worker')}, "
        f"{_of(num_gateways, len(cluster['gateways']), 'gateway')}, "
        f"{counted(cluster['num_running'], 'request')} under way, {cluster['num_waiting']:,} waiting"
    )
    tables: list[list[Row]] = [
        [_gateway_row(one) for one in cluster["gateways"]],
        [_worker_row(one) for one in workers["workers"]] + [_missing_row(one) for one in workers["missing"]],
        [_pool_row(one) for one in found["pools"]["pools"]],
        [_request_row(one) for one in requests["requests"]],
    ]
    for rows in tables:
        if rows:
            print("\n" + render(rows))
    if requests["num_left_out"]:
        print(f"... and {requests['num_left_out']:,} more requests; --all shows them")
    counters = cluster["counters"]
    print(
        "\n" + render([_row(name, counters[name]) for name in sorted(counters)] if everything else _counted(counters))
    )


def _of(number: int, wanted: int, what: str) -> str:
    return counted(number, what) if number >= wanted else f"{number} of {counted(wanted, what)}"


def _counted(counters: Mapping[str, int]) -> list[Row]:
    rows: list[Row] = []
    for told, names in COUNTERS:
        count = sum(n for name, n in counters.items() if any(_is(name, one) for one in names))
        if count or told == "requests finished":
            rows.append(_row(told, count))
    turns = max(1, counters.get("turns", 0))
    rows.append(_row("a turn of the scheduler, us", counters.get("turn microseconds", 0) / turns))
    rows.append(_row("the longest turn, us", counters.get("longest turn microseconds", 0)))
    return rows


def _is(name: str, wanted: str) -> bool:
    return name.startswith(wanted) if wanted.endswith(" ") else name == wanted


def _row(what: str, count: float) -> Row:
    return {"since the scheduler started": what, "": count}


def _gateway_row(gateway: Mapping[str, Any]) -> Row:
    state = "serves" if gateway["connected"] else "missing"
    return {"gateway": gateway["name"], "address": gateway["address"], "state": state}


def _worker_row(worker: Mapping[str, Any]) -> Row:
    return {
        "worker": worker["name"],
        "model": worker["model"],
        "node": worker["node"][:8],
        "state": "drains" if worker["draining"] else "serves",
        "sequences": f"{worker['num_sequences']} of {worker['max_batch']}",
        "steps": worker["steps"],
        "step ms": worker["step_s"] * 1e3,
        "dry": worker["dry_leases"],
        "heard s": worker["silent_s"],
    }


def _missing_row(worker: Mapping[str, Any]) -> Row:
    return {"worker": worker["name"], "model": worker["model"], "state": "missing"}


def _pool_row(pool: Mapping[str, Any]) -> Row:
    names = ("free", "held", "shared", "cached", "moving", "quarantined")
    row: dict[str, Any] = {"pool": pool["name"], "kind": pool["kind"], "blocks": pool["num_blocks"]}
    return row | {name: pool[f"num_{name}"] for name in names}


def _request_row(request: Mapping[str, Any]) -> Row:
    return {
        "request": request["request_id"][-24:],
        "tenant": request["tenant"] or "-",
        "state": request["state"],
        "prompt": request["prompt_tokens"],
        "output": request["output_tokens"],
        "blocks": request["num_blocks"],
        "worker": request["worker"] or "-",
        "why": request["reason"],
    }
