"""The scheduler's process: links to workers and host pools, links to gateways and the admin door around one host.

Both kinds of links and the admin door listen on ports of their own; the internal ones may be any free
ports, since whoever needs them asks `RayState`. A scheduler that makes a mistake ends its process: Ray starts the next,
which rebuilds.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import grpc
import grpc.aio

from cluster.centre.journal import JournalWriter
from cluster.gateway.bodies import Bodies
from cluster.gateway.calls import Guard, list_services, register
from cluster.serving.admin import AdminServer, Wanted
from cluster.serving.connections import ConnectionBound
from cluster.serving.control_server import ControlServer, LivePeer
from cluster.serving.front_server import FrontServer
from cluster.serving.inside import Inside
from cluster.serving.public_port import PublicPort, public_options
from cluster.serving.shell import SchedulerShell, tune_collector
from cluster.settings import SchedulerSettings
from cluster.watching.metrics_scheduler import scheduler_families
from cluster.watching.metrics_serve import ClusterFigures, Collect, serve_metrics
from cluster.wire.gateways import ServedModel
from protos.quire.v1 import admin_pb2

log = logging.getLogger(__name__)

Mirror: TypeAlias = Callable[[Collect], Coroutine[Any, Any, None]]

KEEPALIVE: list[tuple[str, int]] = [
    ("grpc.max_send_message_length", 256 << 20),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
]
MAX_ADMIN_BYTES = 1 << 20
MAX_OPERATORS, MAX_OPERATORS_OF_MACHINE, MAX_SCRAPERS_OF_MACHINE = 1_024, 256, 64
"""Connections at the admin door, and there and at that of the figures those of one machine."""


STEP_S = 20.0
"""A worker that has finished no step for so long is not ready. An idle one makes a step of its own every 5 seconds."""


def served_models(shell: SchedulerShell, control: ControlServer) -> tuple[ServedModel, ...]:
    """Each model with its replicas. Ready: one of them takes work and has finished a step lately. A model whose
    replicas are all lost is served on: what is asked of it waits."""
    boards, peers, models = shell.scheduler.boards, control.peers, []
    for model in boards.names():
        board, replicas = boards.of(model), boards.replicas_of(model)
        # A model that is being unloaded is not served any more, though what it was asked before goes on.
        if model in boards.closed:
            continue
        taking = [peers[one.name] for one in replicas if not one.is_draining and one.name in peers]
        is_ready = any(shell.now - peer.stepped_at <= STEP_S for peer in taking)
        longest = max((replica.joined.max_model_len for replica in replicas), default=0)
        detail = "" if is_ready else _why_not(taking) if replicas else "none of its workers is here"
        models.append(ServedModel(model, is_ready, detail, len(replicas), board.block_size, longest, board.digest))
    return tuple(models)


def _why_not(taking: list[LivePeer]) -> str:
    if not taking:
        return "all of its workers drain or are silent"
    return f"none of its {len(taking)} workers has finished a step for {STEP_S:g} s"


@dataclass(frozen=True, slots=True)
class Doors:
    """Where the scheduler's process listens. Ports may be 0: any."""

    inside: Inside
    admin: PublicPort
    metrics: PublicPort


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the scheduler is found: by workers and host pools, by gateways, by operators."""

    control: str
    front: str
    admin: str


async def serve_scheduler(
    settings: SchedulerSettings,
    epoch: int,
    *,
    doors: Doors,
    hash_key: bytes,
    silence_s: float,
    journal: Path | None,
    on_address: Callable[[Addresses], None],
    wanted: Wanted | None = None,
    mirror: Mirror | None = None,
) -> None:
    """Serves until cancelled. `on_address` is called once all of them listen."""
    inside = doors.inside
    wanted = wanted or Wanted()
    writer = JournalWriter(journal, settings, epoch) if journal is not None else None
    shell = SchedulerShell(settings, epoch, writer)
    tune_collector()
    control = ControlServer(shell, silence_s)
    front = FrontServer(
        shell, lambda: served_models(shell, control), control.announce, hash_key=hash_key, silence_s=silence_s
    )
    admin = grpc.aio.server(options=[*public_options(MAX_ADMIN_BYTES, MAX_OPERATORS), *KEEPALIVE])
    methods, bodies = AdminServer(shell, control, wanted).methods, Bodies(MAX_ADMIN_BYTES)
    guard = Guard(doors.admin.tokens, "admin", bodies)
    register(admin, admin_pb2.DESCRIPTOR.services_by_name["AdminService"], methods, guard)
    list_services(admin, Guard(None, "admin", bodies), "quire.v1.AdminService")
    bound_port = doors.admin.listen(admin)
    await admin.start()
    control_address, front_address = await control.listen(inside), await front.listen(inside)
    figures = ClusterFigures(lambda: scheduler_families(shell, control, wanted), front.figures, wanted.gateways)
    metrics = await serve_metrics(doors.metrics, figures.collect)
    admin_address = inside.reachable(doors.admin.host, bound_port)
    on_address(Addresses(control_address, front_address, admin_address))
    try:
        async with asyncio.TaskGroup() as tasks:
            bounds = (
                ConnectionBound(bound_port, MAX_OPERATORS_OF_MACHINE),
                ConnectionBound(metrics.sockets[0].getsockname()[1], MAX_SCRAPERS_OF_MACHINE),
            )
            for forever in (shell.run(), control.watch(), front.watch(), *(bound.watch() for bound in bounds)):
                tasks.create_task(forever)
            if mirror is not None:
                tasks.create_task(mirror(figures.collect))
    finally:
        if writer is not None:
            writer.close()
        metrics.close()
        control.close()
        front.close()
        await admin.stop(None)
