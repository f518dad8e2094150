"""One port for the figures of the whole cluster, as Prometheus reads them: GET /metrics.

Runs in the scheduler's process. The scheduler's figures are its own; each gateway is asked for its own over the
internal port of its own, with a short deadline, so that a gateway that hangs costs one line (`up 0`) and
not the scrape. Whoever wants figures elsewhere (`metrics_ray`) collects the same way. It changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable, Collection, Mapping

import grpc.aio

from cluster.errors import AccessDenied, ConfigError
from cluster.links.security import ClusterSecurity
from cluster.serving.door import Door
from cluster.watching.metrics import CONTENT_TYPE, Described, Family, Sample, merged, render
from cluster.watching.metrics_names import SCHEDULER
from protos.quire.v1 import front_pb2 as pb
from protos.quire.v1.front_pb2_grpc import FiguresServiceAsyncStub

log = logging.getLogger(__name__)

GATEWAY_S = 1.0
REQUEST_S = 5.0
MAX_HEAD = 8_192

Collect = Callable[[], Awaitable[list[Family]]]


class ClusterFigures:
    """Collects the families of all processes. `gateways` gives internal addresses by name, as of now; `wanted` names
    those that are to be there."""

    def __init__(
        self,
        own: Callable[[], list[Family]],
        gateways: Callable[[], Mapping[str, str]],
        security: ClusterSecurity,
        wanted: Collection[str] = (),
    ) -> None:
        self._wanted = wanted
        self._own = own
        self._gateways = gateways
        self._security = security
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def collect(self) -> list[Family]:
        addresses = dict(self._gateways())
        for address in self._channels.keys() - addresses.values():
            await self._channels.pop(address).close(None)
        answers = await asyncio.gather(*(self._ask(address) for address in addresses.values()))
        (described,) = [one for one in SCHEDULER if one.name == "up"]
        answered = dict(zip(addresses, [bool(one) for one in answers], strict=True))
        up = _up(described, {"scheduler": True} | dict.fromkeys(self._wanted, False) | answered)
        return merged([[up], self._own(), *answers])

    async def _ask(self, address: str) -> list[Family]:
        if address not in self._channels:
            self._channels[address] = self._security.aio_channel(address, ())
        try:
            stub = FiguresServiceAsyncStub(self._channels[address])
            answer = await stub.GetFigures(
                pb.GetFiguresRequest(), timeout=GATEWAY_S, metadata=self._security.metadata()
            )
        except grpc.aio.AioRpcError as error:
            log.info("the gateway at %s gave no figures: %s", address, error.code().name)
            return []
        return [_family_from(message) for message in answer.families]

    async def close(self) -> None:
        for channel in self._channels.values():
            await channel.close(None)


def _up(described: Described, parts: Mapping[str, bool]) -> Family:
    family = described.family()
    for part, is_up in parts.items():
        family.add(is_up, part=part)
    return family


class FiguresService:
    """A gateway's side: implements quire.v1.FiguresService."""

    def __init__(self, families: Callable[[], list[Family]]) -> None:
        self._families = families

    async def GetFigures(
        self,
        request: pb.GetFiguresRequest,
        context: grpc.aio.ServicerContext[pb.GetFiguresRequest, pb.GetFiguresResponse],
    ) -> pb.GetFiguresResponse:
        response = pb.GetFiguresResponse()
        for family in self._families():
            message = response.families.add(name=family.name, kind=family.kind, help=family.help)
            for sample in family.samples:
                labels = [text for pair in sample.labels for text in pair]
                message.samples.add(suffix=sample.suffix, labels=labels, value=sample.value)
        return response


def _family_from(message: pb.MetricFamily) -> Family:
    family = Family(message.name, message.kind, message.help)  # type: ignore[arg-type]
    for sample in message.samples:
        flat = list(sample.labels)
        labels = tuple(zip(flat[::2], flat[1::2], strict=True))
        family.samples.append(Sample(sample.suffix, labels, sample.value))
    return family


async def serve_metrics(door: Door, collect: Collect) -> asyncio.Server:
    """Listens; `asyncio.Server.sockets` has the port. Names of tenants are among the figures, so where the door takes
    tokens one with the right of operators is asked for. Raises `ConfigError` if the port is taken or lies open."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(REQUEST_S):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(await _response(head, door, collect))
                await writer.drain()
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # A client that does not know how to ask, or has gone.
        finally:
            writer.close()

    door.check()
    try:
        return await asyncio.start_server(answer, door.host, door.port, limit=MAX_HEAD, ssl=_tls(door))
    except OSError as error:
        detail = f"metrics port {door.port} on {door.host} is taken; free it, or give another with --metrics-port"
        raise ConfigError(detail) from error


def _tls(door: Door) -> ssl.SSLContext | None:
    if door.tls is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(door.tls.certificate, door.tls.key)
    return context


async def _response(head: bytes, door: Door, collect: Collect) -> bytes:
    words = head.split(b" ", 2)
    try:
        door.tokens.caller(_authorization(head)).require("admin")
    except AccessDenied as error:
        log.warning("the figures were refused to somebody: %s", error)
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
