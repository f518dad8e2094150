"""Tokens straight from a worker to the gateways, on a link to each.

The step loop's thread writes a step's tokens to the sockets itself, so that no other thread has to wake up for them;
the event loop connects and reads what was taken. What a gateway has not taken is kept for it, and for its next start;
the scheduler drops the requests of a gateway that is lost.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence

from cluster.links.dialer import Dialer
from cluster.links.dialing import LOST_EXIT, DialingEnd, attend
from cluster.links.security import ClusterSecurity
from cluster.links.terms import Order, RefusedByPeer
from cluster.messages import Tokens
from cluster.wire import tokens as wire

log = logging.getLogger(__name__)

LOOK_S = 0.25
"""How often gateways that take nothing are looked for."""


class GatewayStream:
    """What one gateway has not got yet. `push` may be called from any thread, the rest from the event loop's."""

    def __init__(self, name: str, replica: str, incarnation: int, security: ClusterSecurity) -> None:
        self._security = security
        self._end = DialingEnd(Dialer(replica, incarnation, name, wire.terms(), wire.read_down))
        self._address = ""
        self._moved = asyncio.Event()
        self._refusal = ""
        self._task: asyncio.Task[None] | None = None

    def push(self, tokens: list[Tokens]) -> None:
        end = self._end
        end.say(wire.batch_to(tokens))
        if end.dialer.numbers.is_full:
            # For the scheduler this gateway lives, and from here it cannot be reached. What other workers make
            # instead reaches it; dropped tokens would never.
            log.critical("%s has not taken %d bytes of tokens", end.dialer.peer, end.dialer.numbers.kept_bytes)
            os._exit(LOST_EXIT)

    def is_unheard(self, now: float) -> bool:
        with self._end.lock:
            return self._end.dialer.is_unheard(now)

    def start(self) -> None:
        attending = attend(self._end, self._take, wire.GREETING, self._find, self._security)
        self._task = asyncio.get_running_loop().create_task(attending)

    def move(self, address: str) -> None:
        """The gateway is at this address from now on; what an earlier one of its name did not take is sent again.
        Empty: nobody knows where it is."""
        if address and address != self._address:
            self._address = address
            self._moved.set()
            self._end.cut(f"it is at {address} now")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _find(self) -> str:
        while not self._address:
            self._moved.clear()
            await self._moved.wait()
        return self._address

    def _take(self, orders: Sequence[Order]) -> None:
        for order in orders:
            if isinstance(order, RefusedByPeer) and order.detail != self._refusal:
                self._refusal = order.detail
                log.error("%s: %s", self._end.dialer.peer, order.detail)


class TokenPusher:
    """The streams of one worker to all gateways. `push`, `direct` and `unreached` are called from one thread."""

    def __init__(
        self, replica: str, incarnation: int, security: ClusterSecurity, loop: asyncio.AbstractEventLoop
    ) -> None:
        """`loop` keeps the connections open."""
        self._identity = replica, incarnation
        self._security = security
        self._loop = loop
        self._streams: dict[str, GatewayStream] = {}
        self._directory: dict[str, str] = {}
        # Where each was last: a scheduler that is new does not name those that it has not met yet.
        self._addresses: dict[str, str] = {}
        self._unreached: tuple[str, ...] = ()
        self._looked_at = 0.0

    def unreached(self, now: float) -> tuple[str, ...]:
        """Gateways that are there, as the scheduler says, and take nothing of what is pushed to them."""
        if now - self._looked_at > LOOK_S:
            self._looked_at = now
            found = [name for name, stream in self._streams.items() if stream.is_unheard(now)]
            self._unreached = tuple(sorted(name for name in found if self._directory.get(name)))
        return self._unreached

    def push(self, gateway: str, tokens: list[Tokens]) -> None:
        stream = self._streams.get(gateway)
        if stream is None:
            stream = self._streams[gateway] = GatewayStream(gateway, *self._identity, self._security)
            self._loop.call_soon_threadsafe(stream.start)
            self._move(stream, gateway)
        stream.push(tokens)

    def direct(self, directory: dict[str, str]) -> None:
        """Where everybody is now."""
        self._directory = directory
        self._addresses |= directory
        for gateway, stream in self._streams.items():
            self._move(stream, gateway)

    def _move(self, stream: GatewayStream, gateway: str) -> None:
        self._loop.call_soon_threadsafe(stream.move, self._addresses.get(gateway, ""))

    async def close(self) -> None:
        for stream in self._streams.values():
            await stream.close()
