"""The scheduler's process: control streams, gateways' streams and the admin door around one host.

Control streams, gateways' streams and the admin door listen on ports of their own; the internal ones may be any free
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
from cluster.gateway.front import ServedModel
from cluster.serving.admin import AdminServer, Wanted
from cluster.serving.control_server import ControlServer, Peer
from cluster.serving.door import Door, public_options
from cluster.serving.front_server import FrontServer
from cluster.serving.host import SchedulerHost, tune_collector
from cluster.serving.inside import Inside
from cluster.settings import SchedulerSettings
from cluster.watching.metrics_scheduler import scheduler_families
from cluster.watching.metrics_serve import ClusterFigures, Collect, serve_metrics
from protos.quire.v1 import admin_pb2
from protos.quire.v1.front_pb2_grpc import add_FrontServiceServicer_to_server

log = logging.getLogger(__name__)

Mirror: TypeAlias = Callable[[Collect], Coroutine[Any, Any, None]]

KEEPALIVE: list[tuple[str, int]] = [
    ("grpc.max_send_message_length", 256 << 20),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
]
SERVER_OPTIONS: list[tuple[str, int]] = [
    ("grpc.max_receive_message_length", 256 << 20),
    ("grpc.so_reuseport", 0),
    *KEEPALIVE,
]
MAX_ADMIN_BYTES = 1 << 20
MAX_OPERATORS = 1_024
"""Connections at the admin door."""


STEP_S = 20.0
"""A worker that has finished no step for so long is not ready. An idle one makes a step of its own every 5 seconds."""


def served_models(host: SchedulerHost, control: ControlServer) -> tuple[ServedModel, ...]:
    """Each model with its replicas. Ready: one of them takes work and has finished a step lately."""
    by_model: dict[str, list[str]] = {}
    scheduler, peers = host.scheduler, control.peers
    for replica in scheduler.replicas.values():
        # A model that is being unloaded is not served any more, though what it was asked before goes on.
        if replica.joined.model not in scheduler.admission.closed:
            by_model.setdefault(replica.joined.model, []).append(replica.name)
    models = []
    for model, names in by_model.items():
        replicas = [scheduler.replicas[name] for name in names]
        taking = [peers[name] for name in names if not scheduler.replicas[name].is_draining and name in peers]
        is_ready = any(host.now - peer.stepped_at <= STEP_S for peer in taking)
        models.append(
            ServedModel(
                model,
                is_ready,
                "" if is_ready else _why_not(taking),
                len(names),
                replicas[0].block_size,
                max(replica.joined.max_model_len for replica in replicas),
                replicas[0].joined.digest,
            )
        )
    return tuple(models)


def _why_not(taking: list[Peer]) -> str:
    if not taking:
        return "all of its workers drain or are silent"
    return f"none of its {len(taking)} workers has finished a step for {STEP_S:g} s"


@dataclass(frozen=True, slots=True)
class Doors:
    """Where the scheduler's process listens. Ports may be 0: any."""

    inside: Inside
    admin: Door
    metrics: Door


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
    shell = SchedulerHost(settings, epoch, writer)
    tune_collector()
    control = ControlServer(shell, silence_s)
    front = FrontServer(
        shell, lambda: served_models(shell, control), control.announce, hash_key=hash_key, silence_s=silence_s
    )
    internal = grpc.aio.server(options=SERVER_OPTIONS, interceptors=[inside.security.aio_interceptor()])
    add_FrontServiceServicer_to_server(front, internal)
    internal_port = inside.security.serve(internal, inside.address(0))
    admin = grpc.aio.server(options=[*public_options(MAX_ADMIN_BYTES, MAX_OPERATORS), *KEEPALIVE])
    methods, bodies = AdminServer(shell, control, wanted).methods, Bodies(MAX_ADMIN_BYTES)
    guard = Guard(doors.admin.tokens, "admin", bodies)
    register(admin, admin_pb2.DESCRIPTOR.services_by_name["AdminService"], methods, guard)
    list_services(admin, Guard(None, "admin", bodies), "quire.v1.AdminService")
    bound_port = doors.admin.listen(admin)
    await internal.start()
    await admin.start()
    control_address = await control.listen(inside)
    figures = ClusterFigures(
        lambda: scheduler_families(shell, control, wanted), front.figures_addresses, inside.security, wanted.gateways
    )
    metrics = await serve_metrics(doors.metrics, figures.collect)
    admin_address = inside.reachable(doors.admin.host, bound_port)
    on_address(Addresses(control_address, inside.address(internal_port), admin_address))
    try:
        async with asyncio.TaskGroup() as tasks:
            for forever in (shell.run(), control.watch(), front.watch()):
                tasks.create_task(forever)
            if mirror is not None:
                tasks.create_task(mirror(figures.collect))
    finally:
        if writer is not None:
            writer.close()
        metrics.close()
        await figures.close()
        control.close()
        await internal.stop(None)
        await admin.stop(None)
