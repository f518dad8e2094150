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

from worker.transfer_blocks import Longs
from worker.transfer_bytes import PoolBytes, Rows
from worker.transfer_checksum import Sums, address_of, checksummer
from worker.transfer_register import TransferRegister
from worker.transfer_states import Blocks, Carrier, Moving, Phase, Refusal, Refused, Reservation, TransferName

T = TypeVar("T")


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
        self._rows: dict[Moving, Rows] = {}
        self._rows_lock = threading.Lock()

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
                self.rows(moving).finish()
                done = True
            finally:
                self._decide(lambda now: self._register.end_finish(moving, done, now))
        before = moving.phase
        self._decide(lambda now: self._register.commit(name, now))
        if moving.phase is Phase.COMMITTED and before is not Phase.COMMITTED:
            self.moved_bytes[moving.reservation.carrier] += moving.size_bytes
        self._forget_rows()
        return moving

    def abort(self, name: TransferName, reason: str, *, stopped: bool) -> Moving | None:
        moving = self._decide(lambda now: self._register.abort(name, reason, stopped, now))
        self._forget_rows()
        return moving

    def session_died(self, session: int) -> list[Moving]:
        return self._decide(lambda now: self._register.session_died(session, now))

    def release(self, epoch: int, blocks: Blocks) -> Blocks:
        return self._decide(lambda now: self._register.release(epoch, blocks, now))

    def adopt_epoch(self, epoch: int) -> None:
        self._decide(lambda now: self._register.adopt_epoch(epoch, now))

    def expire(self) -> None:
        """Deadlines and forgetting; called a few times a second by whoever serves this end."""
        self._decide(self._register.expire)
        self._forget_rows()

    # -- chunks into this pool

    def begin(self, moving: Moving, block: int, offset: int, length: int) -> tuple[int, int]:
        """Leave to write a chunk: its number and the address for its bytes. `end` must follow."""

        def decide(now: float) -> int:
            # An ended transfer has no places any more; saying that it has ended is the better answer.
            if moving.live:
                number = self._register.chunk_number(moving, block, offset, length)
            else:
                number = 0
            self._register.begin_chunks(moving, number, 1, now)
            return number

        number = self._decide(decide)
        return number, self.address(moving, number)

    def end(self, moving: Moving, number: int, crc: int | None) -> None:
        """The chunk is written and has this CRC; None: it is corrupt or never came whole, and counts as missing."""
        self._decide(lambda now: self._register.end_chunks(moving, number, 1, crc, now))

    def receive(self, name: TransferName, block: int, offset: int, length: int, crc: int, data: bytes) -> Moving:
        """Takes one whole chunk; raises Refused."""
        moving = self.live(name)
        if len(data) != length:
            raise self.refuse(Refusal.TRUNCATED, f"{name.key}: {len(data):,} bytes came of {length:,}")
        number, address = self.begin(moving, block, offset, length)
        came: int | None = None
        try:
            came = checksummer().copy(address, address_of(data), length) if length else 0
        finally:
            self.end(moving, number, came if came == crc else None)
        if came != crc:
            raise self.refuse(Refusal.CORRUPT, f"{name.key}: chunk {number} sums to {came:#010x}, {crc:#010x} was sent")
        return moving

    def take_sums(self, name: TransferName, first: int, crcs: Sums) -> Moving:
        """Chunks that the caller wrote through shared memory: reads them once and takes those that sum to `crcs`."""
        moving = self.live(name)
        self._decide(lambda now: self._register.begin_chunks(moving, first, len(crcs), now))
        good = False
        try:
            good = np.array_equal(self._sums_of(moving, first, len(crcs)), crcs)
        finally:
            self._decide(lambda now: self._register.end_chunks(moving, first, len(crcs), crcs if good else None, now))
        if not good:
            raise self.refuse(Refusal.CORRUPT, f"{name.key}: chunks from {first} on are not what the caller wrote")
        return moving

    # -- chunks out of this pool

    def rows(self, moving: Moving) -> Rows:
        """Where the blocks of a transfer lie while chunks of them come or go."""
        with self._rows_lock:
            rows = self._rows.get(moving)
            if rows is None:
                asked = moving.reservation
                rows = self._rows[moving] = self.pool.rows(asked.blocks, asked.write)
            return rows

    def address(self, moving: Moving, number: int) -> int:
        place, index = divmod(number, self.layout.chunks_per_block)
        return int(self.rows(moving).addresses[place]) + index * self.layout.chunk_bytes

    def outgoing(self, moving: Moving, number: int) -> tuple[int, int, int]:
        """Block as the wire calls it, offset and length of a chunk."""
        place, index = divmod(number, self.layout.chunks_per_block)
        return int(moving.wire_blocks[place]), index * self.layout.chunk_bytes, self.layout.length(index)

    def stored_sums(self, moving: Moving) -> Sums | None:
        """What the blocks summed to when they came into this pool, chunk by chunk; None: the steps own them."""
        return self._decide(lambda now: self._register.blocks.crcs(moving.reservation.blocks))

    def computed_sums(self, moving: Moving, first_block: int, num_blocks: int) -> Sums:
        """What blocks of a transfer sum to as they lie in the pool now."""
        return self.pool.checksums(moving.reservation.blocks[first_block : first_block + num_blocks])

    # -- seen

    def listed(self) -> list[Moving]:
        return self._decide(lambda now: list(self._register.transfers()))

    def committed(self) -> tuple[Blocks, Longs, Longs]:
        return self._decide(lambda now: self._register.blocks.committed())

    def quarantined(self) -> Blocks:
        return self._decide(lambda now: self._register.blocks.quarantined())

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
                return question(time.monotonic())
            except Refused as refused:
                self._register.refused[refused.refusal] += 1
                raise

    def _sums_of(self, moving: Moving, first: int, count: int) -> Sums:
        per_block = self.layout.chunks_per_block
        begin, end = first // per_block, -(-(first + count) // per_block)
        sums = self.pool.checksums(moving.reservation.blocks[begin:end])
        return sums[first - begin * per_block :][:count]

    def _forget_rows(self) -> None:
        """Whoever still writes through rows keeps them alive."""
        with self._rows_lock:
            for moving in [moving for moving in self._rows if not moving.live]:
                del self._rows[moving]
