"""A gateway's end of its link to the scheduler: events up, orders down, figures when they are asked for.

It implements `SchedulerLink`. What is kept until it is taken and sent again is the link's. A new scheduler, or one that
had given this gateway up, asks for all that is under way, and the gateway is told so. It decides nothing and keeps no
request.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass

from cluster.errors import Unavailable
from cluster.gateway.front import MAX_EVENTS, Connected, Disconnected, Order
from cluster.links import terms as link
from cluster.links.dialer import Dialer
from cluster.links.dialing import DialingEnd, attend
from cluster.links.security import ClusterSecurity
from cluster.messages import GatewayState
from cluster.watching.metrics import Family
from cluster.wire import gateways as wire
from cluster.wire.control import SCHEDULER
from cluster.wire.front import FrontEvent

log = logging.getLogger(__name__)


def _no_figures() -> list[Family]:
    return []


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """Who this gateway is, and how it reaches the scheduler. `find` is asked anew for each connection."""

    gateway: str
    incarnation: int
    token_address: str
    find: Callable[[], Awaitable[str]]
    security: ClusterSecurity
    figures: Callable[[], list[Family]] = _no_figures


class FrontLink:
    """`orders` runs the link: it connects when it is first read, and closes when its reader is cancelled."""

    def __init__(self, settings: LinkSettings) -> None:
        self._settings = settings
        life = wire.first_life(settings.incarnation)
        read_key = bytes
        self.end = DialingEnd(
            Dialer(settings.gateway, life, SCHEDULER, wire.terms(), wire.read_down, read_key, has_state=True)
        )
        self._arrived: list[Order] = []
        self._news = asyncio.Event()
        self._is_there = False

    def check_open(self) -> None:
        numbers = self.end.dialer.numbers
        if numbers.num_kept >= MAX_EVENTS or numbers.kept_bytes >= wire.MAX_WAITING_BYTES:
            waits = f"{numbers.num_kept:,} events of {numbers.kept_bytes:,} bytes"
            raise Unavailable(f"the scheduler is away, and {waits} wait for it", 1.0)

    def send(self, event: FrontEvent) -> None:
        now = time.monotonic()
        if isinstance(event, GatewayState):
            if not self.end.dialer.owes_state:
                # Told already: it was asked for twice before the gateway came to it.
                return
            first, *others = wire.state_parts(event, now)
            self.end.say_state(first)
            for part in others:
                self.end.say(part)
        else:
            self.end.say(wire.event_to(event, now))

    def leave(self) -> None:
        """Says that this process is about to be ended by order. From any thread."""
        self.end.say(wire.leaves_to())

    async def orders(self) -> AsyncIterator[Sequence[Order]]:
        settings = self._settings
        card = wire.card_to(settings.token_address)
        attending = asyncio.create_task(
            attend(self.end, self._take, wire.GREETING, settings.find, settings.security, lambda: card)
        )
        attending.add_done_callback(lambda task: self._news.set())
        try:
            while not attending.done():
                await self._news.wait()
                self._news.clear()
                arrived, self._arrived = self._arrived, []
                if arrived:
                    yield arrived
            # Never without a mistake of ours.
            attending.result()
        finally:
            attending.cancel()
            await asyncio.gather(attending, return_exceptions=True)

    def _take(self, orders: Sequence[link.Order]) -> None:
        for order in orders:
            if isinstance(order, link.Heard):
                self._hear(order.message)
            elif isinstance(order, link.Met):
                log.info("the scheduler of epoch %d is there", order.life)
                self._is_there = True
                self._arrived.append(Connected(order.life, order.wants_state, order.card))
            elif isinstance(order, link.RefusedByPeer):
                self._arrived.append(Disconnected(order.detail))
                if order.is_lost:
                    # It was given up, though it lives: all that is under way is told again, in its next life.
                    with self.end.lock:
                        self.end.dialer.begin(self.end.dialer.life + 1, holds_state=True)
        if self._is_there and not self.end.dialer.is_met:
            self._is_there = False
            self._arrived.append(Disconnected(self.end.why))
        if self._arrived:
            self._news.set()

    def _hear(self, message: wire.Down) -> None:
        if isinstance(message, wire.WantsFigures):
            self.end.say(wire.figures_to(message.number, self._settings.figures()))
        else:
            self._arrived.append(message)
