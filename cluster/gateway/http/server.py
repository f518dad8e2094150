"""The HTTP server of a gateway: uvicorn in the gateway's own loop, with bounded connections.

One that was idle for long is closed. TLS and exposure are those of the gRPC door. Signals stay with the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterator
from dataclasses import replace

import uvicorn

from cluster.errors import ConfigError
from cluster.gateway.gateway import Gateway
from cluster.gateway.http.app import MAX_HEAD_BYTES, HttpDoor
from cluster.serving.auth import is_loopback
from cluster.serving.connections import ConnectionBound, share_of_descriptors
from cluster.serving.http_connections import bound_connections

log = logging.getLogger(__name__)

IDLE_S = 30.0
BACKLOG = 512
PORTS_TO_TRY = 20


class HttpServer:
    """Serves a gateway over HTTP. `port` is known once it has started."""

    def __init__(self, gateway: Gateway, port: int, *, must_be: bool) -> None:
        """`must_be`: this port or none; otherwise the next that is free."""
        self.port = port
        self._gateway = gateway
        self._must_be = must_be
        self._server: _Server | None = None
        self._task: asyncio.Task[None] | None = None
        self._watch: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listens. Raises `ConfigError` for a port that is taken, or an unsafe exposure."""
        settings = self._gateway.settings
        door = replace(settings.door, port=self.port)
        door.check()
        listening = self._bind(settings.host)
        # Connections inherit it. Else a body that is written behind its head waits for its acknowledgement, which
        # clients hold back for 40 ms.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.port = listening.getsockname()[1]
        files = settings.tls
        config = uvicorn.Config(
            HttpDoor(self._gateway, is_public=not is_loopback(settings.host)).app,
            ws="none",
            interface="asgi3",
            # Who asks is who is connected, whatever a head says.
            proxy_headers=False,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=int(IDLE_S),
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
            backlog=BACKLOG,
            ssl_certfile=str(files.certificate) if files is not None else None,
            ssl_keyfile=str(files.key) if files is not None else None,
            ssl_ca_certs=str(files.client_authority) if files is not None and files.client_authority else None,
            ssl_cert_reqs=2 if files is not None and files.client_authority else 0,
        )
        config.load()
        most, most_of_one = settings.max_connections, settings.max_connections_per_machine
        bound_connections(config, share_of_descriptors(most), share_of_descriptors(most_of_one))
        if files is not None:
            # Certificates that are renewed count from the next connection on.
            config.ssl = files.context()
        self._server = _Server(config)
        self._task = asyncio.get_running_loop().create_task(self._server.serve([listening]))
        while not self._server.started:
            if self._task.done():
                self._task.result()
                raise ConfigError(f"the HTTP door on {settings.host}:{self.port} did not start")
            await asyncio.sleep(0.01)
        # The protocol counts connections too, and sees none before its TLS is agreed on.
        bound = ConnectionBound(self.port, settings.max_connections_per_machine)
        self._watch = asyncio.get_running_loop().create_task(bound.watch())
        # One line for each request that is none would be a way to fill a disk.
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
        log.info("gateway %s serves HTTP on %s:%d", settings.name, settings.host, self.port)

    def _bind(self, host: str) -> socket.socket:
        first = self.port
        for port in range(first, first + (1 if self._must_be or not first else PORTS_TO_TRY)):
            try:
                return socket.create_server((host, port), family=_family(host), backlog=BACKLOG)
            except OSError as error:
                why = error
        raise ConfigError(
            f"cannot listen on {host}:{first}: {why}; is the port taken? Give another --http-port"
        ) from why

    async def stop(self) -> None:
        """Takes nothing new; what still runs is cut off. The gateway has drained before."""
        if self._watch is not None:
            self._watch.cancel()
        if self._server is not None and self._task is not None:
            self._server.should_exit = self._server.force_exit = True
            await asyncio.gather(self._task, return_exceptions=True)
            self._server = None


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
