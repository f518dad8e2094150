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

from cluster.gateway.calls import list_services, register
from cluster.gateway.gateway import Gateway
from cluster.gateway.health import FRONT_DOOR, Health
from cluster.gateway.service import InferenceService
from cluster.gateway.settings import GatewaySettings
from cluster.serving.auth import TokenBook
from protos.quire.v1 import inference_pb2

log = logging.getLogger(__name__)

MIN_CLIENT_PING_S = 5.0
"""Clients that ping more often are told to calm down, as HTTP/2 has it."""

_ANYONE = TokenBook()
"""Health and reflection are asked by load balancers and people who look around; they say nothing of a tenant."""


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
        self._tasks = [loop.create_task(self.gateway.run()), loop.create_task(self.health.follow())]
        for task in self._tasks:
            task.add_done_callback(_report)
        log.info("gateway %s listens on %s:%d", settings.name, settings.host, self.port)

    def _register(self, server: grpc.aio.Server) -> None:
        settings = self.gateway.settings
        front_door = inference_pb2.DESCRIPTOR.services_by_name["InferenceService"]
        register(server, front_door, InferenceService(self.gateway).methods, settings.tokens, "inference")
        health = health_pb2.DESCRIPTOR.services_by_name["Health"]
        register(server, health, self.health.methods, _ANYONE, "inference")
        if settings.reflection:
            list_services(server, FRONT_DOOR, health.full_name)

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

    async def wait(self) -> None:
        """Returns when the server has stopped."""
        if self._server is not None:
            await self._server.wait_for_termination()


def server_options(settings: GatewaySettings) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        # Our own messages are bounded by what fills them.
        ("grpc.max_send_message_length", -1),
        # Two servers must never share a port and take each other's calls.
        ("grpc.so_reuseport", 0),
        # A peer that died without a word is found out; one that is only silent lives as long as it answers pings.
        ("grpc.keepalive_time_ms", int(settings.keepalive_s * 1000)),
        ("grpc.keepalive_timeout_ms", int(settings.keepalive_s * 1000)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", int(MIN_CLIENT_PING_S * 1000)),
        # A bound on calls of one connection that refuses nothing which the gateway itself would take.
        ("grpc.max_concurrent_streams", 2 * settings.max_open + 1_000),
    ]


def _report(task: asyncio.Task[None]) -> None:
    with contextlib.suppress(asyncio.CancelledError):
        if (error := task.exception()) is not None:
            log.critical("the gateway's loop ended by a mistake of ours", exc_info=error)
