"""One pool as an end of transfers: its register under a lock, and its bytes.

Servers, senders, receivers and the agent all go through here, from their own threads. The lock is held for decisions
only, never while large chunks move; a chunk is written between `begin` and `end`, so that blocks of a transfer which is
given up meanwhile stay in quarantine until the last such write is over. What was refused is counted here.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from cluster.register.errand import Errand
from cluster.register.moving import Moving
from cluster.register.register import Register
from cluster.register.states import Carrier, NotObeyed, Range, Reservation, Sums, TransferName, WhyRefused
from cluster.register.steps import Outcome, Step
from worker.transfer.bytes import PoolBytes
from worker.transfer.checksum import address_of
from worker.transfer.chunks import Came, Chunks

T = TypeVar("T")
_SMALL_BYTES = 64 << 10
TOKEN_BYTES = 32


class PoolEnd:
    """`name` is how peers and the scheduler call this pool. `lock` is held around every decision about it."""

    def __init__(self, name: str, register: Register, pool: PoolBytes) -> None:
        self.name = name
        self.pool = pool
        self.register = register
        self.layout = register.layout
        self.incarnation = register.incarnation
        self.lock = threading.Lock()
        self.refused: Counter[WhyRefused] = Counter()
        self._chunks: dict[Moving, Chunks] = {}
        self._chunks_lock = threading.Lock()

    def now(self) -> float:
        """The clock of this end's deadlines."""
        return time.monotonic()

    # -- decisions

    def reserve(self, asked: Reservation) -> Moving:
        token = secrets.token_bytes(TOKEN_BYTES)
        return self._decide(lambda now: self.register.reserve(asked, token, now))

    def find(self, name: TransferName) -> Moving:
        return self._decide(lambda now: self.register.find(name, now))

    def live(self, name: TransferName) -> Moving:
        return self._decide(lambda now: self.register.live(name, now))

    def live_by(self, name: TransferName, write: bool | None, *carriers: Carrier) -> Moving:
        """As `live`, for bytes that go this way through one of these carriers."""
        return self._decide(lambda now: self.register.live_by(name, write, carriers, now))

    def touch(self, moving: Moving) -> bool:
        """The other end was heard of. False: the transfer has ended, what was read for it must not be sent."""
        return self._decide(lambda now: self.register.touch(moving, now))

    def next_step(self, errand: Errand, outcome: Outcome) -> Step | None:
        return self._decide(lambda now: errand.next(outcome, now))

    def commit(self, name: TransferName) -> Moving:
        """Ends the transfer if nothing is missing; the caller looks at the phase and at what is missing."""
        moving = self.find(name)
        if self._decide(lambda now: self.register.begin_finish(moving, now)):
            done = False
            try:
                with self._chunks_lock:
                    chunks = self._chunks.get(moving)
                # None: the pool copied by itself, and nothing lies anywhere else that has to come into it.
                if chunks is not None:
                    chunks.rows.finish()
                done = True
            finally:
                self._decide(lambda now: self.register.end_finish(moving, done, now))
        self._decide(lambda now: self.register.commit(name, now))
        self._forget_chunks()
        return moving

    def abort(self, name: TransferName, reason: str, *, stopped: bool) -> Moving | None:
        moving = self._decide(lambda now: self.register.abort(name, reason, stopped, now))
        self._forget_chunks()
        return moving

    def session_began(self, session: int, caller: str, caller_incarnation: int, *, write: bool) -> None:
        self._decide(lambda now: self.register.session_began(session, caller, caller_incarnation, write=write))

    def session_died(self, session: int) -> None:
        self._decide(lambda now: self.register.session_died(session, now))

    def give_up(self, epoch: int, transfer: int) -> None:
        """The scheduler wants nothing of this transfer any more, whoever began it; what comes of it is refused."""
        self._decide(lambda now: self.register.give_up(epoch, transfer, now))

    def take_settled(self) -> list[int]:
        """Transfers, since the last call, that cannot touch the pool any more."""
        return self._decide(lambda now: self.register.take_settled())

    def adopt_epoch(self, epoch: int) -> None:
        self._decide(lambda now: self.register.adopt_epoch(epoch, now))

    def expire(self) -> None:
        """Deadlines and forgetting; called a few times a second by whoever serves this end."""
        self._decide(self.register.expire)
        self._forget_chunks()

    # -- chunks into this pool

    def begin(self, moving: Moving, block: int, offset: int, length: int) -> int:
        """Leave to write a chunk, and its number. `end` must follow. Raises Refused."""
        return self._decide(lambda now: self._begin(moving, block, offset, length, now))

    def _begin(self, moving: Moving, block: int, offset: int, length: int, now: float) -> int:
        number = self.register.number_of(moving, block, offset, length)
        self.register.begin_chunks(moving, number, 1, now)
        return number

    def end(self, moving: Moving, number: int, crc: int | None) -> None:
        """The chunk is written and has this CRC; None: it is corrupt or never came whole, and counts as missing."""
        self._decide(lambda now: self.register.end_chunks(moving, number, 1, crc, now))

    def take(self, moving: Moving, chunks: Chunks, came: Came) -> None:
        """Copies one whole chunk to its place; raises Refused. Small ones are copied under the lock, which costs less
        than taking it twice."""
        register, length = self.register, came.length
        if length > _SMALL_BYTES:
            number, crc = self.begin(moving, came.block, came.offset, length), None
            try:
                crc = chunks.take(number, came.address, length)
            finally:
                self.end(moving, number, crc if crc == came.crc else None)
        else:

            def take(now: float) -> tuple[int, int]:
                number = register.number_of(moving, came.block, came.offset, length)
                copy = chunks.take
                return number, register.take_chunk(
                    moving, number, came.crc, lambda number: copy(number, came.address, length), now
                )

            number, crc = self._decide(take)
        if crc != came.crc:
            raise self.refuse(
                WhyRefused.CORRUPT, f"{moving.key}: chunk {number} sums to {crc:#010x}, not {came.crc:#010x}"
            )

    def receive(self, moving: Moving, block: int, offset: int, length: int, crc: int, data: memoryview) -> None:
        """Takes one chunk that came as a message; raises Refused."""
        if len(data) != length or not length:
            raise self.refuse(WhyRefused.TRUNCATED, f"{moving.key}: {len(data):,} bytes came of {length:,}")
        self.take(moving, self.chunks(moving), Came(block, offset, length, crc, address_of(data)))

    def take_sums(self, name: TransferName, first: int, crcs: Sums) -> None:
        """Chunks that the caller wrote through shared memory, and what they summed to as it copied them.

        Whoever reads blocks of a pool that keeps sums checks them, so that reading them here would be once more. Blocks
        that steps use are read here, and taken if they sum to `crcs`.
        """
        moving = self.live_by(name, True, Carrier.SHARED_MEMORY)
        checked = self.register.blocks.own_content
        self.take_copied(moving, first, crcs, lambda: self._sums_of(moving, first, len(crcs)) if checked else crcs)

    def take_copied(self, moving: Moving, first: int, crcs: Sums, copy: Callable[[], Sums]) -> None:
        """Has `copy` write chunks from `first` on and takes them if they sum to `crcs`; raises Refused."""
        count = len(crcs)
        self._decide(lambda now: self.register.begin_chunks(moving, first, count, now))
        good = False
        try:
            good = np.array_equal(copy(), crcs)
        finally:
            self._decide(lambda now: self.register.end_chunks(moving, first, count, crcs if good else None, now))
        if not good:
            raise self.refuse(
                WhyRefused.CORRUPT, f"{moving.key}: chunks from {first} on are not what the other end has"
            )

    # -- chunks out of this pool

    def chunks(self, moving: Moving) -> Chunks:
        """Where the chunks of a transfer lie while they come or go. Whoever copies keeps hold of it."""
        with self._chunks_lock:
            chunks = self._chunks.get(moving)
            if chunks is None:
                asked = moving.reservation
                rows = self.pool.rows(asked.blocks, asked.write)
                sums = None if asked.write else self.stored_sums(moving)
                chunks = self._chunks[moving] = Chunks(self.layout, moving.wire_blocks, rows, sums)
            return chunks

    def stored_sums(self, moving: Moving) -> Sums | None:
        """What the blocks summed to when they came into this pool, chunk by chunk; None: the steps own them."""
        return self._decide(lambda now: self.register.blocks.crcs(moving.reservation.blocks))

    def computed_sums(self, moving: Moving, first_block: int, num_blocks: int) -> Sums:
        """What blocks of a transfer sum to as they lie in the pool now."""
        return self.pool.checksums(moving.reservation.blocks[first_block : first_block + num_blocks])

    def asked_for(self, moving: Moving, ranges: list[Range]) -> list[Range]:
        """These ranges, if they are chunks of the transfer, none of them twice. Raises Refused."""
        return self._decide(lambda now: self.register.asked_for(moving, ranges))

    def refuse(self, refusal: WhyRefused, detail: str) -> NotObeyed:
        """Counts what was refused outside the register; returns the error to raise."""
        with self.lock:
            self.refused[refusal] += 1
        return NotObeyed(refusal, detail)

    def check(self) -> None:
        """For tests: the register is consistent."""
        self._decide(lambda now: self.register.check())

    # -- inside

    def _decide(self, question: Callable[[float], T]) -> T:
        with self.lock:
            try:
                return question(self.now())
            except NotObeyed as refused:
                self.refused[refused.refusal] += 1
                raise

    def _sums_of(self, moving: Moving, first: int, count: int) -> Sums:
        per_block = self.layout.chunks_per_block
        begin, end = first // per_block, -(-(first + count) // per_block)
        sums = self.pool.checksums(moving.reservation.blocks[begin:end])
        return sums[first - begin * per_block :][:count]

    def _forget_chunks(self) -> None:
        """Of transfers that have ended. Whoever still writes through them keeps them alive."""
        with self._chunks_lock:
            for moving in [moving for moving in self._chunks if not moving.live]:
                del self._chunks[moving]
