"""What operators may ask and order: the AdminService, answered from the scheduler's own state.

Runs in the scheduler's process and loop, so every answer is of one moment between two turns. It changes nothing itself:
orders go to the scheduler as events.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field

from cluster import __version__
from cluster.centre.ledger import Ledger
from cluster.centre.nouns import Request, State
from cluster.errors import NotFound
from cluster.gateway.calls import Call, Method
from cluster.messages import CloseModel, Drain
from cluster.serving.block_watch import BlockWatch
from cluster.serving.control_server import ControlServer
from cluster.serving.shell import SchedulerShell
from protos.quire.v1 import admin_pb2 as pb

log = logging.getLogger(__name__)

STATES = {
    State.QUEUED: pb.REQUEST_STATE_QUEUED,
    State.PARKED: pb.REQUEST_STATE_PARKED,
    State.RUNNING: pb.REQUEST_STATE_RUNNING,
    State.STOPPING: pb.REQUEST_STATE_STOPPING,
    State.SWAPPING: pb.REQUEST_STATE_SWAPPED,
    State.RESTORING: pb.REQUEST_STATE_SWAPPED,
    State.SEALING: pb.REQUEST_STATE_SEALING,
    State.ENDED: pb.REQUEST_STATE_ENDED,
}
BLOCK_STATES = {
    "free": pb.BLOCK_STATE_FREE,
    "held": pb.BLOCK_STATE_HELD,
    "shared": pb.BLOCK_STATE_SHARED,
    "cached": pb.BLOCK_STATE_CACHED,
    "moving": pb.BLOCK_STATE_MOVING,
    "quarantined": pb.BLOCK_STATE_QUARANTINED,
}
DEFAULT_LIMIT = 1_000
DEFAULT_INTERVAL_S = 0.5
MIN_INTERVAL_S = 0.05
MAX_NOTES = 50
MAX_NAMED = 20


def _no_workers() -> Mapping[str, str]:
    return {}


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the cluster is to have, whatever has died: gateways by name with their addresses, workers by name with
    their models, as of now."""

    gateways: Mapping[str, str] = field(default_factory=dict)
    workers: Callable[[], Mapping[str, str]] = _no_workers

    def missing_workers(self, there: Container[str]) -> list[tuple[str, str]]:
        return [(name, model) for name, model in self.workers().items() if name not in there]


