"""A host pool's process in a cluster: the pool, and its stream to the scheduler.

The stream only says that the pool is there and which quarantined blocks are safe again; bytes and their protocol are
between the pool and the workers. When the scheduler is away the pool goes on as it is.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable

from cluster.errors import ProtocolError
from cluster.links.security import ClusterSecurity
from cluster.wire.frames import framed
from cluster.wire.plans import parsed
from cluster.wire.state import fill_host_pool_joined, fill_host_pool_settled, give_up_from
from protos import NEWEST_PROTOCOL, OLDEST_PROTOCOL
from protos.quire.v1 import control_pb2 as pb
from worker.frame_link import CONTROL, LOST_EXIT, PULSES, FrameLink, keep_open
from worker.host_pool import HostPool

log = logging.getLogger(__name__)


async def serve_host_pool(pool: HostPool, find: Callable[[], Awaitable[str]], security: ClusterSecurity) -> None:
    """Keeps the scheduler told until cancelled. `find` gives its address, which may change."""
    stream = PoolStream(pool)
    pulse = framed(pb.ToScheduler(pulse=pb.Pulse()))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(keep_open(stream.link, CONTROL, find, security, stream.hello, lambda: pulse))
        tasks.create_task(stream.converse())


class PoolStream:
    """The pool's side of the control stream."""

    def __init__(self, pool: HostPool) -> None:
        self.link = FrameLink()
        self._pool = pool
        self._epoch = 0

    def hello(self) -> bytes:
        message = pb.ToScheduler()
        fill_host_pool_joined(message.hello.host_pool, self._pool.joined())
        message.hello.epoch = self._epoch
        message.hello.oldest_protocol, message.hello.newest_protocol = OLDEST_PROTOCOL, NEWEST_PROTOCOL
        message.hello.transfer_address = self._pool.address
        return framed(message)

    async def converse(self) -> None:
        link = self.link
        while True:
            await asyncio.to_thread(link.wait, link.silence_s / PULSES)
            try:
                for raw in link.read():
                    self._take(parsed(pb.FromScheduler, raw))
            except ProtocolError as error:
                link.undecodable(error)
            # While there is no stream they are kept; what is lost with one, the scheduler asks for again.
            for settled in self._pool.take_settled() if link.is_open else ():
                word = pb.ToScheduler()
                fill_host_pool_settled(word.settled, settled)
                link.send(framed(word))

    def _take(self, message: pb.FromScheduler) -> None:
        kind = message.WhichOneof("message")
        if kind == "welcome":
            self._epoch, self.link.silence_s = message.welcome.epoch, message.welcome.silence_s
            self._pool.end.adopt_epoch(self._epoch)
        elif kind == "give_up":
            order = give_up_from(message.give_up)
            if (order.incarnation, order.epoch) == (self._pool.incarnation, self._epoch):
                self._pool.give_up(order.epoch, order.transfers)
        elif kind == "refusal":
            log.warning("%s", message.refusal.detail)
            if message.refusal.is_lost:
                # What lies here means nothing to anybody any more.
                os._exit(LOST_EXIT)
