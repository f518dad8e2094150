"""A host pool's process in a cluster: the pool, and its stream to the scheduler.

The stream only says that the pool is there and which quarantined blocks are safe again; bytes and their protocol are
between the pool and the workers. When the scheduler is away the pool goes on as it is.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable

import grpc
import grpc.aio

from cluster.wire.state import fill_host_pool_joined, fill_host_pool_settled, give_up_from
from protos import NEWEST_PROTOCOL, OLDEST_PROTOCOL
from protos.quire.v1 import control_pb2 as pb
from protos.quire.v1.control_pb2_grpc import ControlServiceAsyncStub
from worker.host_pool import HostPool
from worker.transfer.security import TransferSecurity

log = logging.getLogger(__name__)

RETRY_S = 0.2


async def serve_host_pool(
    pool: HostPool,
    find: Callable[[], Awaitable[str]],
    security: TransferSecurity,
    options: list[tuple[str, int]] | None = None,
) -> None:
    """Keeps the scheduler told until cancelled. `find` gives its address, which may change."""
    epoch = 0
    while True:
        try:
            address = await find()
            async with security.aio_channel(address, options or []) as channel:
                epoch = await _converse(pool, channel, security, epoch)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.ABORTED:
                # Declared lost: what lies here means nothing to anybody any more.
                log.warning("%s", error.details())
                os._exit(72)
            log.info("no scheduler: %s", error.details())
        except (OSError, TimeoutError) as error:
            log.info("no scheduler: %s", error)
        await asyncio.sleep(RETRY_S)


async def _converse(pool: HostPool, channel: grpc.aio.Channel, security: TransferSecurity, epoch: int) -> int:
    silence = asyncio.get_running_loop().create_future()
    over = asyncio.Event()
    stream = ControlServiceAsyncStub(channel).Connect(_words(pool, epoch, silence, over), metadata=security.metadata())
    try:
        async for message in stream:
            if message.WhichOneof("message") == "welcome":
                epoch = message.welcome.epoch
                pool.end.adopt_epoch(epoch)
                if not silence.done():
                    silence.set_result(message.welcome.silence_s)
            elif message.WhichOneof("message") == "give_up":
                order = give_up_from(message.give_up)
                if (order.incarnation, order.epoch) == (pool.incarnation, epoch):
                    pool.give_up(order.epoch, order.transfers)
    finally:
        over.set()
    return epoch


async def _words(
    pool: HostPool, epoch: int, silence: asyncio.Future[float], over: asyncio.Event
) -> AsyncIterator[pb.ConnectRequest]:
    hello = pb.ConnectRequest()
    fill_host_pool_joined(hello.hello.host_pool, pool.joined())
    hello.hello.epoch = epoch
    hello.hello.oldest_protocol, hello.hello.newest_protocol = OLDEST_PROTOCOL, NEWEST_PROTOCOL
    hello.hello.transfer_address = pool.address
    yield hello
    every_s = await silence / 8
    while True:
        await asyncio.sleep(every_s)
        if over.is_set():
            # The words of a stream that broke: the next one has its own, and tells what has settled meanwhile.
            return
        for settled in pool.take_settled():
            word = pb.ConnectRequest()
            fill_host_pool_settled(word.settled, settled)
            yield word
        yield pb.ConnectRequest(pulse=pb.Pulse())
