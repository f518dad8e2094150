"""Tokens straight from a worker to the gateways: one stream of frames to each, numbered, kept until acknowledged.

The step loop's thread writes a step's tokens to the sockets itself, so that no other thread has to wake up for them;
the event loop connects and reads what was taken. A gateway that is away is tried again; what waits for it is merged
into larger batches and bounded in time by the scheduler, which drops the requests of a gateway that is lost.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
from collections import deque

from cluster.errors import ProtocolError
from cluster.links.security import ClusterSecurity
from cluster.messages import Tokens
from cluster.wire.frames import framed
from cluster.wire.plans import parsed
from cluster.wire.tokens import fill_tokens
from protos.quire.v1 import front_pb2 as pb
from worker.frame_link import TOKENS, FrameLink, keep_open

log = logging.getLogger(__name__)

# Batches that are sent and not acknowledged; further tokens wait and are merged.
MAX_UNTAKEN = 256
# Tokens entries of one batch at most, so that what waited for long makes frames that a gateway takes one by one.
MAX_ENTRIES = 10_000


class GatewayStream:
    """What one gateway has not got yet. `push` may be called from any thread, the rest from the event loop's."""

    def __init__(self, name: str, hello: pb.TokenHello, security: ClusterSecurity) -> None:
        self._security = security
        self._hello = framed(pb.ToGateway(hello=hello))
        # A gateway that says nothing may have nothing to say: the kernel, or the scheduler, finds out that it is gone.
        self._link = FrameLink(f"gateway {name}", math.inf)
        self._address = ""
        self._moved = asyncio.Event()
        self._lock = threading.Lock()
        # The gateway has answered the hello of this connection, so that it is known what it lacks.
        self._is_met = False
        self._number = 0
        self._waiting: list[Tokens] = []
        self._untaken: deque[tuple[int, bytes]] = deque()
        self._task: asyncio.Task[None] | None = None

    def push(self, tokens: list[Tokens]) -> None:
        with self._lock:
            self._waiting += tokens
            self._send_on()

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_reader(self._link.fileno(), self._read)
        self._task = loop.create_task(keep_open(self._link, TOKENS, self._find, self._security, self._say_hello))

    def move(self, address: str) -> None:
        """The gateway is at this address from now on; what an earlier one of its name did not take is sent again. A
        scheduler that has not met it yet knows of none: until it does, tokens go where they went."""
        if address and address != self._address:
            self._address = address
            self._moved.set()
            self._link.cut(f"it is at {address} now")

    async def close(self) -> None:
        if self._task is not None:
            asyncio.get_running_loop().remove_reader(self._link.fileno())
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _find(self) -> str:
        while not self._address:
            self._moved.clear()
            await self._moved.wait()
        return self._address

    def _say_hello(self) -> bytes:
        with self._lock:
            self._is_met = False
        return self._hello

    def _read(self) -> None:
        link = self._link
        link.wait(0.0)
        try:
            for raw in link.read():
                self._take(parsed(pb.FromGateway, raw))
        except ProtocolError as error:
            link.undecodable(error)

    def _take(self, message: pb.FromGateway) -> None:
        if message.refusal:
            log.error("%s: %s", self._link.peer, message.refusal)
            return
        with self._lock:
            while self._untaken and self._untaken[0][0] <= message.taken:
                self._untaken.popleft()
            if not self._is_met:
                self._is_met = True
                for _, frame in self._untaken:
                    self._link.send(frame)
            self._send_on()

    def _send_on(self) -> None:
        """With the lock held: what waits goes out, as far as the gateway keeps up."""
        while self._is_met and self._waiting and len(self._untaken) < MAX_UNTAKEN:
            batch, self._waiting = self._waiting[:MAX_ENTRIES], self._waiting[MAX_ENTRIES:]
            self._number += 1
            message = pb.ToGateway(number=self._number)
            fill_tokens(message.batch, batch)
            frame = framed(message)
            self._untaken.append((self._number, frame))
            self._link.send(frame)


class TokenPusher:
    """The streams of one worker to all gateways. `push` and `direct` are called from one thread, whichever it is."""

    def __init__(
        self, replica: str, incarnation: int, security: ClusterSecurity, loop: asyncio.AbstractEventLoop
    ) -> None:
        """`loop` keeps the connections open."""
        self._hello = pb.TokenHello(replica=replica, incarnation=incarnation)
        self._security = security
        self._loop = loop
        self._streams: dict[str, GatewayStream] = {}
        self._directory: dict[str, str] = {}

    def push(self, gateway: str, tokens: list[Tokens]) -> None:
        stream = self._streams.get(gateway)
        if stream is None:
            stream = self._streams[gateway] = GatewayStream(gateway, self._hello, self._security)
            self._loop.call_soon_threadsafe(stream.start)
            self._move(stream, gateway)
        stream.push(tokens)

    def direct(self, directory: dict[str, str]) -> None:
        """Where everybody is now."""
        self._directory = directory
        for gateway, stream in self._streams.items():
            self._move(stream, gateway)

    def _move(self, stream: GatewayStream, gateway: str) -> None:
        self._loop.call_soon_threadsafe(stream.move, self._directory.get(gateway, ""))

    async def close(self) -> None:
        for stream in self._streams.values():
            await stream.close()
