"""The transfers of one pool, at either end: may these bytes be written here, or read from here, now?

`(event, now) -> answer`: no clock, no lock, no I/O, no randomness. What is stale, late, doubled or outside is refused
and changes nothing. A transfer is reserved, copying, and then committed or aborted; both live phases have deadlines,
and an aborted one keeps its blocks in quarantine as long as something could still write to them. The page of this room
states every rule; the asking end's are in `cluster/register/errand.py`. One caller at a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from cluster.register.blocks import COMMITTED, EMPTY, QUARANTINED, WRITING, PoolBlocks
from cluster.register.known import Known
from cluster.register.moving import Moving
from cluster.register.states import (
    Carrier,
    NotObeyed,
    PoolLayout,
    Range,
    Reservation,
    Sums,
    TransferName,
    TransferPhase,
    WhyRefused,
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
    max_live_per_caller: int = 256


class Register:
    """Transfers into and out of one pool."""

    def __init__(
        self, layout: PoolLayout, num_blocks: int, incarnation: int, settings: RegisterSettings, *, own_content: bool
    ) -> None:
        self.layout = layout
        self.incarnation = incarnation
        self.epoch = 0
        self.settings = settings
        self.blocks = PoolBlocks(layout, num_blocks, own_content=own_content)
        self._known = Known(settings.idle_s)
        # The highest incarnation of each caller.
        self._callers: dict[str, int] = {}
        # Epoch and transfer of what the scheduler gave up, whether it came here or not.
        self._given_up: dict[tuple[int, int], None] = {}
        # Given up by the scheduler, and it has not been told yet that nothing can touch the pool for it.
        self._unsettled: dict[tuple[int, int], None] = {}
        self._settled: deque[tuple[int, int]] = deque(maxlen=settings.max_remembered)
        # Processes that were given the pool's memory and live: caller, its incarnation, and whether it may write.
        self._sessions: dict[int, tuple[str, int, bool]] = {}

    # -- reserving

    def reserve(self, asked: Reservation, token: bytes, now: float) -> Moving:
        """Claims the blocks, or returns the same transfer if it was asked for before; raises Refused. `token` is kept
        for it if it is new."""
        name = asked.name
        self._check_name(name)
        self.adopt_epoch(name.key.epoch, now)
        self._adopt_caller(name, now)
        known = self._known.get(name.key)
        if known is not None:
            return self._again(known, asked, now)
        if (name.key.epoch, name.key.transfer) in self._given_up:
            raise NotObeyed(WhyRefused.LATE, f"{name.key} was given up by the scheduler")
        difference = self.layout.differs(asked.layout)
        if difference:
            raise NotObeyed(WhyRefused.LAYOUT, f"{name.key.caller} has {difference}: they cannot exchange blocks")
        if asked.carrier is Carrier.SHARED_MEMORY and not asked.local:
            self._check_session(asked)
        self.blocks.check_claim(name.key, asked.blocks, asked.write)
        if not asked.local:
            self._check_room(asked)
        moving = Moving(asked, now + min(asked.timeout_s, self.settings.max_timeout_s), now, token=token)
        if asked.write:
            moving.expect_chunks()
            self.blocks.claim_write(asked.blocks)
        else:
            self.blocks.claim_read(asked.blocks)
        self._known.add(moving, self.settings.max_remembered)
        return moving

    def _again(self, known: Moving, asked: Reservation, now: float) -> Moving:
        self._expire_one(known, now)
        if known.phase is TransferPhase.ABORTED:
            raise NotObeyed(WhyRefused.LATE, f"{known.key} was given up: {known.reason}")
        had = known.reservation
        same = had.write == asked.write and had.carrier == asked.carrier and had.session == asked.session
        if not same or not np.array_equal(had.blocks, asked.blocks):
            raise NotObeyed(WhyRefused.CONFLICT, f"{known.key} was reserved before with other blocks or another way")
        return known

    def _check_session(self, asked: Reservation) -> None:
        """Of one that has died nobody would say that it has stopped."""
        name, held = asked.name, self._sessions.get(asked.session)
        if held is None or held[:2] != (name.key.caller, name.caller_incarnation) or (asked.write and not held[2]):
            raise NotObeyed(WhyRefused.STALE, f"{name.key}: session {asked.session} does not hold")

    def _check_room(self, asked: Reservation) -> None:
        caller, size = asked.name.key.caller, len(asked.blocks) * self.layout.block_bytes
        number, under_way = self._known.load(caller)
        if self.num_live >= self.settings.max_live or number >= self.settings.max_live_per_caller:
            detail = f"{self.num_live} transfers are under way, {number} of {caller}; at most "
            detail += f"{self.settings.max_live} can be, {self.settings.max_live_per_caller} of one"
            raise NotObeyed(WhyRefused.BUSY, detail)
        bound = self.settings.max_bytes_per_caller
        if under_way and under_way + size > bound:
            detail = f"{caller} has {under_way:,} bytes under way and asks for {size:,} more; {bound:,} is the most"
            raise NotObeyed(WhyRefused.BUSY, detail)

    # -- copying

    def find(self, name: TransferName, now: float) -> Moving:
        """The transfer of this name, whatever its phase; raises Refused if it is stale or unknown."""
        self._check_name(name)
        moving = self._known.get(name.key)
        if moving is None:
            raise NotObeyed(WhyRefused.UNKNOWN, f"no {name.key} here")
        self._check_caller(moving, name)
        self._expire_one(moving, now)
        return moving

    def live(self, name: TransferName, now: float) -> Moving:
        """As `find`, but one that has ended is refused."""
        moving = self.find(name, now)
        self._check_live(moving)
        return moving

    def live_by(self, name: TransferName, write: bool | None, carriers: tuple[Carrier, ...], now: float) -> Moving:
        """As `live`, for bytes that go this way (`write` None: either way) through one of these carriers."""
        moving = self.live(name, now)
        asked = moving.reservation
        if write not in (None, asked.write) or asked.carrier not in carriers:
            way = f"{'written' if asked.write else 'read'} by {asked.carrier.name.lower().replace('_', ' ')}"
            raise NotObeyed(WhyRefused.CONFLICT, f"{name.key} was reserved to be {way}, and by nothing else")
        return moving

    def number_of(self, moving: Moving, block: int, offset: int, length: int) -> int:
        """The number of the chunk that a header names; raises Refused if the live transfer has none such."""
        self._check_live(moving)
        return moving.number_of(block, offset, length)

    def begin_chunks(self, moving: Moving, first: int, count: int, now: float) -> None:
        """Leave to write these chunks into the pool; `end_chunks` must follow. Raises Refused."""
        self._expire_one(moving, now)
        self._check_live(moving)
        moving.begin(first, count)
        moving.phase = TransferPhase.COPYING
        moving.heard_at = now

    def end_chunks(self, moving: Moving, first: int, count: int, crcs: int | Sums | None, now: float) -> None:
        """The chunks were written and their bytes fit `crcs`; None: they do not, or never came whole."""
        moving.end(first, count, crcs if moving.live else None)
        if not moving.live:
            self._settle(moving, now)
            raise NotObeyed(WhyRefused.LATE, f"{moving.key} ended while chunk {first} came: {moving.reason}")
        moving.heard_at = now

    def take_chunk(self, moving: Moving, number: int, wanted: int, copy: Callable[[int], int], now: float) -> int:
        """`begin_chunks` and `end_chunks` in one, for a chunk that `copy` writes at once: it is taken if it sums to
        `wanted`. Returns the sum. Raises Refused."""
        self._expire_one(moving, now)
        self._check_live(moving)
        crc = moving.take(number, wanted, copy)
        moving.phase = TransferPhase.COPYING
        moving.heard_at = now
        return crc

    def asked_for(self, moving: Moving, ranges: list[Range]) -> list[Range]:
        """These ranges, if they are chunks of the transfer and not more than it has. Raises Refused."""
        total = moving.num_chunks
        inside = all(first >= 0 and count > 0 and first + count <= total for first, count in ranges)
        if not inside or sum(count for _, count in ranges) > total:
            raise NotObeyed(WhyRefused.OUTSIDE, f"{moving.key} has {total:,} chunks; others, or more, are asked for")
        return ranges

    def begin_finish(self, moving: Moving, now: float) -> bool:
        """Leave to bring the gathered chunks into the pool, for one caller once; `end_finish` must follow."""
        self._expire_one(moving, now)
        if not moving.reservation.write or not moving.live or moving.num_missing:
            return False
        if moving.finishing or moving.finished:
            return False
        moving.finishing = True
        return True

    def end_finish(self, moving: Moving, done: bool, now: float) -> None:
        """`done`: the chunks are in the pool."""
        assert moving.finishing, moving.key
        moving.finishing, moving.finished = False, done
        moving.heard_at = now
        self._settle(moving, now)

    def touch(self, moving: Moving, now: float) -> bool:
        """The other end was heard of. False if the transfer has ended, so that nothing more may be read for it."""
        self._expire_one(moving, now)
        if moving.live:
            moving.phase = TransferPhase.COPYING
            moving.heard_at = now
        return moving.live

    # -- ending

    def commit(self, name: TransferName, now: float) -> Moving:
        """Ends a transfer whose chunks are all here and in the pool. Another one stays as it is: the caller looks at
        its phase. Can be said again; raises Refused if it was given up."""
        moving = self.find(name, now)
        if moving.phase is TransferPhase.ABORTED:
            raise NotObeyed(WhyRefused.LATE, f"{name.key} was given up: {moving.reason}")
        if moving.phase is TransferPhase.COMMITTED or moving.num_missing:
            return moving
        if moving.reservation.write:
            if not moving.finished:
                return moving
            self.blocks.commit(moving.key, moving.reservation.blocks, moving.crcs)
        else:
            self.blocks.let_read_go(moving.reservation.blocks)
        moving.unstopped = moving.holds_blocks = False
        self._end(moving, TransferPhase.COMMITTED, "")
        self._settle(moving, now)
        return moving

    def abort(self, name: TransferName, reason: str, stopped: bool, now: float) -> Moving | None:
        """Gives a transfer up; None if it is not known here (and from now on it will be refused).

        An older life of the scheduler or of the caller may say so too: that nothing can write any more is always good
        to hear.
        """
        self._check_incarnation(name)
        moving = self._known.get(name.key)
        if moving is None:
            # It may have overtaken its reservation.
            asked = Reservation(name, False, self.layout, np.empty(0, np.int32), Carrier.STREAM, 0.0)
            moving = Moving(asked, now, now)
            self._known.add(moving, self.settings.max_remembered)
            self._end(moving, TransferPhase.ABORTED, reason)
            self._settle(moving, now)
            return None
        self._check_caller(moving, name)
        if stopped:
            moving.unstopped = False
        self._give_up(moving, reason, now)
        self._settle(moving, now)
        return moving

    def session_began(self, session: int, caller: str, caller_incarnation: int, *, write: bool) -> None:
        """This caller's process is given the pool's memory, with leave to write or without."""
        assert session > 0 and session not in self._sessions
        self._sessions[session] = caller, caller_incarnation, write

    def session_died(self, session: int, now: float) -> None:
        """The process behind a session of shared memory is proven dead: nothing of it can write any more, and what it
        had asked for and comes late is refused."""
        del self._sessions[session]
        for moving in self._known:
            if moving.reservation.session == session:
                moving.unstopped = False
                self._give_up(moving, "the caller's process is dead", now)
                self._settle(moving, now)

    def give_up(self, epoch: int, transfer: int, now: float) -> None:
        """The scheduler wants nothing of this transfer any more, whoever began it: what comes of it is refused from now
        on, and `take_settled` names it once."""
        key = epoch, transfer
        for known in (self._given_up, self._unsettled):
            known[key] = None
            if len(known) > self.settings.max_remembered:
                del known[next(iter(known))]
        for moving in self._known.parts(epoch, transfer):
            self._give_up(moving, "given up by the scheduler", now)
        self._note_settled(key)

    def take_settled(self) -> list[int]:
        """Transfers, since the last call, that cannot touch the pool any more: those that the scheduler gave up, and
        writes that ended without a commit."""
        settled = [transfer for _, transfer in self._settled]
        self._settled.clear()
        return settled

    def adopt_epoch(self, epoch: int, now: float) -> None:
        """A scheduler of a higher epoch: what older ones began and did not commit is given up."""
        if epoch <= self.epoch:
            return
        self.epoch = epoch
        for moving in list(self._known.live.values()):
            self._give_up(moving, f"epoch {epoch} began", now)

    def expire(self, now: float) -> None:
        """Gives up what missed its deadline and forgets what ended long ago. To be called a few times a second."""
        for moving in self._known.due(now):
            self._expire_one(moving, now)
        self._known.forget(now - self.settings.remember_s)

    # -- seen

    @property
    def num_live(self) -> int:
        return len(self._known.live)

    def transfers(self) -> Iterator[Moving]:
        """Those under way and those remembered, in the order in which they were reserved."""
        return iter(self._known)

    def check(self) -> None:
        """Asserts that block states are exactly what the transfers say, and that every bound holds."""
        blocks, settings = self.blocks, self.settings
        states = np.where(blocks.states == COMMITTED, COMMITTED, EMPTY).astype(np.uint8)
        readers = np.zeros_like(blocks.readers)
        self._known.check()
        for moving in self._known:
            key, is_live = moving.key, moving.live
            moving.check()
            if is_live:
                assert key.epoch == self.epoch, f"{key} is live in epoch {self.epoch}"
                assert (key.epoch, key.transfer) not in self._given_up, f"{key} was given up"
            if moving.holds_blocks:
                reserved = moving.reservation.blocks
                assert not states[reserved].any(), f"{key} shares a block with another one"
                states[reserved] = WRITING if is_live else QUARANTINED
            elif is_live:
                readers[moving.reservation.blocks] += 1
        assert np.array_equal(states, blocks.states)
        assert np.array_equal(readers, blocks.readers)
        if not blocks.own_content:
            assert not readers[(states == WRITING) | (states == QUARANTINED)].any()
        num_local = sum(moving.reservation.local for moving in self._known.live.values())
        assert self.num_live <= settings.max_live + num_local
        assert len(self._known) <= settings.max_remembered + settings.max_live + blocks.num_blocks
        assert max(len(self._callers), len(self._given_up), len(self._unsettled)) <= settings.max_remembered

    # -- inside

    def _check_incarnation(self, name: TransferName) -> None:
        if name.pool_incarnation != self.incarnation:
            detail = f"{name.key} is for incarnation {name.pool_incarnation} of this pool, {self.incarnation} holds"
            raise NotObeyed(WhyRefused.STALE, detail)

    def _check_name(self, name: TransferName) -> None:
        self._check_incarnation(name)
        if name.key.epoch < self.epoch:
            raise NotObeyed(WhyRefused.STALE, f"{name.key}: epoch {self.epoch} holds")
        highest = self._callers.get(name.key.caller, 0)
        if name.caller_incarnation < highest:
            detail = f"{name.key} is of incarnation {name.caller_incarnation} of the caller, {highest} holds"
            raise NotObeyed(WhyRefused.STALE, detail)

    def _check_caller(self, moving: Moving, name: TransferName) -> None:
        if moving.reservation.name.caller_incarnation != name.caller_incarnation:
            raise NotObeyed(WhyRefused.STALE, f"{name.key} was reserved by another incarnation of the caller")

    def _check_live(self, moving: Moving) -> None:
        if not moving.live:
            raise NotObeyed(WhyRefused.LATE, f"{moving.key} has ended: {moving.reason or moving.phase.name.lower()}")

    def _adopt_caller(self, name: TransferName, now: float) -> None:
        """A caller that started anew: its older incarnation's transfers are given up."""
        caller = name.key.caller
        if name.caller_incarnation <= self._callers.get(caller, 0):
            return
        # The caller last heard of as new comes last; of too many the first is forgotten.
        self._callers.pop(caller, None)
        self._callers[caller] = name.caller_incarnation
        if len(self._callers) > self.settings.max_remembered:
            del self._callers[next(iter(self._callers))]
        for moving in list(self._known.live.values()):
            if moving.key.caller == caller:
                self._give_up(moving, f"incarnation {name.caller_incarnation} of {caller} began", now)

    def _expire_one(self, moving: Moving, now: float) -> None:
        if not moving.live or now < moving.due_at(self.settings.idle_s):
            return
        if now >= moving.deadline:
            self._give_up(moving, f"not committed within {moving.reservation.timeout_s:.1f} s", now)
        else:
            self._give_up(moving, f"nothing heard for {now - moving.heard_at:.1f} s", now)

    def _give_up(self, moving: Moving, reason: str, now: float) -> None:
        if not moving.live:
            return
        if moving.reservation.write:
            self.blocks.quarantine(moving.reservation.blocks)
        else:
            self.blocks.let_read_go(moving.reservation.blocks)
        self._end(moving, TransferPhase.ABORTED, reason)
        self._settle(moving, now)

    def _settle(self, moving: Moving, now: float) -> None:
        """Blocks of a write that was given up are empty once nothing can touch them, and the scheduler is told."""
        if moving.live or moving.quarantined or not self._known.rest(moving, now):
            return
        if moving.holds_blocks:
            self.blocks.empty(moving.reservation.blocks)
            moving.holds_blocks = False
            key = moving.key.epoch, moving.key.transfer
            self._unsettled[key] = None
            self._note_settled(key)

    def _note_settled(self, key: tuple[int, int]) -> None:
        """If no part of the transfer is live or in quarantine."""
        if key in self._unsettled and not self._known.parts(*key):
            del self._unsettled[key]
            self._settled.append(key)

    def _end(self, moving: Moving, phase: TransferPhase, reason: str) -> None:
        moving.phase, moving.reason = phase, reason
        moving.places = {}
        self._known.end(moving)
