"""The states of all transfers of one pool. Pure: time comes in with every call, no lock, no I/O.

It answers one question in many forms: may these bytes be written here, or read from here, now? It refuses what is
stale, late, doubled or outside, and counts it. A transfer is reserved, copying, and then committed or aborted; both
live phases have deadlines, and an aborted one keeps its blocks in quarantine as long as something could still write to
them. One caller at a time (`transfer/end.py` has the lock).
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from worker.transfer.blocks import COMMITTED, EMPTY, QUARANTINED, WRITING, PoolBlocks, Sums
from worker.transfer.states import (
    ARRIVED,
    ARRIVING,
    MISSING,
    Blocks,
    Carrier,
    Moving,
    Phase,
    PoolLayout,
    Range,
    Refusal,
    Refused,
    Reservation,
    TransferKey,
    TransferName,
)


@dataclass(frozen=True, slots=True)
class RegisterSettings:
    """Bounds of one pool's transfers."""

    # A transfer over a connection that nothing is heard of for so long is given up.
    idle_s: float = 10.0
    # How long the end of a transfer is remembered, so that a repeated call gets the same answer.
    remember_s: float = 120.0
    max_remembered: int = 4096
    max_timeout_s: float = 600.0
    # One caller's bytes under way; a single transfer may be larger when it is alone.
    max_bytes_per_caller: int = 512 << 20
    max_live: int = 1024


