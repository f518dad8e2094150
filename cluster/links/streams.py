"""The end of links that accepts: a port, and a protocol of the event loop for each connection.

A connection that does not prove within a few seconds that it knows the cluster's secret, or sends what is no frame, is
closed and counted; on this machine only processes of our own user get that far. While they are strangers, connections
have bounded places (`strangers.py`), from before TLS on. What the frames say is up to `listening.py`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections import Counter
from collections.abc import Sequence
from typing import Protocol

from cluster.errors import ConfigError, QuireError
from cluster.links import handshake
from cluster.links.frames import Frame, FrameBuffer
from cluster.links.security import ClusterSecurity
from cluster.links.sockets import is_local, listen, origin, tune, user_of
from cluster.links.strangers import Strangers

log = logging.getLogger(__name__)

MAX_STRANGERS, MAX_OF_ONE_ADDRESS = 1024, 64
"""Connections that have not proved yet who they are: of all, and of one address of another machine."""
_NO_DESCRIPTOR_S = 0.2


class FramesOwner(Protocol):
    """Whoever the frames are for. A stream that is known is told opened first and ended last."""

    def opened(self, stream: FrameStream) -> None: ...

    def touched(self, stream: FrameStream) -> None: ...

    def heard(self, stream: FrameStream, frames: Sequence[Frame]) -> None: ...

    def ended(self, stream: FrameStream) -> None: ...


class FramePort:
    """Where processes of the cluster reach this one with links of one use, which begin with `greeting`."""

    def __init__(self, security: ClusterSecurity, owner: FramesOwner, greeting: bytes, what: str) -> None:
        self.security = security
        self.owner = owner
        self.greeting = greeting
        self.what = what
        self.streams: set[FrameStream] = set()
        # On this machine all come from one user.
        self.local_strangers: Strangers[Arrival] = Strangers(MAX_STRANGERS, MAX_STRANGERS)
        self.strangers: Strangers[Arrival] = Strangers(MAX_STRANGERS, MAX_OF_ONE_ADDRESS)
        # Connections that were closed, by why.
        self.refused: Counter[str] = Counter()
        self._sockets: list[socket.socket] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def listen(self, host: str) -> str:
        """Its address."""
        try:
            address, self._sockets = listen(host, self.security)
        except OSError as error:
            raise ConfigError(f"{self.what} cannot be taken on {host}: {error}") from error
        for one in self._sockets:
            self._start(asyncio.get_running_loop().create_task(self._accept(one)))
        return address

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        for one in self._sockets:
            one.close()
        for stream in list(self.streams):
            stream.close()

    def refuse(self, why: str, detail: str) -> None:
        self.refused[why] += 1
        num = self.refused[why]
        # Many strangers write no long logs: the 1st, 2nd, 4th, 8th and so on are told.
        level = logging.DEBUG if num & (num - 1) else logging.WARNING
        log.log(level, "one of the %s is closed (%s, %d by now): %s", self.what, why, num, detail)

    def _start(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, peer = await loop.sock_accept(listening)
            except OSError as error:
                # Out of descriptors, most likely: those who wait are still there afterwards.
                log.warning("%s: a connection cannot be taken: %s", self.what, error)
                await asyncio.sleep(_NO_DESCRIPTOR_S)
                continue
            try:
                if is_local(connection) and user_of(connection) != os.geteuid():
                    raise ConnectionError(f"user {user_of(connection)} has no business here")
                tune(connection)
                address = origin(connection, peer)
            except OSError as error:
                connection.close()
                self.refuse("another user", str(error))
                continue
            strangers = self.local_strangers if is_local(connection) else self.strangers
            arrival = Arrival(self, strangers, connection)
            evicted = strangers.come(arrival, address)
            if evicted is not None:
                evicted.end("too many", f"{len(strangers)} have not said yet who they are")
            arrival.task = loop.create_task(arrival.open())
            self._start(arrival.task)


class Arrival:
    """A connection that has not proved yet who it is, from when it was accepted."""

    def __init__(self, port: FramePort, strangers: Strangers[Arrival], connection: socket.socket) -> None:
        self.port = port
        self._strangers = strangers
        self.task: asyncio.Task[None] | None = None
        self.stream: FrameStream | None = None
        self._connection = connection
        self._has_begun = False
        self._timer = asyncio.get_running_loop().call_later(handshake.HANDSHAKE_S, self._too_late)

    async def open(self) -> None:
        """TLS where there is any; the handshake is the stream's."""
        if self._connection.fileno() < 0:
            return
        self._has_begun = True
        context = None if is_local(self._connection) else self.port.security.server_context()
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: FrameStream(self.port, self),
                self._connection,
                ssl=context,
                ssl_handshake_timeout=None if context is None else handshake.HANDSHAKE_S,
            )
        except OSError as error:
            self.end("no TLS", str(error) or type(error).__name__)

    def _too_late(self) -> None:
        self.end("no secret", f"it has proved nothing for {handshake.HANDSHAKE_S:g} s")

    def end(self, why: str, detail: str) -> None:
        """It is closed, and counted."""
        self.port.refuse(why, detail)
        self.over()
        if self.stream is not None:
            self.stream.abort()
        elif self.task is not None and self._has_begun:
            self.task.cancel()
        else:
            self._connection.close()

    def over(self) -> None:
        """It is no stranger any more: known, or gone."""
        self._timer.cancel()
        self._strangers.gone(self)


