"""A gateway's process: its models' texts, its link to the scheduler, the intake of tokens, and its public port.

Hosted by a Ray actor (`cluster/lifecycle/actors.py`). The intake listens on a port of its own on the internal side;
workers are told where through the scheduler's directory. A second one answers who asks for figures.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

import grpc.aio

from cluster.errors import ConfigError
from cluster.gateway.front_link import FrontLink, LinkSettings
from cluster.gateway.front_tokens import TokenIntake
from cluster.gateway.gateway import Gateway
from cluster.gateway.models import TextModel
from cluster.gateway.server import GatewayServer
from cluster.gateway.settings import GatewaySettings
from cluster.messages import Tokens
from cluster.serving.inside import Inside
from cluster.watching.metrics import Family
from cluster.watching.metrics_serve import FiguresService
from cluster.watching.tracing import Tracer
from protos.quire.v1.front_pb2_grpc import add_FiguresServiceServicer_to_server
from worker.model.checkpoint import find_folder

if TYPE_CHECKING:
    from cluster.gateway.http.server import HttpServer

INTERNAL_OPTIONS: list[tuple[str, int]] = [
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.so_reuseport", 0),
]


def load_text(model: str) -> TextModel:
    return TextModel.load(model, find_folder(model))


async def serve_gateway(
    settings: GatewaySettings,
    models: Sequence[str],
    find: Callable[[], Awaitable[str]],
    on_address: Callable[[str], None],
    inside: Inside,
    tracer: Tracer | None = None,
) -> None:
    """Serves until cancelled. `find` gives the scheduler's address; `on_address` gets the public one."""
    texts = {model: load_text(model) for model in models}
    security = inside.security

    def feed(tokens: Sequence[Tokens]) -> None:
        # The gateway is made with a link that tells where the intake is, so the intake is there first.
        gateway.feed(tokens)

    intake = TokenIntake(feed)
    internal = grpc.aio.server(options=INTERNAL_OPTIONS, interceptors=[security.aio_interceptor()])
    figures_address = inside.address(security.serve(internal, inside.address(0)))
    addresses = await intake.listen(inside), figures_address
    link = FrontLink(LinkSettings(settings.name, settings.incarnation, *addresses, find, security))
    gateway = Gateway(settings, link, texts, tracer, load_text)

    def families() -> list[Family]:
        num_open = gateway.num_open
        return gateway.watch.metrics.families(num_open, gateway.is_connected, gateway.num_stale)

    add_FiguresServiceServicer_to_server(FiguresService(families), internal)
    await internal.start()
    server = GatewayServer(gateway)
    await server.start()
    http = _http_door(gateway)
    if http is not None:
        await http.start()
    on_address(inside.reachable(settings.host, server.port))
    try:
        await server.wait()
    finally:
        await server.stop()
        if http is not None:
            await http.stop()
        intake.close()
        await internal.stop(None)


def _http_door(gateway: Gateway) -> HttpServer | None:
    """None where none is asked for; its packages are an extra."""
    if not gateway.settings.http_port:
        return None
    try:
        from cluster.gateway.http.server import HttpServer
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"the HTTP door needs {error.name}: pip install 'quire[http]', or give --http-port 0"
        ) from error
    return HttpServer(gateway, gateway.settings.http_port, must_be=True)