class TransferRegister:
    """Transfers into and out of one pool."""

    def __init__(
        self, layout: PoolLayout, num_blocks: int, incarnation: int, settings: RegisterSettings, *, own_content: bool
    ) -> None:
        self.layout = layout
        self.incarnation = incarnation
        self.epoch = 0
        self.settings = settings
        self.blocks = PoolBlocks(layout, num_blocks, own_content=own_content)
        self.refused: Counter[Refusal] = Counter()
        self._moving: dict[TransferKey, Moving] = {}
        self._live: dict[TransferKey, Moving] = {}
        self._callers: dict[str, int] = {}
        # Epoch and transfer of what the scheduler gave up, and when.
        self._given_up: dict[tuple[int, int], float] = {}

    # -- reserving

    def reserve(self, asked: Reservation, now: float) -> Moving:
        """Claims the blocks, or returns the same transfer if it was asked for before; raises Refused."""
        name = asked.name
        self._check_name(name)
        self.adopt_epoch(name.key.epoch, now)
        self._adopt_caller(name, now)
        known = self._moving.get(name.key)
        if known is not None:
            return self._again(known, asked, now)
        if (name.key.epoch, name.key.transfer) in self._given_up:
            raise Refused(Refusal.LATE, f"{name.key} was given up by the scheduler")
        difference = self.layout.differs(asked.layout)
        if difference:
            raise Refused(Refusal.LAYOUT, f"{name.key.caller} has {difference}: they cannot exchange blocks")
        self.blocks.check_claim(name.key, asked.blocks, asked.write)
        if not asked.local:
            self._check_room(asked)
        moving = Moving(asked, now + min(asked.timeout_s, self.settings.max_timeout_s), now)
        moving.token = secrets.token_bytes(32)
        if asked.write:
            moving.chunks = bytearray(len(asked.blocks) * self.layout.chunks_per_block)
            moving.crcs = np.zeros(len(moving.chunks), np.uint32)
            moving.num_missing = len(moving.chunks)
            moving.unstopped = asked.carrier is Carrier.SHARED_MEMORY
            moving.holds_blocks = True
            moving.places = {block: place for place, block in enumerate(moving.wire_blocks.tolist())}
            self.blocks.claim_write(asked.blocks)
        else:
            self.blocks.claim_read(asked.blocks)
        self._moving[name.key] = self._live[name.key] = moving
        return moving

    def _again(self, known: Moving, asked: Reservation, now: float) -> Moving:
        self._expire_one(known, now)
        if known.phase is Phase.ABORTED:
            raise Refused(Refusal.LATE, f"{known.key} was given up: {known.reason}")
        had = known.reservation
        same = had.write == asked.write and had.carrier == asked.carrier and had.session == asked.session
        if not same or not np.array_equal(had.blocks, asked.blocks):
            raise Refused(Refusal.CONFLICT, f"{known.key} was reserved before with other blocks or another way")
        return known

    def _check_room(self, asked: Reservation) -> None:
        caller, size = asked.name.key.caller, len(asked.blocks) * self.layout.block_bytes
        if len(self._live) >= self.settings.max_live:
            raise Refused(Refusal.BUSY, f"{len(self._live)} transfers are under way, the most at a time")
        under_way = sum(moving.size_bytes for moving in self._live.values() if moving.key.caller == caller)
        bound = self.settings.max_bytes_per_caller
        if under_way and under_way + size > bound:
            detail = f"{caller} has {under_way:,} bytes under way and asks for {size:,} more; {bound:,} is the most"
            raise Refused(Refusal.BUSY, detail)

    # -- copying

    def find(self, name: TransferName, now: float) -> Moving:
        """The transfer of this name, whatever its phase; raises Refused if it is stale or unknown."""
        self._check_name(name)
        moving = self._moving.get(name.key)
        if moving is None:
            raise Refused(Refusal.UNKNOWN, f"no {name.key} here")
        self._check_caller(moving, name)
        self._expire_one(moving, now)
        return moving

    def live(self, name: TransferName, now: float) -> Moving:
        """As `find`, but one that has ended is refused."""
        moving = self.find(name, now)
        self._check_live(moving)
        return moving

    def chunk_number(self, moving: Moving, block: int, offset: int, length: int) -> int:
        """Where a chunk belongs, by what its header says; raises Refused if the transfer has no such chunk."""
        self._check_live(moving)
        place = moving.places.get(block)
        index, rest = divmod(offset, self.layout.chunk_bytes)
        if place is None or rest or not 0 <= index < self.layout.chunks_per_block:
            raise Refused(Refusal.OUTSIDE, f"{moving.key} has no chunk at {offset} of block {block}")
        wanted = self.layout.length(index)
        if length != wanted:
            raise Refused(Refusal.TRUNCATED, f"{moving.key}: {length:,} bytes for a chunk of {wanted:,}")
        return place * self.layout.chunks_per_block + index

    def begin_chunk(self, moving: Moving, block: int, offset: int, length: int, now: float) -> int:
        """`begin_chunks` for the one that a header names; returns its number."""
        number = self.chunk_number(moving, block, offset, length)
        self.begin_chunks(moving, number, 1, now)
        return number

    def take_chunk(self, moving: Moving, number: int, wanted: int, copy: Callable[[int], int], now: float) -> int:
        """Has `copy` write one chunk at once, and takes it if it sums to `wanted`; returns the sum. Raises Refused."""
        self._expire_one(moving, now)
        self._check_live(moving)
        if moving.chunks[number] != MISSING:
            raise Refused(Refusal.DOUBLED, f"{moving.key}: chunk {number} came before")
        crc = copy(number)
        moving.phase = Phase.COPYING
        moving.heard_at = now
        if crc == wanted:
            moving.chunks[number] = ARRIVED
            moving.crcs[number] = crc
            moving.num_missing -= 1
        return crc

    def begin_chunks(self, moving: Moving, first: int, count: int, now: float) -> None:
        """Leave to write these chunks into the pool; `end_chunks` must follow. Raises Refused."""
        assert moving.reservation.write, moving.key
        self._expire_one(moving, now)
        self._check_live(moving)
        if count < 1 or first < 0 or first + count > len(moving.chunks):
            detail = (
                f"{moving.key} has {len(moving.chunks):,} chunks; {count:,} from chunk {first:,} on are not among them"
            )
            raise Refused(Refusal.OUTSIDE, detail)
        if moving.chunks.count(MISSING, first, first + count) != count:
            raise Refused(Refusal.DOUBLED, f"{moving.key}: chunk {first} came before")
        moving.chunks[first : first + count] = bytes((ARRIVING,)) * count
        moving.num_arriving += count
        moving.phase = Phase.COPYING
        moving.heard_at = now

    def end_chunks(self, moving: Moving, first: int, count: int, crcs: int | Sums | None, now: float) -> None:
        """The chunks were written and their bytes fit `crcs`; None: they do not, or never came whole."""
        assert moving.chunks.count(ARRIVING, first, first + count) == count, (moving.key, first, count)
        moving.num_arriving -= count
        moving.chunks[first : first + count] = bytes((MISSING,)) * count
        if not moving.live:
            self._settle(moving)
            raise Refused(Refusal.LATE, f"{moving.key} ended while chunk {first} came: {moving.reason}")
        moving.heard_at = now
        if crcs is not None:
            moving.chunks[first : first + count] = bytes((ARRIVED,)) * count
            moving.crcs[first : first + count] = crcs
            moving.num_missing -= count

    def begin_finish(self, moving: Moving, now: float) -> bool:
        """Leave to bring the gathered chunks into the pool, for one caller once; `end_finish` must follow."""
        self._expire_one(moving, now)
        if not moving.live or moving.num_missing or moving.finishing or moving.finished:
            return False
        moving.finishing = True
        return True

    def end_finish(self, moving: Moving, done: bool, now: float) -> None:
        """`done`: the chunks are in the pool."""
        assert moving.finishing, moving.key
        moving.finishing, moving.finished = False, done
        moving.heard_at = now
        self._settle(moving)

    def asked_for(self, moving: Moving, ranges: list[Range]) -> list[Range]:
        """These ranges, if they are chunks of the transfer and not more than it has. Raises Refused."""
        total = len(moving.reservation.blocks) * self.layout.chunks_per_block
        inside = all(first >= 0 and count > 0 and first + count <= total for first, count in ranges)
        if not inside or sum(count for _, count in ranges) > total:
            raise Refused(Refusal.OUTSIDE, f"{moving.key} has {total:,} chunks; others, or more, are asked for")
        return ranges

    def touch(self, moving: Moving, now: float) -> bool:
        """The other end was heard of. False if the transfer has ended, so that nothing more may be read for it."""
        self._expire_one(moving, now)
        if moving.live:
            moving.phase = Phase.COPYING
            moving.heard_at = now
        return moving.live

    # -- ending

    def commit(self, name: TransferName, now: float) -> Moving:
        """Ends a transfer whose chunks are all here and in the pool. Another one stays as it is: the caller looks at
        its phase. Can be said again; raises Refused if it was given up."""
        moving = self.find(name, now)
        if moving.phase is Phase.ABORTED:
            raise Refused(Refusal.LATE, f"{name.key} was given up: {moving.reason}")
        if moving.phase is Phase.COMMITTED or moving.num_missing:
            return moving
        if moving.reservation.write:
            if not moving.finished:
                return moving
            self.blocks.commit(moving.key, moving.reservation.blocks, moving.crcs)
        else:
            self.blocks.let_read_go(moving.reservation.blocks)
        moving.unstopped = moving.holds_blocks = False
        self._end(moving, Phase.COMMITTED, "", now)
        return moving

    def abort(self, name: TransferName, reason: str, stopped: bool, now: float) -> Moving | None:
        """Gives a transfer up; None if it is not known here (and from now on it will be refused).

        An older life of the scheduler or of the caller may say so too: that nothing can write any more is always good
        to hear.
        """
        self._check_incarnation(name)
        moving = self._moving.get(name.key)
        if moving is None:
            # It may have overtaken its reservation.
            asked = Reservation(name, False, self.layout, np.empty(0, np.int32), Carrier.STREAM, 0.0)
            self._moving[name.key] = Moving(asked, now, now, Phase.ABORTED, reason, now)
            return None
        self._check_caller(moving, name)
        if stopped:
            moving.unstopped = False
        self._give_up(moving, reason, now)
        self._settle(moving)
        return moving

    def session_died(self, session: int, now: float) -> list[Moving]:
        """The process behind a handover session is proven dead: nothing of it can write any more."""
        assert session > 0
        gone = [moving for moving in self._moving.values() if moving.reservation.session == session]
        for moving in gone:
            moving.unstopped = False
            self._give_up(moving, "the caller's process is dead", now)
            self._settle(moving)
        return gone

    def give_up(self, epoch: int, transfer: int, reason: str, now: float) -> None:
        """Aborts all parts of a transfer, and refuses what comes of it from now on."""
        self._given_up[epoch, transfer] = now
        while len(self._given_up) > self.settings.max_remembered:
            del self._given_up[next(iter(self._given_up))]
        for moving in list(self._live.values()):
            if (moving.key.epoch, moving.key.transfer) == (epoch, transfer):
                self._give_up(moving, reason, now)

    def settled(self, epoch: int, transfer: int) -> bool:
        """Whether no part of this transfer is live or in quarantine."""
        parts = (moving for moving in self._moving.values() if moving.key.transfer == transfer)
        return not any(moving.key.epoch == epoch and (moving.live or moving.quarantined) for moving in parts)

    def release(self, epoch: int, blocks: Blocks, clear: bool, now: float) -> Blocks:
        """Forgets committed content that nobody reads; returns the blocks that held some. With `clear` they are in
        quarantine until `cleared` is called."""
        if epoch < self.epoch:
            raise Refused(Refusal.STALE, f"epoch {epoch} is over, {self.epoch} holds")
        self.adopt_epoch(epoch, now)
        free = self.blocks.release(blocks)
        if clear:
            self.blocks.quarantine(free)
        return free

    def cleared(self, blocks: Blocks) -> None:
        self.blocks.empty(blocks)

    def adopt_epoch(self, epoch: int, now: float) -> None:
        """A scheduler of a higher epoch: what older ones began and did not commit is given up."""
        if epoch <= self.epoch:
            return
        self.epoch = epoch
        for moving in list(self._live.values()):
            self._give_up(moving, f"epoch {epoch} began", now)

    def expire(self, now: float) -> None:
        """Gives up what missed its deadline and forgets what ended long ago."""
        for moving in list(self._live.values()):
            self._expire_one(moving, now)
        surplus = len(self._moving) - self.settings.max_remembered
        for key, moving in list(self._moving.items()):
            if moving.live or moving.quarantined:
                continue
            if surplus <= 0 and now - moving.ended_at < self.settings.remember_s:
                continue
            del self._moving[key]
            surplus -= 1

    # -- seen

    @property
    def num_live(self) -> int:
        return len(self._live)

    def transfers(self) -> Iterator[Moving]:
        """Those under way and those remembered, in the order in which they were reserved."""
        return iter(self._moving.values())

    def check(self) -> None:
        """Asserts that block states are exactly what the transfers say; tests call it after every step."""
        blocks = self.blocks
        states = np.where(blocks.states == COMMITTED, COMMITTED, EMPTY).astype(np.uint8)
        readers = np.zeros_like(blocks.readers)
        for moving in self._moving.values():
            reserved = moving.reservation.blocks
            assert moving.live == (moving.key in self._live), moving.key
            if moving.reservation.write:
                assert moving.num_missing == len(moving.chunks) - moving.chunks.count(ARRIVED), moving.key
                assert moving.num_arriving == moving.chunks.count(ARRIVING), moving.key
                assert moving.holds_blocks == (moving.live or moving.quarantined), moving.key
                if moving.holds_blocks:
                    assert not states[reserved].any(), f"{moving.key} shares a block with another one"
                    states[reserved] = WRITING if moving.live else QUARANTINED
            elif moving.live:
                readers[reserved] += 1
        assert np.array_equal(states, blocks.states)
        assert np.array_equal(readers, blocks.readers)
        if not blocks.own_content:
            assert not readers[(states == WRITING) | (states == QUARANTINED)].any()

    # -- inside

    def _check_incarnation(self, name: TransferName) -> None:
        if name.pool_incarnation != self.incarnation:
            detail = f"{name.key} is for incarnation {name.pool_incarnation} of this pool, {self.incarnation} holds"
            raise Refused(Refusal.STALE, detail)

    def _check_name(self, name: TransferName) -> None:
        self._check_incarnation(name)
        if name.key.epoch < self.epoch:
            raise Refused(Refusal.STALE, f"{name.key}: epoch {self.epoch} holds")
        highest = self._callers.get(name.key.caller, 0)
        if name.caller_incarnation < highest:
            detail = f"{name.key} is of incarnation {name.caller_incarnation} of the caller, {highest} holds"
            raise Refused(Refusal.STALE, detail)

    def _check_caller(self, moving: Moving, name: TransferName) -> None:
        if moving.reservation.name.caller_incarnation != name.caller_incarnation:
            raise Refused(Refusal.STALE, f"{name.key} was reserved by another incarnation of the caller")

    def _check_live(self, moving: Moving) -> None:
        if not moving.live:
            raise Refused(Refusal.LATE, f"{moving.key} has ended: {moving.reason or moving.phase.name.lower()}")

    def _adopt_caller(self, name: TransferName, now: float) -> None:
        """A caller that started anew: its older incarnation's transfers are given up."""
        caller = name.key.caller
        if name.caller_incarnation <= self._callers.get(caller, 0):
            return
        self._callers[caller] = name.caller_incarnation
        for moving in list(self._live.values()):
            if moving.key.caller == caller:
                self._give_up(moving, f"incarnation {name.caller_incarnation} of {caller} began", now)

    def _expire_one(self, moving: Moving, now: float) -> None:
        if not moving.live:
            return
        idle = now - moving.heard_at
        if now >= moving.deadline:
            self._give_up(moving, f"not committed within {moving.reservation.timeout_s:.1f} s", now)
        elif moving.reservation.carrier is not Carrier.SHARED_MEMORY and idle >= self.settings.idle_s:
            self._give_up(moving, f"nothing heard for {idle:.1f} s", now)

    def _give_up(self, moving: Moving, reason: str, now: float) -> None:
        if not moving.live:
            return
        if moving.reservation.write:
            self.blocks.quarantine(moving.reservation.blocks)
        else:
            self.blocks.let_read_go(moving.reservation.blocks)
        self._end(moving, Phase.ABORTED, reason, now)
        self._settle(moving)

    def _settle(self, moving: Moving) -> None:
        """Blocks of a write that was given up are empty once nothing can touch them."""
        if moving.holds_blocks and moving.phase is Phase.ABORTED and not moving.quarantined:
            self.blocks.empty(moving.reservation.blocks)
            moving.holds_blocks = False

    def _end(self, moving: Moving, phase: Phase, reason: str, now: float) -> None:
        moving.phase, moving.reason, moving.ended_at = phase, reason, now
        moving.places = {}
        self._live.pop(moving.key, None)