class FrameStream(asyncio.BufferedProtocol):
    """One connection, from the handshake on."""

    def __init__(self, port: FramePort, arrival: Arrival) -> None:
        self._port = port
        self._arrival: Arrival | None = arrival
        self._transport: asyncio.Transport | None = None
        self._frames = FrameBuffer()
        self._early = b""
        secret = port.security.secret.encode()
        self._steps: handshake.Steps[bytes] = handshake.welcome(port.greeting, lambda name: secret)
        _, self._wanted = next(self._steps)

    # -- of the owner

    def send(self, frames: bytes) -> None:
        """Sent, or lost with the connection: the conversation knows what to say again."""
        transport = self._transport
        if transport is not None and not transport.is_closing():
            transport.write(frames)

    def close(self) -> None:
        """After what was sent before, if the other end takes it soon."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.close()
            asyncio.get_running_loop().call_later(handshake.HANDSHAKE_S, self.abort)

    def abort(self) -> None:
        """Whatever was sent before."""
        if self._transport is not None:
            self._transport.abort()

    # -- of the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) and self._arrival is not None
        self._transport = transport
        self._arrival.stream = self
        self._port.streams.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._port.streams.discard(self)
        self._transport = None
        if self._arrival is not None:
            self._arrival.over()
        else:
            self._port.owner.ended(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._frames.room()

    def buffer_updated(self, num_bytes: int) -> None:
        try:
            if self._arrival is not None:
                num_bytes = self._shake_hands(num_bytes)
            if num_bytes:
                frames = self._frames.took(num_bytes)
                if frames:
                    self._port.owner.heard(self, frames)
                else:
                    self._port.owner.touched(self)
        except QuireError as error:
            if self._arrival is not None:
                self._arrival.end("no secret", str(error))
            else:
                self._port.refuse("undecodable", str(error))
                self.abort()

    def _shake_hands(self, num_bytes: int) -> int:
        """Goes on with the handshake; returns how many bytes behind it are in the buffer's room, as its first ones."""
        assert self._arrival is not None and self._transport is not None
        room = self._frames.room()
        self._early += bytes(room[:num_bytes])
        try:
            while len(self._early) >= self._wanted:
                came, self._early = self._early[: self._wanted], self._early[self._wanted :]
                send, self._wanted = self._steps.send(came)
                if send:
                    self._transport.write(send)
        except StopIteration:
            arrival, self._arrival = self._arrival, None
            arrival.over()
            self._port.owner.opened(self)
            early, self._early = self._early, b""
            room[: len(early)] = early
            return len(early)
        return 0
