"""A host pool's process in a cluster: the pool, and its link to the scheduler.

The link only says that the pool is there and which quarantined blocks are safe again; bytes and their protocol are
between the pool and the workers. When the scheduler is away the pool goes on as it is.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable

from cluster.links.dialer import Dialer
from cluster.links.dialing import LOST_EXIT, DialingEnd, keep_open
from cluster.links.security import ClusterSecurity
from cluster.links.terms import Heard, Met, Order, RefusedByPeer
from cluster.messages import GiveUp
from cluster.wire import control as wire
from worker.host_pool import HostPoolServer

log = logging.getLogger(__name__)


async def serve_host_pool(pool: HostPoolServer, find: Callable[[], Awaitable[str]], security: ClusterSecurity) -> None:
    """Keeps the scheduler told until cancelled. `find` gives its address, which may change."""
    stream = PoolStream(pool)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(keep_open(stream.end, wire.GREETING, find, security, stream.card))
        tasks.create_task(stream.converse())


class PoolStream:
    """The pool's end of the link."""

    def __init__(self, pool: HostPoolServer) -> None:
        terms = wire.terms()
        joined = pool.joined()
        self.end = DialingEnd(Dialer(joined.pool, joined.incarnation, wire.SCHEDULER, terms, wire.read_down))
        self._pool = pool

    def card(self) -> bytes:
        return wire.joining_to(self._pool.joined(), self._pool.address)

    async def converse(self) -> None:
        while True:
            await asyncio.to_thread(self.end.wait, self.end.pulse_s)
            for order in self.end.read():
                self._take(order)
            for settled in self._pool.take_settled():
                self.end.say(wire.settled_to(settled))

    def _take(self, order: Order) -> None:
        pool = self._pool
        if isinstance(order, Heard):
            message, epoch = order.message, self.end.dialer.peer_life
            if isinstance(message, GiveUp) and (message.incarnation, message.epoch) == (pool.incarnation, epoch):
                pool.give_up(epoch, message.transfers)
        elif isinstance(order, Met):
            if order.is_new:
                pool.end.adopt_epoch(order.life)
        elif isinstance(order, RefusedByPeer):
            # Its last word: the next life must not say that this one ended without any.
            log.log(logging.ERROR if order.is_lost else logging.WARNING, "%s", order.detail)
            if order.is_lost:
                # What lies here means nothing to anybody any more.
                os._exit(LOST_EXIT)
