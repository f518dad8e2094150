"""`quire status`, `blocks`, `drain` and `usage`: the operators' door as commands."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.bench.report import render
from cluster.errors import NotFound, QuireError, Unavailable

if TYPE_CHECKING:
    from cluster.lifecycle.running import Running

AddressOption = Annotated[
    str | None,
    typer.Option(
        help="The admin door; QUIRE_ADMIN_TOKEN and QUIRE_TLS_AUTHORITY go with it. Default: that of `quire up`."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DEADLINE_S = 10.0


def register(app: typer.Typer) -> None:
    for command in (status, blocks, drain, usage):
        app.command()(command)


class Admin:
    """Calls of the AdminService that end in one clear line when they cannot be answered."""

    def __init__(self, address: str | None) -> None:
        from cluster.serving.admin_channel import admin_channel
        from protos.quire.v1.admin_pb2_grpc import AdminServiceStub

        if address:
            token, authority = os.environ.get("QUIRE_ADMIN_TOKEN", ""), os.environ.get("QUIRE_TLS_AUTHORITY", "")
            self.address, self.channel = address, admin_channel(address, token, authority)
        else:
            running = _running()
            self.address, self.channel = running.admin, running.admin_channel()
        self.stub = AdminServiceStub(self.channel)

    def call(self, name: str, request: Any) -> Any:
        import grpc

        try:
            return getattr(self.stub, name)(request, timeout=DEADLINE_S)
        except grpc.RpcError as error:
            raise self.explain(error) from error

    def explain(self, error: Any) -> QuireError:
        """A gRPC error as one of ours."""
        import grpc

        if error.code() is grpc.StatusCode.NOT_FOUND:
            return NotFound(error.details())
        if error.code() is grpc.StatusCode.UNAVAILABLE:
            return Unavailable(f"nothing answers at {self.address}; is the cluster up (`quire up`)?")
        return QuireError(f"{error.code().name}: {error.details()}")


def _running() -> Running:
    from cluster.lifecycle.running import Running

    running = Running.load()
    if running is None or not running.admin:
        raise Unavailable("no cluster of this user is up; start one with `quire up`, or give --address")
    return running


def status(address: AddressOption = None, as_json: JsonOption = False) -> None:
    """Workers, pools, requests and counters of the running cluster."""
    from protos.quire.v1 import admin_pb2 as pb

    if as_json:
        print(json.dumps(status_of(address), indent=1))
        return
    admin = Admin(address)
    cluster = admin.call("GetCluster", pb.GetClusterRequest())
    workers = admin.call("ListWorkers", pb.ListWorkersRequest())
    pools = admin.call("ListPools", pb.ListPoolsRequest())
    requests = admin.call("ListRequests", pb.ListRequestsRequest(limit=50))
    print(
        f"Quire {cluster.version}, scheduler epoch {cluster.epoch}, up {cluster.uptime_s:.0f} s: "
        f"{cluster.num_workers} workers, {cluster.num_gateways} gateways, {cluster.num_running} requests run, "
        f"{cluster.num_waiting} wait"
    )
    if workers.workers:
        print("\n" + render([_worker_row(worker) for worker in workers.workers]))
    if pools.pools:
        print("\n" + render([_pool_row(pool) for pool in pools.pools]))
    if requests.requests:
        print("\n" + render([_request_row(request) for request in requests.requests]))
    if cluster.counters:
        print("\n" + "  ".join(f"{name} {count:,}" for name, count in sorted(cluster.counters.items())))


def status_of(address: str | None) -> dict[str, Any]:
    """All that `quire status` knows, as plain values."""
    from google.protobuf.json_format import MessageToDict

    from protos.quire.v1 import admin_pb2 as pb

    admin = Admin(address)
    parts = {
        "cluster": admin.call("GetCluster", pb.GetClusterRequest()),
        "workers": admin.call("ListWorkers", pb.ListWorkersRequest()),
        "pools": admin.call("ListPools", pb.ListPoolsRequest()),
        "requests": admin.call("ListRequests", pb.ListRequestsRequest(limit=50)),
    }
    return {name: MessageToDict(part, preserving_proto_field_name=True) for name, part in parts.items()}


def _worker_row(worker: Any) -> dict[str, Any]:
    return {
        "worker": worker.name,
        "model": worker.model,
        "node": worker.node[:8],
        "state": "drains" if worker.draining else "serves",
        "sequences": f"{worker.num_sequences} of {worker.max_batch}",
        "steps": worker.steps,
        "step ms": worker.step_s * 1e3,
        "dry": worker.dry_leases,
        "heard s": worker.silent_s,
    }


def _pool_row(pool: Any) -> dict[str, Any]:
    return {
        "pool": pool.name,
        "kind": "host" if pool.kind == 2 else "device",
        "blocks": pool.num_blocks,
        "free": pool.num_free,
        "held": pool.num_held,
        "shared": pool.num_shared,
        "cached": pool.num_cached,
        "moving": pool.num_moving,
        "quarantined": pool.num_quarantined,
    }


def _request_row(request: Any) -> dict[str, Any]:
    from protos.quire.v1 import admin_pb2 as pb

    return {
        "request": request.request_id[-24:],
        "tenant": request.tenant or "-",
        "state": pb.RequestState.Name(request.state).removeprefix("REQUEST_STATE_").lower(),
        "prompt": request.prompt_tokens,
        "output": request.output_tokens,
        "blocks": request.num_blocks,
        "worker": request.worker or "-",
        "why": request.reason,
    }


def blocks(
    request: Annotated[str, typer.Argument(help="The id of a request, or its end.")], address: AddressOption = None
) -> None:
    """The block tables of a request: logical block -> physical block, with how many tables hold each."""
    from protos.quire.v1 import admin_pb2 as pb

    answer = Admin(address).call("DescribeRequest", pb.DescribeRequestRequest(request_id=request))
    state = pb.RequestState.Name(answer.request.state).removeprefix("REQUEST_STATE_").lower()
    print(
        f"request {answer.request.request_id}: {state}, attempt {answer.attempt}, {answer.cached_tokens} cached tokens"
    )
    if answer.request.reason:
        print(f"  {answer.request.reason}")
    for sequence in answer.sequences:
        print(
            f"  [{sequence.index}] {sequence.length} tokens, {sequence.position} written, leave to "
            f"{sequence.lease_end}, on {sequence.pool or sequence.host_pool or 'no worker'}"
        )
        pairs = zip(sequence.blocks, sequence.holders, strict=True)
        shown = [f"{block}" + (f"x{holders}" if holders > 1 else "") for block, holders in pairs]
        print(
            "      " + (" ".join(shown) or " ".join(f"host {block}" for block in sequence.host_blocks) or "no blocks")
        )


def drain(
    worker: Annotated[str, typer.Argument(help="The worker's name, as `quire status` shows it.")],
    undo: Annotated[bool, typer.Option("--undo", help="Let it take work again.")] = False,
    address: AddressOption = None,
) -> None:
    """Move everything off a worker and give it nothing new."""
    from protos.quire.v1 import admin_pb2 as pb

    answer = Admin(address).call("Drain", pb.DrainRequest(worker=worker, undo=undo))
    print(f"{worker} takes work again" if undo else f"{worker} drains: {answer.num_moving} requests move")


def usage(tenant: Annotated[str, typer.Option(help="Only this tenant.")] = "", address: AddressOption = None) -> None:
    """What each tenant used: requests, tokens and block-seconds."""
    from protos.quire.v1 import admin_pb2 as pb

    answer = Admin(address).call("GetUsage", pb.GetUsageRequest(tenant=tenant))
    rows = [
        {
            "tenant": one.tenant or "-",
            "requests": one.num_requests,
            "prompt": one.prompt_tokens,
            "cached": one.cached_tokens,
            "output": one.output_tokens,
            "device block-s": one.device_block_seconds,
            "host block-s": one.host_block_seconds,
        }
        for one in answer.tenants
    ]
    print(render(rows) if rows else "nothing was used yet")
