"""A `Listener` on a port of the event loop: the end that is called, with the connections that its peers open.

It gives the machine what comes and the time, does what it orders, and passes the rest on to its owner: who was met,
what was heard, who is lost.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Sequence
from typing import Protocol

from cluster.links.frames import Frame
from cluster.links.listener import Listener
from cluster.links.security import ClusterSecurity
from cluster.links.streams import FramePort, FrameStream
from cluster.links.terms import PULSES, Close, Met, Order, Send

log = logging.getLogger(__name__)


class Owner(Protocol):
    def take(self, order: Order) -> None:
        """Somebody was met, heard or lost. Raises nothing."""


class ListeningEnd:
    """The machine, its port, and whose it is."""

    def __init__(self, listener: Listener, owner: Owner) -> None:
        self.listener = listener
        self._owner = owner
        self.port: FramePort | None = None

    async def listen(self, host: str, security: ClusterSecurity, greeting: bytes, what: str) -> str:
        """Its address."""
        self.port = FramePort(security, self, greeting, what)
        return await self.port.listen(host)

    def close(self) -> None:
        if self.port is not None:
            self.port.close()

    # -- of the owner

    def say(self, name: str, message: bytes) -> None:
        """To a peer that is not lost; to another one nothing is said."""
        if name in self.listener.peers:
            self._do(self.listener.say(name, message, time.monotonic()))

    def say_all(self, name: str, messages: Iterable[bytes]) -> None:
        """The same, in one write."""
        orders: list[Order] = []
        for message in messages:
            if name in self.listener.peers:
                orders += self.listener.say(name, message, time.monotonic())
        self._do(orders)

    def lose(self, name: str, detail: str) -> None:
        if name in self.listener.peers:
            self._do(self.listener.lose(name, detail, time.monotonic()))

    def turn_away(self, name: str, detail: str) -> None:
        if name in self.listener.peers:
            self._do(self.listener.turn_away(name, detail, time.monotonic()))

    async def watch(self) -> None:
        """Until cancelled: finds out who is gone, and tells the quiet ones that we live."""
        while True:
            await asyncio.sleep(self.listener.terms.silence_s / PULSES)
            self._do(self.listener.tick(time.monotonic()))

    # -- of the port

    def opened(self, stream: FrameStream) -> None:
        self.listener.opened(stream, time.monotonic())

    def touched(self, stream: FrameStream) -> None:
        self.listener.touched(stream, time.monotonic())

    def heard(self, stream: FrameStream, frames: Sequence[Frame]) -> None:
        self._do(self.listener.heard(stream, frames, time.monotonic()))

    def ended(self, stream: FrameStream) -> None:
        self.listener.broke(stream, time.monotonic())

    def _do(self, orders: Sequence[Order]) -> None:
        """What goes out goes out first, so that what the owner says to the rest comes behind it. Words for one
        connection that follow each other go out in one write."""
        sends: list[bytes] = []
        told: list[Order] = []
        for at, order in enumerate(orders):
            if isinstance(order, Send):
                sends.append(order.frame)
                after = orders[at + 1] if at + 1 < len(orders) else None
                if not isinstance(after, Send) or after.connection is not order.connection:
                    assert isinstance(order.connection, FrameStream)
                    order.connection.send(sends[0] if len(sends) == 1 else b"".join(sends))
                    sends = []
            elif isinstance(order, Close):
                self._close(order)
            else:
                told.append(order)
        for order in told:
            if isinstance(order, Met) and order.is_new:
                log.info("%s is there, as %d", order.peer, order.life)
            self._owner.take(order)

    def _close(self, order: Close) -> None:
        stream = order.connection
        assert isinstance(stream, FrameStream) and self.port is not None
        if order.is_garbled:
            self.port.refuse("undecodable", order.detail)
            stream.abort()
        else:
            log.info("a connection of %s is closed: %s", self.port.what, order.detail)
            stream.close()
