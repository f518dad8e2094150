"""One port for the figures of the whole cluster, as Prometheus reads them: GET /metrics.

Runs in the scheduler's process. The scheduler's figures are its own; each gateway is asked for its own over its link,
with a short deadline, so that a gateway that hangs costs one line (`up 0`) and not the scrape. Whoever wants figures
elsewhere (`metrics_ray`) collects the same way. It changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping

from cluster.errors import AccessDenied, ConfigError
from cluster.serving.public_port import PublicPort
from cluster.serving.refused import refused
from cluster.watching.metrics import CONTENT_TYPE, Described, Family, merged, render
from cluster.watching.metrics_names import SCHEDULER

log = logging.getLogger(__name__)

REQUEST_S = 5.0
MAX_HEAD = 8_192

Collect = Callable[[], Awaitable[list[Family]]]


class ClusterFigures:
    """Collects the families of all processes. `gateways` asks all that are there, and gives what each said by name, or
    nothing; `wanted` names those that are to be there."""

    def __init__(
        self,
        own: Callable[[], list[Family]],
        gateways: Callable[[], Awaitable[Mapping[str, list[Family]]]],
        wanted: Collection[str] = (),
    ) -> None:
        self._wanted = wanted
        self._own = own
        self._gateways = gateways

    async def collect(self) -> list[Family]:
        told = await self._gateways()
        for name, families in told.items():
            if not families:
                log.info("gateway %s gave no figures", name)
        (described,) = [one for one in SCHEDULER if one.name == "up"]
        answered = {name: bool(families) for name, families in told.items()}
        up = _up(described, {"scheduler": True} | dict.fromkeys(self._wanted, False) | answered)
        return merged([[up], self._own(), *told.values()])


def _up(described: Described, parts: Mapping[str, bool]) -> Family:
    family = described.family()
    for part, is_up in parts.items():
        family.add(is_up, part=part)
    return family


async def serve_metrics(door: PublicPort, collect: Collect) -> asyncio.Server:
    """Listens; `asyncio.Server.sockets` has the port. Names of tenants are among the figures, so where the door takes
    tokens one with the right of operators is asked for. Raises `ConfigError` if the port is taken or lies open."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(REQUEST_S):
                head = await reader.readuntil(b"\r\n\r\n")
                machine = (writer.get_extra_info("peername") or ("",))[0]
                writer.write(await _response(head, door, collect, machine))
                await writer.drain()
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # A client that does not know how to ask, or has gone.
        finally:
            writer.close()

    door.check()
    try:
        tls = None if door.tls is None else door.tls.context()
        wait_s = None if tls is None else REQUEST_S
        return await asyncio.start_server(
            answer, door.host, door.port, limit=MAX_HEAD, ssl=tls, ssl_handshake_timeout=wait_s
        )
    except OSError as error:
        detail = f"metrics port {door.port} on {door.host} is taken; free it, or give another with --metrics-port"
        raise ConfigError(detail) from error


async def _response(head: bytes, door: PublicPort, collect: Collect, machine: str) -> bytes:
    words = head.split(b" ", 2)
    try:
        door.tokens.caller(_authorization(head)).require("admin")
    except AccessDenied as error:
        refused.note("a scrape of figures", machine, str(error))
        status, kind, body = "401 Unauthorized", "text/plain", f"{error}\n".encode()
    else:
        if words[:2] == [b"GET", b"/metrics"]:
            status, kind, body = "200 OK", CONTENT_TYPE, render(await collect()).encode()
        elif words[0] == b"GET":
            status, kind, body = "404 Not Found", "text/plain", b"the figures are at /metrics\n"
        else:
            status, kind, body = "405 Method Not Allowed", "text/plain", b"only GET is answered\n"
    told = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return told.encode() + body


def _authorization(head: bytes) -> str | None:
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"authorization":
            return value.strip().decode(errors="replace")
    return None
