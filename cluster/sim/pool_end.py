"""A simulated pool: its process owns blocks, and answers who reads and writes them by transfer.

The real register says what may be done; blocks are really copied. Who asks is `transfers.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any, Protocol, TypeAlias
from zlib import crc32

import numpy as np

from cluster.register.register import Register, RegisterSettings
from cluster.register.states import Blocks as Ids
from cluster.register.states import Carrier, NotObeyed, PoolLayout, TransferName, WhyRefused
from cluster.register.steps import Commit, Committed, Copied, Outcome, Reserve, Reserved
from cluster.sim.clock import Action, Clock
from cluster.sim.device import Blocks, StackedBlocks

LOOK_S = 0.05
"""How often somebody who has something under way looks at its deadlines."""
REGISTER = RegisterSettings(idle_s=1.0, remember_s=5.0)
Reply = Callable[[Outcome], None]
Request = Callable[["Pool", Reply], None]
Landed: TypeAlias = Callable[[int, bytes], None]
OF_A_CHUNK = {WhyRefused.DOUBLED, WhyRefused.CORRUPT, WhyRefused.TRUNCATED, WhyRefused.OUTSIDE}


def register_of(layout: PoolLayout, num_blocks: int, incarnation: int, *, own_content: bool) -> Register:
    """Of a simulated pool: a block is one chunk."""
    return Register(layout, num_blocks, incarnation, REGISTER, own_content=own_content)


class Pool(Protocol):
    """A process that owns blocks and lets others read and write them by transfer."""

    name: str
    node: str
    incarnation: int
    alive: bool
    stopped: bool
    blocks: Blocks
    stacked: StackedBlocks
    random: Random
    register: Register

    def run(self, action: Action, *args: Any) -> None: ...

    def session_of(self, caller: Mover) -> int:
        """Leave for a process of the same node to reach the blocks by itself; 0: none."""

    def when_written(self, then: Callable[[], None]) -> None:
        """Calls back once all that was issued until now has been written to its blocks."""

    def look(self) -> None:
        """Something is under way from now on: deadlines are to be looked at."""


class Mover(Pool, Protocol):
    """A pool whose process moves blocks itself."""

    clock: Clock

    def after(self, delay_s: float, action: Action, *args: Any) -> None: ...


class SimChunk(Copied):
    """Bytes on their way, and what the sender says that they sum to."""

    def __init__(self, content: bytes, crc: int) -> None:
        super().__init__()
        object.__setattr__(self, "content", content)
        object.__setattr__(self, "crc", crc)

    content: bytes
    crc: int


def reserve(step: Reserve, clock: Clock, pool: Pool, reply: Reply) -> None:
    pool.register.reserve(step.asked, b"", clock.now)
    pool.register.check()
    blocks: Ids = step.asked.blocks
    sums = None if step.asked.write else pool.register.blocks.crcs(blocks)
    reply(Reserved(sums=sums))


def take_chunk(
    name: TransferName, block: int, content: bytes, wanted: int, landed: Landed, clock: Clock, pool: Pool, reply: Reply
) -> None:
    """A chunk that came as a message is put in its place by the pool's process."""
    register, now = pool.register, clock.now
    moving = register.live_by(name, True, (Carrier.STREAM,), now)
    number = register.number_of(moving, block, 0, len(content))

    def write(number: int) -> int:
        landed(block, content)
        pool.stacked.write(block, content)
        return crc32(content)

    register.take_chunk(moving, number, wanted, write, now)
    reply(None)


def read_chunk(name: TransferName, block: int, clock: Clock, pool: Pool, reply: Reply) -> None:
    """A chunk that is asked for by message. What its process had issued into the blocks comes first."""

    def read() -> None:
        try:
            moving = pool.register.live_by(name, False, (Carrier.STREAM,), clock.now)
        except NotObeyed as refused:
            reply(refused)
            return
        content = pool.stacked.read(block)
        stored = pool.register.blocks.crcs(np.array([block], np.int32))
        pool.register.touch(moving, clock.now)
        reply(SimChunk(content, crc32(content) if stored is None else int(stored[0])))

    pool.when_written(read)


def take_commit(step: Commit, clock: Clock, pool: Pool, reply: Reply) -> None:
    register, copied = pool.register, step.copied
    if copied.sums is not None and register.find(step.name, clock.now).live:
        try:
            moving = register.live_by(step.name, True, (Carrier.SHARED_MEMORY,), clock.now)
            register.begin_chunks(moving, copied.first, len(copied.sums), clock.now)
            register.end_chunks(moving, copied.first, len(copied.sums), copied.sums, clock.now)
        except NotObeyed as refused:
            if refused.refusal not in OF_A_CHUNK:
                raise
    reply(commit(register, step.name, clock.now))


def commit(register: Register, name: TransferName, now: float) -> Committed:
    moving = register.find(name, now)
    if register.begin_finish(moving, now):
        register.end_finish(moving, True, now)
    moving = register.commit(name, now)
    return Committed(moving.missing(64), not moving.live)


def abort(name: TransferName, reason: str, clock: Clock, pool: Pool, reply: Reply) -> None:
    try:
        pool.register.abort(name, reason, True, clock.now)
    except NotObeyed:
        pass  # another life of it has no memory that this transfer could reach
    reply(True)
