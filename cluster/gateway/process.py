"""A gateway's process: its models' texts, its link to the scheduler, the intake of tokens, and its public port.

Hosted by a Ray actor (`cluster/lifecycle/actors.py`). The intake listens on a port of its own on the internal side;
workers are told where through the scheduler's directory.
"""

from __future__ import annotations

import gc
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING

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
from cluster.watching.tracing import Tracer
from worker.model.checkpoint import find_folder

if TYPE_CHECKING:
    from cluster.gateway.http.server import HttpServer


def load_text(name: str, path: str) -> TextModel:
    return TextModel.load(name, find_folder(path))


async def serve_gateway(
    settings: GatewaySettings,
    models: Mapping[str, str],
    where_is: Callable[[str], str],
    find: Callable[[], Awaitable[str]],
    on_address: Callable[[str], None],
    inside: Inside,
    tracer: Tracer | None = None,
    on_link: Callable[[FrontLink], None] = lambda link: None,
) -> None:
    """Serves until cancelled. `models` are paths by name, and `where_is` gives those of others. `find` gives the
    scheduler's address; `on_address` gets the public one, `on_link` the way to the scheduler."""
    texts = {name: load_text(name, path) for name, path in models.items()}

    def feed(tokens: Sequence[Tokens]) -> None:
        # The gateway is made with a link that tells where the intake is, so the intake is there first.
        gateway.feed(tokens)

    def families() -> list[Family]:
        num_open = gateway.num_open
        return gateway.watch.metrics.families(num_open, gateway.is_connected, gateway.num_stale)

    intake = TokenIntake(settings.name, settings.incarnation, feed)
    address = await intake.listen(inside)
    link = FrontLink(LinkSettings(settings.name, settings.incarnation, address, find, inside.security, families))
    on_link(link)
    gateway = Gateway(settings, link, texts, tracer, lambda name: load_text(name, where_is(name)))
    server = GatewayServer(gateway)
    await server.start()
    http = _http_door(gateway)
    if http is not None:
        await http.start()
    # Python's collector need not look again at all that was loaded: every stream would wait while it did.
    gc.collect()
    gc.freeze()
    on_address(inside.reachable(settings.host, server.port))
    try:
        await server.wait()
    finally:
        await server.stop()
        if http is not None:
            await http.stop()
        intake.close()


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
