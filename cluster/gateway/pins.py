"""Prefixes that clients asked to keep (CachePrefix): each is a Pin that the scheduler answers with Done or Refused.

The gateway hands orders for its routes on to here. A pin is asked for anew when the scheduler changes under it. Nothing
here knows how a prefix is kept.
"""

from __future__ import annotations

import asyncio

from cluster.gateway.errors import error_of
from cluster.gateway.front import SchedulerLink
from cluster.messages import Cancel, Done, Pin, Refused


class Pins:
    """Pins that are being warmed, by route."""

    def __init__(self, link: SchedulerLink) -> None:
        self._link = link
        self._waiting: dict[int, tuple[Pin, asyncio.Future[None]]] = {}

    async def ask(self, pin: Pin) -> None:
        """Returns when the prefix is warm. Raises `QuireError` if it cannot be."""
        warm: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[pin.route] = (pin, warm)
        try:
            self._link.send(pin)
            await warm
        except asyncio.CancelledError:
            self._link.send(Cancel(pin.request_id))
            raise
        finally:
            del self._waiting[pin.route]

    def ask_again(self) -> None:
        for pin, _ in self._waiting.values():
            self._link.send(pin)

    def take(self, order: Refused | Done) -> bool:
        """True if the order was for a pin."""
        waiting = self._waiting.get(order.route)
        if waiting is None:
            return False
        warm = waiting[1]
        if not warm.done():
            if isinstance(order, Done):
                warm.set_result(None)
            else:
                warm.set_exception(error_of(order, "of this prefix"))
        return True
