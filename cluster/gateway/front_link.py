"""A gateway's stream to the scheduler: events up, orders down, over connections that come and go.

It implements `SchedulerLink` over gRPC. Events are numbered and kept until the scheduler has taken them; after a broken
connection both ends send what the other lacks. A new scheduler, or one that had given this gateway up, starts from
nothing, and the gateway is told so. It decides nothing and keeps no request.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass

import grpc
import grpc.aio

from cluster.errors import ProtocolError, Unavailable
from cluster.gateway.front import MAX_EVENTS, Connected, Disconnected, Order, ServedModel, ServedModels
from cluster.links.security import ClusterSecurity
from cluster.messages import Adopt, Pin, Submit
from cluster.wire.front import FrontEvent, fill_event, notice_from
from protos import NEWEST_PROTOCOL, OLDEST_PROTOCOL
from protos.quire.v1 import front_pb2 as pb
from protos.quire.v1.front_pb2_grpc import FrontServiceAsyncStub

log = logging.getLogger(__name__)

RETRY_S = 0.2
CONNECT_S = 5.0
MAX_BATCH = 512
"""Events of one message."""

Stream = grpc.aio.StreamStreamCall[pb.AttachRequest, pb.AttachResponse]


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """Who this gateway is, and how it reaches the scheduler. `find` is asked anew for each connection."""

    gateway: str
    incarnation: int
    token_address: str
    figures_address: str
    find: Callable[[], Awaitable[str]]
    security: ClusterSecurity
    options: Sequence[tuple[str, int]] = ()


class FrontLink:
    """`orders` runs the link: it connects when it is first read, and closes when its reader is cancelled."""

    def __init__(self, settings: LinkSettings) -> None:
        self._settings = settings
        self._epoch = 0
        # The last notice taken, and the last event's number.
        self._taken = 0
        self._number = 0
        self._waiting: deque[FrontEvent] = deque()
        self._untaken: deque[tuple[int, FrontEvent]] = deque()
        self._news = asyncio.Event()
        self._silence_s = CONNECT_S
        self._heard_at = 0.0

    def send(self, event: FrontEvent) -> None:
        num = len(self._waiting) + len(self._untaken)
        if num >= MAX_EVENTS and isinstance(event, Submit | Adopt | Pin):
            raise Unavailable(f"the scheduler is away, and {num:,} events wait for it", 1.0)
        self._waiting.append(event)
        self._news.set()

    async def orders(self) -> AsyncIterator[Sequence[Order]]:
        while True:
            try:
                address = await self._settings.find()
                async with self._settings.security.aio_channel(address, self._settings.options) as channel:
                    async for batch in self._converse(channel):
                        yield batch
                detail = "it closed the stream"
            except grpc.aio.AioRpcError as error:
                detail = f"{error.code().name}: {error.details()}"
            except (OSError, TimeoutError, ProtocolError, Unavailable) as error:
                detail = str(error) or type(error).__name__
            yield (Disconnected(detail),)
            await asyncio.sleep(RETRY_S)

    async def _converse(self, channel: grpc.aio.Channel) -> AsyncIterator[Sequence[Order]]:
        settings = self._settings
        stream = FrontServiceAsyncStub(channel).Attach(None, metadata=settings.security.metadata())
        hello = pb.GatewayHello(
            gateway=settings.gateway,
            incarnation=settings.incarnation,
            token_address=settings.token_address,
            figures_address=settings.figures_address,
            epoch=self._epoch,
            oldest_protocol=OLDEST_PROTOCOL,
            newest_protocol=NEWEST_PROTOCOL,
        )
        await stream.write(pb.AttachRequest(hello=hello, taken=self._taken))
        async with asyncio.timeout(CONNECT_S):
            first = await self._read(stream)
        if first is None or not first.HasField("welcome"):
            raise ProtocolError("the scheduler's first word was no welcome")
        yield (self._begin(first),)
        writer = asyncio.create_task(self._write(stream))
        try:
            while True:
                # Not `wait_for`, which may swallow the end of the task that reads here.
                async with asyncio.timeout(self._silence_s):
                    response = await self._read(stream)
                if response is None:
                    return
                batch = self._orders_of(response)
                if batch:
                    yield batch
        finally:
            writer.cancel()
            stream.cancel()
            await asyncio.gather(writer, return_exceptions=True)

    async def _read(self, stream: Stream) -> pb.AttachResponse | None:
        response = await stream.read()
        return response if isinstance(response, pb.AttachResponse) else None

    def _begin(self, first: pb.AttachResponse) -> Connected:
        """Where both numberings stand after the welcome."""
        welcome = first.welcome
        if not OLDEST_PROTOCOL <= welcome.protocol <= NEWEST_PROTOCOL:
            raise ProtocolError(f"the scheduler speaks protocol {welcome.protocol}; install the same Quire on both")
        self._silence_s = welcome.silence_s or CONNECT_S
        if welcome.epoch != self._epoch or welcome.wants_state or welcome.was_lost:
            # What was sent to another life of the scheduler means nothing to this one.
            self._epoch, self._taken, self._number = welcome.epoch, 0, 0
            self._waiting.clear()
            self._untaken.clear()
        else:
            self._forget_taken(first.taken)
            self._waiting.extendleft(event for _, event in reversed(self._untaken))
            self._untaken.clear()
            self._number = first.taken
        self._news.set()
        log.info("the scheduler of epoch %d is there", welcome.epoch)
        return Connected(welcome.epoch, welcome.wants_state, welcome.hash_key, welcome.was_lost)

    def _orders_of(self, response: pb.AttachResponse) -> list[Order]:
        self._forget_taken(response.taken)
        batch: list[Order] = []
        if response.HasField("models"):
            batch.append(ServedModels(tuple([_model_from(model) for model in response.models.models])))
        first = response.number - len(response.notices) + 1
        if response.notices and first > self._taken + 1:
            raise ProtocolError(f"notices jump from {self._taken} to {first}")
        for number, notice in enumerate(response.notices, first):
            if number > self._taken:
                batch.append(notice_from(notice))
        if response.notices:
            self._taken = max(self._taken, response.number)
        return batch

    def _forget_taken(self, taken: int) -> None:
        while self._untaken and self._untaken[0][0] <= taken:
            self._untaken.popleft()

    async def _write(self, stream: Stream) -> None:
        """Sends what waits; while nothing does, a word of life before the scheduler grows impatient."""
        while True:
            try:
                await asyncio.wait_for(self._news.wait(), self._silence_s / 4)
            except TimeoutError:
                pass
            self._news.clear()
            request = pb.AttachRequest(taken=self._taken)
            now = time.monotonic()
            while self._waiting and len(request.events) < MAX_BATCH:
                event = self._waiting.popleft()
                self._number += 1
                self._untaken.append((self._number, event))
                fill_event(request.events.add(), event, now)
            request.number = self._number
            if self._waiting:
                self._news.set()
            await stream.write(request)


def _model_from(message: pb.ServedModel) -> ServedModel:
    return ServedModel(
        name=message.name,
        is_ready=message.ready,
        detail=message.detail,
        num_replicas=message.num_replicas,
        block_size=message.block_size,
        max_model_len=message.max_model_len,
        digest=message.digest,
    )
