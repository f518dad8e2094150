"""The gRPC server of a gateway: ports, TLS, limits, keepalive, and the services behind them.

The process that hosts a gateway starts one and stops it gracefully. The public port speaks quire.v1.InferenceService,
grpc.health.v1 and reflection. It refuses to listen beyond loopback without TLS and tokens.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2

from cluster.gateway.bodies import SMALL_BYTES, Bodies
from cluster.gateway.calls import Guard, list_services, register
from cluster.gateway.gateway import Gateway
from cluster.gateway.health import FRONT_DOOR, Health
from cluster.gateway.service import InferenceService
from cluster.gateway.settings import GatewaySettings
from cluster.serving.connections import ConnectionBound
from cluster.serving.public_port import public_options
from protos.quire.v1 import inference_pb2

log = logging.getLogger(__name__)

WITH_PROMPTS = frozenset(("Generate", "GenerateMany", "Tokenize", "Detokenize", "CachePrefix"))
MIN_CLIENT_PING_S = 5.0
"""Clients that ping more often are told to calm down, as HTTP/2 has it."""


class GatewayServer:
    """Serves a gateway. `port` is known once it has started."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.health = Health(gateway)
        self.port = 0
        self._server: grpc.aio.Server | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Listens. Raises `ConfigError` for a port that is taken, files that are missing, or an unsafe exposure."""
        settings = self.gateway.settings
        server = grpc.aio.server(options=server_options(settings))
        self._register(server)
        self.port = settings.door.listen(server)
        await server.start()
        self._server = server
        loop = asyncio.get_running_loop()
        bound = ConnectionBound(self.port, settings.max_connections_per_machine)
        self._tasks = [loop.create_task(work) for work in (self.gateway.run(), self.health.follow(), bound.watch())]
        for task in self._tasks:
            task.add_done_callback(_report)
        log.info("gateway %s listens on %s:%d", settings.name, settings.host, self.port)

    def _register(self, server: grpc.aio.Server) -> None:
        settings = self.gateway.settings
        front_door = inference_pb2.DESCRIPTOR.services_by_name["InferenceService"]
        bodies = Bodies(settings.max_message_bytes)
        guard = Guard(settings.tokens, "inference", bodies, self._max_bytes)
        register(server, front_door, InferenceService(self.gateway).methods, guard)
        # Health and reflection are asked by load balancers and people who look around; they say nothing of a tenant.
        anyone = Guard(None, "inference", bodies)
        health = health_pb2.DESCRIPTOR.services_by_name["Health"]
        register(server, health, self.health.methods, anyone)
        if settings.reflection:
            list_services(server, anyone, FRONT_DOOR, health.full_name)

    def _max_bytes(self, method: str) -> int:
        return self.gateway.max_body_bytes if method in WITH_PROMPTS else SMALL_BYTES

    async def stop(self, grace_s: float = 10.0) -> None:
        """Takes nothing new, lets what is under way end for `grace_s`, then ends it."""
        if self._server is not None:
            if not await self.gateway.drain(grace_s):
                log.warning("%d requests are cut off by the end of the gateway", self.gateway.num_open)
            await self._server.stop(1.0)
            self._server = None
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.gateway.catalogue.work.close()

    async def wait(self) -> None:
        """Returns when the server has stopped, or raises what ended one of its loops: without them it serves nobody."""
        if self._server is not None:
            stopped = asyncio.ensure_future(self._server.wait_for_termination())
            done, _ = await asyncio.wait((stopped, *self._tasks), return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()


def server_options(settings: GatewaySettings) -> list[tuple[str, int]]:
    return [
        *public_options(settings.max_message_bytes, settings.max_connections),
        # Our own messages are bounded by what fills them.
        ("grpc.max_send_message_length", -1),
        # A peer that died without a word is found out; one that is only silent lives as long as it answers pings.
        ("grpc.keepalive_time_ms", int(settings.keepalive_s * 1000)),
        ("grpc.keepalive_timeout_ms", int(settings.keepalive_s * 1000)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", int(MIN_CLIENT_PING_S * 1000)),
    ]


def _report(task: asyncio.Task[None]) -> None:
    with contextlib.suppress(asyncio.CancelledError):
        if (error := task.exception()) is not None:
            log.critical("the gateway's loop ended by a mistake of ours", exc_info=error)
