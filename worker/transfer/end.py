"""One pool as an end of transfers: its register under a lock, and its bytes.

Servers, senders, receivers and the agent all go through here, from their own threads. The lock is held for decisions
only, never while bytes move; a chunk is written between `begin` and `end`, so that blocks of a transfer which is given
up meanwhile stay in quarantine until the last such write is over. What was refused is counted here.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from worker.transfer.blocks import Longs
from worker.transfer.bytes import PoolBytes
from worker.transfer.checksum import Sums, address_of
from worker.transfer.chunks import Came, Chunks
from worker.transfer.register import TransferRegister
from worker.transfer.states import Blocks, Carrier, Moving, Phase, Range, Refusal, Refused, Reservation, TransferName

T = TypeVar("T")
_SMALL_BYTES = 64 << 10


class PoolEnd:
    """`name` is how peers and the scheduler call this pool."""

    def __init__(self, name: str, register: TransferRegister, pool: PoolBytes) -> None:
        self.name = name
        self.pool = pool
        self.layout = register.layout
        self.incarnation = register.incarnation
        self.moved_bytes: Counter[Carrier] = Counter()
        self._register = register
        self._lock = threading.Lock()
        self._chunks: dict[Moving, Chunks] = {}
        self._chunks_lock = threading.Lock()

    # -- decisions

    def reserve(self, asked: Reservation) -> Moving:
        return self._decide(lambda now: self._register.reserve(asked, now))

    def find(self, name: TransferName) -> Moving:
        return self._decide(lambda now: self._register.find(name, now))

    def live(self, name: TransferName) -> Moving:
        return self._decide(lambda now: self._register.live(name, now))

    def touch(self, moving: Moving) -> bool:
        """The other end was heard of. False: the transfer has ended, what was read for it must not be sent."""
        return self._decide(lambda now: self._register.touch(moving, now))

    def commit(self, name: TransferName) -> Moving:
        """Ends the transfer if nothing is missing; the caller looks at the phase and at what is missing."""
        moving = self.find(name)
        if self._decide(lambda now: moving.reservation.write and self._register.begin_finish(moving, now)):
            done = False
            try:
                self.chunks(moving).rows.finish()
                done = True
            finally:
                self._decide(lambda now: self._register.end_finish(moving, done, now))
        before = moving.phase
        self._decide(lambda now: self._register.commit(name, now))
        if moving.phase is Phase.COMMITTED and before is not Phase.COMMITTED:
            self.moved_bytes[moving.reservation.carrier] += moving.size_bytes
        self._forget_chunks()
        return moving

    def abort(self, name: TransferName, reason: str, *, stopped: bool) -> Moving | None:
        moving = self._decide(lambda now: self._register.abort(name, reason, stopped, now))
        self._forget_chunks()
        return moving

    def session_died(self, session: int) -> list[Moving]:
        return self._decide(lambda now: self._register.session_died(session, now))

    def release(self, epoch: int, blocks: Blocks, *, clear: bool) -> Blocks:
        """Forgets committed content and returns the blocks that held some; with `clear` they are zeros then."""
        free = self._decide(lambda now: self._register.release(epoch, blocks, clear, now))
        if clear and len(free):
            self.pool.clear(free)
            self._decide(lambda now: self._register.cleared(free))
        return free

    def give_up(self, epoch: int, transfer: int, reason: str) -> None:
        """The scheduler wants nothing of this transfer any more, whoever began it; what comes of it is refused."""
        self._decide(lambda now: self._register.give_up(epoch, transfer, reason, now))

    def settled(self, epoch: int, transfer: int) -> bool:
        """Whether nothing of this transfer is under way or could still touch the pool."""
        return self._decide(lambda now: self._register.settled(epoch, transfer))

    def now(self) -> float:
        """The clock of this end's deadlines."""
        return time.monotonic()

    def adopt_epoch(self, epoch: int) -> None:
        self._decide(lambda now: self._register.adopt_epoch(epoch, now))

    def expire(self) -> None:
        """Deadlines and forgetting; called a few times a second by whoever serves this end."""
        self._decide(self._register.expire)
        self._forget_chunks()

    # -- chunks into this pool

    def begin(self, moving: Moving, block: int, offset: int, length: int) -> int:
        """Leave to write a chunk, and its number. `end` must follow. Raises Refused."""
        return self._decide(lambda now: self._register.begin_chunk(moving, block, offset, length, now))

    def end(self, moving: Moving, number: int, crc: int | None) -> None:
        """The chunk is written and has this CRC; None: it is corrupt or never came whole, and counts as missing."""
        self._decide(lambda now: self._register.end_chunks(moving, number, 1, crc, now))

    def take(self, moving: Moving, chunks: Chunks, came: Came) -> None:
        """Copies one whole chunk to its place; raises Refused. Small ones are copied under the lock, which costs less
        than taking it twice."""
        register, length = self._register, came.length
        if length > _SMALL_BYTES:
            number, crc = self.begin(moving, came.block, came.offset, length), None
            try:
                crc = chunks.take(number, came.address, length)
            finally:
                self.end(moving, number, crc if crc == came.crc else None)
        else:

            def take(now: float) -> tuple[int, int]:
                number = register.chunk_number(moving, came.block, came.offset, length)
                copy = chunks.take
                return number, register.take_chunk(
                    moving, number, came.crc, lambda number: copy(number, came.address, length), now
                )

            number, crc = self._decide(take)
        if crc != came.crc:
            raise self.refuse(
                Refusal.CORRUPT, f"{moving.key}: chunk {number} sums to {crc:#010x}, not {came.crc:#010x}"
            )

    def receive(self, name: TransferName, block: int, offset: int, length: int, crc: int, data: memoryview) -> Moving:
        """Takes one chunk that came as a message; raises Refused."""
        moving = self.live(name)
        if len(data) != length or not length:
            raise self.refuse(Refusal.TRUNCATED, f"{name.key}: {len(data):,} bytes came of {length:,}")
        self.take(moving, self.chunks(moving), Came(block, offset, length, crc, address_of(data)))
        return moving

    def take_sums(self, name: TransferName, first: int, crcs: Sums) -> Moving:
        """Chunks that the caller wrote through shared memory, and what they summed to as it copied them.

        Whoever reads blocks of a pool that keeps sums checks them, so that reading them here would be once more. Blocks
        that steps use are read here, and taken if they sum to `crcs`.
        """
        moving = self.live(name)
        if moving.reservation.carrier is not Carrier.SHARED_MEMORY or not moving.reservation.write:
            raise self.refuse(Refusal.CONFLICT, f"{name.key} does not write through shared memory")
        checked = self._register.blocks.own_content
        self.take_copied(moving, first, crcs, lambda: self._sums_of(moving, first, len(crcs)) if checked else crcs)
        return moving

    def take_copied(self, moving: Moving, first: int, crcs: Sums, copy: Callable[[], Sums]) -> None:
        """Has `copy` write chunks from `first` on and takes them if they sum to `crcs`; raises Refused."""
        count = len(crcs)
        self._decide(lambda now: self._register.begin_chunks(moving, first, count, now))
        good = False
        try:
            good = np.array_equal(copy(), crcs)
        finally:
            self._decide(lambda now: self._register.end_chunks(moving, first, count, crcs if good else None, now))
        if not good:
            raise self.refuse(Refusal.CORRUPT, f"{moving.key}: chunks from {first} on are not what the other end has")

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
        return self._decide(lambda now: self._register.blocks.crcs(moving.reservation.blocks))

    def computed_sums(self, moving: Moving, first_block: int, num_blocks: int) -> Sums:
        """What blocks of a transfer sum to as they lie in the pool now."""
        return self.pool.checksums(moving.reservation.blocks[first_block : first_block + num_blocks])

    def asked_for(self, moving: Moving, ranges: list[Range]) -> list[Range]:
        """These ranges, if they are chunks of the transfer, none of them twice. Raises Refused."""
        return self._decide(lambda now: self._register.asked_for(moving, ranges))

    # -- seen

    def listed(self) -> list[Moving]:
        return self._decide(lambda now: list(self._register.transfers()))

    def committed(self) -> tuple[Blocks, Longs, Longs]:
        return self._decide(lambda now: self._register.blocks.committed())

    def quarantined(self) -> Blocks:
        return self._decide(lambda now: self._register.blocks.quarantined())

    def block_states(self) -> npt.NDArray[np.uint8]:
        """One state of `worker/transfer/blocks.py` per block."""
        return self._decide(lambda now: self._register.blocks.states.copy())

    @property
    def epoch(self) -> int:
        return self._register.epoch

    @property
    def refused(self) -> Counter[Refusal]:
        return Counter(self._register.refused)

    def check(self) -> None:
        """For tests: the register is consistent."""
        self._decide(lambda now: self._register.check())

    def refuse(self, refusal: Refusal, detail: str) -> Refused:
        """Counts what was refused outside the register; returns the error to raise."""
        with self._lock:
            self._register.refused[refusal] += 1
        return Refused(refusal, detail)

    # -- inside

    def _decide(self, question: Callable[[float], T]) -> T:
        with self._lock:
            try:
                return question(self.now())
            except Refused as refused:
                self._register.refused[refused.refusal] += 1
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
