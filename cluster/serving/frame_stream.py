"""The end of internal streams that accepts: a port, and a protocol of the event loop for each connection.

The scheduler takes control streams here, gateways streams of tokens; what a stream is, `worker/frame_link.py` says.
A connection that does not prove within a few seconds that it knows the cluster's secret, or sends what is no frame, is
closed and counted. Frames go to their owner as they come in, and its own go out at once; one that takes nothing for
long is cut off, and sends again what is missing when it comes back.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import Counter
from typing import Protocol

from cluster.errors import ConfigError, QuireError
from cluster.links import handshake
from cluster.serving.inside import Inside
from cluster.wire.frames import FrameBuffer
from worker.frame_link import MAX_BACKLOG_BYTES, local_name

log = logging.getLogger(__name__)

MAX_STRANGERS = 256
"""Connections that have not proved yet who they are."""


class Owner(Protocol):
    """Whoever the frames are for."""

    def heard(self, stream: FrameStream, raw: bytes) -> None:
        """A message. Raises QuireError if it means nothing: the stream is closed then."""

    def ended(self, stream: FrameStream) -> None: ...


class FramePort:
    """Where processes of the cluster reach this one with streams of one kind, which begin with `greeting`."""

    def __init__(self, inside: Inside, owner: Owner, greeting: bytes, what: str) -> None:
        self.inside = inside
        self.owner = owner
        self.greeting = greeting
        self.what = what
        self.streams: set[FrameStream] = set()
        self.num_strangers = 0
        # Connections that were closed, by why.
        self.refused: Counter[str] = Counter()
        self._servers: list[asyncio.Server] = []

    async def listen(self) -> str:
        """Its address."""
        loop, inside = asyncio.get_running_loop(), self.inside
        context = inside.security.server_context()
        try:
            server = await loop.create_server(lambda: FrameStream(self), inside.host, 0, ssl=context)
            address = inside.address(server.sockets[0].getsockname()[1])
            # On this machine no TLS: what the kernel passes on is seen by nobody else.
            local = await loop.create_unix_server(lambda: FrameStream(self), local_name(address))
        except OSError as error:
            raise ConfigError(f"{self.what} cannot be taken on {inside.host}: {error}") from error
        self._servers = [server, local]
        return address

    def close(self) -> None:
        for server in self._servers:
            server.close()
        for stream in list(self.streams):
            stream.close()


class FrameStream(asyncio.BufferedProtocol):
    """One connection, from the handshake on."""

    def __init__(self, port: FramePort) -> None:
        self._port = port
        self._transport: asyncio.Transport | None = None
        self._frames = FrameBuffer()
        self._steps: handshake.Steps[bytes] | None = None
        self._wanted = 0
        self._early = b""
        self._deadline: asyncio.TimerHandle | None = None
        self._is_known = False

    # -- of the owner

    def send(self, frame: bytes) -> None:
        """Sent, or lost with the connection: whoever must know numbers its frames."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        transport.write(frame)
        if transport.get_write_buffer_size() > MAX_BACKLOG_BYTES:
            self._refuse("takes nothing", f"{transport.get_write_buffer_size():,} bytes wait")
            transport.abort()

    def close(self) -> None:
        """After what was sent before."""
        if self._transport is not None:
            self._transport.close()

    # -- of the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        port = self._port
        port.streams.add(self)
        port.num_strangers += 1
        connection = transport.get_extra_info("socket")
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # An end whose machine vanished does not stay for ever.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)
        if port.num_strangers > MAX_STRANGERS:
            self._refuse("too many", f"{port.num_strangers - 1} connections have not said yet who they are")
            transport.abort()
            return
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(handshake.HANDSHAKE_S, self._too_late)
        secret = port.inside.security.secret.encode()
        self._steps = handshake.welcome(port.greeting, lambda name: secret)
        _, self._wanted = next(self._steps)

    def connection_lost(self, error: Exception | None) -> None:
        self._port.streams.discard(self)
        if not self._is_known:
            self._port.num_strangers -= 1
        if self._deadline is not None:
            self._deadline.cancel()
        self._transport = None
        self._port.owner.ended(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._frames.room()

    def buffer_updated(self, num_bytes: int) -> None:
        try:
            if self._steps is not None:
                num_bytes = self._shake_hands(num_bytes)
            if num_bytes:
                for raw in self._frames.took(num_bytes):
                    # What follows a refusal is not listened to.
                    if self._transport is not None and not self._transport.is_closing():
                        self._port.owner.heard(self, raw)
        except QuireError as error:
            self._refuse("undecodable" if self._is_known else "no secret", str(error))
            if self._transport is not None:
                self._transport.abort()

    def _shake_hands(self, num_bytes: int) -> int:
        """Goes on with the handshake; returns how many bytes behind it are in the buffer's room, as its first ones."""
        assert self._steps is not None and self._transport is not None and self._deadline is not None
        room = self._frames.room()
        self._early += bytes(room[:num_bytes])
        try:
            while len(self._early) >= self._wanted:
                came, self._early = self._early[: self._wanted], self._early[self._wanted :]
                send, self._wanted = self._steps.send(came)
                if send:
                    self._transport.write(send)
        except StopIteration:
            self._steps = None
            self._deadline.cancel()
            self._is_known = True
            self._port.num_strangers -= 1
            early, self._early = self._early, b""
            room[: len(early)] = early
            return len(early)
        return 0

    def _too_late(self) -> None:
        self._refuse("no secret", f"it has proved nothing for {handshake.HANDSHAKE_S:g} s")
        if self._transport is not None:
            self._transport.abort()

    def _refuse(self, why: str, detail: str) -> None:
        self._port.refused[why] += 1
        log.warning("one of the %s is closed: %s", self._port.what, detail)
