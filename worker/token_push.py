"""Tokens straight from a worker to the gateways: one stream to each, numbered, kept until acknowledged.

Owned by the event loop of the worker's process. A gateway that is away is tried again; what waits for it is merged into
larger batches and bounded in time by the scheduler, which drops the requests of a gateway that is lost.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator

import grpc

from cluster.messages import Tokens
from cluster.wire.tokens import fill_tokens
from protos.quire.v1 import front_pb2 as pb
from protos.quire.v1.front_pb2_grpc import TokenServiceAsyncStub
from worker.security import ClusterSecurity

log = logging.getLogger(__name__)

RETRY_S = 0.1
# Batches that are sent and not acknowledged; further tokens wait and are merged.
MAX_UNTAKEN = 64


class GatewayStream:
    """What one gateway has not got yet."""

    def __init__(
        self, name: str, hello: pb.TokenHello, security: ClusterSecurity, options: list[tuple[str, int]]
    ) -> None:
        self._name = name
        self._hello = hello
        self._security = security
        self._options = options
        self._address = ""
        self._number = 0
        self._waiting: list[Tokens] = []
        self._untaken: deque[pb.PushRequest] = deque()
        self._news = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    def push(self, tokens: list[Tokens]) -> None:
        self._waiting.extend(tokens)
        self._news.set()

    def move(self, address: str) -> None:
        """The gateway is at this address from now on; what an earlier one of its name did not take is sent again."""
        if address != self._address:
            self._address = address
            self._news.set()

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            while not self._address:
                self._news.clear()
                await self._news.wait()
            try:
                await self._serve(self._address)
            except (grpc.RpcError, OSError) as error:
                log.info("gateway %s is away: %s", self._name, " ".join(str(error).split())[:200])
            await asyncio.sleep(RETRY_S)

    async def _serve(self, address: str) -> None:
        async with self._security.aio_channel(address, self._options) as channel:
            stream = TokenServiceAsyncStub(channel).Push(self._requests(address), metadata=self._security.metadata())
            async for response in stream:
                while self._untaken and self._untaken[0].number <= response.taken:
                    self._untaken.popleft()
                self._news.set()

    async def _requests(self, address: str) -> AsyncIterator[pb.PushRequest]:
        yield pb.PushRequest(hello=self._hello)
        for request in list(self._untaken):
            yield request
        while address == self._address:
            if not self._waiting or len(self._untaken) >= MAX_UNTAKEN:
                self._news.clear()
                await self._news.wait()
                continue
            waiting, self._waiting = self._waiting, []
            self._number += 1
            request = pb.PushRequest(number=self._number)
            fill_tokens(request.batch, waiting)
            self._untaken.append(request)
            yield request


class TokenPusher:
    """The streams of one worker to all gateways."""

    def __init__(
        self, replica: str, incarnation: int, security: ClusterSecurity, options: list[tuple[str, int]]
    ) -> None:
        self._hello = pb.TokenHello(replica=replica, incarnation=incarnation)
        self._security = security
        self._options = options
        self._streams: dict[str, GatewayStream] = {}
        self._directory: dict[str, str] = {}

    def push(self, gateway: str, tokens: list[Tokens]) -> None:
        stream = self._streams.get(gateway)
        if stream is None:
            stream = self._streams[gateway] = GatewayStream(gateway, self._hello, self._security, self._options)
            stream.move(self._directory.get(gateway, ""))
        stream.push(tokens)

    def direct(self, directory: dict[str, str]) -> None:
        self._directory = directory
        for gateway, stream in self._streams.items():
            stream.move(directory.get(gateway, ""))

    async def close(self) -> None:
        for stream in self._streams.values():
            await stream.close()