class AdminServer:
    """Answers of one moment, about one scheduler."""

    def __init__(self, shell: SchedulerShell, control: ControlServer, wanted: Wanted) -> None:
        self._shell = shell
        self._control = control
        self._wanted = wanted

    @property
    def methods(self) -> dict[str, Method]:
        """By name, for `gateway_calls.register`."""
        names = [method.name for method in pb.DESCRIPTOR.services_by_name["AdminService"].methods]
        return {name: getattr(self, name) for name in names}

    # -- what there is

    async def GetCluster(self, request: pb.GetClusterRequest, call: Call) -> pb.GetClusterResponse:
        shell, scheduler = self._shell, self._shell.scheduler
        states = [request.state for request in scheduler.requests.values()]
        counters = {**scheduler.counters, "turns": shell.num_turns, "turn microseconds": int(shell.turn_seconds * 1e6)}
        counters["longest turn microseconds"] = int(shell.longest_turn_s * 1e6)
        counters["dry leases"] = sum(replica.num_dry for replica in scheduler.replicas.values())
        return pb.GetClusterResponse(
            epoch=scheduler.epoch,
            version=__version__,
            uptime_s=time.monotonic() - shell.started_at,
            num_running=sum(state is State.RUNNING for state in states),
            num_waiting=sum(state in (State.QUEUED, State.PARKED) for state in states),
            num_workers=len(scheduler.replicas),
            num_gateways=len(shell.gateway_links),
            counters=counters,
            notes=self._notes(),
            gateways=[
                pb.GatewayLink(name=name, address=address, connected=name in shell.gateway_links)
                for name, address in self._wanted.gateways.items()
            ],
        )

    def _notes(self) -> list[pb.Note]:
        notes = self._shell.scheduler.notes
        latest = notes.since(max(0, notes.num_notes - MAX_NOTES))
        now = self._shell.now
        return [
            pb.Note(number=note.number, age_s=now - note.at, kind=note.kind, subject=note.subject, why=note.why)
            for note in latest
        ]

    async def ListWorkers(self, request: pb.ListWorkersRequest, call: Call) -> pb.ListWorkersResponse:
        response = pb.ListWorkersResponse()
        for replica in self._shell.scheduler.replicas.values():
            peer = self._control.peers.get(replica.name)
            response.workers.add(
                name=replica.name,
                incarnation=replica.incarnation,
                node=replica.joined.node,
                model=replica.joined.model,
                draining=replica.is_draining,
                num_sequences=len(replica.residents),
                max_batch=replica.joined.max_batch,
                num_blocks=replica.ledger.num_blocks,
                num_free=replica.ledger.num_available,
                steps=peer.step if peer else 0,
                step_s=peer.step_seconds if peer else 0.0,
                dry_leases=replica.num_dry,
                prefill_waiting=replica.prefill_waiting,
                silent_s=self._control.silent_s(replica.name),
            )
        for name, model in self._wanted.missing_workers(self._shell.scheduler.replicas):
            response.missing.add(name=name, model=model)
        return response

    async def ListPools(self, request: pb.ListPoolsRequest, call: Call) -> pb.ListPoolsResponse:
        response = pb.ListPoolsResponse()
        scheduler = self._shell.scheduler
        for replica in scheduler.replicas.values():
            pool = response.pools.add(
                name=replica.name,
                kind=pb.POOL_KIND_DEVICE,
                node=replica.joined.node,
                block_size=replica.block_size,
                block_bytes=replica.joined.block_bytes,
                num_pinned=sum(map(len, replica.pins.values())),
            )
            _count(pool, replica.ledger)
        for host in scheduler.pools.values():
            pool = response.pools.add(
                name=host.name, kind=pb.POOL_KIND_HOST, node=host.joined.node, block_bytes=host.joined.block_bytes
            )
            _count(pool, host.ledger)
        return response

    # -- requests

    async def ListRequests(self, request: pb.ListRequestsRequest, call: Call) -> pb.ListRequestsResponse:
        wanted = [
            known
            for known in self._shell.scheduler.requests.values()
            if (not request.states or STATES[known.state] in request.states)
            and (not request.tenant or known.tenant.name == request.tenant)
        ]
        limit = request.limit or DEFAULT_LIMIT
        response = pb.ListRequestsResponse(num_left_out=max(0, len(wanted) - limit))
        response.requests.extend(self._summary(known) for known in wanted[:limit])
        return response

    def _summary(self, request: Request) -> pb.RequestSummary:
        waits = request.state in (State.QUEUED, State.PARKED)
        waited = self._shell.now - request.queued_at if waits else 0.0
        return pb.RequestSummary(
            request_id=request.request_id,
            tenant=request.tenant.name,
            model=request.model,
            state=STATES[request.state],
            priority=request.priority,
            prompt_tokens=len(request.prompt),
            output_tokens=sum(len(sequence.outputs) for sequence in request.sequences),
            num_sequences=len(request.sequences),
            worker=request.replica.name if request.replica else "",
            gateway=request.gateway,
            preemptions=request.preemptions,
            queue_s=request.queue_seconds + waited,
            num_blocks=len({block for sequence in request.sequences for block in sequence.table}),
            reason=self._shell.scheduler.admission.why_waiting(request) if waits else request.why_preempted,
        )

    async def DescribeRequest(self, request: pb.DescribeRequestRequest, call: Call) -> pb.DescribeRequestResponse:
        known = self._find(request.request_id, request.tenant)
        if known is None:
            raise NotFound(f"no request {request.request_id} is under way; `quire status` lists those that are")
        response = pb.DescribeRequestResponse(
            request=self._summary(known),
            attempt=known.attempt,
            block_seconds=known.block_seconds,
            cached_tokens=known.cached_tokens,
        )
        for sequence in known.sequences:
            replica = known.replica
            response.sequences.add(
                index=sequence.index,
                position=sequence.position,
                length=sequence.length,
                lease_end=sequence.lease_end,
                pool=replica.name if replica else "",
                blocks=sequence.table,
                holders=[replica.ledger.holders(block) for block in sequence.table] if replica else [],
                host_blocks=sequence.host_table,
                host_pool=known.host.name if known.host else "",
            )
        return response

    def _find(self, request_id: str, tenant: str) -> Request | None:
        """By the whole id, or by the client's part of it where that names one request."""
        requests = self._shell.scheduler.requests
        if request_id in requests:
            return requests[request_id]
        ends = [
            known
            for name, known in requests.items()
            if name.endswith(request_id) and (not tenant or known.tenant.name == tenant)
        ]
        return ends[0] if len(ends) == 1 else None

    # -- the memory map

    async def WatchBlocks(self, request: pb.WatchBlocksRequest, call: Call) -> None:
        """Whole maps first, then what changed, at most once per interval."""
        interval_s = max(MIN_INTERVAL_S, request.interval_s or DEFAULT_INTERVAL_S)
        watch = BlockWatch(self._shell.scheduler, BLOCK_STATES, request.pools, request.with_owners)
        while True:
            news = watch.news()
            if news is not None:
                await call.write(news)
            await asyncio.sleep(interval_s)

    # -- orders

    async def Drain(self, request: pb.DrainRequest, call: Call) -> pb.DrainResponse:
        replica = self._shell.scheduler.replicas.get(request.worker)
        if replica is None:
            known = ", ".join(self._shell.scheduler.replicas) or "none"
            raise NotFound(f"no worker {request.worker} is here; there is {known}")
        log.info("%s: %s is to %s", _who(call), request.worker, "take work again" if request.undo else "drain")
        num_moving = len(replica.requests)
        self._shell.post(Drain(request.worker, not request.undo))
        return pb.DrainResponse(num_moving=0 if request.undo else num_moving)

    async def CloseModel(self, request: pb.CloseModelRequest, call: Call) -> pb.CloseModelResponse:
        scheduler = self._shell.scheduler
        models = sorted({replica.joined.model for replica in scheduler.replicas.values()})
        if request.model not in models:
            known = ", ".join(models) or "none"
            raise NotFound(f"no model {request.model} is served; there is {known}")
        if request.undo is (request.model in scheduler.boards.closed):
            log.info("%s: model %s is to %s", _who(call), request.model, "open" if request.undo else "close")
        self._shell.post(CloseModel(request.model, not request.undo))
        num_open = sum(known.model == request.model for known in scheduler.requests.values())
        return pb.CloseModelResponse(num_open=num_open)

    async def GetUsage(self, request: pb.GetUsageRequest, call: Call) -> pb.GetUsageResponse:
        response = pb.GetUsageResponse()
        known = [tenant.name for tenant in self._shell.scheduler.tenants]
        if request.tenant and request.tenant not in known:
            listed = ", ".join(known[:MAX_NAMED]) or "none"
            raise NotFound(f"no tenant {request.tenant} has used anything; there is {listed}")
        for tenant in self._shell.scheduler.tenants:
            if not request.tenant or tenant.name == request.tenant:
                response.tenants.add(
                    tenant=tenant.name,
                    num_requests=tenant.num_requests,
                    prompt_tokens=tenant.prompt_tokens,
                    cached_tokens=tenant.cached_tokens,
                    output_tokens=tenant.output_tokens,
                    device_block_seconds=tenant.block_seconds,
                    host_block_seconds=tenant.host_block_seconds,
                )
        return response


def _who(call: Call) -> str:
    return f"ordered by {call.caller.tenant} at {call.machine}"


def _count(pool: pb.Pool, ledger: Ledger) -> None:
    counts = ledger.counts()
    pool.num_blocks = ledger.num_blocks
    pool.num_free, pool.num_held, pool.num_cached = counts.free, counts.held, counts.cached
    pool.num_moving, pool.num_quarantined = counts.moving, counts.quarantined
    pool.num_shared = ledger.num_shared
